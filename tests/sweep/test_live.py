"""The table of a running sweep on screens that are narrow or low, with names that read like markup."""

import io
from typing import Any

from rich.console import Console, RenderableType

from mobilemamba.sweep.live import Display
from mobilemamba.training.metrics import ClassificationMetrics

UNKNOWN = ("data", "reason", "flops_m", "params_m", "throughput", "throughput_conditions", "epochs", "top1")
SWEPT = {"model.lr": 0.1, "model.arch.embed_dims": [128, 256, 512]}


def row(name: str, status: str = "waiting", **values: Any) -> dict[str, Any]:
    scores = ClassificationMetrics.SCORES
    return {"run": name, "status": status, "scores": scores, **dict.fromkeys(UNKNOWN), **SWEPT, **values}


def display(width: int) -> Display:
    return Display("sweep", list(SWEPT), Console(width=width, height=24, record=True))


def shown(screen: Display, table: RenderableType) -> str:
    screen.console.print(table)
    return screen.console.export_text()


def test_names_and_states_are_whole_on_eighty_columns() -> None:
    measured = {"flops_m": 652.3, "params_m": 15.04, "throughput": 123.0, "throughput_conditions": "x"}
    rows = [
        row("[red]one[/]:smile:", "finished", **measured, epochs=10, top1=81.25, data="[b]data"),
        row("two", "failed", reason="no file [/]"),
        row("three", "running"),
        row("four", "running"),
    ]
    screen = display(80)
    endless = {"epoch": 27, "max_epochs": -1}
    text = shown(screen, screen.table(rows, {"three": {"epoch": 3, "max_epochs": 10, "best": 70.0}, "four": endless}))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("[red]one[/]:smile:", "finished", "failed:", "no file", "[/]", "running", "3/10", "70.00", "[b]data"):
        assert part in text
    assert " 27 " in text, "without a number of epochs if steps end the training"
    assert "not shown on 80 columns" in text
    assert "embed_dims 128, 256, 512 in all" in text
    wide = display(200)
    assert "not shown" not in shown(wide, wide.table(rows, {}))


def test_a_low_screen_shows_what_runs_and_what_failed() -> None:
    rows = [row(f"row{number}", "finished") for number in range(30)]
    rows += [row("fails", "failed"), row("runs", "running"), *(row(f"later{number}") for number in range(30))]
    screen = display(80)
    text = shown(screen, screen.table(rows, {}, height=24))
    assert len(text.splitlines()) <= 24
    assert "fails" in text
    assert "runs" in text
    assert "not shown on 24 lines: 30 finished, 18 waiting" in text


def test_speeds_measured_in_two_ways_are_marked() -> None:
    rows = [row(name, throughput=10.0, throughput_conditions=f"10 img/s (median of 5), {name}") for name in "ab"]
    screen = display(120)
    text = shown(screen, screen.table(rows, {}))
    assert "10 (a)" in text
    assert "10 (b)" in text
    assert "img/s were measured in 2 ways and do not compare" in text


def test_every_row_stays_on_a_terminal_in_the_end() -> None:
    screen = io.StringIO()
    rows = [row(f"row{number}", "finished") for number in range(10, 40)]
    with Display("sweep", [], Console(file=screen, force_terminal=True, width=80, height=12)) as display:
        display.update([{**entry, "status": "waiting"} for entry in rows], {})
        display.update(rows, {})
        assert "not shown on 12 lines" in screen.getvalue()
        before = screen.tell()
    assert all(f"row{number}" in screen.getvalue()[before:] for number in range(10, 40))
