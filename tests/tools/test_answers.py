"""Files of answers are whole at any moment, and drawings of one run."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing
from mobilemamba.models.predictor import ClassificationPredictor
from mobilemamba.tools import answers
from mobilemamba.tools.answers import AnswerFile, Drawings

RED, BLUE = (Image.new("RGB", (6, 5), colour) for colour in ("red", "blue"))


def test_what_was_done_is_kept_when_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written while the work goes on, whole each time."""
    monkeypatch.setattr(answers, "_SECONDS", 0.0)
    file = AnswerFile(tmp_path / "x.json")
    card = ModelCard("x", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 1)
    predictor = ClassificationPredictor(torch.nn.Identity(), card, torch.device("cpu"))
    file.keep([{"picture": "a", "error": ""}], predictor)
    assert len(json.loads((tmp_path / "x.json").read_text())) == 1
    monkeypatch.setattr(answers, "_SECONDS", 1e6)
    file.write([], predictor)
    file.keep([{"picture": "a", "error": ""}], predictor)
    assert json.loads((tmp_path / "x.json").read_text()) == []


def test_drawings_of_an_earlier_run_go_and_no_other_picture(tmp_path: Path) -> None:
    first = Drawings(tmp_path, "--draw")
    first.save(1, {"": RED, "_labels": RED})
    first.save(2, {"": RED})
    first.end()
    for other in ("mine.png", "0003.txt", ".0002.png.01234567.tmp"):
        (tmp_path / other).touch()
    second = Drawings(tmp_path, "--draw")
    places = (tmp_path / "0002.png", tmp_path / "mine.png", tmp_path.parent / "0002.png")
    assert [second.has_drawn(path) for path in places] == [True, False, False]
    second.save(1, {"": BLUE})
    assert (tmp_path / "0002.png").exists(), "until the new ones are there"
    second.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001.png", "0003.txt", "mine.png"]
    assert Image.open(tmp_path / "0001.png").getpixel((0, 0)) == (0, 0, 255)
    RED.save(tmp_path / "0007.png")
    with pytest.raises(ConfigError, match=r"^--draw .*: 0007.png in it was not drawn by predict and would be lost; ch"):
        Drawings(tmp_path, "--draw")


def test_the_table_says_where_nothing_was_found_or_read(capsys: pytest.CaptureFixture[str]) -> None:
    card = ModelCard("x", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 1)
    predictor = ClassificationPredictor(torch.nn.Identity(), card, torch.device("cpu"))
    answers.print_table([{"picture": "a.png", "classes": []}, {"picture": "b.png", "error": "broken"}], predictor)
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if ".png" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [["a.png", "nothing found", ""], ["b.png", "unreadable", ""]]


def test_a_full_disk_leaves_no_part_of_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    drawings = Drawings(tmp_path, "--draw")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        drawings.save(1, {"": RED})
    assert not list(tmp_path.iterdir())
