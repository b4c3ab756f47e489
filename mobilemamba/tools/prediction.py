"""Classes of pictures: files, folders or a list of them in, a table, CSV or JSON out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data import ImageNetInfo
from torch import Tensor

from mobilemamba.data.folders import list_pictures
from mobilemamba.data.pictures import eval_transform, read_picture
from mobilemamba.errors import ConfigError, DataError, UnreadablePicturesError
from mobilemamba.files import write_text_atomic
from mobilemamba.models import ModelCard, fuse_norms, load_network

#: One picture's answer: ``picture`` and, likeliest first, ``classes``; or ``error``.
Answer = dict[str, Any]


def predict(
    *pictures: str,
    weights: Path | None = None,
    model: str | None = None,
    topk: int = 5,
    output: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> None:
    """Say what is on pictures: the likeliest classes of each, as a table, CSV or JSON.

    Args:
        pictures: Files and folders (searched to their depths); ``-`` reads a list of them from standard input.
        weights: The network's weights (.safetensors, .ckpt, .pth).
        model: timm's name of the network, for weights that do not say it themselves.
        topk: Number of classes to name.
        output: A .csv or .json file to write; nothing is printed then but what could not be read.
        batch_size: Pictures at a time.
        device: cpu, cuda or another of torch's; auto takes a GPU where there is one.

    Raises:
        ConfigError: If an option cannot work.
        DataError: If there are no pictures at all.
        UnreadablePicturesError: At the end, if some could not be read.
    """
    if weights is None:
        raise ConfigError("--weights is missing: give the network's .safetensors, .ckpt or .pth file")
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected 1 or more")
    if output is not None and output.suffix not in (".csv", ".json"):
        raise ConfigError(f"--output {output}: expected a name that ends in .csv or .json")
    if output is not None and not output.parent.is_dir():  # better known before the work than after it
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; make it, or choose another")
    paths = list(find_pictures(pictures))
    if not paths:
        raise DataError(f"no pictures in {', '.join(pictures) or 'an empty list'}; give files or folders with pictures")
    network, card = load_network(weights, model)
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    try:
        network = fuse_norms(network).to(chosen).to(memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}; use auto or cpu") from None
    names = class_names(card)
    batches = track(
        answer(paths, network, card, names, topk, batch_size),
        "predicting",
        total=len(paths),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    answers = list(batches)
    if output is not None:
        write_text_atomic(output, to_csv(answers) if output.suffix == ".csv" else json.dumps(answers, indent=2) + "\n")
        print(f"wrote {output}")
    else:
        Console().print(_table(answers, card))
    failed = [found for found in answers if "error" in found]
    for found in failed:
        print(f"skipped: {found['error']}", file=sys.stderr)
    if failed:
        raise UnreadablePicturesError(f"{len(failed)} of {len(answers)} pictures could not be read, see above")


def find_pictures(given: Iterable[str]) -> Iterator[Path]:
    """Files as they are given, the pictures below folders by name, and for ``-`` those that standard input lists.

    Raises:
        DataError: If something does not exist.
    """
    for text in given:
        if text == "-":
            yield from find_pictures(line.strip() for line in sys.stdin if line.strip())
        elif (path := Path(text)).is_dir():
            yield from map(Path, list_pictures(path))
        elif path.exists():
            yield path
        else:
            raise DataError(f"no such picture or folder: {text}")


@torch.inference_mode()
def answer(
    paths: list[Path],
    network: torch.nn.Module,
    card: ModelCard,
    names: tuple[str, ...],
    topk: int,
    batch_size: int,
) -> Iterator[Answer]:
    """What a network makes of each picture, in order.

    Args:
        paths: Pictures.
        network: In evaluation mode.
        card: How it wants its pictures.
        names: Of its classes.
        topk: Number of classes to name.
        batch_size: Pictures at a time.
    """
    how = asdict(card.preprocessing)
    upright = how.pop("upright") is not False  # so where the weights do not say
    transform = eval_transform(**how)
    parameter = next(network.parameters())

    def prepare(path: Path) -> Tensor | str:
        try:
            return transform(read_picture(path, upright=upright))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for chunk in (paths[start : start + batch_size] for start in range(0, len(paths), batch_size)):
            prepared = list(pool.map(prepare, chunk))
            readable = [picture for picture in prepared if isinstance(picture, Tensor)]
            ranked: Iterator[tuple[Tensor, Tensor]] = iter(())
            if readable:
                x = torch.stack(readable).to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
                probabilities = network(x).float().softmax(-1)
                top = probabilities.topk(min(topk, probabilities.shape[1]))
                ranked = iter(zip(top.values.cpu(), top.indices.cpu(), strict=True))
            for path, picture in zip(chunk, prepared, strict=True):
                if isinstance(picture, str):
                    yield {"picture": str(path), "error": picture}
                    continue
                values, indices = next(ranked)
                classes = [
                    {"index": index, "name": names[index], "probability": round(value, 6)}
                    for value, index in zip(values.tolist(), indices.tolist(), strict=True)
                ]
                yield {"picture": str(path), "classes": classes}


def class_names(card: ModelCard) -> tuple[str, ...]:
    """The names in the weights; for 1,000 nameless classes those of ImageNet-1k, for others their numbers."""
    if card.class_names:
        return card.class_names
    if card.num_classes == 1000:
        imagenet = ImageNetInfo()
        return tuple(imagenet.index_to_description(index) for index in range(1000))
    return tuple(f"class {index}" for index in range(card.num_classes))


def to_csv(answers: list[Answer]) -> str:
    """A line for each picture and class: picture, rank (from 1), index, class, probability, error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "rank", "index", "class", "probability", "error"])
    for found in answers:
        for rank, entry in enumerate(found.get("classes", []), start=1):
            writer.writerow([found["picture"], rank, entry["index"], entry["name"], entry["probability"], ""])
        if "error" in found:
            writer.writerow([found["picture"], "", "", "", "", found["error"]])
    return text.getvalue()


def _table(answers: list[Answer], card: ModelCard) -> Table:
    height, width = card.preprocessing.img_size
    table = Table(title=f"{card.model}, {height}x{width} px", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for found in answers:
        classes = found.get("classes", [{"name": "unreadable", "probability": None}])
        for rank, entry in enumerate(classes):
            share = "" if entry["probability"] is None else f"{entry['probability']:.1%}"
            last = rank == len(classes) - 1
            table.add_row(found["picture"] if rank == 0 else "", entry["name"], share, end_section=last)
    return table
