"""The pictures that an export is compared on and its scales are fitted by, and how answers are compared."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mobilemamba.dense.segmenter import RuntimeSegmenter
from mobilemamba.errors import ConfigError
from mobilemamba.export import calibration
from mobilemamba.export.calibration import Calibration, compare, read_calibration, whole_batches
from mobilemamba.models.runtime import RuntimeNetwork
from tests.export.conftest import CARD


def test_a_fixed_number_of_pictures_is_filled_up() -> None:
    seen = []
    network = RuntimeNetwork(lambda x: (seen.append(len(x)), x.sum((2, 3)))[1], (4, 3, 8, 8), "")
    x = torch.randn(9, 3, 8, 8)
    torch.testing.assert_close(network(x), x.sum((2, 3)))
    assert seen == [4, 4, 4]
    with pytest.raises(ConfigError, match="pictures of 3 x 8 x 9: the exported network takes 3 x 8 x 8; export"):
        network(torch.randn(1, 3, 8, 9))


def test_scales_are_fitted_by_whole_batches() -> None:
    pictures = torch.arange(5.0)[:, None, None, None]
    assert [batch.flatten().tolist() for batch in whole_batches(pictures, 3)] == [[0, 1, 2], [3, 4, 0]]
    assert [batch.flatten().tolist() for batch in whole_batches(pictures, 7)] == [[0, 1, 2, 3, 4, 0, 1]]


def test_of_many_pictures_some_are_taken_all_over_the_folder(
    pictures: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = read_calibration(pictures, CARD, network)
    monkeypatch.setattr(calibration, "MOST", 7)
    some = read_calibration(pictures, CARD, network)
    assert torch.equal(some.pictures, every.pictures[::2])
    assert torch.equal(some.labels, every.labels[::2])


def test_probabilities_of_a_detector_are_compared_where_they_are_sure() -> None:
    boxes, chances = torch.zeros(20, 2, 4), torch.tensor([[0.9, 0.1], [0.2, 0.3]]).expand(20, 2, 2)
    given = Calibration(torch.zeros(20, 3, 8, 8), None)
    original = lambda x: torch.cat([boxes, chances], 2)[: len(x)]  # noqa: E731
    exported = lambda x: torch.cat([boxes + 9, chances + torch.tensor([0.02, 0.05])], 2)[: len(x)]  # noqa: E731
    found = compare(original, exported, given, "candidates")  # type: ignore[arg-type]
    assert (found.pictures, found.same) == (20, None)
    assert found.off == pytest.approx(((0.02 + 0.05) / 2, 0.05), abs=1e-6)  # of 0.9 and 0.3, and of all


def test_maps_of_pixels_have_the_pictures_own_size() -> None:
    network = RuntimeSegmenter(RuntimeNetwork(lambda x: x[:, :2], (None, 3, 8, 8), ""), {})
    x = torch.arange(12.0).repeat_interleave(2)[None, None, None, :].expand(1, 3, 16, 24)
    answer = network(x)
    assert answer.shape == (1, 2, 16, 24)
    assert (answer[0, 0, 0, 1:] >= answer[0, 0, 0, :-1]).all()
    assert (answer - x[:, :2]).abs().max() < 1.5


def test_probabilities_stand_for_logits() -> None:
    logits = torch.randn(2, 5)
    network = RuntimeNetwork(lambda _: logits.softmax(-1).numpy(), (None, 3, 8, 8), "", probabilities=True)
    torch.testing.assert_close(network(torch.zeros(2, 3, 8, 8)), logits.log_softmax(-1))
