"""How far a run is, read from its directory while others write to it."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

import launch
from imet_ray.reporting.run_status import SILENT_S, Watcher
from imet_ray.reporting.status_page import serve, status_page
from imet_ray.storage.files import write_json, write_json_lines
from imet_ray.storage.results import TrialResult, write_result
from imet_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.slow

ROW = {
    "epoch": 1,
    "score": 0.4321,
    "seconds": 10.0,
    "evaluate_s": 1.0,
    "images_per_s": 50.0,
    "host": "node7",
    "at": 0.0,
}


@pytest.fixture
def store(trained, tmp_path) -> RunDirectory:
    """A copy of a run of two variants on three folds, all trained and predicted out of fold."""
    shutil.copytree(
        trained.run.store.root, tmp_path / "runs" / "r", ignore=shutil.ignore_patterns("ensembles")
    )
    return RunDirectory(tmp_path / "runs" / "r")


def unfinished(store: RunDirectory, spec, rows, *, ago: float = 0.0):
    """A trial without a result, last written to `ago` seconds ago."""
    trial = store.trial(spec.trial_id)
    write_json(trial.spec, spec.model_dump(mode="json"))
    write_json_lines(trial.metrics, rows)
    for path in (trial.spec, trial.metrics):
        os.utime(path, (time.time() - ago,) * 2)
    return trial


def test_a_run_that_is_trained_is_told_by_its_phase_counts_and_leaderboard(store):
    text = Watcher(store).look().text()
    assert "r: out-of-fold: 6 of 6 checkpoints predicted" in text
    assert "trials   6 complete; 6 in all" in text
    assert text.count("3/3") == 2
    assert "driver   none is seen from here: the same command continues" in text


def test_a_trial_runs_while_epochs_come_and_is_silent_after(store, make_spec):
    spec = make_spec(name="c")
    unfinished(store, spec, [ROW])
    status = Watcher(store).look()
    assert status.count("runs") == 1
    assert (
        "runs     c fold 0: epoch 1 of 3, F2 0.4321, 50 images/s on node7, last written 0:00 ago"
        in status.text()
    )
    assert status.remaining_s is not None
    unfinished(store, spec, [ROW], ago=-3600)  # by the clock of another machine
    assert re.search(r"last written (1:00:00|59:5\d) ahead of the clock here", Watcher(store).look().text())
    unfinished(store, spec, [ROW], ago=SILENT_S + 5)
    assert Watcher(store).look().count("silent") == 1
    unfinished(store, spec, [ROW | {"seconds": 600.0}], ago=SILENT_S + 5)  # long epochs
    assert Watcher(store).look().count("runs") == 1


def test_a_trial_of_an_earlier_version_has_its_score(store, make_spec):
    earlier = {"f2" if key == "score" else key: value for key, value in ROW.items()}
    unfinished(store, make_spec(name="c"), [earlier])
    assert "c fold 0: epoch 1 of 3, F2 0.4321" in Watcher(store).look().text()


def test_a_stopped_trial_that_was_promoted_runs_again(store, make_spec):
    spec = make_spec(name="c")
    trial = unfinished(store, spec, [ROW])
    write_result(trial, TrialResult(trial_id=spec.trial_id, status="stopped", score=0.4, epochs=1))
    watcher = Watcher(store)
    assert watcher.look().count("stopped") == 1
    write_json_lines(trial.metrics, [ROW, ROW | {"epoch": 2}])
    assert watcher.look().count("runs") == 1


def test_failures_are_told_with_their_reasons_and_damage_by_its_path(store, make_spec):
    spec = make_spec(name="c")
    trial = unfinished(store, spec, [])
    write_result(trial, TrialResult(trial_id=spec.trial_id, status="failed", reason="<b>NaN</b>"))
    broken = next(one for one in store.trials() if one.trial_id != spec.trial_id)
    broken.metrics.write_text("{")
    status = Watcher(store).look()
    assert "failed   c fold 0: <b>NaN</b>" in status.text()
    assert f"damaged  {broken.root}" in status.text()
    page = status_page(status)
    assert "&lt;b&gt;NaN" in page
    assert "<b>NaN" not in page


def test_what_is_done_is_read_once(store, monkeypatch):
    watcher = Watcher(store)
    first = watcher.look()
    monkeypatch.setattr("imet_ray.reporting.run_status.status_of", lambda *args: pytest.fail("read again"))
    assert watcher.look().trials == first.trials


def test_looking_writes_nothing_and_sees_who_drives(store):
    before = sorted((path, path.stat().st_mtime_ns) for path in store.root.rglob("*"))
    assert Watcher(store).look().trials
    assert sorted((path, path.stat().st_mtime_ns) for path in store.root.rglob("*")) == before
    code = (
        "import sys\nfrom pathlib import Path\nfrom imet_ray.storage.experiment import only_driver\n"
        "from imet_ray.storage.run_directory import RunDirectory\n"
        f"with only_driver(RunDirectory(Path({str(store.root)!r}))):\n    print(flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        driver.stdout.readline()
        assert f"driver   process {driver.pid} on " in Watcher(store).look().text()
        driver.stdin.close()
    assert Watcher(store).look().driver == ""


def test_the_page_is_served_on_loopback_and_nothing_else_is(store):
    server = serve(Watcher(store).look, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    try:
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            page = answer.read().decode()
        assert "<h1>r: 6 of 6 trials</h1>" in page
        assert page.count('class="plot"') == 2
        assert "prefers-color-scheme" in page
        assert "<script" not in page
        for path in ("experiment.json", "../r/experiment.json"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30)
            refused.value.close()
    finally:
        server.shutdown()
        server.server_close()


def test_the_command_prints_it_and_mistakes_are_one_line(store, capsys):
    where = ["--status", "--runs", str(store.root.parent)]
    assert launch.main(where) == 0
    assert "trials   6 complete; 6 in all" in capsys.readouterr().out
    assert launch.main([*where, "--name", "other"]) == 1
    assert "no run 'other'" in capsys.readouterr().err
    assert launch.main([*where, "--serve", "99999"]) == 1
    assert "--serve 99999" in capsys.readouterr().err
