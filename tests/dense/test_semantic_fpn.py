"""Semantic FPN: the pyramid from the coarsest map up, and levels that meet in the finest one's size."""

import torch
import torch.nn.functional as F

from mobilemamba.dense.semantic_fpn import FPN, SemanticFPNHead


def test_the_pyramid_adds_the_nearest_of_what_is_below() -> None:
    fpn, maps = FPN([3, 4, 5], 8), [torch.randn(1, 3, 17, 22), torch.randn(1, 4, 9, 11), torch.randn(1, 5, 5, 6)]
    with torch.no_grad():
        levels = fpn([torch.zeros(1, 2, 34, 44), *maps])  # the finest of four is not taken
        below = None
        for level in (2, 1, 0):
            x = fpn.inner_blocks[level](maps[level])
            below = x if below is None else x + F.interpolate(below, x.shape[2:], mode="nearest")
            assert torch.allclose(levels[level], fpn.layer_blocks[level](below), atol=1e-6)


def test_levels_are_doubled_then_brought_to_the_finest_size() -> None:
    head = SemanticFPNHead(8, [16, 32, 64], 3, dim=4).eval()
    maps = [torch.randn(1, 8, 17, 22), torch.randn(1, 8, 9, 11), torch.randn(1, 8, 5, 6)]

    def resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    with torch.no_grad():
        (conv0,), (conv1, _), (conv2, _, conv3, _) = head.levels
        coarse = resized(conv3(resized(conv2(maps[2]), (10, 12))), (20, 24))
        summed = conv0(maps[0]) + resized(resized(conv1(maps[1]), (18, 22)), (17, 22)) + resized(coarse, (17, 22))
        assert torch.allclose(head(maps), head.classifier(summed), atol=1e-6)


def test_levels_of_strides_4_to_32_and_dilated_ones() -> None:
    kinds = [[type(layer).__name__ for layer in level] for level in SemanticFPNHead(8, [4, 8, 16, 32], 3).levels]
    assert kinds == [["ConvNorm"], *(["ConvNorm", "Doubling"] * doublings for doublings in (1, 2, 3))]
    assert [len(level) for level in SemanticFPNHead(8, [8, 8, 8], 3).levels] == [1, 1, 1]
