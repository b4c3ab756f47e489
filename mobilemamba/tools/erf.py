"""The ``erf`` command: effective receptive fields of networks, as a figure, a table and files."""

from __future__ import annotations

import io
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Resampling
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from mobilemamba.analysis.benchmark.cases import is_file
from mobilemamba.analysis.erf import (
    THRESHOLDS,
    UNTRAINED,
    Display,
    ReceptiveField,
    Row,
    Rule,
    Scale,
    contribution_ratios,
    count_pictures,
    draw_receptive_fields,
    figure_size,
    receptive_fields,
    share_beyond,
)
from mobilemamba.analysis.figures import png_figure
from mobilemamba.analysis.machine import choose_device
from mobilemamba.data.random_pictures import random_pictures
from mobilemamba.errors import ConfigError, is_out_of_memory
from mobilemamba.files import check_writable, make_folder, write_atomic, write_text_atomic
from mobilemamba.models import ModelCard, Preprocessing, load_network
from mobilemamba.models.checkpoints import BUILDERS
from mobilemamba.models.runtime import runtime_of
from mobilemamba.screen import fit_table, make_console, say
from mobilemamba.text import csv_of, printable

_NONE = "-"
_MOST = {"size": 2048, "seed": 2**32 - 1}
_AT_A_TIME = 1_000_000  # pixels per batch
_NOTE = (
    "r: area of the smallest square about the cell's centre that holds more than 20, 30, 50, 99 % of the map. "
    "Of pictures: quartiles of the r50 of each one's own map. area50: the least area that holds 50 %."
)
_NOTE_REPLKNET = "log r: of log10(x + 1) about the middle, as in RepLKNet; it depends on the gradients' scale."
#: Distances from the centre beyond which the mass is measured, as fractions of the picture's shorter side.
_RADII = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}


def erf(
    *models: str,
    weights: list[str] | None = None,
    data: Path | None = None,
    pictures: int = 50,
    size: int | None = None,
    blocks: bool = False,
    position: list[float] | None = None,
    rule: Rule = "relu",
    display: Display = "log",
    scale: Scale = "own",
    compare: Literal["untrained"] | None = None,
    as_in_replknet: bool = False,
    output: Path = Path("erf"),
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Show the effective receptive fields of networks' stages, as a figure, a table and files.

    Args:
        models: timm's names; not needed for weights that contain the name of their network.
        weights: A file for each model (.safetensors, .ckpt, .pth); - for none, which leaves the network untrained.
        data: A folder of pictures, or of folders of pictures; if one is named val, only that is used. By default the
            sample.
        pictures: Number of pictures, drawn at random by the seed.
        size: Side in pixels to which pictures are scaled, up to 2048; by default the size each network was made for.
        blocks: Show every block instead of every stage.
        position: Row and column of the cell, as fractions of the picture; by default the cell in the middle.
        rule: Treatment of negative features and gradients: set to zero (relu), absolute or signed.
        display: Display of fractions of the maximum: log, raw, power (the fifth root).
        scale: Colours relative to each map's own maximum (own), or to the largest density of all maps (common).
        compare: ``untrained`` shows each network with weights also untrained, before the trained one.
        as_in_replknet: Add RepLKNet's measures, of log10(x + 1), which depend on the scale of the gradients.
        output: Folder for erf.png, erf.pdf, erf.csv and the maps, erf.npz.
        batch_size: Batch size; by default as many pictures as have a million pixels.
        seed: Seed of the random pictures and of untrained weights.
        device: cpu, cuda or another device of torch; auto uses a GPU if there is one.

    Raises:
        ConfigError: If an option is invalid.
        DataError: If there are no readable pictures.
        WeightsError: If weights cannot be read or do not fit.
    """
    for name, value in (("pictures", pictures), ("batch_size", batch_size), ("size", size), ("seed", seed)):
        least, most = int(name != "seed"), _MOST.get(name)
        if value is not None and not least <= value <= (most or value):
            raise ConfigError(f"--{name} {value}: expected {least} {f'to {most}' if most else 'or more'}")
    if position is not None and len(position) != 2:
        raise ConfigError(f"--position {' '.join(map(str, position))}: expected a row and a column, e.g. 0.25 0.75")
    at = None if position is None else (float(position[0]), float(position[1]))
    chosen = choose_device(device)
    subjects = _subjects(models, weights or [], compare, seed)
    sides = [(size, size) if size else subject.card.preprocessing.img_size for subject in subjects]
    name_of_data = "the Fashion-MNIST sample" if data is None else printable(data.name or data)
    scaled = _pictures(data, pictures, seed, set(sides))
    files = _files(output)
    rows = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        for subject, side in zip(subjects, sides, strict=True):
            task = bar.add_task(subject.name, total=len(scaled[side]))
            number = batch_size or max(1, _AT_A_TIME // math.prod(side))
            batches = _batches(scaled[side], subject.card.preprocessing, number, partial(bar.advance, task))
            rows.append(subject.row(batches, "blocks" if blocks else "stages", rule, at, chosen))
    console = make_console()
    console.print(_table(console.width, rows, name_of_data, as_in_replknet))
    texts = [text for row in rows for text in (row.name, row.weights)]
    with png_figure(files["png"], [*texts, name_of_data], files["pdf"], figsize=figure_size(rows), dpi=150) as figure:
        draw_receptive_fields(figure, rows, display, scale, name_of_data)
    write_text_atomic(files["csv"], _csv(rows, name_of_data, as_in_replknet))
    content = io.BytesIO()
    maps: dict[str, Any] = {key: field.map for key, _, field in _entries(rows)}
    np.savez_compressed(content, **maps)
    write_atomic(files["npz"], content.getbuffer())
    say(f"wrote {', '.join(printable(path) for path in files.values())}")


@dataclass
class _Subject:
    """A network whose receptive fields are shown."""

    name: str
    weights: str
    network: nn.Module
    card: ModelCard

    def row(self, batches: Iterator[Tensor], taps: Any, rule: Rule, position: Any, device: torch.device) -> Row:
        try:
            fields = receptive_fields(self.network.to(device), batches, taps, rule, position)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{self.name}: the batch is too large for the memory of {device}; lower --batch_size"
            ) from None
        finally:
            self.network.cpu()
        return Row(printable(self.name), printable(self.weights), fields)


def _files(output: Path) -> dict[str, Path]:
    make_folder(output, "--output")
    files = {ending: output / f"erf.{ending}" for ending in ("png", "pdf", "csv", "npz")}
    for path in files.values():
        check_writable(path, "--output")
    return files


def _subjects(models: Sequence[str], weights: Sequence[str], compare: str | None, seed: int) -> list[_Subject]:
    if not models and not weights:
        raise ConfigError("there is nothing to look at: name models, e.g. mobilemamba_s6, or give --weights")
    if files := [name for name in models if is_file(name)]:
        raise ConfigError(f"{printable(files[0])} is no model's name; give weights by --weights")
    if models and weights and len(models) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(models)} models: give one for each, {_NONE} for none")
    if not models and _NONE in weights:
        raise ConfigError(f"--weights {_NONE} leaves out the weights of a model, and none is named: name it before")
    if compare and all(path == _NONE for path in weights):
        raise ConfigError(f"--compare {compare}: there are no weights to compare with; give --weights")
    subjects = []
    for name, path in zip(models or (None,) * len(weights), weights or [_NONE] * len(models), strict=True):
        if path == _NONE:
            assert name is not None
            card = ModelCard(name, Preprocessing.of_model(name))
        else:
            if runtime_of(path):
                raise ConfigError(
                    f"{printable(path)} is an exported network, without gradients; give what it was made of"
                )
            network, card = load_network(path, name, verbose=False, option="the model")
        if card.in_chans != 3:
            raise ConfigError(f"{printable(path)}: the network takes {card.in_chans} channels; pictures have 3")
        if path == _NONE or compare:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                subjects.append(_Subject(card.model, UNTRAINED, BUILDERS[card.task](card), card))
        if path != _NONE:
            subjects.append(_Subject(card.model, path, network, card))
    return subjects


def _pictures(
    data: Path | None, number: int, seed: int, sides: set[tuple[int, int]]
) -> dict[tuple[int, int], list[np.ndarray]]:
    """Returns the same pictures (H, W, 3) uint8 in each size."""
    scaled: dict[tuple[int, int], list[np.ndarray]] = {side: [] for side in sides}
    for picture in random_pictures(data, number, seed, lambda error: print(f"skipped: {error}", file=sys.stderr)):
        for (height, width), kept in scaled.items():
            kept.append(np.asarray(picture.resize((width, height), Resampling.BICUBIC)))
    return scaled


def _batches(
    pictures: list[np.ndarray], how: Preprocessing, batch_size: int, done: Callable[[int], object]
) -> Iterator[Tensor]:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    for start in range(0, len(pictures), batch_size):
        batch = torch.from_numpy(np.stack(pictures[start : start + batch_size])).permute(0, 3, 1, 2)
        yield (batch / 255 - mean) / std
        done(len(batch))


def _entries(rows: Sequence[Row]) -> Iterator[tuple[str, Row, ReceptiveField]]:
    """Yields each map with its name in the file of the maps, and its row."""
    for number, row in enumerate(rows, 1):
        yield from ((f"{number}_{row.name}_{field.tap}", row, field) for field in row.fields)


def _numbers(field: ReceptiveField, as_in_replknet: bool) -> dict[str, float]:
    """Returns all measures of a map, by the names of the CSV's columns."""
    radii = [share * min(field.size) for share in _RADII.values()]
    found = dict(zip((f"beyond_{name}" for name in _RADII), share_beyond(field.map, field.centre, radii), strict=True))
    columns = {"r{}": field.ratios, "area{}": field.areas}
    columns |= zip(("r{}_q1", "r{}_median", "r{}_q3"), field.quartiles, strict=True)
    if as_in_replknet:
        middle = field.size[0] // 2, field.size[1] // 2
        columns["log_r{}"] = contribution_ratios(np.log10(np.abs(field.map) + 1), middle)
    for name, values in columns.items():
        found |= {name.format(f"{100 * t:g}"): value for t, value in zip(THRESHOLDS, values, strict=True)}
    return found


def _percent(*shares: float) -> str:
    return "-".join("?" if np.isnan(share) else f"{100 * share:.{1 if share >= 0.01 else 2}f}" for share in shares)


def _table(width: int, rows: Sequence[Row], data: str, as_in_replknet: bool) -> Any:
    names = [f"{100 * threshold:g}" for threshold in THRESHOLDS]
    header = ["network", "weights", "map", "px", *(f"r{t}" for t in names), "r50 of pictures", "area50"]
    header += [f"log r{t}" for t in names] * as_in_replknet
    lines, fields = [], [field for row in rows for field in row.fields]
    for row in rows:
        for number, field in enumerate(row.fields):
            found = _numbers(field, as_in_replknet)
            cells = [_percent(found[f"r{t}"]) for t in names]
            cells += [_percent(found["r50_q1"], found["r50_q3"]), _percent(found["area50"])]
            cells += [_percent(found[f"log_r{t}"]) for t in names if as_in_replknet]
            # The part of the path that distinguishes runs; the CSV has the whole path.
            label = [row.name, "/".join(Path(row.weights).parts[-2:])] if number == 0 else ["", ""]
            lines.append([*label, field.tap, "x".join(map(str, dict.fromkeys(field.size))), *cells])
    notes = [_NOTE, *[_NOTE_REPLKNET] * as_in_replknet]
    if left_out := sum(field.left_out for field in fields):
        notes.append(f"left out, as their gradients are not finite: {left_out} maps of pictures")
    if any(row.weights == UNTRAINED for row in rows):
        notes.append("untrained networks have random weights: their fields say nothing of trained ones")
    pictures = count_pictures(fields)
    title = f"Effective receptive fields in % of the picture: {pictures} of {data}, rule {fields[0].rule}"
    ends = [last - 1 for last in itertools.accumulate(len(row.fields) for row in rows)]
    numeric, spare = range(3, len(header)), [header.index(name) for name in ("area50", "px", "r50 of pictures")]
    return fit_table(width, header, lines, title=title, notes=notes, numeric=numeric, spare=spare, sections=ends)


def _csv(rows: Sequence[Row], data: str, as_in_replknet: bool) -> str:
    return csv_of(
        [
            {
                "map": key,
                "network": row.name,
                "weights": row.weights,
                "tap": field.tap,
                "stride": field.stride[0],
                "height": field.size[0],
                "width": field.size[1],
                "data": data,
                "pictures": field.pictures,
                "left_out": field.left_out,
                "rule": field.rule,
                "cell_row": field.cell[0],
                "cell_column": field.cell[1],
                "centre_row": field.centre[0],
                "centre_column": field.centre[1],
                **{name: f"{value:.6g}" for name, value in _numbers(field, as_in_replknet).items()},
            }
            for key, row, field in _entries(rows)
        ]
    )
