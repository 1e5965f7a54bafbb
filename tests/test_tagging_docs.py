"""The examples of docs/tagging.md run."""

import doctest
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def where_the_docs_are_true(swept, trained, tiny_catalog, tmp_path, monkeypatch):
    """A folder with a run `demo`, its ensemble `blend`, and two pictures."""
    runs = tmp_path / "runs"
    shutil.copytree(trained.run.store.root, runs / "demo")
    (runs / "demo" / "ensembles" / "k").rename(runs / "demo" / "ensembles" / "blend")
    (tmp_path / "pictures").mkdir()
    pictures = [file for file in tiny_catalog.test.files if file.suffix == ".png"]
    for name, file in zip("ab", pictures, strict=False):
        shutil.copy(file, tmp_path / "pictures" / f"{name}.png")
    monkeypatch.chdir(tmp_path)


def test_the_examples_run(where_the_docs_are_true):
    found = doctest.testfile(str(DOCS / "tagging.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    assert found.attempted > 8
