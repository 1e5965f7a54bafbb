"""What tests share: a tiny dataset in the Kaggle layout, made once, what is trained on it, object stores, one Ray.

Nothing heavy is imported before a fixture needs it: a file of plain tests starts in a second.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from imet_ray.cluster.session import prepare_environment
from imet_ray.storage.run_directory import Cache, RunDirectory

if TYPE_CHECKING:
    from kernel_machine import Machine

    from imet_ray.blending.members import Member
    from imet_ray.cluster.session import Session
    from imet_ray.commands.setup import Run
    from imet_ray.data.catalog import Catalog
    from imet_ray.data.training_data import TrainingData
    from imet_ray.specs import TrialSpec

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # it is 15: a sweep would wait for the tests beside it
prepare_environment()  # before a test imports ray: else, under `uv run`, it builds an environment for its workers, 40 s

TINY = {  # timm's own test model: 0.5 M parameters
    "name": "tiny",
    "architecture": "test_resnet",
    "weights": "none",
    "image_size": 32,
    "augmentation": "light",
    "epochs": 3,
    "batch_size": 16,
    "lr": 0.003,
}


# Files in the order of their seconds, longest first: else one of the two processes waits for the other's last file.
LONGEST = ("test_network.py", "test_faults.py", "test_sweep.py", "test_every_write.py", "test_ddp_trial.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny tensors: more threads only wait for each other."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(place)), item.path not in slow))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> Path:
    """A data directory of 90 training and 20 test pictures."""
    from imet_ray.data.sources import demo

    root = tmp_path_factory.mktemp("data") / "tiny"
    demo.generate(root, n_images=90, n_test=20, seed=3)
    return root


@pytest.fixture(scope="session")
def tiny_catalog(tiny_root) -> Catalog:
    from imet_ray.data.formats import read_catalog

    return read_catalog(tiny_root)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_data(tiny_catalog, tiny_cache, tmp_path_factory) -> TrainingData:
    from imet_ray.data.training_data import prepare

    store = RunDirectory(tmp_path_factory.mktemp("folds"))
    return prepare(tiny_catalog, store, tiny_cache, n_folds=3, seed=0)


@pytest.fixture
def make_spec(tiny_data):
    """A trial of the tiny variant, with settings of one's own."""
    from imet_ray.specs import TrialSpec, Variant

    def _make(fold: int = 0, **settings) -> TrialSpec:
        return TrialSpec(
            variant=Variant.model_validate(TINY | settings),
            hparams={},
            fold=fold,
            n_folds=3,
            seed=0,
            data_digest=tiny_data.split.digest,
            folds_digest=tiny_data.folds_digest,
            pack_short_side=64,
        )

    return _make


@pytest.fixture(scope="session")
def make_members():
    """Members that see the truth's log-odds through independent noise of a given strength; labels; three folds."""
    from imet_ray.blending.members import Member

    def _make(noise, *, n=300, c=8, seed=0, negatives=False) -> tuple[list[Member], np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        odds = rng.normal(-2, 2, (n, c))
        labels = (rng.random((n, c)) < 1 / (1 + np.exp(-odds))).astype(np.uint8)
        none = np.flatnonzero(~labels.any(axis=1))
        labels[none, odds[none].argmax(axis=1)] = not negatives
        seen = [odds + rng.normal(0, strength, (n, c)) for strength in noise]
        probs = [(1 / (1 + np.exp(-logits))).astype(np.float16) for logits in seen]
        return [Member(f"noise{i}", p) for i, p in enumerate(probs)], labels, rng.permutation(n) % 3

    return _make


@pytest.fixture
def quick_lines(monkeypatch):
    """One start and one kick of `line`: a tenth of the time, where how far it comes is not what is tested."""
    from dataclasses import replace

    from imet_ray.blending import exact_line_search as line
    from imet_ray.blending.methods import METHODS

    for name in ("line", "smooth"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], starts_on_few=1))
    monkeypatch.setattr(line, "KICKS", (1, 1))


@pytest.fixture(scope="session")
def three(make_members):
    """One good member and two worse ones."""
    return make_members([0.7, 2.0, 2.0], n=90, c=6)


@pytest.fixture
def call_blend(capsys):
    """Runs blend.py with options: exit code, stdout, stderr."""
    import blend

    def _call(*argv):
        capsys.readouterr()
        try:
            code = blend.main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return _call


@dataclass(frozen=True)
class Trained:
    """A run of two variants on all three folds, with out-of-fold predictions."""

    run: Run
    where: list[str]  # the options that lead to it


@pytest.fixture(scope="session")
def trained(tiny_root, tiny_cache, tmp_path_factory) -> Trained:
    import torch

    import launch
    from imet_ray.commands.setup import reopen
    from imet_ray.prediction.predict import predict_checkpoint
    from imet_ray.storage.results import read_spec
    from imet_ray.storage.runs import Runs

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "space.yml").write_text(
        "n_folds: 3\n"
        "base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, lr: 0.003, keep: last}\n"
        "variants: [{name: a}, {name: b, augmentation: none}]\n"
    )
    where = ["--runs", str(folder / "runs"), "--cache", str(tiny_cache.root)]
    for variant in "ab":
        for fold in "012":
            argv = ["--train", "--variant", variant, "--fold", fold, "--data", str(tiny_root), "--name", "r"]
            assert launch.main([*argv, "--space", str(folder / "space.yml"), *where]) == 0
    run = reopen(Runs(folder / "runs"), "r", tiny_cache)
    for trial in run.store.trials():
        rows = run.data.rows(read_spec(trial).fold, held_out=True)
        split, label_ids = run.data.split, run.data.label_ids
        predict_checkpoint(
            trial, split, rows, path=trial.oof, label_ids=label_ids, device=torch.device("cpu")
        )
    return Trained(run, where)


@pytest.fixture(scope="session")
def swept(trained, tiny_cache) -> Path:
    """The submission of an ensemble `k`, as `launch.py --predict` makes it."""
    import torch

    import blend
    from imet_ray.data.training_data import test_split as pictures_of_test
    from imet_ray.prediction.ensemble import blend_test, read_ensemble
    from imet_ray.prediction.predict import predict_checkpoint
    from imet_ray.prediction.submission import write_submission

    run, label_ids = trained.run, trained.run.data.label_ids
    test = pictures_of_test(run.catalog, tiny_cache)
    everything = np.arange(len(test.ids))
    for trial in run.store.trials():
        cpu = torch.device("cpu")
        predict_checkpoint(trial, test, everything, path=trial.test, label_ids=label_ids, device=cpu)
    assert blend.main([*trained.where, "--method", "uniform", "--out", "k"]) == 0
    place = run.store.ensemble("k")
    ensemble = read_ensemble(place)
    decoded = ensemble.decoder.decode(blend_test(ensemble, run.store, test.ids))
    write_submission(place.submission, test.ids, label_ids, decoded)
    return place.submission


@pytest.fixture(scope="session")
def built(swept, trained, tmp_path_factory):
    """A kernel of the ensemble `k`: of the folder and options, the folder. Without options it is a copy of one."""
    from kernel_builder import __main__ as kernel_builder

    plain = tmp_path_factory.mktemp("kernel") / "plain"

    def _build(out: Path, *options: str) -> Path:
        options = options if "--dtype" in options else (*options, "--dtype", "float32")
        assert kernel_builder.main(["k", "--out", str(out), "--user", "me", *trained.where, *options]) == 0
        return out

    def _built(out: Path, *options: str) -> Path:
        if options:
            return _build(out, *options)
        if not plain.exists():
            _build(plain)
        return shutil.copytree(plain, out)

    return _built


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    from kernel_machine import Machine

    found = Machine()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[Session]:
    """A Ray that runs, for tests that need no more."""
    from imet_ray.cluster.session import ray_session
    from imet_ray.search_space import Resources

    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's, about the machine
            session = stack.enter_context(ray_session(Resources()))
        yield session


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def server(request, tmp_path_factory):
    """A store behind a proxy, with as many trials in its bucket FULL as the module's TRIALS says."""
    from bucket_server import serve  # with the clients, which few tests need

    trials = getattr(request.module, "TRIALS", 0)
    with serve(request.param, tmp_path_factory.mktemp("store"), trials=trials) as proxy:
        yield proxy


@pytest.fixture
def proxy(server, monkeypatch):
    """The server, with nothing harmed and nothing counted."""
    from imet_ray.storage import object_store as buckets

    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    buckets.open_bucket.cache_clear()
    server.requests.clear()
    yield server
    server.harm = lambda method, path: None
    buckets.open_bucket.cache_clear()


@pytest.fixture
def bucket(proxy) -> str:
    """A new bucket's name."""
    name = f"b-{secrets.token_hex(4)}"
    proxy.store.create(name)
    return name


@pytest.fixture
def on_node(bucket, proxy, tmp_path):
    """The run `r` as a node of that name sees it."""

    from imet_ray.storage.runs import runs_at

    def _on_node(node: str) -> RunDirectory:
        return runs_at(f"{proxy.scheme}://{bucket}/runs", Cache(tmp_path / node)).run("r")

    return _on_node
