"""A run directory as somebody sees it who reads all of it: what must not change when the sweep goes on."""

from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file

from imet_ray.storage.checked_read import read_arrays, read_json, read_json_lines
from imet_ray.storage.results import TrialResult, read_result, read_spec
from imet_ray.storage.run_directory import RunDirectory


@dataclass
class Seen:
    """Every file that is there was read."""

    seconds: dict[str, list[float]] = field(
        default_factory=dict
    )  # of each epoch that a trial keeps: a finger-print
    results: dict[str, TrialResult] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # when results and predictions were: nanoseconds
    writers: dict[str, str] = field(default_factory=dict)  # whose the finished trials are


def look(store: RunDirectory, *, here: bool = True) -> Seen:
    """The run as it is now.

    Args:
        here: files are those that were written, not copies of a bucket's.
    """
    found = Seen()
    for trial in store.trials():
        if trial.spec.exists():
            rows, result = read_json_lines(trial.metrics), read_result(trial)
            # the last epoch has no state of its own: the result, which follows at once, keeps it
            kept = rows[: read_spec(trial).recipe.epochs - (result is None)]
            found.seconds[trial.trial_id] = [row["seconds"] for row in kept]
            if result is not None:
                found.results[trial.trial_id] = result
                found.writers[trial.trial_id] = trial.token.read_text() if here else ""
                found.written[str(trial.result)] = trial.result.stat().st_mtime_ns if here else 0
        for path in (trial.oof, trial.test) if here else ():
            if path.exists():
                assert read_arrays(path)
                found.written[str(path)] = path.stat().st_mtime_ns
    place = store.ensemble("blend")
    if place.ensemble.exists():
        assert read_json(place.ensemble)["members"]
    return found


def refuse_lost_work(before: Seen, after: Seen) -> None:
    """No epoch that was written is trained again; no finished trial and no prediction is made again."""
    for trial_id, seconds in before.seconds.items():
        assert after.seconds[trial_id][: len(seconds)] == seconds
    assert before.results.items() <= after.results.items()
    assert before.written.items() <= after.written.items()
    assert before.writers.items() <= after.writers.items()


def refuse_other_outcome(ours: RunDirectory, theirs: RunDirectory) -> None:
    """The trials of both, their weights to the last bit, and both submissions are the same."""
    trials = {trial.trial_id: trial for trial in theirs.trials()}
    assert look(ours, here=False).results.keys() == trials.keys()
    for trial_id, trial in trials.items():
        one, two = load_file(ours.trial(trial_id).best), load_file(trial.best)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in two)
    one, two = ours.ensemble("blend"), theirs.ensemble("blend")
    assert one.submission.read_bytes() == two.submission.read_bytes()
