"""The processor that computed a result. Results of different kinds may differ in their last digits."""

import functools
import os
import platform
from pathlib import Path

import torch


def describe(device: torch.device, precision: str) -> dict[str, str | int]:
    """The processor of `device` in the form in which a result records it.

    `model` is its name, `instructions` the instruction sets that PyTorch's kernels may use on it (for a
    GPU its compute capability), `precision` that of the network, `threads` the number of CPU threads.
    """
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
        major, minor = torch.cuda.get_device_capability(device)
        instructions = f"sm_{major}{minor}"
    else:
        model, instructions = _cpu_model(), cpu_instructions()
    return {
        "model": model,
        "instructions": instructions,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


def cpu_instructions() -> str:
    """PyTorch's vector instructions, the matrix instructions of bfloat16, and a limit set for oneDNN."""
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.11 on
    words = [torch.backends.cpu.get_cpu_capability()]
    words += [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        words.append(f"oneDNN up to {limit}")
    return " ".join(words)


@functools.cache  # it does not change and is needed for every cell
def _cpu_model() -> str:
    """The name of the processor, or its architecture if the system does not name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
