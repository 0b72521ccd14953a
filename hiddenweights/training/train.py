"""Train one cell, yielding one record an epoch. Knows neither Ray nor W&B."""

import contextlib
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiddenweights.config import NETWORKS, CellConfig, Precision, cell_id, resolve
from hiddenweights.errors import UserError
from hiddenweights.masking.supermask import (
    current_masks,
    frozen_weights,
    masks_of,
    select_together,
    set_weights,
    supermask,
    weight_layers,
)
from hiddenweights.models import build_network
from hiddenweights.training.checkpoint import (
    check_state,
    load_checkpoint,
    optimizer_state,
    save_checkpoint,
    saved_history,
)
from hiddenweights.training.cuda_graph import CudaRecorder, GraphedStep, Step
from hiddenweights.training.data import Batches, Dataset, Splits, load_dataset, split
from hiddenweights.training.image_decoding import Decoder, default_loaders
from hiddenweights.training.image_stream import StreamedBatches, batches_of
from hiddenweights.training.optim import build_optimizer, learning_rate, set_learning_rate
from hiddenweights.training.ranks import Ranks

if TYPE_CHECKING:
    from hiddenweights.tickets.ticket import Ticket

Record = dict[str, float | int | str]
Arithmetic = Literal["float32", "bfloat16"]

EVALUATION_BATCH = 1000
SAVE_EVERY = 1.0  # seconds: shorter epochs share a checkpoint, which takes some 5 ms


class Diverged(RuntimeError):
    """The training loss or a learnt score (dense, finetune: weight) is no longer finite.

    `epoch` is the epoch in which that was seen, from 1.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the training loss or what is learnt is not finite in epoch {epoch}")
        self.epoch = epoch


class Trainer:
    """One cell's training: network, data and optimiser, built when `epochs` is first iterated.

    With a `checkpoint` folder (made where what it lies in exists), training goes on from what the folder
    holds. An epoch is saved there before its record is yielded, unless one was in the last second; then it
    is saved with a later one, with the last one, or when the iterator is closed. So a killed process loses
    at most a second of epochs besides the one it was in. A cell's result is a function of its config: on
    one kind of machine, with equal `train.threads`, it repeats bit for bit, resumed or not.
    """

    network: nn.Module
    initial_weights_checksum: str
    restored: int

    def __init__(
        self,
        config: CellConfig,
        checkpoint: Path | None = None,
        ticket: "Ticket | None" = None,
        ranks: Ranks | None = None,
        loaders: int | None = None,
    ) -> None:
        """`ticket`: that of the cell `model.init_from`, which method `finetune` needs.

        `ranks`: the processes that train the cell together, each with a `Trainer` (see `parallel`).
        `loaders`: processes that decode the images of a folder; None: one per core but this one.
        """
        self.config = resolve(config)
        self.checkpoint = checkpoint
        if ticket and self.config.model.init_mask == "shuffled":
            ticket = ticket.shuffled(self.config.seed_of("scores"))
        self.ticket = ticket
        self.ranks, self.loaders = ranks, loaders
        self.seed = self.config.seed_of("scores")

    def epochs(self) -> Iterator[Record]:
        """Every record from epoch 1 on: first those of a restored checkpoint, then new ones.

        Keys: `epoch` (finished epochs), `train_loss`, `train_accuracy`, `validation_loss` and
        `validation_accuracy` (not under the paper's protocol), `test_loss`, `test_accuracy`, `lr`,
        `weights` (how many the masked layers have), `kept` (measured fraction of them kept), `churn`
        (fraction of mask bits changed by the epoch), both also by layer as ``kept/NAME`` and
        ``churn/NAME``, `seconds`, `images_per_second` (training alone), `weights_checksum`,
        `mask_checksum`, `precision` (float32 or bfloat16); for image folders `corrupt_images`. Losses are
        means over images; accuracies fractions.

        Raises:
            UserError: bad input, before any training.
            Diverged: the loss or a score is not finite; the records before that epoch were yielded.
        """
        self._build()
        history = self._restore()
        self.restored = len(history)
        yield from history
        self.masks = self.masks_after(len(history))
        saved = -math.inf
        for epoch in range(len(history), self.config.train.epochs):
            record = self._epoch(epoch)
            history.append(record)
            due = time.monotonic() - saved >= SAVE_EVERY or epoch + 1 == self.config.train.epochs
            if due:
                self._save(history)
                saved = time.monotonic()
            try:
                yield record
            except GeneratorExit:
                if not due:
                    with contextlib.suppress(OSError):  # nobody is there any more to be told
                        self._save(history)
                raise

    def _epoch(self, epoch: int) -> Record:
        """Train epoch number `epoch` (from 0), then evaluate."""
        config, device = self.config, self.device
        started = time.perf_counter()
        lr = learning_rate(config.optim, epoch, config.train.epochs)
        if self.optimizer is not None:
            set_learning_rate(self.optimizer, lr)

        self.network.train()
        totals, images_seen = torch.zeros(2, device=device), 0  # (loss, correct) is read once, at the end
        assert config.optim.batch_size is not None
        batches = self.train_batches.shuffled(
            config.optim.batch_size,
            seed=config.seed_of("data"),
            epoch=epoch,
            augment=config.data.augment != "none",
        )
        with _seeded(self.seed, self.draws, epoch, device):
            for images, labels in batches:
                self.steps += 1
                images_seen += len(labels)
                totals += self.step(images, labels)
                # Not of the step that a graph records: it draws on the CPU, and not at every step.
                for name, mask in self.redrawing.items():
                    mask.after_step(self.frozen[name], self.steps)
        if self.ranks:
            images_seen = sum(self.ranks.gather(images_seen))
            self.ranks.sum(totals)
            self.ranks.share_buffers(self.network)
        loss_sum, correct = totals.tolist()
        trained = time.perf_counter() - started
        # A mask stays 0 and 1 whatever its scores are, so the loss alone would not tell.
        finite = [torch.isfinite(parameter).all() for parameter in self.learnable]
        if not math.isfinite(loss_sum) or (finite and not torch.stack(finite).all()):
            raise Diverged(epoch + 1)

        record: Record = {"epoch": epoch + 1, "lr": lr, "precision": self.precision}
        record |= {"train_loss": loss_sum / images_seen, "train_accuracy": correct / images_seen}
        with _seeded(self.seed, "evaluate", epoch, device):
            for name, split_batches in self.evaluation_batches.items():
                loss, accuracy = evaluate(self.network, split_batches, self.precision, self.ranks)
                record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        masks, self.masks = self.masks, self.masks_after(epoch + 1)
        record |= self._mask_record(masks, self.masks)
        record |= self._corrupt_record()
        if self.ranks:
            self.ranks.check_same("masks", f"{record['mask_checksum']} {record['weights_checksum']}")
        record["seconds"] = time.perf_counter() - started
        record["images_per_second"] = images_seen / trained
        return record

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimiser step; returns (loss * images, correct) without waiting for the device."""
        smoothing = self.config.optim.label_smoothing or 0.0
        tally = torch.zeros(2, device=self.device)
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        if len(labels):  # one of several processes may have none of the last batch
            with torch.set_grad_enabled(self.optimizer is not None):
                logits, loss = _forward(self.network, images, labels, self.precision, smoothing)
            if self.optimizer is not None:
                loss.backward()
            tally = _tally(loss, logits, labels)
        if self.optimizer is not None:
            if self.ranks:
                self.ranks.average_gradients(self.learnable, len(labels))
            self.optimizer.step()
        return tally

    def _build(self) -> None:
        """Network and data from the config alone, so that a checkpoint adds only what was learnt."""
        if self.checkpoint and not self.checkpoint.parent.is_dir():
            raise UserError(f"checkpoint: {str(self.checkpoint)!r} lies in no folder that exists")
        config, name = self.config, self.config.train.device
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(automatic if name == "auto" else name)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"train.device: {name!r}, but there is no such device; choices: auto, cpu")
        if self.ranks and self.device.type == "cuda":
            self.device = torch.device("cuda", self.ranks.rank)
        self.precision = arithmetic(config.train.precision, self.device)
        dataset = load_dataset(config.data)
        splits = split(dataset, config.data, config.seed_of("data"))
        self.network = build_cell_network(config, dataset, self.ticket).to(self.device)
        if self.ticket:
            self.fixed_masks = {name: mask.to(self.device) for name, mask in self.ticket.masks.items()}
            hold_at_zero(self.network, self.fixed_masks)
        self.initial_weights_checksum = self._weights_checksum()
        self.frozen = frozen_weights(self.network)
        self.redrawing = {name: mask for name, mask in masks_of(self.network).items() if mask.redraws}
        self.learnable = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = (
            build_optimizer(self.learnable, config.optim, self.device) if self.learnable else None
        )
        graphed = self.device.type == "cuda" and recordable(config) and not self.ranks
        self.step: Step = GraphedStep(self._step, CudaRecorder(self.device)) if graphed else self._step
        self._place(dataset, splits)
        self.steps = 0

    def _place(self, dataset: Dataset, splits: Splits) -> None:
        rank, count = (self.ranks.rank, self.ranks.count) if self.ranks else (0, 1)
        loaders = default_loaders(count) if self.loaders is None else self.loaders
        decoder = Decoder(loaders, pinned=self.device.type == "cuda")
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        placed = {
            name: batches_of(images.to(self.device), dataset.mean, dataset.std, decoder, rank, count)
            for name, images in parts.items()
            if images is not None
        }
        self.train_batches = placed.pop("train")
        self.evaluation_batches = placed
        # Dropout is to differ between the shares of a batch; sampled masks are to be the same.
        alike = rank == 0 or self.config.model.method == "sampled"
        self.draws = "train" if alike else f"train, process {rank}"

    def _restore(self) -> list[Record]:
        check = functools.partial(
            check_state, config=self.config, network=self.network, optimizer=self.optimizer
        )
        state = load_checkpoint(self.checkpoint, check) if self.checkpoint else None
        if state is None:
            return []
        self.network.load_state_dict(state["network"])
        if self.optimizer is not None:
            # What was learnt: how it learns is the config's and the device's, which may be another now.
            own = self.optimizer.state_dict()["param_groups"]
            learnt = optimizer_state(state, self.optimizer)
            self.optimizer.load_state_dict({"state": learnt, "param_groups": own})
        self.steps = state["steps"]
        self.precision = state.get("precision", self.precision)  # as it began, maybe on another machine
        return saved_history(state)

    def _save(self, history: list[Record]) -> None:
        if self.checkpoint is not None and (self.ranks is None or self.ranks.rank == 0):
            state = {
                "cell": cell_id(self.config),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict() if self.optimizer else {},
                "steps": self.steps,
                "precision": self.precision,
                "history": json.dumps(history),
            }
            save_checkpoint(self.checkpoint, state)

    def masks_after(self, epoch: int) -> dict[str, Tensor]:
        """The network's masks as the record of `epoch` counts them; for `sampled` a draw of that epoch's own.

        Bool, each of its weight's shape, by the weight's name; empty for `dense`;
        for `finetune` those it was given.
        """
        if self.ticket:
            return self.fixed_masks
        with _seeded(self.seed, "masks", epoch, self.device):
            return current_masks(self.network)

    def _mask_record(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Record:
        record: Record = {"weights_checksum": self._weights_checksum()}
        if not after:
            sizes = {name: getattr(owner, leaf).numel() for owner, leaf, name in weight_layers(self.network)}
            record |= {"kept": 1.0, "weights": sum(sizes.values())}
            return record | {"mask_checksum": record["weights_checksum"]}
        sizes = {name: mask.numel() for name, mask in after.items()}
        record["weights"] = sum(sizes.values())
        counts = torch.stack(
            [
                torch.stack([mask.count_nonzero(), (mask != before[name]).count_nonzero()])
                for name, mask in after.items()
            ]
        ).tolist()
        record["mask_checksum"] = checksum({name: np.packbits(m.cpu().numpy()) for name, m in after.items()})
        record["kept"] = sum(kept for kept, _ in counts) / sum(sizes.values())
        record["churn"] = sum(changed for _, changed in counts) / sum(sizes.values())
        for (name, n), (kept, changed) in zip(sizes.items(), counts, strict=True):
            record |= {f"kept/{name}": kept / n, f"churn/{name}": changed / n}
        return record

    def _corrupt_record(self) -> Record:
        """How many image files of a folder were corrupt in this epoch, and the first of them."""
        streams = [self.train_batches, *self.evaluation_batches.values()]
        files = [batches.corrupt for batches in streams if isinstance(batches, StreamedBatches)]
        if not files:
            return {}
        found = sorted({path for corrupt in files for path in corrupt})
        if self.ranks:
            found = sorted({path for paths in self.ranks.gather(found) for path in paths})
        record: Record = {"corrupt_images": len(found)}
        if found:
            record["first_corrupt_image"] = found[0]
        return record

    def _weights_checksum(self) -> str:
        """A digest of the masked layers' weights, or of a dense network's, which do change."""
        weights = frozen_weights(self.network) or {
            name: getattr(owner, attribute) for owner, attribute, name in weight_layers(self.network)
        }
        return checksum({name: w.detach().cpu().contiguous().numpy() for name, w in weights.items()})


def build_cell_network(config: CellConfig, dataset: Dataset, ticket: "Ticket | None" = None) -> nn.Module:
    """The cell's network at its start, on the CPU: masked, or for `dense` with weights to train.

    For `finetune` it is the network of `ticket`, whose unkept weights are zero. Convolutions are
    channels_last in memory, as the images are: the fastest format on CPUs and GPUs.
    """
    config = resolve(config)
    model, weight_seed = config.model, config.seed_of("weights")
    if model.method == "finetune":
        if ticket is None:
            raise UserError(f"model.init_from: the ticket of cell {model.init_from} is needed")
        ticket.inputs.check(dataset)
        # The config's own word, never the ticket's: a network of the user's code is imported only if it
        # was named beside the ticket.
        return ticket.network(model.arch if ":" in model.arch else None)
    network = build_network(
        model.arch,
        channels=dataset.channels,
        image_size=dataset.image_size,
        classes=dataset.classes,
        width=model.width,
        seed=weight_seed,
    )
    assert model.distribution is not None
    if model.method == "dense":
        for owner, attribute, name in weight_layers(network):
            set_weights(getattr(owner, attribute), name, model.distribution, weight_seed)
    else:
        supermask(
            network,
            k=1.0 if model.k is None else model.k,
            method=model.method,
            distribution=model.distribution,
            scaled=model.scaled,
            selection=model.selection,
            weight_seed=weight_seed,
            score_seed=config.seed_of("scores"),
        )
        if ":" not in model.arch:  # which might recompute parts in the backward pass
            select_together(network)
    return network.to(memory_format=torch.channels_last)


def recordable(config: CellConfig) -> bool:
    """Whether a CUDA graph can hold a step: it reads no value of the device, in any network of ours.

    What it draws (`sampled`) comes from torch's own generator, whose offset a graph moves on as a step does.
    """
    return config.model.arch in NETWORKS


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """What `precision` means on `device`; `auto` is bfloat16 where that is computed natively.

    Elsewhere it is emulated, in a step ten to twenty times as long. A torch below 2.11 does not say what
    a CPU computes: that is float32, then.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        features: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def hold_at_zero(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give the weights outside `masks` (bool, by name, of each weight's shape) no gradient.

    They are zero and stay so: neither weight decay nor the momentum of SGD or Adam moves a zero.
    """
    for owner, attribute, name in weight_layers(network):
        mask = masks[name]
        getattr(owner, attribute).register_hook(lambda gradient, mask=mask: gradient * mask)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Batches | StreamedBatches,
    precision: Arithmetic = "float32",
    ranks: Ranks | None = None,
) -> tuple[float, float]:
    """(mean loss, accuracy) of `network`, put in evaluation mode, over all of `batches`, on its device.

    `ranks`: the processes that have some of the batches each.
    """
    network.eval()
    totals = torch.zeros(2, device=batches.images.labels.device)
    for images, labels in batches.in_order(EVALUATION_BATCH):
        logits, loss = _forward(network, images, labels, precision)
        totals += _tally(loss, logits, labels)
    if ranks:
        ranks.sum(totals)
    loss_sum, correct = totals.tolist()
    return loss_sum / len(batches.images), correct / len(batches.images)


def _forward(
    network: nn.Module, images: Tensor, labels: Tensor, precision: Arithmetic, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits (batch, classes) in the precision asked for, and the batch's mean loss, float32."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = network(images)
    return logits, F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


@contextlib.contextmanager
def _seeded(seed: int, purpose: str, epoch: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers on `device` as a function of (seed, purpose, epoch); as before outside.

    For what draws from torch's own generators: sampled masks, dropout. So an epoch repeats whether or
    not the ones before it ran in this process.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        derived = int.from_bytes(digest[:7], "little")
        # Not `torch.manual_seed`: for devices that are not there it keeps a traceback, in 1 ms.
        torch.default_generator.manual_seed(derived)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(derived)
        yield


def _tally(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    correct = (logits.argmax(1) == labels).count_nonzero()
    return torch.stack([loss.detach() * len(labels), correct])


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of named arrays, whatever their order: 128 bits of BLAKE2b over names and bytes, as hex."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode() + b"\0" + arrays[name].tobytes())
    return digest.hexdigest()
