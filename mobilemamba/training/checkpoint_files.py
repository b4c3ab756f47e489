"""The checkpoints in a run's folder, and which of them a training can resume from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.weights_file import read_checkpoint

#: Subfolder of a run's folder, and its files: the weights of the best validation, the newest state of the training, and
#: the state before that one, in case the newest cannot be read.
FOLDER = "checkpoints"
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
#: Entries of a checkpoint from which Lightning restores a training.
_ENTRIES = (
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"),
    *("epoch", "global_step", "pytorch-lightning_version"),
)
#: Entry with the time a checkpoint was written, in seconds since 1970, as a copy of the file has another date.
SAVED_AT = "saved_at"


def checkpoints_newest_first(run_dir: Path) -> list[Path]:
    """Lists every checkpoint in a run's folder from which a training can resume, whoever wrote it.

    Checkpoints with weights only are left out. A file that cannot be read is listed by its date, so that the caller,
    who resumes from the first readable one, knows that newer ones were unreadable.

    Args:
        run_dir: The folder that contains ``checkpoints/``.
    """
    paths = sorted((run_dir / FOLDER).rglob("*.ckpt"), key=lambda path: (not path.is_symlink(), path))
    by_file = {path.resolve(): path for path in paths if path.name != BEST}  # a file rather than a link to it
    written = {path: when for path in by_file.values() if (when := _written(path)) is not None}
    return sorted(written, key=written.__getitem__, reverse=True)


def read_training_checkpoint(path: Path) -> Mapping[str, Any]:
    """Reads a checkpoint from which a training can resume.

    Raises:
        WeightsError: If it cannot be read, or is not as Lightning writes it.
        ConfigError: If it contains only weights.
    """
    checkpoint = read_checkpoint(path)  # with all tensors, as only reading one shows that it is damaged
    missing = [entry for entry in _ENTRIES if entry not in checkpoint]
    if "optimizer_states" in missing or "loops" in missing:
        raise ConfigError(
            f"ckpt_path={path} holds weights, not the state of a training; start from them by --weights {path}, or go "
            "on from a last.ckpt"
        )
    if missing:
        raise WeightsError(f"{path} is damaged: it lacks {', '.join(missing)}; go on from another checkpoint")
    return checkpoint


def can_resume(run_dir: Path) -> bool:
    """Whether a training can resume from any of a run's checkpoints."""
    for path in checkpoints_newest_first(run_dir):
        with contextlib.suppress(ConfigError, WeightsError):
            read_training_checkpoint(path)
            return True
    return False


def _written(path: Path) -> float | None:
    """Returns when a checkpoint was written, in seconds since 1970; None if it has only weights or no longer exists."""
    try:
        when = path.stat().st_mtime
        content = read_checkpoint(path, mmap=True)
    except FileNotFoundError:
        return None
    except (OSError, WeightsError):
        return when
    if "optimizer_states" not in content:
        return None
    saved_at = content.get(SAVED_AT)
    return saved_at if isinstance(saved_at, float) else when
