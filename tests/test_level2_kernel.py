"""A kernel with level 2 predicts what the run does; where a member is missing, the weights predict, and it says so."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_machine import submission
from packed import manifest_of
from simulated_machine import Machine, make_manifest

from imet_ray.commands import sweep as stages
from imet_ray.prediction.decode import Threshold
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember, combined, read_ensemble
from imet_ray.prediction.level2 import Level2, Packed, PerLabel
from imet_ray.prediction.pooling import add_share
from kernel_builder.runtime.exit_status import summary
from kernel_builder.runtime.manifest import Manifest
from kernel_builder.runtime.running_blend import RunningBlend
from kernel_builder.runtime.schedule import Outcome

N = 40
DECODER = Threshold(threshold=0.77)


def with_level2(manifest: Manifest, *, without_weight: str = "") -> Manifest:
    """The manifest with a level 2; some members have no weight, and no prefix has them."""
    weights = np.random.default_rng(0).normal(0.5, 0.5, (4, 3)).astype(np.float32)
    level2 = Level2(stacker="linear", members=["a", "b", "c"], model=PerLabel(weights=Packed.of(weights)))
    given = [0.0 if member.name in without_weight else member.weight for member in manifest.members]
    members = [
        member.model_copy(update={"weight": weight / sum(given)})
        for member, weight in zip(manifest.members, given, strict=True)
    ]
    weighted = [member.name for member in members if member.weight > 0]
    changed = {"level2": level2, "decoder": DECODER, "members": members}
    return manifest.model_copy(update=changed | {"prefixes": manifest.prefixes[: len(weighted)]})


def checkpoints(seed=1):
    return np.random.default_rng(seed).random((3, 2, N, 3)).astype(np.float16)


def run(manifest: Manifest, probs, *, failed: str = "") -> RunningBlend:
    """All checkpoints but those of some members."""
    blend = RunningBlend(manifest, N)
    for member, of_folds in zip(manifest.members, probs, strict=True):
        for found in of_folds if member.name not in failed else ():
            blend.add(member, found)
        blend.close()
    return blend


@pytest.mark.parametrize("without_weight", ["", "c"])
def test_all_members_are_combined_to_the_last_bit_as_the_run_does(without_weight):
    manifest = with_level2(make_manifest(), without_weight=without_weight)
    probs = checkpoints()
    members = [
        EnsembleMember(
            variant=m.name, weight=m.weight, threshold=0.5, trials=["t"], checkpoints=["d"], score=0.5
        )
        for m in manifest.members
    ]
    ensemble = Ensemble(
        name="e",
        label_ids=["x", "y", "z"],
        members=members,
        decoder=manifest.decoder,
        prefixes=manifest.prefixes,
        level2=manifest.level2,
        report={},
    )
    means = []
    for of_folds in probs:
        mean = None
        for found in of_folds:
            mean = add_share(mean, 1 / 2, found, "probability")
        means.append(mean)
    expected = combined(ensemble, zip(members, means, strict=True))
    blend = run(manifest, probs)
    assert np.array_equal(blend.probabilities(), expected)
    assert np.array_equal(blend.decoded(set()), ensemble.decoder.decode(expected))
    assert blend.decoder() is DECODER


def test_the_last_members_first_checkpoint_is_enough():
    manifest, probs = with_level2(make_manifest()), checkpoints()
    blend = run(manifest, probs, failed="c")
    assert not blend.by_level2
    blend.add(manifest.members[2], probs[2][0])
    assert blend.by_level2
    probs[2][1] = probs[2][0]
    assert blend.probabilities() == pytest.approx(run(manifest, probs).probabilities(), abs=1e-6)


@pytest.mark.parametrize("failed", ["a", "b", "c", "ab", "bc"])
def test_where_a_member_is_missing_the_weights_predict_as_without_level_2(failed):
    probs = checkpoints()
    plain, blend = (run(m, probs, failed=failed) for m in (make_manifest(), with_level2(make_manifest())))
    assert np.array_equal(blend.probabilities(), plain.probabilities())
    assert blend.decoder() == plain.decoder()


@pytest.mark.parametrize(("failed", "prefix"), [("c", 1), ("b", 0), ("bc", 0)])
def test_members_that_level_2_alone_needs_change_nothing_of_the_weights(failed, prefix):
    probs = checkpoints()
    blend = run(with_level2(make_manifest(), without_weight="c"), probs, failed=failed)
    alone = run(make_manifest(), probs, failed=failed + "c")
    assert blend.probabilities() == pytest.approx(alone.probabilities(), abs=1e-6)
    assert blend.decoder() == make_manifest().prefixes[prefix].decoder


def test_a_member_that_level_2_alone_needs_is_better_than_nothing():
    manifest, probs = with_level2(make_manifest(), without_weight="bc"), checkpoints()
    blend = run(manifest, probs, failed="ac")
    assert blend.probabilities() == pytest.approx(probs[1].astype(np.float32).mean(axis=0), abs=1e-6)
    blend.decoded(set())
    blend.add(manifest.members[2], probs[2][0])
    blend.decoded(set())


def test_a_part_of_the_pictures_is_not_for_level_2():
    manifest = with_level2(make_manifest())
    one = {"members": manifest.members[:1], "prefixes": manifest.prefixes[:1]}
    blend = RunningBlend(manifest.model_copy(update=one), N)
    blend.add(manifest.members[0], checkpoints()[0][0], whole=False)
    assert not blend.by_level2


@pytest.mark.parametrize(("slowness", "whole"), [(1, True), (3, True), (4, False)])
def test_a_limit_before_the_last_member_is_said_in_the_last_line(slowness, whole):
    machine = Machine(slowness)
    machine.manifest = with_level2(machine.manifest)
    outcome = machine.run()
    code, lines = summary(machine.manifest, outcome, pictures=N, unreadable=0, warnings=[], seconds=5.0)
    said = "level 2 (linear) needs all members, so the weights of those predicted were used"
    assert (said in lines[-1]) == (not whole)
    assert bool(outcome.checkpoints < 6) == (code != 0)


def test_nothing_is_said_of_level_2_where_there_is_none_or_nothing_was_predicted():
    some = Outcome(checkpoints=1, written=1, stopped="b-f0", picture_seconds=[("a", 0.1)])
    none = Outcome(checkpoints=0, written=0, stopped="a-f0")
    for manifest, outcome in ((make_manifest(), some), (with_level2(make_manifest()), none)):
        _, lines = summary(manifest, outcome, pictures=N, unreadable=0, warnings=[], seconds=5.0)
        assert "level 2" not in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("stacker", ["linear", "lightgbm", "net"])
def test_a_kernel_with_level_2_gives_each_picture_the_labels_that_launch_gives_it(
    tmp_path, swept, trained, tiny_root, machine, monkeypatch, stacker
):
    import blend
    from kernel_builder import __main__ as kernel_builder

    if stacker == "lightgbm":
        pytest.importorskip("lightgbm")
    assert blend.main([*trained.where, "--method", stacker, "--out", stacker]) == 0
    monkeypatch.setattr(stages, "predict_test", lambda *args: 0)  # they are there already
    run = replace(trained.run, catalog=replace(trained.run.catalog, root=tiny_root))
    stages._predict_test(run, stacker, None, out=tmp_path / "ours.csv")
    place = tmp_path / "k"
    how = ["--out", str(place), "--user", "me", *trained.where, "--dtype", "float32"]
    assert kernel_builder.main([stacker, *how]) == 0
    done = machine(place, tiny_root, patch="import sys\nsys.modules['lightgbm'] = None")
    assert done.code == 0, done.stdout + done.stderr
    assert submission(place) == (tmp_path / "ours.csv").read_text()
    ensemble = read_ensemble(trained.run.store.ensemble(stacker))
    assert Level2.model_validate(manifest_of(place)["level2"]) == ensemble.level2
    assert f"Level 2: {stacker}, in this file." in (place / "kernel" / "kernel.py").read_text()
