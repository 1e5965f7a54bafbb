"""What a variant's augmentation makes of some training pictures, as a page. Nothing is packed, and no run is begun."""

from pathlib import Path
from typing import Any

import numpy as np

from imet_ray.commands.plan import Request, space_and_pictures
from imet_ray.commands.train import variant_named, with_settings
from imet_ray.data.augmentation import TrainTransform
from imet_ray.data.catalog import Catalog
from imet_ray.data.images import read_rgb
from imet_ray.data.loader import TrainDataset
from imet_ray.reporting.augmentation_page import Shown, augmentation_page
from imet_ray.specs import default_pack_short_side
from imet_ray.storage.files import write_text

PICTURES = 10
DRAWS = 8  # of each; the epochs from the first on


class _Decoded:
    """Training pictures by row, read when asked for, as a pack would hold them."""

    def __init__(self, catalog: Catalog, short_side: int) -> None:
        self.catalog, self.short_side = catalog, short_side

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        return read_rgb(self.catalog.train.files[row], short_side=self.short_side)


def show_augmentations(request: Request, variant: str, settings: dict[str, Any], out: Path | None) -> int:
    """Write the page.

    Args:
        settings: in place of the variant's own.
        out: None: `augmentation-VARIANT.html` here.

    Raises:
        ImetError: one line for each of the user's mistakes.
    """
    space, catalog = space_and_pictures(request)
    recipe = with_settings(variant_named(space, variant), settings)
    short_side = space.pack_short_side or default_pack_short_side(recipe.image_size)
    n = len(catalog.train.ids)
    rows = np.unique(np.linspace(0, n - 1, min(PICTURES, n)).astype(np.int64))
    decoded = _Decoded(catalog, short_side)
    dataset = TrainDataset(decoded, rows, catalog.labels, TrainTransform.of(recipe), space.seed)
    draws: list[list[np.ndarray]] = [[] for _ in rows]
    for epoch in range(DRAWS):
        dataset.set_epoch(epoch)
        for i, made in enumerate(draws):
            made.append(dataset[i][0].permute(1, 2, 0).numpy())
    shown = [
        Shown(
            id=catalog.train.ids[row],
            labels=[catalog.label_names[label] for label in np.flatnonzero(catalog.labels[row])],
            original=decoded[row],
            draws=made,
        )
        for row, made in zip(rows.tolist(), draws, strict=True)
    ]
    path = out or Path(f"augmentation-{recipe.name}.html")
    write_text(path, augmentation_page(recipe, shown, pack_short_side=short_side))
    print(f"{path}: {len(shown)} pictures, {DRAWS} epochs each")
    return 0
