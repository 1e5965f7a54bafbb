"""What other tools are told of a run: each ended trial with its curves, from the store alone."""

import time
from typing import Any

from imet_ray.errors import ConfigError
from imet_ray.reporting.run_status import TrialStatus, Watcher
from imet_ray.specs import TrialSpec
from imet_ray.storage.run_directory import RunDirectory

NOT_CURVES = {"epoch", "at", "host"}  # keys of metrics.jsonl that are told otherwise


def ended_trials(store: RunDirectory) -> list[TrialStatus]:
    """Those that have a result, by id; a stopped one that was promoted has none until it is complete."""
    store.fetch()
    found, _ = Watcher(store).trials(time.time())
    return [trial for trial in found if trial.state in ("complete", "stopped", "failed")]


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """One epoch's figures, by name."""
    return {
        key: float(value)
        for key, value in row.items()
        if key not in NOT_CURVES and isinstance(value, int | float)
    }


def settings(spec: TrialSpec) -> dict[str, str | int | float | bool]:
    """All that decides a trial, by name; what is not set is left out, and lists are one text."""
    found: dict[str, str | int | float | bool] = {"variant": spec.variant.name, "fold": spec.fold}
    for key, value in (spec.recipe.model_dump(mode="json", exclude={"name"}) | {"seed": spec.seed}).items():
        if value is not None:
            found[key] = value if isinstance(value, str | int | float | bool) else " ".join(map(str, value))
    return found


def missing(extra: str) -> ConfigError:
    """The one line for a package of an extra that is not installed."""
    return ConfigError(
        f"--{extra} needs packages that are not installed: uv run --extra {extra} launch.py --{extra}"
    )
