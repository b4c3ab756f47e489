"""Functions shared by the notebooks: running commands, a trained network, and displaying figures."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemamba.cli.exits import silence_advertising
from mobilemamba_command import main

if TYPE_CHECKING:
    from IPython.display import Image
    from lightning.pytorch.cli import LightningCLI
    from matplotlib.figure import Figure

#: Weights that ``make ablation`` writes for the paper's choice in Table A1; used if they exist.
_ABLATION = Path("runs/ablation_xi/xi_876_mu_223/best.safetensors")
_TRAINING = (
    "fit --name notebook --model mobilemamba_t2 --model.lr 0.001 --model.reference_batch_size 64 "
    "--model.warmup_epochs 0.3 --trainer.max_epochs 1 --data.img_size 64 --data.batch_size 64 --table_size null"
)


def run(command: str) -> LightningCLI | None:
    """Runs a command line, given without the word ``mobilemamba``, in this process.

    Returns:
        Lightning's CLI object with ``trainer``, ``model`` and ``datamodule``; None for a sweep and for a tool.

    Raises:
        MobileMambaError: For a user's mistake.
    """
    silence_advertising()
    return main(shlex.split(command))


def sample_weights() -> Path:
    """Returns weights of a network that was trained on the embedded sample.

    They are those of the S6 of ``make ablation``, in ``runs`` of this or the parent folder. Without these, the first
    call trains a T2 in about a minute on two cores, and stores it in ``runs/notebook``.

    Returns:
        A ``.safetensors`` file.
    """
    own = Path("runs/notebook/best.safetensors")
    for found in (_ABLATION, ".." / _ABLATION, own):
        if found.exists():
            return found
    run(_TRAINING)
    return own


def as_image(figure: Figure) -> Image:
    """Converts a figure to the image that a notebook cell shows; notebooks themselves show only pyplot's figures."""
    from IPython.display import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image(content.getvalue())
