"""A table of tags, and the partial file that it grows in: stopped anywhere, it goes on; no models are needed."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imet_ray.errors import ConfigError, StoreError
from imet_ray.tagging import outputs
from imet_ray.tagging.outputs import Asked, InTable, Made, output_of
from imet_ray.tagging.pictures import Found
from imet_ray.tagging.rows import COLUMNS, Row
from imet_ray.tagging.tables import TABLES, joined_names

MADE = Made("k 1", "")


def row(path: str, *labels: str) -> Row:
    return Row(path, labels, tuple(0.5 for _ in labels), "threshold 0.2", MADE.tagged_by)


@pytest.mark.parametrize("suffix", TABLES)
@example(labels=["dog", "cat|"], path="a")
@given(
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=4),
    path=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
def test_a_table_is_read_back_as_it_was_written(suffix, labels, path, tmp_path_factory):
    file = tmp_path_factory.mktemp("table") / f"tags{suffix}"
    rows = [row(path, *labels), row("b")]
    TABLES[suffix].write(file, rows)
    assert TABLES[suffix].read(file) == rows


def test_a_csv_is_what_pandas_reads(tmp_path):
    TABLES[".csv"].write(tmp_path / "t.csv", [row("a, b.jpg", "dog|cat", "x")])
    found = pd.read_csv(tmp_path / "t.csv")
    assert tuple(found.columns) == COLUMNS
    assert joined_names(found.labels[0]) == ["dog|cat", "x"]
    assert found.probabilities[0] == "0.5|0.5"


def test_what_cannot_be_read_is_noted_once_however_often_a_command_is_stopped(tmp_path):
    for _ in range(3):
        with output_of(Asked(tmp_path / "tags.csv", MADE)).opened() as output:
            output.add([(Found("a.png"), Row("a.png", (), (), "", MADE.tagged_by))], ["b.png"])
            output.add([], ["b.png"])
    lines = (tmp_path / "tags.csv.partial").read_text().splitlines()
    assert [json.loads(line)["unread"] for line in lines[1:]] == [["b.png"]] * 3


def in_table(path: Path) -> InTable:
    output = output_of(Asked(path, MADE))
    assert isinstance(output, InTable)
    return output


def add(output, *paths: str) -> None:
    output.add([(Found(path), row(path, "x")) for path in paths])


def test_a_command_that_was_stopped_goes_on_and_a_torn_line_goes(tmp_path):
    out = tmp_path / "tags.csv"
    whole = tmp_path / "whole.csv"
    with in_table(whole).opened() as output:
        add(output, "a", "b", "c")
        output.finish()
    with in_table(out).opened() as output:
        add(output, "a")
        add(output, "b")
    partial = tmp_path / "tags.csv.partial"
    data = partial.read_bytes()
    lines = data.splitlines(keepends=True)
    for cut in range(len(data) + 1):
        partial.write_bytes(data[:cut])
        with in_table(out).opened() as output:
            there = [path for path in "ab" if output.has(Found(path))]
            assert len(there) == sum(sum(map(len, lines[: n + 2])) <= cut for n in range(2))
            add(output, *[path for path in "abc" if not output.has(Found(path))])
            output.finish()
        assert out.read_bytes() == whole.read_bytes()
        assert not partial.exists()
        out.unlink()


def test_one_that_was_stopped_between_the_table_and_the_end_says_nothing_twice(tmp_path):
    out = tmp_path / "tags.jsonl"
    with in_table(out).opened() as output:
        add(output, "a", "b")
        kept = output.partial.read_bytes()
        output.finish()
    before = out.read_bytes()
    output.partial.write_bytes(kept)
    with in_table(out).opened() as again:
        assert again.has(Found("a"))
        again.finish()
    assert out.read_bytes() == before
    assert not output.partial.exists()


def test_a_partial_file_of_others_is_refused_and_a_damaged_one_named(tmp_path):
    with in_table(tmp_path / "tags.csv").opened() as output:
        add(output, "a")
    with (
        pytest.raises(ConfigError, match="has tags by k 1, not by k 2"),
        output_of(Asked(tmp_path / "tags.csv", Made("k 2", ""))).opened(),
    ):
        pass
    output.partial.write_bytes(b"{}\nnothing\n")
    with pytest.raises(StoreError, match="is damaged: delete it"), in_table(tmp_path / "tags.csv").opened():
        pass


def test_rows_that_another_process_wrote_while_we_began_are_kept(tmp_path, monkeypatch):
    first, second = in_table(tmp_path / "tags.csv"), in_table(tmp_path / "tags.csv")
    lock = InTable._locked

    def late(self):
        monkeypatch.setattr(InTable, "_locked", lock)
        with first.opened() as output:
            add(output, "a")
            output.finish()
        return lock(self)

    monkeypatch.setattr(InTable, "_locked", late)
    with second.opened() as output:
        assert output.has(Found("a"))
        add(output, "b")
        output.finish()
    assert [one.path for one in TABLES[".csv"].read(tmp_path / "tags.csv")] == ["a", "b"]


def test_a_command_that_tagged_nothing_leaves_nothing_that_another_would_be_refused_for(tmp_path):
    with in_table(tmp_path / "tags.csv").opened() as output:
        begun = output.partial.read_bytes()
    assert list(tmp_path.iterdir()) == []
    output.partial.write_bytes(begun)  # as a kill leaves it
    with output_of(Asked(tmp_path / "tags.csv", Made("k 2", ""))).opened() as other:
        other.finish()


def test_lines_that_power_failed_on_are_tagged_again(tmp_path):
    with in_table(tmp_path / "tags.csv").opened() as output:
        for name in "abc":
            add(output, name)
    lines = output.partial.read_bytes().splitlines(keepends=True)
    lines[2] = bytes(len(lines[2]))  # as some file systems leave a block
    output.partial.write_bytes(b"".join(lines))
    with in_table(tmp_path / "tags.csv").opened() as again:
        assert [name for name in "abc" if again.has(Found(name))] == ["a"]
        add(again, "b", "c")
        again.finish()
    assert [one.path for one in TABLES[".csv"].read(tmp_path / "tags.csv")] == ["a", "b", "c"]


def test_what_a_killed_command_left_of_a_table_goes_and_nothing_else(tmp_path):
    left = [tmp_path / f".tags.csv.{number}.{'0af' * 2}.tmp" for number in (1, 12345)]
    others = [
        tmp_path / name for name in (".tags.csv.2.123456.abcdef.tmp", ".x.csv.1.0af0af.tmp", ".tags.csv.tmp")
    ]
    for file in (*left, *others):
        file.touch()
    with in_table(tmp_path / "tags.csv").opened():
        pass
    assert set(tmp_path.iterdir()) == set(others)


def test_two_processes_do_not_tag_into_one_table(tmp_path):
    code = (
        "from pathlib import Path\nfrom imet_ray.tagging.outputs import *\n"
        "from imet_ray.errors import ConfigError\n"
        f"try:\n    with output_of(Asked(Path({str(tmp_path / 'tags.csv')!r}), Made('k 1', ''))).opened(): pass\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    with in_table(tmp_path / "tags.csv").opened() as output:
        add(output, "a")
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "another process tags into" in found.stdout
        add(output, "b")
        output.finish()
    assert [one.path for one in TABLES[".csv"].read(tmp_path / "tags.csv")] == ["a", "b"]


def test_another_name_of_output_is_one_line(monkeypatch, tmp_path):
    """As `docs/architecture.md` says of the registry."""
    made = []
    monkeypatch.setitem(outputs.OUTPUTS, ".txt", lambda asked: made.append(asked) or outputs.Printed())
    output_of(Asked(tmp_path / "a.txt", MADE))
    assert len(made) == 1
