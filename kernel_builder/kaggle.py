"""What Kaggle's command line client wants beside the files: names, metadata, data sets of a bounded size.

The rules were read from version 2.2.5 of the `kaggle` package (`kaggle datasets create`, `kaggle kernels push`), which
is not needed here. Nothing is sent anywhere.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imet_ray.errors import ConfigError

DATASET_METADATA = "dataset-metadata.json"
KERNEL_METADATA = "kernel-metadata.json"
# A data set's title and slug have 6 to 50 characters each. Of a kernel the client wants 5 at least and says no maximum:
# we take one for both.
SHORTEST_DATASET, SHORTEST_KERNEL, LONGEST = 6, 5, 50
ACCELERATOR = "NvidiaTeslaT4"  # two of them; the P100, which torch no longer has code for, is retired
LICENSE = "copyright-authors"  # exactly one is wanted; the client's own default gives all rights away


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `stop` of a file."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def user_of(given: str | None) -> str:
    """The Kaggle user: as given, else `$KAGGLE_USERNAME`, else the one in the client's `kaggle.json`.

    Raises:
        ConfigError: if none of them says, or what it says is no user's name.
    """
    if given is not None:
        return _checked_user(given, "--user")
    named = os.environ.get("KAGGLE_USERNAME")
    if named:
        return _checked_user(named, "KAGGLE_USERNAME")
    path = _config_folder() / "kaggle.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no Kaggle user: give --user NAME, set KAGGLE_USERNAME, or put {path} there"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror or error}): give --user NAME") from None
    except ValueError:
        raise ConfigError(f"{path} is no JSON: give --user NAME, or fetch the file again") from None
    named = settings.get("username") if isinstance(settings, dict) else None
    if not isinstance(named, str):
        raise ConfigError(f"{path} has no username: give --user NAME")
    return _checked_user(named, str(path))


def _config_folder() -> Path:
    """Where the client looks: `~/.kaggle` if there is one, else the XDG folder."""
    named = os.environ.get("KAGGLE_CONFIG_DIR")
    if named:
        return Path(named)
    home = Path("~").expanduser()
    xdg = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    return xdg if xdg.exists() and not (home / ".kaggle").exists() else home / ".kaggle"


def _checked_user(name: str, where: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigError(
            f"{where}: a Kaggle user has letters, digits and dashes, got {name!r}: see your profile's URL"
        )
    return name


def slug(text: str) -> str:
    """How a title reads in a URL: lower-case ASCII letters and digits with single dashes between.

    Raises:
        ConfigError: if nothing is left of it.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    short = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if not short:
        raise ConfigError(f"a name on Kaggle has letters a-z or digits, got {text!r}: choose another name")
    return short


def dataset_metadata(user: str, title: str, *, description: str = "") -> dict[str, Any]:
    """What goes into `dataset-metadata.json`. Data sets are private unless `--public` is given to the client.

    Args:
        user: who it will belong to.
        title: of 6 to 50 characters; its slug, of as many, becomes the data set's name.
        description: shown on its page.

    Raises:
        ConfigError: if Kaggle would refuse the title or its slug.
    """
    name = slug(title)
    for what, text in (("title", title), ("slug", name)):
        _check_length(f"a data set's {what}", text, SHORTEST_DATASET)
    metadata = {"title": title, "id": f"{user}/{name}", "licenses": [{"name": LICENSE}]}
    return metadata | ({"description": description} if description else {})


def kernel_metadata(
    user: str,
    title: str,
    *,
    code_file: str,
    datasets: Sequence[str],
    competition: str | None,
    accelerator: str,
) -> dict[str, Any]:
    """What goes into `kernel-metadata.json`, for a private script without internet.

    Args:
        user: who it will belong to.
        title: or slug, of 5 to 50 characters; the written title is made from the slug, since it must resolve to it.
        code_file: the script's name, beside the metadata.
        datasets: `user/slug` of each data set that it reads.
        competition: the competition's slug, if it reads one's data.
        accelerator: a GPU, by the client's name for it.

    Raises:
        ConfigError: if Kaggle would refuse the name or a source.
    """
    name = slug(title)
    _check_length("a kernel's title", name, SHORTEST_KERNEL)
    for source in datasets:
        if not re.fullmatch(r"[^/\s]+/[^/\s]+", source):
            raise ConfigError(f"a data set is named as user/slug, got {source!r}: see its page's URL")
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
        "dataset_sources": list(datasets),
        "competition_sources": [competition] if competition else [],
        "kernel_sources": [],
        "model_sources": [],
    }


def _check_length(what: str, text: str, shortest: int) -> None:
    if not shortest <= len(text) <= LONGEST:
        way = "shorter" if len(text) > LONGEST else "longer"
        raise ConfigError(
            f"{what} must have {shortest} to {LONGEST} characters, got {len(text)} ({text!r}): give a {way} name"
        )


def split_files(sizes: Sequence[tuple[str, int]], limit: int) -> list[list[Piece]]:
    """Share files out among as few data sets as first-fit finds.

    A file above the limit is cut: its pieces, in order, each begin a new data set, and the last one's is open to later
    files.

    Args:
        sizes: name and bytes of each file.
        limit: bytes that a data set may have.

    Raises:
        ConfigError: if the limit is below one byte.
    """
    if limit < 1:
        raise ConfigError(f"a data set must be allowed at least 1 byte, got {limit}: give a larger limit")
    sets: list[list[Piece]] = []
    room: list[int] = []
    for name, size in sizes:
        whole = size <= limit
        for piece in _pieces(name, size, limit):
            place = next((i for i, left in enumerate(room) if whole and left >= size), len(sets))
            if place == len(sets):
                sets.append([])
                room.append(limit)
            sets[place].append(piece)
            room[place] -= piece.size
    return sets


def _pieces(name: str, size: int, limit: int) -> Iterator[Piece]:
    for start in range(0, max(size, 1), limit):
        yield Piece(name, start, min(start + limit, size))
