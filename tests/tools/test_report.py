import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

from mobilemamba.analysis import receptive_fields
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Row
from mobilemamba.sweep.saved import load_sweep, save_plan, write_tables
from mobilemamba.training.callbacks.receptive_fields import MAPS_FILE, Snapshot, write_snapshots
from mobilemamba.training.metrics import ClassificationMetrics
from mobilemamba_command import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(root: str, top1: dict[str, float], data: str = "toys") -> str:
    """A sweep's folder as a training leaves it; a row of a group has a name with a comma."""
    rows = []
    for number, (name, accuracy) in enumerate(top1.items()):
        folder = Path(root, name)
        folder.mkdir(parents=True)
        measured = {"throughput": {"images_per_second": 100.0 + number, "device": "cpu", "text": "(a), b"}}
        results = {"top1": accuracy, "top5": 99.0, "epochs": 2, "seed": number, "data": data, "measured": measured}
        results |= {"val_pictures": 2000, "train_pictures": 8000, "img_size": 32}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "run.yaml").write_text(yaml.safe_dump({}))
        group = name.partition(",")[0]
        paper, scores = {"top1": 78.0}, ClassificationMetrics.SCORES
        rows.append(Row(name, folder, {"table_size": 224}, {"model.lr": number}, paper, "<b>&", group, scores))
    counts = {row.name: {"flops_m": 600.0 + index, "params_m": 15.0} for index, row in enumerate(rows)}
    save_plan(Path(root), rows, counts, "ImageNet-1k")
    return root


def read_csv() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path("runs/report/report.csv").read_text())))


def test_several_sweeps_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    one = finished("runs/one", {"a,0": 70.0, "a,1": 74.0, "b": 60.0})
    two = finished("runs/two", {"a": 80.0, "c": 50.0}, data="other toys")
    main(["report", one, two])
    assert "2 sweeps or runs, 5 of 5 rows finished: runs/report/report.html" in capsys.readouterr().out
    assert [(line["sweep"], line["run"], line["top1"]) for line in read_csv()] == [
        ("one", "a,0", "70.0"),
        ("one", "a,1", "74.0"),
        ("one", "b", "60.0"),
        ("two", "a", "80.0"),
        ("two", "c", "50.0"),
    ]
    text = Path("runs/report/report.md").read_text()
    assert "| row | one | two |\n| --- | ---: | ---: |\n| a | 72.00 ± 2.83 | 80.00 |\n\n" in text
    assert "## one" in text
    assert "| c [1] |" in text
    latex = Path("runs/report/report.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
    assert r"72.00 $\pm$ 2.83" in latex


def test_only_sweeps_with_a_common_row_stand_side_by_side() -> None:
    folders = [finished(f"runs/{name}", {row: 70.0}) for name, row in (("one", "a"), ("two", "a"), ("three", "b"))]
    main(["report", *folders])
    text = Path("runs/report/report.md").read_text()
    assert "| row | one | two |\n" in text
    assert "- one, two: top-1 and top-5: toys" in text, "one note for both"


def test_the_page_needs_nothing_but_itself() -> None:
    main(["report", finished("runs/one", {"a": 70.0}), finished("runs/two", {"a": 71.0}), "--output", "there"])
    page = Path("there/report.html").read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 3, "a plot of each sweep and one of both"
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "<b>&" not in page
    assert "[1] &lt;b&gt;&amp;" in page
    assert sorted(path.name for path in Path("there").iterdir()) == [
        *("one.png", "report.csv", "report.html", "report.md", "report.tex", "together.png", "two.png")
    ]


def test_sweeps_of_one_name_are_told_apart_by_their_path() -> None:
    main(["report", finished("x/one", {"a": 70.0}), finished("y/one", {"a": 71.0})])
    assert [line["sweep"] for line in read_csv()] == ["x/one", "y/one"]
    assert Path("runs/report/x_one.png").exists()


def test_the_same_runs_give_the_same_report() -> None:
    root = finished("runs/one", {"a": 70.0})
    main(["report", root])
    before = {path.name: path.read_bytes() for path in Path("runs/report").iterdir()}
    main(["report", root])
    assert before == {path.name: path.read_bytes() for path in Path("runs/report").iterdir()}


@pytest.fixture
def fields() -> list[Snapshot]:
    """Of a training on grey pictures: two moments."""
    network = timm.create_model("test_efficientnet").eval()
    return [Snapshot(epoch, 9 * epoch, "toys", receptive_fields(network, torch.ones(1, 3, 32, 32))) for epoch in (0, 2)]


def test_receptive_fields_of_the_rows_that_keep_some(
    fields: list[Snapshot], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, other = finished("runs/one", {"a": 70.0, "b": 71.0, "c": 72.0}), finished("runs/two", {"a": 73.0})
    for row in "ab":
        write_snapshots(fields, Path(root, row, MAPS_FILE))
    Path(root, "c", MAPS_FILE).write_text("cut off")
    drawn = []
    monkeypatch.setattr(
        "mobilemamba.sweep.plot.draw_receptive_fields", lambda _, rows, data: drawn.append((rows, data))
    )
    main(["report", root, other])
    assert capsys.readouterr().out.startswith("left out: runs/one/c/receptive_fields.npz holds no receptive fields\n")
    ((rows, data),) = drawn
    assert [(row.name, row.weights) for row in rows] == [
        ("a", "raw weights of epoch 2, after 18 steps"),
        ("b", "raw weights of epoch 2, after 18 steps"),
    ]
    assert data == "toys"
    assert [field.tap for field in rows[0].fields] == [field.tap for field in fields[1].fields]
    report = Path("runs/report")
    assert [path.name for path in report.glob("*fields.png")] == ["one_receptive_fields.png"]
    assert "\n\n![plot](one.png)\n\n![plot](one_receptive_fields.png)\n" in (report / "report.md").read_text()
    assert (report / "report.html").read_text().count("<img") == 4
    Path(root, "c", MAPS_FILE).unlink()
    write_tables(Path(root), load_sweep(Path(root)))
    assert Path(root, "receptive_fields.png").exists()


def test_mistakes() -> None:
    root = finished("runs/one", {"a": 70.0})
    with pytest.raises(ConfigError, match=r"report of what\? Give the folders"):
        main(["report"])
    with pytest.raises(ConfigError, match="no such folder: nowhere"):
        main(["report", "nowhere"])
    with pytest.raises(ConfigError, match="given twice"):
        main(["report", root, root])
    assert not Path("runs/report").exists()
    Path("file").touch()
    with pytest.raises(ConfigError, match=r"^--output file/below: Not a directory; choose another folder"):
        main(["report", root, "--output", "file/below"])
