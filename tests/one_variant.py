"""A small search space of one variant, and what a worker leaves of its trials."""

from pathlib import Path
from typing import Literal

from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.specs import TrialSpec
from imet_ray.storage.files import write_json
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe

SPACE = """
n_folds: 3
trials_per_variant: 2
variants: [{name: a, architecture: resnet18, epochs: 4}]
search: {dropout: {low: 0.0, high: 0.5}, lr: {low: 0.001, high: 0.1, log: true}}
"""


def space_of(folder: Path, *changes: tuple[str, str]) -> SearchSpace:
    """The space, with parts of its text replaced."""
    text = SPACE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "space.yml").write_text(text)
    return read_space(folder / "space.yml", check=check_recipe)


def write(
    store: RunDirectory,
    spec: TrialSpec,
    status: Literal["complete", "stopped", "failed"] = "complete",
    score: float | None = 0.5,
) -> None:
    """The trial's spec and result."""
    trial = store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    write_result(
        trial,
        TrialResult(trial_id=spec.trial_id, status=status, score=score, expected_score=score, epochs=4),
    )
