"""Receptive fields are seen during a training that does not notice it."""
# ruff: noqa: NPY002  the legacy generator is what must not be drawn from

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from mobilemamba.analysis import receptive_fields
from mobilemamba.errors import ConfigError
from mobilemamba.training.callbacks import ReceptiveFields, StepSeed
from mobilemamba.training.callbacks import receptive_fields as module
from mobilemamba.training.callbacks.receptive_fields import MAPS_FILE, PICTURE_FILE, read_snapshots
from tests.training.callbacks.runs import Data, Noisy, StopAfter, fit, same_weights, small_task
from tests.training.callbacks.test_progress import fit as fit_mobilemamba


def moments(folder: Path) -> list[tuple[int, int]]:
    return [(snapshot.epoch, snapshot.step) for snapshot in read_snapshots(folder / MAPS_FILE)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the rows of each picture, which is not drawn."""
    names: list[list[str]] = []
    monkeypatch.setattr(module, "png_figure", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(module, "draw_receptive_fields", lambda _, rows, **__: names.append([row.name for row in rows]))
    return names


def test_the_training_is_the_same_with_it(tmp_path: Path, drawn: list[list[str]]) -> None:
    """Weights, statistics and random numbers, without a seed for each step."""
    found = []
    for name, extra in (("without", []), ("with", [ReceptiveFields(1, pictures=2)])):
        trainer, task = fit(tmp_path / name, 2, module=small_task, extra=extra)
        modes = [part.training for part in task.modules()], [p.requires_grad for p in task.parameters()]
        numbers = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        found.append((task, modes, numbers, trainer.callback_metrics))
    (plain, *rest), (watched, *others) = found
    assert same_weights(plain, watched)
    assert rest == others
    assert moments(tmp_path / "with") == [(0, 0), (1, 3), (2, 6)]
    assert drawn[-1] == ["epoch 0", "epoch 1", "epoch 2"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("size", [None, 80])
def test_the_maps_are_those_of_the_network_on_validation_pictures(tmp_path: Path, size: int | None) -> None:
    class Still(Noisy):
        def __getitem__(self, index):
            return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)), 0

    class Pictures(Data):
        def val_dataloader(self):
            return DataLoader(Still(), batch_size=5)

    looks = ReceptiveFields(2, pictures=3, size=size, seed=7)
    _, task = fit(tmp_path, 3, module=small_task, data=Pictures(), extra=[looks])
    assert moments(tmp_path) == [(0, 0), (2, 6), (3, 9)]
    chosen = np.random.default_rng(7).permutation(12)[:3].tolist()
    pictures = torch.stack([Still()[index][0] for index in chosen])
    if size is not None:
        pictures = torch.nn.functional.interpolate(pictures, (size, size), mode="bilinear")
    last = read_snapshots(tmp_path / MAPS_FILE)[-1]
    assert last.data == "noise"
    for kept, field in zip(last.fields, receptive_fields(task.model, pictures), strict=True):
        np.testing.assert_allclose(kept.map, field.map, rtol=1e-6)
        np.testing.assert_allclose(kept.ratios, field.ratios)
        assert (kept.tap, kept.centre, kept.pictures) == (field.tap, field.centre, 3)
        np.testing.assert_array_equal(kept.ratios_of_pictures, field.ratios_of_pictures)


def test_a_resumed_training_leaves_what_an_uninterrupted_one_leaves(tmp_path: Path, drawn: list[list[str]]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(whole, 3, module=small_task, extra=[StepSeed(), ReceptiveFields(2, 2)])
    with pytest.raises(ConnectionAbortedError):
        fit(broken, 3, module=small_task, extra=[StepSeed(), ReceptiveFields(2, 2), StopAfter(2)])
    assert moments(broken) == [(0, 0), (2, 6)]
    (broken / MAPS_FILE).unlink()
    last = broken / "last.ckpt"
    torch.load(last, weights_only=True)
    fit(broken, 3, module=small_task, seed=9, extra=[StepSeed(), ReceptiveFields(2, 2)], ckpt_path=str(last))
    assert (broken / MAPS_FILE).read_bytes() == (whole / MAPS_FILE).read_bytes()
    assert drawn[-1] == drawn[2] == ["epoch 0", "epoch 2", "epoch 3"]


def test_loggers_have_curves_and_the_picture(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path, name="csv")]
    fit_mobilemamba(
        *[ReceptiveFields(pictures=2)], default_root_dir=tmp_path, logger=loggers, enable_progress_bar=False
    )
    events = EventAccumulator(str(next(tmp_path.glob("events.*")))).Reload()
    snapshots = read_snapshots(tmp_path / MAPS_FILE)
    for number in range(3):
        curve = [(entry.step, entry.value) for entry in events.Scalars(f"erf/stages.{number}/r50")]
        assert curve == [(s.step, pytest.approx(100 * s.fields[number].ratios[2])) for s in snapshots]
        assert [step for step, _ in curve] == [0, 6]
    picture = events.Images("erf")[-1]
    with Image.open(tmp_path / PICTURE_FILE) as drawn:
        assert (picture.step, picture.width, picture.height) == (6, *drawn.size)
    assert "erf/stages.0/r50" in (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()[0]


def test_a_long_training_shows_epochs_evenly_and_the_last(
    tmp_path: Path, drawn: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 3)
    fit(tmp_path, 4, module=small_task, extra=[ReceptiveFields(1, 1)])
    assert drawn[-2:] == [["epoch 0", "epoch 2", "epoch 3"], ["epoch 0", "epoch 2", "epoch 4"]]
    assert len(read_snapshots(tmp_path / MAPS_FILE)) == 5


@pytest.mark.parametrize(
    ("error", "name"), [(torch.OutOfMemoryError("too little"), "fields_of"), (OSError("full"), "write_atomic")]
)
def test_a_training_does_not_fail_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, name: str) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.warns(UserWarning, match=f"no receptive fields: {type(error).__name__}: {error}"):
        trainer, _ = fit(tmp_path, 1, module=small_task, extra=[ReceptiveFields()])
    assert trainer.global_step == 3


def test_networks_and_data_that_have_none(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no receptive fields: ConfigError: Net does not name its stages"):
        fit(tmp_path, 1, extra=[ReceptiveFields()])

    class NoValidation(Data):
        def val_dataloader(self):
            return []

    with pytest.warns(UserWarning, match="no receptive fields: ConfigError: there are no validation pictures"):
        fit(tmp_path, 1, data=NoValidation(), extra=[ReceptiveFields()])


def test_none_where_the_first_process_would_wait_for_the_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)  # with a strategy that is not DDP
    with pytest.warns(UserWarning, match="no receptive fields: ConfigError: no process has the whole network"):
        fit(tmp_path, 1, module=small_task, extra=[ReceptiveFields()])


@pytest.mark.parametrize("option", ["every_n_epochs", "pictures"])
def test_numbers_that_cannot_work(option: str) -> None:
    with pytest.raises(ConfigError, match=f"ReceptiveFields: {option}=0: expected 1 or more"):
        ReceptiveFields(**{option: 0})


def test_other_files_hold_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "maps.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="holds no receptive fields"):
        read_snapshots(tmp_path / "maps.npz")
