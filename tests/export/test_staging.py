"""What takes its name when it is complete: the old or the new stands there, and nothing else is left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mobilemamba.export.staging import staged


def _write_folder(path: Path) -> None:
    path.mkdir()
    (path / "part").write_text("new")


def _write_files(path: Path) -> None:
    path.write_text("new")
    path.with_suffix(".bin").write_text("new")


@pytest.mark.parametrize("write", [_write_folder, _write_files])
@pytest.mark.parametrize("former", ["folder", "file", "link"])
def test_what_stood_there_is_replaced_as_a_whole(tmp_path: Path, write: Callable[[Path], None], former: str) -> None:
    target = tmp_path / "x.y"
    left = tmp_path / ".x.y.01234567.tmp"  # by one that was killed
    for folder in (left, *[target] * (former == "folder")):
        folder.mkdir()
        (folder / "other").touch()
    if former != "folder":
        target.write_text("old") if former == "file" else target.symlink_to("nowhere")
    with staged(target) as path:
        assert not left.exists()
        write(path)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")} == (
        {"x.y", "x.y/part"} if write is _write_folder else {"x.y", "x.bin"}
    )
    assert {file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == {"new"}


def test_what_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "x.y"
    target.write_text("old")

    def fail() -> None:
        with staged(target) as path:
            _write_files(path)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
