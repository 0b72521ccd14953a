"""What the nodes of a Ray cluster hold: those that run, and those that its autoscaler would start."""

import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.util import placement_group, remove_placement_group

from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options

Resources = dict[str, float]
MOST_LOADERS = 16  # processes that decode images for one GPU (docs/imagenet.md)
POLL = 1.0  # seconds between looks at the cluster


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes of a cluster: CPUs and GPUs of each that runs, and of each kind that it would start."""

    running: tuple[Resources, ...]
    startable: tuple[Resources, ...] = ()

    @property
    def largest(self) -> Resources:
        """The most CPUs of any node, and the most GPUs."""
        every = (*self.running, *self.startable)
        return {kind: max((node[kind] for node in every), default=0.0) for kind in ("CPU", "GPU")}

    def hold(self, wanted: Resources) -> bool:
        """Whether any node, or one that the cluster would start, has all of `wanted`."""
        every = (*self.running, *self.startable)
        return any(all(node[kind] >= n for kind, n in wanted.items()) for node in every)


def survey(cells: Collection[CellConfig], options: Options, note: Callable[[str], None]) -> Nodes:
    """The cluster's nodes, as soon as there are any that train or the autoscaler's configuration is read.

    Where neither is so, a node is asked for that could train one of `cells`, with a GPU if there are such
    nodes, and waited for up to `options.first_worker` seconds; `note` is told. Ray must be connected.
    """
    threads = max(config.train.threads for config in cells)
    gpu = options.gpus != 0 and any(config.train.device != "cpu" for config in cells)
    nodes = Nodes(running=running(), startable=startable())
    if nodes.largest["CPU"]:
        return nodes
    note(f"waiting for the cluster's first worker, with {describe({'CPU': threads, 'GPU': float(gpu)})}")
    deadline = time.monotonic() + options.first_worker
    asked = None
    try:
        while time.monotonic() < deadline:
            # A placement group and not a request of resources, which would outlive a killed launch.
            asked = asked or placement_group([{"CPU": threads} | ({"GPU": 1} if gpu else {})])
            time.sleep(POLL)
            nodes = Nodes(running=running())
            if nodes.largest["CPU"]:
                break
            if gpu and _impossible("GPU"):
                gpu = False
                remove_placement_group(asked)
                asked = None
    finally:
        if asked:
            remove_placement_group(asked)
        note("")
    return nodes


def running() -> tuple[Resources, ...]:
    """CPUs and GPUs of every node that is alive."""
    return tuple(_cpus_gpus(node["Resources"]) for node in ray.nodes() if node["Alive"])


def startable() -> tuple[Resources, ...]:
    """CPUs and GPUs of the kinds of worker that the autoscaler may start, as far as its file says so.

    Empty without an autoscaler, and where its file is on another machine than this launch.
    """
    file = _autoscaler_file()
    config = yaml.safe_load(file.read_text()) if file else {}
    return tuple(
        _cpus_gpus(kind["resources"])
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
        and kind.get("max_workers", config.get("max_workers", 0)) > 0
        and kind.get("resources", {}).get("CPU")
    )


def pending() -> str:
    """The autoscaler's latest troubles and deeds in words; "" where it does nothing, or does not tell."""
    state = _autoscaler_state()
    starting: dict[str, int] = {}
    for request in state.pending_instance_requests:
        starting[request.ray_node_type_name] = starting.get(request.ray_node_type_name, 0) + request.count
    for instance in state.pending_instances:
        starting[instance.ray_node_type_name] = starting.get(instance.ray_node_type_name, 0) + 1
    words = [f"{n} {kind!r} on the way" for kind, n in starting.items()]
    if state.failed_instance_requests:
        last = max(state.failed_instance_requests, key=lambda request: request.failed_ts)
        words.append(f"{last.ray_node_type_name!r} could not be started: {last.reason.strip()[-200:]}")
    return "; ".join(words)


def describe(wanted: Resources) -> str:
    """``1 CPU and 0.25 GPU``."""
    return " and ".join(f"{n:g} {kind}" for kind, n in wanted.items() if n)


def wanted_by(config: CellConfig, options: Options, measured: Measured, largest: Resources) -> Resources:
    """What a cell asks of Ray: `options.gpus` of a GPU (None: a share, where there are any), and CPUs.

    Of these one a thread, and for the images of a folder, which are decoded while the network trains, the
    CPUs of a node in proportion to its GPUs.
    """
    together = options.processes()
    share = measured.gpu_share(config) if options.gpus is None else options.gpus
    if together > 1:
        share = float(together)
    if config.train.device == "cpu" or (
        config.train.device == "auto" and options.gpus is None and not largest["GPU"]
    ):
        share = 0.0
    cpus = float(together * config.train.threads)
    if config.data.name.startswith("folder:"):
        part = largest["CPU"] * share / largest["GPU"] if share and largest["GPU"] else 2 * cpus
        most = together * (config.train.threads + MOST_LOADERS)
        cpus = max(cpus, float(int(min(part, most, largest["CPU"]))))
    return {"CPU": cpus, "GPU": share}


def loaders(config: CellConfig, options: Options, wanted: Resources) -> int:
    """How many processes decode images for each that trains."""
    return int(wanted["CPU"] / options.processes() - config.train.threads)


def alone(wanted: Resources, largest: Resources) -> Resources:
    """What a cell asks for to have no other beside it: a whole GPU, or a node's CPUs where it uses none."""
    if wanted["GPU"]:
        return wanted | {"GPU": max(1.0, wanted["GPU"])}
    return wanted | {"CPU": largest["CPU"]}


def check(wanted: Iterable[Resources], gpus: float | None, nodes: Nodes) -> None:
    """Raise `UserError` when a cell wants more than any node will have: it would wait for ever."""
    largest = nodes.largest
    for resources in wanted:
        if nodes.hold(resources):
            continue
        if not largest["CPU"]:
            raise UserError(
                "--first-worker: no worker has come in time, and it is not known whether any would"
            )
        for kind, n in resources.items():
            if n > largest[kind]:
                name = "train.threads" if kind == "CPU" else "--gpus" if gpus else "train.device"
                raise UserError(f"{name}: a cell wants {n:g} {kind}; the largest node has {largest[kind]:g}")
        raise UserError(f"train.threads: a cell wants {describe(resources)}; no node has both")


def _cpus_gpus(resources: dict[str, Any]) -> Resources:
    return {kind: float(resources.get(kind, 0)) for kind in ("CPU", "GPU")}


def _autoscaler_file() -> Path | None:
    """The configuration of this cluster's autoscaler, if it runs on this machine: its command line says."""
    address: str = ray.get_runtime_context().gcs_address
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has ended
            continue
        found = re.search(r"monitor\.py .*--autoscaling-config=(\S+)", command)
        if found and f"--gcs-address={address}" in command:
            file = Path(found[1]).expanduser()
            return file if file.is_file() else None
    return None


def _impossible(kind: str) -> bool:
    """Whether the autoscaler says that something which was asked for with a `kind` fits no node."""
    return any(
        kind in request.resources_bundle
        for gang in _autoscaler_state().infeasible_gang_resource_requests
        for request in gang.requests
    )


def _autoscaler_state() -> AutoscalingState:
    """What Ray's autoscaler (its second version) last said; empty where there is none."""
    reply = GetClusterStatusReply()
    client = ray._private.worker.global_worker.gcs_client  # nothing public tells this
    reply.ParseFromString(client.get_cluster_status(timeout_s=5))
    return reply.autoscaling_state
