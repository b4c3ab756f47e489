"""The table of a sweep: a CSV with all columns, and a sheet with the paper's columns."""

from __future__ import annotations

from collections import Counter

from mobilemamba.scores import Score
from mobilemamba.sweep.plan import SEED
from mobilemamba.sweep.record import Record, all_scores, conditions, paper_columns, status_of
from mobilemamba.sweep.seeds import over_seeds, spread
from mobilemamba.sweep.sheet import Sheet, cell, csv_text

#: Relative spread of throughput measurements above which the table shows it, as something else was running.
BUSY_SPREAD = 0.1


def labels(keys: list[str]) -> dict[str, str]:
    """Returns the shortest unambiguous name of each swept setting: ``model.arch.d_state`` -> ``d_state``."""
    short = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def to_csv(records: list[Record], swept: list[str]) -> str:
    """Formats all columns of all rows as CSV."""
    names = labels(swept)
    rows: list[Record] = [{} for _ in records]
    for row, entry in zip(rows, records, strict=True):
        for key, value in entry.items():
            if key == "scores":
                continue
            # A swept setting comes first and takes precedence over a result of that name, which is blank until the end.
            row.setdefault(names.get(key, key), value)
    return csv_text(rows)


def to_sheet(title: str, records: list[Record], swept: list[str], paper_note: str) -> Sheet:
    """Returns the table with the paper's columns and measurement conditions; merges rows that differ only in seed."""
    shown = over_seeds(records)
    swept = [key for key in swept if key != SEED or len(shown) == len(records)]
    # A setting with the same value in all rows becomes a note instead of a column.
    alike = [key for key in swept if len(shown) > 1 and all(entry[key] == shown[0][key] for entry in shown)]
    swept = [key for key in swept if key not in alike]
    scores = all_scores(shown)
    paper = [key for key in paper_columns(scores) if any(entry.get(f"paper_{key}") is not None for entry in shown)]
    heads = {"flops_m": "FLOPs (M)", "params_m": "Params (M)", "throughput": "img/s"}
    header = ["row", *labels(swept).values(), *heads.values(), *(score.head for score in scores), "epochs"]
    heads |= {score.key: score.label for score in scores}
    numeric = set(range(1 + len(swept), len(header) + len(paper)))
    header += [f"paper {heads[key]}" for key in paper] + ["status"]
    marks = list(dict.fromkeys(entry["note"] for entry in shown if entry["note"]))
    ways = condition_marks(shown)
    lines = []
    for entry in shown:
        mark = f" [{marks.index(entry['note']) + 1}]" if entry["note"] else ""
        line = [f"{entry['run']}{mark}", *(cell(entry[key]) for key in swept)]
        line += [cell(entry["flops_m"], 1), cell(entry["params_m"], 2), _speed(entry, ways)]
        line += [score_cell(entry, score) for score in scores] + [cell(entry["epochs"])]
        line += ["" if (value := entry.get(f"paper_{key}")) is None else f"{value:,.6g}" for key in paper]
        lines.append([*line, status_of(entry)])
    notes = [f"[{number}] {text}" for number, text in enumerate(marks, start=1)] + describe(records)
    if alike:
        told = [f"{name} {cell(shown[0][key]) or 'null'}" for key, name in labels(alike).items()]
        notes.append(f"All rows: {', '.join(told)}.")
    sizes, classes = (
        list(dict.fromkeys(str(entry[key]) for entry in shown if entry[key])) for key in ("table_size", "table_classes")
    )
    if sizes:
        of_classes = f" and {' or '.join(classes)} classes" if classes else ""
        notes.append(f"FLOPs (the paper's convention) and Params are for {', '.join(sizes)} px{of_classes}.")
    if averaged := [entry["run"] for entry in records if entry.get("averaged")]:
        of_rows = "" if len(averaged) == len(records) else f" of {', '.join(averaged)}"
        notes.append(
            f"The scores{of_rows} are those of the averaged weights (EMA), which were better than the raw ones."
        )
    if len(shown) < len(records):
        notes.append(
            "± is the standard deviation over the seeds, with their number in brackets where some are missing."
        )
    if len(ways) == 1:
        notes += [f"img/s: {text}." for text in ways if text]
    else:
        notes += [f"img/s{mark}: {text or 'measured in an unknown way'}." for text, mark in ways.items()]
    if len(ways) > 1:
        notes.append("img/s with different letters were measured in different ways and do not compare.")
    if paper:
        notes.append(f"Columns headed paper: {paper_note}. They do not compare with scores on other data.")
    return Sheet(title, header, lines, notes, numeric)


def score_cell(entry: Record, score: Score) -> str:
    """Formats a row's score, with the deviation over the seeds if there are several; blank if it is unknown."""
    return cell(entry.get(score.key), score.digits) + spread(entry, score.key)


def side_by_side(sweeps: dict[str, list[Record]]) -> Sheet | None:
    """Compares the headline scores of rows that several sweeps share, one column per sweep; None if there are none.

    Args:
        sweeps: Title -> records.
    """
    merged = {title: {entry["run"]: entry for entry in over_seeds(records)} for title, records in sweeps.items()}
    count = Counter(name for rows in merged.values() for name in rows)
    common = [name for name in count if count[name] > 1]
    if not common:
        return None
    columns = {title: rows for title, rows in merged.items() if not rows.keys().isdisjoint(common)}
    of = {title: all_scores(sweeps[title])[0] for title in columns}
    lines = [
        [name, *(score_cell(rows[name], of[title]) if name in rows else "" for title, rows in columns.items())]
        for name in common
    ]
    sources: dict[str, list[str]] = {}
    for title in columns:
        for note in describe(sweeps[title]):
            sources.setdefault(note, []).append(title)
    notes = [f"{', '.join(titles)}: {note}" for note, titles in sources.items()]
    heads = ", ".join(dict.fromkeys(score.head for score in of.values()))
    return Sheet(f"Side by side: {heads}", ["row", *columns], lines, notes, set(range(1, 1 + len(columns))))


def _speed(entry: Record, ways: dict[str, str]) -> str:
    """Formats a throughput, marked if measurement conditions differ, with reasons why it may be unreliable."""
    if entry["throughput"] is None:
        return ""
    spread = entry["throughput_spread"] or 0
    doubts = ["shared device"] * entry["shared_device"] + [f"spread {spread:.0%}"] * (spread > BUSY_SPREAD)
    mark = ways.get(conditions(entry), "") if len(ways) > 1 else ""
    return cell(entry["throughput"], 0) + mark + (f" ({', '.join(doubts)})" if doubts else "")


def describe(records: list[Record]) -> list[str]:
    """Describes the data of the scores, in one line for each data set and schedule; several lines name their rows."""
    alike: dict[str, list[Record]] = {}
    for entry in records:
        if named := " and ".join(score.label for score in entry["scores"] if entry[score.key] is not None):
            line = (
                f"{named}: {entry['data']}, best epoch of {entry['epochs']}, "
                f"{cell(entry['train_pictures'], 0)} training and {cell(entry['val_pictures'], 0)} validation "
                f"pictures, {cell(entry['img_size'])} px"
            )
            alike.setdefault(line, []).append(entry)
    lines = []
    for line, entries in alike.items():
        seeds = list(dict.fromkeys(cell(entry["seed"]) for entry in entries))
        rows = list(dict.fromkeys(entry["group"] for entry in entries)) if len(alike) > 1 else []
        of_rows = f": {', '.join(rows)}" if rows else ""
        lines.append(f"{line}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}{of_rows}.")
    return lines


def condition_marks(records: list[Record]) -> dict[str, str]:
    """Returns the different conditions of throughput measurements -> a letter for each, as `` (a)``."""
    found = dict.fromkeys(conditions(entry) for entry in records if entry["throughput"] is not None)
    return {text: f" ({chr(ord('a') + number % 26)})" for number, text in enumerate(found)}
