"""The search space for pictures that no space was made for."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from imet_ray.commands.own_pictures import describe_fit, fit_to_pictures
from imet_ray.commands.plan import SPACES, Request, make_plan
from imet_ray.data.catalog import Split
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs


@pytest.fixture
def request_of(tmp_path):
    def _make(data: object, space: Path | None = None, **overrides: int) -> Request:
        cache, runs = Cache(tmp_path / "cache"), Runs(tmp_path / "runs")
        return Request(space, str(data), None, False, None, runs, cache, None, overrides, False, False)

    return _make


@pytest.fixture
def catalog_of(tiny_catalog, tmp_path):
    """A catalog of so many pictures whose short side has so many pixels."""

    def _make(n: int, side: int):
        file = tmp_path / f"{side}.png"
        cv2.imwrite(str(file), np.zeros((side, side + 40, 3), np.uint8))
        return replace(tiny_catalog, train=Split(tuple(map(str, range(n))), (file,) * n))

    return _make


def test_a_directory_gets_the_space_for_own_pictures_and_is_told_what_it_takes(request_of, tiny_root, capsys):
    found = make_plan(request_of(tiny_root))
    assert found.space.name == "own"
    assert found.store.root.name.startswith("own-")
    said = capsys.readouterr().out
    assert "own.yml" in said
    assert "demo" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("fitted")]
    recipe = found.space.variants[1]
    assert f"{recipe.image_size} px and {recipe.epochs} epochs for 90 pictures" in line


def test_a_file_beside_the_data_is_no_space(request_of, tiny_root, tmp_path):
    (tmp_path / "mine").symlink_to(tiny_root)
    (tmp_path / "mine.yml").write_text("variants: [{name: a, architecture: resnet18}]")
    assert make_plan(request_of(tmp_path / "mine")).space.name == "own"


@pytest.mark.parametrize("name", ["demo", "own"])
def test_what_the_command_line_says_counts(request_of, tiny_root, name):
    found = make_plan(request_of(tiny_root, SPACES / f"{name}.yml", epochs=3))
    assert {variant.epochs for variant in found.space.variants} == {3}
    assert found.space.name == name


@pytest.mark.parametrize(
    ("n", "side", "size", "epochs"),
    [
        (20, 300, 224, 16),  # the size that the weights were made for
        (700, 300, 176, 16),
        (700, 160, 128, 16),
        (7_746, 160, 96, 8),
        (109_237, 300, 96, 4),
        (700, 72, 64, 16),  # no larger than the pictures are
        (700, 20, 32, 16),
    ],
)
def test_size_and_epochs_follow_from_the_pictures(catalog_of, n, side, size, epochs):
    assert fit_to_pictures(catalog_of(n, side)) == {"image_size": size, "epochs": epochs}


def test_pictures_that_cannot_be_read_do_not_decide(catalog_of, tmp_path):
    catalog = catalog_of(9, 72)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = (*catalog.train.files[:5], *(tmp_path / "broken.png",) * 4)
    mended = replace(catalog, train=replace(catalog.train, files=files))
    assert fit_to_pictures(mended)["image_size"] == 64


def test_the_time_that_is_told_is_shared_by_the_cores(request_of, tiny_root):
    space = make_plan(request_of(tiny_root)).space
    seconds = []
    for cores in (1, 4):
        told = re.search(r"about (\d+):(\d\d):(\d\d) on", describe_fit(space, 10_000, cores))
        hours, minutes, rest = map(int, told.groups())
        seconds.append(hours * 3600 + minutes * 60 + rest)
    assert seconds[0] == pytest.approx(4 * seconds[1], rel=0.01)
