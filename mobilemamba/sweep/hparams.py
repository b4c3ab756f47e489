"""Data for TensorBoard's HParams tab: swept settings and final metrics of every finished row."""

from __future__ import annotations

import shutil
from pathlib import Path

from mobilemamba.sweep.plan import SEED
from mobilemamba.sweep.record import Record
from mobilemamba.sweep.section import PAPER_COSTS
from mobilemamba.sweep.sheet import cell
from mobilemamba.sweep.table import labels


def write_hparams(folder: Path, entry: Record, swept: list[str]) -> None:
    """Writes the event file of one row, replacing an earlier one.

    Args:
        folder: The row's folder under ``hparams/``.
        entry: Record of a finished row.
        swept: Settings to show in addition to data set, picture size, epochs and seed, which tell sweeps apart.

    Raises:
        OSError: If the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes half a second, and is only needed when a row is done
    from torch.utils.tensorboard.summary import hparams

    names = labels(swept)
    # The seed is listed with the fixed settings, whether it is swept or not.
    settings: dict[str, str | int | float | bool] = {names[key]: _plain(entry[key]) for key in swept if key != SEED}
    settings |= {key: _plain(entry[key]) for key in ("data", "img_size", "epochs", "seed") if key not in settings}
    keys = (*(score.key for score in entry["scores"]), *PAPER_COSTS)
    metrics = {f"sweep/{key}": float(entry[key]) for key in keys if entry[key] is not None}
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for summary in hparams(settings, metrics):
            writer._get_file_writer().add_summary(summary)  # add_hparams() would create a subfolder named by the time
        for name, value in metrics.items():
            writer.add_scalar(name, value)


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else cell(value)
