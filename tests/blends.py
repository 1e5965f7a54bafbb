"""A blend's problem and options from one list of arguments, as tests like to give them."""

from imet_ray.blending.cross_fit import silent
from imet_ray.blending.evaluate import evaluate as evaluate_problem
from imet_ray.blending.fit_jobs import solve_here
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.problem import BlendProblem
from imet_ray.blending.result import BlendReport


def evaluate(
    members, labels, folds, *, seed=0, groups=(), remarks=(), metric="f2", runner=solve_here, **options
) -> BlendReport:
    """`evaluate` of a problem with options; those that are lists become tuples."""
    problem = BlendProblem(members, labels, folds, metric, seed=seed, label_groups=groups, remarks=remarks)
    asked = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return evaluate_problem(problem, BlendOptions(**asked), runner=runner, progress=silent)
