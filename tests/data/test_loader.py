import json
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from mobilemamba.data import IGNORED, FashionMNISTSample, ImageDataModule, ImageFolder
from mobilemamba.data.batches import Labels
from mobilemamba.data.classification_transforms import Augmentation
from mobilemamba.data.loader import PictureLoader
from mobilemamba.data.sampling import EpochSampler
from mobilemamba.errors import ConfigError
from tests.data.test_unreadable import broken_folder, skipping

SIZE = 23


class Numbers(Dataset[Any]):
    """The key, as a picture."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 1, 1), float(key)), key % SIZE


def numbers(rank: int = 0, ranks: int = 1, batch_size: int = 4, **options: Any) -> PictureLoader:
    return PictureLoader(
        Numbers(), form=Labels(), batch_size=batch_size, sampler=EpochSampler(SIZE, 5, rank, ranks), **options
    )


def keys(loader: PictureLoader, epoch: int, limit: int | None = None) -> list[list[int]]:
    """Of the batches of an epoch, as Lightning goes through it."""
    iterator = iter(loader)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    found: list[list[int]] = []
    while limit is None or len(found) < limit:
        batch = next(iterator, None)
        if batch is None:
            break
        found.append(batch[0][:, 0, 0, 0].long().tolist())
    return found


@pytest.mark.parametrize(("rank", "ranks", "workers"), [(0, 1, 0), (0, 2, 0), (1, 2, 0), (1, 2, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_goes_on_in_mid_epoch(workers: int, rank: int, ranks: int, drop_last: bool) -> None:
    def loader() -> PictureLoader:
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "drop_last": drop_last}
        return numbers(rank, ranks, **options)

    whole = loader()
    epochs = [keys(whole, epoch) for epoch in range(4)]
    assert {len(epoch) for epoch in epochs} == {len(whole)}
    for done in (1, 2, len(whole) - 1):
        stopped = loader()
        keys(stopped, 0)
        keys(stopped, 1, limit=done)
        resumed = loader()
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert len(resumed) == len(whole)
        assert [keys(resumed, epoch) for epoch in (1, 2, 3)] == [epochs[1][done:], *epochs[2:]]


def test_position() -> None:
    loader = numbers()
    assert loader.state_dict()["batches"] == 0
    keys(loader, 3, limit=2)
    assert loader.state_dict() == {"epoch": 3, "batches": 2, "pictures": SIZE, "pictures_per_step": 4}
    keys(loader, 4)
    assert loader.state_dict()["batches"] == 0


def test_lightning_never_asks_beyond_the_last_batch() -> None:
    loader = numbers()
    keys(loader, 3, limit=len(loader))
    assert loader.state_dict()["batches"] == 0


def test_a_loaded_position_is_kept_until_it_is_used() -> None:
    loader = numbers()
    keys(loader, 2, limit=3)
    resumed = numbers()
    resumed.load_state_dict(loader.state_dict())
    assert resumed.state_dict() == loader.state_dict()
    iter(resumed)  # an iterator that is thrown away, as Lightning's are
    assert keys(resumed, 2, limit=1) == keys(numbers(), 2)[3:4]
    assert resumed.state_dict()["batches"] == 4


def test_epochs_that_end_early_start_anew() -> None:
    loader, whole = numbers(), [keys(numbers(), epoch) for epoch in range(4)]
    for epoch in range(3):
        assert keys(loader, epoch, limit=2) == whole[epoch][:2]
    assert keys(loader, 2) == whole[2]  # and the same one again
    resumed = numbers()
    keys(loader, 2, limit=2)
    resumed.load_state_dict(loader.state_dict())  # from the end of an epoch of two batches
    assert keys(resumed, 3) == whole[3]
    assert keys(resumed, 2) == whole[2]


def test_half_the_processes_with_twice_the_batch_go_on_alike() -> None:
    def steps(loaders: list[PictureLoader]) -> list[set[int]]:
        return [set().union(*step) for step in zip(*(keys(loader, 1) for loader in loaders), strict=True)]

    stopped = [numbers(rank, 2, batch_size=4) for rank in range(2)]
    whole = steps(stopped)
    keys(stopped[0], 1, limit=1)
    resumed = numbers(batch_size=8)
    resumed.load_state_dict(stopped[0].state_dict())
    second, third = steps([resumed])
    assert second == whole[1]
    assert third < whole[2]  # without the repeat that makes two shares equal


@pytest.mark.parametrize(("change", "value"), [("batch_size", 5), ("ranks", 2)])
def test_a_position_among_other_batches_is_refused(change: str, value: int) -> None:
    loader = numbers()
    keys(loader, 2, limit=3)
    other = numbers(**{change: value})
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ConfigError, match=rf"middle of epoch 2, of {SIZE} pictures in steps of 4 .* data.batch_size"):
        keys(other, 2)
    keys(loader, 2)
    other.load_state_dict(loader.state_dict())  # the end of an epoch fits all
    assert keys(other, 3) == keys(numbers(**{change: value}), 3)


class Recorder(LightningModule):
    """Notes what it is given, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, float]] = []
        self.validated: list[list[int]] = []
        self.described: list[list[str]] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch[0].double().sum().item()))
        datamodule: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        self.described.append(datamodule.describe_batch(self.current_epoch, batch_idx))
        return self.weight * 0

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.validated.append(batch[1].tolist())

    def predict_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 3}
    return Trainer(accelerator="cpu", default_root_dir=folder, **{**defaults, "enable_checkpointing": False, **options})


def sample(**options: Any) -> FashionMNISTSample:
    return FashionMNISTSample(img_size=4, **{"batch_size": 1000, **options})


@pytest.fixture
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(("limit", "workers"), [(1.0, 0), (5, 0), (5, 1)])
def test_lightning_resumes_in_mid_epoch(tmp_path: Path, workers: int, limit: float) -> None:
    options: dict[str, Any] = {"limit_train_batches": limit, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    whole = Recorder()
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callbacks=[every], enable_checkpointing=True, **options).fit(whole, sample(num_workers=workers))
    length = 8 if limit == 1.0 else 5
    assert len(whole.seen) == 3 * length == len(set(whole.seen))
    for step in (1, length - 1, length, length + 3):
        file = tmp_path / f"step={step}.ckpt"
        state = torch.load(file, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        assert state["batches"] == (step % length if limit == 1.0 else (step - 1) % length + 1)
        resumed = Recorder()
        trainer(tmp_path, **options).fit(resumed, sample(num_workers=workers), ckpt_path=file, weights_only=True)
        assert resumed.seen == whole.seen[step:]


@pytest.mark.usefixtures("_quiet")
def test_lightnings_overfitting_and_prediction_still_work(tmp_path: Path) -> None:
    module, data = Recorder(), sample()
    trainer(tmp_path, overfit_batches=2, limit_val_batches=0, max_epochs=2).fit(module, data)
    assert len(module.seen) == 4
    assert module.seen[0][1] != module.seen[1][1]
    assert module.described[1][:2] == ["picture 1000", "picture 1001"]
    predicted = trainer(tmp_path).predict(module, data)
    assert predicted is not None
    assert torch.equal(torch.cat(predicted), torch.cat([labels for _, labels in data.val_dataloader()]))  # type: ignore[arg-type]


def test_lightning_knows_that_an_evaluation_does_not_shuffle(tmp_path: Path) -> None:
    module, data = Recorder(), sample()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        trainer(tmp_path, overfit_batches=1, max_epochs=1).fit(module, data)
    said = [str(warning.message) for warning in shown]
    assert ["dataloader shuffling" in text for text in said].count(True) == 1, "which is of the training"
    first = next(iter(data.val_dataloader()))[1].tolist()
    assert module.validated == [first] * 2  # the first of them tries it


def watch(module: Recorder, folder: Path) -> Callable[[], None]:
    def note() -> None:
        assert isinstance(module.trainer.train_dataloader.sampler, EpochSampler)
        text = json.dumps({"seen": module.seen, "validated": module.validated, "described": module.described})
        (folder / f"rank{module.global_rank}.json").write_text(text)

    return note


def train_on_two_processes(folder: Path, ckpt_path: Path | None = None) -> None:
    folder.mkdir()
    module = Recorder()
    module.on_train_end = watch(module, folder)  # type: ignore[method-assign]
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "num_sanity_val_steps": 0, "max_epochs": 2}
    trainer(folder, callbacks=[every], enable_checkpointing=True, **options).fit(
        module, sample(batch_size=667), ckpt_path=ckpt_path, weights_only=True
    )


def train_and_resume(folder: Path) -> None:
    train_on_two_processes(folder / "whole")
    train_on_two_processes(folder / "resumed", folder / "whole" / "step=8.ckpt")


@pytest.mark.usefixtures("_quiet")
@pytest.mark.skipif(not hasattr(torch.distributed, "init_process_group"), reason="torch without distributed")
def test_two_processes_resume_and_count_each_validation_picture_once(tmp_path: Path) -> None:
    # A process of its own forks: autograd cannot in one where an earlier test has used its threads.
    process = multiprocessing.get_context("spawn").Process(target=train_and_resume, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    whole, resumed = (
        [json.loads((tmp_path / name / f"rank{rank}.json").read_text()) for rank in range(2)]
        for name in ("whole", "resumed")
    )
    assert [len(rank["seen"]) for rank in whole] == [12, 12]
    assert whole[0]["seen"] != whole[1]["seen"]
    assert sorted(name for rank in whole for batch in rank["described"][:6] for name in batch) == sorted(
        f"picture {i}" for i in range(8000)
    )
    labels = [label for rank in whole for batch in rank["validated"][:2] for label in batch]
    assert np.bincount(labels).tolist() == [200] * 10
    for before, after in zip(whole, resumed, strict=True):
        assert after["seen"] == before["seen"][8:]


@pytest.mark.parametrize("ranks", [2, 3])
def test_repeats_of_the_sample_do_not_count(ranks: int) -> None:
    found: list[int] = []
    for rank in range(ranks):
        data = sample(batch_size=300)
        data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, num_devices=ranks)  # type: ignore[assignment]
        data.setup()
        for images, labels in data.val_dataloader():
            assert len(images) == len(labels)
            found += labels.tolist()
    assert found.count(IGNORED) == -2000 % ranks
    assert np.bincount([label for label in found if label != IGNORED]).tolist() == [200] * 10


def test_describe_batch_names_what_the_loader_gives(tmp_path: Path) -> None:
    data = skipping(broken_folder(tmp_path, []), augmentation=Augmentation((1, 1), (1, 1), hflip=0.0, color_jitter=0.0))
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    for batch_idx, (images, _) in enumerate(loader):
        red = images[:, 0].mean((1, 2)) * data.std[0] + data.mean[0]
        names = data.describe_batch(3, batch_idx)
        assert [int(Path(name).stem) for name in names] == (red * 255 / 30).round().int().tolist()
    assert data.describe_batch(3, 2) == []


@pytest.mark.parametrize(("cpus", "processes", "workers"), [(6, None, 6), (6, 2, 3), (2, 4, 0), (64, 2, 8)])
def test_the_nodes_cpus_are_shared_by_the_workers_of_its_processes(
    monkeypatch: pytest.MonkeyPatch, cpus: int, processes: int | None, workers: int
) -> None:
    monkeypatch.setattr("mobilemamba.data.base.usable_cpus", lambda: cpus)
    data = ImageFolder("nowhere")
    data.trainer = None if processes is None else SimpleNamespace(num_devices=processes)  # type: ignore[assignment]
    assert data.default_workers() == workers
