"""A store on S3: the real client, a real server, and a network between them that fails."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import flaky_s3
import pytest
import s3fs

from hiddenweights import cli
from hiddenweights.cells import files
from hiddenweights.cells import store as store_module
from hiddenweights.cells.cell import run_cell
from hiddenweights.cells.store import Busy, Store, StoreAway, Unreachable
from hiddenweights.config import CellConfig
from hiddenweights.flat import unflatten
from hiddenweights.identity import cell_id
from hiddenweights.sweeps import commands, tracking
from hiddenweights.training import train

CELL = "0" * 16
CONFIG = unflatten({"model.arch": "fc", "model.width": 0.1, "train.epochs": 4, "data.subset": 200})


@pytest.fixture(scope="module")
def server() -> Iterator[flaky_s3.Proxy]:
    with flaky_s3.serve() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in {**flaky_s3.CREDENTIALS, "AWS_ENDPOINT_URL_S3": proxy.url}.items():
            patch.setenv(name, value)
        patch.setattr(s3fs.S3FileSystem, "retries", 2)  # and not 5
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def proxy(server: flaky_s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> flaky_s3.Proxy:
    monkeypatch.setattr(files, "POLL", 0.05)
    server.down, server.fault = False, lambda method, path: ""
    return server


@pytest.fixture
def store(proxy: flaky_s3.Proxy, request: pytest.FixtureRequest) -> Store:
    store = Store(f"s3://bucket/{request.node.name.partition('[')[0]}-{time.time_ns()}")
    store.prepare()
    return store


def objects(store: Store) -> set[str]:
    """The names of all objects of cells."""
    return {path.partition("/cells/")[2].partition("/")[2] for path in store._find("cells")}


def claim_all_at_once(store: Store) -> tuple[int, int]:
    """How many of 6 hosts get the free cell, and how many are refused."""
    barrier, end = threading.Barrier(6), threading.Event()
    got, refused = list[int](), list[int]()

    def claim(number: int) -> None:
        other = Store(store.uri)
        barrier.wait()
        try:
            with other.lease(CELL):
                got.append(number)
                end.wait()
        except Busy:
            refused.append(number)
            if len(refused) == 5:
                end.set()

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)  # on a busy machine: a claimant that comes after the end finds a free cell
    end.set()
    return len(got), len(refused)


def test_of_many_that_claim_a_cell_one_has_it(store: Store) -> None:
    for attempt in (1, 2, 3):  # a cell that is new, then one that was given back
        assert claim_all_at_once(store) == (1, 5)
        assert objects(store) == {"lock"}
        lock = store._read(f"cells/{CELL}/lock")
        assert lock is not None
        assert lock["attempt"] == attempt


def test_a_claimant_that_died_is_passed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"owner": "x", "host": "elsewhere", "pid": 1, "born": None, "attempt": 1, "heartbeat": time.time()}
    store._write(f"cells/{CELL}/claim-1", dead)
    with pytest.raises(Busy), store.lease(CELL):
        pass
    store._write(f"cells/{CELL}/claim-1", dead | {"heartbeat": 0.0})
    with store.lease(CELL) as lease:
        assert lease.attempt == 2
        lease.finished()
    assert objects(store) == set()


@pytest.mark.parametrize("name", ["claim-1", "lock"])
def test_an_answer_that_is_lost_loses_no_lease(store: Store, proxy: flaky_s3.Proxy, name: str) -> None:
    once = iter(["lost"])
    proxy.fault = lambda method, path: next(once, "") if method == "PUT" and path.endswith(name) else ""
    with store.lease(CELL, patience=10) as lease:
        assert lease.attempt == 1
        lease.renew()
    assert next(once, None) is None


def masks(config: CellConfig, store: Store) -> list[str]:
    result = store.result(cell_id(config))
    assert result is not None
    return [record["mask_checksum"] for record in result["history"]]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    store = Store(tmp_path_factory.mktemp("calm"))
    run_cell(CONFIG, store)
    return masks(CONFIG, store)


@pytest.mark.parametrize(
    "faults", [["busy", "", "", ""], ["cut", "", "", "", ""], ["lost", "", "", "", ""], ["slow", "", ""]]
)
def test_a_bad_network_costs_no_cell(
    store: Store,
    proxy: flaky_s3.Proxy,
    calm: list[str],
    faults: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(store_module.Checkpoint, "INTERVAL", -1.0)  # uploads after each epoch
    turn = itertools.cycle(faults)
    proxy.fault = lambda method, path: next(turn)
    result = run_cell(CONFIG, store, patience=30)
    proxy.fault = lambda method, path: ""
    assert masks(CONFIG, store) == calm
    assert [record["epoch"] for record in result["history"]] == [1, 2, 3, 4]
    assert store.failure(result["cell"]) is None
    assert {"result.json", "ticket.ticket"} <= objects(store) <= {"result.json", "ticket.ticket", "lock"}


def test_an_outage_that_is_too_long_ends_the_wait_and_loses_nothing(
    store: Store, proxy: flaky_s3.Proxy, calm: list[str]
) -> None:
    proxy.down = True
    with pytest.raises(StoreAway):
        run_cell(CONFIG, store, patience=0.2)
    with pytest.raises(Unreachable):
        store.result(CELL)
    proxy.down = False
    run_cell(CONFIG, store)
    assert masks(CONFIG, store) == calm


def test_a_sweep_outlasts_an_outage(
    store: Store, proxy: flaky_s3.Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.tracking_mode.cache_clear()
    finished = itertools.count()

    def outage(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("result.json") and next(finished) in (1, 3):
            proxy.down = True
            threading.Timer(2, lambda: setattr(proxy, "down", False)).start()
            return "lost"
        return ""

    proxy.fault = outage
    quick = (
        "--set",
        "train.epochs=2",
        "--set",
        "data.subset=200",
        "--set",
        "model.arch=fc",
        "--set",
        "seed=0",
    )
    axis = ("--axis", "model.k=0.3,0.7")
    args = ("launch", "quickstart", "--executor", "inline", "--store", store.uri, *quick, *axis)
    assert cli.run(commands.COMMANDS, "sweeps", args) == 0
    plan = store.plan("quickstart")
    assert plan is not None
    results = dict(store.results(plan["cells"]))
    assert len(results) == len(plan["cells"])
    assert objects(store) <= {"result.json", "ticket.ticket", "lock"}
    assert cli.run(commands.COMMANDS, "sweeps", ("status", "quickstart", "--store", store.uri)) == 0
