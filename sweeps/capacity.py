"""The resources of a Ray cluster: of its running nodes, and of those that its autoscaler could start."""

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

from hiddenweights.errors import UserError
from hiddenweights.identity import Resolved
from hiddenweights.sweeps.cost import Measured
from hiddenweights.sweeps.options import Options

Resources = dict[str, float]
MOST_LOADERS = 16  # decoding processes per GPU (docs/imagenet.md)
POLL = 1.0  # seconds between checks of the cluster


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes of a cluster: CPUs and GPUs of each running node, and of each kind that it could start."""

    running: tuple[Resources, ...]
    startable: tuple[Resources, ...] = ()

    @property
    def largest(self) -> Resources:
        """The largest number of CPUs and of GPUs of any node."""
        every = (*self.running, *self.startable)
        return {kind: max((node[kind] for node in every), default=0.0) for kind in ("CPU", "GPU")}

    def hold(self, wanted: Resources) -> bool:
        """Whether a node, or one that the cluster could start, has all resources of `wanted`."""
        every = (*self.running, *self.startable)
        return any(all(node[kind] >= n for kind, n in wanted.items()) for node in every)


def survey(cells: Collection[Resolved], options: Options, note: Callable[[str], None]) -> Nodes:
    """The nodes of the cluster, as soon as workers exist or the configuration of the autoscaler can be read.

    Otherwise this requests a node that could train one of `cells` (with a GPU, if there are such nodes),
    waits for it up to `options.first_worker` seconds, and reports that to `note`. Ray must be connected.
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
            # A placement group, because a resource request would outlive a killed launch.
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
    """CPUs and GPUs of every live node."""
    return tuple(_cpus_gpus(node["Resources"]) for node in ray.nodes() if node["Alive"])


def startable() -> tuple[Resources, ...]:
    """CPUs and GPUs of the kinds of workers that the autoscaler may start, from its configuration file.

    Empty without an autoscaler, or if the file is on another machine.
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
    """The latest problems and actions of the autoscaler as text; "" if there are none."""
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


def wanted_by(config: Resolved, options: Options, measured: Measured, largest: Resources) -> Resources:
    """The resources that a cell requests from Ray: GPUs (`options.gpus`; None: a share) and CPUs.

    It requests one CPU per thread and per process of `options.loaders`. If these are None, for image folders,
    which are decoded during training, it requests the CPUs of a node in proportion to its GPUs.
    """
    together = options.processes()
    share = measured.gpu_share(config) if options.gpus is None else options.gpus
    if together > 1 and options.gpus != 0:
        share = float(together)
    if config.train.device == "cpu" or (
        config.train.device == "auto" and options.gpus is None and not largest["GPU"]
    ):
        share = 0.0
    cpus = float(together * config.train.threads)
    if options.loaders is not None:
        cpus += together * options.loaders
    elif config.data.name.startswith("folder:"):
        part = largest["CPU"] * share / largest["GPU"] if share and largest["GPU"] else 2 * cpus
        most = together * (config.train.threads + MOST_LOADERS)
        cpus = max(cpus, float(int(min(part, most, largest["CPU"]))))
    return {"CPU": cpus, "GPU": share}


def loaders(config: Resolved, options: Options, wanted: Resources) -> int:
    """The number of processes per training process that read and decode images."""
    return int(wanted["CPU"] / options.processes() - config.train.threads)


def alone(wanted: Resources, largest: Resources) -> Resources:
    """What a cell reserves to run alone: a whole GPU, or all CPUs of a node if it uses no GPU."""
    if wanted["GPU"]:
        return wanted | {"GPU": max(1.0, wanted["GPU"])}
    return wanted | {"CPU": largest["CPU"]}


def check(wanted: Iterable[Resources], options: Options, nodes: Nodes) -> None:
    """Raise `UserError` if a cell requests more than any node will have: it would wait for ever."""
    largest = nodes.largest
    for resources in wanted:
        if nodes.hold(resources):
            continue
        if not largest["CPU"]:
            raise UserError(
                "--first-worker: no worker has come in time, and it is not known whether any would"
            )
        for kind in (
            "GPU",
            "CPU",
        ):  # GPUs are what was asked for, and each brings a process
            if (n := resources[kind]) > largest[kind]:
                cpus = "--loaders" if options.loaders else "train.threads"
                name = cpus if kind == "CPU" else "--gpus" if options.gpus else "train.device"
                raise UserError(f"{name}: a cell wants {n:g} {kind}; the largest node has {largest[kind]:g}")
        raise UserError(f"train.threads: a cell wants {describe(resources)}; no node has both")


def _cpus_gpus(resources: dict[str, Any]) -> Resources:
    return {kind: float(resources.get(kind, 0)) for kind in ("CPU", "GPU")}


def _autoscaler_file() -> Path | None:
    """The configuration of the cluster's autoscaler, from its command line, if it runs on this machine."""
    address: str = ray.get_runtime_context().gcs_address
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # the process has ended
            continue
        found = re.search(r"monitor\.py .*--autoscaling-config=(\S+)", command)
        if found and f"--gcs-address={address}" in command:
            file = Path(found[1]).expanduser()
            return file if file.is_file() else None
    return None


def _impossible(kind: str) -> bool:
    """Whether the autoscaler reports that a request with a resource `kind` fits no node."""
    return any(
        kind in request.resources_bundle
        for gang in _autoscaler_state().infeasible_gang_resource_requests
        for request in gang.requests
    )


def _autoscaler_state() -> AutoscalingState:
    """The latest status of Ray's autoscaler (version 2); empty without one."""
    reply = GetClusterStatusReply()
    client = ray._private.worker.global_worker.gcs_client  # there is no public way to read this
    reply.ParseFromString(client.get_cluster_status(timeout_s=5))
    return reply.autoscaling_state
