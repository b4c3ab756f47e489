import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilemamba.data import ADE20K
from mobilemamba.errors import DataError


@pytest.fixture(scope="module")
def mini(shared: Path) -> Path:
    return shared / "data" / "ade20k_mini"


def ready(root: Path) -> ADE20K:
    data = ADE20K(str(root), batch_size=1, num_workers=0)
    data.setup()
    return data


def test_classes_are_the_sets_own(mini: Path) -> None:
    lines = (mini / "objectInfo150.txt").read_text().splitlines()[1:]
    assert ADE20K("anywhere").class_names == tuple(line.split("\t")[4].split(",")[0].strip() for line in lines)


def test_classes_are_known_without_the_set() -> None:
    data = ADE20K("anywhere")
    assert data.num_classes == len(set(data.class_names)) == len(set(data.palette)) == 150
    assert (data.class_names[0], data.class_names[149]) == ("wall", "flag")
    assert data.image_hw == (512, 512)


def test_a_validation_pair_is_whole_and_its_mask_of_its_own_size(mini: Path) -> None:
    data = ready(mini)
    assert data.name == "ADE20K (1/1)"
    ((images, masks),) = data.val_dataloader()
    assert images.shape == (1, 3, 512, 703)
    stored = np.asarray(Image.open(mini / "annotations" / "validation" / "ADE_00000002.png")).astype(int)
    assert masks[0].tolist() == np.where(stored == 0, 255, stored - 1).tolist()


def test_a_training_pair(mini: Path) -> None:
    data = ready(mini)
    assert data.train_set is not None
    image, mask = data.train_set[5]
    assert image.shape == (3, 512, 512)
    assert mask.shape == (512, 512)
    stored = np.unique(Image.open(mini / "annotations" / "training" / "ADE_00000001.png"))
    assert set(mask.unique().tolist()) <= {255, *(stored - 1).tolist()}
    again = data.train_set[5]
    assert torch.equal(image, again[0])
    assert torch.equal(mask, again[1])


def test_pairs_that_do_not_fit_are_refused_by_name(mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "ade")
    masks = tmp_path / "ade" / "annotations" / "validation"
    Image.new("L", (500, 300)).save(masks / "ADE_00000002.png")
    with pytest.raises(DataError, match=r"ADE_00000002\.jpg cannot .*500 x 300 pixels for a picture of 500 x 364"):
        next(iter(ready(tmp_path / "ade").val_dataloader()))
    Image.new("L", (500, 364), 151).save(masks / "ADE_00000002.png")
    with pytest.raises(DataError, match="value 151 is of none of the 150 classes"):
        next(iter(ready(tmp_path / "ade").val_dataloader()))
    (masks / "ADE_00000002.png").unlink()
    with pytest.raises(DataError, match=r"no mask, the first is .*ADE_00000002\.jpg: put it there as .*00000002\.png"):
        ready(tmp_path / "ade")


def test_a_mask_without_a_class_is_taken(tmp_path: Path) -> None:
    for part in ("training", "validation"):
        for kind, mode in (("images", "RGB"), ("annotations", "L")):
            (tmp_path / kind / part).mkdir(parents=True)
            Image.new(mode, (30, 20)).save(tmp_path / kind / part / "a.png")
    ((_, masks),) = ready(tmp_path).val_dataloader()
    assert (masks == 255).all()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder images/.*into annotations/"):
        ready(tmp_path)
