"""The ``report`` command: tables in four formats and plots of finished sweeps and runs."""

from __future__ import annotations

import base64
import html
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mobilemamba.errors import ConfigError
from mobilemamba.files import make_folder, write_text_atomic

if TYPE_CHECKING:
    from mobilemamba.sweep.saved import SavedSweep
    from mobilemamba.sweep.sheet import Sheet

_STYLE = """
body { font-family: sans-serif; margin: 2em; color: #222; background: #fff; }
main { display: flex; flex-wrap: wrap; gap: 3em; align-items: flex-start; }
section { flex: 1 1 44em; min-width: 0; overflow-x: auto; }
img { max-width: min(100%, 70em); display: block; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { padding: 0.3em 0.7em; border-bottom: 1px solid #ccc; text-align: left; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
li { font-size: 0.85em; color: #555; max-width: 70em; }
"""


def report(*folders: str, output: str = "runs/report") -> None:
    """Rebuild tables and plots from finished runs: Markdown, CSV, LaTeX and one HTML page.

    Nothing is trained or measured: the numbers are those in the runs' folders.

    Args:
        folders: Folders of sweeps, e.g. runs/ablation_xi, or of single runs; several are compared side by side.
        output: Folder for report.md, report.csv, report.tex, report.html and the plots, including one of receptive
            fields if runs have measured them.
    """
    from mobilemamba.sweep.plot import (  # imports lightning, which the other tools do not need
        plot,
        plot_receptive_fields,
        plot_together,
    )
    from mobilemamba.sweep.saved import load_sweep
    from mobilemamba.sweep.sheet import markdown_text
    from mobilemamba.sweep.table import side_by_side, to_csv, to_sheet
    from mobilemamba.training.callbacks.receptive_fields import PICTURE_FILE

    if not folders:
        raise ConfigError(
            "report of what? Give the folders of sweeps or runs, e.g. mobilemamba report runs/ablation_xi"
        )
    sweeps = _with_distinct_titles([load_sweep(Path(folder)) for folder in folders], list(folders))
    root = Path(output)
    make_folder(root, "--output")
    parts: list[tuple[Sheet | None, list[Path]]] = []
    if len(sweeps) > 1:
        plot_together({sweep.title: sweep.records for sweep in sweeps}, root / "together.png")
        sheet = side_by_side({sweep.title: sweep.records for sweep in sweeps})
        parts.append((sheet, [root / "together.png"]))
    for sweep in sweeps:
        name = sweep.title.replace("/", "_")
        picture, fields = root / f"{name}.png", root / f"{name}_{PICTURE_FILE}"
        plot(sweep.records, sweep.title, picture, sweep.paper_note)
        pictures = [picture, *[fields] * plot_receptive_fields(sweep.records, fields)]
        parts.append((to_sheet(sweep.title, sweep.records, sweep.swept, sweep.paper_note), pictures))
    records = [{"sweep": sweep.title, **entry} for sweep in sweeps for entry in sweep.records]
    swept = list(dict.fromkeys(key for sweep in sweeps for key in sweep.swept))
    title = ", ".join(sweep.title for sweep in sweeps)
    write_text_atomic(root / "report.csv", to_csv(records, swept))
    write_text_atomic(
        root / "report.md", f"# {markdown_text(title)}\n\n" + "\n".join(_markdown(*part) for part in parts)
    )
    tables = [sheet.to_latex() for sheet, _ in parts if sheet]
    write_text_atomic(root / "report.tex", "% Needs \\usepackage{booktabs}.\n" + "\n".join(tables))
    write_text_atomic(root / "report.html", _page(title, "\n".join(_section(*part) for part in parts)))
    finished = sum(entry["status"] == "finished" for entry in records)
    read = "1 sweep or run" if len(sweeps) == 1 else f"{len(sweeps)} sweeps or runs"
    print(f"{read}, {finished} of {len(records)} rows finished: {root / 'report.html'}")


def _with_distinct_titles(sweeps: list[SavedSweep], folders: list[str]) -> list[SavedSweep]:
    """Renames sweeps with the same name to their whole path."""
    count = Counter(sweep.title for sweep in sweeps)
    for sweep, folder in zip(sweeps, folders, strict=True):
        if count[sweep.title] > 1:
            sweep.title = Path(folder).as_posix()
    if len({sweep.title for sweep in sweeps}) < len(sweeps):
        raise ConfigError("a folder is given twice; give each once")
    return sweeps


def _markdown(sheet: Sheet | None, pictures: list[Path]) -> str:
    shown = "\n".join(f"![plot]({quote(picture.name)})\n" for picture in pictures)
    return f"{sheet.to_markdown('##')}\n{shown}" if sheet else shown


def _section(sheet: Sheet | None, pictures: list[Path]) -> str:
    table = sheet.to_html() if sheet else ""
    return f"<section>\n{table}{''.join(map(_image, pictures))}</section>"


def _image(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    name = html.escape(picture.stem, quote=True)
    return f'<img alt="plot of {name}" src="data:image/png;base64,{data}">\n'


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>'
    page = f"<head>\n{head}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{page}\n</html>\n'
