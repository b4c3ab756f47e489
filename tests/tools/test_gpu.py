"""``mobilemamba gpu``: the whole run on a CPU that plays a GPU, in tiny sizes; the refusal where there is none."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import timm
import torch
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from mobilemamba.analysis.benchmark import workload
from mobilemamba.analysis.gpu import speed
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.analysis.gpu.sizes import QUICK
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.tools import gpu
from mobilemamba.tools.gpu import PARTS
from tests.analysis.gpu_runs import play_gpu
from tests.ops.scans import needs_native
from tests.pretended import PretendedCard, needs_no_driver, play_card


@pytest.mark.slow
@pytest.mark.usefixtures("short_benchmarks")
def test_the_whole_run(
    printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part, with the folder of pictures; the lines, the file, the table of 80 columns and the curves."""
    play_gpu(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    for part in ("train", "val"):
        for label, colour in enumerate(("red", "blue")):
            folder = tmp_path / "pictures" / part / colour
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), (255 * (1 - label), number, 255 * label)).save(folder / f"{number}.png")
    options = ("--device", "cpu", "--quick", "--output", str(tmp_path / "gpu.json"), "--batch_size", "4")
    out = printed("gpu", *options, "--data", str(tmp_path / "pictures"), "--minutes", "0.02")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == [*(part.name for part in PARTS), "curves"]
    assert not [part["error"] for part in found.values() if part["error"]]
    assert max(len(line) for line in out.splitlines() if line[:1] in "┌│├└") <= 80
    for part in found.values():
        for finding in part["findings"]:
            assert f"  {finding['what']}: " in out

    errors = found["scans"]["records"]
    assert {(r["height"] * r["map_width"], r["dtype"]) for r in errors} >= {(6, "float32"), (1, "bfloat16")}
    assert all(
        set(r["errors"]) == {"y", "u", "dt", "A", "B", "C", "D", "dt_bias", "dt_weight"} and r["same_bits"]
        for r in errors
    )
    right = [(r["dtype"], r["form"]) for r in found["right"]["records"]]
    assert len(set(right)) == 2 * 3  # as it is, laid out, by a CUDA graph
    named = {record["operator"].split()[0] for record in found["operators"]["records"] if "operator" in record}
    assert {"selective_scan", "selective_scan_backward"} <= named
    modes = {(r["model"], r["mode"], r["precision"]) for r in found["networks"]["records"]}
    assert len(modes) == 2 * 2 * 3
    assert not [r["error"] for r in found["networks"]["records"] if r["error"]]
    assert found["kernels"]["records"]
    assert [r["model"] for r in found["steps"]["records"]] == ["mobilemamba_t2", "test_efficientnet"]
    assert [r["differ"] for r in found["bits"]["records"]] == [[], []]
    judged = {f["what"]: f["ok"] for name in ("scans", "right", "bits") for f in found[name]["findings"]}
    assert False not in judged.values()
    for record in found["curves"]["records"]:
        assert record["losses"][-1]["seconds"] >= 0.6
        assert 0 <= record["scores"][-1]["top1"] <= 100
    with Image.open(tmp_path / "gpu.png") as picture:
        assert picture.format == "PNG"


class Profile:
    """What the profiler of a card finds: kernels beside operators."""

    def __init__(self, activities: list[ProfilerActivity]) -> None:
        assert ProfilerActivity.CUDA in activities

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def key_averages(self) -> list[SimpleNamespace]:
        kernel = SimpleNamespace(key="_forward", device_type=DeviceType.CUDA, self_device_time_total=30.0, count=15)
        return [kernel, SimpleNamespace(key="aten::mm", device_type=DeviceType.CPU)]


@pytest.mark.slow
@needs_no_driver
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_native  # which stand in for Triton's
@pytest.mark.usefixtures("short_benchmarks")
def test_the_run_on_a_card(printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that call networks: no tensor is elsewhere, no capture waits, and nothing is skipped or fails."""
    card = PretendedCard()
    play_card(monkeypatch, card)
    sizes: dict[str, Any] = {"mobilemamba_t2": {"embed_dims": (16, 16, 16), "depths": (1, 1, 1)}}
    monkeypatch.setattr(
        workload, "build_network", lambda card: timm.create_model(card.model, **sizes.get(card.model, {}))
    )
    monkeypatch.setattr(speed, "profile", Profile)
    monkeypatch.setattr(gpu, "QUICK", replace(QUICK, dtypes=("bfloat16",), img_size=32))
    parts = "right,networks,steps,operators,kernels"
    with card:
        printed("gpu", "--quick", "--parts", parts, "--output", str(tmp_path / "gpu.json"))
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == parts.split(",")
    assert not [(name, part) for name, part in found.items() if part["error"] or part["skipped"]]
    records = {name: part["records"] for name, part in found.items()}
    assert {record["error"] for record in records["networks"] + records["steps"]} == {""}
    assert [record["form"] for record in records["right"]] == ["as it is", "optimized for inference", "CUDA graph"]
    assert {record["mode"] for record in records["networks"]} == {"eager", "graph"}
    operators = {record["operator"].split()[0] for record in records["operators"] if "operator" in record}
    in_training = {"selective_scan", "selective_scan_backward", "haar_conv", "haar_conv_weight"}
    assert operators == {"scan_norm_gate", "mix_channels", "depthwise_conv", "stem_conv", *in_training}
    assert [(r["kernel"], r["calls"]) for r in records["kernels"]] == [("_forward", 5)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ConfigError, r"--device cuda: torch .* finds no GPU; run it where there is one"),
        (["--device", "cpu"], ConfigError, "--device cpu: this run is for a GPU; choose cuda, or --quick"),
        (
            ["--quick", "--device", "cpu", "--parts", "steps,speed"],
            ConfigError,
            "--parts speed: expected some of machine",
        ),
        (["--quick", "--device", "cpu", "--parts", ","], ConfigError, "--parts ,: expected some of machine"),
        (["--quick", "--device", "cpu", "--parts", "curves"], ConfigError, "it needs --data"),
        (["--quick", "--device", "cpu", "--seconds", "0"], ConfigError, "--seconds 0.*: expected more than 0"),
        (
            ["--quick", "--device", "cpu", "--batch_size", "1", "--data", "x"],
            ConfigError,
            "--batch_size 1: expected 2 or",
        ),
        (
            ["--quick", "--device", "cpu", "--minutes", "9"],
            ConfigError,
            "--minutes 9.0: it is for the trainings of --da",
        ),
        (["--quick", "--device", "cpu", "--output", "gpu.txt"], ConfigError, "--output gpu.txt: .*json"),
        (["--quick", "--device", "cpu", "--data", "nowhere"], DataError, "nowhere"),
    ],
)
def test_mistakes_are_one_line(printed, options: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        printed("gpu", *options)
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "exit_code", 2) == 2


def test_the_page_s_commands_are_refused_for_want_of_a_gpu_alone(printed, root: Path) -> None:
    page = (root / "docs/gpu.md").read_text()
    lines = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("mobilemamba gpu")]
    assert len(lines) == 3
    for line in lines:
        with pytest.raises(ConfigError, match="finds no GPU"):
            printed(*line[1:])
    for part in PARTS:
        assert f"| `{part.name}` |" in page


def test_the_first_parts_on_a_cpu(printed, tmp_path: Path) -> None:
    out = printed(
        "gpu", "--device", "cpu", "--quick", "--parts", "bits,machine", "--output", str(tmp_path / "gpu.json")
    )
    assert "  matrix product, bfloat16: " in out
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == ["machine", "bits"]
    assert all(finding["ok"] in (True, None) for part in found.values() for finding in part["findings"])


def test_after_a_fault_of_the_gpu_the_other_parts_run_in_a_new_process(
    printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Run, "do", lambda self, parts: list(parts[-2:]))
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: started.append(command) or SimpleNamespace(returncode=2)
    )
    options = ("gpu", "--device", "cpu", "--quick", "--output", str(tmp_path / "gpu.json"))
    for trainings in ((), ("--data", str(tmp_path), "--minutes", "2")):
        with pytest.raises(SystemExit) as ended:  # as the new process has ended
            printed(*options, *trainings)
        assert ended.value.code == 2
    assert {"-m", "mobilemamba_command", "--device=cpu", "--quick=true", "--parts=kernels,compiled"} <= set(started[0])
    assert not [option for option in started[0] if "minutes" in option]
    assert {"--parts=compiled,curves", f"--data={tmp_path}", "--minutes=2.0", "--batch_size=128"} <= set(started[1])
