"""The space of iMet 2019 on generated pictures of iMet's shape, small: from the command line to a blend."""

import json
from pathlib import Path

import pytest
import serial_sweep
import yaml

from benchmarks.imet_shape import generate
from imet_ray.data.check import check_data
from imet_ray.data.formats import read_catalog

SPACE = Path(__file__).parents[1] / "search_spaces" / "imet2019.yml"


@pytest.fixture(scope="module")
def imet(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imet") / "data"
    generate(root, pictures=60, test=6, seed=0)
    return root


def test_the_generated_directory_is_of_imets_shape_and_may_be_trained_on(imet):
    report = check_data(imet, workers=2)
    assert not any(problem.forbids for problem in report.problems)
    catalog = read_catalog(imet)
    kinds = [name.partition("::")[0] for name in catalog.label_names]
    assert (kinds.count("culture"), kinds.count("tag"), len(kinds)) == (398, 705, 1103)
    assert 2.5 < catalog.labels.sum(1).mean() < 4
    tags = catalog.labels[:, 398:]
    assert tags.any(1).all()
    assert tags.sum(0).max() > 4  # the commonest; most have none in so few pictures


def test_two_of_the_seven_come_to_a_blend_through_the_flags_of_a_first_look(imet, tiny_cache, tmp_path):
    space = yaml.safe_load(SPACE.read_text())
    space["variants"] = [recipe for recipe in space["variants"] if recipe["name"] in ("2k", "4f")]
    (tmp_path / "imet2019.yml").write_text(yaml.safe_dump(space))
    flags = "--limit 40 --epochs 1 --trials-per-variant 1 --folds 2 --name r"
    settings = ["weights=none", "image_size=32", "architecture=test_resnet"]
    argv = ["--space", tmp_path / "imet2019.yml", "--data", imet, *flags.split()]
    argv += ["--runs", tmp_path / "runs", "--cache", tiny_cache.root]
    argv += [f"--set={one}" for one in settings]
    assert serial_sweep.sweep([str(arg) for arg in argv]) == 0
    ensemble = json.loads((tmp_path / "runs" / "r" / "ensembles" / "blend" / "ensemble.json").read_text())
    assert {member["variant"] for member in ensemble["members"]} <= {"2k", "4f"}
    report = tmp_path / "runs" / "r" / "ensembles" / "blend" / "report.html"
    assert report.stat().st_size > 10_000
