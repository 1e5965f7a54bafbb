"""What `benchmarks.hours` reads from a run's trials: their hours, and whether two sweeps may be compared."""

import pytest
from bare_spec import bare_spec

from benchmarks.hours import Swept, refuse_others
from imet_ray.reporting.run_status import TrialStatus, ended_trials
from imet_ray.specs import Variant
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory


def swept(store, sets) -> list[TrialStatus]:
    """The trials of a sweep: (dropout, fold) and the epochs trained, of 4."""
    for (dropout, fold), epochs in sets.items():
        spec = bare_spec(Variant(name="v", architecture="resnet18", epochs=4), fold, dropout=dropout)
        trial = store.trial(spec.trial_id)
        write_json(trial.spec, spec.model_dump(mode="json"))
        write_json_lines(trial.metrics, [{"seconds": 10.0, "evaluate_s": 2.0, "score": 0.5}] * epochs)
        status = "complete" if epochs == 4 else "stopped"
        write_result(trial, TrialResult(trial_id=spec.trial_id, status=status, score=0.5, epochs=epochs))
    return ended_trials(store)


def test_a_sweep_took_the_seconds_of_all_epochs_with_their_evaluation_of_stopped_trials_too(tmp_path):
    trials = swept(RunDirectory(tmp_path), {(0.1, 0): 1, (0.2, 0): 4})
    found = Swept(trials, 0.0, {}, None, None)
    assert (len(found.trials), found.epochs, found.seconds) == (2, 5, 5 * 12.0)


def test_sweeps_of_the_same_sets_may_be_compared_whatever_the_other_folds(tmp_path):
    ours = swept(RunDirectory(tmp_path / "ours"), {(0.1, 0): 1, (0.2, 0): 4, (0.2, 1): 4})
    peer = swept(RunDirectory(tmp_path / "peer"), {(0.1, 0): 4, (0.1, 1): 4, (0.2, 0): 4, (0.2, 1): 4})
    refuse_others(ours, peer, 0)


def test_sweeps_that_tried_other_sets_have_no_ratio(tmp_path):
    ours = swept(RunDirectory(tmp_path / "ours"), {(0.1, 0): 4, (0.3, 0): 4})
    peer = swept(RunDirectory(tmp_path / "peer"), {(0.1, 0): 4, (0.2, 0): 4})
    with pytest.raises(SystemExit, match="of 2 and 2 sets of hparams 1 are the same"):
        refuse_others(ours, peer, 0)
