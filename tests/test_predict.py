"""Predicting with a model: all views, any batch size, as much memory as there is."""

import numpy as np
import pytest
import torch
from PIL import Image

from imet_ray.data.packed_images import Pack, build_pack
from imet_ray.data.views import apply_view
from imet_ray.prediction.predict import Inference, predict_rows

CPU = torch.device("cpu")


class Counting(torch.nn.Module):
    """Exact in integers, so that no batch size can change a bit; left and right count differently."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.most = most  # pictures times views that the memory holds
        self.sizes: list[int] = []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("too many")
        sums = (images.long() * torch.arange(1, images.shape[-1] + 1)).sum((2, 3))  # (B, 3)
        return (sums % 101) / 20 - 2.5


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    root = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(0)
    files = [root / f"{i}.png" for i in range(9)]
    for i, file in enumerate(files):
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), np.uint8)).save(file)
    return build_pack(files, [f.stem for f in files], short_side=18, path=root / "p", workers=1)


def predict(model, pack, rows, views, batch_size):
    return predict_rows(model, pack, np.array(rows), Inference(CPU, views, 16, batch_size))


def test_the_mean_over_the_views_is_predicted_in_the_order_of_the_rows(pack):
    rows, views = [7, 0, 3], ("centre", "flip", "end")
    probs = predict(Counting(), pack, rows, views, 2)
    for found, row in zip(probs, rows, strict=True):
        seen = [torch.from_numpy(apply_view(pack[row], v, 16)).permute(2, 0, 1)[None] for v in views]
        mean = np.mean([Counting()(image).double().sigmoid().numpy() for image in seen], axis=0)
        assert found == pytest.approx(mean[0], abs=5e-4)  # float16
    assert probs.dtype == np.float16


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
def test_the_batch_size_changes_nothing(pack, batch_size):
    rows, views = list(range(9)), ("centre", "flip")
    assert np.array_equal(
        predict(Counting(), pack, rows, views, batch_size), predict(Counting(), pack, rows, views, 3)
    )


def test_when_memory_runs_out_the_batch_is_halved_until_it_fits(pack):
    rows, views = list(range(9)), ("centre", "flip")
    model = Counting(most=5)
    probs = predict(model, pack, rows, views, 8)
    assert model.sizes == [16, 8, 4, 4, 4, 4, 2]  # pictures times two views
    assert np.array_equal(probs, predict(Counting(), pack, rows, views, 8))


def test_one_picture_that_does_not_fit_is_an_error(pack):
    with pytest.raises(torch.cuda.OutOfMemoryError):
        predict(Counting(most=1), pack, [0, 1], ("centre", "flip"), 2)
