"""The submission file: label sets in the form and order of the sample submission."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imet_ray.data.competition_files import HEADER
from imet_ray.data.csv_tables import write_table
from imet_ray.data.labels import as_cell
from imet_ray.storage.files import LOCAL, Files


def write_submission(
    path: Path,
    ids: Sequence[str],
    label_ids: Sequence[str],
    decoded: np.ndarray,
    files: Files = LOCAL,
    *,
    header: tuple[str, str] = HEADER,
) -> None:
    """Write ids and their labels, one row per picture.

    Args:
        ids: (n,) test ids in the sample submission's order, as it spells them.
        label_ids: (C,) what stands in the file for each label.
        decoded: (n, C) bool.
        header: the names of the two columns, those of the sample.
    """
    assert decoded.shape == (len(ids), len(label_ids))
    names = np.array(label_ids)
    cell = as_cell(label_ids)
    columns = ids, [cell(names[row]) for row in decoded]
    write_table(path, dict(zip(header, columns, strict=True)), files)
