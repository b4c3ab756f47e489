"""Every notebook runs as it is stored, offline, beside the experiments; and what they share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mobilemamba import load_network
from mobilemamba.tools import notebook

if TYPE_CHECKING:
    from jupyter_client import AsyncKernelManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Trains a small network far enough to leave every file.
_SHORT = (
    " --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 "
    "--model.arch.embed_dims [16,24,32] --model.arch.depths [1,1,1]"
)
#: Page -> what is written otherwise in it, so that it is run in seconds: every line of it still runs.
SHORTER = {
    "ablation": {
        "limit_train_batches: 25, limit_val_batches: 8": "limit_train_batches: 2, limit_val_batches: 1",
        "    no_mixer: {model.arch.global_mixer: identity}\n": "",
        "seed_everything: [0, 1]": "seed_everything: [1]",
        "--sweep.dry_run true": "--sweep.dry_run true --sweep.only xi_876_mu_223",
    },
    "detection": {
        "limit_train_batches 8 --trainer.limit_val_batches 2": "limit_train_batches 2 --trainer.limit_val_batches 1"
    },
    "erf": {"img_size=224, batch_size=20": "img_size=128, batch_size=8"},
    "export": {  # of four pictures at a time, as a graph of any number of them takes much longer to follow
        "{WEIGHTS} exported.onnx": "{WEIGHTS} exported.onnx --batch 4",
        "--dtype int8": "--dtype int8 --batch 4",
    },
    "finetune_and_predict": {"max_epochs 4": "max_epochs 2", "of_shelf[:30]": "of_shelf[:10]"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which one notebook has trained its network already."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "experiments", clone / "experiments")
    (clone / "notebooks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone / "notebooks")
        patch.setattr(notebook, "_TRAINING", notebook._TRAINING + _SHORT)
        notebook.sample_weights()
    return clone / "notebooks"


def test_the_network_is_trained_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(notebook, "run", lambda command: pytest.fail(f"ran {command}"))
    network, card = load_network(notebook.sample_weights(), verbose=False)
    assert card.model == "mobilemamba_t2"
    assert len(card.class_names) == 10
    assert not network.training


def test_the_ablation_s_network_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "runs/ablation_xi/xi_876_mu_223/best.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.sample_weights().resolve() == weights


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_page(path: Path) -> None:
    """A title first, and nothing stored of a run."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Iterator[AsyncKernelManager]:
    """One process for all pages: to import what they need takes longer than to run most of them."""
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync

    manager = AsyncKernelManager(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        run_sync(manager.start_kernel)(cwd=str(folder))
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, kernel: AsyncKernelManager) -> None:
    """With no name of a page before it."""
    import nbformat  # not above: it takes seconds, in every process that collects the tests
    from nbclient import NotebookClient

    page = nbformat.read(path, as_version=4)
    for written, shorter in SHORTER.get(path.stem, {}).items():
        (cell,) = (cell for cell in page.cells if cell.cell_type == "code" and written in cell.source)
        cell.source = cell.source.replace(written, shorter)
    page.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(page, km=kernel, timeout=240)
    client.execute()
    client.kc.stop_channels()
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in shown
    assert not [output for output in outputs if output.get("data", {}).get("text/plain", "").startswith("<Figure")]
