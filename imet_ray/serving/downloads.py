"""What a person has chosen on the page, as files: a table, or XMP sidecars, as `--tag` writes them."""

import io
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import Field

from imet_ray.frozen import Frozen
from imet_ray.serving.uploads import base_name
from imet_ray.tagging.rows import Row
from imet_ray.tagging.sidecars import Sidecars
from imet_ray.tagging.tables import write_csv

Text = Annotated[str, Field(max_length=1000)]


class ChosenLabel(Frozen):
    """A label that a person left or added."""

    name: Text
    probability: Annotated[float, Field(ge=0, le=1)]  # calibrated


class ChosenPicture(Frozen):
    """A picture's labels, the most probable first."""

    name: Text
    labels: Annotated[list[ChosenLabel], Field(max_length=10_000)]
    edited: bool = False  # by hand


class Chosen(Frozen):
    """All pictures of a page, in their order."""

    pictures: Annotated[list[ChosenPicture], Field(min_length=1, max_length=10_000)]
    decided_by: Text | None = None  # where a threshold was given; None: by the ensemble


def csv_file(chosen: Chosen, decided_by: str, tagged_by: str) -> bytes:
    """The table.

    Args:
        decided_by: how the ensemble decides, in words.
        tagged_by: the ensemble.
    """
    usual = chosen.decided_by or decided_by
    text = io.StringIO(newline="")
    rows = [
        Row(
            path=base_name(one.name),
            labels=tuple(label.name for label in one.labels),
            probabilities=tuple(label.probability for label in one.labels),
            decided_by=f"{usual}, edited by hand" if one.edited else usual,
            tagged_by=tagged_by,
        )
        for one in chosen.pictures
    ]
    write_csv(text, rows, header=True)
    return text.getvalue().encode()


def sidecars(chosen: Chosen, tagged_by: str) -> dict[str, bytes]:
    """XMP sidecars by their file names; of pictures of one name, the second gets a number.

    Args:
        tagged_by: the ensemble: `--tag` leaves what is of the same as it is, edited or not.
    """
    found: dict[str, bytes] = {}
    numbers: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i, one in enumerate(chosen.pictures):
            picture = Path(folder, str(i))
            writer = Sidecars()
            writer.write(picture, [label.name for label in one.labels], tagged_by)
            found[_free_name(one.name, found, numbers)] = writer.path_of(picture).read_bytes()
    return found


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


def _free_name(picture: str, taken: Mapping[str, bytes], numbers: Counter[str]) -> str:
    """The name of a picture's sidecar. Args: numbers: the last one that each name has got."""
    plain = base_name(picture)
    name = PurePath(plain)
    found = f"{name}.xmp"
    while found in taken:
        numbers[plain] += 1
        found = f"{name.stem}-{numbers[plain] + 1}{name.suffix}.xmp"
    return found
