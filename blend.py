"""Blend out-of-fold predictions: fit weights, say what they are worth, freeze the ensemble.

`imet_ray/cli/blend.py` is all of it; where the project is installed it is `imet-ray-blend`.
"""

from imet_ray.cli.blend import main as main
from imet_ray.cli.blend import start

if __name__ == "__main__":
    start()
