import pickle

import pytest
import torch
from torch import Tensor

from mobilemamba.data import FashionScenes
from mobilemamba.data.fashion_mnist import read_sample, split_mask
from mobilemamba.data.fashion_scenes import SceneSet
from mobilemamba.data.scenes import Scene
from mobilemamba.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def train() -> SceneSet:
    return SceneSet(20, (64, 64), 0)


@pytest.fixture(scope="module")
def val() -> SceneSet:
    return SceneSet(20, (64, 64), None)


def same(first: Scene, second: Scene) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_composition_agrees_with_itself(train: SceneSet) -> None:
    for key in range(20):
        scene = train.scene(key)
        count = len(scene.labels)
        assert 1 <= count <= 5
        assert scene.image.shape == (3, 64, 64)
        assert 0 <= scene.image.min() <= scene.image.max() <= 1
        assert scene.masks.sum(0).max() == 1
        assert torch.equal(scene.classes > 0, scene.masks.any(0))
        assert scene.areas.tolist() == scene.masks.sum((1, 2)).tolist()
        for mask, label, (left, top, right, bottom) in zip(
            scene.masks, scene.labels, scene.boxes.int().tolist(), strict=True
        ):
            assert (scene.classes[mask] == label + 1).all()
            rows, columns = mask.nonzero().unbind(1)
            assert [left, top, right, bottom] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_articles_are_of_the_scenes_own_part(train: SceneSet, val: SceneSet) -> None:
    pictures, labels = read_sample()
    part = split_mask(labels)
    assert torch.equal(train.pictures_NHW, pictures[~part])
    assert torch.equal(train.labels_N, labels[~part])
    assert torch.equal(val.pictures_NHW, pictures[part])
    assert torch.equal(val.labels_N, labels[part])


def test_scenes_are_a_function_of_seed_and_key(train: SceneSet, val: SceneSet) -> None:
    again = SceneSet(20, (64, 64), 0)
    assert same(train.scene(23), again.scene(23))
    assert not torch.equal(train.scene(3).image, train.scene(23).image)  # the next epoch
    assert not torch.equal(train.scene(3).image, SceneSet(20, (64, 64), 1).scene(3).image)
    assert not torch.equal(train.scene(3).image, val.scene(3).image)


def test_validation_is_the_same_for_ever(val: SceneSet) -> None:
    assert [val.scene(key).labels.tolist() for key in range(3)] == [[9, 3, 5, 9, 5], [8, 3, 7], [1, 0]]


def test_sets_reach_worker_processes_however_these_start(train: SceneSet) -> None:
    again = pickle.loads(pickle.dumps(train))
    assert same(again.scene(4), train.scene(4))


def test_validation_does_not_depend_on_the_seed_or_number() -> None:
    scenes = [
        FashionScenes(img_size=32, batch_size=4, num_workers=0, seed=seed, scenes=number)
        for seed, number in ((0, 10), (5, 20))
    ]
    for data in scenes:
        data.setup()
    first, second = (next(iter(data.val_dataloader())) for data in scenes)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_drawing_leaves_the_global_stream_alone(train: SceneSet) -> None:
    before = torch.get_rng_state()
    train.scene(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scene_is_the_same_at_another_size(train: SceneSet) -> None:
    large = SceneSet(20, (128, 128), 0)
    agreeing = [(large.scene(key).classes[::2, ::2] == train.scene(key).classes).float().mean() for key in range(10)]
    assert min(agreeing) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (97, 33)])
def test_any_size(size: tuple[int, int]) -> None:
    data = FashionScenes(img_size=size, batch_size=3, num_workers=0, scenes=7)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, masks = next(iter(loader))
        assert images.shape == (3, 3, *size)
        assert images.dtype == torch.float32
        assert masks.shape == (3, *size)
        assert masks.dtype == torch.int64


def test_what_it_offers_before_setup() -> None:
    data = FashionScenes()
    assert data.num_classes == len(data.class_names) == len(data.palette) == 11
    assert data.class_names[0] == "background"
    assert data.name == "Fashion scenes (2,000/200)"
    assert data.image_hw == (128, 128)


def test_statistics_and_classes_of_training_scenes(train: SceneSet) -> None:
    scenes = [train.scene(key) for key in range(100)]
    images = torch.stack([scene.image for scene in scenes])
    assert images.mean().item() == pytest.approx(FashionScenes.mean[0], abs=0.02)
    assert images.std().item() == pytest.approx(FashionScenes.std[0], abs=0.02)
    share = torch.stack([scene.classes for scene in scenes]).flatten().bincount(minlength=11) / images[:, 0].numel()
    assert 0.5 < share[0] < 0.7
    assert share[1:].min() > 0.01


def iou_of(table: Tensor, scenes: list[Scene]) -> float:
    """Mean IoU, in percent, where each pixel is taken for the class of its colour alone."""
    counts = torch.zeros(11, 11)
    for scene in scenes:
        found = table.argmax(1)[colours_of(scene)]
        counts += torch.bincount(scene.classes.flatten() * 11 + found, minlength=121).view(11, 11)
    return float((counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())).mean() * 100)


def colours_of(scene: Scene) -> Tensor:
    red, green, blue = (scene.image * 16).long().clamp(max=15).flatten(1)
    return (red * 16 + green) * 16 + blue


def test_colour_alone_says_little(train: SceneSet, val: SceneSet) -> None:
    table = torch.zeros(4096, 11)
    for key in range(150):
        scene = train.scene(key)
        table.index_put_((colours_of(scene), scene.classes.flatten()), torch.ones(()), accumulate=True)
    assert 15 < iou_of(table, [val.scene(key) for key in range(60)]) < 30  # 23.3 with more scenes, at 128 pixels


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.scenes 1 is impossible"):
        FashionScenes(scenes=1).setup()
    with pytest.raises(DataError, match="call setup"):
        FashionScenes().train_dataloader()
