"""What `search_spaces/own.yml` leaves to the pictures: their size for the models, the epochs, and the time it takes.

Only the pictures decide, not the machine: a run goes on wherever it is continued.
"""

import contextlib
import math

import numpy as np

from imet_ray.data.catalog import Catalog
from imet_ray.data.images import image_size
from imet_ray.errors import DataError
from imet_ray.search_space import SearchSpace
from imet_ray.units import clock

LOOKED_AT = 500  # pictures, spread over all
STEP = 16  # pixels
TINIEST = 32  # pixels: smaller pictures are enlarged
SMALLEST, LARGEST = 96, 224  # pixels: what every set gets if it has them, and what the weights were made for
# Of the short side, so that a crop has where to move. 700 OpenClipart pictures of 160 px, one fold: at 128 px F2 0.669,
# at 160 px 0.649.
CROP = 8 / 9
SEEN = 60_000  # pictures in all epochs together
FEWEST, MOST = 4, 16  # epochs; of 700 OpenClipart pictures 8, 15, 30 gave a fold's F2 of 0.632, 0.669, 0.668
AFFORDED = 40_000  # pictures of SMALLEST pixels in all epochs: larger ones as long as they cost no more
CORE_RATE = 45.0  # pictures of SMALLEST pixels a second that one core trains, all told: openclipart.yml


def fit_to_pictures(catalog: Catalog) -> dict[str, int]:
    """The settings `image_size`, in pixels, and `epochs` for a directory's training pictures."""
    n, short = len(catalog.train.files), _median_short_side(catalog)
    epochs = min(MOST, max(FEWEST, round(SEEN / n)))
    affordable = SMALLEST * math.sqrt(AFFORDED / (n * epochs))
    size = min(short * CROP, max(SMALLEST, min(LARGEST, affordable)))
    return {"image_size": max(TINIEST, int(size) // STEP * STEP), "epochs": epochs}


def describe_fit(space: SearchSpace, n_images: int, cores: int) -> str:
    """One line for people: the size, the epochs, and the time that the sweep will take without a GPU."""
    recipe = space.variants[0]
    searching = space.trials_per_variant * len(space.search_folds)
    trials = len(space.variants) * (searching + space.after_search)
    seen = trials * recipe.epochs * n_images * (1 - 1 / space.n_folds)
    seconds = seen * (recipe.image_size / SMALLEST) ** 2 / CORE_RATE / cores
    return (
        f"{recipe.image_size} px and {recipe.epochs} epochs for {n_images:,} pictures of their size; the sweep takes "
        f"about {clock(seconds)} on {cores} cores without a GPU"
    )


def _median_short_side(catalog: Catalog) -> int:
    """Pixels; of a sample, and SMALLEST if none of it can be read, which packing will say."""
    files = catalog.train.files
    sides = []
    for row in np.linspace(0, len(files) - 1, min(LOOKED_AT, len(files))).astype(int):
        with contextlib.suppress(DataError):
            sides.append(min(image_size(files[row])))
    return int(np.median(sides)) if sides else SMALLEST
