"""A known picture gets its own answer from the disk, and nothing but its own, whoever else writes there."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mobilemamba.errors import ConfigError, DataError, MobileMambaError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.training.distillation import Distillation, Teacher
from mobilemamba.training.teacher_cache import TeacherCache, tensor_bytes

CLASSES = 4


class Counting:
    """A stand-in for a teacher, whose answers are known and different for each picture; it remembers what it saw."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pictures: Tensor) -> Tensor:
        self.batches.append(len(pictures))
        scale = torch.arange(1, CLASSES + 1) / 3
        return pictures.float().flatten(1).mean(1, keepdim=True) * scale + torch.randn(()) * 1e-7


@pytest.fixture
def cache(tmp_path: Path) -> TeacherCache:
    return TeacherCache(tmp_path / "cache", "teacher-1", CLASSES)


def pictures(count: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))


# Hits


def test_known_pictures_get_what_was_first_found_bit_for_bit(cache: TeacherCache) -> None:
    teacher, batch = Counting(), pictures()
    first = cache(batch, teacher)
    assert first.dtype == torch.float32
    again = cache(batch.flip(0), teacher)
    assert torch.equal(again, first.flip(0))
    assert not torch.equal(teacher(batch), first)  # it would not have said the very same
    assert (cache.hits, cache.misses) == (5, 5)
    assert teacher.batches == [5, 5]


def test_new_pictures_go_to_the_teacher_together(cache: TeacherCache) -> None:
    teacher, known, new = Counting(), pictures(3), pictures(3, seed=1)
    first = cache(known, teacher)
    mixed = cache(torch.stack([new[0], known[2], new[1], known[0], new[2], new[1]]), teacher)
    assert teacher.batches == [3, 3]  # a picture that is in a batch twice is asked about once
    assert torch.equal(mixed[[1, 3]], first[[2, 0]])
    torch.testing.assert_close(mixed[[0, 2, 4, 5]], teacher(new[[0, 1, 2, 1]]), rtol=1e-5, atol=1e-6)
    assert torch.equal(mixed[2], mixed[5])


def test_another_process_finds_them(cache: TeacherCache, tmp_path: Path) -> None:
    teacher = Counting()
    first = cache(pictures(), teacher)
    later = TeacherCache(tmp_path / "cache", "teacher-1", CLASSES)
    assert torch.equal(later(pictures(), teacher), first)
    assert teacher.batches == [5]


@given(arrays("float32", (2, 1, 2, 2), elements=st.sampled_from([0.0, -0.0, 1.0, 1.0000001, 2.0])))
def test_no_picture_gets_anothers_answer(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    cache = TeacherCache(tmp_path_factory.mktemp("cache"), "t", 1)
    batch = torch.from_numpy(values)
    answers = cache(batch, lambda x: torch.arange(len(x), dtype=torch.float32)[:, None])
    assert (answers[0] == answers[1]).item() == (tensor_bytes(batch[0]) == tensor_bytes(batch[1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch + torch.eye(8)[2:] * 1e-6,
        lambda batch: batch.transpose(2, 3),
        lambda batch: batch.reshape(5, 3, 8, 6),
        lambda batch: batch.double(),
        lambda batch: batch.flip(3),
    ],
    ids=["one-ulp-or-so", "transposed", "reshaped", "double", "flipped"],
)
def test_a_changed_picture_is_a_new_one(cache: TeacherCache, change: Any) -> None:
    cache(pictures(), Counting())
    cache(change(pictures()), Counting())
    assert (cache.hits, cache.misses) == (0, 10)


def test_the_layout_in_memory_does_not_matter(cache: TeacherCache) -> None:
    first = cache(pictures(), Counting())
    assert torch.equal(cache(pictures().contiguous(memory_format=torch.channels_last), Counting()), first)
    assert cache.hits == 5


def test_precision_matters(cache: TeacherCache) -> None:
    for dtype in (None, torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            cache(pictures(), Counting())
    assert (cache.hits, cache.misses) == (0, 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensor_bytes(dtype: torch.dtype) -> None:
    tensor = (10 * torch.randn(2, 3, 4, 5)).to(dtype)
    data = tensor_bytes(tensor)
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=dtype).view(tensor.shape), tensor)
    assert tensor_bytes(tensor.to(memory_format=torch.channels_last)) == data
    assert len(tensor_bytes(tensor[0, 0, 0, 0])) == tensor.element_size()


# Of no use


def test_a_cache_that_never_hits_is_given_up_with_one_warning(cache: TeacherCache) -> None:
    teacher = Counting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache(pictures(200), teacher)
        cache.end_epoch()  # a first epoch knows nothing
        assert cache.active
    cache(torch.cat([pictures(1), pictures(199, seed=1)]), teacher)
    with pytest.warns(UserWarning, match=r"200 pictures the teacher's cache knew 1: augmentation.*teacher-1.sqlite"):
        cache.end_epoch()
    assert not cache.active
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = pictures(3, seed=2)
        cache(fresh, teacher)
        cache(fresh, teacher)
        cache.end_epoch()
    assert teacher.batches == [200, 199, 3, 3]
    assert stored(cache) == 399


def test_a_useful_cache_stays(cache: TeacherCache) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            cache(pictures(), Counting())
            cache.end_epoch()
        cache.end_epoch()  # an epoch without a picture says nothing
    assert cache.active


def stored(cache: TeacherCache) -> int:
    with sqlite3.connect(cache.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]


# Others at the same file, and ends by force


def write_many(folder: Path, rank: int, start: Any) -> None:
    start.wait()
    cache = TeacherCache(folder, "teacher-1", CLASSES)
    for step in range(20):
        cache(pictures(4, seed=100 * (rank % 2) + step), Counting())


def test_processes_share_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=write_many, args=(tmp_path, rank, start)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert stored(TeacherCache(tmp_path, "teacher-1", CLASSES)) == 2 * 20 * 4


KILLED = """
import sys, torch
from mobilemamba.training.teacher_cache import TeacherCache
cache = TeacherCache(sys.argv[1], "teacher-1", 4)
for step in range(10**6):
    cache(torch.full((8, 3, 4, 4), float(step)) + torch.arange(8).view(-1, 1, 1, 1) / 8, lambda x: x.flatten(1)[:, :4])
    print(step, flush=True)
"""


def test_a_kill_leaves_no_damage(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    written = [int(process.stdout.readline()) for _ in range(30)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cache = TeacherCache(tmp_path, "teacher-1", CLASSES)
    assert stored(cache) >= 8 * len(written)
    batch = torch.full((8, 3, 4, 4), float(written[-1])) + torch.arange(8).view(-1, 1, 1, 1) / 8
    assert torch.equal(cache(batch, lambda x: pytest.fail("not stored")), batch.flatten(1)[:, :4])


def garbage(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)


def another_table(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (a INTEGER)")


def other_classes(path: Path) -> None:
    TeacherCache(path.parent, "teacher-1", 3)(pictures(), lambda x: torch.zeros(len(x), 3))


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


@pytest.mark.parametrize("damage", [garbage, another_table, other_classes, a_folder])
def test_damaged_files(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "cache" / "teacher-1.sqlite"
    damage(path)
    with pytest.raises(DataError, match=r"teacher's cache .*teacher-1.sqlite: .*; delete the file, or") as error:
        TeacherCache(path.parent, "teacher-1", CLASSES)(pictures(), Counting())
    assert "\n" not in str(error.value)


def test_damage_while_it_is_used(cache: TeacherCache) -> None:
    cache(pictures(300), Counting())
    with sqlite3.connect(cache.path) as db:
        db.execute("DROP TABLE answers")
    with pytest.raises(DataError, match="delete the file"):
        cache(pictures(), Counting())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"distillation.cache=.*file/cache: .*; choose a folder that can be written"):
        TeacherCache(tmp_path / "file" / "cache", "teacher-1", CLASSES)


# As an option of a teacher


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    card = ModelCard("test_resnet", preprocessing, CLASSES)
    save_weights(timm.create_model("test_resnet", num_classes=CLASSES), tmp_path / "teacher.safetensors", card)
    return tmp_path / "teacher.safetensors"


def build(weights: Path, cache: Path | None, **choices: Any) -> Teacher:
    config = Distillation(weights=str(weights), cache=cache and str(cache), **choices)
    return Teacher(config, CLASSES, (0.4,) * 3, (0.2,) * 3)


def test_a_teacher_with_a_cache_says_the_same(weights: Path, tmp_path: Path) -> None:
    batch = torch.randn(6, 3, 32, 32)
    plain, cached = build(weights, None)(batch), build(weights, tmp_path / "cache")
    assert torch.equal(cached(batch), plain)  # the same batch: the same bits
    assert torch.equal(cached(batch[[4, 0]]), plain[[4, 0]])
    batch[3] = 0
    torch.testing.assert_close(cached(batch), build(weights, None)(batch), rtol=1e-4, atol=1e-5)
    assert cached.cache is not None
    assert (cached.cache.hits, cached.cache.misses) == (7, 7)
    assert not cached(batch).requires_grad
    again = build(weights, tmp_path / "cache")
    assert torch.equal(again(batch[:3]), plain[:3])
    assert again.cache is not None
    assert again.cache.misses == 0


def test_each_teacher_has_a_file_of_its_own(weights: Path, tmp_path: Path) -> None:
    batch, folder = torch.randn(2, 3, 32, 32), tmp_path / "cache"
    for choices in ({}, {"img_size": 48}, {"mean": (0.1, 0.2, 0.3)}):
        teacher = build(weights, folder, **choices)
        torch.testing.assert_close(teacher(batch), build(weights, None, **choices)(batch), rtol=1e-4, atol=1e-5)
    assert len(list(folder.glob("test_resnet-*.sqlite"))) == 3


def test_the_end_of_an_epoch_reaches_the_cache(weights: Path, tmp_path: Path) -> None:
    build(weights, None).end_epoch()
    teacher = build(weights, tmp_path / "cache")
    teacher(torch.randn(2, 3, 32, 32))
    teacher.end_epoch()
    teacher(torch.randn(2, 3, 32, 32))
    with pytest.warns(UserWarning, match="knew 0"):
        teacher.end_epoch()


def test_a_broken_cache_is_a_users_error(weights: Path) -> None:
    with pytest.raises(MobileMambaError):
        build(weights, weights / "cache")
