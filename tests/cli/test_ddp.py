"""Training in two processes comes to what one process comes to with the same pictures a step."""

import csv
import json
import os
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
from tests.cli.test_validate import save_known_classifier, table

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
EVALUATE = shlex.split(
    "validate --weights w.safetensors --data own --data.num_workers 0 --trainer.accelerator cpu --trainer.logger false"
)
#: 2,000 pictures, which are not whole batches of 111 in either case.
EVALUATE_SAMPLE = shlex.split(
    "validate --weights classifier.safetensors --data.img_size 32 --data.num_workers 0 --data.batch_size 111 "
    "--trainer.accelerator cpu --trainer.logger false"
)
RECEPTIVE_FIELDS = shlex.split(
    "--trainer.callbacks+=ReceptiveFields --trainer.callbacks.pictures=1 --trainer.callbacks.size=64"
)
IN_TWO = shlex.split("--trainer.strategy ddp --trainer.devices 2")
CLASSES = [f"class {number}" for number in range(11)]
DAMAGED = shlex.split("--data.root damaged --data.on_error skip")
FIT_IN_TWO = ["fit", *OPTIONS, *IN_TWO, "--data.batch_size", "4"]  # pictures of each process
EVERY_STEP = shlex.split(
    "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.every_n_train_steps=1 --trainer.callbacks.save_top_k=-1 "
    "--trainer.callbacks.filename={step}"
)
IN_MID_EPOCH = ["--ckpt_path", "runs/two/checkpoints/step=5.ckpt"]
#: What both processes do, one after the other; the third fit has a callback of which the second process knows nothing.
TOGETHER = [
    [*FIT_IN_TWO, "--name", "two", *WITHOUT_BATCH_NORM, *EVERY_STEP],
    [*FIT_IN_TWO, "--name", "resumed", *WITHOUT_BATCH_NORM, *EVERY_STEP, *IN_MID_EPOCH],
    [*FIT_IN_TWO, "--name", "mamba", *MOBILEMAMBA, *RECEPTIVE_FIELDS, *DAMAGED],
    [*EVALUATE, *IN_TWO, "--per_class", "two.csv"],
    [*EVALUATE_SAMPLE, *IN_TWO],  # the last, as its table is the last that is printed
]

#: With no garbage collected while all is imported, as in the command itself.
SCRIPT = """
import gc
gc.disable()
import mobilemamba.cli.lightning_cli
from mobilemamba_command import main
gc.freeze()
gc.enable()
for command in {commands!r}:
    main(command)
"""


def paint_classes(folder: Path) -> None:
    """Noise of three brightnesses, near enough to be taken for each other."""
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            place = folder / part / "abc"[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            noise = random.normal(100 + 25 * (number % 3), 60, (40, 36, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(place / f"{number}.png")


def paint_masks(folder: Path) -> None:
    """Seven pictures of their own sizes."""
    random = np.random.default_rng(0)
    for number in range(7):
        size = 40 + number, 36 + 2 * number
        mask = np.where(random.random(size) < 0.1, 255, random.integers(0, len(CLASSES), size))
        for part in ("train", "val"):
            for kind, pixels in (("images", random.integers(0, 256, (*size, 3))), ("masks", mask)):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / part / f"{part}{number}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Where two processes have done all that they do in these tests, as to start them takes longer than what they do.

    By a script, as Lightning starts the second process by the command of the first.
    """
    folder = tmp_path_factory.mktemp("together")
    paint_classes(folder / "pictures")
    paint_classes(folder / "damaged")
    for part in ("train", "val"):
        for name in ("0.png", "12.png"):  # neighbours, so that each process evaluates one
            (folder / "damaged" / part / "a" / name).write_bytes(b"no picture")
    paint_masks(folder / "own")
    segmenter = create_segmenter("semantic_fpn", "mobilemamba_t2", len(CLASSES))
    look = Preprocessing((32, 32), (0.5,) * 3, (0.2,) * 3, "bilinear")
    named = {"class_names": tuple(CLASSES), "task": "segmentation", "head": "semantic_fpn"}
    save_weights(segmenter, folder / "w.safetensors", ModelCard("mobilemamba_t2", look, len(CLASSES), **named))
    save_known_classifier(folder / "classifier.safetensors")
    script = folder / "all.py"
    script.write_text(SCRIPT.format(commands=TOGETHER))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "said.txt").write_text(done.stdout)
    assert "sync_dist" not in done.stderr  # Lightning's advice, needless here as each metric is of all processes
    return folder


@pytest.fixture
def _there(together: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(together)


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
@pytest.mark.usefixtures("_there")
def test_as_many_pictures_a_step_give_the_same_training() -> None:
    """In one batch, in two processes, or in two batches one after the other."""
    main(["fit", *OPTIONS, *WITHOUT_BATCH_NORM, "--name", "one", "--data.batch_size", "8"])
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
        learned, expected = weights(name), weights("one")
        assert learned.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(learned[key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.usefixtures("_there")
def test_two_processes_go_on_in_mid_epoch_to_the_same_end() -> None:
    for name, value in weights("two").items():
        assert torch.equal(value, weights("resumed")[name]), name
    (resumed,) = logged("resumed")["train/loss"]
    assert resumed == pytest.approx(logged("two")["train/loss"][1], rel=1e-6), "of all pictures that both have seen"


@pytest.mark.slow
@pytest.mark.usefixtures("_there")
def test_all_processes_evaluate_the_network_that_is_saved() -> None:
    """Whatever the batch norms and unreadable pictures of the other process, in the raw and in the averaged network."""
    assert results("mamba")["skipped_pictures"] == 4
    assert [snapshot.epoch for snapshot in read_snapshots(Path("runs/mamba/receptive_fields.npz"))] == [0, 2]
    checkpoint = ["--ckpt_path", "runs/mamba/checkpoints/last.ckpt"]
    alone = shlex.split("--config runs/mamba/config.yaml --trainer.strategy auto --trainer.devices 1")
    cli = main(["validate", *MOBILEMAMBA, *alone, *checkpoint])
    assert cli is not None
    found, together = cli.trainer.callback_metrics, logged("mamba")
    for metric in ("val/top1", "val/top5", "val/top1_ema", "val/top5_ema"):
        assert found[metric].item() == together[metric][-1]
    for metric in ("val/loss", "val/loss_ema"):
        assert found[metric].item() == pytest.approx(together[metric][-1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_there")
def test_every_pixel_counts_once_whoever_sees_it() -> None:
    """Of seven pictures of their own sizes: four and three, and one of these a second time, which does not count."""
    main([*EVALUATE, "--per_class", "one.csv"])
    assert Path("one.csv").read_text().count("\n") == 1 + len(CLASSES)
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("_there")
def test_every_picture_of_the_sample_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    """In the printed table, of the network as it was trained."""
    main(EVALUATE_SAMPLE)
    one, two = (table(text)["as trained"] for text in (capsys.readouterr().out, Path("said.txt").read_text()))
    assert one[:2] == two[:2]
    assert float(one[2]) == pytest.approx(float(two[2]), abs=2e-4)


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
