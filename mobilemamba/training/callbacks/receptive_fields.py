"""How the effective receptive fields of a network grow while it is trained."""

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
from mobilemamba.training.callbacks.validation import counts, epochs_begun

#: The maps of a run, in its folder; a picture of them lies beside it.
MAPS_FILE = "receptive_fields.npz"
PICTURE_FILE = "receptive_fields.png"
#: Rows of the picture; of more epochs some are left out, evenly.
_MOST_ROWS = 8


@dataclass(frozen=True)
class Snapshot:
    """The receptive fields at one moment of a training.

    Attributes:
        epoch: Epochs begun by then; 0 before the training.
        step: Optimiser steps taken.
        data: What the pictures are.
        fields: Of the stages.
    """

    epoch: int
    step: int
    data: str
    fields: Sequence[ReceptiveField]

    @property
    def weights(self) -> str:
        """Which weights they are of, for a figure."""
        return f"raw weights of epoch {self.epoch}, after {self.step:,} steps" if self.step else "before the training"


class ReceptiveFields(AtEnd):
    """Shows how the effective receptive fields of the stages grow: before the training, every few epochs, at the end.

    Of the network itself, not of its average, on the same validation pictures each time, prepared as for a validation.
    ``receptive_fields.png`` in the run's folder has epochs in rows and stages in columns, ``receptive_fields.npz`` the
    maps, loggers a curve of ``erf/STAGE/r50`` in %, and TensorBoard the picture too. The training is the same with and
    without it, and never fails for it: what hinders it is a warning.

    Attributes:
        snapshots: What was seen so far.
    """

    def __init__(self, every_n_epochs: int = 5, pictures: int = 16, size: int | None = None, seed: int = 0) -> None:
        """Sets when to look and at what.

        Args:
            every_n_epochs: Epochs from one look to the next.
            pictures: How many of the validation pictures to take.
            size: Side in pixels that they are scaled to, e.g. 224, on which small pictures' fields are not cut off by
                their edges; by default as they are.
            seed: Which ones.

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
        """Looks before the training, or where a training is gone on with that this callback is new to."""
        if not self.snapshots:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if epochs_begun(trainer) % self.every_n_epochs == 0:
            self._look(trainer, pl_module)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.snapshots or self.snapshots[-1].step != trainer.global_step:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not counts(trainer) or not trainer.is_global_zero:
            return
        try:
            if trainer.world_size > 1 and type(trainer.strategy) is not DDPStrategy:  # it would wait for the others
                raise ConfigError("no process has the whole network, as with trainer.strategy ddp it has")
            network, data = getattr(pl_module, "model", pl_module), data_of(trainer)
            with torch.compiler.set_stance("force_eager"):  # not compiled anew for the hooks
                fields = fields_of(network, self._draw(trainer))
            # As they are kept, so that a training that goes on draws the same.
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
        except Exception as error:  # whatever it is, the training itself is well
            rank_zero_warn(f"no receptive fields: {type(error).__name__}: {error}")

    def _draw(self, trainer: Trainer) -> Tensor:
        """Pictures (N, C, H, W) of the validation set; those that cannot be read are left out."""
        data = data_of(trainer)
        loader = trainer.val_dataloaders if data is None else data.val_dataloader()
        loader = next(iter(loader), None) if isinstance(loader, list) else loader
        if not isinstance(loader, DataLoader):
            raise ConfigError("there are no validation pictures")
        chosen = np.random.default_rng(self.seed).permutation(len(cast(Any, loader.dataset)))[: self.pictures].tolist()
        options: dict[str, Any] = {"collate_fn": loader.collate_fn, "generator": make_generator(self.seed)}
        with seeded(self.seed):  # a data set may draw; the training must not notice
            batch = next(iter(DataLoader(loader.dataset, len(chosen), sampler=chosen, **options)))
        found = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim == 4)
        if (pictures := next(found, None)) is None:
            raise ConfigError("the validation set gives no pictures (N, C, H, W)")
        return pictures if self.size is None else F.interpolate(pictures, (self.size, self.size), mode="bilinear")


def write_snapshots(snapshots: Sequence[Snapshot], path: Path) -> None:
    """Writes the maps by their names, and all else as JSON by the name ``about``.

    Raises:
        OSError: If the file cannot be written.
    """
    about, maps = _pack(snapshots)
    content, named = io.BytesIO(), cast("dict[str, Any]", maps)
    np.savez_compressed(content, about=np.array(about), **named)
    write_atomic(path, content.getbuffer())


def read_snapshots(path: Path) -> list[Snapshot]:
    """What :func:`write_snapshots` has written.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else.
    """
    try:
        with np.load(path) as file:
            return _unpack(str(file["about"]), file)
    except OSError:
        raise
    except Exception as error:  # whatever else there may be
        raise ValueError(f"{path} holds no receptive fields") from error


def _pack(snapshots: Sequence[Snapshot]) -> tuple[str, dict[str, np.ndarray]]:
    """All but the maps as JSON, and the maps by their names in it."""
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
