"""A loaded ensemble: found wherever it lies, it decides as `--predict` does, whatever form pictures have."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import imet_ray
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.prediction.ensemble import ensemble_text, read_ensemble, write_ensemble
from imet_ray.prediction.prepared import pixels_of
from imet_ray.prediction.tagger_files import unique_names, write_labels
from imet_ray.storage.run_directory import ExportedDirectory


def export(place, root):
    """A folder as `--export` writes it."""
    out, ensemble = ExportedDirectory(root), read_ensemble(place)
    out.weights.mkdir(parents=True)
    for member in ensemble.needed:
        for trial in member.trials:
            shutil.copy(place.run.trial(trial).best, out.weights_of(trial))
    shutil.copy(place.ensemble, out.ensemble)
    shutil.copy(place.run.labels, out.labels)
    return root


@pytest.fixture(scope="session")
def folder(swept, trained):
    return trained.run.store.ensemble("k").root


@pytest.fixture(scope="session")
def tagger(folder):
    return imet_ray.load(folder)


@pytest.fixture
def files(tiny_catalog):
    return list(tiny_catalog.test.files)


def test_the_runs_test_pictures_get_the_labels_that_predict_gives_them(tagger, files, swept):
    expected = pd.read_csv(swept, dtype=str).attribute_ids
    probs = tagger.scores([tagger.prepare(file) for file in files])
    labels = [" ".join(sorted(tagger.label_ids[c] for c in row)) for row in tagger.decide(probs)]
    assert labels == [" ".join(sorted(cell.split())) for cell in expected]


def test_a_table_has_names_and_how_the_set_was_decided(tagger, files, tiny_catalog):
    found = tagger.predict(files[:3])
    assert list(found.columns) == ["path", "labels", "probabilities", "decided_by"]
    assert list(found.path) == [str(file) for file in files[:3]]
    assert set(found.decided_by) == {str(tagger.ensemble.decoder)}
    for row in found.itertuples():
        assert set(row.labels) <= set(tiny_catalog.label_names)
        assert row.probabilities == sorted(row.probabilities, reverse=True)
        assert len(row.probabilities) == len(row.labels) > 0


def test_all_forms_of_a_picture_are_the_same_picture(tagger, files):
    file = files[0]
    pixels = np.asarray(Image.open(file).convert("RGB"))
    forms = [file, str(file), file.read_bytes(), Image.open(file), pixels]
    probs = tagger.probabilities(forms)
    assert list(probs.index) == [str(file), str(file), 2, 3, 4]
    assert list(probs.columns) == tagger.labels
    assert (probs.nunique() == 1).all()
    assert np.array_equal(tagger.probabilities(pixels).to_numpy(), probs.to_numpy()[:1])


def test_many_pictures_come_in_their_order(tagger, files, monkeypatch):
    whole = tagger.probabilities(files)
    monkeypatch.setattr("imet_ray.prediction.tagger.PICTURES", 3)
    assert np.allclose(tagger.probabilities(iter(files)), whole, atol=1e-3)


def test_top_and_min_probability_choose_instead_of_the_decoder(tagger, files):
    probs = tagger.probabilities(files)
    top = tagger.predict(files, top=2)
    for i, row in enumerate(top.itertuples()):
        assert row.labels == probs.iloc[i].sort_values(ascending=False, kind="stable").index[:2].tolist()
    assert set(top.decided_by) == {"top 2"}
    least = float(np.quantile(probs.to_numpy(), 0.9))
    above = tagger.predict(files, min_probability=least)
    assert sum(map(len, above.labels)) == int((probs.to_numpy() >= least).sum())
    both = tagger.predict(files, top=1, min_probability=least)
    assert [row[:1] for row in above.labels] == list(both.labels)
    assert set(both.decided_by) == {f"top 1, probability at least {least:g}"}


@pytest.mark.parametrize("choice", [{"top": 0}, {"min_probability": 1.5}, {"min_probability": -0.1}])
def test_a_choice_that_cannot_be_meant_is_refused(tagger, files, choice):
    with pytest.raises(ConfigError, match=next(iter(choice))):
        tagger.predict(files, **choice)


def test_embeddings_have_length_1_and_are_those_of_the_members(tagger, files):
    whole = tagger.embed(files[:4])
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    parts = [tagger.embed(files[:4], member=member.variant) for member in tagger.members]
    assert whole.shape[1] == sum(part.shape[1] for part in parts)
    assert np.allclose(whole @ whole.T, sum(part @ part.T for part in parts) / len(parts), atol=1e-5)
    with pytest.raises(ConfigError, match="unknown member 'z'"):
        tagger.embed(files, member="z")


def test_other_views_are_other_probabilities(folder, files):
    one, own = imet_ray.load(folder, views="flip"), imet_ray.load(folder)
    assert one.prepare(files[0]).seen[0].shape[0] == 1
    assert not np.allclose(one.probabilities(files[:2]), own.probabilities(files[:2]))


def test_an_exported_folder_gives_the_same_wherever_it_lies(folder, trained, files, tmp_path, tagger):
    copy = export(trained.run.store.ensemble("k"), tmp_path / "exported")
    assert ExportedDirectory(copy).weights.is_dir()
    found = imet_ray.load(copy)
    assert found.labels == tagger.labels
    assert np.array_equal(found.probabilities(files), tagger.probabilities(files))


def test_an_ensemble_is_found_by_folder_by_run_and_in_the_newest_run(folder, trained, tagger):
    root = trained.run.store.root.parent
    for where, runs in ((str(folder), "nowhere"), ("r/k", root), ("k", str(root))):
        assert imet_ray.load(where, runs=runs).label_ids == tagger.label_ids


@pytest.mark.parametrize(
    ("where", "expected"),
    [("nowhere", "no ensemble 'nowhere'"), ("a/b/c", "there is no folder a/b/c"), ("x/k", "no run 'x'")],
)
def test_what_is_not_there_is_said_in_one_line(trained, where, expected):
    with pytest.raises((ConfigError, StoreError), match=expected) as caught:
        imet_ray.load(where, runs=str(trained.run.store.root.parent))
    assert "\n" not in str(caught.value)


def test_other_weights_than_the_blends_are_refused(trained, tmp_path):
    copy = ExportedDirectory(export(trained.run.store.ensemble("k"), tmp_path / "exported"))
    first, second, *_ = sorted(copy.weights.iterdir())
    shutil.copy(first, second)
    with pytest.raises(StoreError, match="holds other weights"):
        imet_ray.load(copy.root)
    second.unlink()
    with pytest.raises(StoreError, match="is missing"):
        imet_ray.load(copy.root)


def test_a_run_keeps_its_labels_names(trained, tiny_catalog):
    rows = pd.read_csv(trained.run.store.labels, dtype=str)
    assert rows.attribute_id.tolist() == list(tiny_catalog.label_ids)
    assert rows.attribute_name.tolist() == list(tiny_catalog.label_names)


def test_names_of_an_older_run_are_the_datas_or_else_the_ids(folder, trained, tiny_root, tmp_path, caplog):
    from imet_ray.prediction.tagger_files import run_label_names

    run = trained.run.store
    ids = trained.run.data.label_ids
    names = run_label_names(run, ids)
    kept = run.labels.rename(tmp_path / "labels.csv")
    try:
        assert run_label_names(run, ids) == names
        assert not caplog.messages
        hidden = (tiny_root / "labels.csv").rename(tiny_root / "hidden.csv")
        try:
            assert run_label_names(run, ids) == tuple(ids)
            assert "names of the labels are not known" in caplog.text
        finally:
            hidden.rename(tiny_root / "labels.csv")
    finally:
        kept.rename(run.labels)


def test_names_are_each_ones_own():
    assert unique_names(["1", "2", "3", "4"], ["cat", "", "cat", "dog"]) == ("cat (1)", "2", "cat (3)", "dog")


def test_no_data_are_needed(folder, files, tiny_root, tmp_path, tagger):
    picture = shutil.copy(files[0], tmp_path / "picture.png")
    expected = tagger.probabilities(picture)
    hidden = tiny_root.rename(tiny_root.with_name("hidden"))
    try:
        assert np.array_equal(imet_ray.load(folder).probabilities(picture), expected)
    finally:
        hidden.rename(tiny_root)


def test_columns_batches_and_entries_of_folders_are_pictures_too(tagger, files):
    expected = tagger.probabilities(files[:2]).to_numpy()
    pixels = [pixels_of(file) for file in files[:2]]
    data = [file.read_bytes() for file in files[:2]]
    entries = {entry.name: entry for entry in os.scandir(files[0].parent)}
    forms = {
        "column": pd.Series(list(map(str, files[:2]))).to_numpy(),
        "bytes that change": [bytearray(data[0]), memoryview(data[1])],
        "entries": [entries[file.name] for file in files[:2]],
        "generator": (file for file in files[:2]),
    }
    if pixels[0].shape == pixels[1].shape:
        forms["batch"] = np.stack(pixels)
    for name, form in forms.items():
        assert np.array_equal(tagger.probabilities(form).to_numpy(), expected), name
    assert len(tagger.predict(bytearray(data[0]))) == 1
    assert len(tagger.predict(np.stack([pixels[0]] * 2))) == 2


def test_threads_share_a_tagger(tagger, files):
    expected = tagger.probabilities(files)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: tagger.probabilities(files), range(4)))
    assert all(np.allclose(one, expected, atol=1e-6) for one in found)


def test_a_forked_process_is_told_to_load_its_own(tagger, files, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ConfigError, match="load one in each process"):
        tagger.predict(files[0])


def test_what_is_neither_one_nor_many_is_refused(tagger):
    for nothing in (None, 5):
        with pytest.raises(DataError, match="pictures are one or many"):
            tagger.predict(nothing)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("nowhere.png", "nowhere.png: no such file"),
        (b"text", "picture 0: not a picture"),
        (np.zeros((4, 4)), r"picture 0: an array must be \(H, W, 3\) uint8 RGB"),
    ],
)
def test_what_is_no_picture_is_named(tagger, picture, expected):
    with pytest.raises(DataError, match=expected):
        tagger.predict(picture)


def test_an_ensemble_of_another_tools_member_is_refused(trained, tmp_path):
    place = trained.run.store.ensemble("other")
    found = read_ensemble(trained.run.store.ensemble("k"))
    member = found.members[0].model_copy(update={"trials": [], "checkpoints": []})
    write_ensemble(place, found.model_copy(update={"name": "other", "members": [member, *found.members[1:]]}))
    with pytest.raises(ConfigError, match="from another tool"):
        imet_ray.load(place.root)
    shutil.rmtree(place.root)


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[: len(text) // 2],
        lambda text: json.dumps(json.loads(text) | {"new": 1}),
        lambda text: json.dumps(json.loads(text) | {"members": []}),
        lambda text: json.dumps(json.loads(text) | {"decoder": json.loads(text)["decoder"] | {"new": 1}}),
    ],
    ids=["empty", "a list", "cut off", "of a newer version", "no member", "a newer decoder"],
)
def test_an_exported_folder_that_cannot_be_read_says_how_to_get_it_again(trained, tmp_path, changed):
    export(trained.run.store.ensemble("k"), tmp_path / "far")
    file = tmp_path / "far" / "ensemble.json"
    file.write_text(changed(file.read_text()))
    with pytest.raises(StoreError, match="copy or export it again, with this version of imet_ray$"):
        imet_ray.load(tmp_path / "far")


def test_other_weights_in_an_exported_folder_are_refused(trained, tmp_path):
    export(trained.run.store.ensemble("k"), tmp_path / "far")
    file = next((tmp_path / "far" / "weights").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match="holds other weights than .*: copy or export it again"):
        imet_ray.load(tmp_path / "far")


def test_labels_of_an_exported_folder_must_be_all_there(trained, tmp_path):
    copy = ExportedDirectory(export(trained.run.store.ensemble("k"), tmp_path / "exported"))
    write_labels(copy.labels, ["1"], ["one"])
    with pytest.raises(StoreError, match=r"labels\.csv does not name the labels"):
        imet_ray.load(copy.root)


def test_an_ensemble_without_calibration_says_so(folder, trained, tmp_path, caplog, files):
    copy = ExportedDirectory(export(trained.run.store.ensemble("k"), tmp_path / "exported"))
    found = read_ensemble(trained.run.store.ensemble("k")).model_copy(update={"calibration": None})
    assert "calibration" not in json.loads(ensemble_text(found))
    copy.ensemble.write_text(ensemble_text(found))
    with caplog.at_level(logging.WARNING):
        tagger = imet_ray.load(copy.root)
    assert "is not calibrated" in caplog.text
    probs = tagger.scores([tagger.prepare(files[0])])
    assert np.array_equal(tagger.calibrated(probs), probs)


def test_an_import_of_imet_ray_is_cheap():
    import subprocess
    import sys

    code = "import sys, imet_ray; imet_ray.load; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match="device nothing cannot be used"):
        imet_ray.load(folder, device="nothing")
