"""What takes its name when it is complete: the old or the new stands there, and nothing else is left."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilemamba import files
from mobilemamba.export.staging import staged


def _write_folder(path: Path, text: str = "new") -> None:
    path.mkdir()
    (path / "part").write_text(text)


def _write_files(path: Path, text: str = "new") -> None:
    path.write_text(text)
    path.with_suffix(".bin").write_text(text)


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


@pytest.mark.parametrize(
    ("write", "steps"),
    [
        (lambda path: path.write_text("new"), [("disk", "old"), ("x.y", "new")]),
        (_write_files, [*[("disk", "old")] * 2, ("x.y.former", None), ("x.bin", None), ("x.y", "new")]),
    ],
    ids=["one file", "two files"],
)
def test_the_name_never_stands_for_a_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], object],
    steps: list[tuple[str, str | None]],
) -> None:
    """A single file is there all the time; one with others beside it is away while these are of another export."""
    target, seen, replace = tmp_path / "x.y", list[tuple[str, str | None]](), os.replace

    def watched(source: Path, to: Path) -> None:
        replace(source, to)
        seen.append((Path(to).name, target.read_text() if target.exists() else None))

    target.write_text("old")
    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(("disk", target.read_text())))
    with staged(target) as path:
        write(path)
    assert seen == steps


@pytest.mark.skipif(files.fcntl is None, reason="this system has no locks")
@pytest.mark.parametrize("write", [_write_folder, _write_files])
def test_two_at_the_same_time_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None]
) -> None:
    """While one takes its name, another wants to."""
    target, replace = tmp_path / "x.y", os.replace

    def export(text: str) -> None:
        with staged(target) as path:
            write(path, text)

    other = threading.Thread(target=export, args=["other"])

    def interrupted(source: Path, to: Path) -> None:
        replace(source, to)
        if not other.ident:
            other.start()
            other.join(0.2)  # it would be over long ago

    export("old")
    monkeypatch.setattr(os, "replace", interrupted)
    export("one")
    other.join()
    assert {file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == {"other"}
