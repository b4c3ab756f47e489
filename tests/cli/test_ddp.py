"""Training in two processes comes to what one process comes to with the same pictures a step."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from mobilemamba.cli.lightning_cli import is_first_process
from mobilemamba.dense import create_segmenter
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.training.callbacks.receptive_fields import read_snapshots
from mobilemamba_command import main

# 24 pictures are three steps of 8. The 13 for validation are no equal shares: one is evaluated twice, and counts once.
TRAIN, VAL = 24, 13
OPTIONS = shlex.split(
    "--data ImageFolder --data.root pictures --data.img_size 32 --data.num_workers 0 --trainer.accelerator cpu "
    "--trainer.max_epochs 2 --trainer.log_every_n_steps 1 --trainer.gradient_clip_val 1 --table_size null "
    "--model.ema_decay 0.7 --model.lr 0.01 --model.reference_batch_size 8"
)
MOBILEMAMBA = shlex.split("--model mobilemamba_t2 --model.arch.embed_dims [16,16,16] --model.arch.depths [1,1,1]")
# Its norms are over the channels of one picture. A batch norm's statistics are those of a process's own pictures, and
# torch's synchronised ones are for GPUs alone: with batch norms no two numbers of processes train alike on a CPU.
WITHOUT_BATCH_NORM = ["--model", "test_convnext"]


@pytest.fixture
def pictures(tmp_path: Path) -> None:
    """Noise of three brightnesses, near enough to be taken for each other."""
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            folder = tmp_path / "pictures" / part / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            noise = random.normal(100 + 25 * (number % 3), 60, (40, 36, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")


def fit_in_two(name: str, *options: str) -> None:
    """With 4 pictures a step in each process; from a shell, as Lightning starts the second one by the same command."""
    two = shlex.split("--trainer.strategy ddp --trainer.devices 2 --data.batch_size 4")
    command = [sys.executable, "-m", "mobilemamba", "fit", *OPTIONS, *two, "--name", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sync_dist" not in done.stderr  # Lightning's advice, needless here as each metric is of all processes


def results(name: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/results.json").read_text())


def weights(name: str) -> dict[str, torch.Tensor]:
    """Of the network and its average."""
    state = torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith(("model.", "ema."))}


def logged(name: str) -> dict[str, list[float]]:
    """Metric -> its values over the training; of each step's loss every process has its own, and logs one."""
    text = Path(f"runs/{name}/csv/version_0/metrics.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    names = [column for column in rows[0] if column not in ("epoch", "step", "train/loss_step")]
    return {column: [float(row[column]) for row in rows if row[column]] for column in names}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_as_many_pictures_a_step_give_the_same_training() -> None:
    """In one batch, in two processes, or in two batches one after the other."""
    main(["fit", *OPTIONS, *WITHOUT_BATCH_NORM, "--name", "one", "--data.batch_size", "8"])
    fit_in_two("two", *WITHOUT_BATCH_NORM)
    accumulated = shlex.split("--name accumulated --data.batch_size 4 --trainer.accumulate_grad_batches 2")
    main(["fit", *OPTIONS, *WITHOUT_BATCH_NORM, *accumulated])
    one = logged("one")
    assert len(one["lr"]) == len(one["train/grad_norm"]) == 2 * TRAIN // 8
    assert 0 < min(one["val/top1"]) < 100  # some right, some wrong
    for name in ("two", "accumulated"):
        other = logged(name)
        assert one.keys() == other.keys()
        for metric, values in one.items():
            if name == "accumulated" and metric == "lr":
                assert sorted(set(other[metric])) == pytest.approx(sorted(set(values)))  # logged for each batch
            else:
                assert other[metric] == (values if "top" in metric else pytest.approx(values, rel=1e-4)), (name, metric)
        same = ("top1", "top5", "top1_ema", "top5_ema", "best_epoch", "train_pictures", "total_batch_size")
        assert {key: results(name)[key] for key in same} == {key: results("one")[key] for key in same}
        assert results(name)["val_pictures"] == VAL
        assert weights(name).keys() == weights("one").keys()
        for key, value in weights("one").items():
            torch.testing.assert_close(weights(name)[key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_all_processes_evaluate_the_network_that_is_saved() -> None:
    """Whatever the batch norms of the other process have seen, in the raw and in the averaged network.

    The first process has something else to do beside that the other one knows nothing of.
    """
    fit_in_two("two", *MOBILEMAMBA, "--trainer.callbacks+=ReceptiveFields")
    assert [snapshot.epoch for snapshot in read_snapshots(Path("runs/two/receptive_fields.npz"))] == [0, 2]
    checkpoint = ["--ckpt_path", "runs/two/checkpoints/last.ckpt"]
    alone = shlex.split("--config runs/two/config.yaml --trainer.strategy auto --trainer.devices 1")
    cli = main(["validate", *MOBILEMAMBA, *alone, *checkpoint])
    assert cli is not None
    found, together = cli.trainer.callback_metrics, logged("two")
    for metric in ("val/top1", "val/top5", "val/top1_ema", "val/top5_ema"):
        assert found[metric].item() == together[metric][-1]
    for metric in ("val/loss", "val/loss_ema"):
        assert found[metric].item() == pytest.approx(together[metric][-1], rel=1e-5)


@pytest.mark.slow
def test_every_pixel_counts_once_whoever_sees_it() -> None:
    """Of seven pictures of their own sizes: four and three, and one of these a second time, which does not count."""
    random, names = np.random.default_rng(0), [f"class {number}" for number in range(11)]
    for number in range(7):
        size = 40 + number, 36 + 2 * number
        mask = np.where(random.random(size) < 0.1, 255, random.integers(0, len(names), size))
        for part in ("train", "val"):
            for kind, pixels in (("images", random.integers(0, 256, (*size, 3))), ("masks", mask)):
                (Path("own") / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(Path("own") / kind / part / f"{part}{number}.png")
    Path("own/classes.txt").write_text("\n".join(names))
    segmenter = create_segmenter("semantic_fpn", "mobilemamba_t2", len(names))
    look = Preprocessing((32, 32), (0.5,) * 3, (0.2,) * 3, "bilinear")
    card = ModelCard(
        "mobilemamba_t2", look, len(names), class_names=tuple(names), task="segmentation", head="semantic_fpn"
    )
    save_weights(segmenter, "w.safetensors", card)
    options = shlex.split(
        "--weights w.safetensors --data own --data.num_workers 0 --trainer.accelerator cpu --trainer.logger false"
    )
    main(["validate", *options, "--per_class", "one.csv"])
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--per_class", "two.csv"]
    command = [sys.executable, "-m", "mobilemamba", "validate", *options, *two]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path("one.csv").read_text().count("\n") == 1 + len(names)
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()


@pytest.mark.parametrize(
    ("rank", "node", "first"), [(0, None, True), (0, "0", True), (3, None, False), (0, "1", False)]
)
def test_one_process_of_all_holds_the_run_folder(
    monkeypatch: pytest.MonkeyPatch, rank: int, node: str | None, first: bool
) -> None:
    """Whoever started them: Lightning, torchrun or SLURM (all of which set the rank) on one machine or on several."""
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.delenv("NODE_RANK", raising=False)
    if node is not None:
        monkeypatch.setenv("NODE_RANK", node)
    assert is_first_process() == first
