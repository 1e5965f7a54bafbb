"""The stages of the command line that run on Ray: the sweep to its end, out-of-fold pass, prediction.

Each prints what a person wants to read and returns the exit code.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from rich.console import Console

from imet_ray.blending.blend_run import RunToBlend, blend_run, refuse_smaller
from imet_ray.blending.external_members import parse_member, read_member
from imet_ray.blending.fit_jobs import Runner, solve_here
from imet_ray.blending.level1_2019 import is_level1, read_test_member
from imet_ray.blending.options import BlendOptions
from imet_ray.blending.result import BlendReport
from imet_ray.cluster.node_environment import code_bytes
from imet_ray.cluster.prometheus import exported
from imet_ray.cluster.session import Session, ray_session
from imet_ray.cluster.study_storage import open_storage
from imet_ray.cluster.sweep import SweepSummary, run_sweep
from imet_ray.cluster.tasks import predict_held_out, predict_test, solve_on_ray
from imet_ray.command_line import pasted
from imet_ray.commands.plan import Plan
from imet_ray.commands.setup import Run, pack, set_old_run_aside, start
from imet_ray.cores import usable_cores
from imet_ray.data.competition_files import sample_header, sample_in
from imet_ray.data.training_data import test_split
from imet_ray.errors import ConfigError, StoreError
from imet_ray.prediction.ensemble import Ensemble, blend_test, read_ensemble
from imet_ray.prediction.metrics import metric_named
from imet_ray.prediction.submission import write_submission
from imet_ray.prediction.view_sets import ViewSet, other_views
from imet_ray.reporting.report_page import write_report
from imet_ray.reporting.terminal_table import terminal_table
from imet_ray.search_space import SearchSpace
from imet_ray.specs import hparams_text
from imet_ray.storage.experiment import only_driver
from imet_ray.storage.files import write_arrays
from imet_ray.storage.results import Standing, failures, left_out, read_spec, standings
from imet_ray.storage.run_directory import TrialDirectory
from imet_ray.units import as_typed, clock

ENSEMBLE = "blend"  # the name of the ensemble that a sweep makes
METHODS = ("greedy", "line")  # that a sweep compares with uniform weights; `blend.py` compares all
WIDE = 140  # columns of the leaderboard in a file or a pipe


def sweep(
    plan: Plan,
    *,
    budget_s: float | None,
    address: str | None,
    concurrency: int | None,
    studies: str | None = None,
    replace: bool = False,
) -> int:
    """Everything from search to submission; 1 if no ensemble came out of it.

    Args:
        studies: URL of an Optuna storage; None: the run's own journal.
        replace: the run's ensemble, also where it has members that the new one lacks.
    """
    options = blend_options(plan.space, replace=replace)
    began = time.monotonic()
    deadline = time.time() + budget_s if budget_s is not None else None
    set_old_run_aside(plan)
    if studies is not None:
        open_storage(studies).engine.dispose()
    with only_driver(plan.store):
        names = [variant.name for variant in plan.space.variants]
        refuse_smaller(plan.store.ensemble(ENSEMBLE), names, options)  # not after a night
        run = start(plan)  # what is wrong with it is refused before Ray starts
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(_on_ray(run, address, concurrency))
            print(_describe(session))
            pack(run)  # while Ray's workers start
            stack.enter_context(exported(run.store))
            summary = run_sweep(
                run.experiment.space, run.store, run.data, session, deadline=deadline, studies_url=studies
            )
            if summary.trials:
                print(_describe_summary(summary))
            found = print_leaderboard(run)
            for line in summary.in_vain:
                print(line)
            whole = [standing for standing in found if standing.whole]
            if not whole:
                return _nothing_to_blend(summary.out_of_time)
            if summary.out_of_time and len(whole) < len(plan.space.variants):
                print("the time budget ended the search: the same command continues with the other variants")
            _predict_held_out(run, whole, session)
            runner = solve_here if address is None else solve_on_ray
            print(f"\n{_blend(run, found, options, runner).text()}\n")
            _predict_test(run, ENSEMBLE, session)
    print(f"\nfinished in {clock(time.monotonic() - began)}. Next:")
    _, name, *runs = plan.store.options
    tag = ("--tag", "PICTURES", "--with", f"{name}/{ENSEMBLE}", *runs)
    print(f"  look at       {pasted(as_typed(run.store.ensemble(ENSEMBLE).report))}")
    print(f"  tag pictures  {pasted('python', 'launch.py', *tag)}")
    print(f"  blend again   {pasted('python', 'blend.py', *plan.store.options)}")
    return 0


def _blend(run: Run, found: Sequence[Standing], options: BlendOptions, runner: Runner) -> BlendReport:
    """Blend the variants that are trained on all folds."""
    space = run.experiment.space
    to_blend = RunToBlend(
        run.store,
        run.data,
        run.catalog,
        space,
        [standing for standing in found if standing.whole],
        left_out=left_out(found, [variant.name for variant in space.variants]),
    )
    return blend_run(to_blend, ENSEMBLE, options, runner=runner)


def blend_options(space: SearchSpace, *, replace: bool) -> BlendOptions:
    """How a sweep blends; arguments as of `sweep`."""
    return BlendOptions(methods=METHODS, level2=space.level2, replace=replace)


def oof(run: Run, *, address: str | None, concurrency: int | None, views: ViewSet | None = None) -> int:
    """Out-of-fold predictions of all variants that are trained on all folds.

    Args:
        views: None: each recipe's own.
    """
    whole = [standing for standing in print_leaderboard(run) if standing.whole]
    if not whole:
        raise StoreError(f"no variant in {run.store.root} is trained on all folds: sweep first")
    with _driven(run, address, concurrency) as session:
        _predict_held_out(run, whole, session, views)
    if views is not None:
        print(f"next: {pasted('python', 'blend.py', *run.store.options, *views.options)}")
    return 0


def predict(
    run: Run,
    name: str,
    *,
    members: Sequence[str],
    out: Path | None,
    address: str | None,
    concurrency: int | None,
    views: ViewSet | None = None,
) -> int:
    """Test predictions of an ensemble and its submission file.

    Args:
        members: `NAME=FILE` of the test predictions of members that another tool predicts.
        views: None: those that the ensemble was fitted on.
    """
    if not run.catalog.test.ids:
        raise ConfigError(f"{run.catalog.root} has no test split: nothing to predict")
    given = _external_predictions(run, read_ensemble(run.store.ensemble(name)), members)
    with _driven(run, address, concurrency) as session:
        _predict_test(run, name, session, out=out, external=given, views=views)
    return 0


@contextlib.contextmanager
def _driven(run: Run, address: str | None, concurrency: int | None) -> Iterator[Session]:
    """A Ray for a run that no other process drives."""
    with only_driver(run.store), _on_ray(run, address, concurrency) as session:
        yield session


def _on_ray(run: Run, address: str | None, concurrency: int | None) -> AbstractContextManager[Session]:
    resources, name = run.experiment.space.resources, run.store.root.name
    return ray_session(resources, address=address, concurrency=concurrency, run=name)


def _nothing_to_blend(out_of_time: bool) -> int:
    if out_of_time:
        print("no variant is trained on all folds yet: the time budget ended the search, so no blend")
        print("next: the same command continues, with a longer --time-budget or none")
        return 0
    print("every variant failed on some fold, for the reasons above: no blend")
    print("next: correct the space, then the same command with --fresh")
    return 1


def _external_predictions(run: Run, ensemble: Ensemble, members: Sequence[str]) -> dict[str, np.ndarray]:
    """The test probabilities of the ensemble's members that have no checkpoints here."""
    needed = {member.variant for member in ensemble.needed if not member.trials}
    given = [parse_member(text) for text in members]
    files = dict(given)
    if len(files) < len(given):
        raise ConfigError("--member names one member twice: give one file for each")
    for name in files.keys() - needed:
        raise ConfigError(f"--member {name}: the ensemble {ensemble.name} has no such member of another tool")
    for name in needed - files.keys():
        raise ConfigError(
            f"member {name} comes from another tool: give its test predictions with --member {name}=test.npz"
        )
    ids, n_labels = run.catalog.test.ids, len(run.data.label_ids)
    return {
        name: read_test_member(name, path, len(ids), n_labels)
        if is_level1(path)
        else read_member(name, path, ids, n_labels, whose="the test set").probs
        for name, path in files.items()
    }


def _predict_held_out(
    run: Run, whole: Sequence[Standing], session: Session, views: ViewSet | None = None
) -> None:
    trials = [standing.trials[fold] for standing in whole for fold in sorted(standing.trials)]
    began = time.monotonic()
    done = predict_held_out(trials, run.store, run.data, session, views)
    print(
        f"out-of-fold: {done} checkpoints predicted in {clock(time.monotonic() - began)}, "
        f"{len(trials) - done} were there; each of {len(run.data.split.ids):,} pictures once per variant"
    )


def _predict_test(
    run: Run,
    name: str,
    session: Session,
    *,
    out: Path | None = None,
    external: Mapping[str, np.ndarray] | None = None,
    views: ViewSet | None = None,
) -> None:
    """Predict the test split, and write the ensemble's submission and report.

    Args:
        views: where they are not the ensemble's, the submission has a name of its own, and the report stays.
    """
    place = run.store.ensemble(name)
    ensemble = read_ensemble(place)
    catalog = run.catalog
    if not catalog.test.ids:
        print("the data have no test split: no submission")
        _report(run, ensemble, None)
        return
    split = test_split(catalog, run.cache, run.store.packs)
    trials = [run.store.trial(trial_id) for member in ensemble.needed for trial_id in member.trials]
    for short_side in sorted({read_spec(trial).pack_short_side for trial in trials}):
        split.share(short_side, workers=usable_cores())
    other = other_than_fitted(ensemble, trials, views)
    views = other or ensemble.views
    test, submission = place.test, place.submission
    if other is not None:
        test, submission = place.test_of(other.tag), place.submission_of(other.tag)
        fitted = ensemble.views or "each recipe's own"
        print(
            f"views {other}: weights and decoder of {name} were fitted on other views, {fitted}; its score is not that "
            f"of this submission: blend.py {pasted(*other.options)} fits them anew"
        )
    began = time.monotonic()
    done = predict_test(trials, run.store, split, run.data.label_ids, session, views)
    probs = blend_test(ensemble, run.store, split.ids, external, views)
    write_arrays(test, place.files, ids=np.array(split.ids), probs=probs.astype(np.float16))
    decoded = ensemble.decoder.decode(probs)
    header = sample_header(sample_in(catalog.root))
    write_submission(submission, split.ids, run.data.label_ids, decoded, place.files, header=header)
    if out:
        write_submission(out, split.ids, run.data.label_ids, decoded, header=header)
    print(
        f"test: {done} checkpoints predicted in {clock(time.monotonic() - began)}, "
        f"{len(trials) - done} were there; submission in {as_typed(out or submission)}"
    )
    if run.experiment.limit is not None:
        print(
            f"        it has the {len(split.ids):,} test pictures of --limit {run.experiment.limit}, no more"
        )
    _print_test_score(run, decoded)
    if other is None:
        _report(run, ensemble, probs)


def _print_test_score(run: Run, decoded: np.ndarray) -> None:
    """The score of the test pictures that have labels, if any have."""
    catalog = run.catalog
    if catalog.test_labels is None:
        return
    metric = metric_named(run.experiment.space.metric)
    score = metric.score(decoded[catalog.test_labelled], catalog.test_labels[catalog.test_labelled])
    n, labelled = len(catalog.test.ids), int(catalog.test_labelled.sum())
    of = "this dataset has test labels" if labelled == n else f"{labelled:,} of {n:,} pictures have labels"
    print(f"test {metric.title} {score:.4f} ({of})")


def other_than_fitted(
    ensemble: Ensemble, trials: Sequence[TrialDirectory], views: ViewSet | None
) -> ViewSet | None:
    """The views that are asked for, if they are not those that the ensemble was fitted on; else None."""
    if views is None or views == ensemble.views:
        return None
    if ensemble.views is None and all(other_views(trial, views) is None for trial in trials):
        return None
    return views


def _report(run: Run, ensemble: Ensemble, test_probs: np.ndarray | None) -> None:
    variants = [variant.name for variant in run.experiment.space.variants]
    place = run.store.ensemble(ensemble.name)
    found = standings(run.store, variants)
    write_report(place, ensemble, run.store, run.catalog, found, test_probs)
    print(f"report: {as_typed(place.report)}")


def print_leaderboard(run: Run) -> list[Standing]:
    """Print the best set of hparams of each variant, and which trials failed."""
    space = run.experiment.space
    found = standings(run.store, [variant.name for variant in space.variants])
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = WIDE
    metric = metric_named(space.metric)
    expectation = [f"expected-{metric.title}"] if metric.expects else []
    columns = ["variant", "best hparams", f"{metric.title} per fold", "mean", "spread", *expectation]
    rows = []
    for standing in found:
        folds = " ".join(f"{standing.score[fold]:.4f}" for fold in sorted(standing.score))
        missing = standing.n_folds - len(standing.score)
        expected = [score for score in standing.expected_score.values() if score is not None]
        row = [standing.variant, hparams_text(standing.hparams)]
        row.append(folds + (f" ({missing} missing)" if missing else ""))
        row += [f"{figure:.4f}" for figure in (standing.mean, standing.spread)]
        if expectation:
            row.append(f"{sum(expected) / len(expected):.4f}" if expected else "")
        rows.append(row)
    if found:
        console.print(terminal_table(columns, rows, width=console.width, texts=2, title="leaderboard"))
    for spec, reason in failures(run.store):
        line = f"failed: {spec.variant.name} fold {spec.fold} {spec.told_hparams}: {reason}"
        console.print(line, highlight=False)
    return found


def _describe_summary(summary: SweepSummary) -> str:
    starting = sum(summary.starts_s)
    without, each = summary.overhead_s - starting / summary.trials, starting / max(1, len(summary.starts_s))
    return (
        f"\n{summary.trials} trials in {clock(summary.wall_s)}; overhead {without:.2f} s per trial (time that its slot "
        f"was held, less training), {summary.overhead_s:.2f} s with the start of the workers, {each:.0f} s each"
    )


def _describe(session: Session) -> str:
    gpus = f" and {session.gpus_per_trial:g} GPUs" if session.gpus_per_trial else ""
    each = "each" if session.workers_per_trial == 1 else f"each of its {session.workers_per_trial} workers"
    where = f"; dashboard {session.dashboard}" if session.dashboard else ""
    on = ""
    if session.joined:
        on = f"; {session.nodes} nodes, of one version; at most {code_bytes() / 1e6:.1f} MB of code sent to each"
    return f"ray     {session.slots} trials at once, {session.cpus_per_trial:g} CPUs{gpus} {each}{on}{where}"
