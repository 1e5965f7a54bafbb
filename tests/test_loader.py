"""Batches: the same whoever prepares them, and all pictures of an epoch once."""

import os
import pickle
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import Timed, TrainDataset, loader_died, train_batches, view_batches
from imet_ray.data.packed_images import Pack, build_pack
from imet_ray.data.views import VIEWS, apply_view

N, SIZE = 23, 32
ROWS = np.arange(1, N, 2)  # 11 rows
LABELS = np.eye(N, dtype=np.uint8)  # a picture's label tells its row


class Broken(TrainTransform):
    """Ends the process that uses it, as the kernel does when memory runs out."""

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        os._exit(3)


class Faulty(TrainTransform):
    """Meets an error of its own."""

    def __init__(self, augmentation: str, crop: str, size: int, error: type[Exception]) -> None:
        super().__init__(augmentation, crop, size)
        self.error = error

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        raise self.error("mine")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    root = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(0)
    files = [root / f"{i}.png" for i in range(N)]
    for file in files:
        height, width = rng.integers(40, 70, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    return build_pack(files, [f.stem for f in files], short_side=40, path=root / "p", workers=1)


@pytest.fixture
def dataset(pack: Pack) -> TrainDataset:
    transform = TrainTransform("light", "random", SIZE)
    return TrainDataset(pack, ROWS, LABELS, transform, seed=5)


def epoch_of(dataset: TrainDataset, epoch: int, workers: int = 0) -> list[torch.Tensor]:
    """Images and targets of all batches, in turn."""
    dataset.set_epoch(epoch)
    batches = train_batches(dataset, batch_size=4, workers=workers)
    return [tensor for batch in batches for tensor in batch]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_batch_is_uint8_pictures_and_float_labels(dataset: TrainDataset) -> None:
    images, targets = next(iter(train_batches(dataset, batch_size=4, workers=0)))
    assert (images.shape, images.dtype) == ((4, 3, SIZE, SIZE), torch.uint8)
    assert (targets.shape, targets.dtype) == ((4, N), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_picture_is_what_its_transform_gives_under_its_label(dataset: TrainDataset) -> None:
    image, target = dataset[3]
    seed = dataset._picture_seed(int(ROWS[3]))
    expected = dataset.transform(dataset.pack[ROWS[3]], seed)
    assert np.array_equal(image.numpy().transpose(1, 2, 0), expected)
    assert target.argmax() == ROWS[3]


def test_worker_processes_change_nothing(dataset: TrainDataset) -> None:
    assert same(epoch_of(dataset, 1, workers=0), epoch_of(dataset, 1, workers=2))


def test_an_epoch_that_is_started_again_is_the_same(dataset: TrainDataset) -> None:
    first = epoch_of(dataset, 2)
    epoch_of(dataset, 3)
    assert same(first, epoch_of(dataset, 2))


def test_another_epoch_has_another_order_and_other_pictures(dataset: TrainDataset) -> None:
    dataset.set_epoch(0)
    order, (image, _) = dataset.order(), dataset[0]
    dataset.set_epoch(1)
    assert not np.array_equal(order, dataset.order())
    assert not torch.equal(image, dataset[0][0])


def test_another_seed_gives_other_pictures(dataset: TrainDataset) -> None:
    other = TrainDataset(dataset.pack, ROWS, LABELS, dataset.transform, seed=6)
    assert not same(epoch_of(dataset, 0), epoch_of(other, 0))


def test_the_same_picture_comes_whatever_else_is_in_the_epoch(dataset: TrainDataset) -> None:
    alone = TrainDataset(dataset.pack, ROWS[4:5], LABELS, dataset.transform, seed=5)
    assert torch.equal(alone[0][0], dataset[4][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_each_of_its_rows_once(dataset: TrainDataset, workers: int) -> None:
    targets = torch.cat(epoch_of(dataset, 0, workers)[1::2])
    assert sorted(targets.argmax(1).tolist()) == ROWS.tolist()


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(5, [5, 5]), (4, [4, 4, 3]), (1, [1] * 11), (11, [11]), (20, [11])]
)
def test_only_a_last_batch_of_one_picture_is_left_out(
    dataset: TrainDataset, batch_size: int, sizes: list[int]
) -> None:
    batches = train_batches(dataset, batch_size=batch_size, workers=0)
    assert [len(images) for images, _ in batches] == sizes
    assert len(batches) == len(sizes)


def test_reading_batches_draws_nothing_from_the_generator_that_dropout_uses(
    dataset: TrainDataset,
) -> None:
    before = torch.random.get_rng_state()
    epoch_of(dataset, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_worker_that_dies_raises_instead_of_hanging(dataset: TrainDataset) -> None:
    dataset.transform = Broken("light", "random", SIZE)
    with pytest.raises(RuntimeError, match="exited unexpectedly") as caught:
        list(train_batches(dataset, batch_size=4, workers=1))
    assert loader_died(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), ConnectionRefusedError(), EOFError()])
def test_a_connection_that_breaks_off_is_a_worker_that_died(error: Exception) -> None:
    assert loader_died(error)


@pytest.mark.parametrize("error", [IndexError, EOFError, ConnectionResetError])
def test_a_workers_own_error_is_not_its_death(dataset: TrainDataset, error: type[Exception]) -> None:
    dataset.transform = Faulty("light", "random", SIZE, error)
    with pytest.raises(error, match="DataLoader worker") as caught:
        list(train_batches(dataset, batch_size=4, workers=1))
    assert not loader_died(caught.value)


def test_a_dataset_is_pickled_without_its_pixels(dataset: TrainDataset) -> None:
    data = pickle.dumps(dataset)
    assert len(data) < dataset.pack[0].nbytes * N / 4
    assert torch.equal(pickle.loads(data)[2][0], dataset[2][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_view_batches_show_each_row_in_order_in_each_view(pack: Pack, workers: int) -> None:
    views = list(VIEWS)[:2]
    batches = list(view_batches(pack, ROWS, views, SIZE, batch_size=4, workers=workers))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    images = torch.cat(batches)
    assert images.dtype == torch.uint8
    expected = [[apply_view(pack[row], view, SIZE) for view in views] for row in ROWS]
    assert np.array_equal(images.numpy().transpose(0, 1, 3, 4, 2), np.array(expected))


def test_waiting_for_batches_is_measured_and_working_on_them_is_not() -> None:
    class Slow:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            for i in range(3):
                time.sleep(0.05)
                yield i

    batches = Timed(Slow())
    for _ in batches:
        time.sleep(0.3)
    assert len(batches) == 3
    assert 0.15 <= batches.waited < 0.8
