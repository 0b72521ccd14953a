"""While no cell is trained, a launch on Ray says what it waits for, or why there is no Ray."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from hiddenweights.cells.cell import failure_record
from hiddenweights.cells.store import Store
from hiddenweights.errors import UserError
from hiddenweights.sweeps import capacity, launch, ray_executor


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


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /a/very/long/folder\n")

    monkeypatch.setattr(ray_executor, "_without_the_needless", lambda: None)
    monkeypatch.setattr(ray_executor.ray, "init", fail)
    with pytest.raises(UserError, match=r"107 bytes.*RAY_TMPDIR") as caught, ray_executor.cluster(None):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--address 'auto'"), ray_executor.cluster("auto"):
        pass


def test_a_failure_of_an_earlier_launch_explains_nothing(tmp_path: Any) -> None:
    store, said, cell = Store(tmp_path), [], "0123456789abcdef"
    store.prepare()
    progress: Any = SimpleNamespace(failed=lambda cell, why: said.append(why))
    watch = ray_executor._Watch(store, progress, 1.0)
    for launched in ("2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"):
        store.fail(cell, failure_record("OSError", "OSError: no route", transient=True))
        trial = SimpleNamespace(config={"job": json.dumps({"cell": cell, "launched": launched})})
        watch.on_trial_error(0, [], trial)
    assert said == ["OSError: no route", "its worker died, again and again"]
    assert launch._out_of_memory(store.failure(cell), launched)  # it is tried alone
