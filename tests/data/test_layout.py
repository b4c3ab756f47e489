"""The usual names of parts are understood, and what only looks like a data set's class is refused with what to do."""

from pathlib import Path

import pytest

from mobilemamba.data.layout import find_layout, refuse_nested
from mobilemamba.errors import DataError


def touch(root: Path, files: str) -> None:
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "Valid", "validation"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_the_usual_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    touch(tmp_path, f"{train}/cat/1.jpg {val}/cat/1.jpg {test}/cat/1.jpg notes.txt")
    layout = find_layout(tmp_path)
    assert layout == (tmp_path / train, tmp_path / val, tmp_path / test, [])


@pytest.mark.parametrize(("first", "second"), [("Train", "train"), ("train", "training"), ("val", "valid")])
def test_two_folders_of_one_part_are_refused(tmp_path: Path, first: str, second: str) -> None:
    touch(tmp_path, f"{first}/cat/1.jpg {second}/cat/1.jpg")
    with pytest.raises(DataError, match=rf"holds both {first}/ and {second}/: which of them is the"):
        find_layout(tmp_path)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg train/1.jpg train/2.jpg evaluation/cat/1.jpg docs/x.txt __MACOSX/x/1.jpg")
    notes = find_layout(tmp_path).notes
    assert notes == [
        "not used: docs/, evaluation/ beside train/",
        f"not used: 2 pictures beside the class folders of {tmp_path}/train",
    ]


@pytest.mark.parametrize(
    "files", ["cat/1.jpg dog/1.jpg", "bus/1.jpg train/1.jpg", "bullet_train/1.jpg steam_train/1.jpg"]
)
def test_classes_directly_in_root(tmp_path: Path, files: str) -> None:
    """Some of them may be called like a part."""
    touch(tmp_path, files)
    assert find_layout(tmp_path) == (tmp_path, None, None, [])


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ("training_set/cat/1.jpg test_set/cat/1.jpg", "test_set"),
        ("train2017/1.jpg val2017/1.jpg", "train2017"),
        ("seg_train/cat/1.jpg pred/1.jpg", "seg_train"),
        ("trainset/cat/1.jpg", "trainset"),
        ("trn/1.jpg tst/1.jpg", "trn"),
    ],
)
def test_parts_under_other_names_are_no_classes(tmp_path: Path, files: str, named: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(DataError, match=rf"/{named} looks like a part .* name the parts train, val and test"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("pets/train/cat/1.jpg", r"/pets holds train/, a data set one level deeper: give that folder"),
        ("images/Train/cat/1.jpg labels/1.txt", r"/images holds Train/, a data set one level deeper: give that folder"),
        (
            "cat/train/1.jpg dog/train/1.jpg",
            r"/cat holds train/, parts below the classes: put them above, as train/<cl",
        ),
        ("pets/cat/1.jpg pets/dog/1.jpg", r"one class alone, pets, .*; give .*/pets if its folders .*\(cat, dog\)"),
        ("cat/1.jpg", r"one class alone, cat, and a classifier needs two: put .* into a folder of its own$"),
    ],
)
def test_no_classes_but_a_data_set_deeper(tmp_path: Path, files: str, message: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(DataError, match=message):
        refuse_nested(tmp_path, tuple(sorted(path.name for path in tmp_path.iterdir())))


@pytest.mark.parametrize("parts", [("trn", "vld"), ("fold1", "fold2", "fold3"), ("2023", "2024"), ("a", "b")])
@pytest.mark.parametrize("rare", ["", "bird", "bird eel"], ids=["same", "one-lacks", "two-lack"])
def test_folders_of_the_same_folders_are_parts(tmp_path: Path, parts: tuple[str, ...], rare: str) -> None:
    """Whatever they are called; the last of them may lack a class or two."""
    for part in parts:
        for name in ("ant", "bee", "cat", "dog", *([] if part == parts[-1] else rare.split())):
            touch(tmp_path, f"{part}/{name}/1.jpg {part}/{name}/2.jpg")
    touch(tmp_path, f"{parts[0]}/preview.jpg {parts[0]}/labels.csv")
    with pytest.raises(
        DataError,
        match=rf"^{parts[0]}/, {parts[1]}/.* in {tmp_path} hold folders of the same names \(ant, be.*\), so .* the "
        rf"parts train, val and test, .* or give one part alone; .* data.classes as \[{', '.join(parts)}\]$",
    ):
        refuse_nested(tmp_path, parts)


@pytest.mark.parametrize(
    "files",
    [
        "cat/tom/1.jpg cat/kitty/1.jpg dog/rex/1.jpg dog/bello/1.jpg",
        "cat/indoor/1.jpg cat/street/1.jpg dog/indoor/1.jpg dog/park/1.jpg",
        "cat/images/1.jpg dog/images/1.jpg",  # Tiny ImageNet
        "cat/1.jpg cat/2.jpg cat/big/1.jpg cat/small/1.jpg dog/1.jpg dog/2.jpg dog/big/1.jpg dog/small/1.jpg",
        "cat/tom/1.jpg cat/kitty/1.jpg dog/1.jpg",
    ],
)
def test_classes_may_have_folders(tmp_path: Path, files: str) -> None:
    touch(tmp_path, files)
    refuse_nested(tmp_path, ("cat", "dog"))
