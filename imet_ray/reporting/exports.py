"""A run's ended trials for other tools, each written once: TensorBoard's event files, MLflow's runs.

Each tool is one entry of EXPORTERS. It gets settings, curves and the end of each trial, read from the run's directory.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from imet_ray.command_line import pasted
from imet_ray.errors import ConfigError, telling_line

if TYPE_CHECKING:  # the command line reads the flags in EXPORTERS: a wrong one needs no numpy and no pydantic
    from mlflow.tracking import MlflowClient

    from imet_ray.reporting.run_status import TrialStatus
    from imet_ray.specs import TrialSpec
    from imet_ray.storage.run_directory import RunDirectory

NOT_CURVES = {"epoch", "at", "host"}  # keys of metrics.jsonl that are not figures
URI = "MLFLOW_TRACKING_URI"
TRIAL, EPOCHS = "imet_ray.trial_id", "imet_ray.epochs"  # tags by which MLflow's runs are known again
MOST = 1000  # metrics that MLflow takes at a time, and runs that it lists at a time


@dataclass(frozen=True)
class Exporter:
    """One tool.

    help: what its flag does, for the command line.
    write: writes what has ended and is not written yet: how many trials now, and how many in all. Raises
        ConfigError if the tool is not installed or does not answer, StoreError if the disk is full.
    place: where it wrote, without secrets.
    hint: how to look at it.
    serve: starts the tool's own server on loopback, in a thread, and returns its address. Raises ConfigError if
        the port is taken.
    """

    help: str
    write: Callable[["RunDirectory"], tuple[int, int]]
    place: Callable[["RunDirectory"], str]
    hint: Callable[["RunDirectory"], str]
    serve: Callable[["RunDirectory", int], str] | None = None


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """One epoch's figures, by name."""
    return {
        key: float(value)
        for key, value in row.items()
        if key not in NOT_CURVES and isinstance(value, int | float)
    }


def settings(spec: "TrialSpec") -> dict[str, str | int | float | bool]:
    """All that decides a trial, by name. What is not set is left out; a list becomes one text."""
    found: dict[str, str | int | float | bool] = {"variant": spec.variant.name, "fold": spec.fold}
    from imet_ray.dotted_names import flat  # brings pydantic, and launch.py must run without

    recipe = flat(spec.recipe.model_dump(mode="json", exclude={"name"}))
    for key, value in (recipe | {"seed": spec.seed}).items():
        if value is not None:
            found[key] = value if isinstance(value, str | int | float | bool) else " ".join(map(str, value))
    return found


def missing(extra: str) -> ConfigError:
    """The one line for a package of an extra that is not installed."""
    return ConfigError(
        f"--{extra} needs packages that are not installed: uv run --extra {extra} launch.py --{extra}"
    )


def write_events(store: "RunDirectory") -> tuple[int, int]:
    """Write TensorBoard's event files: a directory per trial. See `Exporter.write`."""
    from tqdm import tqdm

    from imet_ray.reporting.run_status import ended_trials
    from imet_ray.storage.checked_read import read_json
    from imet_ray.storage.files import disk_error, write_json

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing("tensorboard") from None
    found = read_json(store.tensorboard_written) if store.tensorboard_written.exists() else {}
    written: dict[str, int] = found if isinstance(found, dict) else {}  # epochs by trial
    trials = [trial for trial in ended_trials(store) if trial.rows]
    # a stopped trial may be promoted, and has more epochs then
    new = [trial for trial in trials if written.get(trial.spec.trial_id) != len(trial.rows)]
    for trial in tqdm(new, desc="TensorBoard", unit="trial", disable=None, delay=2):
        place = store.tensorboard / trial.spec.title
        try:
            shutil.rmtree(place, ignore_errors=True)
            with SummaryWriter(str(place)) as writer:
                for row in trial.rows:
                    for name, value in scalars(row).items():
                        writer.add_scalar(name, value, row["epoch"], walltime=row.get("at"))
                best = {"best/score": trial.best}
                writer.add_hparams(settings(trial.spec), best, run_name=".", global_step=len(trial.rows))
        except OSError as error:
            raise disk_error(place, error) from error
    if new:
        written |= {trial.spec.trial_id: len(trial.rows) for trial in new}
        write_json(store.tensorboard_written, written)  # of this machine, as the event files are
    return len(new), len(trials)


def serve_tensorboard(store: "RunDirectory", port: int) -> str:
    """TensorBoard over the run's event files. See `Exporter.serve`."""
    from tensorboard import program

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    board = program.TensorBoard()
    where = ["--logdir", str(store.tensorboard), "--host", "127.0.0.1", "--port", str(port)]
    try:
        # its fast loader is a process of its own, and may be left behind
        board.configure([None, *where, "--reload_interval", "5", "--load_fast", "false"])
        return str(board.launch())
    except (program.TensorBoardServerException, OSError, OverflowError, SystemExit) as error:
        raise ConfigError(f"--serve {port}: {error}: give another port") from None


def log_runs(store: "RunDirectory") -> tuple[int, int]:
    """Log each trial as a run of an MLflow experiment. See `Exporter.write`."""
    from tqdm import tqdm

    from imet_ray.reporting.run_status import ended_trials

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it calls its makers once imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # else a server that is down takes minutes
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise missing("mlflow") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table that it makes
    trials = ended_trials(store)
    try:
        client = MlflowClient(os.environ.get(URI) or local_uri(store))
        name = store.root.resolve().name
        known = client.get_experiment_by_name(name)
        experiment = str(known.experiment_id if known is not None else client.create_experiment(name))
        logged = dict(_logged_runs(client, experiment))
        new = [
            trial
            for trial in trials
            if logged.get(trial.spec.trial_id, ("", ""))[1] != f"{len(trial.rows)} {trial.state}"
        ]
        for trial in tqdm(new, desc="MLflow", unit="trial", disable=None, delay=2):
            if trial.spec.trial_id in logged:  # half logged, or stopped and trained on since
                client.delete_run(logged[trial.spec.trial_id][0])
            _log_run(client, experiment, trial)
    except MlflowException as error:
        first = re.sub(r"//[^/\s]*@", "//", telling_line(error))  # its address may hold a password
        raise ConfigError(f"MLflow at ${URI}, or else {store.mlflow}: {first}") from None
    return len(new), len(trials)


def local_uri(store: "RunDirectory") -> str:
    """Where runs are logged if the environment names no place."""
    return f"sqlite:///{store.mlflow.resolve()}"


def _logged_runs(client: "MlflowClient", experiment: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """For each trial its run's id and what the run holds of it: nothing while it is half written."""
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


def _log_run(client: "MlflowClient", experiment: str, trial: "TrialStatus") -> None:
    from mlflow.entities import Metric, Param

    spec, end = trial.spec, round(1000 * trial.written_at)
    tags = {TRIAL: spec.trial_id, EPOCHS: f"{len(trial.rows)} {trial.state}", "state": trial.state}
    if trial.reason:
        tags["mlflow.note.content"] = trial.reason
    run = client.create_run(
        experiment, start_time=end - round(1000 * trial.seconds), tags=tags, run_name=spec.title
    ).info.run_id
    params = [Param(key, str(value)) for key, value in settings(spec).items()]
    metrics = [
        Metric(name, value, round(1000 * row.get("at", trial.written_at)), row["epoch"])
        for row in trial.rows
        for name, value in scalars(row).items()
    ]
    client.log_batch(run, params=params)
    for first in range(0, len(metrics), MOST):
        client.log_batch(run, metrics=metrics[first : first + MOST])
    client.set_terminated(run, "FAILED" if trial.state == "failed" else "FINISHED", end_time=end)


def _mlflow_place(store: "RunDirectory") -> str:
    return f"${URI}" if os.environ.get(URI) else str(store.mlflow)  # the variable may hold a password


def _mlflow_hint(store: "RunDirectory") -> str:
    if os.environ.get(URI):
        return f"look: the server that ${URI} names"
    version = metadata.version("mlflow-skinny")
    return f"look: {pasted('uvx', f'mlflow@{version}', 'ui', '--backend-store-uri', local_uri(store))}"


# By the flag of the command line. A new tool is its functions and one line here.
EXPORTERS: dict[str, Exporter] = {
    "tensorboard": Exporter(
        "a run's trials as TensorBoard files",
        write_events,
        place=lambda store: str(store.tensorboard),
        hint=lambda store: "look: the same command with --serve",
        serve=serve_tensorboard,
    ),
    "mlflow": Exporter("log a run's trials to MLflow", log_runs, place=_mlflow_place, hint=_mlflow_hint),
}
