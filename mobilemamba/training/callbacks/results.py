"""The results that a run writes into its folder, from which tables are made."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning
import timm
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mobilemamba.analysis.machine import device_name
from mobilemamba.data.base import data_of
from mobilemamba.data.sampling import global_seed
from mobilemamba.files import read_json, write_json
from mobilemamba.scores import Score
from mobilemamba.training.callbacks.at_end import AtEnd
from mobilemamba.training.callbacks.checkpoints import best_checkpoint
from mobilemamba.training.callbacks.trainer_state import callbacks_of, epochs_begun, is_recorded, is_trial
from mobilemamba.training.callbacks.validation import Validation, validation_now
from mobilemamba.training.contract import TaskContract, monitor_of, scores_of
from mobilemamba.training.loaders import pictures_evaluated, pictures_used
from mobilemamba.training.provenance import git_revision, measure_network, peak_memory_gib, reset_peak_memory

Kept = TypeVar("Kept")


class RunResults(AtEnd):
    """Writes the results of a run to the trainer's ``default_root_dir``, each number with its conditions.

    ``measure.json`` is written at the start: params, FLOPs, MACs and throughput, for tasks of ours. ``progress.json``
    is written after every validation, for live views. ``results.json`` is written last, and only if the training is
    complete: a run is finished if and only if this file exists. All are replaced atomically. For each score that the
    task lists, there are the best validation's value, that of the averaged network (``KEY_ema``) and the last
    validation's (``KEY_last``).
    """

    def __init__(self, table_img_size: int | None = 224) -> None:
        """Sets what to measure.

        Args:
            table_img_size: Side in pixels of the pictures for which FLOPs and throughput are measured. The number of
                classes is that of the paper, whatever the data set, so that rows compare with the paper's tables. None
                measures nothing.
        """
        self.table_img_size = table_img_size
        self.history: list[Validation] = []
        self.classes: dict[int, dict[str, float]] = {}
        self.seconds_before = 0.0
        self.resumed = False
        self.resumes = 0
        self.measured: dict[str, Any] | None = None
        self.skipped: set[str] = set()
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Returns the validations so far, the class scores of some of them, and the training time so far."""
        return {"history": self.history, "classes": self.classes, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.classes = dict(state_dict.get("classes", {}))
        self.seconds_before = state_dict["seconds"]
        self.resumed = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the network and starts the clock; writes nothing yet, as resuming may still fail."""
        self._started = time.monotonic()
        if not _writes(trainer):
            return
        # From the folder, not from the checkpoint, as a run may be killed twice after the same checkpoint.
        before = read_json(self._folder(trainer) / "progress.json").get("resumes", 0)
        self.resumes = before + 1 if self.resumed else 0
        if self.table_img_size is not None:
            self.measured = self._measure(pl_module, self.table_img_size, trainer.strategy.root_device)
        reset_peak_memory(trainer.strategy.root_device)
        self._started = time.monotonic()  # measuring does not count as training time

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes an earlier ``results.json``, as this run is not finished, and writes the first files."""
        if not _writes(trainer):
            return
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").unlink(missing_ok=True)
        if self.measured is not None:
            write_json(folder / "measure.json", self.measured)
        self._write_progress(trainer, pl_module, best_validation(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the results of this validation and updates ``progress.json``."""
        if not is_recorded(trainer):
            return
        self.skipped = _gathered(trainer, _skipped(trainer))
        validation = validation_now(trainer, monitor_of(pl_module)[0])
        # A validation that is repeated after a resume replaces the first one.
        self.history = [entry for entry in self.history if entry.get("step", 0) < validation["step"]]
        self.history.append(validation)
        if isinstance(pl_module, TaskContract) and (of_classes := pl_module.of_classes):
            self.classes = keep_best(self.classes, of_classes, trainer, pl_module)
        if _writes(trainer):
            saver = best_checkpoint(trainer)  # its own hook runs after this callback
            best = saver.best_with(validation) if saver else best_validation(trainer, pl_module)
            self._write_progress(trainer, pl_module, best or {})

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _writes(trainer):
            return
        self._write_progress(trainer, pl_module, best_validation(trainer, pl_module))
        path = self._folder(trainer) / "results.json"
        results = self.results(trainer, pl_module)
        write_json(path, results)
        if results["skipped_pictures"]:
            rank_zero_info(f"{results['skipped_pictures']} unreadable pictures were skipped, named above")
        rank_zero_info(f"{_in_words(results, scores_of(pl_module)[0])}: {path}")

    def results(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the content of ``results.json``: plain numbers, strings and dicts, None for what is unknown."""
        best = best_validation(trainer, pl_module)
        last = self.history[-1] if self.history else {}
        scores, (monitor, mode) = scores_of(pl_module), monitor_of(pl_module)
        memory, memory_of = peak_memory_gib(trainer.strategy.root_device)
        return {
            **{score.key: _of(best, score.key) for score in scores},
            **{f"{score.key}_ema": best.get(f"val/{score.key}_ema") for score in scores},
            **{f"{score.key}_last": _of(last, score.key) for score in scores},
            "best_epoch": best.get("epoch"),
            "best_step": best.get("step"),
            "best_epoch_ema": best.get("epoch") if any(name.endswith("_ema") for name in best) else None,
            "scores": [asdict(score) for score in scores],
            **({"classes": self.classes[best_of(self.classes, trainer, pl_module)]} if self.classes else {}),
            "metrics": {name: value for name, value in best.items() if name not in ("epoch", "step")},
            "monitor": monitor,
            "monitor_mode": mode,
            "score": best.get(monitor),
            "epochs": epochs_begun(trainer),
            "hours": self._seconds() / 3600,
            "peak_mem_gib": memory,
            "peak_mem_of": memory_of,
            "seed": global_seed(),
            "resumes": self.resumes,
            **_describe_data(trainer),
            "skipped_pictures": len(self.skipped | _skipped(trainer)),
            "total_batch_size": pl_module.total_batch_size if isinstance(pl_module, TaskContract) else None,
            "device": device_name(trainer.strategy.root_device),
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "measured": self.measured,
            "checkpoint": self._checkpoint(trainer),
            "lightning": lightning.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "git": git_revision(),
        }

    def _measure(self, pl_module: LightningModule, img_size: int, device: torch.device) -> dict[str, Any] | None:
        if not isinstance(pl_module, TaskContract):
            return None
        try:
            classes, batch = pl_module.table_classes, pl_module.table_batch
            return measure_network(pl_module.build_model, img_size, device, num_classes=classes, batch_size=batch)
        except (AssertionError, RuntimeError, ValueError) as error:  # e.g. a model that accepts only another size
            rank_zero_warn(
                f"no FLOPs and throughput in the results: {type(pl_module).__name__}'s network cannot be measured at "
                f"{img_size} px ({error}); set the RunResults callback's table_img_size to a size it takes, or to null"
            )
            return None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._started

    def _checkpoint(self, trainer: Trainer) -> str | None:
        saved = best_checkpoint(trainer) or trainer.checkpoint_callback
        path = getattr(saved, "best_model_path", "") or getattr(saved, "last_model_path", "")
        if not path:
            return None
        folder = self._folder(trainer).resolve()
        resolved = Path(path).resolve()  # stored as a relative path if possible, so that the folder can be moved
        return str(resolved.relative_to(folder)) if resolved.is_relative_to(folder) else str(resolved)

    def _write_progress(self, trainer: Trainer, pl_module: LightningModule, best: Validation) -> None:
        scores, last = scores_of(pl_module), self.history[-1] if self.history else {}
        progress = {
            "epoch": last.get("epoch", 0),
            "max_epochs": trainer.max_epochs,
            **{score.key: _of(last, score.key) for score in scores},
            "best": best.get(monitor_of(pl_module)[0], _of(best, scores[0].key)),
            "best_epoch": best.get("epoch"),
            "best_step": best.get("step"),
            "resumes": self.resumes,
            "hours": self._seconds() / 3600,
        }
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "progress.json", progress)


def best_validation(trainer: Trainer, pl_module: LightningModule) -> Validation:
    """Returns the validation of ``best.ckpt``, or without this file the best one so far; empty if there is none."""
    if saver := best_checkpoint(trainer):
        return saver.validation or {}
    monitor, mode = monitor_of(pl_module)
    sign = 1 if mode == "max" else -1
    known = [entry for own in callbacks_of(trainer, RunResults)[:1] for entry in own.history if monitor in entry]
    return max(known, key=lambda entry: sign * entry[monitor], default={})


def keep_best(kept: dict[int, Kept], now: Kept, trainer: Trainer, pl_module: LightningModule) -> dict[int, Kept]:
    """Returns values by step for the best validation and for the current one, which may become the best."""
    best = best_validation(trainer, pl_module).get("step")
    return {**{step: known for step, known in kept.items() if step == best}, trainer.global_step: now}


def best_of(kept: dict[int, Any], trainer: Trainer, pl_module: LightningModule) -> int:
    """Returns the step of the best validation if there is a value for it, otherwise the last step with a value."""
    best = best_validation(trainer, pl_module).get("step")
    return best if best in kept else max(kept)


def _in_words(results: dict[str, Any], headline: Score) -> str:
    """Describes the headline score of the results."""
    after = "" if results["best_epoch"] is None else f" after epoch {results['best_epoch']}"
    value, averaged = results[headline.key], results[f"{headline.key}_ema"]
    if value is None:
        return f"finished{after}"
    ema = "" if averaged is None else f", EMA {headline.written(averaged)}"
    return f"{headline.label} {headline.written(value)}{ema}{after}"


def _of(validation: Validation, key: str) -> float | None:
    """Returns a score of a validation; modules other than ours may log it without ``val/``."""
    return validation.get(f"val/{key}", validation.get(key))


def _skipped(trainer: Trainer) -> set[str]:
    """Returns the names of the unreadable pictures that this process has left out so far."""
    data = data_of(trainer)
    return set() if data is None else set(data.skipped)


def _gathered(trainer: Trainer, names: set[str]) -> set[str]:
    """Returns the names that any process gives; all processes must call it."""
    of_processes: list[Any] = [names] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(of_processes, names)
    return set().union(*of_processes)


def _writes(trainer: Trainer) -> bool:
    """Whether this process writes files: only one of all processes, and none in a trial of a few batches."""
    return trainer.is_global_zero and not is_trial(trainer)


def _describe_data(trainer: Trainer) -> dict[str, Any]:
    """Describes a training's data: name, number of classes, picture size, and pictures actually used per epoch."""
    data = data_of(trainer)
    return {
        "data": None if data is None else data.name,
        "num_classes": None if data is None else data.num_classes,
        "img_size": None if data is None else data.img_size,
        "train_pictures": pictures_used(trainer.train_dataloader, trainer.num_training_batches, trainer.world_size),
        "val_pictures": pictures_evaluated(trainer, "val"),
    }
