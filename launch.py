"""imet_ray's command line: one flag per stage. Parsing and printing only; the work is in `imet_ray`.

python launch.py --sweep                         search, train, predict, blend, submit; again: continue
python launch.py --train --variant V --fold K    one trial, without a sweep
python launch.py --oof                           out-of-fold predictions of the newest run
python launch.py --predict ENSEMBLE              test predictions and the submission file
python launch.py --status                        how far the newest run is; --serve: as a page
python launch.py --tensorboard                   the newest run's trials for TensorBoard; --serve: and look
python launch.py --mlflow                        log them to $MLFLOW_TRACKING_URI, or to a file of the run
python launch.py --optuna-dashboard              print the command that shows the studies in a browser
python launch.py --check-data DIR                what is wrong with a data directory
"""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from imet_ray.command_line import Parser, exit_code, positive
from imet_ray.errors import ConfigError
from imet_ray.reporting.exports import EXPORTERS
from imet_ray.startup import heavy_imports
from imet_ray.units import duration

STAGES = (
    *("sweep", "train", "oof", "predict"),
    *("status", "optuna_dashboard", "check_data"),
)
PORTS = {"status": 8266, "optuna_dashboard": 8080}  # if --serve names none
TOOL_PORT = 6006  # of another tool's own server
OWN_PORT = -1  # --serve without a port
ALWAYS = {"runs", "cache"}
OPTIONS = {  # which options each stage reads; any other is refused
    "sweep": {
        *("space", "data", "from", "name", "address", "concurrency", "trials_per_variant"),
        *("folds", "epochs", "time_budget", "fresh", "studies"),
    },
    "train": {
        "space",
        "data",
        "from",
        "name",
        "folds",
        "epochs",
        "variant",
        "fold",
        "set",
        "fresh",
    },
    "oof": {"name", "address", "concurrency"},
    "predict": {"name", "address", "concurrency", "out", "member"},
    "status": {"name", "serve"},
    "optuna_dashboard": {"name", "serve", "studies"},
    "check_data": set(),
}


def main(argv: list[str] | None = None) -> int:
    """Run one stage; 0 when it did what was asked."""
    args = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return exit_code(lambda: _run(args), "the same command continues")


def _run(args: argparse.Namespace) -> int:
    stage = next(name for name in (*STAGES, *_tools()) if getattr(args, name) not in (None, False))
    _refuse_strangers(args, stage)
    settings = _settings(args.set or [])
    budget = duration(args.time_budget, "--time-budget") if args.time_budget is not None else None
    if stage in ("status", "optuna_dashboard", *_tools()):
        return _look(stage, args)
    with heavy_imports():  # not for a wrong flag
        from imet_ray.commands import setup
        from imet_ray.storage.runs import runs_at

    if stage == "check_data":
        return setup.check_data(args.check_data)
    cache = setup.cache_at(args.cache)
    if stage in ("sweep", "train"):
        request = setup.Request(
            space=args.space,
            data=args.data,
            source=args.source,
            name=args.name,
            runs=runs_at(args.runs, cache),
            cache=cache,
            folds=args.folds,
            overrides={
                key: value
                for key in ("trials_per_variant", "epochs")
                if (value := getattr(args, key)) is not None
            },
            fresh=args.fresh,
        )
        plan = setup.plan(request)
    if stage == "train":
        from imet_ray.commands.train import train

        return train(plan, args.variant, args.fold, settings)
    ray = {"address": args.address, "concurrency": args.concurrency}
    from imet_ray.cluster.session import prepare_environment

    prepare_environment()
    from imet_ray.commands import sweep as cluster_stages

    if stage == "sweep":
        return cluster_stages.sweep(plan, budget_s=budget, studies=args.studies, **ray)
    run = setup.reopen(runs_at(args.runs, cache), args.name, cache)
    if stage == "oof":
        return cluster_stages.oof(run, **ray)
    return cluster_stages.predict(run, args.predict, members=args.member or (), out=args.out, **ray)


def _look(stage: str, args: argparse.Namespace) -> int:
    """The stages that only read a run's directory."""
    from imet_ray.commands import inspect
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import runs_at

    runs = runs_at(args.runs, Cache(args.cache.resolve()) if args.cache else Cache.default())
    store = runs.open(args.name)
    port = PORTS.get(stage, TOOL_PORT) if args.serve == OWN_PORT else args.serve
    if stage == "status":
        return inspect.status(store, port)
    if stage in _tools():
        return inspect.export(store, _tools()[stage], port)
    return inspect.optuna_dashboard(store, args.studies, port)


def _tools() -> dict[str, str]:
    """The exporters' names, by argparse's names for their flags."""
    return {name.replace("-", "_"): name for name in EXPORTERS}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="launch.py",
        description="From a folder of labelled images to the best blended multi-label tagger.",
        epilog="Settings of variants, ranges and budgets stand in search_spaces/*.yml.",
        allow_abbrev=False,
    )
    stage = parser.add_mutually_exclusive_group(required=True)
    stage.add_argument("--sweep", action="store_true", help="the main job, from search to submission")
    stage.add_argument("--train", action="store_true", help="train one --variant on one --fold")
    stage.add_argument("--oof", action="store_true", help="out-of-fold predictions of a run")
    stage.add_argument("--predict", metavar="ENSEMBLE", help="test predictions and submission.csv")
    stage.add_argument("--status", action="store_true", help="how far a run is, from its directory alone")
    for tool, exporter in EXPORTERS.items():
        stage.add_argument(f"--{tool}", action="store_true", help=exporter.help)
    stage.add_argument("--optuna-dashboard", action="store_true", help="how to look at a run's studies")
    stage.add_argument("--check-data", metavar="DIR", type=Path, help="report on a data directory")
    parser.add_argument(
        "--space",
        metavar="FILE",
        type=Path,
        help="default: search_spaces/<data>.yml, else demo.yml",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="demo, openclipart, a directory, s3://..., gs://... or az://...; default: the space's",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", type=Path, help="openclipart's unpacked packages"
    )
    parser.add_argument("--name", help="run directory; default: the space's name, or the newest run")
    parser.add_argument(
        "--runs",
        metavar="DIR",
        default="runs",
        help="where runs lie: a directory, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="generated data and packs; default: ~/.cache/imet_ray",
    )
    parser.add_argument("--address", help="join this Ray (auto, or HOST:PORT) instead of starting one")
    parser.add_argument("--concurrency", metavar="N", type=positive, help="trials at once, at most")
    parser.add_argument("--trials-per-variant", metavar="N", type=positive)
    parser.add_argument("--folds", metavar="N|FILE", help="how many folds, or a folds.csv")
    parser.add_argument("--epochs", metavar="N", type=positive, help="of every variant")
    parser.add_argument("--time-budget", metavar="2h", help="no new trial after it; all else finishes")
    parser.add_argument(
        "--studies",
        metavar="URL",
        help="an Optuna storage, such as postgresql://...; default: the run's journal",
    )
    parser.add_argument("--fresh", action="store_true", help="set an older run of that name aside")
    parser.add_argument("--variant", metavar="NAME")
    parser.add_argument("--fold", metavar="K", type=int)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", help="one hparam; repeatable")
    parser.add_argument(
        "--member", metavar="NAME=FILE", action="append", help="test predictions of another tool's member"
    )
    parser.add_argument(
        "--serve", metavar="PORT", type=int, nargs="?", const=OWN_PORT, help="as a page, on 127.0.0.1"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the submission goes as well")
    args = parser.parse_args(argv)
    if args.train and (args.variant is None or args.fold is None):
        parser.error("--train needs --variant NAME and --fold K")
    return args


def _refuse_strangers(args: argparse.Namespace, stage: str) -> None:
    """An option that a stage would ignore is an error."""
    given = {
        {"source": "from"}.get(key, key)
        for key, value in vars(args).items()
        if value is not None and value is not False and key not in (*STAGES, *_tools())
    }
    exporters = {
        key: {"name", "serve"} if EXPORTERS[name].serve else {"name"} for key, name in _tools().items()
    }
    options = OPTIONS | exporters
    for option in sorted(given - ALWAYS - options[stage]):
        readers = " or ".join(f"--{s.replace('_', '-')}" for s in options if option in options[s])
        raise ConfigError(
            f"--{option.replace('_', '-')} has no meaning for --{stage.replace('_', '-')}: "
            f"it is for {readers}"
        )


def _settings(pairs: list[str]) -> dict[str, Any]:
    """`dropout=0.3` as YAML would read the value."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE such as dropout=0.3, got {pair!r}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set takes KEY=VALUE such as dropout=0.3, got {pair!r}") from None
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(settings[key], str):
                settings[key] = float(settings[key])  # 1e-4: YAML 1.1 takes it for a word
    return settings


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries, in the workers too
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log file shows the job as it goes
    sys.exit(main())
