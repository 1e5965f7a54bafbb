"""--tag on a Ray: the same table as one process makes, and unreadable pictures named as there."""

import shutil

import pytest

from imet_ray.cluster import tagging
from imet_ray.cluster.tagging import Tagging, tag_chunk, tag_on_ray
from imet_ray.prediction.tagger_files import find_ensemble
from imet_ray.storage.runs import Runs
from imet_ray.tagging.collection import Choice, made_by
from imet_ray.tagging.outputs import Asked, Made, output_of
from imet_ray.tagging.pictures import Found, find_pictures

pytestmark = pytest.mark.slow


def test_a_ray_makes_the_same_table(shared_ray, swept, trained, tiny_catalog, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in tiny_catalog.test.files[:7]:
        shutil.copy(file, folder)
    (folder / "0bad.jpg").write_bytes(b"no picture")
    runs = Runs(trained.run.store.root.parent)
    made = made_by(find_ensemble("r/k", runs), None, Choice())
    whole = Tagging("r/k", runs, None, made, Choice())
    monkeypatch.chdir(tmp_path)
    pictures = [Found(f"pictures/{file.name}", base=str(tmp_path)) for file in sorted(folder.iterdir())]
    monkeypatch.setattr(tagging, "CHUNK", 3)
    out = output_of(Asked(tmp_path / "ray.csv", made))
    with out.opened():
        outcome = tag_on_ray(pictures, out, whole, shared_ray)
        out.finish()
    assert (outcome.tagged, outcome.problems) == (7, {"pictures/0bad.jpg": "not a picture"})
    here = tag_chunk(whole, pictures)
    alone = output_of(Asked(tmp_path / "alone.csv", made))
    with alone.opened():
        alone.add(here.rows)
        alone.finish()
    assert (tmp_path / "ray.csv").read_text() == (tmp_path / "alone.csv").read_text()
    assert len(find_pictures(["pictures"], None)) == 8


def test_stopped_on_a_ray_it_goes_on_and_makes_the_same_table(
    shared_ray, swept, trained, tiny_catalog, tmp_path, monkeypatch
):
    runs = Runs(trained.run.store.root.parent)
    made = made_by(find_ensemble("r/k", runs), None, Choice())
    whole = Tagging("r/k", runs, None, made, Choice())
    pictures = [Found(str(file)) for file in tiny_catalog.test.files[:7]]
    monkeypatch.setattr(tagging, "CHUNK", 2)
    quiet, stopped = (output_of(Asked(tmp_path / name, made)) for name in ("quiet.csv", "stopped.csv"))
    with quiet.opened():
        tag_on_ray(pictures, quiet, whole, shared_ray)
        quiet.finish()
    add = stopped.add
    kept = iter(range(2))

    def dying(rows, unread=()):
        next(kept)  # StopIteration, as a kill
        return add(rows, unread)

    monkeypatch.setattr(stopped, "add", dying)
    with stopped.opened(), pytest.raises(StopIteration):
        tag_on_ray(pictures, stopped, whole, shared_ray)
    again = output_of(Asked(tmp_path / "stopped.csv", made))
    with again.opened():
        todo = [picture for picture in pictures if not again.has(picture)]
        assert len(todo) == 3
        tag_on_ray(todo, again, whole, shared_ray)
        again.finish()
    assert (tmp_path / "stopped.csv").read_bytes() == (tmp_path / "quiet.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quiet.csv", "stopped.csv"]


def test_what_no_worker_can_do_comes_back_as_a_line(trained):
    asked = Tagging("nothing", Runs(trained.run.store.root.parent), None, Made("x", ""), Choice())
    found = tag_chunk(asked, [Found("a.png")])
    assert isinstance(found, str)
    assert "no ensemble 'nothing'" in found
