"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from hiddenweights.atomic import replacing


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("written", [True, False])
def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path, written: bool) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")

    def fail() -> None:
        with replacing(file) as partial:
            if written:
                partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "old"
    assert [*tmp_path.iterdir()] == [file]
