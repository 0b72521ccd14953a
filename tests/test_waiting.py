"""While no cell is trained, a launch on Ray says what it waits for."""

from types import SimpleNamespace
from typing import Any

import pytest

from hiddenweights.cells.store import Store
from hiddenweights.sweeps import capacity, ray_executor


def test_a_launch_without_a_worker_says_what_it_waits_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "runs")
    store.prepare()
    notes: list[str] = []
    progress: Any = SimpleNamespace(note=notes.append, say=notes.append)
    watch: Any = SimpleNamespace(running=set(), away=False, unfit="")
    monkeypatch.setattr(ray_executor._Stopper, "LOOK", -1.0)
    monkeypatch.setattr(capacity, "pending", lambda: "1 node is starting")
    stopper = ray_executor._Stopper(store, progress, 300.0, watch, "1 CPU")
    assert not stopper.stop_all()
    assert notes == [""]  # not at once: a worker on this machine takes a few seconds
    monkeypatch.setattr(ray_executor, "QUIET", -1.0)
    assert not stopper.stop_all()
    assert "1 CPU" in notes[-1]
    assert "1 node is starting" in notes[-1]
    monkeypatch.setattr(ray_executor, "QUIET", 5.0)
    watch.running.add("0123456789abcdef")
    assert not stopper.stop_all()
    assert notes[-1] == ""
