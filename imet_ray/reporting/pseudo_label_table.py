"""The report's table of pseudo-labels: how many each variant's pictures got, which, and what that did to its score."""

from collections.abc import Sequence

import numpy as np

from imet_ray.reporting.pages import Section, Table
from imet_ray.reporting.report_data import ReportData, Student
from imet_ray.specs import Variant
from imet_ray.storage.added_labels import read_added
from imet_ray.storage.results import Standing, read_spec
from imet_ray.storage.run_directory import TrialDirectory

SHOWN_LABELS = 8  # the most frequent ones


def students(found: Sequence[Standing], n_pictures: int) -> list[Student]:
    """Those on the leaderboard. Args: n_pictures: of the training split."""
    specs = {standing.variant: read_spec(next(iter(standing.trials.values()))) for standing in found}
    students = []
    for standing in found:
        spec = specs[standing.variant]
        how = spec.variant.with_hparams(spec.hparams).added
        if how is None:
            continue
        trials = [_trained(standing.trials[fold]) for fold in sorted(standing.trials)]
        share = 1 - 1 / standing.n_folds  # of the pictures, that a trial is trained on
        students.append(
            Student(
                standing.variant,
                how,
                [read_added(trial) for trial in trials],
                round(n_pictures * share * len(trials)),
                _twin(spec.variant, [one.variant for one in specs.values()]),
            )
        )
    return students


def _trained(trial: TrialDirectory) -> TrialDirectory:
    """The trial, or of a soup the best one that it mixes."""
    mixed = read_spec(trial).soup_of
    return trial if mixed is None else trial.run.trial(mixed.trials[0])


def _twin(variant: Variant, others: Sequence[Variant]) -> str | None:
    """The variant that differs in nothing but pseudo-labels."""
    plain = variant.model_copy(update={"labels": None})
    twins = [one.name for one in others if one.model_copy(update={"name": plain.name}) == plain]
    return twins[0] if twins else None


def pseudo_labels(data: ReportData) -> Section | None:
    """A row for each variant that learnt from pseudo-labels."""
    if not data.students:
        return None
    nested = {
        row["method"]: row["nested"]
        for row in data.blend.get("rows", ())
        if row["is_single"] and row["decoder"] == data.blend["chosen"]["decoder"]
    }
    rows = []
    for student in data.students:
        how, score = student.how, nested.get(student.variant)
        before = nested.get(student.without) if student.without is not None else None
        gain = (
            f"{score - before:+.4f} over {student.without}"
            if score is not None and before is not None
            else "–"
        )
        columns = np.concatenate([added.labels for added in student.by_fold])
        rows.append(
            (
                student.variant,
                f"{how.source}, above {how.above:g}" + ("" if how.strict else "; not strict: flatters"),
                " ".join(f"{len(added.rows):,}" for added in student.by_fold),
                len(columns) / max(1, student.pictures),
                _commonest(columns, data.label_names),
                score,
                gain,
            )
        )
    head = ("variant", "from", "added, by fold", "per picture", "which", data.score, "what they did")
    explanation = (
        "Labels that training pictures got from models that were sure of them. Scores are out of fold, nested, against "
        "the labels of the data alone. Not strict: the models of other folds had seen the fold that is scored."
    )
    return Section("Pseudo-labels", explanation, table=Table(head, rows))


def _commonest(columns: np.ndarray, names: Sequence[str]) -> str:
    counts = np.bincount(columns, minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:SHOWN_LABELS]
    return ", ".join(f"{names[c]} {counts[c]:,}" for c in order if counts[c])
