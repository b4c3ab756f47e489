import pytest
import torch

from mobilemamba.data import FashionObjects
from mobilemamba.data.fashion_objects import ObjectScenes
from mobilemamba.errors import ConfigError


def test_objects_are_those_of_the_scene() -> None:
    data = ObjectScenes(20, (64, 48), None, masks=True)
    image, target = data[23]
    scene = data.scene(23)
    assert image.shape == (3, 64, 48)
    assert torch.equal(target["boxes"], scene.boxes)
    assert torch.equal(target["labels"], scene.labels)
    assert torch.equal(target["masks"], scene.masks)
    assert torch.equal(target["area"], scene.areas)
    assert target["size"].tolist() == target["original_size"].tolist() == [64, 48]
    assert target["image_id"] == 3
    assert target["counted"]


def test_batches() -> None:
    data = FashionObjects(img_size=50, batch_size=3, num_workers=0, scenes=7)
    data.setup()
    assert data.name == "Fashion objects (7/500)"
    assert data.num_classes == len(data.class_names) == 10
    assert data.category_ids[0] == 1
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, targets = next(iter(loader))
        assert images.shape == (3, 3, 50, 50)
        assert len(targets) == 3
        assert "masks" not in targets[0]
    assert len(data.val_dataloader()) == 167


@pytest.mark.parametrize(("scenes", "batch_size", "batches"), [(3, 1, 3), (1, 4, 1), (5, 4, 1)])
def test_pictures_may_come_one_by_one(scenes: int, batch_size: int, batches: int) -> None:
    data = FashionObjects(img_size=32, batch_size=batch_size, num_workers=0, scenes=scenes)
    data.setup()
    assert len([*data.train_dataloader()]) == batches  # the last of several is left out where it would be alone


def test_workers_change_nothing() -> None:
    (alone, other), (images, targets) = (
        next(iter(data.val_dataloader()))
        for data in (FashionObjects(img_size=32, batch_size=3, num_workers=n, masks=True) for n in (0, 1))
        if data.setup() is None
    )
    assert torch.equal(alone, images)
    for target, expected in zip(targets, other, strict=True):
        assert target.keys() == expected.keys()
        for name, value in target.items():
            assert torch.equal(value, expected[name])
            assert value.dtype == expected[name].dtype


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size 0 is impossible"):
        FashionObjects(batch_size=0).setup()
