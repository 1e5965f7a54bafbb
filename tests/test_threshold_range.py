"""Where thresholds are searched: wherever the best ones lie, for all members, groups and folds."""

import numpy as np
import pytest
from blends import evaluate
from scipy.special import expit, logit

from imet_ray.blending.members import Member
from imet_ray.blending.methods import uniform
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.threshold_range import ThresholdRange
from imet_ray.prediction.metrics import METRICS
from imet_ray.prediction.pooling import SCALES, averaged

F2 = METRICS["f2"]

N, C = 600, 12


def make(*distortions, seed=0):
    """Members that see the same truth, each through noise and in numbers of its own; labels; three folds."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-3, 1.5, (N, C))
    labels = (rng.random((N, C)) < expit(odds)).astype(np.uint8)
    members = [
        Member(f"m{i}", distort(odds + rng.normal(0, 1, (N, C))).astype(np.float16))
        for i, distort in enumerate(distortions)
    ]
    return members, labels, rng.permutation(N) % 3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x > -1).astype(float),
        lambda x: expit(6 * x),
        lambda x: expit(x - 3),
        lambda x: expit(x + 4),
        lambda x: 0.025 + 0.95 * expit(x),
    ],
    ids=["hard", "sharp", "low", "high", "smoothed"],
)
def test_uniform_weights_have_their_best_threshold_however_members_are_calibrated(other, scale):
    members, labels, folds = make(expit, other)
    report = evaluate(members, labels, folds, seed=0, methods=(), decoders=["threshold"], scale=scale)
    mean = averaged([member.probs for member in members], uniform(2), scale)
    assert report.chosen.own >= F2.best_threshold(mean.clip(0, 1), labels)[1] - 1e-9


def test_thresholds_of_groups_may_be_far_from_each_other():
    far = np.where(np.arange(C) % 2, 0.0, -3.0)
    members, labels, folds = make(lambda x: expit(x + far), lambda x: expit(x + far))
    near = [Member(m.name, expit(logit(m.probs.astype(float)) - far).astype(np.float16)) for m in members]
    groups = ["b" if i % 2 else "a" for i in range(C)]
    how = {"seed": 0, "methods": (), "scale": "log-odds", "groups": groups, "decoders": ["group-thresholds"]}
    apart, alike = (evaluate(given, labels, folds, **how).chosen.own for given in (members, near))
    assert apart == pytest.approx(alike, abs=2e-3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(4))
def test_where_one_member_has_all_the_weight_the_frozen_decoder_is_the_one_that_was_scored(seed, scale):
    members, labels, folds = make(lambda x: expit(4 * x), lambda x: np.full_like(x, 0.3), seed=seed)
    how = {"methods": (), "use": "greedy", "max_members": 1, "decoders": ["threshold"], "scale": scale}
    report = evaluate(members, labels, folds, seed=0, **how)
    assert max(report.weights) == 1
    only = members[report.weights.index(1)]
    mean = averaged([only.probs], np.ones(1), scale)
    assert F2.score(report.decoder.decode(mean), labels) == pytest.approx(report.chosen.own, abs=1e-3)


def test_a_range_grows_towards_the_end_that_is_asked_for_and_no_further_than_it_can():
    within = ThresholdRange((0.1, 0.2), low=-0.05, high=0.05, floor=-0.08, ceiling=0.9)
    assert within.thresholds == [0.1, 0.2]
    down, up = within.wider(True, False), within.wider(False, True)
    assert (down.low, down.high) == (-0.08, 0.05)
    assert (up.low, up.high) == (-0.05, pytest.approx(0.15))
    assert down.wider(True, False) == down
    assert down.thresholds == pytest.approx([0.085, 0.185])


def test_the_first_range_holds_what_is_best_without_each_fold():
    members, labels, folds = make(expit, expit)
    labels[folds == 1] = 1  # without this fold the threshold is far higher
    problem = BlendProblem(members, labels, folds, "f2")
    sample = problem.sample
    within = ThresholdRange.around(
        sample, "probability", groups=problem.groups, mean_labels=problem.mean_labels, metric="f2"
    )
    mean = averaged(sample.probs, uniform(2), "probability")
    for part in (folds >= 0, folds != 0, folds != 1, folds != 2):
        best = F2.best_threshold(mean[part], labels[part])[0] - np.mean(within.first)
        assert within.low <= best <= within.high
