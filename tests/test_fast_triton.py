"""The GPU's kernels in Triton's interpreter on the CPU, against a sort; and their translation for a GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton for this machine"
)

# Triton reads its mode when the kernels are defined, so that each has a process of its own.
INTERPRETED = """
import torch
from hiddenweights.masking.topk_triton import keep_largest, supports

def sorted_way(values, scores, kept):
    order = torch.sort(scores.abs().flatten(), descending=True, stable=True).indices[:kept]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return torch.where(mask.view(scores.shape), values, 0.0)

SCORES = {
    "normal": lambda n: torch.randn(n),
    "coarse": lambda n: (torch.randn(n) * 10).round() / 10,
    "all zero": lambda n: torch.zeros(n),
    "all equal": lambda n: torch.where(torch.rand(n) < 0.5, -0.3, 0.3),
    "infinite and tiny": lambda n: torch.where(torch.rand(n) < 0.3, torch.inf, torch.randn(n) * 1e-40),
}

def check(values, scores, kept, dtype=torch.float32):
    result = keep_largest(values, scores, kept, dtype)
    assert supports(values, scores)
    assert result.dtype == dtype and result.stride() == values.stride()
    assert torch.equal(result, sorted_way(values, scores, kept).to(dtype)), (values.shape, kept)

torch.manual_seed(0)
for n in (1, 2, 300, 4097):
    for make in SCORES.values():
        for kept in {1, max(1, n // 3), n}:
            check(torch.randn(n), make(n), kept)
check(torch.randn(100_000), torch.randn(100_000), 30_000, torch.float16)
check(torch.randn(100_000), torch.ones(100_000), 77_777)
for layout in (torch.contiguous_format, torch.channels_last):
    for shape in ((6, 5, 3, 3), (40, 50, 3, 2), (7, 3, 1, 1)):
        values, scores = torch.randn(shape), torch.randint(-3, 4, shape).float()
        kept = scores.numel() // 2
        check(*(x.contiguous(memory_format=layout) for x in (values, scores)), kept)
a, b = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
assert not supports(a, b) and not supports(a, a.double()) and not supports(a.mT, a.mT)
print("agrees")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hiddenweights.masking import topk_triton as kernels

base = {"scores": "*fp32", "counts": "*i32", "state": "*i32", "n": "i32"}
place = {"channels": "i32", "pixels": "i32", "last": "i32"}
count = base | {"kept": "i32", "shift": "i32"}
write = base | place | {"values": "*fp32", "result": "*bf16"}
for kernel, types, constants in (
    (kernels._count_magnitudes, count, {"number": 0}),
    (kernels._count_magnitudes, count, {"number": 2}),
    (kernels._count_places, base | place | {"shift": "i32"}, {"number": 4, "first": 3}),
    (kernels._write, write, {"number": 5, "first": 3}),
):
    constants = constants | {"block": kernels._SHAPE["block"]}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
assert "cvt.rn.bf16" in compiled.asm["ptx"]  # to the nearest, as torch; the interpreter cuts off
print("compiles")
"""


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_agree_with_a_sort_in_any_layout_and_with_any_ties():
    assert "agrees" in run(INTERPRETED, TRITON_INTERPRET="1")


def test_the_kernels_compile_for_a_gpu(tmp_path):
    assert "compiles" in run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
