"""Data sets by name: `demo` is drawn, `openclipart` is fetched, anything else is a directory."""

import hashlib
from pathlib import Path

import yaml

from imet_ray.datasets import demo, openclipart
from imet_ray.errors import ConfigError, unknown_name

DEMO_OPTIONS = ("n_images", "n_test", "seed", "missing")
WORKERS = 2


def resolve_data(data: str, *, cache: Path, source: Path | None = None) -> Path:
    """The directory of a data set, made or fetched now if it is not there.

    Args:
        data: `demo`, `demo:missing=0.4,seed=1`, `openclipart`, or a directory.
        cache: where generated and fetched data sets are kept.
        source: openclipart's unpacked packages.

    Raises:
        ImetError: for unknown names and options, or what cannot be fetched.
    """
    name, _, options = data.partition(":")
    folder = cache / "datasets"
    if name == "demo":
        given = _demo_options(options)
        tag = hashlib.sha256(repr(sorted(given.items())).encode()).hexdigest()[:8] if given else "default"
        root = folder / f"demo-{VERSION}-{tag}"
        demo.generate(root, workers=WORKERS, **given)  # type: ignore[arg-type]
        return root
    if data == "openclipart":
        openclipart.fetch(folder / "openclipart", source=source, workers=WORKERS)
        return folder / "openclipart"
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ConfigError(
            f"no data at {data}: give --data demo, --data openclipart, or a directory with train.csv and train/ in it"
        )
    return root.resolve()


VERSION = 1  # of demo's drawings: another version is another data set


def _demo_options(text: str) -> dict[str, int | float]:
    given: dict[str, int | float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in DEMO_OPTIONS:
            raise unknown_name("option of demo", key, DEMO_OPTIONS)
        number = yaml.safe_load(value) if value else None
        whole = key != "missing"
        if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"demo's {key} takes {kind}, got {value!r}")
        given[key] = number
    return given
