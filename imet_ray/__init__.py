"""imet_ray: from a folder of labelled images to the best blended multi-label tagger."""

import os
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imet_ray.prediction.tagger import Tagger, Views

if sys.version_info < (3, 11):  # noqa: UP036  # who has one is told so; all else would be a traceback
    sys.exit(
        f"error: {sys.executable} is Python {sys.version.split()[0]}, 3.11 or newer is needed: `uv run launch.py` "
        "brings it (pip install uv)"
    )

__version__ = "0.1.0"


def load(
    where: "str | os.PathLike[str]",
    *,
    device: str | None = None,
    views: "Views | None" = None,
    runs: "str | os.PathLike[str]" = "runs",
) -> "Tagger":
    """Load an ensemble that tags new pictures. Neither the training data nor Ray are needed.

    Args:
        where: an exported folder, an ensemble's folder (runs/NAME/ensembles/ENSEMBLE), RUN/ENSEMBLE, or an ensemble
            of the newest run.
        device: such as cpu or cuda:1; None: a GPU, if there is one.
        views: such as "centre,flip"; None: those that the ensemble was fitted on.
        runs: where runs lie, a directory or s3://..., gs://... or az://...

    Raises:
        ImetError: in one line, what is wrong.
    """
    # By name: `import imet_ray` stays cheap, and whoever packs the imports of one module does not pack all of them.
    loaded: Tagger = pkgutil.resolve_name("imet_ray.prediction.tagger:load")(
        os.fspath(where), device=device, views=views, runs=os.fspath(runs)
    )
    return loaded
