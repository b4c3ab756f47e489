"""The ``benchmark`` command: speed of networks, relative to each other and to the machine's limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mobilemamba.analysis.benchmark.cases import MODES, expand, under_heads
from mobilemamba.analysis.benchmark.comparison import FASTEST, fastest
from mobilemamba.analysis.benchmark.networks import Progress as Report
from mobilemamba.analysis.benchmark.networks import measure
from mobilemamba.analysis.benchmark.plot import plot as draw
from mobilemamba.analysis.benchmark.published import FRONT, NOT_IN_TIMM, TABLE7, published_top1
from mobilemamba.analysis.benchmark.records import Record, write_records
from mobilemamba.analysis.benchmark.scans import ScanRecord, measure_scans
from mobilemamba.analysis.benchmark.tables import network_notes, network_table, scan_notes, scan_table
from mobilemamba.analysis.machine import choose_device
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.files import check_writable
from mobilemamba.models import VARIANTS
from mobilemamba.models.runtime import RUNTIMES, packages_of
from mobilemamba.ops.kernels import describe_kernels
from mobilemamba.screen import make_console

#: Models that are measured by default, and runtimes in addition to PyTorch, if they are installed.
DEFAULT_MODELS = (*TABLE7, *FRONT)
DEFAULT_RUNTIMES = ("onnxruntime", "openvino")
#: Default models of --scaling: each architecture of ours once, and a rival of the same size.
SCALED_MODELS = ("efficientvit_m5", "mobilemamba_t2", "mobilemamba_t4", "mobilemamba_s6", "mobilemamba_b1")
#: Default models of --head.
BACKBONES = ("mobilemamba_b4", "shvit_s4", "efficientvit_m5", "mobilenetv2_100")
SCALED_SIZES = "192,256,384,512,768,1024"


class NothingMeasuredError(MobileMambaError, RuntimeError):
    """Raised when every configuration has failed."""

    exit_code = 1


def benchmark(
    *models: str,
    head: str | None = None,
    size: str | None = None,
    batch: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    mode: str | None = None,
    layout: str = "auto",
    fused: bool = True,
    train: bool = False,
    scaling: bool = False,
    ops: bool = False,
    scan_backend: str = "auto",
    memory: bool = True,
    threads: int | None = None,
    rounds: int = 15,
    seconds: float | None = None,
    output: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Measure the speed of networks, relative to each other and to the machine's limit.

    By default, measures the networks of the paper's Table 7 and timm's fastest networks at the same accuracies. On a
    CPU, this is repeated in each installed runtime, and the table shows each network in its fastest; it takes half an
    hour or more, and several GB of memory. Several values of size, batch, device, dtype, mode and layout are separated
    by commas; all combinations are measured, in interleaved rounds.

    Args:
        models: timm's names, weights files (.safetensors, .ckpt), or exported networks (.onnx, .xml and so on), which
            run in their own runtime whatever the mode.
        head: Head on the models: deeplabv3, pspnet, semantic_fpn; or mask_rcnn, retinanet, ssdlite, whose time is also
            shown by parts. By default on B4 and three rivals, at 512 px, 800 px or 320 px, with batch size 1.
        size: Sizes of the pictures in pixels, as 512 or 800x1280; by default the one each network was made for.
        batch: Batch sizes; by default 1,32, for training 32, for scaling 1.
        device: cpu, cuda or another device of torch; auto uses a GPU if there is one.
        dtype: float32, bfloat16, float16; in training that of the autocast region.
        mode: eager, compiled (torch.compile), exported (torch.export), graph (a CUDA graph), or another runtime:
            onnxruntime, openvino, litert, executorch, ncnn. By default eager, and if no models are given, on a CPU also
            onnxruntime and openvino.
        layout: contiguous, channels_last; auto chooses the faster one for each network.
        fused: Fold norms into weights, for inference.
        train: Time training steps (forward, backward, AdamW) instead of inference.
        scaling: Time 192 to 1024 px, and fit the exponent of cost over pixels.
        ops: Time the scan backends on the scans that occur in the networks.
        scan_backend: Scan backend of mobilemamba models, see mobilemamba backends; with ops, the only one to time.
        memory: Measure the peak memory as well.
        threads: Number of torch's CPU threads; by default torch's own choice.
        rounds: How often each network is timed, in turn with the others.
        seconds: Approximate time per network and round; by default 0.5, with ops 0.1, or less if the total would exceed
            ten minutes.
        output: A .csv or .json file to write.
        plot: A .png file for a plot of published accuracy over throughput.

    Raises:
        ConfigError: If an option is invalid.
        WeightsError: If a weights file cannot be read.
        NothingMeasuredError: If nothing could be measured.
    """
    for name, value in (("rounds", rounds), ("seconds", seconds), ("threads", threads)):
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value}: expected more than 0")
    if output is not None:
        check_writable(output, "--output", [".csv", ".json"])  # fails now rather than after minutes of measuring
    if plot is not None and not ops:
        check_writable(plot, "--plot", [".png"])
    of_networks = {"scaling": scaling, "plot": plot, "mode": mode, "layout": layout != "auto", "fused": not fused}
    if ops and (given := [name for name, value in of_networks.items() if value]):
        raise ConfigError(f"--ops with --{given[0]}: it measures no networks; leave one out")
    names = models or (tuple(VARIANTS) if ops else SCALED_MODELS if scaling else BACKBONES if head else DEFAULT_MODELS)
    if head is not None:
        names = under_heads(head, names)
    of_default = not (models or ops or scaling or head)
    modes = _words(mode or "eager")
    if of_default and mode is None and dtype == "float32" and fused and not train:
        modes += _installed() if choose_device(device).type == "cpu" else []
    usual = ("2" if head else "32") if train else "1" if scaling or head else "1,32"
    cases = expand(
        names,
        sizes=_sizes(size or (SCALED_SIZES if scaling else "")),
        batches=_numbers("batch", batch or usual),
        devices=_words(device),
        dtypes=_words(dtype),
        modes=modes,
        layouts=_words(layout),
        fused=fused,
        train=train,
        scan_backend=scan_backend,
    )
    for runtime in RUNTIMES.values():
        if any(case.mode == runtime.name for case in cases):
            runtime.need(runtime.reads)  # fails now rather than after minutes of measuring
    if plot is not None and not any(published_top1(case.model, case.size) for case in cases):
        raise ConfigError(f"--plot {plot}: none of these networks has a published accuracy at its size; leave it out")
    console = make_console()
    found: Sequence[Record | ScanRecord]
    with _threads(threads), _progress() as report:
        if ops:
            found = scans = measure_scans(
                cases,
                rounds=rounds,
                seconds=seconds or 0.1,
                backends=None if scan_backend == "auto" else (scan_backend,),
                progress=report,
            )
            table, notes = scan_table(scans, console.width), scan_notes(scans)
        else:
            seconds = seconds or max(0.05, min(0.5, 600 / (rounds * len(cases))))
            heats = [[c for c in cases if c.mode == each] for each in modes] if of_default else [cases]
            # One runtime at a time, as so many networks would need about 15 GB of memory.
            records = [record for heat in heats if heat for record in measure(heat, rounds, seconds, memory, report)]
            found, shown = records, fastest(records) if mode is None and len(modes) > 1 else records
            table, notes = network_table(shown, console.width), network_notes(records)
    console.print(table)
    if (in_torch := next((case for case in cases if case.mode in MODES), None)) is not None:
        print(describe_kernels(torch.device(in_torch.device), scan_backend))
    for line in notes:
        print(line)
    if of_default:
        print(f"compared by the paper, but timm lacks them, so not measured: {', '.join(NOT_IN_TIMM)}")
    if output is not None:
        write_records(found, output)
        print(f"wrote {output}")
    if all(record.error for record in found):
        raise NothingMeasuredError("nothing could be measured, see above")
    if plot is not None:
        draw(records if shown is records else [replace(record, mode=FASTEST) for record in shown], plot)
        print(f"wrote {plot}")


def _installed() -> list[str]:
    """Returns the runtimes that can be measured, and prints which ones are not installed."""
    found = [name for name in DEFAULT_RUNTIMES if all(map(find_spec, packages_of(name)))]
    for name in DEFAULT_RUNTIMES:
        if name not in found:
            print(f"{name}: not installed, so not measured")
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.strip("[]").split(",") if word.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"--{name} {text}: expected whole numbers, separated by commas") from None


def _sizes(text: str) -> list[int | tuple[int, int]]:
    found: list[int | tuple[int, int]] = []
    for word in _words(text):
        try:
            height, _, width = word.partition("x")
            found.append((int(height), int(width)) if width else int(word))
        except ValueError:
            raise ConfigError(f"--size {text}: expected sides as 512 or 800x1280, separated by commas") from None
    return found


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress() -> Iterator[Report]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    tasks: dict[str, TaskID] = {}
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report
