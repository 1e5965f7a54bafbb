"""Blend out-of-fold predictions: fit weights, say what they are worth, freeze the ensemble.

python blend.py                                   the newest run, all variants that are trained on all folds
python blend.py --name RUN --members a,b --out NAME
python blend.py --member mine=oof.npz             with another tool's predictions
python blend.py --weights a=0.3,b=0.7 --limits culture=0..3,tag=1..8        by hand
python blend.py --seconds 8h40m --images 38801 --bytes 20GB    the best ensemble that fits
python blend.py NAME level1_train_MODEL_f0_e14_0.5975.npy ... --folds folds.npy --labels train.csv
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from imet_ray.command_line import Parser, exit_code, program, refuse_pooling_alone
from imet_ray.errors import ConfigError
from imet_ray.startup import heavy_imports, keep_docstrings
from imet_ray.units import byte_size, duration, user_path

if TYPE_CHECKING:  # the module takes a second to import: not for a wrong flag
    from imet_ray.blending.fit_jobs import Runner

MOST_IMAGES = 10**12


def main(argv: list[str] | None = None) -> int:
    """Blend, print the report; 0 when the ensemble is written."""
    return exit_code(lambda: _run(_parse(argv)), "run it again")


def _run(args: argparse.Namespace) -> int:
    _check(args)
    with heavy_imports():
        from imet_ray.blending.options import BlendOptions
        from imet_ray.commands import blend as stages
        from imet_ray.prediction.limits import parse_limits
        from imet_ray.prediction.view_sets import ViewSet
        from imet_ray.storage.run_directory import Cache
        from imet_ray.storage.runs import runs_at
    decoder = "threshold" if args.threshold is not None else args.decoder
    limits = parse_limits(args.limits) if args.limits not in (None, "fit") else args.limits
    options = BlendOptions(
        methods=() if args.method is not None else None,
        use=args.method,
        decoders=(decoder,) if decoder is not None else None,
        min_weight=args.min_weight,
        max_members=args.max_members,
        seconds=duration(args.seconds, "--seconds") if args.seconds is not None else None,
        images=args.images,
        size=byte_size(args.bytes, "--bytes") if args.bytes is not None else None,
        scale=args.average,
        level2=tuple(_names(args.level2, "level2")) if args.level2 is not None else (),
        replace=args.replace,
        weights=_weights(args.weights) if args.weights is not None else None,
        threshold=args.threshold,
        limits=limits,
    )
    options.check()
    cache = Cache.at(args.cache)
    runs = runs_at(args.runs, cache)
    with _runner(args.address) as runner:
        if args.files:
            files = stages.Request2019(
                args.files[0],
                [user_path(file) for file in args.files[1:]],
                folds=args.folds,
                labels=args.labels,
                runs=runs,
                starts=args.start or (),
            )
            found = stages.blend_2019(files, options, runner=runner)
        else:
            request = stages.BlendRequest(
                args.name,
                runs=runs,
                cache=cache,
                data=args.data,
                source=args.source,
                members=_names(args.members, "members") if args.members is not None else None,
                external=args.member or (),
                out=args.out or "blend",
                in_full=args.json,
                starts=args.start or (),
                write_2019=args.write_2019,
                views=ViewSet.of(args.views.split(","), args.pool_views) if args.views is not None else None,
            )
            found = stages.blend(request, options, runner=runner)
    print(json.dumps(found) if args.json else found["text"])
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=program("blend.py"), description="Blend out-of-fold predictions.", allow_abbrev=False
    )
    parser.add_run()
    add = parser.add_argument
    add("files", nargs="*", metavar="NAME FILE", help="a name and the 2019 solution's level-1 files")
    add("--members", metavar="A,B", help="variants to blend; default: all")
    add(
        "--member",
        metavar="NAME=FILE",
        action="append",
        help="an .npz with ids and probs, or a 2019 level1_train_*.npy",
    )
    add("--out", metavar="NAME", help="the ensemble's name; default: blend")
    replaces = "an ensemble of that name, also where it has members that the new one lacks"
    add("--replace", action="store_true", help=replaces)
    add("--method", help="use this one, such as uniform, greedy or line; a wrong name lists all")
    add("--decoder", help="use this one, such as threshold or expected-f2; a wrong name lists all")
    add("--min-weight", metavar="W", type=float, default=0.0, help="members below it are left out")
    add("--max-members", metavar="K", type=int, help="at most so many of weight above 0")
    add("--seconds", metavar="8h40m", help="that prediction may take")
    add("--images", metavar="N", type=int, help="test pictures; default: those of the data")
    add("--bytes", metavar="20GB", help="that checkpoints may take")
    parser.add_views("predicted by launch.py --oof --views; default: each recipe's own")
    add("--weights", metavar="A=0.3,B=0.7", help="by hand, of all members; scored as fitted ones are")
    starts = "an ensemble, or a .yml of the 2019 solution: compared, and where searches start, too"
    add("--start", metavar="NAME", action="append", help=starts)
    add("--threshold", metavar="T", type=float, help="by hand, of the blended probability")
    limits = "labels of a picture (1..10) and of label groups (culture=0..3,tag=1..8), or: fit"
    add("--limits", metavar="RANGES", help=limits)
    scales = ("probability", "log-odds")
    add("--average", choices=scales, help="what is averaged; default: the better one")
    level2 = (
        "models over the members' predictions, the best is taken if it wins: logistic, linear, ... or all"
    )
    add("--level2", metavar="A,B", help=level2)
    add("--address", help="fit on the Ray there: auto, HOST:PORT, or local to start one")
    add("--json", action="store_true", help="everything as JSON instead of the table")
    written = "write the members as the 2019 solution's files, too"
    add("--write-2019", metavar="DIR", type=user_path, help=written)
    add("--folds", metavar="FOLDS.npy", type=user_path, help="with the 2019 solution's files")
    add("--labels", metavar="TRAIN.csv", type=user_path, help="with the 2019 solution's files")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is imported."""
    if args.files:
        if len(args.files) < 2 or args.folds is None or args.labels is None:
            raise ConfigError(
                "the 2019 solution's files need a name first, and their folds and labels: "
                "blend.py NAME level1_train_*_f0_*.npy --folds folds.npy --labels train.csv"
            )
        of_runs = "name data source members member seconds images bytes out cache views write_2019"
        for option in of_runs.split():
            if getattr(args, option) is not None:
                option = option.replace("source", "from").replace("_", "-")
                raise ConfigError(f"--{option} goes with a run, not with the 2019 solution's files")
        for option, value in (("level2", args.level2), ("average", args.average), ("decoder", args.decoder)):
            if value not in (None, "probability", "threshold"):
                raise ConfigError(
                    f"--{option} {value} needs probabilities; of the 2019 solution's files thresholds are subtracted"
                )
    elif args.folds is not None or args.labels is not None:
        raise ConfigError("--folds and --labels go with the 2019 solution's files: name these, too")
    refuse_pooling_alone(args.views, args.pool_views)
    if args.files and args.threshold is not None:
        raise ConfigError(
            "--threshold needs probabilities; of the 2019 solution's files thresholds are subtracted"
        )
    if args.threshold is not None and args.decoder not in (None, "threshold"):
        raise ConfigError(
            f"--threshold is of the decoder threshold, not of {args.decoder}: give one of the two"
        )
    if args.weights is not None:
        of_search = {"method": args.method, "seconds": args.seconds, "bytes": args.bytes}
        of_search |= {"max-members": args.max_members, "min-weight": args.min_weight or None}
        for option, value in of_search.items():
            if value is not None:
                raise ConfigError(f"--{option} is for weights that are fitted: --weights gives them by hand")
    if args.images is not None and args.seconds is None:
        raise ConfigError("--images counts the pictures that --seconds is for: give both")
    if args.images is not None and not 1 <= args.images <= MOST_IMAGES:
        raise ConfigError(f"--images must be in 1..{MOST_IMAGES}, got {str(args.images)[:40]}")
    for name in (*([args.out] if args.out is not None else []), *args.files[:1]):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise ConfigError(
                f"an ensemble's name takes letters, digits, '.', '_', '+' and '-', got {name!r}"
            )


def _weights(text: str) -> dict[str, float]:
    """a=0.3,b=0.7 as weights by name."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            weight = float(number)
        except ValueError:
            equals = ""
        if not equals or not name or name in found:
            raise ConfigError(f"--weights takes each member once with its weight, a=0.3,b=0.7, got {part!r}")
        found[name] = weight
    return found


def _names(text: str, option: str) -> list[str]:
    """a,b as names, each once."""
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"--{option} takes names separated by commas, each once, got {text!r}")
    return names


@contextlib.contextmanager
def _runner(address: str | None) -> Iterator["Runner"]:
    """Where the fits run: in this process, or on a Ray."""
    if address is None:
        from imet_ray.blending.fit_jobs import solve_here

        yield solve_here
        return
    from imet_ray.cluster.session import ray_session
    from imet_ray.search_space import Resources

    with ray_session(Resources(), address=None if address == "local" else address):
        from imet_ray.cluster.tasks import solve_on_ray

        yield solve_on_ray


def start() -> NoReturn:
    """Run as a process of its own."""
    keep_docstrings()
    sys.exit(main())
