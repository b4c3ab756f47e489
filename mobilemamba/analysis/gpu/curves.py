"""Trains two networks by one recipe for a few minutes each on a folder of pictures, and draws their curves."""

from __future__ import annotations

import itertools
import math
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from mobilemamba.analysis.figures import legible, png_figure
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.models import create_model

_EVALUATIONS = 6
_WARMUP = 0.05  # share of the time
#: At 256 pictures a step.
_LR, _DECAY, _SMOOTHING = 1e-3, 0.05, 0.1
_POINTS = 60  # points of the loss curve


def curves(run: Run, folder: Path, seconds: float, batch: int) -> None:
    """Measures loss and top-1 of the first pair, each trained for half the time from the same seed on the same batches.

    AdamW, label smoothing, warm-up and a cosine over the time, bfloat16 on a GPU. The curves go to the file, and as
    a picture beside it.

    Args:
        run: Which it reports to.
        folder: As :class:`~mobilemamba.data.ImageFolder` takes it.
        seconds: Of both trainings, their evaluations left out.
        batch: Pictures a step.
    """
    from mobilemamba.data import ImageFolder  # loads lightning

    names = run.sizes.pairs[0]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        data = ImageFolder(str(folder), img_size=run.sizes.img_size or 224, batch_size=batch)
        data.setup("fit")
        torch.manual_seed(0)
        network = create_model(name, num_classes=data.num_classes)
        found[name] = train(network, data, run.device, seconds / len(names))
        run.add(model=name, data=data.name, batch=batch, **found[name])
        last, shown = found[name]["scores"][-1], found[name]["losses"][-1]
        run.find(
            f"{name}, {seconds / len(names):.0f} s",
            f"top-1 {last['top1']:.2f} %, loss {shown['loss']:.3f}, {shown['step']:,} steps, "
            f"{found[name]['waited']:.0%} of the time waiting for pictures",
        )
    path = run.output.with_suffix(".png")
    draw(found, path, f"{folder.name}, {seconds / len(names):.0f} s each")
    run.find("curves", str(path))


def train(network: nn.Module, data: Any, device: torch.device, seconds: float) -> dict[str, Any]:
    """Trains a network for some seconds.

    Returns:
        ``losses`` (seconds, step, loss: a mean since the last), ``scores`` (seconds, step, top1 in %), and ``waited``,
        the share of the time that went into waiting for pictures.
    """
    network = network.to(device).to(memory_format=torch.channels_last).train()
    peak = _LR * data.batch_size / 256
    optimizer = torch.optim.AdamW(param_groups_weight_decay(network, _DECAY), lr=peak, fused=True)
    losses, scores = list[dict[str, float]](), list[dict[str, float]]()
    spent = waited = 0.0
    step = counted = 0
    total = torch.zeros((), device=device)
    batches = _batches(data)
    while spent < seconds:
        began = time.monotonic()
        images, targets = next(batches)
        waited += time.monotonic() - began
        rate = peak * _schedule(spent / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(_to(images, device))
        loss = F.cross_entropy(logits.float(), targets.to(device, non_blocking=True), label_smoothing=_SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        step, counted = step + 1, counted + 1
        spent += time.monotonic() - began
        if spent >= seconds * (len(losses) + 1) / _POINTS:
            began = time.monotonic()
            losses.append({"seconds": spent, "step": step, "loss": float(total) / counted})  # waits for the device
            total.zero_()
            counted = 0
            spent += time.monotonic() - began
        if spent >= seconds * (len(scores) + 1) / _EVALUATIONS:
            scores.append({"seconds": spent, "step": step, "top1": evaluate(network, data, device)})
    return {"losses": losses, "scores": scores, "waited": waited / spent}


def _batches(data: Any) -> Iterator[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def _schedule(done: float) -> float:
    """Returns the learning rate as a share of its peak."""
    if done < _WARMUP:
        return max(done / _WARMUP, 0.01)
    return max(0.01, (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP))) / 2)


@torch.inference_mode()
def evaluate(network: nn.Module, data: Any, device: torch.device) -> float:
    """Returns top-1 in percent on the validation pictures, and leaves the network in training mode."""
    network.eval()
    right, pictures = torch.zeros((), device=device, dtype=torch.int64), 0
    for images, targets in data.val_dataloader():
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            right += (network(_to(images, device)).argmax(1) == targets.to(device, non_blocking=True)).sum()
        pictures += len(targets)
    network.train()
    return 100 * int(right) / max(1, pictures)


def _to(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def draw(found: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draws loss and top-1 over time and over steps.

    Args:
        found: Network -> what :func:`train` gives.
        path: PNG file.
        title: Above it.

    Raises:
        OSError: If the file cannot be written.
    """
    title = legible(title)
    with png_figure(path, [title], figsize=(9, 7)) as figure:
        figure.suptitle(textwrap.fill(title, 90))
        axes = figure.subplots(2, 2)
        for column, along in enumerate(("seconds", "step")):
            for row, (points, value, label) in enumerate([("losses", "loss", "loss"), ("scores", "top1", "top-1 (%)")]):
                axis = axes[row][column]
                for name, curve in found.items():
                    axis.plot([p[along] for p in curve[points]], [p[value] for p in curve[points]], ".-", label=name)
                axis.set(xlabel="seconds of training" if along == "seconds" else "steps", ylabel=label)
                axis.grid(alpha=0.3)
                axis.legend(fontsize=8)
