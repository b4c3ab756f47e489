from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mobilemamba.data.folders import class_folders, list_classes, list_pictures, scan_folder
from mobilemamba.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    touch(tmp_path, "a/2.jpg", "a/10.JPEG", "a/B.png", "a/b.png", "a/in/0.jpg", "a/notes.txt", "b/x.webp", "b/0/y.tif")
    labels = {"a": 0, "b": 1}
    expected = make_dataset(str(tmp_path), labels, IMG_EXTENSIONS)
    assert len(expected) == 7
    assert list_classes(tmp_path, labels, every_class=True) == expected


def test_hidden_ones_are_left_out_and_gifs_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a/._x.jpg", "a/.thumbnails/x.jpg", "a/x.gif", ".git/x.jpg", "x.jpg", "x.md")
    assert class_folders(tmp_path) == ("a",)
    assert scan_folder(tmp_path) == ([str(tmp_path / "x.jpg")], [str(tmp_path / "a")])
    assert list_pictures(tmp_path / "a") == [str(tmp_path / "a" / "x.gif")]


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "far/x.jpg")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "y.jpg").symlink_to(tmp_path / "far" / "x.jpg")
    assert list_pictures(tmp_path / "near") == [str(tmp_path / "near" / name) for name in ("y.jpg", "a/x.jpg")]


def test_empty_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders: put"):
        class_folders(tmp_path)
    touch(tmp_path, "a/x.jpg", "b/notes.txt")
    labels = {"a": 0, "b": 1, "c": 2}
    assert len(list_classes(tmp_path, labels, every_class=False)) == 1
    with pytest.raises(DataError, match=r"/b holds no pictures \(.jpg .*\.gif\): add some"):
        list_classes(tmp_path, labels, every_class=True)
