"""Level 2 beside the blend: what stacking is worth, judged by the same nested score. The ensemble never uses it.

Its probabilities are nested already: a fold's come from models that saw the other folds only. A decoder is fitted
without the fold that is scored, on probabilities of the other folds. What remains, of second order: these came from
models that saw the fold that is scored.
"""

from dataclasses import replace

from imet_ray.blending.cross_fit import Judged, cross_fit, single_methods
from imet_ray.blending.fit_jobs import THRESHOLD, Runner
from imet_ray.blending.members import Member
from imet_ray.blending.problem import BlendProblem, FitProblem
from imet_ray.blending.stacking import STACKS
from imet_ray.blending.threshold_range import Sample, single_cells
from imet_ray.errors import unknown_name
from imet_ray.prediction.decode import DECODERS, SampleDecoder


def score_level2(kind: str, problem: BlendProblem, sample: Sample, runner: Runner) -> list[Judged]:
    """The stacked probabilities, as a single member, under the threshold and each sample decoder.

    Args:
        kind: a key of `STACKS`.
        sample: of the problem's pictures, for sample decoders.
        runner: of the decoders' fits; the stacking itself runs here, on all cores.

    Raises:
        ConfigError: for an unknown kind, or a library that is not installed.
    """
    if kind not in STACKS:
        raise unknown_name("level 2", kind, STACKS)
    stacked = STACKS[kind](problem.values, problem.labels, problem.folds, problem.seed)
    stack = replace(problem, members=(Member(kind, stacked),), label_groups=())
    seen = replace(sample, probs=stacked[sample.rows][None])
    cells = single_cells(stacked, seen.probs[0], problem.labels, groups=stack.groups, metric=problem.metric)
    fits = FitProblem(cells, problem.folds, stack.groups, seen, problem.seed, singles=(cells,))
    on_sample = [name for name in stack.decoders(None) if issubclass(DECODERS[name], SampleDecoder)]
    found = cross_fit(stack, fits, single_methods(1), [THRESHOLD, *on_sample], runner)
    return list(found.judged.values())
