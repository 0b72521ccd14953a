"""``hiddenweights sweeps doctor``: look at this machine, or at every node of a cluster, before a launch."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hiddenweights.cells.store import Store, default_store
from hiddenweights.config import DataConfig
from hiddenweights.sweeps import host

Facts = dict[str, host.Fact]
PATIENCE = 40.0  # seconds that all nodes together have to answer
WIDTH = 150  # columns, at least: a log has no edge
SKEW = 5.0  # seconds that clocks may differ: a lease is anybody's after 90


def doctor(
    address: str | None = None, store: str | None = None, data: str = "digits", root: str = "data"
) -> int:
    """What this machine, or each node of a cluster, has for a sweep: a table, and what is amiss.

    Makes the store if there is none yet. Exit status: 0 when all is well, else 1.

    Args:
        address: A running Ray cluster (`auto`, or host:port). Unset: this machine.
        store: Folder or URL of the results. Unset: $HIDDENWEIGHTS_STORE, else runs.
        data: Data set that the sweep needs.
        root: Folder of the data set on every node.
    """
    from hiddenweights.sweeps import ray_executor

    wanted = DataConfig(name=data, root=root)
    results = Store(store or default_store())
    results.prepare()
    if address:
        with ray_executor.cluster(address):
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # the table says it
            found = look_at_cluster(results.uri, wanted)
    else:
        found = {"this machine": host.facts(results.uri, wanted)}
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    console.print(_table(found))
    for note, hosts in _notes(found).items():
        console.print(f"{note}  ({', '.join(hosts)})", markup=False)
    return int(any(not fact.well for facts in found.values() for fact in facts.values()))


class Probe:
    """An actor on a node: its facts, and its clock."""

    def facts(self, store: str, data: DataConfig) -> Facts:
        """`host.facts` of the node."""
        return host.facts(store, data)

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()


def look_at_cluster(store: str, data: DataConfig) -> dict[str, Facts]:
    """For each node that is alive, the head first, what `host.facts` finds there, and its clock's offset.

    A node that does not answer in `PATIENCE` seconds has no fact but ``answers``. Ray must be connected.
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
    answers = [probe.facts.remote(store, data) for probe in probes]
    ray.wait(answers, num_returns=len(answers), timeout=PATIENCE)
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
    """How far the node's clock is from this one's, to within half of the time that the question takes."""
    import ray

    asked = time.time()
    theirs: float = ray.get(probe.clock.remote(), timeout=5)
    answered = time.time()
    offset, within = theirs - (asked + answered) / 2, (answered - asked) / 2
    return host.Fact(f"{offset:+.2f} s", well=abs(offset) - within < SKEW)


def _books(resources: Mapping[str, float], facts: Facts) -> Facts:
    """The GPUs, if Ray counts some and torch sees none."""
    if resources.get("GPU") and facts["GPUs"].text == "none":
        note = f"Ray counts {resources['GPU']:g}, torch sees none; {facts['GPUs'].note}".rstrip("; ")
        return {"GPUs": host.Fact("none", note, well=False)}
    return {}


def _table(found: Mapping[str, Facts]) -> Table:
    """A row a host, a column a fact."""
    columns = list(dict.fromkeys(fact for facts in found.values() for fact in facts))
    shown = Table("host", *columns, box=None, pad_edge=False, header_style="bold")
    for name, facts in found.items():
        cells = [facts.get(column, host.Fact("")) for column in columns]
        shown.add_row(name, *(Text(cell.text, style="" if cell.well else "bold red") for cell in cells))
    return shown


def _notes(found: Mapping[str, Facts]) -> dict[str, list[str]]:
    """What more there is to say, and of which hosts."""
    notes: dict[str, list[str]] = {}
    for name, facts in found.items():
        for column, fact in facts.items():
            if fact.note or not fact.well:
                mark = "" if fact.well else "! "
                notes.setdefault(f"{mark}{column}: {fact.note or fact.text}", []).append(name)
    return notes
