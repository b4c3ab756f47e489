"""Growth of a network's effective receptive fields during training."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from mobilemamba.analysis.erf import THRESHOLDS, ReceptiveField, Row, draw_receptive_fields, figure_size
from mobilemamba.analysis.erf import receptive_fields as fields_of
from mobilemamba.analysis.figures import png_figure
from mobilemamba.data.base import data_of
from mobilemamba.data.sampling import make_generator, seeded
from mobilemamba.errors import ConfigError
from mobilemamba.files import write_atomic
from mobilemamba.training.callbacks.at_end import AtEnd
from mobilemamba.training.callbacks.trainer_state import epochs_begun, is_recorded

#: File of the maps in a run's folder, and file of their plot.
MAPS_FILE = "receptive_fields.npz"
PICTURE_FILE = "receptive_fields.png"
#: Most rows of the plot; of more snapshots, an evenly spaced selection is shown.
_MOST_ROWS = 8


@dataclass(frozen=True)
class Snapshot:
    """The receptive fields at one moment of a training.

    Attributes:
        epoch: Number of epochs begun; 0 before the training.
        step: Number of optimiser steps taken.
        data: Name of the data set of the pictures.
        fields: Receptive fields of the stages.
    """

    epoch: int
    step: int
    data: str
    fields: Sequence[ReceptiveField]

    @property
    def weights(self) -> str:
        """Description of the weights, for a figure."""
        return f"raw weights of epoch {self.epoch}, after {self.step:,} steps" if self.step else "before the training"


class ReceptiveFields(AtEnd):
    """Measures the effective receptive fields of the stages before the training, every few epochs and at the end.

    Uses the network itself, not its average, and the same validation pictures each time, prepared as for a validation.
    Writes ``receptive_fields.png`` (epochs in rows, stages in columns) and ``receptive_fields.npz`` (the maps) to the
    run's folder, logs ``erf/STAGE/r50`` in %, and adds the plot to TensorBoard. The callback does not change the
    training; if it fails, a warning says so.

    Attributes:
        snapshots: The measurements so far.
    """

    def __init__(self, every_n_epochs: int = 5, pictures: int = 16, size: int | None = None, seed: int = 0) -> None:
        """Sets when and on which pictures to measure.

        Args:
            every_n_epochs: Number of epochs between measurements.
            pictures: Number of validation pictures.
            size: Side in pixels to which pictures are scaled, e.g. 224, so that the edges of small pictures do not cut
                off the fields; by default they are not scaled.
            seed: Seed that selects the pictures.

        Raises:
            ConfigError: If a number is too small.
        """
        numbers = {"every_n_epochs": every_n_epochs, "pictures": pictures, "size": size, "seed": seed}
        for name, value in numbers.items():
            least = 0 if name == "seed" else 1
            if value is not None and value < least:
                raise ConfigError(f"ReceptiveFields: {name}={value}: expected {least} or more")
        self.every_n_epochs = every_n_epochs
        self.pictures = pictures
        self.size = size
        self.seed = seed
        self.snapshots: list[Snapshot] = []

    def state_dict(self) -> dict[str, Any]:
        about, maps = _pack(self.snapshots)
        return {"about": about, "maps": {name: torch.from_numpy(content) for name, content in maps.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        maps = {name: content.numpy() for name, content in state_dict["maps"].items()}
        self.snapshots = _unpack(state_dict["about"], maps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures before the training, or when a training resumes that had no such callback before."""
        if not self.snapshots:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if epochs_begun(trainer) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.snapshots or self.snapshots[-1].step != trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_recorded(trainer) or not trainer.is_global_zero:
            return
        try:
            if trainer.world_size > 1 and type(trainer.strategy) is not DDPStrategy:  # would wait for all processes
                raise ConfigError("no process has the whole network, as with trainer.strategy ddp it has")
            network, data = getattr(pl_module, "model", pl_module), data_of(trainer)
            with torch.compiler.set_stance("force_eager"):  # avoids recompilation because of the hooks
                fields = fields_of(network, self._pictures(trainer))
            # In the stored precision, so that a resumed training draws the same.
            fields = [replace(field, map=field.map.astype(np.float32)) for field in fields]
            name = "the validation set" if data is None else data.name
            snapshot = Snapshot(epochs_begun(trainer), trainer.global_step, name, fields)
            self.snapshots = [known for known in self.snapshots if known.step < snapshot.step]
            self.snapshots.append(snapshot)
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_snapshots(self.snapshots, folder / MAPS_FILE)
            _draw_growth(self.snapshots, folder / PICTURE_FILE)
            _log(trainer, snapshot, folder / PICTURE_FILE)
        except Exception as error:  # any error at all, as it does not affect the training itself
            rank_zero_warn(f"no receptive fields: {type(error).__name__}: {error}")

    def _pictures(self, trainer: Trainer) -> Tensor:
        """Returns pictures (N, C, H, W) of the validation set, without unreadable ones."""
        data = data_of(trainer)
        loader = trainer.val_dataloaders if data is None else data.val_dataloader()
        loader = next(iter(loader), None) if isinstance(loader, list) else loader
        if not isinstance(loader, DataLoader):
            raise ConfigError("there are no validation pictures")
        chosen = np.random.default_rng(self.seed).permutation(len(cast(Any, loader.dataset)))[: self.pictures].tolist()
        options: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": make_generator(self.seed)}
        with seeded(self.seed):  # random numbers that the data set draws must not affect the training
            batch = next(iter(DataLoader(loader.dataset, len(chosen), sampler=chosen, **options)))
        found = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim == 4)
        if (pictures := next(found, None)) is None:
            raise ConfigError("the validation set gives no pictures (N, C, H, W)")
        return pictures if self.size is None else F.interpolate(pictures, (self.size, self.size), mode="bilinear")


def write_snapshots(snapshots: Sequence[Snapshot], path: Path) -> None:
    """Writes the maps by name, and everything else as JSON under the name ``about``.

    Raises:
        OSError: If the file cannot be written.
    """
    about, maps = _pack(snapshots)
    content, named = io.BytesIO(), cast("dict[str, Any]", maps)
    np.savez_compressed(content, about=np.array(about), **named)
    write_atomic(path, content.getbuffer())


def read_snapshots(path: Path) -> list[Snapshot]:
    """Reads a file of :func:`write_snapshots`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it contains something else.
    """
    try:
        with np.load(path) as file:
            return _unpack(str(file["about"]), file)
    except OSError:
        raise
    except Exception as error:  # numpy and JSON raise many kinds for a wrong file
        raise ValueError(f"{path} holds no receptive fields") from error


def _pack(snapshots: Sequence[Snapshot]) -> tuple[str, dict[str, np.ndarray]]:
    """Returns everything but the maps as JSON, and the maps by the names used in it."""
    maps, about = {}, []
    for snapshot in snapshots:
        entries = []
        for field in snapshot.fields:
            name = f"epoch{snapshot.epoch}_step{snapshot.step}_{field.tap}"
            maps[name] = field.map
            entries.append({**vars(field), "map": name, "ratios_of_pictures": field.ratios_of_pictures.tolist()})
        about.append({**vars(snapshot), "fields": entries})
    return json.dumps(about), maps


def _unpack(about: str, maps: Mapping[str, np.ndarray]) -> list[Snapshot]:
    snapshots = []
    for entry in json.loads(about):
        fields = []
        for field in entry["fields"]:
            known: dict[str, Any] = {
                n: tuple(value) if isinstance(value, list) else value for n, value in field.items()
            }
            known |= {"map": maps[field["map"]], "ratios_of_pictures": np.array(field["ratios_of_pictures"])}
            fields.append(ReceptiveField(**known))
        snapshots.append(Snapshot(**{**entry, "fields": fields}))
    return snapshots


def _draw_growth(snapshots: Sequence[Snapshot], path: Path) -> None:
    shown = np.linspace(0, len(snapshots) - 1, min(len(snapshots), _MOST_ROWS)).round().astype(int)
    rows = [Row(f"epoch {s.epoch}", s.weights, s.fields) for s in (snapshots[index] for index in shown)]
    data = snapshots[-1].data
    with png_figure(path, [data], figsize=figure_size(rows)) as figure:
        draw_receptive_fields(figure, rows, scale="common", data=data)


def _log(trainer: Trainer, snapshot: Snapshot, picture: Path) -> None:
    half = THRESHOLDS.index(0.5)
    curves = {f"erf/{field.tap}/r50": 100 * float(field.ratios[half]) for field in snapshot.fields}
    for logger in trainer.loggers:
        logger.log_metrics(curves, snapshot.step)
        if isinstance(logger, TensorBoardLogger):
            with Image.open(picture) as drawn:
                logger.experiment.add_image("erf", np.asarray(drawn), snapshot.step, dataformats="HWC")
