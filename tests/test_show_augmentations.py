"""The page of a variant's augmentation: it shows what training sees, and says with which settings."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import launch
from imet_ray.commands import augmentations
from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import TrainDataset
from imet_ray.data.training_data import training_split
from imet_ray.specs import Variant

SPACE = """
seed: 5
pack_short_side: 64
base: {architecture: resnet18, image_size: 32}
variants:
- {name: own, crop: native, mixup: 0.3, cutmix: 1.0, augmentation: {noise: 0.29, affine: medium, global_prob: 0.53}}
- {name: preset, augmentation: light}
"""


@pytest.fixture
def page_of(tmp_path, tiny_root, tiny_cache, capsys):
    """The page that a command line writes, as text."""

    def _page(variant, *options):
        (tmp_path / "space.yml").write_text(SPACE)
        out = tmp_path / "page.html"
        where = [
            "--space",
            tmp_path / "space.yml",
            "--data",
            tiny_root,
            "--cache",
            tiny_cache.root,
            "--out",
            out,
        ]
        assert launch.main(["--show-augmentations", variant, *map(str, where), *options]) == 0
        assert capsys.readouterr().out == f"{out}: 10 pictures, 8 epochs each\n"
        return out.read_text()

    return _page


def test_the_draws_are_those_that_training_makes_of_the_packed_pictures(
    page_of, tiny_catalog, tiny_cache, monkeypatch
):
    seen = []
    really = augmentations.augmentation_page

    def page(recipe, shown, **more):
        seen.extend(shown)
        return really(recipe, shown, **more)

    monkeypatch.setattr(augmentations, "augmentation_page", page)
    page_of("own", "--set", "augmentation.noise=0.5")
    pack = training_split(tiny_catalog, tiny_cache).pack(64)
    recipe = Variant(
        name="own",
        architecture="resnet18",
        image_size=32,
        crop="native",
        augmentation={"noise": 0.5, "affine": "medium", "global_prob": 0.53},
    )
    rows = np.arange(len(pack))[::2]  # as a fold has it: some of all
    dataset = TrainDataset(pack, rows, tiny_catalog.labels, TrainTransform.of(recipe), seed=5)
    compared = 0
    for one in seen:
        row = pack.ids.index(one.id)
        assert np.array_equal(one.original, pack[row])
        if row in rows:
            for epoch, draw in enumerate(one.draws):
                dataset.set_epoch(epoch)
                assert np.array_equal(draw, dataset[row // 2][0].permute(1, 2, 0).numpy())
                compared += 1
    assert compared >= 8


def test_the_page_is_one_file_of_ten_pictures_with_eight_draws_each(page_of, tiny_catalog):
    page = page_of("own")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 10 * 9
    assert Image.open(io.BytesIO(base64.b64decode(pictures[1]))).size == (32, 32)
    assert "http" not in page
    assert sum(one in page for one in tiny_catalog.train.ids) == 10


def test_the_settings_stand_in_words(page_of):
    page = " ".join(page_of("own").split())
    assert "Crop &#39;native&#39;: 32 x 32 pixels of pictures whose short side is 64 or less" in page
    assert "mixed by mixup (0.3) or cutmix (1)" in page
    assert ">augmentation.noise</td>" in page
    assert ">0.29 of 0.53</td>" in page
    assert "rotate=-45..45" in page
    page = page_of("preset")
    assert "RandomBrightnessContrast" in page
    assert "mixed by" not in page


def test_no_run_is_begun_and_nothing_is_packed(page_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page_of("preset")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "space.yml"]


def test_an_unknown_variant_names_the_known_ones(tmp_path, tiny_root, tiny_cache, capsys):
    (tmp_path / "space.yml").write_text(SPACE)
    where = ["--space", tmp_path / "space.yml", "--data", tiny_root, "--cache", tiny_cache.root]
    assert launch.main(["--show-augmentations", "prest", *map(str, where)]) == 1
    assert "unknown variant 'prest': did you mean 'preset'?" in capsys.readouterr().err


def test_options_that_it_would_ignore_are_refused(capsys):
    assert launch.main(["--show-augmentations", "a", "--fold", "1"]) == 1
    assert "--fold has no meaning for --show-augmentations: it is for --train" in capsys.readouterr().err
