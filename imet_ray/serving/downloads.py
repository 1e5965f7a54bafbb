"""What a person has chosen on the page, as files: a table, or XMP sidecars, as `--tag` writes them."""

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated
from xml.sax.saxutils import escape

from pydantic import Field

from imet_ray.frozen import Frozen
from imet_ray.serving.uploads import base_name

Text = Annotated[str, Field(max_length=1000)]


class ChosenLabel(Frozen):
    """A label that a person left or added; an added one may have no probability."""

    name: Text
    probability: Annotated[float, Field(ge=0, le=1)] | None = None


class ChosenPicture(Frozen):
    """A picture's labels after editing."""

    name: Text
    labels: Annotated[list[ChosenLabel], Field(max_length=10_000)]
    edited: bool = False


class Chosen(Frozen):
    """All pictures of a page, in their order."""

    pictures: Annotated[list[ChosenPicture], Field(min_length=1, max_length=10_000)]
    decided_by: Text | None = None  # where the threshold was moved; None: by the ensemble


def decided_by(picture: ChosenPicture, usual: str) -> str:
    """How a picture's labels were decided, in words."""
    return f"{usual}, edited by hand" if picture.edited else usual


def csv_file(chosen: Chosen, usual: str) -> bytes:
    """The table: path, labels, probabilities, decided_by."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "labels", "probabilities", "decided_by"))
    for one in chosen.pictures:
        probabilities = (
            "" if label.probability is None else f"{label.probability:.4f}" for label in one.labels
        )
        labels = "|".join(label.name for label in one.labels)
        by = decided_by(one, chosen.decided_by or usual)
        writer.writerow((base_name(one.name), labels, "|".join(probabilities), by))
    return text.getvalue().encode()


def sidecars(chosen: Chosen) -> dict[str, bytes]:
    """XMP sidecars by their file names; of pictures of one name, the second gets a number."""
    found: dict[str, bytes] = {}
    for one in chosen.pictures:
        name = PurePath(base_name(one.name))
        number, path = 1, f"{name}.xmp"
        while path in found:
            number += 1
            path = f"{name.stem}-{number}{name.suffix}.xmp"
        items = "".join(f"<rdf:li>{escape(label.name)}</rdf:li>" for label in one.labels)
        found[path] = items.encode()
    return found


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()
