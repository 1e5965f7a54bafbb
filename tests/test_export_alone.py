"""The command lines themselves: what `--export` wrote tags, elsewhere and alone, as the run did."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch

pytestmark = pytest.mark.slow

SCRIPT = Path(launch.__file__).resolve()
OUTS = {"tags.csv": ["--out", "tags.csv"], "xmp": ["--out", "xmp", "--prefix", "auto:"]}


def command(here: Path, *argv: object) -> str:
    """What `python launch.py` says, called in a folder."""
    found = subprocess.run(
        [sys.executable, SCRIPT, *map(str, argv)],
        check=False,
        capture_output=True,
        text=True,
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(here)},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def places(swept, trained, tiny_root, tiny_catalog, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What the run, and what the export alone, made of the same pictures."""
    root = tmp_path_factory.mktemp("alone")
    for name in ("run", "export"):
        (root / name / "new").mkdir(parents=True)
        for file in tiny_catalog.test.files[:5]:
            shutil.copy(file, root / name / "new")
    runs = trained.run.store.root.parent
    command(root, "--export", "k", "far/k", *trained.where)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "run")
        for out in OUTS.values():
            assert launch.main(["--tag", "new", "--with", "r/k", "--runs", str(runs), *out]) == 0
    shutil.move(root / "far" / "k", root / "export" / "k")
    away = {path: path.with_name(f"{path.name}.away") for path in (runs, tiny_root)}
    for path, other in away.items():
        path.rename(other)
    try:
        for out in OUTS.values():
            command(root / "export", "--tag", "new", "--with", "k", *out)
    finally:
        for path, other in away.items():
            other.rename(path)
    shutil.rmtree(root / "export" / "k")
    return {
        name: {
            str(path.relative_to(root / name)): path.read_bytes()
            for path in (root / name).rglob("*")
            if path.is_file() and ".cache" not in path.parts
        }
        for name in ("run", "export")
    }


def test_the_table_has_the_same_bytes(places):
    assert places["run"]["tags.csv"] == places["export"]["tags.csv"]
    assert places["run"]["tags.csv"].count(b"\n") == 6


def test_the_sidecars_have_the_same_bytes(places):
    of_run, of_export = (
        {path: data for path, data in found.items() if path.endswith(".xmp")} for found in places.values()
    )
    assert len(of_run) == 5
    assert of_run == of_export


def test_nothing_else_is_written(places):
    assert places["run"].keys() == places["export"].keys()
