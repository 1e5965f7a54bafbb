"""What Kaggle's command line client needs beside the files: names, metadata, datasets of a bounded size.

The rules were read from version 2.2.5 of the `kaggle` package (`kaggle datasets create`, `kaggle kernels push`), which
is not needed here. Nothing is sent anywhere.
"""

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imet_ray.errors import ConfigError
from imet_ray.units import user_path

DATASET_METADATA = "dataset-metadata.json"
KERNEL_METADATA = "kernel-metadata.json"
# A dataset's title and slug have 6 to 50 characters each. Of a kernel's title the client wants at least 5 and names no
# maximum: we take one for both.
SHORTEST_DATASET, SHORTEST_KERNEL, LONGEST = 6, 5, 50
ACCELERATOR = "NvidiaTeslaT4"  # two of them; the P100, which torch has no code for any more, is retired
LICENSE = "copyright-authors"  # exactly one is needed; the client's own default gives all rights away


def user_of(given: str | None) -> str:
    """The Kaggle user: as given, else `$KAGGLE_USERNAME`, else the one in the client's `kaggle.json`.

    Raises:
        ConfigError: if none of them says, or what it says is no user's name.
    """
    if given is not None:
        return _checked_user(given, "--user")
    if named := os.environ.get("KAGGLE_USERNAME"):
        return _checked_user(named, "KAGGLE_USERNAME")
    # where the client looks: the XDG folder if only that is there
    home = user_path("~")
    folder, xdg = home / ".kaggle", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    if xdg.exists() and not folder.exists():
        folder = xdg
    path = Path(os.environ.get("KAGGLE_CONFIG_DIR") or folder) / "kaggle.json"
    try:
        return _checked_user(json.loads(path.read_text(encoding="utf-8"))["username"], str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"no Kaggle user: give --user NAME, set KAGGLE_USERNAME, or put {path} there"
        ) from None
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{path} names no user: give --user NAME, or download the file again") from None


def _checked_user(name: object, where: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigError(
            f"{where}: a Kaggle user has letters, digits and dashes, got {name!r}: see your profile's URL"
        )
    return name


def slug(text: str) -> str:
    """A title as part of a URL: lower-case ASCII letters and digits, with single dashes between.

    Raises:
        ConfigError: if nothing is left of it.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    short = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if not short:
        raise ConfigError(f"a name on Kaggle has letters a-z or digits, got {text!r}: give another --title")
    return short


def dataset_metadata(user: str, title: str) -> dict[str, Any]:
    """The content of `dataset-metadata.json`. Datasets are private unless the client is given `--public`.

    Raises:
        ConfigError: if Kaggle would refuse the title or its slug, which becomes the dataset's name.
    """
    name = slug(title)
    for what, text in (("title", title), ("slug", name)):
        _check_length(f"a dataset's {what}", text, SHORTEST_DATASET)
    return {"title": title, "id": f"{user}/{name}", "licenses": [{"name": LICENSE}]}


def kernel_metadata(
    user: str,
    title: str,
    *,
    code_file: str,
    competition: str | None,
    accelerator: str,
) -> dict[str, Any]:
    """The content of `kernel-metadata.json`, for a private script without internet.

    Args:
        title: or slug; the written title is made from the slug, since it must resolve to it.
        code_file: the script's name, beside the metadata.
        competition: a slug.
        accelerator: a GPU, by the client's name for it.

    Raises:
        ConfigError: if Kaggle would refuse a name.
    """
    name = slug(title)
    _check_length("a kernel's title", name, SHORTEST_KERNEL)
    if competition is not None and not re.fullmatch(r"[A-Za-z0-9-]+", competition):
        raise ConfigError(f"a competition is named by its slug, got {competition!r}: see its page's URL")
    if not re.fullmatch(r"[A-Za-z0-9]+", accelerator):
        raise ConfigError(f"an accelerator is named such as {ACCELERATOR}, got {accelerator!r}")
    return {
        "id": f"{user}/{name}",
        "title": name.replace("-", " "),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": True,
        "machine_shape": accelerator,
        "enable_tpu": False,
        "enable_internet": False,  # the client's default is True
        "dataset_sources": [],  # `user/slug` of each: the caller's
        "competition_sources": [competition] if competition else [],
        "kernel_sources": [],
        "model_sources": [],
    }


def _check_length(what: str, text: str, shortest: int) -> None:
    if not shortest <= len(text) <= LONGEST:
        way = "shorter" if len(text) > LONGEST else "longer"
        raise ConfigError(
            f"{what} must have {shortest} to {LONGEST} characters, got {len(text)} ({text!r}): give a {way} --title"
        )


def split_files(sizes: Sequence[tuple[str, int]], limit: int) -> list[list[str]]:
    """Share files, given by name and bytes, out among as few datasets of at most `limit` bytes as first-fit finds.

    Raises:
        ConfigError: if a file is larger than the limit.
    """
    sets: list[list[str]] = []
    room: list[int] = []
    for name, size in sizes:
        if size > limit:
            raise ConfigError(
                f"{name} has {size:,} bytes, more than the {limit:,} of a dataset: store it with --dtype float16, "
                f"blend without its variant, or raise --max-dataset-bytes"
            )
        place = next((i for i, left in enumerate(room) if left >= size), len(sets))
        if place == len(sets):
            sets.append([])
            room.append(limit)
        sets[place].append(name)
        room[place] -= size
    return sets
