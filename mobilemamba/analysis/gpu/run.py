"""Runs the parts of a run one by one within their time, printing each line at once and keeping results on disk."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Group

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.gpu.sizes import Sizes
from mobilemamba.analysis.timing import synchronize
from mobilemamba.errors import in_one_line
from mobilemamba.files import read_json, write_json
from mobilemamba.screen import fit_table, say

_ENDED = "the process ended within it"  # error of a part until it is done
#: Seconds after its time at which a part on a GPU is given up: as long as a slow step at its end may take.
_GRACE = 60.0


class Part(NamedTuple):
    """One question to the GPU, and the time that the answer may take."""

    name: str  # on the command line and in the file
    title: str  # on the screen
    function: Callable[[Run], None]
    seconds: float  # the most it may take
    beyond: bool = False  # whether these seconds are not counted in those of the run


class Run:
    """State that the parts share, and their reports.

    Args:
        device: Where it runs.
        sizes: How much is measured.
        output: JSON file, written anew after each part.
        seconds: Of all parts together.
        goes_on: Whether to keep what the file has of other parts.
        leave: Called in another thread with the parts that are left, if one hangs; it should end the process.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Sizes,
        output: Path,
        seconds: float,
        goes_on: bool = False,
        leave: Callable[[list[Part]], object] = lambda left: None,
    ) -> None:
        self.device, self.sizes, self.output, self._leave = device, sizes, output, leave
        self.seconds, self._end = seconds, time.monotonic() + seconds
        self.parts: dict[str, dict[str, Any]] = read_json(output).get("parts", {}) if goes_on else {}
        self._deadline, self._part = self._end, dict[str, Any]()

    @property
    def has_graphs(self) -> bool:
        """Whether the device has CUDA graphs."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds left of the run."""
        return self._end - time.monotonic()

    @property
    def left_of_part(self) -> float:
        """Seconds left of the current part."""
        return self._deadline - time.monotonic()

    def case(self, model: str, batch: int, dtype: str, mode: str = "eager", *, train: bool = False) -> Case:
        """Returns a network to measure on the device; a CPU, which lacks kernels for float16, gets float32 instead.

        Ours are laid out for channels-last maps; of a peer, the faster layout counts.
        """
        dtype = "float32" if dtype == "float16" and self.device.type != "cuda" else dtype
        size, layout = self.sizes.size_of(model), "channels_last" if model in self.sizes.ours else "auto"
        return Case(model, size, batch, str(self.device), dtype, mode, layout, fused=not train, train=train)

    def has_time(self, seconds: float, what: str) -> bool:
        """Returns whether the part has that many seconds left; if not, reports ``what`` as skipped.

        What was found until then goes to the disk, for whoever is ended in what follows.
        """
        self._write()
        if self.left_of_part >= seconds:
            return True
        self._part["skipped"].append(what)
        say(f"  {what}: skipped, the part's time is spent")
        return False

    def add(self, **record: Any) -> None:
        """Keeps a full result, of plain JSON types, in the file."""
        self._part["records"].append(record)

    def find(self, what: str, found: str, goal: str = "", ok: bool | None = None) -> None:
        """Reports a finding, also for the table; if it has a goal, the goal and whether it is reached."""
        self._part["findings"].append({"what": what, "found": found, "goal": goal, "ok": ok})
        verdict = "" if ok is None else f" ({goal}: {'yes' if ok else 'NO'})"
        say(f"  {what}: {found}{verdict}")

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Reports an error in this context, and lets the part go on unless the device is of no use any more."""
        try:
            yield
        except Exception as error:  # whatever a kernel may raise; what follows is to be measured all the same
            if self._is_useless():
                raise
            self.find(what, f"failed: {in_one_line(error)}", "runs", ok=False)

    def do(self, parts: Sequence[Part]) -> list[Part]:
        """Runs parts in order; one that fails has its error in the file, and the others go on.

        Returns:
            The parts that are left where a failure has made the device useless for this process.
        """
        for number, part in enumerate(parts):
            self._part = self.parts[part.name] = {"records": [], "findings": [], "skipped": [], "error": _ENDED}
            seconds = part.seconds if part.beyond else min(part.seconds, self.left)
            if seconds < 1:
                say(f"{part.title}: skipped, the {self.seconds:.0f} s are spent")
                self._part |= {"skipped": ["all"], "error": ""}
                self._write()
                continue
            say(f"{part.title} (at most {seconds:.0f} s)")
            began = time.monotonic()
            self._deadline = began + seconds
            self._write()
            try:
                with self._watching(seconds, list(parts[number + 1 :])) if not part.beyond else nullcontext():
                    part.function(self)
                    synchronize(self.device)
                self._part["error"] = ""
            except Exception as error:  # whatever a kernel may raise; the other parts are to be measured all the same
                self._part["error"] = in_one_line(error)
                say(f"  FAILED: {self._part['error']}")
            self._part["seconds"] = round(time.monotonic() - began, 2)
            self._write()
            if self._part["error"] and self._is_useless():
                return list(parts[number + 1 :])
            if self.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        return []

    @contextmanager
    def _watching(self, seconds: float, left: list[Part]) -> Iterator[None]:
        """Gives the current part up if it is still in this context long after its seconds."""
        watch = threading.Timer(seconds + _GRACE, self._give_up, [left])
        watch.daemon = True
        if self.device.type == "cuda":
            watch.start()
        try:
            yield
        finally:
            watch.cancel()
            if watch.ident is not None:
                watch.join()  # until the process ends, if the part was given up: others write the file now

    def _give_up(self, left: list[Part]) -> None:
        """Reports that the current part hangs, e.g. in a kernel that never ends, and leaves it alone."""
        self._part["error"] = f"it hangs: not done {_GRACE:.0f} s after its time"
        say(f"  FAILED: {self._part['error']}")
        self._write()
        self._leave(left)

    def _is_useless(self) -> bool:
        try:
            torch.ones(1, device=self.device).add(1).item()
        except Exception:  # e.g. after an illegal address
            return True
        return False

    def _write(self) -> None:
        write_json(self.output, {"device": str(self.device), "seconds": self.seconds, "parts": self.parts})


def table(parts: dict[str, dict[str, Any]], width: int) -> Group:
    """Returns a table of the findings with a goal, and what failed or was skipped, for a screen of that width."""
    lines, sections, notes = list[list[str]](), list[int](), list[str]()
    for name, part in parts.items():
        judged = [finding for finding in part["findings"] if finding["ok"] is not None]
        lines += [[f["what"], f["found"], f["goal"], "yes" if f["ok"] else "NO"] for f in judged]
        sections.append(len(lines) - 1)
        if part["error"]:
            notes.append(f"{name} FAILED: {part['error']}")
        if part["skipped"]:
            notes.append(f"{name}: skipped for want of time: {', '.join(part['skipped'])}")
    return fit_table(width, ["what", "found", "goal", "met"], lines, notes=notes, sections=sections)
