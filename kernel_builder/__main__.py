"""Build a kernel, or encrypt and decrypt files.

python -m kernel_builder ENSEMBLE --out DIR --user NAME      the kernel and its datasets, for the kaggle client
python -m kernel_builder ENSEMBLE --out DIR --encrypt --key file
python -m kernel_builder ENSEMBLE --out DIR --dry-run DATA --images 38801     run it here; would stage 2 fit?
python -m kernel_builder --train VARIANT --fold K --out DIR  a kernel that trains one trial of a run
python -m kernel_builder --take DIR                          what it trained, into the run
python -m kernel_builder keygen                              a random key, on standard output
python -m kernel_builder encrypt FILE                        FILE.encrypted, with the key in $IMET_RAY_KEY
python -m kernel_builder decrypt FILE.encrypted              FILE
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imet_ray.command_line import Parser, exit_code, given_settings, pasted, positive
from imet_ray.errors import ConfigError
from imet_ray.units import byte_size, duration, user_path

if TYPE_CHECKING:  # it needs packages, and who lacks them is told so
    from imet_ray.storage.encryption import Secret
    from kernel_builder.build import BuildOptions, Built

ENDING = ".encrypted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of these commands; its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(args), "run it again")


def _run(args: list[str]) -> int:
    from imet_ray.storage.encryption import Secret

    if args[:1] == ["keygen"]:
        Parser(prog="python -m kernel_builder keygen").parse_args(args[1:])
        print(Secret.new().text)
        return 0
    if args[:1] in (["encrypt"], ["decrypt"]):
        return _crypt(args[0], args[1:])
    options = {arg.partition("=")[0] for arg in args}
    if "--take" in options:
        return _take(args)
    if "--train" in options:
        return _build_training(_parse_training(args))
    return _build(_parse(args))


def _crypt(what: str, argv: Sequence[str]) -> int:
    from imet_ray.storage.encryption import decrypt_file, encrypt_file

    parser = Parser(prog=f"python -m kernel_builder {what}")
    parser.add_argument("file", type=user_path)
    parser.add_argument("--out", metavar="FILE", type=user_path)
    args = parser.parse_args(argv)
    secret = _secret_of_environment()
    if args.file.is_dir():
        raise ConfigError(f"{args.file} is a folder: name a file")
    if what == "encrypt":
        target = args.out or args.file.with_name(args.file.name + ENDING)
    elif args.out is None and args.file.suffix != ENDING:
        raise ConfigError(f"{args.file} does not end in {ENDING}: say with --out where the plain file goes")
    else:
        target = args.out or args.file.with_suffix("")
    if target.exists():
        raise ConfigError(f"{target} is there already: delete it, or name another with --out")
    (encrypt_file if what == "encrypt" else decrypt_file)(args.file, target, secret)
    print(target)
    return 0


def _secret_of_environment() -> "Secret":
    from imet_ray.storage.encryption import KEY_VARIABLE, PASSPHRASE_VARIABLE, Secret

    secret = Secret.of_environment()
    if secret is None:
        raise ConfigError(
            f"no key: put one of `python -m kernel_builder keygen` into {KEY_VARIABLE}, or a passphrase into "
            f"{PASSPHRASE_VARIABLE}"
        )
    return secret


def _build(args: argparse.Namespace) -> int:
    from imet_ray.commands.setup import reopen
    from imet_ray.prediction.ensemble import read_ensemble
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import runs_at
    from kernel_builder.build import build
    from kernel_builder.dry_run import dry_run, refuse_data
    from kernel_builder.runtime.exit_status import SOMETHING_WRONG, STOPPED

    secret = _secret(args)
    if args.dry_run is not None:
        refuse_data(args.dry_run)
    cache = Cache.at(args.cache)
    run = reopen(runs_at(args.runs, cache), args.name, cache, at=args.data, source=args.source)
    ensemble = read_ensemble(run.store.ensemble(args.ensemble))
    title = f"imet-ray {run.store.root.name} {ensemble.name}"
    built = build(run, ensemble, args.out, _options(args, title, args.dtype, secret))
    if built.loss is not None:
        print(f"weights as {built.dtype}: {built.loss}")
        if not built.loss.sure:
            measured = run.store.files.address(run.store.ensemble(ensemble.name).half)
            print(f"         choose with --dtype, or delete {measured}: the next build measures again")
    _print_files(built)
    code = 0
    if args.dry_run is not None:
        try:
            code = dry_run(
                built.kernel, args.out / "datasets", args.dry_run, args.out / "dry-run", args.images
            )
        except KeyboardInterrupt:
            print(f"interrupted: the kernel in {args.out} is whole; only its dry run is not", file=sys.stderr)
            return 130
    if code in (0, SOMETHING_WRONG + STOPPED):  # as it stands, or without the checkpoints that do not fit
        _print_next(built, args.competition)
    return code


def _options(args: argparse.Namespace, title: str, dtype: str, secret: "Secret | None") -> "BuildOptions":
    from kernel_builder.build import BuildOptions
    from kernel_builder.kaggle import user_of

    return BuildOptions(
        user=user_of(args.user),
        title=args.title or title,
        dtype=dtype,
        secret=secret,
        key=args.key or "embed",
        max_dataset_bytes=byte_size(args.max_dataset_bytes, "--max-dataset-bytes"),
        limit=duration(args.limit, "--limit"),
        reserve=duration(args.reserve, "--reserve"),
        competition=args.competition,
        accelerator=args.accelerator,
    )


def _print_files(built: "Built") -> None:
    print(f"{built.kernel}  {built.kernel.stat().st_size / 1000:,.0f} kB")
    for folder in built.folders:
        print(f"{folder}  {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:,.1f} MB", flush=True)


def _print_next(built: "Built", competition: str | None) -> None:
    uploads = " && ".join(pasted("kaggle", "datasets", "create", "-p", folder) for folder in built.folders)
    push = pasted("kaggle", "kernels", "push", "-p", built.kernel.parent)
    if uploads:
        print(f"next     {uploads}")
        print(f"         when `kaggle datasets status` says ready: {push}")
    else:
        print(f"next     {push}")
    if competition is None:
        print(
            "         without --competition SLUG the kernel has no pictures on Kaggle: attach their dataset there"
        )


def _build_training(args: argparse.Namespace) -> int:
    from imet_ray.commands.setup import reopen
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import runs_at
    from kernel_builder.build_training import build_training, chosen_trial

    settings = given_settings(args.set or [])
    secret = _secret(args)
    cache = Cache.at(args.cache)
    run = reopen(runs_at(args.runs, cache), args.name, cache, at=args.data, source=args.source)
    spec, source = chosen_trial(run, args.train, args.fold, settings)
    print(f"trial    {spec.title}, hparams: {source}")
    title = f"imet-ray {run.store.root.name} {spec.variant.name} f{spec.fold}"
    options = _options(args, title, "float32", secret)
    built = build_training(run, spec, args.out, options)
    _print_files(built)
    _print_next(built, args.competition)
    fetch = pasted("kaggle", "kernels", "output", options.kernel_metadata()["id"], "-p", "DIR")
    taken = pasted("python", "-m", "kernel_builder", "--take", "DIR", *run.store.options)
    print(f"then     {fetch} && {taken}")
    return 0


def _take(argv: Sequence[str]) -> int:
    from imet_ray.commands.setup import reopen
    from imet_ray.storage.run_directory import Cache
    from imet_ray.storage.runs import runs_at
    from kernel_builder.take import take

    parser = Parser(prog="python -m kernel_builder --take", allow_abbrev=False)
    parser.add_run()
    parser.add_argument("--take", metavar="DIR", type=user_path, required=True, help="a kernel's output")
    args = parser.parse_args(argv)
    cache = Cache.at(args.cache)
    run = reopen(runs_at(args.runs, cache), args.name, cache, at=args.data, source=args.source)
    for line in take(run, args.take):
        print(line)
    return 0


def _secret(args: argparse.Namespace) -> "Secret | None":
    """What the weights are encrypted with; None: they stay plain."""
    from imet_ray.storage.encryption import Secret

    if not args.encrypt:
        return None
    if args.key == "env":
        return _secret_of_environment()
    given = Secret.of_environment()
    return given if given is not None and given.key else Secret.new()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m kernel_builder",
        description="Build the kernel of an ensemble.",
        epilog="Also: --train VARIANT (a kernel that trains), --take DIR (what it trained, into the run), keygen, "
        "encrypt FILE, decrypt FILE. Add --help to one of these for its options.",
        allow_abbrev=False,
    )
    parser.add_run()
    add = parser.add_argument
    add("ensemble", metavar="ENSEMBLE")
    _add_kernel(parser)
    dtypes = (
        "of the stored weights; auto: float16 if the measured score out of fold moves by less than 0.0005"
    )
    add("--dtype", choices=("auto", "float32", "float16"), default="auto", help=dtypes)
    add("--dry-run", metavar="DATA", type=user_path, help="run it at once on a data directory")
    images = "predict the time of a run with so many pictures, such as stage 2"
    add("--images", metavar="N", type=positive, help=images)
    args = parser.parse_args(argv)
    if args.images is not None and args.dry_run is None:
        raise ConfigError("--images predicts a run's time from a dry run: give --dry-run DATA, too")
    _refuse_key(args)
    return args


def _parse_training(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m kernel_builder --train", description="Build a kernel that trains.", allow_abbrev=False
    )
    parser.add_run()
    add = parser.add_argument
    add("--train", metavar="VARIANT", required=True, help="one of the run's variants")
    add("--fold", metavar="K", type=int, required=True)
    one = "one hparam, in place of the variant's own; default: the best set that the run has trained, else its own"
    add("--set", metavar="KEY=VALUE", action="append", help=one)
    _add_kernel(parser)
    args = parser.parse_args(argv)
    _refuse_key(args)
    return args


def _refuse_key(args: argparse.Namespace) -> None:
    if args.key is not None and not args.encrypt:
        raise ConfigError("--key says how the key reaches the kernel: give --encrypt, too")


def _add_kernel(parser: Parser) -> None:
    """Options of every kernel."""
    from imet_ray.storage.encryption import KEY_VARIABLE, PASSPHRASE_VARIABLE

    add = parser.add_argument
    add("--out", metavar="DIR", type=user_path, required=True, help="an empty folder, or a new one")
    add("--user", help="on Kaggle; default: the one in its client's settings")
    add("--title", help="of the kernel and its datasets")
    add("--competition", metavar="SLUG", help="whose data the kernel reads")
    add("--accelerator", metavar="NAME", default="NvidiaTeslaT4", help="one of Kaggle's GPUs")
    add("--encrypt", action="store_true", help="encrypt the weights")
    keys = (
        f"embed, the default: in the kernel; file: in a dataset of its own; env: in ${KEY_VARIABLE} or "
        f"${PASSPHRASE_VARIABLE}, for machines that are not Kaggle's, where no variable reaches a kernel"
    )
    add("--key", choices=("embed", "env", "file"), help=keys)
    add("--max-dataset-bytes", metavar="20GB", default="20GB")
    add("--limit", "--time-limit", dest="limit", metavar="9h", default="9h")
    add("--reserve", metavar="10m", default="10m", help="of the limit, kept back")


if __name__ == "__main__":
    sys.exit(main())
