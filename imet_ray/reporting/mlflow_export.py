"""A run's trials as runs of an MLflow experiment: settings, curves, how they ended.

An ended trial is logged once, to `$MLFLOW_TRACKING_URI`, or else to a file beside the trials.
"""

import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

from imet_ray.errors import ConfigError
from imet_ray.reporting.run_status import TrialStatus
from imet_ray.reporting.trial_curves import ended_trials, missing, scalars, settings
from imet_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

URI = "MLFLOW_TRACKING_URI"
TRIAL, EPOCHS = "imet_ray.trial_id", "imet_ray.epochs"  # tags by which a logged trial is known
MOST = 1000  # metrics that MLflow takes at a time, and runs that it lists at a time


def local_uri(store: RunDirectory) -> str:
    """Where runs are logged if the environment names no place."""
    return f"sqlite:///{store.mlflow.resolve()}"


def log_runs(store: RunDirectory) -> tuple[int, int]:
    """Log what has ended and is not logged yet: how many trials now, and how many in all.

    Raises:
        ConfigError: if MLflow is not installed, or does not answer as it should.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers, once imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # else a server that is away takes minutes
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise missing("mlflow") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
    trials = ended_trials(store)
    try:
        client = MlflowClient(os.environ.get(URI) or local_uri(store))
        experiment = _experiment(client, store.root.resolve().name)
        logged = dict(_logged(client, experiment))
        new = [
            trial
            for trial in trials
            if logged.get(trial.spec.trial_id, ("", ""))[1] != f"{len(trial.rows)} {trial.state}"
        ]
        for trial in tqdm(new, desc="MLflow", unit="trial", disable=None, delay=2):
            if trial.spec.trial_id in logged:  # half logged, or stopped and trained on since
                client.delete_run(logged[trial.spec.trial_id][0])
            _log(client, experiment, trial)
    except MlflowException as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        first = re.sub(r"//[^/\s]*@", "//", first)  # its address may hold a password
        raise ConfigError(f"MLflow at ${URI}, or else {store.mlflow}: {first}") from None
    return len(new), len(trials)


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id) if found is not None else str(client.create_experiment(name))


def _logged(client: "MlflowClient", experiment: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """By trial: the run's id, and what of the trial it holds; nothing while it is half written."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=MOST, page_token=token)
        for run in page:
            tags, whole = run.data.tags, run.info.status != "RUNNING"
            if TRIAL in tags:
                yield tags[TRIAL], (run.info.run_id, tags.get(EPOCHS, "") if whole else "")
        token = page.token
        if not token:
            return


def _log(client: "MlflowClient", experiment: str, trial: TrialStatus) -> None:
    from mlflow.entities import Metric, Param

    spec, end = trial.spec, round(1000 * trial.heard)
    tags = {TRIAL: spec.trial_id, EPOCHS: f"{len(trial.rows)} {trial.state}", "state": trial.state}
    if trial.reason:
        tags["mlflow.note.content"] = trial.reason
    run = client.create_run(
        experiment, start_time=end - round(1000 * trial.seconds), tags=tags, run_name=spec.title
    ).info.run_id
    params = [Param(key, str(value)) for key, value in settings(spec).items()]
    metrics = [
        Metric(name, value, round(1000 * row.get("at", trial.heard)), row["epoch"])
        for row in trial.rows
        for name, value in scalars(row).items()
    ]
    client.log_batch(run, params=params)
    for first in range(0, len(metrics), MOST):
        client.log_batch(run, metrics=metrics[first : first + MOST])
    client.set_terminated(run, "FAILED" if trial.state == "failed" else "FINISHED", end_time=end)
