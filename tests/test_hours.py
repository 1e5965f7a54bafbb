"""What `benchmarks.hours` launches, and reads from a run's trials: hours, and whether two sweeps may be compared."""

import pytest
import yaml
from bare_spec import bare_spec

from benchmarks.hours import Swept, as_file, refuse_others
from imet_ray.commands.plan import SPACES
from imet_ray.reporting.run_status import TrialStatus, ended_trials
from imet_ray.space_file import read_space
from imet_ray.specs import Variant
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory
from imet_ray.training.recipe import check_recipe


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


@pytest.mark.parametrize("name", sorted(path.name for path in SPACES.glob("*.yml")))
def test_a_space_is_launched_as_it_was_read(name, tmp_path):
    space = read_space(SPACES / name, check=check_recipe)
    (tmp_path / name).write_text(yaml.safe_dump(as_file(space)))
    assert read_space(tmp_path / name, check=check_recipe) == space


def test_a_space_is_launched_with_rates_that_are_found_and_with_what_its_first_sets_are(tmp_path):
    (tmp_path / "a.yml").write_text(
        "variants: [{name: v, architecture: resnet18, lr: auto}, {name: w, architecture: resnet18}]\n"
        "search: {first: own, dropout: {low: 0.0, high: 0.5}}\n"
    )
    space = read_space(tmp_path / "a.yml", check=check_recipe)
    assert space.auto_lr == ("v",)
    assert space.first == {"v": "own", "w": "own"}
    (tmp_path / "b.yml").write_text(yaml.safe_dump(as_file(space)))
    assert read_space(tmp_path / "b.yml", check=check_recipe) == space
