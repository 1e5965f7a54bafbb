"""Datasets by name: `demo` is drawn, `openclipart` is fetched, anything else is a directory."""

import hashlib
from pathlib import Path

from imet_ray.cores import usable_cores
from imet_ray.data.sources import demo, openclipart
from imet_ray.errors import ConfigError, unknown_name
from imet_ray.units import user_path

DEMO_OPTIONS = ("n_images", "n_test", "seed", "missing")
VERSION = 1  # of demo's drawings: another version is another dataset


def resolve_data(data: str, *, cache: Path, source: Path | None = None) -> Path:
    """The directory of a dataset, made or fetched now if it is not there.

    Args:
        data: `demo`, `demo:missing=0.4,seed=1`, `openclipart`, a URL such as s3://BUCKET/FOLDER, or
            a directory.
        cache: where generated and fetched datasets are kept.
        source: openclipart's unpacked packages.

    Raises:
        ImetError: for unknown names and options, or what cannot be fetched.
    """
    if not data:  # --data "$DIR", and no DIR
        raise ConfigError("--data is empty: give demo, openclipart, or a directory")
    if source is not None and data != "openclipart":
        raise ConfigError("--from is for --data openclipart")
    name, _, options = data.partition(":")
    folder = cache / "datasets"
    if name == "demo":
        given = _demo_options(options)
        tag = hashlib.sha256(repr(sorted(given.items())).encode()).hexdigest()[:8] if given else "default"
        root = folder / f"demo-{VERSION}-{tag}"
        demo.generate(root, workers=usable_cores(), **given)  # type: ignore[arg-type]
        return root
    if "://" in data:
        from imet_ray.data.sources import bucket

        return bucket.fetch(data, folder)
    if data == "openclipart":
        openclipart.fetch(folder / "openclipart", source=source, workers=usable_cores())
        return folder / "openclipart"
    try:
        root = user_path(data)
        found = root.is_dir()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise ConfigError(
            f"no data at {data}: give --data demo, --data openclipart, or a directory with train.csv and train/ in it"
        )
    return root.resolve()


def is_directory(data: str) -> bool:
    """True if only a directory can be meant: nothing that is drawn or fetched."""
    return "://" not in data and data.partition(":")[0] not in ("demo", "openclipart")


def _demo_options(text: str) -> dict[str, int | float]:
    given: dict[str, int | float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in DEMO_OPTIONS:
            raise unknown_name("option of demo", key, DEMO_OPTIONS)
        if key in given:
            raise ConfigError(f"demo's {key} is given twice: choose one")
        whole = key != "missing"
        try:
            given[key] = int(value) if whole else float(value)
        except ValueError:
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"demo's {key} takes {kind}, got {value!r}") from None
    return given
