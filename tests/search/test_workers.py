"""Several processes share a search, and one that is killed costs nothing but its last steps."""

import pytest

from tests.search import kill_workers

pytest.importorskip("optuna", reason="optuna is not installed")


@pytest.mark.parametrize("sqlite", [False, True], ids=["journal", "sqlite"])
def test_a_worker_is_killed_and_started_again(sqlite, tmp_path):
    options = {"workers": 2, "kills": 1, "restarts": 1, "points": 4, "seed": 0}
    assert kill_workers.check(tmp_path, sqlite=sqlite, **options) == []


@pytest.mark.slow
@pytest.mark.parametrize("sqlite", [False, True], ids=["journal", "sqlite"])
def test_of_four_workers_two_are_killed_and_one_is_started_again(sqlite, tmp_path):
    options = {"workers": 4, "kills": 2, "restarts": 1, "points": 12, "seed": 0}
    assert kill_workers.check(tmp_path, sqlite=sqlite, **options) == []
