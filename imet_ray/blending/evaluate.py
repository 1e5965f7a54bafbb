"""What a blend is worth: each method under each decoder, its own score and the nested one that does not flatter it.

Own: fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but one, scored on that one:
weights and decoder, a single member's threshold, too. Three things see all folds: the choice between two scales of the
averaging, how far thresholds may be searched, and the mean number of labels. As the best nested score of several
flatters, only a gain beyond the noise of all candidates together displaces uniform weights. The caller remarks what
else flatters (hparams and epochs that were picked on the pictures that are scored).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.cross_fit import (
    CrossFit,
    Gain,
    Judged,
    Progress,
    best_nested,
    bootstrap,
    cross_fit,
)
from imet_ray.blending.deadline_order import prefixes
from imet_ray.blending.diagnostics import error_correlation, threshold_curve, worth_of_members
from imet_ray.blending.fit_jobs import SINGLE, THRESHOLD, Runner
from imet_ray.blending.label_limits import given_limits, with_limits
from imet_ray.blending.members import Member
from imet_ray.blending.methods import METHODS, UNIFORM
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.result import BlendReport, Level2, Row
from imet_ray.blending.stacking import STACKS
from imet_ray.prediction.decode import DECODERS, SampleDecoder, ThresholdDecoder, possible_decoders
from imet_ray.prediction.pooling import SCALES, Scale, as_probability


@dataclass(frozen=True)
class Choice:
    """The blend that is taken, and what it is compared with."""

    chosen: Judged
    best: Judged  # the best nested one, chosen or not
    single: Judged  # the best single member, under its better decoder
    over_uniform: dict[tuple[str, str], Gain]  # of each blend over the best uniform one; all hold together


def evaluate(
    problem: BlendProblem, options: BlendOptions, *, runner: Runner, progress: Progress
) -> BlendReport:
    """Fit with every method under every decoder, score honestly, choose.

    Args:
        runner: where the fits run.

    Raises:
        DataError: naming the member whose predictions cannot be used.
        ConfigError: for a method or decoder that is unknown or cannot be had, or weights that cannot be.
    """
    problem.check()
    options.check()
    options.weights_of(problem.names)
    given_limits(options, problem)
    found, by_scale = _fit_all(problem, options, runner, progress)
    choice = _choose(found, options)
    stacked: list[Judged] = []
    if options.level2 is not None:
        progress(f"level 2: {options.level2}")
        stacked = score_level2(options.level2, problem, runner, progress)
    rows, level2 = _rows(found, choice, stacked, options)
    fits, chosen, row, limits = found.fits, choice.chosen, rows[choice.chosen.key], None
    if options.limits is not None:
        progress("limits on the number of labels")
        chosen, limits = with_limits(chosen, found, problem, options)
        row = _row_of(chosen, found, choice) if limits.used else row
    progress("ordering the members for a deadline")
    steps = prefixes(chosen, found)
    progress("weighing each member")
    return BlendReport(
        metric=problem.metric,
        names=problem.names,
        pictures=len(problem.labels),
        n_folds=len(problem.fold_numbers),
        scale=fits.scale,
        uniform_by_scale=by_scale,
        rows=tuple(rows.values()),
        chosen=row,
        best=rows[choice.best.key],
        best_over_uniform=choice.over_uniform[choice.best.key],
        chosen_over_uniform=choice.over_uniform[choice.chosen.key],
        single=rows[choice.single.key],
        thresholds=tuple(as_probability(fits.cells.thresholds, fits.scale).tolist()),
        decoder=chosen.whole.decoder,
        worth=worth_of_members(chosen, found),
        correlation=error_correlation(problem),
        threshold_curve=threshold_curve(fits.cells, chosen.whole),
        groups=problem.group_names,
        disputed=len(fits.cells.image) / problem.labels.size,
        seconds=tuple(member.seconds for member in problem.members),
        prefixes=steps,
        sizes=tuple(member.size for member in problem.members),
        remarks=(*problem.remarks, *options.remarks),
        level2=level2,
        forced=options.taken is not None and len(problem.members) > 1,
        limits=limits,
    )


def _fit_all(
    problem: BlendProblem, options: BlendOptions, runner: Runner, progress: Progress
) -> tuple[CrossFit, dict[Scale, float]]:
    """All methods and single members on the better scale, and the nested score of uniform weights on each."""
    m = len(problem.members)
    decoders = possible_decoders(
        options.decoders, grouped=bool(problem.group_names), margins=problem.margins, metric=problem.metric
    )
    methods = [*options.methods_for(m), *(f"{SINGLE}{i}" for i in range(m))]
    if options.scale is not None or problem.margins or m == 1:
        fits = FitProblem.on(options.scale or "probability", problem, options)
        return cross_fit(problem, fits, methods, decoders, runner, progress), {}
    uniform = {
        scale: cross_fit(
            problem, FitProblem.on(scale, problem, options), [UNIFORM], decoders, runner, progress
        )
        for scale in SCALES
    }
    by_scale = {scale: best_nested(found.blends).worth for scale, found in uniform.items()}
    better = max(by_scale, key=by_scale.__getitem__)
    found = cross_fit(problem, uniform[better].fits, methods, decoders, runner, progress)
    return found, by_scale


def score_level2(kind: str, problem: BlendProblem, runner: Runner, progress: Progress) -> list[Judged]:
    """What stacking is worth: its probabilities, as a single member, under the threshold and each sample decoder.

    They are nested already: a fold's come from models that saw the other folds only. A decoder is fitted without the
    fold that is scored. What optimism is left, of second order: what it is fitted on came from models that saw the
    fold that is scored.

    Args:
        kind: a key of `STACKS`.
        runner: of the decoders' fits; the stacking itself runs here, on all cores.

    Raises:
        ConfigError: for a library that is not installed.
    """
    stacked = STACKS[kind](problem.values, problem.labels, problem.folds, problem.seed)
    stack = replace(problem, members=(Member(kind, stacked),), label_groups=())
    fits = FitProblem(
        stack.singles[0], stack.folds, stack.groups, stack.sample, stack.seed, singles=stack.singles
    )
    possible = possible_decoders(None, grouped=False, margins=False, metric=problem.metric)
    on_sample = [name for name in possible if issubclass(DECODERS[name], SampleDecoder)]
    found = cross_fit(stack, fits, [f"{SINGLE}0"], [THRESHOLD, *on_sample], runner, progress)
    return list(found.judged.values())


def _choose(found: CrossFit, options: BlendOptions) -> Choice:
    """The method that was asked for; else the best one that beats uniform weights beyond noise; else these."""
    blends = found.blends
    fitted = [
        one for one in blends if one.method not in found.fits.given
    ]  # the nested scores of others flatter
    uniform = best_nested([one for one in blends if one.method == UNIFORM])
    gains = bootstrap(
        np.stack([one.nested - uniform.nested for one in blends]), found.problem.seed, together=True
    )
    over_uniform = {one.key: gain for one, gain in zip(blends, gains, strict=True)}
    sure = [one for one in fitted if one.method != UNIFORM and over_uniform[one.key].low > 0]
    chosen = best_nested(sure) if sure else uniform
    if options.taken is not None and len(found.problem.members) > 1:
        chosen = best_nested([one for one in blends if one.method == options.taken])
    return Choice(chosen, best_nested(fitted), best_nested(found.singles), over_uniform)


def _rows(
    found: CrossFit, choice: Choice, stacked: Sequence[Judged], options: BlendOptions
) -> tuple[dict[tuple[str, str], Row], tuple[Level2, ...]]:
    """What the report says of each method, each single member, and of stacking."""
    judged = list(found.judged.values())
    gains = bootstrap(
        np.stack(
            [one.nested - found.judged[UNIFORM, one.decoder].nested for one in judged]
            + [one.nested - choice.single.nested for one in judged]
            + [one.nested - choice.best.nested for one in stacked]
        ),
        found.problem.seed,
    )
    n = len(judged)
    rows = {
        one.key: _row(one, found.problem, over_uniform, over_single)
        for one, over_uniform, over_single in zip(judged, gains[:n], gains[n : 2 * n], strict=True)
    }
    level2 = tuple(
        Level2(str(options.level2), one.decoder, float(one.own.mean()), one.worth, gain)
        for one, gain in zip(stacked, gains[2 * n :], strict=True)
    )
    return rows, level2


def _row_of(one: Judged, found: CrossFit, choice: Choice) -> Row:
    """What the report says of a blend that was changed after all were judged."""
    others = found.judged[UNIFORM, one.decoder], choice.single
    gains = bootstrap(np.stack([one.nested - other.nested for other in others]), found.problem.seed)
    return _row(one, found.problem, *gains)


def _row(one: Judged, problem: BlendProblem, over_uniform: Gain, over_single: Gain) -> Row:
    whole = one.whole
    on_sample = issubclass(DECODERS[one.decoder], SampleDecoder)
    method = METHODS.get(one.method)  # none of a single member, or of weights that are given
    own_weights = method is None or one.method == UNIFORM or method.under_decoder
    thresholds: list[float] = []
    if isinstance(whole.decoder, ThresholdDecoder):
        thresholds = whole.decoder.thresholds(problem.groups).tolist()
    return Row(
        method=one.method if one.member is None else problem.names[one.member],
        decoder=one.decoder,
        is_single=one.member is not None,
        transferred=on_sample and not own_weights,
        own=float(one.own.mean()),
        nested=one.worth,
        over_uniform=over_uniform,
        over_single=over_single,
        weights=tuple(whole.weights.tolist()),
        weights_by_fold=tuple(tuple(fitted.weights.tolist()) for fitted in one.by_fold.values()),
        thresholds=tuple(thresholds),
        evaluations=whole.evaluations,
        curve=whole.curve,
    )
