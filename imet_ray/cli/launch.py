"""imet_ray's command line: one flag per stage. Parsing and printing only; the work is in `imet_ray`.

python launch.py --sweep                         search, train, predict, blend, submit; again: continue
python launch.py --train --variant V --fold K    one trial, without a sweep
python launch.py --find-lr --variant V           its learning rate: a ramp, a curve, a suggestion
python launch.py --oof                           out-of-fold predictions of the newest run
python launch.py --predict ENSEMBLE              test predictions and the submission file
python launch.py --export ENSEMBLE DIR           a folder that tags without the run; --onnx, --hub: for other tools
python launch.py --tag PATH... --with ENSEMBLE   tags for new pictures: a table, or sidecars beside them
python launch.py --status                        how far the newest run is; --serve: as a page
python launch.py --tensorboard                   the newest run's trials for TensorBoard; --serve: and look
python launch.py --mlflow                        log them to $MLFLOW_TRACKING_URI, or to a file of the run
python launch.py --optuna-dashboard              print the command that shows the studies in a browser
python launch.py --serve-tags ENSEMBLE           a server and a page that tag pictures which people send
python launch.py --show-augmentations VARIANT    a page: what training makes of ten pictures
python launch.py --check-data DIR                what is wrong with a data directory; --report: as a page
"""

import argparse
import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from imet_ray.command_line import Parser, exit_code, given_settings, positive, program, refuse_pooling_alone
from imet_ray.errors import ConfigError
from imet_ray.reporting.exports import EXPORTERS
from imet_ray.startup import heavy_imports, keep_docstrings
from imet_ray.units import duration, space_path, user_path

if TYPE_CHECKING:
    from imet_ray.commands.plan import Request
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import Runs

PORTS = {"status": 8266, "optuna-dashboard": 8080}  # if --serve names none
TAGS_PORT = 8268
TOOL_PORT = 6006  # of another tool's own server
OWN_PORT = -1  # --serve without a port
ALWAYS = {"runs", "cache"}
ON_RAY = ("name", "data", "from", "address", "concurrency")
BEGINS = ("space", "data", "from", "negatives", "name", "folds", "epochs", "fresh", "extend", "limit")
SPELLED = {"source": "from", "ensemble": "with"}  # options whose names Python keeps for itself
NAMED = (
    "predict",
    "export",
    "tag",
    "serve_tags",
    "show_augmentations",
    "check_data",
)  # stages with arguments
OPTIONS = {  # which options each stage reads; any other is refused
    "sweep": {
        *BEGINS,
        "address",
        "concurrency",
        "trials_per_variant",
        "time_budget",
        "studies",
        "replace",
        "set",
    },
    "train": {*BEGINS, "variant", "fold", "set"},
    "find-lr": {"space", "data", "from", "negatives", "name", "folds", "limit", "variant", "fold", "out"},
    "oof": {*ON_RAY, "views", "pool_views"},
    "predict": {*ON_RAY, "out", "member", "views", "pool_views"},
    "export": {"name", "data", "from", "onnx", "hub"},
    "tag": {"name", "address", "with", "out", "top", "min_probability", "prefix", "views", "pool_views"},
    "status": {"name", "serve"},
    "optuna-dashboard": {"name", "serve", "studies"},
    "serve-tags": {"name", "port", "host", "token", "replicas", "views", "pool_views"},
    "show-augmentations": {"space", "data", "from", "negatives", "set", "out"},
    "check-data": {"negatives", "report", "space"},
}


def main(argv: list[str] | None = None) -> int:
    """Run one stage; 0 when it did what was asked."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return exit_code(lambda: _run(_parse(argv)), "the same command continues")


def _run(args: argparse.Namespace) -> int:
    named = (stage for stage in NAMED if getattr(args, stage) is not None)
    stage = args.stage or next(named).replace("_", "-")
    _refuse_strangers(args, stage)
    refuse_pooling_alone(args.views, args.pool_views)
    settings = given_settings(args.set or [])
    budget = duration(args.time_budget, "--time-budget") if args.time_budget is not None else None
    if stage in PORTS or stage in EXPORTERS:
        return _look(stage, args)
    with heavy_imports():  # not for a wrong flag
        from imet_ray.commands.plan import make_plan
        from imet_ray.commands.setup import reopen
        from imet_ray.storage.run_directory import Cache
        from imet_ray.storage.runs import runs_at

    cache = Cache.at(args.cache)
    runs = runs_at(args.runs, cache)
    if stage == "export":
        return _export(args, runs, cache)
    if stage == "tag":
        return _tag(args, runs)
    if stage == "serve-tags":
        return _serve_tags(args, runs)
    if stage == "check-data":
        return _check_data(args, runs, cache)
    if stage in ("sweep", "train", "find-lr", "show-augmentations"):
        request = _request(args, stage, settings, runs, cache)
    if stage == "show-augmentations":
        from imet_ray.commands.augmentations import show_augmentations

        return show_augmentations(request, args.show_augmentations, settings, args.out)
    if stage in ("sweep", "train", "find-lr"):
        plan = make_plan(request)
    if stage == "train":
        from imet_ray.commands.train import train

        return train(plan, args.variant, args.fold, settings)
    if stage == "find-lr":
        from imet_ray.commands.find_lr import find_lr

        return find_lr(plan, args.variant, args.fold, args.out)
    ray = {"address": args.address, "concurrency": args.concurrency}
    from imet_ray.cluster.session import prepare_environment

    prepare_environment()
    from imet_ray.commands import sweep as cluster_stages
    from imet_ray.prediction.view_sets import ViewSet

    if stage == "sweep":
        replace = args.replace is not None
        return cluster_stages.sweep(plan, budget_s=budget, studies=args.studies, replace=replace, **ray)
    views = ViewSet.of(args.views.split(","), args.pool_views) if args.views is not None else None
    run = reopen(runs, args.name, cache, at=args.data, source=args.source)
    if stage == "oof":
        return cluster_stages.oof(run, views=views, **ray)
    return cluster_stages.predict(
        run, args.predict, members=args.member or (), out=args.out, views=views, **ray
    )


def _request(
    args: argparse.Namespace, stage: str, settings: dict[str, Any], runs: "Runs", cache: "Cache"
) -> "Request":
    """What begins a run, or looks at what would begin."""
    from imet_ray.commands.plan import Request
    from imet_ray.space_file import settings_of_all

    of_all = settings_of_all(settings) if stage == "sweep" else {}
    options = {"trials_per_variant": args.trials_per_variant, "epochs": args.epochs}
    given = {key: value for key, value in options.items() if value is not None}
    if "epochs" in given and "epochs" in settings:
        raise ConfigError("--epochs and --set epochs name one setting: give one of them")
    return Request(
        space=args.space,
        data=args.data,
        source=args.source,
        negatives=args.negatives is not None,
        name=args.name,
        runs=runs,
        cache=cache,
        folds=args.folds,
        overrides=of_all | given,
        fresh=args.fresh is not None,
        extend=args.extend is not None,
        limit=args.limit,
    )


def _check_data(args: argparse.Namespace, runs: "Runs", cache: "Cache") -> int:
    """What is wrong with a data directory."""
    from imet_ray.commands.check_data import check_data

    negatives = args.negatives is not None
    return check_data(
        args.check_data, cache, negatives=negatives, page=args.report, space=args.space, runs=runs
    )


def _export(args: argparse.Namespace, runs: "Runs", cache: "Cache") -> int:
    """An ensemble as a folder."""
    ensemble, folder = args.export
    if "://" in folder:
        raise ConfigError(
            f"--export writes a folder on this machine, got {folder}: export, then copy it there"
        )
    from imet_ray.commands.export import ExportRequest, export

    return export(
        ExportRequest(
            ensemble,
            user_path(folder),
            name=args.name,
            runs=runs,
            cache=cache,
            data=args.data,
            source=args.source,
            onnx=args.onnx is not None,
            hub=args.hub is not None,
        )
    )


def _tag(args: argparse.Namespace, runs: "Runs") -> int:
    """Tags for new pictures."""
    from imet_ray.commands.tag import TagRequest, tag_pictures
    from imet_ray.prediction.tagger_files import with_run
    from imet_ray.prediction.view_sets import ViewSet
    from imet_ray.tagging.collection import Choice

    request = TagRequest(
        paths=args.tag,
        ensemble=with_run(args.ensemble, args.name),
        runs=runs,
        out=args.out,
        choice=Choice(args.top, args.min_probability),
        views=ViewSet.of(args.views.split(","), args.pool_views) if args.views is not None else None,
        prefix=args.prefix or "",
        address=args.address,
    )
    return tag_pictures(request)


def _serve_tags(args: argparse.Namespace, runs: "Runs") -> int:
    """The stage that serves an ensemble."""
    from imet_ray.cluster.own_ray import keep_to_loopback
    from imet_ray.cluster.session import prepare_environment

    prepare_environment()
    keep_to_loopback()
    from imet_ray.commands.serve import Listen, serve_tags
    from imet_ray.prediction.view_sets import ViewSet

    views = ViewSet.of(args.views.split(","), args.pool_views) if args.views is not None else None
    port = TAGS_PORT if args.port is None else args.port
    listen = Listen(port, args.host or Listen.host, args.token)
    return serve_tags(
        args.serve_tags, runs, run=args.name, listen=listen, replicas=args.replicas, views=views
    )


def _look(stage: str, args: argparse.Namespace) -> int:
    """The stages that only read a run's directory."""
    from imet_ray.commands import inspect
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import runs_at

    store = runs_at(args.runs, Cache.at(args.cache)).open(args.name)
    port = PORTS.get(stage, TOOL_PORT) if args.serve == OWN_PORT else args.serve
    if stage == "status":
        return inspect.status(store, port)
    if stage in EXPORTERS:
        return inspect.export(store, stage, port)
    return inspect.optuna_dashboard(store, args.studies, port)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=program("launch.py"),
        description="From a folder of labelled images to the best blended multi-label tagger.",
        epilog="Settings of variants, ranges and budgets stand in search_spaces/*.yml.",
        allow_abbrev=False,
    )
    stages = parser.add_mutually_exclusive_group(required=True)
    flags = {
        "sweep": "the main job, from search to submission",
        "train": "train one --variant on one --fold",
        "find-lr": "find the learning rate of one --variant",
        "oof": "out-of-fold predictions of a run",
        "status": "how far a run is, from its directory alone",
        **{tool: exporter.help for tool, exporter in EXPORTERS.items()},
        "optuna-dashboard": "how to look at a run's studies",
    }
    for stage, text in flags.items():
        stages.add_argument(f"--{stage}", dest="stage", action="store_const", const=stage, help=text)
    stages.add_argument("--predict", metavar="ENSEMBLE", help="test predictions and submission.csv")
    outlives = "a folder that tags new pictures without the run and its data"
    stages.add_argument("--export", nargs=2, metavar=("ENSEMBLE", "DIR"), help=outlives)
    tagged = "tags for new pictures: files, folders, globs, s3://..., or - for a list of paths on stdin"
    stages.add_argument("--tag", metavar="PATH", nargs="+", action="extend", help=tagged)
    served = "an HTTP interface and a page that tag pictures"
    stages.add_argument("--serve-tags", metavar="ENSEMBLE", help=served)
    shown = "a page: what training makes of ten pictures"
    stages.add_argument("--show-augmentations", metavar="VARIANT", help=shown)
    stages.add_argument("--check-data", metavar="DIR", type=user_path, help="report on a data directory")
    _add_options(parser)
    args = parser.parse_args(argv)
    if args.stage == "train" and (args.variant is None or args.fold is None):
        parser.error("--train needs --variant NAME and --fold K")
    if args.tag is not None and args.ensemble is None:
        parser.error("--tag needs --with ENSEMBLE")
    if args.stage == "find-lr" and args.variant is None:
        parser.error("--find-lr needs --variant NAME")
    return args


def _add_options(parser: Parser) -> None:
    data = (
        "demo, openclipart, a directory, s3://..., gs://... or az://...; default: the space's, or the run's"
    )
    parser.add_run("run directory; default: the space's name, or the newest run", data)
    add = parser.add_argument
    add("--space", metavar="FILE", type=space_path, help="default: search_spaces/<data>.yml, else own.yml")
    none = "pictures without labels have none of them; else they are refused"
    add("--negatives", action="store_true", default=None, help=none)
    add("--address", help="join this Ray (auto, or HOST:PORT) instead of starting one")
    add("--concurrency", metavar="N", type=positive, help="trials at once, at most")
    add("--trials-per-variant", metavar="N", type=positive)
    add("--folds", metavar="N|FILE", help="how many folds, or a folds.csv or .npy")
    first_look = "a first look: N training pictures, sampled by label, and N test pictures"
    add("--limit", metavar="N", type=positive, help=first_look)
    add("--epochs", metavar="N", type=positive, help="of every variant")
    add("--time-budget", metavar="2h", help="no new trial after it; all else finishes")
    studies = "an Optuna storage, such as postgresql://...; default: the run's journal"
    add("--studies", metavar="URL", help=studies)
    add("--fresh", action="store_true", default=None, help="set an older run of that name aside")
    extend = "begin the run anew with more data: new pictures get folds, old ones keep theirs"
    add("--extend", action="store_true", default=None, help=extend)
    replaces = "the run's ensemble, also where it has members that the new one lacks"
    add("--replace", action="store_true", default=None, help=replaces)
    add("--variant", metavar="NAME")
    add("--fold", metavar="K", type=int)
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        help="one setting, of all variants of a sweep; repeatable",
    )
    add("--member", metavar="NAME=FILE", action="append", help="test predictions of another tool's member")
    parser.add_views("test-time views; default: each recipe's own, or the ensemble's")
    add("--serve", metavar="PORT", type=int, nargs="?", const=OWN_PORT, help="as a page, on 127.0.0.1")
    add("--port", metavar="N", type=int, help=f"of --serve-tags; default: {TAGS_PORT}")
    add("--host", help="the address that --serve-tags listens on; default: 127.0.0.1")
    add("--token", metavar="T|@FILE", help="what --serve-tags asks of all requests; for any other --host")
    add("--replicas", metavar="N", type=positive, help="of the models; default: one per GPU, or two on a CPU")
    add("--report", metavar="FILE", type=user_path, help="a page with figures and pictures of the data")
    onnx = "of --export: a file per checkpoint for ONNX Runtime, checked against torch"
    add("--onnx", action="store_true", default=None, help=onnx)
    hub = "of --export: a folder per checkpoint for timm and the Hugging Face hub"
    add("--hub", action="store_true", default=None, help=hub)
    goes = "where the submission or page goes as well; of --tag a .csv, .jsonl or .parquet, or xmp: sidecars"
    add("--out", metavar="FILE", type=user_path, help=goes)
    by = "an exported folder, or an ensemble's: its folder, RUN/ENSEMBLE, or one of the newest run"
    add("--with", dest="ensemble", metavar="ENSEMBLE", help=by)
    add(
        "--top",
        metavar="N",
        type=positive,
        help="the most probable labels, not those that the ensemble decides on",
    )
    add("--min-probability", metavar="P", type=float, help="labels of at least this calibrated probability")
    add("--prefix", metavar="P", help="stands before each label that --out xmp writes")


def _refuse_strangers(args: argparse.Namespace, stage: str) -> None:
    """An option that a stage would ignore is an error."""
    exporters = {
        tool: {"name", "serve"} if exporter.serve else {"name"} for tool, exporter in EXPORTERS.items()
    }
    options = OPTIONS | exporters
    allowed = options[stage] | ALWAYS | {"stage", *NAMED}
    given = {key for key, value in vars(args).items() if value is not None}
    for option in sorted({SPELLED.get(key, key) for key in given} - allowed):
        readers = " or ".join(f"--{other}" for other in options if option in options[other])
        raise ConfigError(f"--{option.replace('_', '-')} has no meaning for --{stage}: it is for {readers}")


def start() -> NoReturn:
    """Run as a process of its own."""
    keep_docstrings()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries, in the workers too
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    if isinstance(sys.stdout, io.TextIOWrapper):  # else it is closed
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows the job as it goes
    sys.exit(main())
