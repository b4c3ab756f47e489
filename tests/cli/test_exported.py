"""What a training exports is one file, with which ``validate`` and ``predict`` come to the accuracy of the training."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilemamba.errors import DataError
from mobilemamba_command import main

CLASSES = ("dark", "middling", "bright")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 5)):
        for level, name in enumerate(CLASSES):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = random.normal(80 + 45 * level, 60, (40, 36, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_it_is_the_best_network_with_all_that_it_needs(pictures: Path) -> None:
    train = shlex.split(
        "--name own --trainer.max_epochs 16 --trainer.check_val_every_n_epoch 4 --trainer.accelerator cpu "
        "--data pictures --data.num_workers 0 --data.img_size 32 --data.batch_size 8 --data.mean [0.4,0.4,0.4] "
        "--data.std [0.3,0.3,0.3] --data.crop_pct 1 --data.interpolation bilinear --model mobilemamba_t2 "
        "--model.arch.embed_dims [16,16,16] --model.arch.depths [1,1,1] --model.ema_decay 0.5 --model.lr 0.02 "
        "--model.warmup_epochs 0 --model.reference_batch_size 8 --table_size null"
    )
    main(["fit", *train])
    results = json.loads(Path("runs/own/results.json").read_text())
    best = max(results["top1"], results["top1_ema"])
    assert best > 40  # it has learned, so that a mistake would show

    weights = ["--weights", "runs/own/best.safetensors"]
    cli = main(["validate", *weights, "--data", str(pictures), "--trainer.accelerator", "cpu"])
    assert cli is not None
    assert cli.trainer.callback_metrics["val/top1"].item() == pytest.approx(best)

    cli = main(["validate", "--config", "runs/own/config.yaml"])
    assert cli.trainer.callback_metrics["val/top1"].item() == pytest.approx(best), "not of the weights it began with"

    main(["predict", str(pictures / "val"), *weights, "--output", "found.json"])
    found = json.loads(Path("found.json").read_text())
    right = [Path(answer["picture"]).parent.name == answer["classes"][0]["name"] for answer in found]
    assert len(right) == 15
    assert 100 * sum(right) / len(right) == pytest.approx(best)

    for part in ("train", "val"):
        (pictures / part / "dark").rename(pictures / part / "night")
    with pytest.raises(DataError, match=r"night is none of the 3 classes .* of the weights"):
        main(["validate", *weights, "--data", str(pictures), "--trainer.accelerator", "cpu"])
