"""All methods under all decoders, fitted on everything and without each fold, and scored picture by picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.fit_jobs import Job, Problem, Runner, Solution, Widen, solve_all
from imet_ray.blending.scoring import own_and_nested

Progress = Callable[[str], None]
Key = tuple[str, str]  # method, decoder


@dataclass(frozen=True)
class Contest:
    """What was fitted, and F2 of each picture: own and nested, (N,) float64 each."""

    problem: Problem  # with the widest window that was needed
    solved: dict[Job, Solution]
    scored: dict[Key, tuple[np.ndarray, np.ndarray]]

    @property
    def nested(self) -> dict[Key, float]:
        """The mean nested F2 of each."""
        return {key: float(found[1].mean()) for key, found in self.scored.items()}

    def best_nested(self) -> float:
        return max(self.nested.values())


def contest(
    problem: Problem,
    values: Sequence[np.ndarray],
    labels: np.ndarray,
    methods: Sequence[str],
    decoders: Sequence[str],
    runner: Runner,
    widen: Widen,
    progress: Progress,
) -> Contest:
    """Fit and score.

    Args:
        values: M arrays (N, C).
        labels: (N, C) uint8.
        methods: of `METHODS`, or "member 3".
    """
    folds = np.unique(problem.folds).tolist()
    jobs = [
        Job(method, decoder, without)
        for decoder in decoders
        for method in methods
        for without in [None, *folds]
    ]

    solved, cells = solve_all(problem, jobs, runner, widen)
    problem = replace(problem, cells=cells)
    scored = {}
    for decoder in decoders:
        progress(f"scoring {len(methods)} under {decoder}")
        for method in methods:
            scored[method, decoder] = own_and_nested(solved, method, decoder, problem, values, labels)
    return Contest(problem, solved, scored)
