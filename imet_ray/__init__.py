"""imet_ray: from a folder of labelled images to the best blended multi-label tagger."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # who has one is told so; all else would be a traceback
    sys.exit(
        f"error: {sys.executable} is Python {sys.version.split()[0]}, 3.11 or newer is needed: `uv run launch.py` "
        "brings it (pip install uv)"
    )

__version__ = "0.1.0"
