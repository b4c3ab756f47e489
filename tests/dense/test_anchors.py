"""Anchors on a GPU."""

import pytest
import torch

from mobilemamba.dense.anchors import Anchors, boxes_of_ratios
from tests.pretended import CARD, PretendedCard, needs_no_driver


@needs_no_driver
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_host_waits_for_a_gpu_at_the_first_call_alone() -> None:
    anchors, grids = Anchors((8, 16), [boxes_of_ratios([24]), boxes_of_ratios([48])]), [(3, 5), (2, 3)]
    with PretendedCard() as card:
        with torch.inference_mode():  # as in a validation, before the training goes on
            anchors(grids, CARD)
        before = card.waits.copy()
        found = anchors(grids, CARD)
        assert sum(before.values()) == 2
        assert card.waits == before
        codes = torch.ones(4, requires_grad=True).to(CARD)
        torch.cat([codes * level for level in found]).sum().backward()
        for level, expected in zip(found, anchors(grids, torch.device("cpu")), strict=True):
            assert torch.equal(level.cpu(), expected)
