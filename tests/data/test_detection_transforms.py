"""Boxes and masks go where the picture goes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from mobilemamba.data.detection_transforms import DetectionAugmentation, eval_transform, train_transform
from mobilemamba.data.objects import make_target
from mobilemamba.data.sampling import seeded
from mobilemamba.data.shared_transforms import Distort, fitted_size

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
EVERYTHING = DetectionAugmentation(
    expand=0.5, crop=True, brightness=0.1, contrast=0.5, saturation=0.5, hue=0.05, swap=0.5
)


def scene(size: tuple[int, int] = (60, 90)) -> tuple[Image.Image, dict[str, Tensor]]:
    """Three white rectangles on black, with their boxes and masks."""
    boxes = torch.tensor([[10.0, 10, 40, 30], [50, 20, 80, 50], [5, 40, 25, 55]])
    masks = torch.zeros(3, *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    pixels = masks.any(0)[..., None].expand(-1, -1, 3).byte() * 255
    target = make_target(
        boxes=boxes,
        labels=torch.tensor([3, 1, 4]),
        iscrowd=torch.zeros(3, dtype=torch.bool),
        area=torch.tensor([600.0, 900, 300]),
        masks=masks,
        size=size,
        original_size=size,
        image_id=7,
    )
    return Image.fromarray(pixels.numpy()), target


def drawn(key: int, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    given = {"img_size": (64, 96), "augmentation": DetectionAugmentation(), "mean": MEAN, "std": STD, **options}
    with seeded(0, key):
        return train_transform(**given)(*scene())


def boxed(target: dict[str, Tensor]) -> Tensor:
    left, top, right, bottom = masks_to_boxes(target["masks"]).unbind(1)
    return torch.stack([left, top, right + 1, bottom + 1], dim=1)


@pytest.mark.parametrize("resize", ["fit", "stretch"])
@pytest.mark.parametrize("augmentation", [DetectionAugmentation(sides=(40, 70)), EVERYTHING])
def test_boxes_and_masks_follow_the_picture(resize: Any, augmentation: DetectionAugmentation) -> None:
    kinds = set()
    for key in range(25):
        image, target = drawn(key, resize=resize, augmentation=augmentation)
        height, width = target["size"].tolist()
        assert image.shape == (3, height, width)
        assert target["masks"].shape[1:] == (height, width)
        assert target["original_size"].tolist() == [60, 90]
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert len(target["labels"]) == len(target["boxes"]) == len(target["masks"]) == len(target["area"])
        kept = target["masks"].flatten(1).sum(1) > 40
        torch.testing.assert_close(
            boxed(target | {"masks": target["masks"][kept]}), target["boxes"][kept], atol=2, rtol=0
        )
        if augmentation is not EVERYTHING:
            grey = image.mean(0)
            assert grey[target["masks"].any(0)].mean() > 1.5
            assert grey[~target["masks"].any(0)].mean() < -1.5
        kinds.add((height, width, len(target["labels"]), round(float(target["boxes"].sum()))))
        assert all(type(value) is Tensor for value in (image, *target.values()))
    assert len(kinds) > (1 if resize == "stretch" and augmentation is not EVERYTHING else 3)


LEFT, RIGHT = (10, 10, 40, 30), (50, 10, 80, 30)


@pytest.mark.parametrize(
    ("chance", "expected"), [({}, {LEFT, RIGHT}), ({"hflip": 1.0}, {RIGHT}), ({"hflip": 0}, {LEFT})]
)
def test_a_flip_alone_by_default(chance: dict[str, float], expected: set[Any]) -> None:
    options: dict[str, Any] = {
        "resize": "stretch",
        "img_size": (60, 90),
        "augmentation": DetectionAugmentation(**chance),
    }
    assert {tuple(drawn(key, **options)[1]["boxes"][0].tolist()) for key in range(10)} == expected


@pytest.mark.parametrize(("swap", "least", "most"), [(1.0, 3, 6), (1e-6, 1, 1)])
def test_channels_are_swapped_as_often_as_asked(swap: float, least: int, most: int) -> None:
    change = train_transform((60, 90), DetectionAugmentation(swap=swap), MEAN, STD)
    orders = set()
    for key in range(12):
        with seeded(key):
            image, _ = change(Image.new("RGB", (90, 60), (10, 100, 200)), scene()[1])
        orders.add(tuple(image[:, 0, 0].tolist()))
    assert least <= len(orders) <= most


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda old, new: new - old,
    "contrast": lambda old, new: new / old - 1,
    "saturation": lambda old, new: (new.amax(0) - new.amin(0)) / (old.amax(0) - old.amin(0)) - 1,
    "hue": lambda old, new: torch.stack([new.amax(0) - old.amax(0), new.amin(0) - old.amin(0)]),  # stay as they are
}


@pytest.mark.parametrize("kind", CHANGES)
def test_colours_of_half_of_the_pictures_change_within_limits(kind: str) -> None:
    picture = 0.3 + 0.4 * torch.rand(3, 8, 9)
    distort = Distort(**dict.fromkeys(CHANGES, 0.0) | {kind: 0.2})
    changes, same = [], 0
    for key in range(40):
        with seeded(0, key):
            found, _ = distort(picture, {})
        change = CHANGES[kind](picture, found)
        assert change.std() < 1e-5, "alike for all pixels"
        changes.append(float(change.mean()))
        same += torch.allclose(found, picture, atol=1e-5)
    assert 10 < same < 30
    if kind == "hue":
        assert max(map(abs, changes)) < 1e-5
    else:
        assert -0.2 <= min(changes) < -0.1 < 0.1 < max(changes) <= 0.2


def test_colours_stay_in_their_range_and_are_changed_in_training() -> None:
    distort = Distort(0.5, 0.9, 0.9, 0.5)
    for key in range(20):
        with seeded(0, key):
            found, _ = distort(torch.rand(3, 8, 9), {})
        assert -1e-6 < found.min() < found.max() < 1 + 1e-6
    plain = DetectionAugmentation(hflip=0)
    pairs = [[drawn(key, augmentation=one)[0] for one in (plain, replace(plain, contrast=0.5))] for key in range(9)]
    assert 0 < sum(torch.equal(*pair) for pair in pairs) < 9


def test_some_pictures_are_not_cropped() -> None:
    options: dict[str, Any] = {"resize": "stretch", "img_size": (60, 90)}
    options["augmentation"] = DetectionAugmentation(hflip=0, crop=True)
    whole = [torch.equal(drawn(key, **options)[1]["boxes"], scene()[1]["boxes"]) for key in range(10)]
    assert 0 < sum(whole) < len(whole)


def crop_always(monkeypatch: pytest.MonkeyPatch, overlap: int) -> list[list[float]]:
    """Every picture is cropped, with this one of the minimal overlaps; returns where the crops will be written."""
    pieces: list[list[float]] = []
    real = torch.randint

    def pick(*args: Any, **options: Any) -> Tensor:
        return torch.tensor(overlap) if args[0] == 7 else real(*args, **options)

    monkeypatch.setattr(torch, "randint", pick)
    monkeypatch.setattr("mobilemamba.data.detection_transforms.TF.crop", recording(pieces))
    return pieces


def test_crops_keep_the_objects_whose_centres_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, numbers = crop_always(monkeypatch, 0), set()  # any overlap
    for key in range(20):
        pieces.clear()
        labels = drawn(key, augmentation=DetectionAugmentation(hflip=0, crop=True), resize="fit")[1]["labels"].tolist()
        left, top, right, bottom = pieces[0]
        centres = {3: (25, 20), 1: (65, 35), 4: (15, 47.5)}
        assert labels == [label for label, (x, y) in centres.items() if left < x < right and top < y < bottom]
        numbers.add(len(labels))
    assert numbers == {1, 2, 3}


def test_crops_overlap_all_boxes_as_much_as_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = crop_always(monkeypatch, 3)  # an overlap of 0.5
    picture, target = scene()
    target = {name: value[:2] if value.ndim and len(value) == 3 else value for name, value in target.items()}
    target |= {"boxes": torch.tensor([[5.0, 5, 80, 50], [10, 2, 85, 58]])}
    change = train_transform((60, 90), DetectionAugmentation(hflip=0, crop=True), MEAN, STD, resize="fit")
    for key in range(10):
        pieces.clear()
        with seeded(0, key):
            _, found = change(picture, target)
        left, top, right, bottom = pieces[0]
        assert box_iou(torch.tensor([pieces[0]]), target["boxes"]).min() >= 0.5
        assert 0.5 <= (bottom - top) / (right - left) <= 2
        assert min((bottom - top) / 60, (right - left) / 90) >= 0.28
        assert len(found["boxes"]) == 2


def recording(pieces: list[list[float]]) -> Any:
    from torchvision.transforms.v2.functional import crop

    def cut(what: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        pieces.append([float(left), float(top), float(left + width), float(top + height)])
        return crop(what, top, left, height, width)

    return cut


def test_expansion_fills_with_the_mean() -> None:
    for key in range(5):
        image, target = drawn(key, augmentation=DetectionAugmentation(hflip=0, expand=1.0), resize="stretch")
        around = (image.abs() < 0.02).all(0)
        assert around.any()
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1).sum() < 1800 * 64 * 96 / (60 * 90)


def test_a_picture_without_objects() -> None:
    picture, target = scene()
    none = {name: value[:0] if value.ndim and len(value) == 3 else value for name, value in target.items()}
    change = train_transform((64, 96), EVERYTHING, MEAN, STD, resize="stretch")
    for key in range(5):
        with seeded(0, key):
            image, found = change(picture, none)
        assert image.shape == (3, 64, 96)
        assert len(found["boxes"]) == len(found["masks"]) == 0


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), [800, 1067]),
        ((640, 480), (800, 1333), [1067, 800]),
        ((300, 900), (800, 1333), [444, 1333]),
        ((1, 1000), (800, 1333), [1, 1333]),
        ((800, 1333), (800, 1333), [800, 1333]),
    ],
)
def test_sizes_that_fit(size: tuple[int, int], limits: tuple[int, int], expected: list[int]) -> None:
    assert fitted_size(size, limits) == expected


def test_evaluation_shows_the_whole_picture() -> None:
    picture, _ = scene()
    assert eval_transform((40, 70), MEAN, STD, resize="fit")(picture).shape == (3, 40, 60)
    image = eval_transform((30, 30), MEAN, STD)(picture)
    assert image.shape == (3, 30, 30)
    assert image.min() == -2
    assert image.max() == 2
