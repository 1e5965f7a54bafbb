"""What is said of a tagged picture."""

from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = ("path", "labels", "probabilities", "decided_by", "tagged_by")
DIGITS = 4  # of a probability


@dataclass(frozen=True)
class Row:
    """A picture and its labels, the most probable first."""

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]  # calibrated
    decided_by: str
    tagged_by: str  # the ensemble, and a digest of all that decides the labels

    def to_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return asdict(self)

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Row":
        """What `to_dict` made.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        texts = [found[name] for name in ("path", "decided_by", "tagged_by")]
        labels, probabilities = tuple(found["labels"]), tuple(map(float, found["probabilities"]))
        if not all(isinstance(text, str) for text in (*texts, *labels)) or len(labels) != len(probabilities):
            raise ValueError("it is no row of tags")
        return cls(texts[0], labels, probabilities, *texts[1:])
