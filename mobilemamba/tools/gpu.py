"""The ``gpu`` command: checks and measurements on a GPU in one run."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from mobilemamba.analysis.gpu import ahead, correctness, curves, machine, speed, training
from mobilemamba.analysis.gpu.run import Part, Run, table
from mobilemamba.analysis.gpu.sizes import QUICK, Sizes
from mobilemamba.analysis.machine import choose_device
from mobilemamba.data.layout import require_folder
from mobilemamba.errors import ConfigError
from mobilemamba.files import check_writable
from mobilemamba.screen import make_console, say

#: First what makes the rest worthless if it fails, then what has goals; last what explains, and the slowest.
PARTS = (
    Part("machine", "The machine", machine.machine, 20),
    Part("ahead", "Kernels compiled, side by side", ahead.kernels_ahead, 80),
    Part("scans", "The scan and its gradients against float64", correctness.scans, 60),
    Part("right", "Networks against the CPU", correctness.networks, 50),
    Part("networks", "Networks against EfficientViT", speed.networks, 160),
    Part("steps", "Training steps", training.steps, 40),
    Part("operators", "Operators against a copy", speed.operators, 50),
    Part("bits", "Gradients twice", training.same_bits, 15),
    Part("memory", "Memory against pixels", training.memory, 20),
    Part("kernels", "Where the time goes", speed.kernels, 15),  # late, as the profiler's hooks may slow later launches
    Part("compiled", "torch.compile", speed.compiled, 90),
)


def gpu(
    output: Path = Path("gpu.json"),
    seconds: float = 480,
    device: str = "cuda",
    data: Path | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    parts: str | None = None,
    quick: bool = False,
) -> None:
    """Measure everything once on a GPU: exactness, operators, networks against EfficientViT, training, memory.

    Args:
        output: A .json file, rewritten after each part; a plot of the training curves is written beside it.
        seconds: Time limit for all parts together; parts that do not fit are skipped and listed.
        device: cuda, or cuda:1 and so on; with quick, any device.
        data: A folder of pictures by class to train S6 and efficientvit_m5 on at the end, after those seconds.
        minutes: Time for both trainings of data together; by default 3.
        batch_size: Batch size of both trainings; by default 128.
        parts: Names of the parts to run, separated by commas, instead of all; the file keeps its other parts.
        quick: Only test that the run works, on any device, with tiny sizes whose numbers are meaningless.

    Raises:
        ConfigError: If there is no GPU, or an option is invalid.
        DataError: If there is no such folder.
    """
    chosen = _device(device, quick)
    for name, value in (("minutes", minutes), ("batch_size", batch_size)):
        if value is not None and data is None:
            raise ConfigError(f"--{name} {value}: it is for the trainings of --data; give a folder, or leave it out")
    minutes, batch_size = 3 if minutes is None else minutes, 128 if batch_size is None else batch_size
    for name, value in (("seconds", seconds), ("minutes", minutes)):
        if not value > 0:
            raise ConfigError(f"--{name} {value}: expected more than 0")
    if batch_size < 2:
        raise ConfigError(f"--batch_size {batch_size}: expected 2 or more; a norm in training needs two pictures")
    check_writable(output, "--output", [".json"])
    known = [*PARTS]
    if data is not None:
        require_folder(str(data), "train/<class>/ or <class>/")
        train = partial(curves.curves, folder=data, seconds=60 * minutes, batch=batch_size)
        known.append(Part("curves", "Two trainings", train, 60 * minutes, beyond=True))
    wanted = _wanted(parts, known)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for reproducible bits; before the first product

    def go_on(left: list[Part]) -> int:
        """Runs parts in a new process, which shows the table, and returns its exit code."""
        say("the GPU is of no use to this process any more; the other parts run in a new one")
        options = {"output": output, "seconds": max(1.0, run.left), "device": device, "quick": str(quick).lower()}
        options |= {} if data is None else {"data": data, "minutes": minutes, "batch_size": batch_size}
        options["parts"] = ",".join(part.name for part in left)
        given = [f"--{name}={value}" for name, value in options.items()]
        return subprocess.run([sys.executable, "-m", "mobilemamba_command", "gpu", *given], check=False).returncode

    def show() -> int:
        console = make_console()
        console.print(table(run.parts, min(console.width, 120)))
        say(f"wrote {output}")
        return 0

    def leave(left: list[Part]) -> None:
        code = go_on(left) if left else show()
        sys.stdout.flush()
        os._exit(code)  # as a thread that waits for the GPU cannot be ended

    sizes = QUICK if quick else Sizes()
    run = Run(chosen, sizes, output, seconds, goes_on=parts is not None, leave=leave)
    left = run.do(wanted)
    if code := go_on(left) if left else show():
        sys.exit(code)  # the new process has said why, e.g. that it finds no GPU any more


def _device(name: str, quick: bool) -> torch.device:
    on_gpu = name.partition(":")[0] == "cuda"
    if not on_gpu and not quick:
        raise ConfigError(f"--device {name}: this run is for a GPU; choose cuda, or --quick to try the run itself")
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no GPU; run it where there is one")
    return choose_device(name)


def _wanted(names: str | None, known: list[Part]) -> list[Part]:
    if names is None:
        return known
    by_name = {part.name: part for part in known}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen or [names]:
        if name not in by_name:
            hint = "; it needs --data" if name == "curves" else ""
            raise ConfigError(f"--parts {name}: expected some of {', '.join(by_name)}{hint}")
    return [part for part in known if part.name in chosen]
