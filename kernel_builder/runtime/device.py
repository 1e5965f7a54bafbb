"""Where the models run: a GPU that shows that it can, or the CPU."""

import logging

import torch

from imet_ray.errors import first_line
from imet_ray.prediction.predict import half_of

logger = logging.getLogger(__name__)


def usable_device() -> torch.device:
    """The GPU if a small convolution works on it, in float32 and in the half precision that models use there.

    A build of torch has no code for GPUs that are much older or newer than itself; that shows at the first operation.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    try:
        convolution = torch.nn.Conv2d(3, 8, 3).to(device)
        for dtype in (None, half_of(device)):
            with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                convolution(torch.ones(1, 3, 8, 8, device=device)).float().sum().item()
    except Exception as error:  # of whatever kind: there is the CPU
        logger.warning("the GPU cannot be used (%s): predicting on the CPU", first_line(error))
        return torch.device("cpu")
    return device
