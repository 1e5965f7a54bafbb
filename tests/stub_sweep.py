"""`launch.py`, whose trials are stubs without torch: for tests of where and when trials run, not of what they learn.

`python tests/stub_sweep.py --sweep ...` as a program: its functions go to the workers by value, to other nodes, too.
A stub leaves a trial's artefacts, an epoch each SECONDS; its score grows with dropout.
"""

import os
import sys
from pathlib import Path
from typing import Any

SECONDS = float(os.environ.get("STUB_SECONDS", "0.5"))


def train(config: dict[str, Any], data: Any, slot: Any) -> None:
    """In place of `imet_ray.cluster.worker.train_in_worker`."""
    import socket
    import time

    from ray import tune
    from ray._raylet import setproctitle

    from imet_ray.specs import TrialSpec
    from imet_ray.storage.checked_read import file_digest, read_json_lines
    from imet_ray.storage.files import write_json, write_json_lines, write_text
    from imet_ray.storage.results import TrialResult, write_result

    spec = TrialSpec.model_validate_json(config["spec"])
    trial = slot.run.trial(spec.trial_id)
    data.split.pack(spec.pack_short_side)  # as a trial does first: packed here, where this node has none
    token = trial.acquire()
    write_json(trial.spec, spec.model_dump(mode="json"))
    rows = read_json_lines(trial.metrics)
    title = f"ray::{spec.variant.name} fold {spec.fold} {config['phase']} {spec.trial_id}"
    while len(rows) < spec.recipe.epochs:
        setproctitle(title)  # Ray names a worker anew for each epoch
        time.sleep(SECONDS)
        epoch = len(rows) + 1
        score = (0.2 + spec.recipe.dropout) * epoch / spec.recipe.epochs
        row = {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "valid_loss": 1 / epoch,
            "lr": 0.003,
            "threshold": 0.2,
        }
        row |= {
            "score": score,
            "expected_score": score,
            "images_per_s": 100.0,
            "wait_s": 0.0,
            "evaluate_s": 0.0,
        }
        row |= {"seconds": SECONDS + time.monotonic() % 1e-3}  # a finger-print
        rows.append(row | {"host": socket.gethostname(), "at": round(time.time(), 3)})
        trial.check(token)
        write_json_lines(trial.metrics, rows)
        if epoch == spec.recipe.epochs:
            write_text(trial.best, spec.trial_id)
            result = TrialResult(
                **{"trial_id": spec.trial_id, "status": "complete", "score": score, "threshold": 0.2},
                **{"expected_score": score, "epoch": epoch, "epochs": epoch, "seconds": SECONDS * epoch},
                checkpoint_digest=file_digest(trial.best),
            )
            write_result(trial, result)
        tune.report(row | {"trial_seconds": SECONDS})


def predict(trial_id: str, shared: tuple[Any, tuple[str, ...], Any], slot: Any) -> bool:
    """In place of `imet_ray.cluster.worker.predict_in_worker`."""
    import numpy as np

    from imet_ray.storage.checked_read import file_digest
    from imet_ray.storage.files import write_arrays
    from imet_ray.storage.results import read_spec

    split, label_ids, data, _ = shared
    trial = slot.run.trial(trial_id)
    path, spec = trial.test if data is None else trial.oof, read_spec(trial)
    if path.exists():
        return False
    ids = np.array(split.ids)
    if data is not None:
        ids = ids[data.rows(spec.fold, held_out=True)]
    probs = np.random.default_rng(0).random((len(ids), len(label_ids))).astype(np.float16)
    write_arrays(
        path,
        ids=ids,
        probs=probs,
        checkpoint=np.array(file_digest(trial.best)),
        views=np.array(spec.recipe.views),
        pictures=np.array(split.digest),
        seconds=np.array(0.1),
    )
    return True


def main(argv: list[str]) -> int:
    """The command line."""
    from imet_ray.cluster.session import prepare_environment

    prepare_environment()
    import launch
    from imet_ray.cluster import sweep, tasks

    sweep.train_in_worker, tasks.predict_in_worker = train, predict
    return launch.main(argv)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # the checkout, as for `python launch.py`
    raise SystemExit(main(sys.argv[1:]))
