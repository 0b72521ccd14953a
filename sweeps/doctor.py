"""``hiddenweights sweeps doctor``: check this machine, or every node of a cluster, before a launch."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hiddenweights import own
from hiddenweights.cells.store import Store, default_store
from hiddenweights.config import CellConfig, DataConfig
from hiddenweights.identity import pinned
from hiddenweights.sweeps import host

Facts = dict[str, host.Fact]
Code = Mapping[str, Mapping[str, Any]]
PATIENCE = 40.0  # seconds for all nodes together to answer
WIDTH = 150  # columns at least; a log file has no width
SKEW = 5.0  # seconds that clocks may differ; a lease expires after 90


def doctor(
    address: str | None = None,
    store: str | None = None,
    data: str = "digits",
    root: str = "data",
    patience: float = PATIENCE,
) -> int:
    """Check this machine, or each node of a cluster, for a sweep: a table and a list of problems.

    Creates the store if it does not exist. Exit status: 0 if there are no problems, else 1.

    Args:
        address: A running Ray cluster (auto, or host:port). If not given: this machine.
        store: Folder or URL of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
        data: Data set that the sweep needs, as for data.name.
        root: Folder of the data set on every node.
        patience: Seconds that all nodes together have to answer.
    """
    from hiddenweights.sweeps import ray_executor

    wanted = pinned(CellConfig(data=DataConfig(name=data, root=root))).data
    results = Store(store or default_store())
    results.prepare()
    if address:
        with ray_executor.cluster(address):
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # the table shows it
            found = look_at_cluster(results.uri, wanted, patience)
    else:
        found = {"this machine": host.facts(results.uri, wanted)}
    # With a height, too, or rich takes a dumb terminal for one of 80 columns, whatever the width.
    console = Console(highlight=False, soft_wrap=True, width=WIDTH, height=len(found) + 10)
    console.print(_table(found))
    for note, hosts in _notes(found).items():
        console.print(f"{note}  ({', '.join(hosts)})", markup=False)
    return int(any(not fact.well for facts in found.values() for fact in facts.values()))


class Probe:
    """An actor on a node. It reports facts about the node and its clock."""

    def facts(self, store: str, data: DataConfig, code: Code) -> Facts:
        """`host.facts` of the node; `code` is the user's own (`own.carried`)."""
        own.receive(code)
        return host.facts(store, data)

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()


def look_at_cluster(store: str, data: DataConfig, patience: float) -> dict[str, Facts]:
    """The facts (`host.facts`) and the clock offset of each live node, the head first.

    A node that does not answer in `patience` seconds only has the fact ``answers``. Ray must be connected.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = sorted(
        (node for node in ray.nodes() if node["Alive"]),
        key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeManagerAddress"]),
    )
    actor = ray.remote(num_cpus=0)(Probe)
    probes = [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answers = [probe.facts.remote(store, data, own.carried()) for probe in probes]
    ray.wait(answers, num_returns=len(answers), timeout=patience)
    found: dict[str, Facts] = {}
    for node, probe, answer in zip(nodes, probes, answers, strict=True):
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        try:
            facts: Facts = ray.get(answer, timeout=0)
            found[name] = facts | {"clock": _offset(probe)} | _books(node["Resources"], facts)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            found[name] = {"answers": host.Fact("no", why, well=False)}
    return found


def _offset(probe: Any) -> host.Fact:
    """The offset of the node's clock, known to within half the time of a round trip."""
    import ray

    asked = time.time()
    theirs: float = ray.get(probe.clock.remote(), timeout=5)
    answered = time.time()
    offset, within = theirs - (asked + answered) / 2, (answered - asked) / 2
    return host.Fact(f"{offset:+.2f} s", well=abs(offset) - within < SKEW)


def _books(resources: Mapping[str, float], facts: Facts) -> Facts:
    """A problem if Ray counts GPUs but torch sees none."""
    if resources.get("GPU") and facts["GPUs"].text == "none":
        note = f"Ray counts {resources['GPU']:g}, torch sees none; {facts['GPUs'].note}".rstrip("; ")
        return {"GPUs": host.Fact("none", note, well=False)}
    return {}


def _table(found: Mapping[str, Facts]) -> Table:
    """A table with one row per host and one column per fact."""
    columns = list(dict.fromkeys(fact for facts in found.values() for fact in facts))
    shown = Table("host", *columns, box=None, pad_edge=False, header_style="bold")
    for name, facts in found.items():
        cells = [facts.get(column, host.Fact("")) for column in columns]
        shown.add_row(name, *(Text(cell.text, style="" if cell.well else "bold red") for cell in cells))
    return shown


def _notes(found: Mapping[str, Facts]) -> dict[str, list[str]]:
    """The explanations, each with its hosts."""
    notes: dict[str, list[str]] = {}
    for name, facts in found.items():
        for column, fact in facts.items():
            if fact.note or not fact.well:
                mark = "" if fact.well else "! "
                notes.setdefault(f"{mark}{column}: {fact.note or fact.text}", []).append(name)
    return notes
