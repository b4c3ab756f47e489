"""Composition of scenes with several articles of clothing in front of a textured background.

A scene has all targets of dense tasks: the class of every pixel, boxes, instance masks and areas.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mobilemamba.data.sampling import make_generator

_CLASSES = 10  # number of classes of articles
_COUNT = (2, 5)  # articles in a scene
_BLACK = 12 / 255  # threshold of the background, as a picture has a faint seam around the article
_SCALE = (0.42, 0.78)  # side of an article's picture, as a fraction of the scene's shorter side
_TURN = 0.3  # largest rotation in radians, in both directions
_REACH = 0.8  # largest distance of centres from the middle, as a fraction of the way to the edge
_HUES = 0.07  # standard deviation of a class's hues, in turns; the means of the classes are 0.1 apart
_SEEN = 0.3  # an article is left out if a smaller fraction of it is visible
_LEAST = 0.002  # or if it covers a smaller fraction of the scene
_GRIDS = (2, 5, 13, 31)  # cells along each side of the background's texture, coarse to fine


class Scene(NamedTuple):
    """A picture and its N articles, from back to front.

    Attributes:
        image: (3, H, W) float32 in 0..1.
        classes: (H, W) int64, 0 for the background, 1 + label for an article.
        labels: (N,) int64, the articles' classes, from 0.
        masks: (N, H, W) bool, their visible pixels, without overlaps.
        boxes: (N, 4) float32, around the visible pixels: left, top, right, bottom in pixels, the last two exclusive.
        areas: (N,) float32, the numbers of visible pixels.
    """

    image: Tensor
    classes: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor
    areas: Tensor


def compose(pictures_MHW: Tensor, labels_M: Tensor, size: tuple[int, int], *numbers: int) -> Scene:
    """Composes the scene that is determined by ``numbers``; at another size its composition is the same.

    Articles are scaled, mirrored, rotated a little and placed anywhere, also over others and beyond the edge. The
    silhouette of an article is the part of its picture that is not black, with small holes closed. Its hue is drawn
    around that of its class, so widely that neighbouring classes share half of their hues; the background may have any.

    Args:
        pictures_MHW: (M, 28, 28) uint8, articles on black, some of which are drawn.
        labels_M: (M,) int64, their classes, from 0.
        size: Height and width in pixels.
        numbers: Seeds, each 0 or more.
    """
    generator = make_generator(*numbers)
    count = int(torch.randint(_COUNT[0], _COUNT[1] + 1, (), generator=generator))
    chosen_N = torch.randint(len(labels_M), (count,), generator=generator)
    labels_N = labels_M[chosen_N]
    light_NHW, cover_NHW = _place(pictures_MHW[chosen_N], size, generator)
    hue_N = labels_N / _CLASSES + _HUES * torch.randn(count, generator=generator)
    saturation_N, value_N = _uniform((2, count), 0.3, 0.9, generator)
    colour_N3 = _rgb(hue_N, saturation_N, value_N + 0.1)
    image = _background(size, generator)

    kept_N, masks_NHW = _visible(cover_NHW > 0.5)
    for n in kept_N:
        image = torch.lerp(image, light_NHW[n] * colour_N3[n, :, None, None], cover_NHW[n])
    image += 0.02 * torch.randn(image.shape, generator=generator)  # last, as its number depends on the size
    labels_N = labels_N[kept_N]
    classes_HW = ((labels_N + 1)[:, None, None] * masks_NHW).sum(0)
    return Scene(image.clamp_(0, 1), classes_HW, labels_N, masks_NHW, _boxes(masks_NHW), masks_NHW.sum((1, 2)).float())


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator)


def _place(pictures_NHW: Tensor, size: tuple[int, int], generator: Generator) -> tuple[Tensor, Tensor]:
    """Returns each article's brightness and its coverage of each pixel, both (N, H, W) in 0..1."""
    count, side = len(pictures_NHW), min(size)
    scale_N11 = _uniform((count, 1, 1), *_SCALE, generator)
    turn_N11 = _uniform((count, 1, 1), -_TURN, _TURN, generator)
    centre_2N11 = _uniform((2, count, 1, 1), -_REACH, _REACH, generator)
    mirror_N11 = torch.rand((count, 1, 1), generator=generator) < 0.5

    # Position of each of the scene's pixels in the article's picture, -1 to 1 in both directions.
    y_H1, x_W = (((torch.arange(n) + 0.5) / n * 2 - 1) for n in size)
    y_NH1 = (y_H1[:, None] - centre_2N11[0]) * size[0] / side / scale_N11
    x_N1W = (x_W - centre_2N11[1]) * size[1] / side / scale_N11
    side_N11 = torch.where(mirror_N11, -1.0, 1.0)
    grid_NHW2 = torch.empty(count, *size, 2)
    torch.add(side_N11 * (turn_N11.cos() * x_N1W), side_N11 * (turn_N11.sin() * y_NH1), out=grid_NHW2[..., 0])
    torch.sub(turn_N11.cos() * y_NH1, turn_N11.sin() * x_N1W, out=grid_NHW2[..., 1])

    grey_NHW = pictures_NHW / 255
    article_NHW = (grey_NHW > _BLACK).float()
    article_NHW = -F.max_pool2d(-F.max_pool2d(article_NHW, 3, 1, 1), 3, 1, 1)  # closes holes of up to two pixels
    layers_N2HW = torch.stack([(0.25 + 0.75 * grey_NHW) * article_NHW, article_NHW], dim=1)
    light_NHW, soft_NHW = F.grid_sample(layers_N2HW, grid_NHW2, align_corners=False).unbind(1)
    # Sharpens edges, which enlargement has blurred.
    enlarged_N11 = (scale_N11 * side / pictures_NHW.shape[-1]).clamp(min=1)
    light_NHW = light_NHW.div_(soft_NHW.clamp(min=1e-3))
    return light_NHW, soft_NHW.sub_(0.5).mul_(enlarged_N11).add_(0.5).clamp_(0, 1)


def _visible(articles_NHW: Tensor) -> tuple[list[int], Tensor]:
    """Returns which articles are kept, and the visible part of each, given that articles in front hide those behind."""
    least = _LEAST * articles_NHW[0].numel()
    kept: list[int] = []
    visible: list[Tensor] = []
    free_HW = torch.ones_like(articles_NHW[0])
    for n in reversed(range(len(articles_NHW))):
        seen_HW = articles_NHW[n] & free_HW
        area = int(seen_HW.sum())
        if area > max(least, _SEEN * int(articles_NHW[n].sum())):
            kept.insert(0, n)
            visible.insert(0, seen_HW)
            free_HW = free_HW & ~articles_NHW[n]
    return kept, torch.stack(visible) if visible else articles_NHW[:0]


def _boxes(masks_NHW: Tensor) -> Tensor:
    """Returns the boxes (N, 4) float32 around the pixels of each mask, which must not be empty."""
    sides = []
    for along in (masks_NHW.any(1), masks_NHW.any(2)):  # (N, W), (N, H)
        first_N = along.int().argmax(1)
        sides.append((first_N, along.shape[1] - along.flip(1).int().argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


def _background(size: tuple[int, int], generator: Generator) -> Tensor:
    """Draws a background (3, H, W): two colours, mixed by noise at several scales."""
    hue_2, saturation_2, value_2 = _uniform((3, 2), 0, 1, generator)
    first, second = _rgb(hue_2, 0.6 * saturation_2, 0.3 + 0.65 * value_2)[:, :, None, None]
    mixed_HW = torch.zeros(size)
    for cells, weight in zip(_GRIDS, _uniform((len(_GRIDS),), 0, 1, generator).tolist(), strict=True):
        noise_11HW = torch.randn((1, 1, cells, cells), generator=generator)
        mixed_HW += weight * F.interpolate(noise_11HW, size, mode="bilinear")[0, 0]
    return torch.lerp(first, second, (mixed_HW + 0.5).clamp(0, 1))


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Returns RGB (N, 3) in 0..1 for hues in turns, and saturations and values in 0..1, (N,) each."""
    sixths = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    lack = torch.minimum(sixths, 4 - sixths).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * lack)
