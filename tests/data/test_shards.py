import io
import json
import os
import pickle
import tarfile
import time
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mobilemamba.data import shards as shards_module
from mobilemamba.data.pictures import read_picture
from mobilemamba.data.shards import ShardSource, find_shards
from mobilemamba.errors import DataError

CLASSES = {"n01440764": 0, "n01443537": 1, "n01484850": 2}
INDEX = "index.json"


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def values(source: ShardSource) -> list[int]:
    return [read_picture(source.open(i)).getpixel((0, 0))[0] for i in range(len(source.labels))]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-000000.tar", "train"),
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet-val-000003.tar", "val"),
        ("val-000.tar", "val"),
        ("imagenet1k-validation-07.tar", "val"),
        ("val_1.tar", "val"),
        ("train0.tar", "train"),
        ("ILSVRC2012_img_train.tar", None),  # the official archive of archives
        ("interval-01.tar", None),
        ("train-01.txt", None),
        ("train.tar", None),
    ],
)
def test_names(tmp_path: Path, name: str, part: str | None) -> None:
    (tmp_path / name).touch()
    for asked, pattern in (("train", "train"), ("val", "val|validation")):
        assert find_shards(tmp_path, pattern) == ([tmp_path / name] if asked == part else [])


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.xz", "tar.zst"])
def test_compressed_files_are_refused_by_name(tmp_path: Path, ending: str) -> None:
    (tmp_path / "train-00.tar").touch()
    (tmp_path / f"train-01.{ending}").touch()
    assert find_shards(tmp_path, "val") == []
    with pytest.raises(DataError, match=rf"train-01.{ending} is compressed, .* unpack it to train-01.tar"):
        find_shards(tmp_path, "train")
    (tmp_path / "train-01.tar").touch()  # kept beside what it was unpacked to
    assert len(find_shards(tmp_path, "train")) == 2


def test_labels_by_number(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"train-{number}.tar")
        with webdataset.TarWriter(str(files[-1])) as writer:
            for i in range(3):
                value = 10 * number + i
                key = {"__key__": f"{9 - value % 10}{number}", "cls": (value * 7) % 3}
                writer.write({**key, "png": Image.new("RGB", (4, 4), (value, 0, 0)), "json": {"not": "a picture"}})
    source = ShardSource(files, CLASSES, INDEX)
    # By label, then by name: the order does not tell how they were packed.
    expected = sorted(((10 * n + i) * 7 % 3, f"{9 - i}{n}", 10 * n + i, n) for n in range(2) for i in range(3))
    assert source.labels.tolist() == [row[0] for row in expected]
    assert [source.name(i) for i in range(6)] == [f"{files[row[3]]}/{row[1]}.png" for row in expected]
    assert values(source) == [row[2] for row in expected]
    assert source.shard_of.tolist() == [row[3] for row in expected]


def test_labels_by_folder(tmp_path: Path) -> None:
    members = {
        "./n01484850/x.JPEG": picture(0, "JPEG"),
        "train/n01440764/b.png": picture(2),
        "train/n01440764/a.webp": picture(1, "WEBP"),
        "train/n01440764/._a.png": b"hidden",
        "README.md": b"text",
        "train/n01440764/a.seg.png": b"another file of a.webp",
    }
    source = ShardSource([pack(tmp_path / "train-0.tar", members)], CLASSES, INDEX)
    assert source.labels.tolist() == [0, 0, 2]
    assert [Path(source.name(i)).name for i in range(3)] == ["a.webp", "b.png", "x.JPEG"]


def test_both_must_agree(tmp_path: Path) -> None:
    file = pack(tmp_path / "t-0.tar", {"n01440764/x.png": picture(1), "n01440764/x.cls": b"0\n"})
    assert ShardSource([file], CLASSES, INDEX).labels.tolist() == [0]
    pack(file, {"n01440764/x.cls": b"1", "n01440764/x.png": picture(1)})
    with pytest.raises(DataError, match=r"t-0.tar: n01440764/x.png is of class 0 by its folder, 1 by its .cls file"):
        ShardSource([file], CLASSES, INDEX)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": b"1"}, r"x.png has no label: add x.cls with the number of its class, or put it into a folder"),
        ({"n00000001/x.png": b"1"}, r"n00000001/x.png has no label"),
        ({"x.png": b"1", "x.cls": b"3"}, r"x.cls holds '3': expected a number from 0 to 2"),
        ({"x.png": b"1", "x.cls": b"-1"}, r"x.cls holds '-1'"),
        ({"x.png": b"1", "x.cls": b"dog"}, r"x.cls holds 'dog'"),
        ({"x.png": b"1", "x.cls": b"\xff"}, r"x.cls holds"),
    ],
)
def test_missing_and_impossible_labels(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    file = pack(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message) as caught:
        ShardSource([file], CLASSES, INDEX)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize("damage", ["half", "nonsense", "empty", "compressed", "cut at the end"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    file = pack(tmp_path / "train-0.tar", {f"n01440764/{i}.png": os.urandom(3000) for i in range(5)})
    whole = file.read_bytes()
    if damage == "compressed":
        pack(file, {"n01440764/x.png": picture(1)}, "w:gz")
    else:
        contents = {"half": whole[: len(whole) // 2], "nonsense": os.urandom(4000), "empty": b""}
        file.write_bytes(contents.get(damage, whole[: 5 * (512 + 3072) - 200]))
    with pytest.raises(DataError, match=r"train-0.tar.* pack (it|the file) again") as caught:
        ShardSource([file], CLASSES, INDEX)
    assert "\n" not in str(caught.value)


def test_links_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-0.tar"
    with tarfile.open(file, "w") as tar:
        info = tarfile.TarInfo("n01440764/x.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"x.png is no plain file"):
        ShardSource([file], CLASSES, INDEX)


def test_the_index_is_kept_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack(tmp_path / "train-0.tar", {"n01440764/x.png": picture(1), "n01443537/y.png": picture(2)})
    first = ShardSource([file], CLASSES, INDEX)
    assert json.loads((tmp_path / INDEX).read_text())["shards"][0][0] == "train-0.tar"

    def never(*_: object) -> None:
        raise AssertionError("searched again")

    with monkeypatch.context() as patch:
        patch.setattr(shards_module.tarfile, "open", never)
        again = ShardSource([file], CLASSES, INDEX)
    assert [again.name(i) for i in range(2)] == [first.name(i) for i in range(2)]
    assert values(again) == values(first) == [1, 2]
    assert again.labels.dtype == first.labels.dtype

    members = {"n01440764/x.png": picture(1), "n01484850/z.png": picture(3)}  # of the same size
    pack(file, members)
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert ShardSource([file], CLASSES, INDEX).labels.tolist() == [0, 2]
    other = pack(tmp_path / "train-1.tar", members)
    assert ShardSource([file, other], CLASSES, INDEX).labels.tolist() == [0, 0, 2, 2]
    for damaged in ("", "{", "[]", "{}", '{"version": 1}'):
        (tmp_path / INDEX).write_text(damaged)
        assert ShardSource([file], CLASSES, INDEX).labels.tolist() == [0, 2]
        assert json.loads((tmp_path / INDEX).read_text())["version"] == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards_module, "write_text_atomic", refuse)
    file = pack(tmp_path / "train-0.tar", {"n01440764/x.png": picture(1)})
    with pytest.warns(
        UserWarning, match=r"index.json cannot be written \(Permission denied\): the tar files are searched"
    ):
        source = ShardSource([file], CLASSES, INDEX)
    assert values(source) == [1]


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_OPEN_FILES", 2)
    files = [pack(tmp_path / f"train-{i}.tar", {f"n01440764/{i}.png": picture(i)}) for i in range(5)]
    source = ShardSource(files, CLASSES, INDEX)
    for _ in range(2):
        assert values(source) == [0, 1, 2, 3, 4]
    if (descriptors := Path("/proc/self/fd")).is_dir():
        targets = [link.resolve() for link in descriptors.iterdir()]
        assert sum(target in files for target in targets) == 2


class _Reads(Dataset[int]):
    def __init__(self, source: ShardSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> int:
        return read_picture(self.source.open(index)).getpixel((0, 0))[0]  # type: ignore[index]


def test_processes_do_not_share_a_place_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"n01440764/{i:03}.png": picture(i) for i in range(200)}
    source = ShardSource([pack(tmp_path / "train-0.tar", members)], CLASSES, INDEX)
    source.open(0)  # this process has the file open when it forks
    loader = DataLoader(_Reads(source), batch_size=10, num_workers=2, multiprocessing_context="fork")
    assert torch.cat(list(loader)).tolist() == list(range(200))
    assert source.open(5).read() == members["n01440764/005.png"]
    shared_place, process = source._files.get(source.shards[0]), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert source._files.get(source.shards[0]) is not shared_place


def test_a_source_travels_to_a_process_that_starts_afresh(tmp_path: Path) -> None:
    source = ShardSource([pack(tmp_path / "train-0.tar", {"n01440764/x.png": picture(7)})], CLASSES, INDEX)
    source.open(0)
    assert values(pickle.loads(pickle.dumps(source))) == [7]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    file = pack(tmp_path / "train-0.tar", {"n01440764/x.png": picture(7)})
    source = ShardSource([file], CLASSES, INDEX)
    file.unlink()
    with pytest.raises(DataError, match=r"^No such file or directory$"):
        source.open(0)
