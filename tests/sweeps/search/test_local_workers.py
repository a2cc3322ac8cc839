"""Several processes share a search; a killed one loses only its last steps."""

import os
import subprocess
import sys
import time

import pytest

from tests.sweeps.search import kill_workers

pytest.importorskip("optuna", reason="optuna is not installed")


@pytest.mark.parametrize(
    "sqlite",
    [pytest.param(False, id="journal"), pytest.param(True, id="sqlite", marks=pytest.mark.slow)],
)
def test_a_worker_is_killed_and_started_again(sqlite, tmp_path):
    options = {"workers": 2, "kills": 1, "restarts": 1, "points": 4, "seed": 0}
    assert kill_workers.check(tmp_path, sqlite=sqlite, **options) == []


@pytest.mark.slow
@pytest.mark.parametrize("sqlite", [False, True], ids=["journal", "sqlite"])
def test_of_four_workers_two_are_killed_and_one_is_started_again(sqlite, tmp_path):
    options = {"workers": 4, "kills": 2, "restarts": 1, "points": 12, "seed": 0}
    assert kill_workers.check(tmp_path, sqlite=sqlite, **options) == []


def test_a_search_that_is_asked_to_end_has_its_workers_save_first(tmp_path):
    (tmp_path / "clouds.py").write_text(kill_workers.EXPERIMENT.replace("POINTS", "99"))
    words = ["tune", "clouds.py", "--sampler", "grid", "--workdir", "study", "--workers", "2"]
    search = subprocess.Popen(
        [sys.executable, "-m", "jdl", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while len(workers := kill_workers.begun(tmp_path)) < 2:
            assert search.poll() is None
            time.sleep(0.05)
    finally:
        search.terminate()
        out, err = search.communicate()
    assert (search.returncode, err) == (75, "")
    assert out.endswith("interrupted; saved: the same command resumes it\n")
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    for directory in (tmp_path / "study/trials").iterdir():
        steps = [int(row.split()[0]) for row in (directory / "steps.txt").read_text().splitlines()]
        saved = [int(each.name.split(".")[0]) for each in (directory / "checkpoints").iterdir()]
        assert max(saved) - steps[-1] in (0, 1)  # the step at whose end it stopped is not noted
