"""What a blend is worth: each method under each decoder, its own score and the nested one that does not flatter it.

Own: fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but one, scored on that one:
weights, thresholds, temperature, a single member's threshold, too. What sees all folds is the scale of the averaging,
a choice of two, how far thresholds may be searched, and the mean number of labels. What optimism is left: the best
nested of several is taken, which is why nothing displaces uniform weights but a gain beyond the noise of all candidates
together, and whatever the caller remarks (hparams and epochs that were picked on the pictures that are scored).
"""

from collections.abc import Sequence

import numpy as np

from imet_ray.blending.cross_fit import Contest, Progress, contest
from imet_ray.blending.deadline_order import prefixes
from imet_ray.blending.diagnostics import error_correlation, threshold_curve, worth_of_members
from imet_ray.blending.disputed_cells import DisputedCells
from imet_ray.blending.fit_jobs import (
    DIRECT,
    EXPECTED,
    Job,
    Problem,
    Runner,
    Sample,
    Solution,
    known_methods,
    solve_here,
)
from imet_ray.blending.level2 import score_level2
from imet_ray.blending.members import Member, check_members
from imet_ray.blending.options import check_request, possible_decoders
from imet_ray.blending.result import BlendReport, Level2, Row
from imet_ray.blending.scoring import Gain, bootstrap, decoder_of
from imet_ray.blending.single_member import cells_alone, lowest
from imet_ray.blending.threshold_window import Window, first_thresholds
from imet_ray.errors import ConfigError
from imet_ray.prediction.pooling import SCALES, Scale, as_probability

SAMPLE = 4096  # pictures for expected F2 and for where thresholds are searched


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
    scale: Scale | None = None,
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
        scale: on which members are averaged; the one whose uniform blend is better, nested, if None.
        level2: "logistic" or "lightgbm", judged beside the blend and never used; none if None.
        remarks: what flatters the nested score all the same, for the report.
        runner: where the fits run.

    Raises:
        DataError: naming the member whose predictions cannot be used.
        ConfigError: for a method or decoder that is unknown or cannot be had, or weights that cannot be.
    """
    check_members(members, labels, folds, folds_digest)
    check_request(methods, use, decoders, level2, min_weight, max_members)
    margins = members[0].margins
    if margins and (level2 is not None or scale == "log-odds"):
        raise ConfigError(
            "log-odds and --level2 need probabilities: the members' thresholds are subtracted already"
        )
    group_names = sorted(set(groups))
    of_label = np.array([group_names.index(g) for g in groups]) if len(group_names) > 1 else None
    under = possible_decoders(decoders, of_label is not None, margins)
    asked = known_methods() if methods is None else methods
    wanted = tuple(dict.fromkeys(["uniform", *asked, *((use,) if use is not None else ())]))
    if len(members) == 1:
        wanted = ("uniform",)
    names = tuple(member.name for member in members)
    values = [member.probs for member in members]
    sample = draw_sample(values, labels, seed)

    mean_labels = float(labels.sum() / len(labels))
    thresholds = [0.0] * len(members) if margins else first_thresholds(sample, mean_labels)
    alone_cells: tuple[DisputedCells, ...] = ()
    if not margins:
        lows = [lowest(probs, mean_labels) for probs in sample.probs]
        alone_cells = tuple(
            cells_alone(p, low, labels, of_label) for p, low in zip(values, lows, strict=True)
        )
    windows = {
        each: Window.around(thresholds, each, sample, folds, mean_labels, of_label)
        for each in (() if margins else SCALES)
    }

    def cells_within(scale: Scale) -> DisputedCells:
        if margins:  # decided at 0, and most are below by no more than a threshold
            return DisputedCells.build(values, thresholds, labels, groups=of_label)
        window = windows[scale]
        return DisputedCells.build(
            values, window.thresholds, labels, window=window.half, scale=scale, groups=of_label
        )

    def compete(scale: Scale, methods: Sequence[str], before: Contest | None = None) -> Contest:
        progress(f"averaging as {scale}: {len(methods)} methods under {len(under)} decoders")
        cells = before.problem.cells if before is not None else cells_within(scale)
        problem = Problem(
            cells,
            folds,
            sample if EXPECTED in under else None,
            seed,
            scale,
            min_weight,
            max_members,
            alone_cells,
        )

        def widen(down: bool, up: bool) -> DisputedCells | None:
            wider = windows[scale].wider(down, up)
            if wider == windows[scale]:
                return None
            progress("a threshold went far: counting the cells of a wider range")
            windows[scale] = wider
            return cells_within(scale)

        return contest(problem, values, labels, methods, under, runner, widen, progress)

    evens: dict[Scale, Contest] = {}
    if scale is None and not margins and len(members) > 1:
        evens = {each: compete(each, ["uniform"]) for each in SCALES}
    even_by_scale = {each: even.best_nested() for each, even in evens.items()}
    best_scale: Scale = max(even_by_scale, key=even_by_scale.__getitem__, default="probability")
    used_scale = scale or best_scale
    alone = [f"member {i}" for i in range(len(members))]
    found = compete(used_scale, [*wanted, *alone], evens.get(used_scale))
    scored, nested, solved = found.scored, found.nested, found.solved
    blends = [key for key in scored if key[0] not in alone]
    best_single = max((key for key in scored if key[0] in alone), key=nested.__getitem__)
    even = max((key for key in blends if key[0] == "uniform"), key=nested.__getitem__)
    best = max(blends, key=nested.__getitem__)
    stacked = {}
    if level2 is not None:
        progress(f"level 2: {level2}")
        stacked = score_level2(level2, values, labels, folds, sample, seed, runner)
    gains = bootstrap(
        np.stack(
            [scored[key][1] - scored["uniform", key[1]][1] for key in scored]
            + [scored[key][1] - scored[best_single][1] for key in scored]
            + [beside[1] - scored[best][1] for beside in stacked.values()]
        ),
        seed,
    )
    over_even = bootstrap(np.stack([scored[key][1] - scored[even][1] for key in blends]), seed, together=True)
    sure = [key for key, gain in zip(blends, over_even, strict=True) if key[0] != "uniform" and gain.low > 0]
    chosen = max(sure, key=nested.__getitem__, default=even)
    if use is not None and len(members) > 1:
        chosen = max((key for key in blends if key[0] == use), key=nested.__getitem__)
    unique = np.unique(folds).tolist()
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
    seconds = tuple(member.seconds for member in members)
    progress("ordering the members for a deadline")
    steps = prefixes(
        used,
        chosen[1],
        found.problem,
        names=names,
        seconds=seconds,
        values=values,
        labels=labels,
        of_label=of_label,
    )
    progress("weighing each member")
    return BlendReport(
        names=names,
        pictures=len(labels),
        n_folds=len(unique),
        scale=used_scale,
        even_by_scale=even_by_scale,
        rows=tuple(rows.values()),
        chosen=rows[chosen],
        best=rows[best],
        best_over_uniform=over_even[blends.index(best)],
        chosen_over_uniform=over_even[blends.index(chosen)],
        single=rows[best_single],
        thresholds=tuple(as_probability(found.problem.cells.thresholds, used_scale).tolist()),
        decoder=decoder_of(used, chosen[1], found.problem.cells.thresholds, of_label, used_scale),
        worth=worth_of_members(chosen, scored[chosen][1], solved, found.problem, values, labels, names),
        correlation=error_correlation(sample, names),
        threshold_curve=threshold_curve(found.problem.cells, used, used_scale),
        groups=tuple(group_names) if of_label is not None else (),
        disputed=len(found.problem.cells.image) / labels.size,
        seconds=seconds,
        prefixes=steps,
        sizes=tuple(member.size for member in members),
        remarks=tuple(remarks),
        level2=tuple(
            Level2(str(level2), decoder, float(own.mean()), float(out.mean()), gains[2 * len(scored) + i])
            for i, (decoder, (own, out)) in enumerate(stacked.items())
        ),
        forced=use is not None and len(members) > 1,
    )


def draw_sample(
    values: Sequence[np.ndarray], labels: np.ndarray, seed: int, *, pictures: int = SAMPLE
) -> Sample:
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:pictures])
    return Sample(rows, np.stack([np.asarray(value[rows]) for value in values]), labels[rows])


def _title(method: str, names: Sequence[str]) -> str:
    return names[int(method.removeprefix("member "))] if method.startswith("member ") else method


def _row(
    key: tuple[str, str],
    names: Sequence[str],
    solutions: dict[int | None, Solution],
    scores: tuple[float, float],
    gains: tuple[Gain, Gain],
) -> Row:
    method, decoder = key
    alone = method.startswith("member ")
    whole = solutions[None]
    return Row(
        method=_title(method, names),
        decoder=decoder,
        is_single=alone,
        transferred=decoder == EXPECTED and method not in (DIRECT, "uniform") and not alone,
        own=scores[0],
        nested=scores[1],
        over_uniform=gains[0],
        over_single=gains[1],
        weights=tuple(whole.weights.tolist()),
        weights_by_fold=tuple(tuple(s.weights.tolist()) for fold, s in solutions.items() if fold is not None),
        shifts=tuple(whole.shifts.tolist()),
        temperature=whole.temperature,
        evaluations=whole.evaluations,
        curve=whole.curve,
    )
