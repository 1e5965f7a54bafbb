"""Level 2 of the blend: models that learn from the members' out-of-fold predictions how far to trust each.

A stacker fits one model without each fold, which gives nested probabilities, and one on all folds, which predicts new
pictures. All start from the uniform blend of log-odds. How a fitted model predicts is `imet_ray.prediction.level2`.
"""

from collections.abc import Callable

from imet_ray.blending.out_of_fold import OutOfFold
from imet_ray.blending.stacked_cells import stack_lightgbm, stack_net
from imet_ray.blending.stacked_labels import stack_linear, stack_logistic
from imet_ray.prediction.level2 import Level2Model

# the members' predictions -> F models, each fitted without a fold, then one that is fitted on all
Stacker = Callable[[OutOfFold], list[Level2Model]]

ALL = "all"  # of STACKERS, as a person asks for them

STACKERS: dict[str, Stacker] = {
    "logistic": stack_logistic,
    "linear": stack_linear,
    "lightgbm": stack_lightgbm,
    "net": stack_net,
}
