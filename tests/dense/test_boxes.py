"""Which anchor finds which box, what is left of those found, and what regions and masks are made of."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.ops import roi_align

from mobilemamba.dense.boxes import BACKGROUND, IGNORED, BoxCoder, above, assign, keep_best
from mobilemamba.dense.regions import cut_masks, paste_masks, pool_regions


def boxes(*corners: list[float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32).view(-1, 4)


ANCHORS = boxes([0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 3], [50, 0, 60, 10])


def test_anchors_by_overlap() -> None:
    found = assign(ANCHORS, boxes([0, 0, 10, 10]), positive=0.5, negative=0.4)
    assert found.tolist() == [0, 0, 0, IGNORED, BACKGROUND, BACKGROUND]
    assert assign(ANCHORS, boxes(), positive=0.5, negative=0.4).tolist() == [BACKGROUND] * 6


def test_each_box_takes_the_anchors_that_cover_it_best() -> None:
    anchors = boxes([0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10])
    small = boxes([0, 0, 2, 2])
    assert assign(anchors, small, positive=0.5, negative=0.4).tolist() == [0, 0, BACKGROUND]
    assert assign(anchors, small, positive=0.5, negative=0.4, ties=False).tolist() == [0, BACKGROUND, BACKGROUND]
    assert assign(anchors, small, positive=0.5, negative=0.3, lowest=0.3).tolist() == [BACKGROUND] * 3
    # A later box takes them from an earlier one, however well that fits; and none takes what it does not touch.
    both = boxes([0, 0, 10, 10], [0, 0, 2, 2], [90, 90, 99, 99])
    assert assign(anchors, both, positive=0.5, negative=0.4).tolist() == [1, 1, BACKGROUND]


def test_codes_are_bounded_on_both_sides() -> None:
    coder, anchors = BoxCoder((10.0, 10.0, 5.0, 5.0)), boxes([0, 0, 16, 16], [4, 8, 20, 18])
    decoded = coder.decode_single(torch.tensor([[0, 0, 99.0, -99.0]]), anchors[:1])
    assert torch.allclose(decoded, boxes([8 - 500, 8 - 0.128, 8 + 500, 8 + 0.128]))
    expected = boxes([1, 2, 9, 30], [5, 5, 6, 6])
    assert torch.allclose(coder.decode_single(coder.encode_single(expected, anchors), anchors), expected, atol=1e-5)
    codes, anchors = torch.randn(50, 4), expected[:1] + 3 * torch.arange(50.0)[:, None]
    theirs = _utils.BoxCoder(coder.weights).decode_single(codes, anchors)
    torch.testing.assert_close(coder.decode_single(codes, anchors), theirs)


def test_what_is_above_and_what_is_kept() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.5, 0.7], [0.8, 0.2]])
    values, rows, columns = above(logits, 0.5, 3)
    assert torch.equal(logits[rows, columns], values)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 0)]
    assert above(logits, 0.5, 2)[0].tolist() == pytest.approx([0.9, 0.8])
    corners = boxes([-5, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 70, 70], [90, 0, 95, 10])
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.99]), torch.tensor([1, 1, 0, 0, 0])
    kept = keep_best(corners, scores, labels, (60, 60), 0.5, 10)
    assert kept["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert kept["labels"].tolist() == [1, 0, 0]
    assert kept["boxes"].tolist() == [[0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60]]
    assert keep_best(corners, scores, labels, (60, 60), 0.5, 1)["scores"].tolist() == pytest.approx([0.9])


def test_regions_are_read_from_the_level_of_their_size() -> None:
    levels = [torch.randn(2, 3, 64 // 2**i, 64 // 2**i) for i in range(4)]
    of_first, of_second = boxes([0, 0, 20, 20], [10, 10, 250, 250]), boxes([3, 4, 115.9, 116], [3, 4, 116, 117])
    regions = pool_regions(levels, (4, 8, 16, 32), (of_first, of_second), 7)
    for region, box, picture, i in zip(
        regions, torch.cat((of_first, of_second)), (0, 0, 1, 1), (0, 2, 1, 1), strict=True
    ):
        indexed = torch.cat((box.new_tensor([picture]), box))[None]
        one = roi_align(levels[i], indexed, 7, 1 / (4 * 2**i), sampling_ratio=0, aligned=True)
        assert torch.equal(region, one[0])
    assert pool_regions(levels, (4, 8, 16, 32), (boxes(), boxes()), 7).shape == (0, 3, 7, 7)


def test_masks_are_cut_and_pasted_alike() -> None:
    y, x = torch.meshgrid(torch.arange(90) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    ellipse = ((x - 50) / 30) ** 2 + ((y - 40) / 25) ** 2 <= 1
    masks = torch.stack((torch.zeros_like(ellipse), ellipse))
    around = boxes([18.5, 12.25, 83, 67], [40, 30, 140, 95])
    cut = cut_masks(masks, torch.tensor([1, 1]), around, 28)
    assert set(cut.unique().tolist()) == {0, 1}
    assert cut[0].mean() == pytest.approx(math.pi * 30 * 25 / (64.5 * 54.75), abs=0.02)
    pasted = paste_masks(cut, around, (90, 120))
    assert (pasted[0] ^ ellipse).sum() < 0.04 * ellipse.sum()
    assert not pasted[1, :, :39].any()


def test_pasting_is_by_the_centres_of_pixels() -> None:
    masks, corners = torch.rand(3, 28, 28), boxes([3.3, 4.7, 41.2, 30.1], [-9.5, -3, 20, 70], [10, 10, 10.2, 10.2])
    for mask, box, pasted in zip(masks, corners, paste_masks(masks, corners, (50, 60)), strict=True):
        y, x = torch.meshgrid(torch.arange(50) + 0.5, torch.arange(60) + 0.5, indexing="ij")
        sides = box[2:] - box[:2]
        grid = torch.stack(((x - box[0]) / sides[0], (y - box[1]) / sides[1]), -1) * 2 - 1
        whole = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
        assert torch.equal(pasted, whole)
    assert paste_masks(torch.rand(0, 28, 28), boxes(), (5, 6)).shape == (0, 5, 6)
