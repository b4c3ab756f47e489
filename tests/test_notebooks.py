"""Every notebook runs as it is stored, offline, beside the experiments; and what they share."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mobilemamba import load_network
from mobilemamba.tools import notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Trains far enough to leave every file.
_SHORT = " --trainer.limit_train_batches 2 --trainer.limit_val_batches 1"


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    page = nbformat.read(path, as_version=4)
    NotebookClient(page, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in shown
    assert not [output for output in outputs if output.get("data", {}).get("text/plain", "").startswith("<Figure")]
