"""Progress display of a sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live

from mobilemamba.scores import Score
from mobilemamba.screen import fit_table, make_console, say
from mobilemamba.sweep.record import Record, all_scores, conditions, status_of
from mobilemamba.sweep.sheet import cell
from mobilemamba.sweep.table import condition_marks, labels
from mobilemamba.training.callbacks.progress import of_epochs

_COLOURS = {"finished": "green", "running": "yellow", "failed": "red", "stopped": "red"}
#: Priority of rows by status if the screen is too low for all of them.
_ORDER = ("running", "failed", "stopped", "waiting", "finished")
#: Lines of a table besides its rows: title, header, rules and notes.
_AROUND = 10


class Display:
    """Context manager in which :meth:`update` redraws the table, or prints a line for each change."""

    def __init__(self, title: str, swept: list[str], console: Console | None = None) -> None:
        self.title, self.swept = title, swept
        self.console = console or make_console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._last: tuple[list[Record], dict[str, dict[str, Any]]] = ([], {})
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(self.table(*self._last))  # the final table, with every row, stays on the screen
            self.live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the table."""
        say(text, self.console)

    def update(self, records: list[Record], progress: dict[str, dict[str, Any]]) -> None:
        """Shows the rows; ``progress`` is row name -> content of its ``progress.json``, for running rows."""
        if self.live:
            self._last = records, progress
            self.live.update(self.table(records, progress, self.console.height), refresh=True)
            return
        for entry in records:
            line = self._line(entry, progress.get(entry["run"], {}))
            if entry["status"] != "waiting" and self._said.get(entry["run"]) != line:
                self.say(f"{entry['run']}: {line}")
            self._said[entry["run"]] = line

    def table(self, records: list[Record], progress: dict[str, dict[str, Any]], height: int | None = None) -> Group:
        """Returns the rows as a table; if not all fit this height, running and failed rows take precedence."""
        known = [entry for entry in records if entry["data"]]
        notes = list(dict.fromkeys(f"{_headline(entry).label} on {entry['data']}" for entry in known))
        if len(marks := condition_marks(records)) > 1:
            notes.append(f"img/s were measured in {len(marks)} ways and do not compare; results.md tells them apart")
        shown = records
        if height is not None:
            telling = sorted(records, key=lambda entry: _ORDER.index(entry["status"]))[: max(1, height - _AROUND)]
            shown = [entry for entry in records if entry in telling]
        if hidden := Counter(entry["status"] for entry in records if entry not in shown):
            counted = ", ".join(f"{count} {status}" for status, count in hidden.items())
            notes.append(f"not shown on {height} lines: {counted}")
        swept = list(labels(self.swept).values())
        header = ["row", *swept, "FLOPs (M)", "Params (M)", "img/s", "epoch", all_scores(records)[0].head, "status"]
        *costs, epoch, score = range(1 + len(swept), 6 + len(swept))
        return fit_table(
            self.console.width,
            header,
            [self._cells(entry, progress.get(entry["run"], {}), marks) for entry in shown],
            title=self.title,
            notes=notes,
            numeric=[*costs, epoch, score],
            # Swept settings may go, as the rows' names tell them; epoch and score go last, or first if still blank.
            spare=[*reversed(costs), *range(len(swept), 0, -1), epoch, score],
            styles=[_COLOURS.get(entry["status"]) for entry in shown],
        )

    def _cells(self, entry: Record, progress: dict[str, Any], marks: dict[str, str]) -> list[str]:
        now = progress if entry["status"] != "finished" else {}
        mark = marks.get(conditions(entry), "") if len(marks) > 1 and entry["throughput"] is not None else ""
        return [
            entry["run"],
            *(cell(entry[key]) for key in self.swept),
            cell(entry["flops_m"], 1),
            cell(entry["params_m"], 2),
            cell(entry["throughput"], 0) + mark,
            f"{now['epoch']}{of_epochs(now['max_epochs'])}" if now else cell(entry["epochs"]),
            cell(now.get("best") if now else entry[_headline(entry).key], _headline(entry).digits),
            status_of(entry),
        ]

    @staticmethod
    def _line(entry: Record, progress: dict[str, Any]) -> str:
        """Describes a row's status in words, without markup."""
        headline = _headline(entry)
        if entry["status"] == "finished":
            value = entry[headline.key]
            score = "" if value is None else f", {headline.label} {headline.written(value)}"
            return f"finished{score} on {entry['data']}"
        if entry["status"] == "running" and progress:
            best = progress.get("best")
            score = "" if best is None else f", {headline.label} {headline.written(best)}"
            return f"epoch {progress.get('epoch', 0)}{of_epochs(progress.get('max_epochs'))}{score}"
        return status_of(entry)


def _headline(entry: Record) -> Score:
    return entry["scores"][0]
