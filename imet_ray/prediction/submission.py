"""The submission file: label sets in the form and order of the sample submission."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imet_ray.data.csv_tables import write_table
from imet_ray.data.labels import as_cell
from imet_ray.storage.files import LOCAL, Files


def write_submission(
    path: Path, ids: Sequence[str], label_ids: Sequence[str], decoded: np.ndarray, files: Files = LOCAL
) -> None:
    """Write `id,attribute_ids`, one row per picture.

    Args:
        ids: (n,) test ids in the sample submission's order, as it spells them.
        label_ids: (C,) what stands in the file for each label.
        decoded: (n, C) bool.
    """
    assert decoded.shape == (len(ids), len(label_ids))
    names = np.array(label_ids)
    cell = as_cell(label_ids)
    write_table(path, {"id": ids, "attribute_ids": [cell(names[row]) for row in decoded]}, files)
