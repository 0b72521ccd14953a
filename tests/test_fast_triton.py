"""The GPU's kernels in Triton's interpreter on the CPU, against a sort; and their translation for a GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton for this machine"),
    pytest.mark.slow(seconds=30),  # most of it in a fixture, which two workers would have twice
]

# Triton reads its mode when the kernels are defined, so that the programs below have a process of their own.
COMMON = """
import itertools
import torch
from hiddenweights.masking import topk, topk_triton as kernels
from hiddenweights.masking.topk import Memory

CHANNELS_LAST = torch.channels_last

def sorted_way(values, scores, kept):
    order = torch.sort(scores.abs().flatten(), descending=True, stable=True).indices[:kept]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return torch.where(mask.view(scores.shape), values, 0.0)

def check(layers, memory=None, dtype=torch.float32):
    values, scores, kept = zip(*layers)
    assert kernels.supports(values, scores)
    results = kernels.keep_largest(values, scores, kept, dtype, memory)
    for result, (v, s, count) in zip(results, layers, strict=True):
        assert result.dtype == dtype and result.stride() == v.stride()
        assert torch.equal(result, sorted_way(v, s, count).to(dtype)), (v.shape, count)
    return results

launched = []
launch = kernels._launch
kernels._launch = lambda kernel, *rest, **more: (launched.append(kernel), launch(kernel, *rest, **more))
torch.manual_seed(0)
"""

SELECTION = """
SCORES = {
    "normal": lambda n: torch.randn(n),
    "coarse": lambda n: (torch.randn(n) * 10).round() / 10,
    "all zero": lambda n: torch.zeros(n),
    "all equal": lambda n: torch.where(torch.rand(n) < 0.5, -0.3, 0.3),
    "infinite and tiny": lambda n: torch.where(torch.rand(n) < 0.3, torch.inf, torch.randn(n) * 1e-40),
}
for make in SCORES.values():
    sizes = [(n, kept) for n in (1, 4097) for kept in sorted({1, max(1, n // 3), n})]
    check([(torch.randn(n), make(n), kept) for n, kept in sizes])
layers = []
for layout, shape in itertools.product((torch.contiguous_format, CHANNELS_LAST),
                                       ((6, 5, 3, 3), (40, 50, 3, 2), (7, 3, 1, 1))):
    values, scores = torch.randn(shape), torch.randint(-3, 4, shape).float()
    layers.append((*(x.contiguous(memory_format=layout) for x in (values, scores)), scores.numel() // 2))
memory = Memory()
check(layers, memory, torch.float16)
check(layers, memory)
a, b = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2).contiguous(memory_format=CHANNELS_LAST)
assert not kernels.supports([a], [b]) and not kernels.supports([a], [a.double()])
assert not kernels.supports([a.mT], [a.mT]) and not kernels.supports([a], [torch.zeros(25)[1:].view(a.shape)])
"""

BRACKETS = """
def bits(x): return torch.tensor(x, dtype=torch.float32).view(torch.int32).item()
scores = torch.where(torch.rand(5000) < 0.2, 0.7, torch.randn(5000))  # the threshold, 0.7, has 1,000 equals
kept, top = int((scores.abs() > 0.7).sum()) + 100, 2**31 - 1
brackets = {
    "empty": (9, 8), "zero": (0, 0), "all": (0, top), "negative": (-5, -3), "from below": (-(2**31), top),
    "infinite": (bits(torch.inf), bits(torch.inf)), "nan": (bits(torch.nan), bits(torch.nan)),
    "up to nan": (bits(0.6), bits(torch.nan)), "too low": (bits(0.5), bits(0.6)),
    "too high": (bits(0.8), bits(0.9)), "exact": (bits(0.7), bits(0.7)), "right": (bits(0.6), bits(0.8)),
    "half of the equals": (bits(0.69), bits(0.7) - 1),
}
layers = [(torch.randn(5000), scores, kept)] * len(brackets)
memory = Memory()
check(layers, memory)
room = memory.room
places = [tensor.data_ptr() for tensor in (room.state, room.bins, room.candidates)]
before = room.misses()
room.state[:2, : len(layers)] = torch.tensor([*brackets.values()]).T
check(layers, memory)
missed = {name for name, a, b in zip(brackets, before, room.misses()) if b > a}
assert missed == set(brackets) - {"all", "from below", "up to nan", "exact", "right"}, missed
assert not room.bins.any() and not room.state[3:6].any()  # left as the next call wants them
before = room.misses()
check([(v, s * 1.00001, k) for v, s, k in layers], memory)
assert room.misses() == before  # brackets made of the last selection hold the next
assert places == [tensor.data_ptr() for tensor in (memory.room.state, room.bins, room.candidates)]
"""

LAUNCHES = """
from hiddenweights.models import build_network
from hiddenweights.masking.supermask import weight_layers

def layers_of(arch, count):
    network = build_network(arch, channels=3, image_size=32, classes=10, width=0.02)
    weights = [getattr(owner, name).detach() for owner, name, _ in weight_layers(network)]
    assert len(weights) == count
    return [(w, torch.randn(w.shape), (w.numel() + 1) // 2) for w in weights]

layers, memory = layers_of("conv4", 7), Memory()
for _ in range(2):
    check(layers, memory)
    assert memory.room.misses() == [1] * 7  # after the first time, two of the launches return at once

kernels._launch = lambda kernel, *rest, **more: launched.append(kernel)
for layers in (layers, layers_of("resnet18", 21)):
    values, scores, kept = zip(*layers)
    launched.clear()
    kernels.keep_largest(values, scores, kept, torch.float32, Memory())
    assert len(launched) == 4
    kernels.straight_through(values, values, scores)
    assert len(launched) == 5
"""

GRADIENT = """
shapes = [(300,), (40, 5, 3, 3), (6, 5, 3, 3), (7,)]
for dtype in (torch.float32, torch.bfloat16):
    values, scores, grads = ([torch.randn(shape) for shape in shapes] for _ in range(3))
    scores[0][:100] = 0
    scores[1] = scores[1].contiguous(memory_format=CHANNELS_LAST)
    grads = [grad.to(dtype) for grad in grads]
    grads[2] = grads[2].contiguous(memory_format=CHANNELS_LAST)
    values[1] = values[1].contiguous(memory_format=CHANNELS_LAST)
    found = kernels.straight_through(grads, values, scores)
    for result, v, s, g in zip(found, values, scores, grads, strict=True):
        assert result.stride() == s.stride() and torch.equal(result, g * s.sign() * v)
"""

# Whole steps of the trainer, twice: in the kernels, and as a CPU selects.
TRAINING = """
from hiddenweights.flat import unflatten
from hiddenweights.masking.masks import BatchedSelection
from hiddenweights.training.train import Trainer

config = unflatten({"model.arch": "conv2", "model.width": 0.1, "data.subset": 200, "optim.batch_size": 32,
                    "train.device": "cpu", "train.precision": "float32"})

def learnt(in_kernels):
    topk._kernels_for = lambda *_: kernels if in_kernels else None
    trainer = Trainer(config)
    launched.clear()
    batches = trainer.train_batches.shuffled(32, seed=0, epoch=0, augment=False)
    losses = [trainer.step(*batch) for batch in itertools.islice(batches, 4)]
    return losses, list(trainer.network.state_dict().items()), trainer.network

losses, state, network = learnt(True)
assert len(launched) == 4 * 5
(together,) = [hook.__self__ for hook in network._forward_pre_hooks.values()]
assert isinstance(together, BatchedSelection) and set(together.memory.room.misses()) == {1}
for ours, theirs in zip((losses, [value for _, value in state]), learnt(False)[:2]):
    theirs = [pair[1] if isinstance(pair, tuple) else pair for pair in theirs]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
assert not launched

import copy, pickle
assert not any("memory" in name or "room" in name for name, _ in state)
for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(together))):
    hooks = twin._forward_pre_hooks.values() if isinstance(twin, torch.nn.Module) else [twin.hold]
    assert all(hook.__self__.memory.room is None for hook in hooks)
"""

# Every launch of a step, as far as the translation for an H100, by Triton's own way from arguments to types.
COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from hiddenweights.masking import topk_triton as kernels
from hiddenweights.masking.topk import Memory

class H100:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(H100())
compiled = []

def compile(kernel, programs, *arguments, **constants):
    options = constants | {"block": kernels._BLOCK, "num_warps": 8}
    compiled.append(kernel.warmup(*arguments, **options, grid=(programs,)))

kernels._launch = compile
values, scores = ([torch.randn(shape) for shape in ((64, 3, 3, 3), (256, 100), (10, 256))] for _ in range(2))
results = kernels.keep_largest(values, scores, [800, 12_800, 1_280], torch.bfloat16, Memory())
kernels.straight_through(results, values, scores)
assert len(compiled) == 5
for kernel in compiled:
    assert kernel.asm["cubin"]
    assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at a time
assert "cvt.rn.bf16" in compiled[3].asm["ptx"]  # to the nearest, as torch; the interpreter cuts off
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


PROGRAMS = {
    "selection": SELECTION,
    "brackets": BRACKETS,
    "launches": LAUNCHES,
    "gradient": GRADIENT,
    "training": TRAINING,
}
# Triton's interpreter looks through all names of its language at every call of a function of a kernel, to put
# its own in their place. Once a launch and module is enough, and takes a third less time.
ALL = f"""
import traceback
from triton.runtime import interpreter
from hiddenweights.masking import topk_triton

launch, patch, patched = topk_triton._launch, interpreter._patch_lang, set()

def patch_once(function):
    module = function.__globals__["__name__"]
    if module not in patched:
        patched.add(module)
        return patch(function)

def launch_anew(*arguments, **constants):
    patched.clear()  # the end of the last launch has put the language's names back
    launch(*arguments, **constants)

interpreter._patch_lang = patch_once
for name, program in {PROGRAMS!r}.items():
    topk_triton._launch = launch_anew
    try:
        exec({COMMON!r} + program, {{}})
    except Exception:
        traceback.print_exc(file=sys.stdout)
    else:
        print(name, "agrees")
"""


@pytest.fixture(scope="module")
def interpreted() -> str:
    """What all programs print in one process."""
    return run("import sys\n" + ALL, TRITON_INTERPRET="1")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_kernels_agree_with_plain_code(program: str, interpreted: str) -> None:
    assert f"{program} agrees" in interpreted, interpreted


def test_the_kernels_compile_for_a_gpu(tmp_path):
    assert "compiles" in run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
