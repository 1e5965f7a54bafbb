"""A trial that several processes train together: real processes, joined by gloo."""

import math
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import ready
from safetensors.torch import load_file

from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.loader import TrainDataset, train_batches
from imet_ray.data.training_data import TrainingData
from imet_ray.models.checkpoint import load_state, save_state
from imet_ray.specs import AddedLabels, Labels, TrialSpec
from imet_ray.storage.added_labels import read_added
from imet_ray.storage.checked_read import read_json_lines
from imet_ray.storage.files import write_arrays
from imet_ray.storage.results import TrialResult, read_result
from imet_ray.storage.run_directory import RunDirectory, TrialDirectory
from imet_ray.training.distributed import SplitError, Team
from imet_ray.training.pseudo_labels import keep_source
from imet_ray.training.train_trial import train_trial
from imet_ray.training.trainer import EpochMetrics, Trainer

over_a_bucket = pytest.mark.parametrize("server", ["s3"], indirect=True)  # all stores: test_bucket_mirror.py
CPU = torch.device("cpu")
# Without batch norm and dropout two workers compute what one computes with the doubled batch, but for rounding.
SMOOTH = {"architecture": "test_vit", "image_size": 160, "optimizer": "sgd", "lr": 0.05, "epochs": 2}
TOLERANCE = 1e-5  # relative, of the losses of each epoch; seen: 1.2e-7


class Killed(Exception):
    pass


def member(
    rank: int,
    size: int,
    meeting: Path,
    store: RunDirectory,
    spec: TrialSpec,
    data: TrainingData,
    device: str,
    stop: int | None,
    small: tuple[int, ...],
    late: tuple[RunDirectory, Path] | None,
) -> None:
    """One process of a team.

    Args:
        store: the run, on this process's node.
        stop: after this epoch it ends, as a kill would end it.
        small: the ranks whose GPUs are too small for whole batches; one finds out after the other.
        late: the run on an older writer's node, and the state that it writes just before the leader takes over.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)

    def report(metrics) -> None:
        if metrics["epoch"] == stop:
            raise Killed

    if rank in small:
        really = Trainer._train_epoch

        def too_small(trainer: Trainer) -> EpochMetrics:
            if trainer.splits == 1:
                time.sleep(0.3 * rank)
                raise torch.cuda.OutOfMemoryError
            return really(trainer)

        Trainer._train_epoch = too_small
    if late is not None:
        take_over = TrialDirectory.acquire

        def taken_over_late(trial: TrialDirectory) -> str:
            older = late[0].trial(trial.trial_id)
            older.fetch_all()
            save_state(older.last, load_state(late[1]), older.files)
            return take_over(trial)

        TrialDirectory.acquire = taken_over_late
    try:
        trial = store.trial(spec.trial_id)
        train_trial(spec, data, trial, device=torch.device(device), report=report, team=Team(rank, size))
    except Killed:
        pass
    except BaseException:
        (store.root / f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


@pytest.fixture
def together(tiny_data, tmp_path):
    """Train a spec with as many processes as it has workers, or another number that is there.

    On one node, unless told where the run lies on the node of each.
    """

    def _together(
        spec: TrialSpec,
        where: str = "team",
        *,
        device: str = "cpu",
        stop: int | None = None,
        small: tuple[int, ...] = (),
        size: int | None = None,
        expected: tuple[int, ...] = (0, 0),
        nodes: Sequence[RunDirectory] = (),
        late: tuple[RunDirectory, Path] | None = None,
    ) -> TrialDirectory:
        root = tmp_path / where
        root.mkdir(exist_ok=True)
        stores = nodes or [RunDirectory(root)] * (size or spec.workers)
        meeting = tmp_path / f"meeting-{len(list(tmp_path.iterdir()))}"
        given = spec, tiny_data, device, stop, small, late
        processes = [
            ready(member, rank, len(stores), meeting, of_rank, *given) for rank, of_rank in enumerate(stores)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()  # it hangs, or is over
        errors = "".join(path.read_text() for of_rank in stores for path in of_rank.root.glob("error-*"))
        assert tuple(process.exitcode for process in processes) == expected, errors
        return stores[0].trial(spec.trial_id)

    return _together


def alone(spec: TrialSpec, data: TrainingData, root: Path, device: torch.device = CPU) -> TrialDirectory:
    trial = RunDirectory(root).trial(spec.trial_id)
    train_trial(spec, data, trial, device=device)
    return trial


def result_of(trial: TrialDirectory) -> TrialResult:
    result = read_result(trial)
    assert result is not None
    return result


def of_team(spec: TrialSpec, workers: int = 2) -> TrialSpec:
    return spec.model_copy(update={"workers": workers})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 7, "accumulate": 2, "clip_norm": 0.5, "ema_decay": 0.9, "head_only_epochs": 1}
        | {"sampler": {"rare": 0.5}},
    ],
    ids=["plain", "accumulated"],
)
def test_two_workers_train_as_one_with_the_doubled_batch(together, tiny_data, make_spec, tmp_path, settings):
    settings = {"batch_size": 8} | SMOOTH | settings
    pair = together(of_team(make_spec(**settings)))
    one = alone(
        make_spec(**settings | {"batch_size": 2 * settings["batch_size"]}), tiny_data, tmp_path / "one"
    )
    ours, theirs = read_json_lines(pair.metrics), read_json_lines(one.metrics)
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=TOLERANCE)
        assert math.isclose(a["valid_loss"], b["valid_loss"], rel_tol=TOLERANCE)
    for name, value in load_file(pair.best).items():
        torch.testing.assert_close(value, load_file(one.best)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"swa_start": 0.0, "swa_lr": 0.001}, {"keep": "cycles", "cycles": 3}, {"keep": "soup"}],
    ids=["best", "swa", "cycles", "soup"],
)
def test_a_team_that_was_killed_goes_on_from_its_last_epoch(together, make_spec, settings):
    # randomness of each worker's own, and batch norm
    spec = of_team(make_spec(**{"mixup": 0.3, "dropout": 0.2} | settings))
    whole = together(spec)
    assert not together(spec, "killed", stop=2).result.exists()
    resumed = together(spec, "killed")
    assert result_of(resumed).epochs == 3
    found, wanted = load_file(resumed.best), load_file(whole.best)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_team_ends_together_when_the_rate_is_spent(together, make_spec):
    plateau = {"schedule": "plateau", "plateau_patience": 0, "plateau_improvement": 1.0, "min_lr": 0.001}
    result = result_of(together(of_team(make_spec(epochs=5, freeze=1, **plateau))))
    assert (result.status, result.epochs) == ("complete", 2)


@over_a_bucket
def test_a_team_over_a_bucket_goes_on_from_one_state_whoever_leads(together, make_spec, on_node):
    spec = of_team(make_spec(schedule="plateau", plateau_patience=0, ema_decay=0.9, mixup=0.3))
    whole = together(spec)
    nodes = [on_node("a"), on_node("b")]
    together(spec, stop=1, nodes=nodes)
    together(spec, stop=2, nodes=nodes[::-1])
    resumed = together(spec, nodes=nodes)
    assert result_of(resumed).epochs == 3
    found, wanted = load_file(resumed.best), load_file(whole.best)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@over_a_bucket
def test_all_of_a_team_learn_the_pseudo_labels_that_its_leader_chose(
    together, make_spec, on_node, tiny_data, tmp_path
):
    rng, nodes = np.random.default_rng(0), [on_node("a"), on_node("b")]
    probs = rng.random(tiny_data.labels.shape).astype(np.float16)
    write_arrays(tmp_path / "p.npz", ids=np.array(tiny_data.split.ids), probs=probs)
    how = AddedLabels(source=str(tmp_path / "p.npz"), above=0.9, strict=False)
    keep_source(nodes[0], how, tiny_data)
    spec = of_team(make_spec(epochs=1, labels=Labels(add=how)))
    trial = together(spec, nodes=nodes)
    assert len(read_added(trial).rows) > 100
    plain = together(of_team(make_spec(epochs=1)), "plain")
    found, wanted = load_file(trial.best), load_file(plain.best)
    assert not all(torch.equal(found[name], wanted[name]) for name in wanted)


@over_a_bucket
def test_each_of_a_team_fetches_the_parents_weights_and_goes_on_without_them(
    together, make_spec, tiny_data, on_node
):
    parent = make_spec(fold=1, epochs=1)
    trained = on_node("c").trial(parent.trial_id)
    train_trial(parent, tiny_data, trained, device=CPU)
    child = make_spec(fold=1, name="child", weights={"variant": "tiny"}, lr=1e-9, epochs=2)
    spec = of_team(child.model_copy(update={"after": {"tiny": parent.trial_id}}))
    nodes = [on_node("a"), on_node("b")]
    together(spec, stop=1, nodes=nodes)
    for node in nodes:
        assert node.trial(parent.trial_id).best.read_bytes() == trained.best.read_bytes()
        node.trial(parent.trial_id).best.unlink()
    before, after = load_file(trained.best), load_file(together(spec, nodes=nodes).best)
    learnt = [name for name, value in before.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learnt)
    assert not any(node.trial(parent.trial_id).best.exists() for node in nodes)


@over_a_bucket
def test_what_an_older_writer_wrote_until_the_leader_took_over_is_where_all_of_a_team_go_on(
    together, make_spec, on_node
):
    spec = of_team(make_spec())
    whole = together(spec)
    nodes = [on_node("a"), on_node("b")]
    together(spec, stop=1, nodes=nodes)
    later = together(spec, "later", stop=2).last
    resumed = together(spec, nodes=nodes, late=(on_node("c"), later))
    assert len(read_json_lines(resumed.metrics)) == 3
    found, wanted = load_file(resumed.best), load_file(whole.best)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_worker_whose_state_is_not_its_leaders_does_not_train(make_spec, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Team, "broadcast", lambda team, value: value if isinstance(value, bool) else value + 1
    )
    with pytest.raises(SplitError):
        train_trial(
            of_team(make_spec()), tiny_data, RunDirectory(tmp_path).trial("t"), device=CPU, team=Team(1, 2)
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_team_that_lost_a_worker_trains_on_with_the_same_batches(together, make_spec, accumulate):
    spec = of_team(make_spec(batch_size=8, accumulate=accumulate, clip_norm=0.5, **SMOOTH | {"epochs": 3}))
    pair = together(spec)
    together(spec, "lost", stop=1)
    left = together(spec, "lost", size=1, expected=(0,))
    ours, theirs = read_json_lines(left.metrics), read_json_lines(pair.metrics)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=TOLERANCE)
        assert math.isclose(a["valid_loss"], b["valid_loss"], rel_tol=TOLERANCE)
    for name, value in load_file(left.best).items():
        torch.testing.assert_close(value, load_file(pair.best)[name], rtol=1e-3, atol=1e-5)


def test_three_workers_of_four_train_as_four(together, make_spec):
    spec = of_team(make_spec(batch_size=4, **SMOOTH), 4)
    four = together(spec, expected=(0,) * 4)
    three = together(spec, "three", size=3, expected=(0,) * 3)
    for a, b in zip(read_json_lines(three.metrics), read_json_lines(four.metrics), strict=True):
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=TOLERANCE)
        assert math.isclose(a["valid_loss"], b["valid_loss"], rel_tol=TOLERANCE)


@pytest.mark.parametrize("small", [(1,), (0, 1)])
def test_a_team_whose_memory_was_too_small_begins_again_in_smaller_parts(together, make_spec, small):
    spec = of_team(make_spec())
    together(spec, small=small, expected=(1, 1))
    result = result_of(together(spec, small=small))
    assert (result.status, result.batch_splits) == ("complete", 2)


def test_a_loss_that_is_no_number_fails_the_trial_in_all_workers(together, make_spec):
    result = result_of(together(of_team(make_spec(lr=1e30, optimizer="sgd"))))
    assert result.status == "failed"
    assert "NaN" in result.reason


def test_a_team_of_one_is_a_trial_of_its_own_name(make_spec):
    spec = make_spec()
    assert of_team(spec, 1).trial_id == spec.trial_id
    assert of_team(spec, 2).trial_id != spec.trial_id
    assert of_team(spec, 2).trial_id != of_team(spec, 3).trial_id


@pytest.mark.parametrize("size", [2, 3])
def test_the_workers_parts_are_the_batches_of_one(tiny_data, size):
    pack = tiny_data.split.pack(64)
    dataset = TrainDataset(
        pack, np.arange(53), tiny_data.labels, TrainTransform("none", "random", 32), seed=0
    )
    whole = [images for images, _ in train_batches(dataset, batch_size=6 * size, workers=0)]
    parts = [
        [images for images, _ in train_batches(dataset, batch_size=6 * size, workers=0, rank=rank, size=size)]
        for rank in range(size)
    ]
    for batch, *of_each in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(of_each), batch)
        assert max(map(len, of_each)) - min(map(len, of_each)) <= 1
