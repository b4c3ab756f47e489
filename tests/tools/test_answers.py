"""Drawings are whole, and of one run."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from mobilemamba.errors import ConfigError
from mobilemamba.tools.answers import Drawings

RED, BLUE = (Image.new("RGB", (6, 5), colour) for colour in ("red", "blue"))


def test_drawings_of_an_earlier_run_go_and_no_other_picture(tmp_path: Path) -> None:
    first = Drawings(tmp_path, "--draw")
    first.save(1, {"": RED, "_labels": RED})
    first.save(2, {"": RED})
    first.end()
    for other in ("mine.png", "0003.txt"):
        (tmp_path / other).touch()
    second = Drawings(tmp_path, "--draw")
    second.save(1, {"": BLUE})
    assert (tmp_path / "0002.png").exists(), "until the new ones are there"
    second.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001.png", "0003.txt", "mine.png"]
    assert Image.open(tmp_path / "0001.png").getpixel((0, 0)) == (0, 0, 255)
    RED.save(tmp_path / "0007.png")
    with pytest.raises(ConfigError, match=r"^--draw .*: 0007.png in it was not drawn by predict and would be lost; ch"):
        Drawings(tmp_path, "--draw")


def test_a_full_disk_leaves_no_part_of_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    drawings = Drawings(tmp_path, "--draw")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        drawings.save(1, {"": RED})
    assert not list(tmp_path.iterdir())
