"""Level 2 beside the blend: what stacking is worth, judged by the same nested score. The ensemble never uses it.

Its probabilities are nested already: a fold's come from models that saw the other folds only. Expected F2 adds a
temperature and the threshold decoder a threshold, each fitted without the fold that is scored, on probabilities of the
other folds. What remains, of second order: these came from models that saw the fold that is scored.
"""

from collections.abc import Callable, Sequence

import numpy as np

from imet_ray.blending.fit_jobs import EXPECTED, THRESHOLD, Job, Problem, Runner, Sample, solve_all
from imet_ray.blending.scoring import own_and_nested
from imet_ray.blending.single_member import cells_alone, lowest
from imet_ray.blending.stacking import stack_lightgbm, stack_logistic
from imet_ray.errors import unknown_name

Stack = Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray, int], np.ndarray]

STACKS: dict[str, Stack] = {
    "logistic": lambda probs, labels, folds, seed: stack_logistic(probs, labels, folds),
    "lightgbm": lambda probs, labels, folds, seed: stack_lightgbm(probs, labels, folds, seed=seed),
}


def score_level2(
    kind: str,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
    folds: np.ndarray,
    sample: Sample,
    seed: int,
    runner: Runner,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """F2 of each picture by decoder, as `own_and_nested` gives them: two (N,) float64 each.

    Args:
        kind: a key of `STACKS`.
        values: M arrays (N, C) of probabilities.
        sample: of pictures, for the temperature.
        runner: of thresholds and temperature; the stacking itself runs here, on all cores.

    Raises:
        ConfigError: for an unknown kind, or a library that is not installed.
    """
    if kind not in STACKS:
        raise unknown_name("level 2", kind, STACKS)
    stacked = STACKS[kind](values, labels, folds, seed)
    own_sample = Sample(sample.rows, stacked[sample.rows][None], sample.labels)
    low = lowest(own_sample.probs[0], float(labels.sum() / len(labels)))
    cells = cells_alone(stacked, low, labels, None)
    alone = "member 0"
    jobs = [
        Job(alone, decoder, fold)
        for decoder in (THRESHOLD, EXPECTED)
        for fold in (None, *np.unique(folds).tolist())
    ]
    problem = Problem(cells, folds, own_sample, seed, "log-odds", alone=(cells,))
    solved, _ = solve_all(problem, jobs, runner, lambda down, up: None)
    return {
        decoder: own_and_nested(solved, alone, decoder, problem, [stacked], labels)
        for decoder in (THRESHOLD, EXPECTED)
    }
