"""What a blend is worth: each method under each decoder, its own score and the nested one that does not flatter it.

Own: fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but one, scored on that one;
everything that is fitted is fitted so: weights, thresholds, temperature, a single member's threshold, too. What
optimism is left: the best nested of several is taken, which is why nothing but a gain beyond noise displaces uniform
weights, and whatever the caller remarks (hparams and epochs that were picked on the pictures that are scored).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from imet_ray.blending.cells import DisputedCells
from imet_ray.blending.diagnostics import error_correlation, threshold_curve, worth_of_members
from imet_ray.blending.level2 import score_level2
from imet_ray.blending.members import Member, check_members
from imet_ray.blending.report import BlendReport, Level2, Row
from imet_ray.blending.scoring import bootstrap, decoder_of, own_and_nested
from imet_ray.blending.solve import (
    DIRECT,
    EXPECTED,
    GROUPS,
    THRESHOLD,
    Job,
    Problem,
    Runner,
    Sample,
    Solution,
    known_methods,
    solve_all,
    solve_here,
)
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.metrics import best_threshold

DECODERS = (THRESHOLD, GROUPS, EXPECTED)
SAMPLE = 4096  # pictures for expected F2 and for the first guess of the thresholds
WINDOW = 0.2  # how far shifts may go, in mean thresholds; doubled where one comes near its end
LEAST_WINDOW = 0.01

Progress = Callable[[str], None]


def evaluate(
    members: Sequence[Member],
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    seed: int,
    groups: Sequence[str] = (),
    folds_digest: str | None = None,
    methods: Sequence[str] | None = None,
    decoders: Sequence[str] | None = None,
    use: str | None = None,
    min_weight: float = 0.0,
    max_members: int | None = None,
    level2: str | None = None,
    remarks: Sequence[str] = (),
    runner: Runner = solve_here,
    progress: Progress = lambda text: None,
) -> BlendReport:
    """Fit with every method under every decoder, score honestly, choose.

    Args:
        members: M of them, in one order of rows.
        labels: (N, C) uint8.
        folds: (N,) int64, at least two of them.
        seed: of the searches, the sample and the bootstrap.
        groups: (C,) names of the labels' groups; without two of them there are no group thresholds.
        methods: of `known_methods()`; all if None. Uniform weights always are among them.
        decoders: of DECODERS; all that can be had if None.
        use: the method to choose, whatever it is worth; the best nested one if None.
        min_weight: a member that would get less is left out.
        max_members: of weight above 0.
        level2: "logistic" or "lightgbm", judged beside the blend and never used; none if None.
        remarks: what flatters the nested score all the same, for the report.
        runner: where the fits run.

    Raises:
        DataError: naming the member whose predictions cannot be used.
        ConfigError: for a method or decoder that is unknown or cannot be had, or weights that cannot be.
    """
    check_members(members, labels, folds, folds_digest)
    wanted = _methods(methods, use)
    names = tuple(member.name for member in members)
    m = len(members)
    if not 0 <= min_weight <= 1:
        raise ConfigError(
            f"--min-weight must be in 0..1, got {min_weight}: 0.02 leaves out members below 2 %"
        )
    if max_members is not None and max_members < 1:
        raise ConfigError(f"--max-members must be at least 1, got {max_members}")
    group_names = sorted(set(groups))
    of_label = np.array([group_names.index(g) for g in groups]) if len(group_names) > 1 else None
    under = _decoders(decoders, of_label is not None, members[0].margins)
    if level2 is not None and members[0].margins:
        raise ConfigError("--level2 needs probabilities: the members' thresholds are subtracted already")
    values = [member.probs for member in members]
    sample = draw_sample(values, labels, seed)
    thresholds = [
        0.0 if member.margins else best_threshold(probs, sample.labels)[0]
        for member, probs in zip(members, sample.probs, strict=True)
    ]
    window = 0.0 if members[0].margins else max(LEAST_WINDOW, WINDOW * float(np.mean(thresholds)))
    unique = np.unique(folds).tolist()
    jobs = [
        Job(method, decoder, without)
        for decoder in under
        for method in [*wanted, *(f"member {i}" for i in range(m))]
        for without in [None, *unique]
    ]
    if m == 1:
        jobs = [job for job in jobs if job.method == "uniform" or job.method.startswith("member ")]

    def cells_within(window: float) -> DisputedCells:
        cells = DisputedCells.build(values, thresholds, labels, window=window, groups=of_label)
        progress(
            f"{len(cells.image):,} of {labels.size:,} cells in dispute, thresholds within {window:.3f}; fitting"
        )
        return cells

    problem = Problem(
        cells_within(window), folds, sample if EXPECTED in under else None, seed, min_weight, max_members
    )
    solved, cells = solve_all(problem, jobs, runner, cells_within)
    problem = replace(problem, cells=cells)
    scored: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for decoder in under:
        for method in dict.fromkeys(job.method for job in jobs):
            progress(f"scoring {_title(method, names)} under {decoder}")
            scored[method, decoder] = own_and_nested(solved, method, decoder, folds, cells, values, labels)
    nested = {key: float(found[1].mean()) for key, found in scored.items()}
    singles = [key for key in scored if key[0].startswith("member ")]
    blends = [key for key in scored if key not in singles]
    best_single = max(singles, key=nested.__getitem__)
    even = max((key for key in blends if key[0] == "uniform"), key=nested.__getitem__)
    best = max(blends, key=nested.__getitem__)
    stacked = {}
    if level2 is not None:
        progress(f"level 2: {level2}")
        stacked = score_level2(level2, values, labels, folds, sample, seed)
    gains = bootstrap(
        np.stack(
            [scored[key][1] - scored["uniform", key[1]][1] for key in scored]
            + [scored[key][1] - scored[best_single][1] for key in scored]
            + [found[1] - scored[best][1] for found in stacked.values()]
            + [scored[best][1] - scored[even][1]]
        ),
        seed,
    )
    beyond_noise = best[0] == "uniform" or gains[-1].low > 0
    chosen = best if beyond_noise else even
    if use is not None and m > 1:
        chosen = max((key for key in blends if key[0] == use), key=nested.__getitem__)
    rows = {
        key: _row(
            key,
            names,
            {fold: solved[Job(*key, fold)] for fold in (None, *unique)},
            (float(scored[key][0].mean()), nested[key]),
            (gains[i], gains[i + len(scored)]),
        )
        for i, key in enumerate(scored)
    }
    used = solved[Job(*chosen)]
    progress("weighing each member")
    return BlendReport(
        names=names,
        pictures=len(labels),
        n_folds=len(unique),
        rows=tuple(rows.values()),
        chosen=rows[chosen],
        best=rows[best],
        best_over_uniform=gains[-1],
        single=rows[best_single],
        thresholds=tuple(thresholds),
        decoder=decoder_of(used, chosen[1], np.array(thresholds), of_label),
        worth=worth_of_members(chosen, scored[chosen][1], solved, problem, values, labels, names, unique),
        correlation=error_correlation(sample, names),
        threshold_curve=threshold_curve(cells, used, np.array(thresholds)),
        groups=tuple(group_names) if of_label is not None else (),
        disputed=len(cells.image) / labels.size,
        seconds=tuple(member.seconds for member in members),
        sizes=tuple(member.size for member in members),
        remarks=tuple(remarks),
        level2=tuple(
            Level2(str(level2), decoder, float(own.mean()), float(nested.mean()), gains[2 * len(scored) + i])
            for i, (decoder, (own, nested)) in enumerate(stacked.items())
        ),
        forced=use is not None and m > 1,
    )


def _methods(methods: Sequence[str] | None, use: str | None) -> tuple[str, ...]:
    wanted = known_methods() if methods is None else (*methods, *((use,) if use else ()))
    for method in wanted:
        if method not in known_methods():
            raise unknown_name("method", method, known_methods())
    return tuple(dict.fromkeys(["uniform", *wanted]))


def _decoders(decoders: Sequence[str] | None, grouped: bool, margins: bool) -> tuple[str, ...]:
    possible = [d for d in DECODERS if (d != GROUPS or grouped) and (d != EXPECTED or not margins)]
    for decoder in decoders or ():
        if decoder not in DECODERS:
            raise unknown_name("decoder", decoder, DECODERS)
        if decoder not in possible:
            reason = (
                "labels.csv needs a column `group` with two groups, or names such as culture::french"
                if decoder == GROUPS
                else "the members' thresholds are subtracted already: it needs probabilities"
            )
            raise ConfigError(f"the decoder {decoder!r} cannot be had: {reason}")
    return tuple(possible if decoders is None else dict.fromkeys(decoders))


def draw_sample(values: Sequence[np.ndarray], labels: np.ndarray, seed: int) -> Sample:
    n = len(labels)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:SAMPLE])
    return Sample(rows, np.stack([np.asarray(value[rows]) for value in values]), labels[rows])


def _title(method: str, names: Sequence[str]) -> str:
    return names[int(method.removeprefix("member "))] if method.startswith("member ") else method


def _row(
    key: tuple[str, str],
    names: Sequence[str],
    solutions: dict[int | None, Solution],
    scores: tuple[float, float],
    gains: tuple[object, object],
) -> Row:
    method, decoder = key
    whole = solutions[None]
    return Row(
        method=_title(method, names),
        decoder=decoder,
        is_single=method.startswith("member "),
        transferred=decoder == EXPECTED and method not in (DIRECT, "uniform") and len(names) > 1,
        own=scores[0],
        nested=scores[1],
        over_uniform=gains[0],  # type: ignore[arg-type]
        over_single=gains[1],  # type: ignore[arg-type]
        weights=tuple(whole.weights.tolist()),
        weights_by_fold=tuple(tuple(s.weights.tolist()) for fold, s in solutions.items() if fold is not None),
        shifts=tuple(whole.shifts.tolist()),
        temperature=whole.temperature,
        evaluations=whole.evaluations,
        curve=whole.curve,
    )
