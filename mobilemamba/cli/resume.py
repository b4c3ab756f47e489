"""Checks of the checkpoint that a training resumes from: it must be readable, and fit the network, settings and data.

Everything is checked before anything is written, so that a failed resume leaves the run unchanged; failures are
ConfigErrors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.card import CARD_KEY
from mobilemamba.sweep import Config, differences
from mobilemamba.training.callbacks.checkpoint_io import cannot_resume
from mobilemamba.training.checkpoint_files import checkpoints_newest_first, read_training_checkpoint
from mobilemamba.training.contract import TaskContract

#: Entry of a checkpoint with its run's ``config.yaml``.
RUN_CONFIG = "run_config"
#: Settings that may differ in a resumed run, as they take effect and do not change the training's result.
FREE_SETTINGS = (
    *("name", "config", "ckpt_path", "weights_only", "table_size", "data.num_workers", "model.compile"),
    *(
        f"trainer.{name}"
        for name in (
            *("default_root_dir", "logger", "callbacks", "plugins", "profiler", "accelerator", "log_every_n_steps"),
            *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "num_sanity_val_steps"),
            *("detect_anomaly", "benchmark", "deterministic", "inference_mode", "model_registry"),
        )
    ),
)
#: Settings that a checkpoint determines, by its state or its position in an epoch: changes would have no effect.
KEPT_SETTINGS = (
    *("model", "seed_everything", "data.seed", "data.batch_size"),
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches"),
)


def changed_settings(saved: Config, config: Config) -> list[str]:
    """Lists the settings by which a command would train differently from the run that it is to resume."""
    return _differences(saved, config, without=FREE_SETTINGS)


def _differences(
    saved: Config, config: Config, within: Sequence[str] | None = None, without: Sequence[str] = ()
) -> list[str]:
    """Lists differences of settings, ignoring moved folders, and comparing callbacks by their class."""
    saved, config = json.loads(json.dumps(saved)), json.loads(json.dumps(config))
    for part, name in (("data", "root"), ("model", "weights")):
        there, here = (whole[part].get("init_args", {}) for whole in (saved, config))
        old, new = there.get(name), here.get(name)
        if old and new and (not Path(old).exists() or Path(old).resolve() == Path(new).resolve()):
            there[name] = new
    before, after = _callbacks(saved), _callbacks(config)
    both = sorted(before.keys() & after.keys())  # callbacks with a state must keep their arguments
    there, here = ({"callbacks": {name: chosen[name] for name in both}} for chosen in (before, after))
    return differences(saved, config, within, without) + differences({"trainer": there}, {"trainer": here})


def _callbacks(config: Config) -> dict[str, Any]:
    chosen = config["trainer"].get("callbacks") or []
    return {c["class_path"].rpartition(".")[2]: c.get("init_args", {}) for c in chosen}


def check_kept_settings(path: Path, checkpoint: Mapping[str, Any], saved: Config | None, config: Config) -> None:
    """Raises an error for settings that a checkpoint would override; ``saved`` are its run's, None if unknown."""
    if saved is not None:
        changed = _differences(saved, config, KEPT_SETTINGS, FREE_SETTINGS)
        file = path.parent.parent / "config.yaml"
        remedy = f"take the run's own by --config {file}" if file.exists() else "give the run's own settings"
    else:
        known = json.loads(json.dumps(dict(checkpoint.get("hyper_parameters", {})), default=str))
        here = {key: value for key, value in config["model"].get("init_args", {}).items() if key in known}
        changed = differences({"model": {key: known[key] for key in here}}, {"model": here})
        changed = [change for change in changed if not change.startswith("model.num_classes:")]  # set by the data
        remedy = "give the settings that it was trained with"
    if changed:
        raise ConfigError(
            f"{path} keeps what it was trained with, so that these would have no effect: {', '.join(changed[:4])}; "
            f"{remedy}, or start a new training from its weights by --weights"
        )


def read_resumed(path: Path) -> Mapping[str, Any]:
    """Reads a checkpoint from which a training can resume.

    Raises:
        WeightsError: If it cannot be read; names the types that prevent it, if any.
        ConfigError: If it contains only weights.
    """
    try:
        return read_training_checkpoint(path)
    except WeightsError:
        types: list[str] = []
        with contextlib.suppress(Exception):  # the file is damaged or no checkpoint
            types = get_unsafe_globals_in_checkpoint(path)
        if types:
            raise WeightsError(f"{path} {cannot_resume(types)}") from None
        raise


def newest_readable_checkpoint(run: Path) -> tuple[Path, Mapping[str, Any]]:
    """Returns the newest readable checkpoint of a run and its content; warns of newer ones that are unreadable.

    Raises:
        WeightsError: If none can be read.
    """
    reasons: list[str] = []
    for path in checkpoints_newest_first(run):
        try:
            checkpoint = read_resumed(path)
        except (WeightsError, ConfigError) as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            rank_zero_warn(f"{reason}; going on from the checkpoint before it, {path}")
        return path, checkpoint
    raise WeightsError(
        f"no checkpoint in {run} can be read: {'; '.join(reasons)}; repair one, or choose another --name for a new run"
    )


def check_fits(path: str | Path, checkpoint: Mapping[str, Any], module: LightningModule) -> None:
    """Raises an error if a checkpoint is of another network, or of an optimiser with other parameter groups."""
    if not is_overridden("configure_model", module, LightningModule):  # otherwise its layers are created later
        here, there = _shapes(module.state_dict()), _shapes(checkpoint["state_dict"])
        names = {**here, **there} if module.strict_loading else here.keys() & there.keys()
        for name in names:
            if here.get(name) != there.get(name):
                raise ConfigError(
                    f"{path} is of another network: {name} is {_described(there.get(name))} there and "
                    f"{_described(here.get(name))} here; give the settings of its run"
                )
    if isinstance(module, TaskContract) and checkpoint.get("optimizer_states"):
        _check_optimizer(path, checkpoint["optimizer_states"][0], module.parameter_groups())


def check_data(path: str | Path, checkpoint: Mapping[str, Any], data: DataModule) -> None:
    """Raises an error if a checkpoint was trained on other classes than the data's; warns of other pictures."""
    card = checkpoint.get(CARD_KEY)
    if not card:  # of a module that is no task of ours, whose data may have no names
        return
    # Their number has been checked.
    for there, here in zip(card.get("class_names", ()), data.class_names, strict=False):
        if there != here:
            raise ConfigError(
                f"{path} was trained on other classes: {there!r} where the data have {here!r}; give the data of its "
                "run, or start a new training from its weights by --weights"
            )
    if card.get("data") not in (None, "", data.name):
        rank_zero_warn(
            f"{path} was trained on {card['data']} and goes on with {data.name}; if the pictures are others, the "
            "result is not that of one training, and some to validate on may have been trained on"
        )


def without_searches(callbacks: list[Callback], checkpoint: Mapping[str, Any], data: DataModule) -> list[Callback]:
    """Leaves out Lightning's searches for a learning rate and a batch size, whose results the checkpoint has.

    After a search, Lightning does not restore optimiser and counts, so that the training would begin anew. The learning
    rate is restored with its schedule; the batch size is set here.
    """
    searches = [callback for callback in callbacks if type(callback) in (LearningRateFinder, BatchSizeFinder)]
    for search in searches:
        if isinstance(search, BatchSizeFinder):
            loaders = checkpoint["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader") or [{}]
            data.batch_size = loaders[0].get("pictures_per_step", data.batch_size)  # it works in one process alone
        rank_zero_info(f"no {type(search).__name__}: the run goes on with what it has found before")
    return [callback for callback in callbacks if callback not in searches]


def _check_optimizer(path: str | Path, state: Any, groups: list[dict[str, Any]]) -> None:
    try:
        saved = [len(group["params"]) for group in state["param_groups"]]
        moments = {
            index: {tuple(x.shape) for x in of.values() if isinstance(x, Tensor) and x.ndim}
            for index, of in state.get("state", {}).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no state of an optimiser ({error!r}); go on from another checkpoint") from None
    wanted = [len(group["params"]) for group in groups]
    if saved != wanted:
        raise ConfigError(
            f"{path} is of an optimiser with other parameter groups: {saved} parameters there, {wanted} here; give "
            "model.weight_decay_rule, model.layer_decay and model.freeze_backbone as in its run"
        )
    # The fused optimiser would read beyond the end of moments that are too small.
    for index, parameter in enumerate(p for group in groups for p in group["params"]):
        if wrong := moments.get(index, set()) - {tuple(parameter.shape)}:
            raise ConfigError(
                f"{path} holds moments of shape {list(wrong.pop())} for a parameter of shape {list(parameter.shape)}; "
                "go on from another checkpoint"
            )


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _described(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"
