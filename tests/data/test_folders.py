import os
from collections import Counter
from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mobilemamba.data.folders import (
    class_folders,
    describe_left_out,
    list_classes,
    list_pictures,
    scan_folder,
    why_no_folder,
)
from mobilemamba.errors import DataError
from mobilemamba.text import printable


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    touch(tmp_path, "a/2.jpg", "a/10.JPEG", "a/B.png", "a/b.png", "a/in/0.jpg", "a/notes.txt", "b/x.webp", "b/0/y.tif")
    labels = {"a": 0, "b": 1}
    expected = make_dataset(str(tmp_path), labels, IMG_EXTENSIONS)
    assert len(expected) == 7
    assert list_classes(tmp_path, labels, every_class=True, other_classes="") == expected
    labels = {"b": 0, "none": 1, "a": 2}
    by_label = [
        ("b" in Path(path).parts, label)
        for path, label in list_classes(tmp_path, labels, every_class=True, other_classes="")
    ]
    assert by_label == [(True, 0)] * 2 + [(False, 2)] * 5


def test_hidden_ones_and_systems_own_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/._x.jpg", "a/.thumbnails/x.jpg", "a/x.gif", ".git/x.jpg", "__MACOSX/a/x.jpg", "x.jpg", "x.md")
    assert class_folders(tmp_path) == ("a",)
    assert scan_folder(tmp_path) == ([str(tmp_path / "x.jpg")], [str(tmp_path / "a")])
    assert list_pictures(tmp_path / "a") == [str(tmp_path / "a" / "x.gif")]


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "far/x.jpg")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "y.jpg").symlink_to(tmp_path / "far" / "x.jpg")
    assert list_pictures(tmp_path / "near") == [str(tmp_path / "near" / name) for name in ("y.jpg", "a/x.jpg")]


@pytest.mark.parametrize(
    ("link", "to"), [("a/up", "."), ("a/self", "a"), ("a/in/up", "a"), ("a/b", "b")], ids=lambda path: str(path)
)
def test_a_link_back_is_refused(tmp_path: Path, link: str, to: str) -> None:
    touch(tmp_path, "a/x.jpg", "a/in/y.jpg", "b/z.jpg")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")  # a and b through each other, with the last case
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(DataError, match=r"links back to .*, in which it lies: remove the link"):
        list_pictures(tmp_path / "a")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.scandir", refuse)  # root may read everything
    with pytest.raises(DataError, match=rf"{tmp_path} cannot be read \(Permission denied\): mend it or remove it"):
        list_pictures(tmp_path)


def test_what_is_left_out_is_counted_by_its_kind(tmp_path: Path) -> None:
    touch(tmp_path, "1.heic", "in/2.HEIC", "in/3.txt", "in/photo", "x.jfif", ".DS_Store")
    for name, to in (("gone", "nowhere"), ("self", "self"), ("gone.png", "nowhere"), ("self.png", "self.png")):
        (tmp_path / name).symlink_to(tmp_path / to)
    os.mkfifo(tmp_path / "pipe.jpg")  # to read it would take for ever
    (tmp_path / "to_pipe.jpg").symlink_to(tmp_path / "pipe.jpg")
    left_out: Counter[str] = Counter()
    assert [Path(path).name for path in list_pictures(tmp_path, left_out)] == ["gone.png", "self.png", "x.jfif"]
    assert left_out == {".heic": 2, ".txt": 1, "without an ending": 1, "broken links": 2, "no plain files": 2}
    text = describe_left_out(left_out)
    assert text is not None
    assert text.startswith("left out, as no pictures by their names: 8 files (2 ")
    assert describe_left_out(Counter()) is None


def test_names_are_kept_whatever_they_are(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg", "täßchen.jpg".encode(), b"[red]:smile:.jpg"):
        (tmp_path / os.fsdecode(name)).touch()
    found = list_pictures(tmp_path)
    assert all(Path(path).exists() for path in found)
    assert sorted(printable(Path(path).name) for path in found) == [
        "[red]:smile:.jpg",
        r"caf\xe9.jpg",
        "two\\nlines.jpg",
        "täßchen.jpg",
    ]


@pytest.mark.parametrize("path", ["none", "x" * 5000, "a\0b"])
def test_what_is_no_folder(tmp_path: Path, path: str) -> None:
    assert why_no_folder(path) == "no such folder"
    touch(tmp_path, "x.zip", "x.jpg")
    assert why_no_folder(tmp_path) is None
    assert why_no_folder(tmp_path / "x.zip") == "an archive, which has to be unpacked"
    assert why_no_folder(tmp_path / "x.jpg") == "a file"


def test_empty_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders: put"):
        class_folders(tmp_path)
    touch(tmp_path, "a/x.jpg", "b/notes.txt")
    labels = {"a": 0, "b": 1, "c": 2}
    assert len(list_classes(tmp_path, labels, every_class=False, other_classes="")) == 1
    with pytest.raises(DataError, match=r"/b holds no pictures \(.jpg .*\.gif.*\): add some"):
        list_classes(tmp_path, labels, every_class=True, other_classes="")
    with pytest.raises(DataError, match=r"/b is no class"):
        list_classes(tmp_path, {"a": 0}, every_class=True, other_classes="is no class")
