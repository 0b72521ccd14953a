"""Checkpoints are whole or absent, whatever happens to the files or to the process."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiddenweights.training import checkpoint
from hiddenweights.training.checkpoint import load_checkpoint, save_checkpoint


def state(epoch: int) -> dict:
    return {"epoch": epoch, "scores": torch.arange(100.0) * epoch, "history": f"[{epoch}]"}


def newest(folder):
    """The checkpoint file that was written last."""
    return max(folder.iterdir(), key=lambda file: (file.stat().st_mtime_ns, file.name == "checkpoint.pt"))


@pytest.fixture
def folder(tmp_path):
    """Two epochs' checkpoints."""
    save_checkpoint(tmp_path / "cell", state(1))
    save_checkpoint(tmp_path / "cell", state(2))
    return tmp_path / "cell"


def test_the_newest_comes_back_as_it_was(folder):
    loaded = load_checkpoint(folder)
    assert loaded["epoch"] == 2
    assert loaded["history"] == "[2]"
    assert torch.equal(loaded["scores"], state(2)["scores"])


def test_nothing_comes_from_nothing(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "absent") is None


def test_only_two_are_kept(folder):
    for epoch in range(3, 7):
        save_checkpoint(folder, state(epoch))
    assert len([*folder.iterdir()]) == 2
    assert load_checkpoint(folder)["epoch"] == 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_falls_back_to_the_one_before(folder, position, bit):
    file = newest(folder)
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[int(position * len(content))] ^= 1 << bit
    file.write_bytes(damaged)
    assert load_checkpoint(folder)["epoch"] == 1
    file.write_bytes(content)
    assert load_checkpoint(folder)["epoch"] == 2


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 500, -1])
def test_a_file_cut_short_falls_back_to_the_one_before(folder, length):
    file = newest(folder)
    file.write_bytes(file.read_bytes()[:length])
    assert load_checkpoint(folder)["epoch"] == 1


def test_when_all_are_damaged_training_starts_anew(folder):
    for file in folder.iterdir():
        file.write_bytes(b"\0" * 1000)
    assert load_checkpoint(folder) is None


class Died(BaseException):
    pass


@pytest.mark.parametrize("survived", range(8))
def test_dying_at_any_step_of_a_save_leaves_an_intact_one(folder, survived, monkeypatch):
    """The process ends at the `survived`-th call that changes the file system."""
    calls = 0

    def dies(real, partial_write=False):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > survived:
                if partial_write:
                    real(args[0], args[1][: len(args[1]) // 2])
                raise Died
            return real(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(os, "replace", dies(os.replace))
    monkeypatch.setattr(checkpoint.Path, "write_bytes", dies(checkpoint.Path.write_bytes, True))
    try:
        save_checkpoint(folder, state(3))
    except Died:
        assert survived < 3
    monkeypatch.undo()
    loaded = load_checkpoint(folder)
    assert loaded["epoch"] in (2, 3)
    assert torch.equal(loaded["scores"], state(loaded["epoch"])["scores"])
    save_checkpoint(folder, state(4))
    assert load_checkpoint(folder)["epoch"] == 4


def test_a_full_disk_is_an_error_that_leaves_the_old_ones_and_no_rubbish(folder, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    before = sorted(file.name for file in folder.iterdir())
    monkeypatch.setattr(checkpoint.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, state(3))
    monkeypatch.undo()
    assert sorted(file.name for file in folder.iterdir()) == before
    assert load_checkpoint(folder)["epoch"] == 2


def test_nothing_in_a_file_is_executed(folder, tmp_path, caplog):
    """A checkpoint whose digest is right but whose content is code is refused."""
    import hashlib
    import io

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    buffer = io.BytesIO()
    torch.save({"epoch": Evil()}, buffer)
    payload = buffer.getvalue()
    newest(folder).write_bytes(hashlib.sha256(payload).digest() + payload)
    assert load_checkpoint(folder)["epoch"] == 1
    assert "Weights only load failed" in caplog.text
    assert not (tmp_path / "executed").exists()
