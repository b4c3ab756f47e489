"""``mobilemamba gpu``: the whole run on a CPU that plays a GPU, in tiny sizes; the refusal where there is none."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mobilemamba.analysis.gpu.run import Run
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.tools.gpu import PARTS
from tests.analysis.gpu_runs import play_gpu


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
    right = found["right"]["records"]
    assert all(len(r["errors"]) == 3 for r in right)  # as it is, laid out, by a CUDA graph
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
