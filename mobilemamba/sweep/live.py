"""What a sweep shows while it runs: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mobilemamba.sweep.seeds import Record
from mobilemamba.sweep.sheet import cell
from mobilemamba.sweep.table import labels

_COLOURS = {"finished": "green", "running": "yellow", "failed": "red", "stopped": "red"}


class Display:
    """A context in which :meth:`update` redraws the table, or prints what is new."""

    def __init__(self, title: str, swept: list[str], console: Console | None = None) -> None:
        self.title, self.swept = title, swept
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console = Console(width=160)  # a file or a pipe has no width, and a plan cut off says nothing
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the table."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, records: list[Record], progress: dict[str, dict[str, Any]]) -> None:
        """Shows the rows.

        Args:
            records: The table.
            progress: Row name -> its ``progress.json``, for those that run.
        """
        if self.live:
            self.live.update(self.table(records, progress), refresh=True)
            return
        for entry in records:
            line = self._line(entry, progress.get(entry["run"], {}))
            if entry["status"] != "waiting" and self._said.get(entry["run"]) != line:
                self.say(f"{entry['run']}: {line}")
            self._said[entry["run"]] = line

    def table(self, records: list[Record], progress: dict[str, dict[str, Any]]) -> Table:
        """The rows as a rich table."""
        table = Table(title=self.title, title_justify="left", caption_justify="left")
        table.caption = "; ".join(dict.fromkeys(f"top-1 on {entry['data']}" for entry in records if entry["data"]))
        table.add_column("row", no_wrap=True)
        for name in labels(self.swept).values():
            table.add_column(name)
        for name in ("FLOPs (M)", "Params (M)", "img/s", "epoch", "top-1 (%)"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("status")
        for entry in records:
            now = progress.get(entry["run"], {}) if entry["status"] != "finished" else {}
            table.add_row(
                entry["run"],
                *(cell(entry[key]) for key in self.swept),
                cell(entry["flops_m"], 1),
                cell(entry["params_m"], 2),
                cell(entry["throughput"], 0),
                f"{now['epoch']}/{now['max_epochs']}" if now else cell(entry["epochs"]),
                cell(now.get("best_top1") if now else entry["top1"], 2),
                f"{entry['status']}: {entry['reason']}" if entry["reason"] else entry["status"],
                style=_COLOURS.get(entry["status"]),
            )
        return table

    @staticmethod
    def _line(entry: Record, progress: dict[str, Any]) -> str:
        """Status in words, without markup."""
        if entry["status"] == "finished":
            return f"finished, top-1 {cell(entry['top1'], 2)} % on {entry['data']}"
        if entry["status"] == "running" and progress:
            best = progress.get("best_top1")
            score = f", top-1 {best:.2f} %" if best else ""
            return f"epoch {progress.get('epoch', 0)}/{progress.get('max_epochs')}{score}"
        return f"{entry['status']}: {entry['reason']}" if entry["reason"] else entry["status"]
