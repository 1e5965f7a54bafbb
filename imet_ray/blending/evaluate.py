"""What a blend is worth: each method under each decoder, its own score and the nested one that does not flatter it.

Own: fitted and scored on the same out-of-fold predictions. Nested: fitted on all folds but one, scored on that one:
weights and decoder, a single member's threshold, too. Three things see all folds: the choice between two scales of the
averaging, how far thresholds may be searched, and the mean number of labels. As the best nested score of several
flatters, only a gain beyond the noise of all candidates together displaces uniform weights. The caller remarks what
else flatters (hparams and epochs that were picked on the pictures that are scored).

Level 2 stands by the same rule: its nested scores are candidates among the others, and the best of those that are
beyond noise becomes the ensemble. Weights are chosen all the same, for whoever has no time for all members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imet_ray.blending.calibrate import calibration_of
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
from imet_ray.blending.diagnostics import doubts, error_correlation, threshold_curve, worth_of_members
from imet_ray.blending.fit_jobs import SINGLE, Runner
from imet_ray.blending.label_limits import LimitsFound, given_limits, with_limits
from imet_ray.blending.members import Member
from imet_ray.blending.methods import METHODS, UNIFORM
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.out_of_fold import OutOfFold
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.result import BlendReport, Level2Row, Row
from imet_ray.blending.stacking import STACKERS
from imet_ray.errors import ConfigError
from imet_ray.prediction.decode import DECODERS, SampleDecoder, ThresholdDecoder, possible_decoders
from imet_ray.prediction.level2 import Level2, Level2Model
from imet_ray.prediction.pooling import SCALES, Scale, as_probability


@dataclass(frozen=True)
class Choice:
    """The blend that is taken, and what it is compared with."""

    chosen: Judged  # weights; what is predicted where `level2` is None
    level2: Judged | None  # the stacker that is taken
    best: Judged  # the best nested one, chosen or not
    single: Judged  # the best single member, under its better decoder
    # of each blend and stacker over the best uniform blend; all hold together
    over_uniform: dict[tuple[str, str], Gain]


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
    given_limits(options, problem)
    stacks, models = _stack(problem, options, runner, progress)
    stacked = [one for stack in stacks.values() for one in stack.judged.values()]
    found, by_scale = _fit_all(problem, options, runner, progress)
    choice = _choose(found, stacked, options)
    rows, level2 = _rows(found, choice, stacked)
    taken, limits = _within_limits(choice, found, stacks, options, progress)
    fits, chosen, used = found.fits, taken.chosen, taken.level2
    row, level2 = _limited_rows(rows[chosen.key], level2, choice, taken, problem.seed)
    progress("calibrating the probabilities")
    calibration = calibration_of(used or chosen, found if used is None else stacks[used.method])
    progress("ordering the members for a deadline, and weighing each")
    worth = worth_of_members(chosen, found)
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
        decoder=(used or chosen).whole.decoder,
        worth=worth,
        correlation=error_correlation(problem),
        threshold_curve=threshold_curve(fits.cells, chosen.whole),
        groups=problem.group_names,
        disputed=len(fits.cells.image) / problem.labels.size,
        seconds=tuple(member.seconds for member in problem.members),
        prefixes=prefixes(chosen, found),
        sizes=tuple(member.size for member in problem.members),
        remarks=(*doubts(found, worth), *problem.remarks, *options.remarks),
        level2=level2,
        model=_level2(used.method, problem, models) if used is not None else None,
        forced=options.taken is not None and (len(problem.members) > 1 or options.use in STACKERS),
        limits=limits,
        calibration=calibration,
    )


def _stack(
    problem: BlendProblem, options: BlendOptions, runner: Runner, progress: Progress
) -> tuple[dict[str, CrossFit], dict[str, Level2Model]]:
    """What each stacker is worth, and itself, by its name."""
    stacks: dict[str, CrossFit] = {}
    models: dict[str, Level2Model] = {}
    for name in options.stackers(len(problem.members)):
        progress(f"level 2: {name}")
        stacks[name], models[name] = score_level2(name, problem, options, runner, progress)
    return stacks, models


def _level2(stacker: str, problem: BlendProblem, models: Mapping[str, Level2Model]) -> Level2:
    return Level2(stacker=stacker, members=list(problem.names), model=models[stacker])


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


def score_level2(
    stacker: str, problem: BlendProblem, options: BlendOptions, runner: Runner, progress: Progress
) -> tuple[CrossFit, Level2Model]:
    """What a stacker is worth under the threshold and each sample decoder, and its model of all pictures.

    Its probabilities are nested: a fold's come from a model that saw the other folds only. They are judged as those of
    a single member: a decoder is fitted without the fold that is scored. What optimism is left, of second order: what
    it is fitted on came from models that saw the fold that is scored.

    Args:
        stacker: a key of `STACKERS`.
        runner: of the decoders' fits; the stacking itself runs here, on all cores.

    Raises:
        ConfigError: for a library that is not installed, members that give no probabilities, or no decoder.
    """
    if problem.margins:
        raise ConfigError("level 2 needs probabilities: the members' thresholds are subtracted already")
    possible = possible_decoders(None, grouped=False, margins=False, metric=problem.metric)
    decoders = [name for name in possible if options.decoders is None or name in options.decoders]
    if not decoders:
        raise ConfigError(f"level 2 is decoded by {' or '.join(possible)}: choose --decoder among these")
    data = OutOfFold(problem.values, problem.labels, problem.folds, problem.metric, problem.seed)
    models = STACKERS[stacker](data)
    stack = replace(problem, members=(Member(stacker, data.nested(models)),), label_groups=())
    fits = FitProblem(
        stack.singles[0],
        stack.folds,
        stack.groups,
        stack.sample,
        stack.seed,
        singles=stack.singles,
        threshold=options.threshold,
    )
    found = cross_fit(stack, fits, [f"{SINGLE}0"], decoders, runner, progress)
    judged = [replace(one, method=stacker) for one in found.judged.values()]
    return replace(found, judged={one.key: one for one in judged}), models[-1]


def _choose(found: CrossFit, stacked: Sequence[Judged], options: BlendOptions) -> Choice:
    """What was asked for; else the best candidate that beats uniform weights beyond noise; else these.

    Weights are chosen among weights, and level 2 is taken if it is the best of all.
    """
    blends = found.blends
    fitted = [
        one for one in blends if one.method not in found.fits.given
    ]  # the nested scores of others flatter
    uniform = best_nested([one for one in blends if one.method == UNIFORM])
    candidates = [*blends, *stacked]
    gains = bootstrap(
        np.stack([one.nested - uniform.nested for one in candidates]), found.problem.seed, together=True
    )
    over_uniform = {one.key: gain for one, gain in zip(candidates, gains, strict=True)}
    sure = [one for one in fitted if one.method != UNIFORM and over_uniform[one.key].low > 0]
    sure_level2 = [one for one in stacked if over_uniform[one.key].low > 0]
    chosen = best_nested(sure) if sure else uniform
    level2 = best_nested(sure_level2) if sure_level2 else None
    if level2 is not None and level2.worth <= chosen.worth:
        level2 = None
    if options.taken in STACKERS:
        level2 = best_nested([one for one in stacked if one.method == options.taken])
    elif options.taken is not None and len(found.problem.members) > 1:
        level2, chosen = None, best_nested([one for one in blends if one.method == options.taken])
    return Choice(chosen, level2, best_nested(fitted), best_nested(found.singles), over_uniform)


def _rows(
    found: CrossFit, choice: Choice, stacked: Sequence[Judged]
) -> tuple[dict[tuple[str, str], Row], tuple[Level2Row, ...]]:
    """What the report says of each method, each single member, and of stacking."""
    judged = list(found.judged.values())
    gains = bootstrap(
        np.stack(
            [one.nested - found.judged[UNIFORM, one.decoder].nested for one in judged]
            + [one.nested - choice.single.nested for one in judged]
            + [one.nested - choice.best.nested for one in stacked]
            + [one.nested - choice.single.nested for one in stacked]
        ),
        found.problem.seed,
    )
    n, s = len(judged), len(stacked)
    rows = {
        one.key: _row(one, found.problem, over_uniform, over_single)
        for one, over_uniform, over_single in zip(judged, gains[:n], gains[n : 2 * n], strict=True)
    }
    level2 = tuple(
        Level2Row(
            kind=one.method,
            decoder=one.decoder,
            own=float(one.own.mean()),
            nested=one.worth,
            over_best=over_best,
            over_uniform=choice.over_uniform[one.key],
            over_single=over_single,
            used=one is choice.level2,
        )
        for one, over_best, over_single in zip(
            stacked, gains[2 * n : 2 * n + s], gains[2 * n + s :], strict=True
        )
    )
    return rows, level2


def _within_limits(
    choice: Choice,
    found: CrossFit,
    stacks: Mapping[str, CrossFit],
    options: BlendOptions,
    progress: Progress,
) -> tuple[Choice, LimitsFound | None]:
    """What is chosen, within the limits that were asked for; and what these are worth.

    Args:
        stacks: what each stacker was judged in.
    """
    if options.limits is None:
        return choice, None
    progress("limits on the number of labels")
    chosen, limits = with_limits(choice.chosen, found, found.problem, options)
    used = choice.level2
    if used is not None:
        used, limits = with_limits(used, stacks[used.method], found.problem, options)
    return replace(choice, chosen=chosen, level2=used), limits


def _limited_rows(
    row: Row, level2: tuple[Level2Row, ...], before: Choice, taken: Choice, seed: int
) -> tuple[Row, tuple[Level2Row, ...]]:
    """The rows of what is taken, with the scores that limits give.

    Over uniform weights they are what they were, without limits on either.

    Args:
        row: of the weights that are taken.
        before: without limits.
    """
    if taken.chosen is not before.chosen:
        [gain] = bootstrap((taken.chosen.nested - before.single.nested)[None], seed)
        own = float(taken.chosen.own.mean())
        row = replace(row, own=own, nested=taken.chosen.worth, over_single=gain)
    used = taken.level2
    if used is not None and used is not before.level2:
        own, worth = float(used.own.mean()), used.worth
        limited = [replace(one, decoder=used.decoder, own=own, nested=worth) for one in level2]
        level2 = tuple(new if one.used else one for one, new in zip(level2, limited, strict=True))
    return row, level2


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
