"""kill -9 of a sweep before and after each file that it puts in place, one after the other; then its end.

The sweep runs in one process, so that its writes come in one order. Kills of a whole Ray: test_sweep.py.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import killed_here
import pytest
from killed_here import Point
from processes import ready
from seen import Seen, look, refuse_lost_work, refuse_other_outcome

from imet_ray.storage.results import read_spec
from imet_ray.storage.run_directory import Cache, RunDirectory
from imet_ray.storage.runs import runs_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SPACE = """
n_folds: 2
trials_per_variant: {trials}
base: {{architecture: test_resnet, weights: none, image_size: 32, epochs: {epochs}, batch_size: 16, lr: 0.003}}
variants: [{{name: a}}]
search: {{dropout: {{low: 0.0, high: 0.5}}}}
"""
FAMILY = """
n_folds: 2
base: {architecture: test_resnet, weights: none, image_size: 32, epochs: 1, batch_size: 16, lr: 0.003}
variants: [{name: a}, {name: b, weights: {variant: a}}]
"""
KILLED, PATIENCE = -9, 120


@dataclass
class Story:
    """A sweep that nobody disturbs, and one in the same place that is killed again and again."""

    alone: RunDirectory
    points: list[Point]  # that it reached
    store: RunDirectory
    kills: Counter[Point]
    codes: list[int]
    printed: list[str]


def run(target: Callable[..., None], *args: object) -> int:
    """The exit code of a sweep in a process of its own."""
    process = ready(target, *args)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode


def tell(folder: Path, data: Path, space: str, chosen: Callable[[Point], bool]) -> Story:
    """Kill at each of the chosen points as often as an undisturbed sweep reaches it."""
    (folder / "space.yml").write_text(space)

    def argv(place: Path) -> list[str]:
        where = ["--runs", str(place / "runs"), "--cache", str(place / "cache"), "--name", "r"]
        return ["--space", str(folder / "space.yml"), "--data", str(data), *where]

    log, place = folder / "log", {name: folder / name for name in ("alone", "killed")}
    assert run(killed_here.sweep, argv(place["alone"]), place["alone"], log, Counter()) == 0
    reached = killed_here.points(log)
    left = Counter(filter(chosen, reached))
    story = Story(
        RunDirectory(place["alone"] / "runs" / "r"),
        reached,
        RunDirectory(place["killed"] / "runs" / "r"),
        Counter(),
        [KILLED],
        [],
    )
    seen = look(story.store)
    while story.codes[-1] == KILLED:
        story.codes.append(run(killed_here.sweep, argv(place["killed"]), place["killed"], log, +left))
        story.printed.append(log.with_suffix(".out").read_text())
        now = look(story.store)
        refuse_lost_work(seen, now)
        seen = now
        if story.codes[-1] == KILLED:
            point = killed_here.points(log)[-1]
            left[point] -= 1
            story.kills[point] += 1
    assert story.codes[-1] == 0, story.printed[-1]
    return story


def of_the_journal(point: Point) -> bool:
    return point[1].endswith(".journal")


@pytest.fixture(scope="module")
def story(tiny_root, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("writes")
    return tell(folder, tiny_root, SPACE.format(trials=1, epochs=2), lambda point: not of_the_journal(point))


def test_it_is_killed_beside_each_file_that_it_puts_in_place(story):
    names = {Path(where).name for _, where in story.kills}
    trial = {"writer.token", "spec.json", "last.pt", "best.safetensors", "metrics.jsonl", "result.json"}
    trial |= {"oof.npz", "test.npz"}
    assert trial | {"folds.csv", "experiment.json", "ensemble.json", "submission.csv", "report.html"} <= names
    assert any(where.startswith("cache/packs/") for _, where in story.kills)
    assert story.kills == Counter(point for point in story.points if not of_the_journal(point))


def test_a_sweep_that_was_killed_beside_each_write_is_an_undisturbed_one_to_the_last_bit(story):
    refuse_other_outcome(story.store, story.alone)


def test_a_killed_writes_leftovers_are_few_and_hidden(story):
    left = list(story.store.root.rglob("*.tmp"))
    assert len(left) <= story.kills.total()
    assert all(path.name.startswith(".") for path in left)


def test_nobody_sees_a_traceback(story):
    assert not [printed for printed in story.printed if "Traceback" in printed]


@pytest.mark.cluster
def test_killed_between_parent_and_child_a_sweep_goes_on_from_the_same_weights(tiny_root, tmp_path):
    def parent_is_done(point: Point) -> bool:
        when, where = point
        return when == "after" and where.endswith("/result.json")

    story = tell(tmp_path, tiny_root, FAMILY, parent_is_done)
    assert story.kills.total() == 4  # parent and child of two folds
    trials = [read_spec(trial) for trial in story.store.trials()]
    of_parent = {spec.fold: spec.trial_id for spec in trials if spec.variant.name == "a"}
    children = [spec for spec in trials if spec.variant.name == "b"]
    assert [spec.after for spec in children] == [{"a": of_parent[spec.fold]} for spec in children]
    refuse_other_outcome(story.store, story.alone)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_sweep_over_a_bucket_that_is_killed_beside_each_upload_is_an_undisturbed_one(
    proxy, bucket, tiny_root, tmp_path
):
    """Each time another machine goes on, which has nothing of it."""
    (tmp_path / "space.yml").write_text(SPACE.format(trials=1, epochs=2))
    url = f"{proxy.scheme}://{bucket}/runs"
    what = ["--space", str(tmp_path / "space.yml"), "--data", str(tiny_root), "--name", "r"]
    alone = [*what, "--runs", str(tmp_path / "alone"), "--cache", str(tmp_path / "cache")]
    assert run(killed_here.run, alone, tmp_path / "log") == 0
    kills: Counter[Point] = Counter()
    process = None

    def harm(method: str, path: str) -> str | None:
        """Once before and once after each change of each object."""
        if method in ("PUT", "POST", "DELETE"):
            for when, how in (("before", "reset"), ("after", "lost")):
                point = when, f"{method} {path.partition('?')[0]}"
                if not kills[point]:
                    kills[point] += 1
                    process.kill()
                    return how
        return None

    proxy.harm = harm
    store, seen = runs_at(url, Cache(tmp_path / "watcher")).run("r"), Seen()
    code = KILLED
    while code == KILLED:
        cache = str(tmp_path / f"machine{kills.total()}")
        process = ready(killed_here.run, [*what, "--runs", url, "--cache", cache], tmp_path / "log")
        process.start()
        process.join(PATIENCE)
        code = process.exitcode
        store.fetch()
        now = look(store, here=False)
        refuse_lost_work(seen, now)
        seen = now
    assert code == 0, (tmp_path / "log.out").read_text()
    names = {where.rpartition("/")[2] for _, where in kills}
    assert {"spec.json", "last.pt", "best.safetensors", "metrics.jsonl", "result.json", "oof.npz"} <= names
    assert {"folds.csv", "experiment.json", "studies.journal", "submission.csv"} <= names
    for trial in store.trials():
        trial.fetch(trial.best)
    store.files.fetch_file(store.ensemble("blend").submission)
    refuse_other_outcome(store, RunDirectory(tmp_path / "alone" / "r"))


def test_a_driver_that_is_killed_beside_each_line_of_the_journal_comes_to_its_end(tiny_root, tmp_path):
    story = tell(tmp_path, tiny_root, SPACE.format(trials=2, epochs=1), of_the_journal)
    assert story.kills.total() >= 10
    assert {r.status for r in look(story.store).results.values()} == {"complete"}
    assert len(look(story.store).results) >= len(look(story.alone).results)
