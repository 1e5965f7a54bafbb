"""What all settings and artefacts that are read back are made of: models that nothing changes and nothing fools."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all specs: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
