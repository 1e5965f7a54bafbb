"""What the server answers, as JSON has it."""

from pydantic import BaseModel


class Label(BaseModel):
    """A label."""

    id: str
    name: str


class Probability(Label):
    """A label and its calibrated probability."""

    probability: float


class TaggedPicture(BaseModel):
    """What a picture shows."""

    name: str
    labels: list[Probability]  # the most probable first
    decided_by: str
    probabilities: list[Probability]  # of the most probable labels, chosen or not


class Tags(BaseModel):
    """The answer to pictures, in their order."""

    ensemble: str
    pictures: list[TaggedPicture]


class Labels(BaseModel):
    """What the server knows, and what it takes."""

    ensemble: str
    labels: list[Label]
    decided_by: str
    limits: dict[str, int]


class Health(BaseModel):
    """Whether pictures can be tagged now, and what was done since the start."""

    status: str
    pictures: int
    pictures_per_batch: float
    model_seconds: float


class Error(BaseModel):
    """Why a request was refused."""

    error: str
