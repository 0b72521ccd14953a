"""Train one cell and yield one record per epoch. This module knows neither Ray nor W&B."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hiddenweights.config import METHODS, CellConfig
from hiddenweights.errors import UserError, escaped
from hiddenweights.identity import id_of, resolve
from hiddenweights.images.dataset import Batches, Dataset, Splits, load_dataset, split
from hiddenweights.images.decoding import Decoder, default_loaders
from hiddenweights.images.stream import StreamedBatches, batches_of, read_of
from hiddenweights.masking.masks import Mask
from hiddenweights.masking.supermask import current_masks, frozen_weights, masks_of, weight_layers
from hiddenweights.records import Record, checksum
from hiddenweights.tickets.contents import Inputs
from hiddenweights.tickets.ticket import Ticket
from hiddenweights.training.build import (
    arithmetic,
    build_cell_network,
    check_batch,
    device_of,
    hold_at_zero,
    recordable,
)
from hiddenweights.training.checkpoint import (
    check_state,
    load_checkpoint,
    optimizer_state,
    save_checkpoint,
    saved_history,
)
from hiddenweights.training.cuda_graph import CudaRecorder, GraphedStep, Step
from hiddenweights.training.loop import evaluate, seeded, train_epoch, train_step
from hiddenweights.training.optim import build_optimizer, learning_rate, set_learning_rate
from hiddenweights.training.ranks import Ranks

SAVE_EVERY = 1.0  # seconds; shorter epochs share a checkpoint, because writing one takes about 5 ms


class Diverged(RuntimeError):
    """The training loss or a trained parameter (a score, or a weight for dense and finetune) is not finite.

    `epoch` is the epoch, from 1, after which this was found.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the training loss or a trained parameter is not finite in epoch {epoch}")
        self.epoch = epoch


class Trainer:
    """One cell's training: device, data, network and optimiser, built from its config.

    If a `checkpoint` folder is given, training resumes from it. (It is created; its parent must exist.) A
    checkpoint is written before the record of an epoch is yielded, at most once per second, and always after
    the last epoch or when the iterator is closed. A killed process loses at most one second of finished
    epochs and the current one. The result of a cell is a function of its config: on one kind of machine, with
    the same number of threads, it repeats bit for bit, resumed or not. (`run_cell` sets torch's number of
    threads to `train.threads`; a `Trainer` leaves it as it is.)

    Raises `UserError` for bad input, before any training.
    """

    def __init__(
        self,
        config: CellConfig,
        checkpoint: Path | None = None,
        ticket: Ticket | None = None,
        ranks: Ranks | None = None,
        loaders: int | None = None,
    ) -> None:
        """`ticket`: the ticket of the cell `model.init_from`. Method `finetune` needs it.

        `ranks`: the processes that train the cell together, each with its own `Trainer` (see `parallel`).
        `loaders`: number of processes that decode the images of a folder; None: one per other core.
        """
        if checkpoint and not checkpoint.parent.is_dir():
            raise UserError(f"checkpoint: the parent folder of {str(checkpoint)!r} does not exist")
        self.config = config = resolve(config)
        self.checkpoint, self.ranks = checkpoint, ranks
        self.device = device_of(config.train.device)
        if ranks and self.device.type == "cuda":
            self.device = torch.device("cuda", ranks.rank)
        self.precision = arithmetic(config.train.precision, self.device)
        self.seed, self.draws = config.seed_of("scores"), _draws(config.model.method, ranks)

        # The data, on the device.
        dataset = load_dataset(config.data)
        self.data_digest = dataset.digest
        self.inputs = Inputs(dataset.channels, dataset.image_size, dataset.classes, dataset.mean, dataset.std)
        splits = split(dataset, config.data, config.seed_of("data"))
        self.evaluation_batches = self._placed(dataset, splits, loaders)
        self.train_batches = self.evaluation_batches.pop("train")

        # The network, as the seeds or the ticket determine it.
        if ticket and config.model.init_mask == "shuffled":
            ticket = ticket.shuffled(config.seed_of("scores"))
        self.network = self._initial_network(dataset, ticket)
        self.fixed_masks: dict[str, Tensor] | None = None
        if ticket:
            self.fixed_masks = {name: mask.to(self.device) for name, mask in ticket.masks.items()}
            hold_at_zero(self.network, self.fixed_masks)
        self.initial_weights_checksum = self._weights_checksum()
        self.frozen = frozen_weights(self.network)
        masks = masks_of(self.network).items()
        self.stepping = {name: mask for name, mask in masks if type(mask).after_step is not Mask.after_step}

        # The trained parameters and their optimiser. A CUDA graph is only used by a single process.
        self.learnable = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = (
            build_optimizer(self.learnable, config.optim, self.device) if self.learnable else None
        )
        self.run_step: Step = self.eager_step
        if self.device.type == "cuda" and recordable(config) and not ranks:
            self.run_step = GraphedStep(self.eager_step, CudaRecorder(self.device))

        # Restore the trained state from a checkpoint, if there is one.
        self.steps = 0
        self.within_epoch = False
        self.history = self._restore()
        self.restored = len(self.history)
        self.masks = self.masks_after(self.restored)

    def _placed(
        self, dataset: Dataset, splits: Splits, loaders: int | None
    ) -> dict[str, Batches | StreamedBatches]:
        """The batches of each split by name, stored on the device or decoded for it."""
        rank, count = (self.ranks.rank, self.ranks.count) if self.ranks else (0, 1)
        processes = default_loaders(count) if loaders is None else loaders
        pinned, read = self.device.type == "cuda", read_of(dataset.train)
        self.decoder = Decoder(processes, pinned=pinned, read=read)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        return {
            name: batches_of(images.to(self.device), dataset.mean, dataset.std, self.decoder, rank, count)
            for name, images in parts.items()
            if images is not None
        }

    def _initial_network(self, dataset: Dataset, ticket: Ticket | None) -> nn.Module:
        network = build_cell_network(self.config, dataset, ticket)
        check_batch(network, min(self.config.optim.batch_size, len(self.train_batches.images)), dataset)
        return network.to(self.device)

    def close(self) -> None:
        """End the processes that decode images now, instead of when the trainer is deleted."""
        self.decoder.close()

    def epochs(self) -> Iterator[Record]:
        """All records from epoch 1: first those of a restored checkpoint, then new ones.

        Keys: `epoch` (finished epochs), `train_loss`, `train_accuracy`, `validation_loss` and
        `validation_accuracy` (not under the paper's protocol), `test_loss`, `test_accuracy`, `lr`,
        `weights` (number of weights of the masked layers), `kept` (measured fraction of them that is kept),
        `churn` (fraction of the mask bits that changed in the epoch), the last two also per layer as
        ``kept/NAME`` and ``churn/NAME``, `seconds`, `images_per_second` (training only), `weights_checksum`,
        `mask_checksum`, `precision` (float32 or bfloat16), and `corrupt_images` for image folders. Losses
        are means over images; accuracies are fractions.

        Can be called again if it stopped between two epochs.

        Raises:
            Diverged: the loss or a trained parameter is not finite. Earlier records have been yielded.
            UserError: an earlier call stopped in the middle of an epoch (Ctrl-C, say).
        """
        if self.within_epoch:  # half of it is in the parameters, and would be trained twice
            raise UserError(
                f"this Trainer stopped in the middle of epoch {len(self.history) + 1}; make a new one"
                " (with a checkpoint folder, it resumes after the last saved epoch)"
            )
        yield from self.history
        saved = -math.inf
        for epoch in range(len(self.history), self.config.train.epochs):
            self.within_epoch = True
            record = self._epoch(epoch)
            self.history.append(record)
            self.within_epoch = False
            due = time.monotonic() - saved >= SAVE_EVERY or epoch + 1 == self.config.train.epochs
            if due:
                self._save()
                saved = time.monotonic()
            try:
                yield record
            except GeneratorExit:
                if not due:
                    with contextlib.suppress(OSError):  # an error could not be reported to anyone
                        self._save()
                raise

    def _epoch(self, epoch: int) -> Record:
        """Train epoch number `epoch` (from 0), then evaluate."""
        config, device = self.config, self.device
        started = time.perf_counter()
        lr = learning_rate(config.optim, epoch, config.train.epochs)
        if self.optimizer is not None:
            set_learning_rate(self.optimizer, lr)

        self.network.train()
        batches = self.train_batches.shuffled(
            config.optim.batch_size,
            seed=config.seed_of("data"),
            epoch=epoch,
            augment=config.data.augment != "none",
        )
        with seeded(self.seed, self.draws, epoch, device):
            loss, accuracy, images_seen = train_epoch(self.step, batches, device, self.ranks)
        if self.ranks:
            self.ranks.share_buffers(self.network)
        trained = time.perf_counter() - started
        self._check_finite(loss, epoch)
        record: Record = {"epoch": epoch + 1, "lr": lr, "precision": self.precision}
        record |= {"train_loss": loss, "train_accuracy": accuracy}

        with seeded(self.seed, "evaluate", epoch, device):
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

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimiser step, replayed as a CUDA graph if possible. Returns (sum of losses, correct)."""
        self.steps += 1
        totals = self.run_step(images, labels)
        # Outside the recorded step, because it draws on the CPU and does not happen in every step.
        for name, mask in self.stepping.items():
            mask.after_step(self.frozen[name], self.steps)
        return totals

    def eager_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """`train_step` of this cell."""
        smoothing = self.config.optim.label_smoothing
        return train_step(self.network, self.optimizer, images, labels, self.precision, smoothing, self.ranks)

    def _check_finite(self, loss: float, epoch: int) -> None:
        # The loss alone does not show this: a mask is 0 and 1 even if its scores are not finite.
        finite = [torch.isfinite(parameter).all() for parameter in self.learnable]
        if not math.isfinite(loss) or (finite and not torch.stack(finite).all()):
            raise Diverged(epoch + 1)

    def _restore(self) -> list[Record]:
        check = functools.partial(
            check_state,
            config=self.config, data=self.data_digest, network=self.network, optimizer=self.optimizer,
        )  # fmt: skip
        state = load_checkpoint(self.checkpoint, check) if self.checkpoint else None
        if state is None:
            return []
        self.network.load_state_dict(state["network"])
        if self.optimizer is not None:
            # Restore the state, but keep the settings: they follow the config and the present device.
            own = self.optimizer.state_dict()["param_groups"]
            learnt = optimizer_state(state, self.optimizer)
            self.optimizer.load_state_dict({"state": learnt, "param_groups": own})
        self.steps = state["steps"]
        self.precision = state.get("precision", self.precision)  # that at the start, perhaps elsewhere
        return saved_history(state)

    def _save(self) -> None:
        if self.checkpoint is not None and (self.ranks is None or self.ranks.rank == 0):
            state = {
                "cell": id_of(self.config),
                "data": self.data_digest,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict() if self.optimizer else {},
                "steps": self.steps,
                "precision": self.precision,
                "history": json.dumps(self.history),
            }
            save_checkpoint(self.checkpoint, state)

    def masks_after(self, epoch: int) -> dict[str, Tensor]:
        """The masks that the record of `epoch` describes, by the name of the weight; for `sampled`, one draw.

        Bool, each with the shape of its weight. Empty for `dense`; for `finetune` the masks of the ticket.
        """
        if self.fixed_masks is not None:
            return self.fixed_masks
        with seeded(self.seed, "masks", epoch, self.device):
            return current_masks(self.network)

    def ticket(self, record: Record) -> Ticket:
        """The ticket of the network in its present state, after the epoch of `record`.

        A `sampled` network has a probability per weight and no fixed mask. Its ticket contains the draw whose
        checksum is in the record. Raises `UserError` for methods that change the weights (`dense`,
        `finetune`, `iterand`), and `ValueError` if the record does not describe the present state.
        """
        masks = self.masks_after(int(record["epoch"]))
        return Ticket.of(self.config, self.network, masks, self.inputs, record)

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
        """The number of corrupt images in this epoch, and the first of them."""
        streams = [self.train_batches, *self.evaluation_batches.values()]
        files = [batches.corrupt for batches in streams if isinstance(batches, StreamedBatches)]
        if not files:
            return {}
        found = sorted({path for corrupt in files for path in corrupt})
        if self.ranks:
            found = sorted({path for paths in self.ranks.gather(found) for path in paths})
        record: Record = {"corrupt_images": len(found)}
        if found:
            record["first_corrupt_image"] = escaped(found[0])  # checkpoints take no other
        return record

    def _weights_checksum(self) -> str:
        """A digest of the weights of the masked layers; for a dense network, of its trained weights."""
        weights = frozen_weights(self.network) or {
            name: getattr(owner, attribute) for owner, attribute, name in weight_layers(self.network)
        }
        return checksum({name: w.detach().cpu().contiguous().numpy() for name, w in weights.items()})


def _draws(method: str, ranks: Ranks | None) -> str:
    """The purpose of the random numbers of training steps.

    Dropout must differ between the shares of a batch, but sampled masks must be the same.
    """
    draws_masks = method == "sampled" or method not in METHODS
    return "train" if ranks is None or ranks.rank == 0 or draws_masks else f"train, process {ranks.rank}"
