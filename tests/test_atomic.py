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


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real")
    with replacing(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    with replacing(Path("/dev/null")) as partial:
        partial.write_text("new")
    assert not Path("/dev/null").is_file()


def test_a_folder_that_is_none_is_the_error_to_report(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "file" / "x") as partial:
        partial.touch()


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
