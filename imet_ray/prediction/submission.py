"""The submission file: label sets in the form and order of the sample submission."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imet_ray.storage.files import write_text


def write_submission(path: Path, ids: Sequence[str], label_ids: Sequence[str], decoded: np.ndarray) -> None:
    """Write `id,attribute_ids`, a row a picture.

    Args:
        ids: (n,) test ids in the sample submission's order, as it spells them.
        label_ids: (C,) what stands in the file for each label.
        decoded: (n, C) bool, at least one label a row.
    """
    assert decoded.shape == (len(ids), len(label_ids))
    assert decoded.any(axis=1).all(), "each picture gets a label"
    names = np.array(label_ids)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "attribute_ids"])
    for picture, row in zip(ids, decoded, strict=True):
        writer.writerow([picture, " ".join(names[row])])
    write_text(path, text.getvalue())
