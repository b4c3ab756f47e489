"""What every trainer gets in addition to the user's choices."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import LayerSync

from mobilemamba.cli.stopping import EndOnSecondInterrupt
from mobilemamba.training.callbacks import (
    EpochLines,
    ExportBest,
    LogInterval,
    RunResults,
    SayKernels,
    SkipNonFinite,
    StepSeed,
    TrainingBar,
    TrainingExamples,
    TrainingPlots,
    UnfilledMemory,
    ValidateAtEnd,
    ValidationExamples,
    run_checkpoints,
)
from mobilemamba.training.callbacks.sync_norms import SyncNorms


def trainer_options(command: str, given: Any) -> dict[str, Any]:
    """Returns arguments of the trainer: defaults for those that the user did not give, and our form of others."""
    options: dict[str, Any] = {}
    if given.logger in (None, True):
        # Only CSVLogger counts versions: with a fixed one, it would delete the metrics of a resumed run.
        root = given.default_root_dir
        tensorboard = TensorBoardLogger(root, name="", version="", default_hp_metric=False)
        options["logger"] = [tensorboard, CSVLogger(root, name="csv")] if command == "fit" else False
    if given.enable_progress_bar is None and not sys.stdout.isatty():
        options["enable_progress_bar"] = False
    if given.enable_model_summary is None:
        options["enable_model_summary"] = False  # Lightning's has no FLOPs here; `mobilemamba summary` has
    if given.sync_batchnorm:
        plugins = _as_list(given.plugins)
        if not any(isinstance(plugin, LayerSync) for plugin in plugins):
            options["plugins"] = [*plugins, SyncNorms()]  # for modules that are no task of ours
    return options


def trainer_callbacks(
    command: str, given: Any, module: LightningModule, show_bar: bool, table_size: int | None
) -> list[Callback]:
    """Returns the user's callbacks and ours, in the order in which they are called."""
    chosen: list[Callback] = _as_list(given.callbacks)

    def among(kind: type[Callback]) -> bool:
        return any(isinstance(callback, kind) for callback in chosen)

    callbacks: list[Callback] = [*chosen, UnfilledMemory(), SayKernels(), EndOnSecondInterrupt()]
    if show_bar and not among(ProgressBar):
        callbacks.append(TrainingBar())
    if command != "fit":
        return callbacks
    callbacks += [StepSeed(), ValidateAtEnd(), EpochLines(), TrainingPlots(), ExportBest()]
    callbacks += [kind() for kind in (TrainingExamples, ValidationExamples) if not among(kind)]
    callbacks.append(RunResults(table_img_size=table_size))  # last, as its results mark the run as finished
    if given.log_every_n_steps is None:
        callbacks.append(LogInterval())
    if not among(SkipNonFinite):
        callbacks.append(SkipNonFinite())
    if given.enable_checkpointing is not False:
        callbacks = [*run_checkpoints(given.default_root_dir, module), *callbacks]
    return callbacks


def _as_list(given: Any) -> list[Any]:
    """Returns what an argument of the trainer names, of which a single one may be given without a list."""
    return list(given) if isinstance(given, list) else [given] if given else []
