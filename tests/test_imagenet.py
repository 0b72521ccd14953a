"""ImageNet's sweep in miniature, from JPEGs to the figure: two processes per cell, one of which is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from hiddenweights.analysis.commands import main
from hiddenweights.tickets.ticket import Ticket

pytestmark = pytest.mark.slow(seconds=80)

CLASSES, TRAIN, VAL = 40, 4, 1
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up ImageNet: photographs of coloured noise, one of them grey, one CMYK; val/ is flat."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    wnids = [f"n{number:08}" for number in sorted(rng.choice(10**7, CLASSES, replace=False))]
    (root / "val").mkdir()
    labels = []
    for number, wnid in enumerate(wnids):
        (root / "train" / wnid).mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for i in range(TRAIN + VAL):
            coarse = (colour + rng.normal(0, 60, (6, 8, 3))).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
            image = image.convert({0: "L", 1: "CMYK"}.get(number, "RGB")) if i == 0 else image
            if i < TRAIN:
                image.save(root / "train" / wnid / f"{wnid}_{i}.JPEG")
            else:
                image.save(root / "val" / f"ILSVRC2012_val_{len(labels):08}.JPEG")
                labels.append(wnid)
    (root / "synset_labels.txt").write_text("".join(f"{wnid}\n" for wnid in labels))
    return root


def started_by_cells(launch: psutil.Process) -> list[psutil.Process]:
    """The processes that train a cell together with its worker."""
    found = []
    for process in launch.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "hiddenweights.training.parallel" in process.cmdline():
                found.append(process)
    return found


def test_from_a_folder_to_the_figure(imagenet: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    fields = ["model.width=0.25", "data.image_size=32", "optim.batch_size=32", "train.epochs=2", "seed=0"]
    arguments = [word for field in (f"data.root={imagenet}", *fields) for word in ("--set", field)]
    arguments += ["--ranks", "2", "--store", str(store), "--axis", "model.arch=torchvision/resnet50"]
    arguments += ["--axis", "model.distribution=signed_constant"]
    log = tmp_path / "launch.log"
    with log.open("w") as output:
        launch = psutil.Popen(
            [sys.executable, "-m", "sweeps", "launch", "imagenet", *arguments],
            stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path,
            env=os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    killed = False
    while launch.poll() is None:
        if not killed and [*store.glob("cells/*/checkpoint/checkpoint.pt")]:  # an epoch is done
            for process in started_by_cells(launch)[:1]:
                process.send_signal(signal.SIGKILL)
                killed = True
        time.sleep(0.1)
    assert launch.returncode == 0, log.read_text()
    assert killed
    assert f"40 classes, {CLASSES * TRAIN} training and {CLASSES * VAL} test images" in log.read_text()

    results = [json.loads(path.read_text()) for path in store.glob("cells/*/result.json")]
    assert sorted(result["config"]["model"]["method"] for result in results) == ["dense", "edge_popup"]
    assert sorted(result["attempts"] for result in results) == [1, 2]
    for result in results:
        assert [record["epoch"] for record in result["history"]] == [1, 2]
        assert (result["ranks"], result["summary"]["corrupt_images"]) == (2, 0)
        assert result["config"]["optim"]["lr"] == pytest.approx(0.032)  # for a batch of 32
    (ticket,) = store.glob("cells/*/ticket.ticket")
    assert Ticket.from_bytes(ticket.read_bytes()).inputs.classes == CLASSES

    main(["figure", "imagenet", "--from", str(store), "--out", str(tmp_path / "figures")])
    drawn = pd.read_csv(tmp_path / "figures/imagenet.csv")
    assert set(drawn["kind"]) == {"subnetwork", "baseline", "published"}
    assert drawn.loc[drawn["kind"] == "published", "mean"].max() == 73.3
