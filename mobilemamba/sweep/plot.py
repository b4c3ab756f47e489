"""Plots of a sweep: score over FLOPs and over throughput, with the paper's numbers in separate panels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mobilemamba.analysis.erf import Row, draw_receptive_fields, figure_size
from mobilemamba.analysis.figures import label_points, legible, png_figure
from mobilemamba.scores import Score
from mobilemamba.screen import say
from mobilemamba.sweep.record import Record, all_scores
from mobilemamba.sweep.seeds import over_seeds
from mobilemamba.sweep.table import condition_marks, describe
from mobilemamba.training.callbacks.receptive_fields import MAPS_FILE, Snapshot, read_snapshots

_AXES = {"flops_m": "FLOPs (M), paper's convention", "throughput": "throughput (img/s)"}


def plot(records: list[Record], title: str, path: Path, paper_note: str) -> None:
    """Plots the headline score of all rows that have one; replaces the file atomically.

    Measured scores and the paper's never share a panel. Error bars are the standard deviation over the seeds, or with a
    single seed the standard error of a fraction of the validation pictures: rows whose bars overlap cannot be told
    apart.

    Raises:
        OSError: If the file cannot be written.
    """
    shown = [
        {**entry, "run": legible(entry["run"]), "place": place, "paper_place": place}
        for place, entry in enumerate(over_seeds(records), 1)
    ]
    title, conditions = legible(title), "\n".join(map(legible, describe(records))) or "nothing measured yet"
    tall = any(entry.get(f"paper_{all_scores(shown)[0].key}") is not None for entry in shown)
    texts = [title, conditions, *(entry["run"] for entry in shown)]
    with png_figure(path, texts, figsize=(12, 8.4 if tall else 5.2)) as figure:
        _draw(figure, title, shown, paper_note, conditions)


def _draw(figure: Any, title: str, shown: list[Record], paper_note: str, subtitle: str) -> None:
    score = all_scores(shown)[0]
    measured = [entry for entry in shown if entry.get(score.key) is not None]
    paper = [entry for entry in shown if entry.get(f"paper_{score.key}") is not None]
    colours = {entry["run"]: f"C{index % 10}" for index, entry in enumerate(shown)}
    panels = [_known_axes(measured), *([_known_axes(paper, "paper_")] if paper else [])]
    axes = figure.subplots(len(panels), max(map(len, panels)), squeeze=False, height_ratios=[5, 3][: len(panels)])
    data = " / ".join(dict.fromkeys(str(entry["data"]) for entry in measured)) or "no row finished yet"
    speed = " / ".join(dict.fromkeys(str(entry["device"]) for entry in measured if entry["throughput"]))
    if (ways := len(condition_marks(measured))) > 1:
        speed += f"; in {ways} ways, which do not compare"
    labels: list[tuple[Any, list[tuple[float, float, str, str]]]] = []
    for axis, (key, label) in zip(axes[0], panels[0].items(), strict=False):
        points = [entry for entry in measured if entry[key] is not None]
        for entry in points:
            look = {"fmt": "none", "ecolor": colours[entry["run"]], "alpha": 0.3}
            axis.errorbar(entry[key], entry[score.key], _bar(entry, score), **look)
        labels.append((axis, _scatter(axis, points, key, score.key, colours, "o")))
        xlabel = f"{label}, {speed}" if key == "throughput" and speed else label
        axis.set(xlabel=xlabel, ylabel=f"{score.head}, {data}")
    for axis, (key, label) in zip(axes[1], panels[1].items(), strict=False) if paper else []:
        known = [entry for entry in paper if entry[f"paper_{key}"] is not None]
        labels.append((axis, _scatter(axis, known, f"paper_{key}", f"paper_{score.key}", colours, "D")))
        axis.set(xlabel=label, ylabel=f"paper's {score.head}", title=f"paper: {paper_note}", facecolor="#f4f4f4")
        axis.title.set_fontsize(9)
    for row, drawn in zip(axes, panels, strict=True):
        for axis in row[len(drawn) :]:
            axis.remove()
    figure.suptitle(title + "\n" * (1 + subtitle.count("\n")), fontweight="bold")  # with room for the subtitle
    figure.text(0.5, 0.965 if paper else 0.945, subtitle, ha="center", va="top", fontsize=8)
    for axis, names in labels:  # after everything else, which takes up space
        label_points(axis, names)
    _add_grid(figure)


def plot_together(sweeps: dict[str, list[Record]], path: Path) -> None:
    """Plots several sweeps together, one colour per sweep, with a row of panels for each data set and score.

    Args:
        sweeps: Title -> records.
        path: PNG file, replaced atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    merged = {title: over_seeds(records) for title, records in sweeps.items()}
    scores = {title: all_scores(records)[0] for title, records in merged.items()}
    merged = {title: [e for e in records if e[scores[title].key] is not None] for title, records in merged.items()}
    lines = {(entry["data"], scores[title]): None for title, records in merged.items() for entry in records}
    with png_figure(path, figsize=(12, 4.5 * max(1, len(lines)))) as figure:
        axes = figure.subplots(max(1, len(lines)), 2, squeeze=False)
        drawn: dict[str, Any] = {}
        for row, (data, score) in zip(axes, lines, strict=False):
            for axis, (key, label) in zip(row, _AXES.items(), strict=True):
                for number, (title, records) in enumerate(merged.items()):
                    known = [e for e in records if e["data"] == data and e[key] is not None and scores[title] == score]
                    points = [(entry[key], entry[score.key], _bar(entry, score)) for entry in known]
                    look = {"fmt": "os^D"[number // 10 % 4], "color": f"C{number % 10}", "alpha": 0.7}
                    if points:
                        drawn[title] = axis.errorbar(*zip(*points, strict=True), **look)
                axis.set(xlabel=label, ylabel=f"{score.head}, {data}")
                if not axis.containers:
                    axis.remove()
        if drawn:
            figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=min(len(drawn), 5), fontsize=8)
        _add_grid(figure)


def plot_receptive_fields(records: list[Record], path: Path) -> bool:
    """Plots the last measured receptive fields of each row, one line per row; writes nothing if there are none.

    Args:
        records: Records of rows, some of which were trained with the callback
            :class:`~mobilemamba.training.callbacks.ReceptiveFields`.
        path: PNG file, replaced atomically.

    Returns:
        Whether the plot was written.

    Raises:
        OSError: If the file cannot be written.
    """
    last = {entry["run"]: found for entry in records if not entry["fused_of"] and (found := _last_fields(entry))}
    if not last:
        return False
    data = " / ".join(dict.fromkeys(snapshot.data for snapshot in last.values()))
    rows = [Row(run, snapshot.weights, snapshot.fields) for run, snapshot in last.items()]
    with png_figure(path, [data, *(row.name for row in rows)], figsize=figure_size(rows)) as figure:
        draw_receptive_fields(figure, rows, data=data)
    return True


def _last_fields(entry: Record) -> Snapshot | None:
    path = Path(entry["run_dir"], MAPS_FILE)
    try:
        return read_snapshots(path)[-1]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"left out: {error}")
        return None


def _known_axes(entries: list[Record], prefix: str = "") -> dict[str, str]:
    """Returns the axes for which some rows have values; if there are none, the row's position in the table."""
    known = {key: label for key, label in _AXES.items() if any(e[f"{prefix}{key}"] is not None for e in entries)}
    return known or {"place": "row of the table"}


def _add_grid(figure: Any) -> None:
    for axis in figure.axes:
        axis.grid(alpha=0.3)


def _scatter(
    axis: Any, points: list[Record], x: str, y: str, colours: dict[str, str], marker: str
) -> list[tuple[float, float, str, str]]:
    """Draws the points and returns their labels for :func:`label_points`."""
    for entry in points:
        colour = colours[entry["run"]]
        inside = "none" if marker == "D" else colour
        axis.scatter(entry[x], entry[y], marker=marker, edgecolors=colour, facecolors=inside)
    axis.margins(0.3, 0.18)
    return [(entry[x], entry[y], entry["run"], colours[entry["run"]]) for entry in points]


def _bar(entry: Record, score: Score) -> float:
    if entry[f"{score.key}_sd"] is not None:
        return float(entry[f"{score.key}_sd"])
    if not score.share:
        return 0.0
    share, pictures = entry[score.key] / 100, entry["val_pictures"] or math.inf
    return 100 * math.sqrt(max(share * (1 - share), 0) / pictures)
