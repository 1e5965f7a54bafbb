"""Where the files of an ensemble lie that tags new pictures: in its run, or in a folder that it was exported to.

Neither the training data nor Ray are asked. Who writes an exported folder writes it as `ExportedDirectory` says.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imet_ray.data.csv_tables import Problem, read_table, write_table
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import Ensemble, in_order, read_ensemble
from imet_ray.storage.checked_read import DELETE_IT, file_digest, read_model
from imet_ray.storage.experiment import read_experiment
from imet_ray.storage.files import LOCAL, Files
from imet_ray.storage.run_directory import EnsembleDirectory, ExportedDirectory, RunDirectory
from imet_ray.storage.runs import Runs
from imet_ray.units import user_path

logger = logging.getLogger(__name__)

COLUMNS = ("attribute_id", "attribute_name")  # of labels.csv
AGAIN = "copy or export it again"


@dataclass(frozen=True)
class TaggerFiles:
    """An ensemble with the files that its models and labels' names are read from."""

    ensemble: Ensemble
    label_names: tuple[str, ...]  # each once, none empty
    checkpoints: Mapping[str, Path]  # by trial id, of the members that are needed
    place: str  # as the user would type it
    again: str = "blend again"  # what makes files anew that are damaged

    def check(self) -> None:
        """Compare the weights with those that the ensemble was fitted with.

        Raises:
            StoreError: if some are missing or others.
        """
        for member in in_order(self.ensemble):
            for trial_id, digest in zip(member.trials, member.checkpoints, strict=True):
                path = self.checkpoints[trial_id]
                if not path.is_file():
                    raise StoreError(
                        f"{path} is missing: {self.place} cannot predict without it; put it back"
                    )
                if file_digest(path) != digest:
                    raise StoreError(
                        f"{path} holds other weights than {self.place} was fitted with: {self.again}, or put them back"
                    )


def find_ensemble(where: str | Path, runs: Runs) -> TaggerFiles:
    """The files of an ensemble.

    Args:
        where: an exported folder, an ensemble's folder in its run, RUN/ENSEMBLE, or an ensemble of the newest run.
        runs: where runs lie.

    Raises:
        ImetError: if there is none, saying what was looked for.
    """
    folder = user_path(str(where))
    if (folder / "ensemble.json").is_file():
        folder = folder.resolve()
        run = RunDirectory(folder.parents[1]) if len(folder.parents) > 1 else None
        if not ExportedDirectory(folder).weights.is_dir() and run is not None and run.experiment.exists():
            return _of_run(run.ensemble(folder.name))
        return _exported(ExportedDirectory(folder))
    if folder.is_dir():
        raise ConfigError(
            f"{where} holds no ensemble.json: give an exported folder, runs/NAME/ensembles/ENSEMBLE, or the name of an "
            "ensemble"
        )
    run_name, slash, name = str(where).rpartition("/")
    if "/" in run_name or not name or (slash and not run_name):
        raise ConfigError(
            f"there is no folder {where}: give one, or RUN/ENSEMBLE, or an ensemble of the newest run"
        )
    try:
        run = runs.open(run_name or None)
    except ConfigError as error:
        raise ConfigError(f"there is no folder {where} here, and {error}") from None
    return _of_run(run.ensemble(name))


def with_run(ensemble: str, run: str | None) -> str:
    """RUN/ENSEMBLE, for `find_ensemble`, where a command line names the run apart.

    Raises:
        ConfigError: if the ensemble says itself where it lies, and that is not in this run.
    """
    if run is None or ensemble.startswith(f"{run}/"):
        return ensemble
    if "/" in ensemble:
        raise ConfigError(f"{ensemble} says itself where it lies: leave --name {run} out")
    return f"{run}/{ensemble}"


def _exported(place: ExportedDirectory) -> TaggerFiles:
    try:
        ensemble = _usable(read_model(place.ensemble, Ensemble))
    except StoreError as error:
        raise StoreError(
            f"{str(error).removesuffix(DELETE_IT)}: {AGAIN}, with this version of imet_ray"
        ) from None
    names = _names_in(place.labels, ensemble.label_ids)
    if names is None:
        raise StoreError(f"{place.labels} does not name the labels of {place.root}: {AGAIN}")
    checkpoints = {
        trial_id: place.weights_of(trial_id) for member in ensemble.needed for trial_id in member.trials
    }
    return TaggerFiles(ensemble, names, checkpoints, str(place.root), AGAIN)


def _of_run(place: EnsembleDirectory) -> TaggerFiles:
    place.files.fetch_file(place.ensemble)
    ensemble = _usable(read_ensemble(place))
    checkpoints = {}
    for member in ensemble.needed:
        for trial_id in member.trials:
            trial = place.run.trial(trial_id)
            trial.fetch(trial.best)
            checkpoints[trial_id] = trial.best
    names = run_label_names(place.run, ensemble.label_ids)
    return TaggerFiles(ensemble, names, checkpoints, place.files.address(place.root))


def _usable(ensemble: Ensemble) -> Ensemble:
    """Refuse an ensemble whose members are not all models, or none has a weight."""
    if not ensemble.needed:
        raise StoreError(f"the ensemble {ensemble.name} has no member with a weight: blend again")
    if others := [member.variant for member in ensemble.needed if not member.trials]:
        raise ConfigError(
            f"the ensemble {ensemble.name} has {', '.join(others)} from another tool, which cannot see new pictures: "
            "blend again without, under another name (blend.py --out NAME)"
        )
    return ensemble


def write_labels(path: Path, ids: Sequence[str], names: Sequence[str], files: Files = LOCAL) -> None:
    """Write labels.csv: the labels in their order, with their names."""
    write_table(path, dict(zip(COLUMNS, (ids, names), strict=True)), files)


def run_label_names(run: RunDirectory, label_ids: Sequence[str]) -> tuple[str, ...]:
    """The names of a run's labels: its own file's, or the data's where it has none; else the ids, which is said."""
    run.files.fetch_file(run.labels)
    own = _names_in(run.labels, label_ids)
    if own is not None:
        return own
    data = Path(read_experiment(run).data_root) / "labels.csv"
    if (names := _names_in(data, label_ids)) is not None:
        return names
    logger.warning(
        "the names of the labels are not known, for %s has no labels.csv: their ids are shown", run.root
    )
    return unique_names(label_ids, label_ids)


def _names_in(path: Path, label_ids: Sequence[str]) -> tuple[str, ...] | None:
    """The labels' names from a labels.csv; None if it is not there, or lacks a label."""
    if not path.is_file():
        return None
    problems: list[Problem] = []
    rows = read_table(path, COLUMNS, problems)
    if rows is None:
        return None
    names = dict(zip(rows[COLUMNS[0]].tolist(), rows[COLUMNS[1]].tolist(), strict=True))
    if not names.keys() >= set(label_ids):
        return None
    return unique_names(label_ids, [names[label_id] for label_id in label_ids])


def unique_names(label_ids: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Names as people see them: where one is empty, the id; where several are the same, with the id behind."""
    named = [name or label_id for label_id, name in zip(label_ids, names, strict=True)]
    count = Counter(named)
    return tuple(
        f"{name} ({label_id})" if count[name] > 1 else name
        for label_id, name in zip(label_ids, named, strict=True)
    )
