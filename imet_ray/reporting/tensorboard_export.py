"""A run's trials as TensorBoard event files: a directory a trial, with its curves and its hparams.

An ended trial is written once. The server is TensorBoard's own, on loopback.
"""

import logging
import shutil
from pathlib import Path

from tqdm import tqdm

from imet_ray.errors import ConfigError
from imet_ray.reporting.run_status import TrialStatus
from imet_ray.reporting.trial_curves import ended_trials, missing, scalars, settings
from imet_ray.storage.checked_read import read_json
from imet_ray.storage.files import disk_error, write_json
from imet_ray.storage.run_directory import RunDirectory

HALF = ".half"  # of a directory that is being written; TensorBoard may see it for a moment


def write_events(store: RunDirectory) -> tuple[int, int]:
    """Write what has ended and is not written yet: how many trials now, and how many in all.

    Raises:
        ConfigError: if TensorBoard is not installed.
        StoreError: one line, if the disk is full or the place cannot be written.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise missing("tensorboard") from None
    written = _written(store)
    trials = [trial for trial in ended_trials(store) if trial.rows]
    # a stopped trial may be promoted, and has more epochs then
    new = [trial for trial in trials if written.get(trial.spec.trial_id) != len(trial.rows)]
    for trial in tqdm(new, desc="TensorBoard", unit="trial", disable=None, delay=2):
        place = store.tensorboard / trial.spec.title
        half = place.with_name(place.name + HALF)
        try:
            shutil.rmtree(half, ignore_errors=True)
            _write(trial, half)
            shutil.rmtree(place, ignore_errors=True)
            half.rename(place)
        except OSError as error:
            raise disk_error(place, error) from error
    if new:
        write_json(
            store.tensorboard_written, written | {trial.spec.trial_id: len(trial.rows) for trial in new}
        )
    return len(new), len(trials)


def _written(store: RunDirectory) -> dict[str, int]:
    """How many epochs of each trial have been written."""
    found = read_json(store.tensorboard_written) if store.tensorboard_written.exists() else {}
    return found if isinstance(found, dict) else {}


def _write(trial: TrialStatus, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for row in trial.rows:
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, row["epoch"], walltime=row.get("at"))
        writer.add_hparams(
            settings(trial.spec), {"best/score": trial.best}, run_name=".", global_step=len(trial.rows)
        )


def start_server(store: RunDirectory, port: int) -> str:
    """TensorBoard over the run's event files, in a thread of this process; its address.

    Raises:
        ConfigError: if the port is taken.
    """
    from tensorboard import program

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    board = program.TensorBoard()
    where = ["--logdir", str(store.tensorboard), "--host", "127.0.0.1", "--port", str(port)]
    try:
        # its fast loader is a process of its own, and may be left behind
        board.configure([None, *where, "--reload_interval", "5", "--load_fast", "false"])
        return str(board.launch())
    except (program.TensorBoardServerException, OSError, OverflowError, SystemExit) as error:
        raise ConfigError(f"--serve {port}: {error}: give another port") from None
