"""`launch.py --tag`: from files, folders, globs, lists and buckets to tables; stopped anywhere, it goes on."""

import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import launch
from imet_ray.errors import StoreError
from imet_ray.prediction.tagger_files import find_ensemble
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, made_by
from imet_ray.tagging.outputs import InTable, Made
from imet_ray.tagging.pictures import Found, find_pictures
from imet_ray.tagging.rows import COLUMNS
from imet_ray.tagging.tables import TABLES

MADE = Made("k 1", "")


@pytest.fixture(scope="session")
def ensemble(swept, trained) -> str:
    return str(trained.run.store.ensemble("k").root)


@pytest.fixture
def folder(tiny_catalog, tmp_path) -> Path:
    """Five pictures in two folders, and what is none."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for i, file in enumerate(tiny_catalog.test.files[:5]):
        shutil.copy(file, root / ("deep" if i > 2 else "") / f"{i}{file.suffix.upper()}")
    (root / "notes.txt").write_text("no picture")
    (root / "._0.jpg").write_text("what macOS keeps")
    return root


@pytest.fixture
def call(ensemble, capsys, monkeypatch):
    """Runs --tag: exit code, stdout, stderr."""

    def _call(*argv, stdin: bytes = b"", by: str = ensemble):
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        try:
            code = launch.main(["--tag", *map(str, argv), "--with", by])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return _call


def names(paths) -> list[str]:
    return [Path(path).name.partition(".")[0] for path in paths]


# which pictures


def test_folders_are_read_to_the_bottom_without_what_is_no_picture(folder):
    assert names(found.path for found in find_pictures([str(folder)], io.BytesIO())) == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]


def test_a_picture_that_is_named_twice_comes_once(folder):
    first = find_pictures([str(folder)], io.BytesIO())[0].path
    again = [first, f"{folder}/deep/../{Path(first).name}", f"{folder}/*", str(folder)]
    assert names(found.path for found in find_pictures(again, io.BytesIO())) == ["0", "1", "2", "3", "4"]


def test_globs_that_the_shell_left_are_followed(folder):
    assert names(found.path for found in find_pictures([f"{folder}/**/[34].*"], io.BytesIO())) == ["3", "4"]
    assert names(found.path for found in find_pictures([f"{folder}/d*"], io.BytesIO())) == ["3", "4"]


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\0"])
def test_a_list_of_paths_comes_by_stdin(folder, between):
    listed = between.join([bytes(folder / "deep"), b"not there.jpg", b""])
    assert names(found.path for found in find_pictures(["-"], io.BytesIO(listed))) == ["3", "4", "not there"]


@pytest.mark.parametrize(
    ("path", "expected"), [("nothing.jpg", "there is no nothing.jpg"), ("*.nothing", "nothing matches")]
)
def test_an_argument_that_leads_to_nothing_is_refused(call, path, expected):
    code, out, err = call(path)
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("path", ["", "notes.*"])
def test_an_argument_that_leads_to_no_picture_is_refused(call, tmp_path, path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no picture")
    code, out, err = call(tmp_path / "texts" / path)
    assert (code, out) == (1, "")
    assert f"--tag: there is no picture in {tmp_path / 'texts' / path}" in err
    assert err.count("\n") == 1


def test_a_list_of_nothing_is_a_table_of_nothing(call, tmp_path):
    (tmp_path / "empty").mkdir()
    for listed in (b"", bytes(tmp_path / "empty") + b"\n"):
        code, out, err = call("-", stdin=listed)
        assert (code, out) == (0, f"{','.join(COLUMNS)}\n")
        assert "no picture was given" in err


def test_a_list_may_begin_with_a_byte_order_mark(folder):
    listed = b"\xef\xbb\xbf" + bytes(folder / "0.PNG") + b"\r\n"
    assert [one.path for one in find_pictures(["-"], io.BytesIO(listed))] == [str(folder / "0.PNG")]


def test_a_folder_that_cannot_be_listed_is_told_of_at_the_end(call, folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path) == str(folder / "deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, out, err = call(folder)
    assert code == 1
    assert len(out.splitlines()) == 1 + 3
    assert f"  {folder / 'deep'}: cannot be read: " in err


def test_a_pipe_is_told_of_and_not_waited_for(call, folder):
    os.mkfifo(folder / "pipe.jpg")
    code, out, err = call(folder)
    assert code == 1
    assert len(out.splitlines()) == 1 + 5
    assert f"  {folder / 'pipe.jpg'}: it is a pipe or a device, and no file\n" in err


def test_pictures_of_each_option_are_tagged(call, folder):
    first, second = (next(folder.glob(f"{i}.*")) for i in range(2))
    code, out, _ = call(first, "--tag", second)
    assert code == 0
    assert len(out.splitlines()) == 1 + 2


def test_a_name_that_a_terminal_would_obey_is_shown_on_one_line(call, tmp_path):
    (tmp_path / "a\n\x1b[31m.jpg").write_text("no picture")
    code, _, err = call(tmp_path)
    assert code == 1
    assert f"  {tmp_path}/a\\n\\x1b[31m.jpg: not a picture\n" in err


def test_links_that_lead_back_are_no_trap(folder):
    (folder / "deep" / "back").symlink_to(folder)
    assert len(find_pictures([str(folder)], io.BytesIO())) == 5


def test_a_name_that_is_no_text_is_shown_as_one():
    assert Found(os.fsdecode(b"caf\xe9.jpg")).name == "caf\\xe9.jpg"


# tables


def test_all_kinds_of_output_say_the_same(call, folder, tmp_path, tagger_of):
    tables = {}
    for suffix in TABLES:
        code, _, err = call(folder, "--out", tmp_path / f"tags{suffix}")
        assert code == 0, err
        tables[suffix] = TABLES[suffix].read(tmp_path / f"tags{suffix}")
    assert tables[".csv"] == tables[".jsonl"] == tables[".parquet"]
    code, out, _ = call(folder)
    assert code == 0
    assert out == (tmp_path / "tags.csv").read_text()
    expected = tagger_of.predict([one.path for one in tables[".csv"]])
    assert [list(one.labels) for one in tables[".csv"]] == list(expected.labels)
    assert [one.decided_by for one in tables[".csv"]] == list(expected.decided_by)
    for one, probabilities in zip(tables[".csv"], expected.probabilities, strict=True):
        assert np.allclose(one.probabilities, probabilities, atol=6e-5)


@pytest.fixture(scope="session")
def tagger_of(ensemble):
    import imet_ray

    return imet_ray.load(ensemble)


def test_top_and_min_probability_choose_the_labels(call, folder, tmp_path):
    assert call(folder, "--out", tmp_path / "top.csv", "--top", 2)[0] == 0
    assert {len(one.labels) for one in TABLES[".csv"].read(tmp_path / "top.csv")} == {2}
    assert call(folder, "--out", tmp_path / "all.csv", "--min-probability", 0)[0] == 0
    rows = TABLES[".csv"].read(tmp_path / "all.csv")
    assert {one.decided_by for one in rows} == {"probability at least 0"}
    assert len({len(one.labels) for one in rows}) == 1


# on and on


def test_what_is_tagged_is_not_tagged_again_and_new_pictures_are_added(call, folder, tmp_path, monkeypatch):
    out = tmp_path / "tags.csv"
    assert call(folder / "deep", "--out", out)[0] == 0
    before = out.read_text()
    code, _, err = call(folder / "deep", "--out", out)
    assert (code, err) == (0, f"all 2 pictures were tagged before: {out}\n")
    assert out.read_text() == before
    code, _, err = call(folder, "--out", out)
    assert "3 pictures tagged" in err
    assert "; 2 were tagged before" in err
    after = out.read_text()
    assert after.startswith(before)
    assert sorted(names(one.path for one in TABLES[".csv"].read(out))) == ["0", "1", "2", "3", "4"]
    assert list(tmp_path.glob("*.partial")) == []


def test_pictures_that_cannot_be_read_are_listed_and_all_others_are_tagged(call, folder, tmp_path):
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    out = tmp_path / "tags.csv"
    for again in range(2):
        code, _, err = call(folder, "--out", out)
        assert code == 1
        assert "2 pictures could not be tagged:" in err
        assert f"  {folder / 'bad.jpg'}: not a picture\n" in err
        assert len(TABLES[".csv"].read(out)) == 5
        assert ("5 were tagged before" in err) == bool(again)


@pytest.mark.parametrize(
    "others",
    [["--top", "1"], ["--views", "flip"], ["--min-probability", "0.5"]],
    ids=lambda others: others[0],
)
def test_what_others_made_is_refused_and_stays(call, folder, tmp_path, others):
    out = tmp_path / "tags.csv"
    assert call(folder, "--out", out)[0] == 0
    before = out.read_bytes()
    code, _, err = call(folder, "--out", out, *others)
    assert code == 1
    assert "the ensemble, its views or the options are others" in err
    assert err.count("\n") == 1
    assert out.read_bytes() == before


def test_a_strangers_file_is_never_overwritten(call, folder, tmp_path):
    for name, text in (("own.csv", "a,b\n1,2\n"), ("own.jsonl", "{}\n"), ("own.parquet", "PAR1")):
        (tmp_path / name).write_text(text)
        code, _, err = call(folder, "--out", tmp_path / name)
        assert code == 1
        assert "is no table of tags" in err
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("tags.txt", "unknown kind of --out '.txt'"),
        ("tags", "unknown kind of --out 'tags'"),
        ("", "is a folder"),
    ],
)
def test_an_output_of_no_known_kind_is_refused(call, folder, tmp_path, out, expected):
    target = tmp_path / "dir.csv" if out == "" else out
    if out == "":
        target.mkdir()
    code, _, err = call(folder, "--out", target)
    assert code == 1
    assert expected in err


def test_a_prefix_is_for_sidecars(call, folder, tmp_path):
    code, _, err = call(folder, "--out", tmp_path / "tags.csv", "--prefix", "auto:")
    assert code == 1
    assert "--prefix is for --out xmp" in err


def test_tags_are_those_of_the_same_ensemble_whatever_its_models_cost(ensemble):
    files = find_ensemble(ensemble, Runs(Path("runs")))
    member = files.ensemble.members[0]
    slower = member.model_copy(update={"seconds": 99.0, "size": 1})
    heavier = member.model_copy(update={"weight": 0.7})
    of = {
        name: replace(files, ensemble=files.ensemble.model_copy(update={"members": [one]}))
        for name, one in (("as it is", member), ("slower", slower), ("heavier", heavier))
    }
    by = {name: made_by(one, None, Choice()).tagged_by for name, one in of.items()}
    assert by["as it is"] == by["slower"] != by["heavier"]


def test_options_of_tagging_are_for_it_alone(capsys):
    assert launch.main(["--status", "--top", "3"]) == 1
    assert "--top has no meaning for --status: it is for --tag" in capsys.readouterr().err
    assert launch.main(["--status", "--with", "k"]) == 1
    assert "--with has no meaning for --status: it is for --tag" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch.main(["--tag", "x"])
    assert "--tag needs --with ENSEMBLE" in capsys.readouterr().err


# stopped


def test_a_stopped_command_goes_on_with_the_batches_that_were_left(call, folder, tmp_path, monkeypatch):
    """Else probabilities could differ in their last digit, for kernels differ with the size of a batch."""
    from imet_ray.tagging import collection

    (folder / "0bad.jpg").write_bytes(b"no picture")
    seen: list[list[str]] = []

    def rows_of(tagger, found, *args):
        seen.append(names(one.path for one in found))
        if len(seen) == stops_at:
            raise KeyboardInterrupt
        return rows(tagger, found, *args)

    rows = collection.rows_of
    monkeypatch.setattr(collection, "PICTURES", 2)
    monkeypatch.setattr(collection, "rows_of", rows_of)
    stops_at = 0
    assert call(folder, "--out", tmp_path / "quiet.csv")[0] == 1
    quiet = seen.copy()
    for stops_at in (2, 3):
        seen.clear()
        assert call(folder, "--out", tmp_path / f"{stops_at}.csv")[0] == 130
        del seen[-1]
        stops_at = 0
        assert call(folder, "--out", tmp_path / f"{len(seen) + 1}.csv")[0] == 1
        assert [batch for batch in seen if batch] == quiet


def test_a_full_disk_is_one_line_and_what_was_tagged_is_kept(call, folder, tmp_path, monkeypatch):
    out = tmp_path / "tags.csv"
    monkeypatch.setattr("imet_ray.tagging.collection.PICTURES", 2)
    whole = InTable._append
    calls = []

    def append(self, text):
        calls.append(text)
        if len(calls) == 3:  # the header, two pictures, and half of the next ones
            whole(self, text[: len(text) // 2])
            raise StoreError("disk full while writing tags.csv.partial")
        whole(self, text)

    monkeypatch.setattr(InTable, "_append", append)
    code, _, err = call(folder, "--out", out)
    assert (code, err.count("\n")) == (1, 1)
    assert "disk full" in err
    monkeypatch.setattr(InTable, "_append", whole)
    code, _, err = call(folder, "--out", out)
    assert code == 0
    assert len(TABLES[".csv"].read(out)) == 5


def test_killed_at_any_moment_nothing_is_lost_or_twice(ensemble, folder, tmp_path):
    """kill -9 amid a batch, twice, and then to the end: the table is that of one quiet command."""
    code = (
        "import os, signal, sys\n"
        "import launch, imet_ray.commands.tag, torch\n"  # once, for all that are forked
        "from imet_ray.tagging import collection, outputs\n"
        "collection.PICTURES = 1\n"
        "append = outputs.InTable._append\n"
        "for batches in (2, 3, 100):\n"
        "    def dying(self, text):\n"
        "        global batches\n"
        "        batches -= 1\n"
        "        append(self, text if batches else text[: len(text) // 2])\n"
        "        if not batches:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    outputs.InTable._append = dying\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        torch.set_num_threads(1)\n"
        "        os._exit(launch.main(sys.argv[1:]))\n"
        "    print(os.waitpid(child, 0)[1], os.path.exists(sys.argv[-1]))\n"
    )
    out, quiet = tmp_path / "tags.csv", tmp_path / "quiet.csv"
    argv = ["--tag", str(folder), "--with", ensemble, "--out"]
    command = [sys.executable, "-c", code, *argv, str(out)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["9 False", "9 False", "0 True"]
    assert launch.main([*argv, str(quiet)]) == 0
    assert out.read_bytes() == quiet.read_bytes()


def test_ctrl_c_says_that_the_same_command_continues(call, folder, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("imet_ray.commands.tag.tag", interrupt)
    code, _, err = call(folder, "--out", tmp_path / "tags.csv")
    assert (code, err) == (130, "interrupted: the same command continues\n")


def test_an_ensemble_of_another_run_is_named_by_its_run(call, ensemble, folder):
    runs = Path(ensemble).parents[2]
    code, out, _ = call(folder, "--name", "r", "--runs", runs, by="k")
    assert code == 0
    assert len(out.splitlines()) == 1 + 5
    assert "no run 'q'" in call(folder, "--name", "q", "--runs", runs, by="k")[2]
    _, _, error = call(folder, "--name", "q", "--runs", runs, by="r/k")
    assert "r/k says itself where it lies: leave --name q out" in error


def test_a_folder_that_is_mistyped_is_named(call, folder, tmp_path):
    code, _, err = call(folder, "--runs", tmp_path, by="musem-tags")
    assert code == 1
    assert "there is no folder musem-tags here, and no run in " in err


def test_all_done_needs_no_models(call, folder, tmp_path, monkeypatch):
    assert call(folder, "--out", tmp_path / "tags.csv")[0] == 0
    monkeypatch.setattr("imet_ray.commands.tag.Tagger", None)
    assert call(folder, "--out", tmp_path / "tags.csv")[0] == 0
