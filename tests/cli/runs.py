"""Small trainings by the command line, and what their folders hold."""

import csv
import shlex
from pathlib import Path

import pytest

from mobilemamba.errors import MobileMambaError
from mobilemamba_command import main

TINY = shlex.split(
    "--trainer.max_epochs 2 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.log_every_n_steps 1 "
    "--data.img_size 32 --data.batch_size 4 --data.num_workers 0 --model.warmup_epochs 0 "
    "--model.arch.embed_dims [16,16,16] --model.arch.depths [1,1,1] --table_size null"
)


def fit(options: str = "") -> Path:
    """Trains, and gives the run's folder."""
    return Path(main(["fit", *TINY, *shlex.split(options)]).trainer.default_root_dir)


def refusal(options: str, *, tiny: bool = True) -> str:
    with pytest.raises(MobileMambaError) as caught:
        main(["fit", *TINY * tiny, *shlex.split(options)])
    return str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def logged(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"runs/{name}/csv/version_0/metrics.csv").open()))
