"""Blend a run's variants: fit weights on their out-of-fold predictions and freeze the ensemble.

python blend.py                                 the newest run, all variants that are trained on all folds
python blend.py --name RUN --members a,b --out NAME
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

from imet_ray.errors import ConfigError, ImetError, unknown_name


def main(argv: list[str] | None = None) -> int:
    """Blend, print the report; 0 when the ensemble is written."""
    parser = _Parser(prog="blend.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--name", help="the run; default: the newest one")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"))
    parser.add_argument("--cache", metavar="DIR", type=Path, help="default: ~/.cache/imet_ray")
    parser.add_argument("--members", metavar="A,B", help="variants to blend; default: all")
    parser.add_argument("--out", metavar="NAME", default="blend", help="the ensemble's name")
    args = parser.parse_args(argv)
    try:
        return blend(args)
    except ImetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def blend(args: argparse.Namespace) -> int:
    """What the command line asks for."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", args.out):
        raise ConfigError(f"--out takes letters, digits, '.', '_', '+' and '-', got {args.out!r}")
    from imet_ray.blending.run import blend_run
    from imet_ray.results import standings
    from imet_ray.stages import cache_at, reopen

    run = reopen(args.runs, args.name, cache_at(args.cache))
    variants = [variant.name for variant in run.experiment.space.variants]
    whole = {standing.variant: standing for standing in standings(run.store, variants) if standing.whole}
    if args.members:
        for name in args.members.split(","):
            if name not in whole:
                raise unknown_name("member", name, whole, "trained on all folds: ")
        whole = {name: whole[name] for name in args.members.split(",")}
    if not whole:
        raise ConfigError(f"no variant in {run.store.root} is trained on all folds: sweep first")
    report = blend_run(run.store, run.data, list(whole.values()), args.out, seed=run.experiment.space.seed)
    print(report.text())
    name = run.store.root.name
    print(f"\nnext: python launch.py --predict {args.out} --name {name}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}: see --help", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
