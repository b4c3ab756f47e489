"""Files whose metadata stand beside them are read only together, whole, and as they were written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilemamba.errors import WeightsError
from mobilemamba.export.format import Source
from mobilemamba.export.sidecar import SidecarFormat, sidecar_of
from mobilemamba.models import load_network
from mobilemamba.models.card import CARD_KEY
from mobilemamba.models.runtime import RUNTIMES
from tests.export.conftest import CARD


class Paired(SidecarFormat):
    """Two files, each with a number: the answer is one times the picture's mean, and the other added."""

    name, suffix, extra = "numpy", ".paired", "numpy"
    writes, reads = (), ("numpy",)

    def files(self, path: Path) -> tuple[Path, ...]:
        return path, path.with_suffix(".second")

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        for file, number in zip(self.files(path), ("2.5", "1.5"), strict=True):
            file.write_text(number)
        self.write_sidecar(path, metadata, source)

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        assert path.exists(), "the runtime may end the process"
        factor, more = (float(file.read_text()) for file in self.files(path))
        return lambda x: factor * x.mean((2, 3)) + more, "numpy"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(RUNTIMES, ".paired", Paired())
    source, metadata = Source(torch.nn.Identity(), 3, (64, 96), 1), {CARD_KEY: json.dumps(CARD.as_dict())}
    Paired().write(source, metadata, tmp_path / "x.paired")
    return tmp_path / "x.paired"


def test_they_are_read_as_they_were_written(path: Path) -> None:
    network, card = load_network(path)
    assert card == CARD
    torch.testing.assert_close(network(torch.ones(3, 3, 64, 96)), torch.full((3, 3), 4.0))


def test_what_is_left_of_a_removed_file_describes_none(path: Path) -> None:
    path.unlink()
    with pytest.raises(WeightsError, match=r"^no weights at .*x.paired: expected"):
        Paired().metadata(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.unlink(), "no weights at {x}: expected a file that mobilemamba export wrote"),
        (lambda x: sidecar_of(x).unlink(), "cannot read {x}: there is no x.paired.json beside it; expected a file"),
        (lambda x: x.with_suffix(".second").unlink(), "cannot read {x}: there is no x.second beside it; expected a fi"),
        (
            lambda x: sidecar_of(x).write_text("[]"),
            "cannot read {x}.json: a list instead of named entries; exp",
        ),
        (lambda x: sidecar_of(x).write_text("{"), "cannot read {x}.json: .*; expected what mobilemamba export wrote"),
        (lambda x: sidecar_of(x).write_text('{"name": "page"}'), "{x} was written by another program: it does not des"),
        (
            lambda x: sidecar_of(x).write_text(sidecar_of(x).read_text().replace("0", "1")),
            "cannot read {x}: it is not what",
        ),
        (lambda x: x.write_text("2"), "cannot read {x}: it is not what x.paired.json was written for; expected a file"),
        (lambda x: x.with_suffix(".second").write_text(""), "cannot read {x}: it is not what x.paired.json was writ"),
    ],
)
def test_what_is_not_whole_reaches_no_runtime(path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(path)
    with pytest.raises(WeightsError, match=message.replace("{x}", ".*x.paired")) as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
