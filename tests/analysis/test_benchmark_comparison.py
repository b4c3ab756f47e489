"""The arithmetic on known numbers: exponents, lines at equal accuracy, files, pictures."""

import csv
import io
import json
import math
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from mobilemamba.analysis.benchmark import plot as plotting
from mobilemamba.analysis.benchmark.cases import own_size
from mobilemamba.analysis.benchmark.comparison import (
    FASTEST,
    against_the_front,
    at_equal_top1,
    exponent,
    exponents,
    fastest,
    line,
    with_fastest,
)
from mobilemamba.analysis.benchmark.plot import plot, short_label
from mobilemamba.analysis.benchmark.published import FRONT, PEERS
from mobilemamba.analysis.benchmark.records import Record, write_records
from mobilemamba.analysis.benchmark.tables import network_notes, network_table
from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS

SPEEDS = {
    "efficientvit_m2": (70.8, 300.0),
    "efficientvit_m4": (74.3, 200.0),
    "efficientvit_m5": (77.1, 100.0),
    "mobilemamba_t2": (73.6, 250.0),
    "mobilemamba_s6": (78.0, 90.0),
    "mobilemamba_b4": (82.5, 10.0),
}


def record(model="mobilemamba_t2", speed=250.0, top1=None, **changes):
    found = Record(
        model=model,
        size=224,
        batch=32,
        device="cpu",
        dtype="float32",
        mode="eager",
        train=False,
        layout="channels_last",
        layout_chosen=True,
        fused=True,
        batch_norms=0,
        scan_backend="chunked" if model.startswith("mobilemamba") else "",
        latency_ms=32e3 / speed,
        latency_q1_ms=31e3 / speed,
        latency_q3_ms=33e3 / speed,
        images_per_second=speed,
        spread=2 / 32,
        macs=250_000_000,
        gmacs_per_second=speed / 4,
        ceiling_gmacs_per_second=90.0,
        ceiling_fraction=speed / 360,
        peak_memory_mib=87.25,
        rounds=15,
        calls_per_round=3,
        paper_top1=top1,
        processor="a processor, 2 threads",
        threads=2,
        tf32_matmul=False,
        tf32_convolution=False,
        versions="torch 0",
        error="",
    )
    return replace(found, **changes)


FAILED = {
    field.name: None for field in fields(Record) if field.name.startswith(("latency", "gmacs", "images", "spread"))
}


@pytest.fixture
def records():
    return [record(model, speed, top1) for model, (top1, speed) in SPEEDS.items()]


@given(st.floats(0.2, 3), st.floats(1e-3, 1e3))
def test_the_exponent_of_a_power_is_found(p, factor):
    pixels = (192**2, 256**2, 384**2, 1024**2)
    assert exponent(pixels, [factor * number**p for number in pixels]) == pytest.approx(p, abs=1e-6)


def test_the_exponent_is_the_least_squares_slope():
    # log2 of pixels 0, 2, 4 and of seconds 0, 3, 4: slope = (-2 * -7/3 + 2 * 5/3) / 8 = 1
    assert exponent((1, 4, 16), (1, 8, 16)) == pytest.approx(1.0)


def test_exponents_by_model_and_conditions():
    found = exponents(
        record(model, size=size, batch=batch, latency_ms=size ** (2 * p))
        for model, p in (("mobilemamba_t2", 1.0), ("efficientvit_m5", 1.5))
        for batch in (1, 8)
        for size in (192, 384, 768)
    )
    assert {(model, shared[-1]): value for (model, shared), value in found.items()} == pytest.approx(
        {(m, b): p for m, p in (("mobilemamba_t2", 1.0), ("efficientvit_m5", 1.5)) for b in (1, 8)}
    )
    assert not exponents([record(size=192)])
    oblong = [record(size=512, height=height, latency_ms=height) for height in (256, 512, 2048)]
    assert [*exponents(oblong).values()] == pytest.approx([1.0])


def test_the_line_goes_through_its_points_and_is_straight_in_the_logarithm():
    points = [(74.0, 200.0), (70.0, 800.0), (76.0, 50.0), (69.0, 800 * 2**0.5)]
    assert [line(points, top1) for top1, _ in points] == pytest.approx([200, 800, 50, 800 * 2**0.5])
    assert line(points, 72.0) == pytest.approx(math.sqrt(200 * 800))
    assert line(points, 77.0) == pytest.approx(25)  # the last piece goes on: half as fast for each point
    assert line(points, 68.0) == pytest.approx(1600)


def test_speed_at_equal_top1(records):
    found = {model: ratio for (model, _), ratio in at_equal_top1(records).items()}
    share = (73.6 - 70.8) / (74.3 - 70.8)
    assert found["mobilemamba_t2"] == pytest.approx(250 / (300 * (200 / 300) ** share))
    assert found["mobilemamba_s6"] == pytest.approx(90 / (100 * 0.5 ** (0.9 / 2.8)))
    assert len(found) == 2  # mobilemamba_b4 is too far beyond the line's end, and the others are the line


def test_of_several_layouts_the_fastest_counts(records):
    slower = [replace(r, layout="contiguous", images_per_second=r.images_per_second / 2) for r in records]
    slower += [record("efficientvit_m3", 1.0, 73.4, layout="contiguous"), record("efficientvit_m3", 250.0, 73.4)]
    records.append(slower[-1])
    for both in ([*records, *slower], [*slower, *records]):
        assert at_equal_top1(both) == at_equal_top1(records)
    s2 = record("shvit_s2", 250.0, size=own_size("shvit_s2"))
    t2 = [record("mobilemamba_t2", speed, size=192, layout=layout) for speed, layout in ((5, "a"), (150, "b"))]
    for both in (t2, t2[::-1]):
        assert [*against_the_front([*both, s2]).values()] == [(0.6, "shvit_s2")]


def test_only_equal_conditions_are_compared(records):
    others = [replace(r, dtype="bfloat16") for r in records if r.model.startswith("mobilemamba")]
    found = at_equal_top1([*records, *others])
    assert {shared[1] for _, shared in found} == {"float32"}
    assert not at_equal_top1([r for r in records if r.model != "efficientvit_m2" and r.model != "efficientvit_m4"])


def test_ours_against_the_fastest_that_is_as_accurate():
    speeds = {"mobilemamba_t2": 150.0, "mobilenetv3_large_100": 200.0, "shvit_s2": 250.0, "lcnet_100": 900.0}
    found = against_the_front([record(name, speed, size=own_size(name)) for name, speed in speeds.items()])
    assert {model: value for (model, _), value in found.items()} == {"mobilemamba_t2": (0.6, "shvit_s2")}
    with_teachers = against_the_front(
        [record(name, speed, size=own_size(name)) for name, speed in speeds.items()], best=True
    )
    assert [*with_teachers.values()] == [(0.75, "mobilenetv3_large_100")]  # 77.2, where ours has 76.9
    b4 = [record("mobilemamba_b4", 1.0, size=512), record("shvit_s2", 250.0)]
    assert not against_the_front(b4), "none is as accurate"
    assert not against_the_front([record("mobilemamba_t2", 1.0, size=224), record("shvit_s2", 250.0)]), "not its size"


def test_each_network_in_its_fastest_mode(records):
    others = [replace(r, mode="onnxruntime", images_per_second=200.0) for r in records]
    failed = replace(record("lcnet_100"), error="out of memory", **FAILED)
    best = fastest([*records, *others, failed])
    assert [(r.model, r.mode) for r in best if r.mode == "eager"] == [
        ("efficientvit_m2", "eager"),
        ("efficientvit_m4", "eager"),  # as fast in both
        ("mobilemamba_t2", "eager"),
        ("lcnet_100", "eager"),
    ]
    assert len(best) == len(records) + 1
    assert with_fastest(records) == records
    assert [r.mode for r in with_fastest([*records, *others])].count(FASTEST) == len(records)


def test_a_failure_is_a_word_in_the_table_and_its_reason_a_line_below(records):
    reason = "ConfigError: OpenVINO cannot convert the network: " + "x" * 80
    failed = [replace(records[0], batch=batch, error=reason, **FAILED) for batch in (1, 32)]
    console = Console(width=140, file=io.StringIO())
    console.print(network_table([*records, *failed], 140))
    printed = console.file.getvalue()
    assert sum("failed" in line for line in printed.splitlines() if line.startswith("│")) == 2
    below = " ".join(printed.rpartition("┘")[2].split())
    assert below.startswith(f"failed: {reason} (efficientvit_m2, 224 px, batch 1, float32, eager; efficientvit_m2, 224")
    assert below.count("failed") == 1


def test_csv_is_read_back(records, tmp_path: Path):
    failed = replace(records[0], error="out of memory", **FAILED)
    write_records([*records, failed], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(Record)]
    assert [float(row["images_per_second"]) for row in rows[:-1]] == [r.images_per_second for r in records]
    assert rows[0]["versions"] == "torch 0"
    assert (rows[-1]["error"], rows[-1]["latency_ms"]) == ("out of memory", "")


def test_json_is_read_back(records, tmp_path: Path):
    write_records(records, tmp_path / "out.json")
    assert [Record(**row) for row in json.loads((tmp_path / "out.json").read_text())] == records


@pytest.fixture
def figures(monkeypatch):
    """Those that are drawn."""
    drawn = []

    class Remembered(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Remembered)
    return drawn


def test_the_plot_is_a_picture_of_its_size_with_its_labels(records, tmp_path: Path, figures):
    batch_1 = [replace(r, batch=1) for r in records]
    plot([*records, *batch_1, record("resnet18", 50.0)], tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (round(2 * plotting.PANEL[0] * plotting.DPI), round(plotting.PANEL[1] * plotting.DPI))
        assert len(set(picture.convert("L").resize((64, 32)).tobytes())) > 10  # something is on it
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["batch 32, float32, eager", "batch 1, float32, eager"]
    for axis in axes:
        assert {line.get_label() for line in axis.get_lines()} == {"MobileMamba", "EfficientViT-M"}
        assert {text.get_text() for text in axis.texts} == {"M2", "M4", "M5", "T2", "S6", "B4"}
        assert axis.get_xlabel() == "throughput (img/s, log scale), a processor, 2 threads"
        ours = next(line for line in axis.get_lines() if line.get_label() == "MobileMamba")
        assert list(zip(ours.get_xdata(), ours.get_ydata(), strict=True)) == [(250, 73.6), (90, 78.0), (10, 82.5)]


def test_labels_of_many_networks_stand_apart_and_inside(tmp_path: Path, figures):
    known = [(name, found.plain, found.size) for name, found in (PEERS | FRONT).items() if found.plain]
    known += [(name, own.paper_top1, own.img_size) for name, own in VARIANTS.items()]
    assert len(known) > 25
    plot(
        [
            record(name, batch * 60 * 1.35 ** (78 - top1) * (1 + 7 * i % 5 / 8), top1, size=size, batch=batch)
            for batch in (1, 32)
            for i, (name, top1, size) in enumerate(known)
        ],
        tmp_path / "out.png",
    )
    (figure,) = figures
    assert len(figure.axes) == 2
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without their lines
        assert len(boxes) == len(known)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert all(axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("model", "side", "label"),
    [
        ("mobilemamba_t2", 192, "T2 (192)"),
        ("efficientvit_b1.r224_in1k", 224, "B1"),
        ("cpubone_b0_bfrobust", 256, "B0 (256)"),
        ("mobilenetv3_large_100", 224, "LARGE"),
        ("lcnet_100", 224, "LCNet"),
        ("repvit_m0_9", 224, "M0.9"),
        ("levit_128s", 224, "128S"),
    ],
)
def test_labels_are_a_networks_size_in_its_family(model: str, side: int, label: str) -> None:
    assert short_label(record(model, size=side), 224) == label


def test_one_legend_outside_of_the_panels(records, tmp_path: Path, figures):
    plot([*records, *(replace(r, batch=1) for r in records)], tmp_path / "out.png")
    (legend,) = figures[0].legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["EfficientViT-M", "MobileMamba"]
    box = legend.get_window_extent()
    for axis in figures[0].axes:
        assert axis.get_legend() is None
        assert not box.overlaps(axis.get_window_extent())


@pytest.mark.parametrize("speeds", [(82, 103), (10, 11), (90, 200), (10, 600)])
def test_the_axis_has_several_numbers_whatever_it_spans(speeds: tuple[float, float], tmp_path: Path, figures):
    models = ("mobilemamba_t2", "efficientvit_m2")
    plot(
        [record(model, speed, 70.0 + speed / 100) for model, speed in zip(models, speeds, strict=True)],
        tmp_path / "o.png",
    )
    (axis,) = figures[0].axes
    low, high = axis.get_xlim()
    assert sum(low <= tick <= high for tick in axis.get_xticks()) >= 3


def test_nothing_to_plot(tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing to plot"):
        plot([record("resnet18", 50.0)], tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_the_notes_state_every_condition(records):
    notes = "\n".join(network_notes([replace(r, batch_norms=20 if r is records[0] else 0) for r in records]))
    for part in (
        "180 GFLOP/s in float32 on a processor, 2 threads",
        "norms folded, but 20 of efficientvit_m2 are left",
        "scan backend chunked",
        "TF32 for matrix products off, for convolutions off",
        "torch 0",
        "same published top-1:\n  batch 32, float32, eager, cpu: mobilemamba_s6 1.12, mobilemamba_t2 1.15",
    ):
        assert part in notes
    slower = "\n".join(network_notes([*records, record("emo_5m", 45.0)]))  # more accurate than s6
    assert "without a teacher:\n  batch 32, float32, eager, cpu: mobilemamba_s6 2.00 (emo_5m)" in slower


def test_a_failed_row_says_why(records):
    failed = replace(records[0], error="out of memory", **FAILED)
    console = Console(width=80, record=True)
    console.print(network_table([failed, *records], console.width))
    text = console.export_text()
    assert all(record.model in text for record in records)
    assert "out of" in text
    assert "memory" in text
    assert "not shown on 80 columns: mode eager in all, layout" in text, "the same in all rows, and so the first to go"


def test_what_is_left_out_of_a_heads_time_is_said() -> None:
    timed = [record("pspnet+mobilemamba_t2", mode=mode) for mode in ("eager", "onnxruntime", "openvino")]
    line = "in onnxruntime, openvino: networks alone; eager ones choose boxes, or each pixel's class, as well"
    assert line in network_notes(timed)
    assert line not in network_notes([timed[0], record(mode="onnxruntime")])
