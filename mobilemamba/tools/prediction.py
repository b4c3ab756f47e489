"""The ``predict`` command: takes files, folders or a list of them, and writes a table, CSV, JSON or drawings."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mobilemamba.analysis.machine import choose_device
from mobilemamba.data.folders import describe_left_out, few, list_pictures
from mobilemamba.errors import ConfigError, DataError, StoppedError, UnreadablePicturesError, is_out_of_memory
from mobilemamba.files import has_ending, make_folder, write_text_atomic
from mobilemamba.models import load_network
from mobilemamba.models.predictor import Predictor, Row, predictor_of
from mobilemamba.text import printable
from mobilemamba.tools.answers import FORMATS, Answer, AnswerFile, Drawings, print_table


def predict(
    *pictures: str,
    weights: Path | None = None,
    model: str | None = None,
    topk: int | None = None,
    output: Path | None = None,
    draw: Path | None = None,
    score: float | None = None,
    batch_size: int | None = None,
    window: int | None = None,
    tta: bool = False,
    device: str = "auto",
) -> None:
    """Predict the most probable classes, the classes of pixels or the objects of pictures, as a table, CSV or JSON.

    Segmenters output the fraction of each class; drawings show the classes' colours over the picture, with a legend,
    and 0001_labels.png and so on contain the number of each pixel's class, in the picture's own size. Detectors output
    objects with their boxes in pixels.

    Args:
        pictures: Files and folders (searched recursively); ``-`` reads a list of them from standard input.
        weights: The network's weights (.safetensors, .ckpt, .pth), or an exported network (.onnx and so on).
        model: timm's name of the network, for weights that do not contain it.
        topk: Number of classes to show; by default 5, for segmentation all.
        output: A .csv or .json file to write, instead of printing the table; or a folder for the table as answers.csv,
            the drawings of --draw and, for detection, coco_results.json.
        draw: A folder for drawings of each picture with its result, as 0001.png and so on; replaces those of an earlier
            run.
        score: Smallest score of detected objects, 0 to 1; by default 0.3.
        batch_size: Batch size; by default 32, for segmentation and detection 1.
        window: Side in pixels of sliding windows for segmentation, whose logits are averaged where they overlap; by
            default the picture is segmented as a whole.
        tta: Average a segmentation over flipped pictures at 0.5 to 1.75 times their size.
        device: cpu, cuda or another device of torch; auto uses a GPU if there is one.

    Raises:
        ConfigError: If an option is invalid.
        DataError: If there are no pictures.
        StoppedError: If the user stops the command; results so far are printed or written.
        UnreadablePicturesError: At the end, if some pictures could not be read.
    """
    if weights is None:
        raise ConfigError("--weights is missing: give the network's .safetensors, .ckpt or .pth file")
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: expected 1 or more")
    if score is not None and not 0 <= score <= 1:
        raise ConfigError(f"--score {score:g}: expected 0 to 1")
    folder: Path | None = None
    if output is not None and not has_ending(output, *FORMATS) and (not output.suffix or output.is_dir()):
        make_folder(output, "--output")
        draw, folder, output = draw or output, output, output / "answers.csv"
    file = None if output is None else AnswerFile(output)
    drawings = None if draw is None else Drawings(draw, "--output" if draw == folder else "--draw")
    chosen = choose_device(device)
    left_out: Counter[str] = Counter()
    found_paths = list(find_pictures(pictures, left_out))
    paths = [path for path in found_paths if drawings is None or not drawings.has_drawn(path)]
    line = describe_left_out(left_out)
    if not paths:
        where = f"in {few(['standard input' if text == '-' else text for text in pictures])}" if pictures else "named"
        raise DataError(f"no pictures {where}{f' ({line})' if line else ''}: give files or folders with pictures")
    network, card = load_network(weights, model)
    predictor = predictor_of(network, card, chosen, topk=topk)
    try:
        predictor.check()
        predictor.look_closely(window, tta)
        if score is not None and predictor.least_score is None:
            raise ConfigError(f"--score is for detection, not {card.task}")
    except ConfigError as error:
        raise ConfigError(f"{printable(weights)}: {error}") from None
    if score is not None:
        predictor.least_score = score
    drawn = len(found_paths) - len(paths)
    own = f"left out: {drawn:,} drawing{'s' if drawn > 1 else ''} of an earlier run" if drawn else None
    for note in (line, own, f"{card.model} on {chosen}: {predictor.how}"):
        if note:
            print(note, file=sys.stderr)
    batch_size = batch_size or predictor.batch_size
    done: list[Answer] = []
    try:
        for found in track(
            answer(paths, predictor, batch_size, drawings),
            "predicting",
            total=len(paths),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ):
            done.append(found)
            if file is not None:
                file.keep(done, predictor)
    except KeyboardInterrupt:
        raise StoppedError(f"stopped after {len(done):,} of {len(paths):,} pictures") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"--batch_size {batch_size}: too many for the memory of {chosen}; give fewer") from None
    finally:
        _hand_over(done, predictor, file, folder, drawings)
    failed = [found for found in done if "error" in found]
    for found in failed:
        print(f"skipped: {found['error']}", file=sys.stderr)
    if failed:
        raise UnreadablePicturesError(f"{len(failed)} of {len(done)} pictures could not be read, see above")


def _hand_over(
    answers: list[Answer],
    predictor: Predictor,
    file: AnswerFile | None,
    folder: Path | None,
    drawings: Drawings | None,
) -> None:
    if not answers:
        return
    if drawings is not None:
        drawings.end()
    if file is None:
        print_table(answers, predictor)
        return
    try:
        file.write(answers, predictor)
    except OSError:
        print_table(answers, predictor)  # so that the results are not lost
        raise
    print(f"wrote {printable(file.path)}")
    if folder is not None:
        for name, text in predictor.results([(found["picture"], found) for found in answers]).items():
            write_text_atomic(folder / name, text)
            print(f"wrote {printable(folder / name)}")


def find_pictures(given: Iterable[str], left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yields the given files, the sorted pictures in given folders, and for ``-`` those listed on standard input.

    Args:
        given: Paths and ``-``.
        left_out: Counter of files in folders that are no pictures by their names.

    Raises:
        DataError: If a path does not exist.
    """
    for text in given:
        for path in _listed() if text == "-" else [text]:
            # Not pathlib, which raises an error for a name that is too long.
            if os.path.isdir(path):  # noqa: PTH112
                yield from map(Path, list_pictures(path, left_out))
            elif os.path.exists(path):  # noqa: PTH110
                yield Path(path)
            else:
                raise DataError(f"no such picture or folder: {printable(path)}")


def _listed() -> list[str]:
    """Reads paths from standard input, one per line or separated by NUL (``find -print0``); they may not be UTF-8."""
    content = sys.stdin.buffer.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def answer(paths: list[Path], predictor: Predictor, batch_size: int, drawn: Drawings | None = None) -> Iterator[Answer]:
    """Yields the prediction for each picture, in order; ``drawn`` stores its drawings, by its number in ``paths``."""

    def prepare(path: Path) -> tuple[Tensor, tuple[int, int]] | str:
        try:
            picture = predictor.read(path)
            return predictor.prepare(picture), (picture.height, picture.width)
        except DataError as error:
            return str(error)

    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    number = 0
    with ThreadPoolExecutor() as pool:
        coming = pool.map(prepare, chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            prepared = list(coming)
            coming = pool.map(prepare, following)  # runs while the network processes the current batch
            readable = [found for found in prepared if not isinstance(found, str)]
            of_a_size = itertools.groupby(readable, lambda found: found[0].shape)
            rows = (row for _, same in of_a_size for row in _rows(predictor, *zip(*same, strict=True)))
            for path, picture in zip(chunk, prepared, strict=True):
                number += 1
                if isinstance(picture, str):
                    yield {"picture": str(path), "error": picture}
                    continue
                row = next(rows)
                if drawn is not None:
                    drawn.save(number, predictor.drawings(predictor.read(path), row))
                yield {"picture": str(path), **{name: row[name] for name in row if name not in predictor.drawn_only}}


def _rows(predictor: Predictor, pictures: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Row]:
    return predictor.rows(predictor.forward(torch.stack([*pictures])), sizes)
