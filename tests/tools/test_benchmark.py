"""``mobilemamba benchmark``: options in, table, files and picture out. Tiny sizes; nothing depends on speed."""

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobilemamba.analysis.benchmark import networks
from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.workload import Workshop
from mobilemamba.cli.tool import spell_out_switches
from mobilemamba.errors import BackendUnavailableError, ConfigError, MobileMambaError
from mobilemamba.models.runtime import RUNTIMES
from mobilemamba.tools.benchmark import SCALED_MODELS, SCALED_SIZES

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("short_benchmarks")]

QUICK = ("--rounds", "2", "--seconds", "0.001", "--no-memory")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_networks_side_by_side(printed, tmp_path: Path) -> None:
    models = ("mobilemamba_t2", "test_efficientnet")  # the first's accuracy is known, at 192 px
    files = ("--output", str(tmp_path / "out.csv"), "--plot", str(tmp_path / "out.png"))
    out = printed("benchmark", *models, "--size", "192", "--batch", "1,2", *QUICK, *files)
    found = rows(tmp_path / "out.csv")
    assert [(row["model"], row["batch"]) for row in found] == [(m, b) for b in "12" for m in models]
    for row in found:
        assert row["error"] == ""
        assert float(row["images_per_second"]) == pytest.approx(int(row["batch"]) * 1000 / float(row["latency_ms"]))
        assert row["model"] in out
    assert "of ceiling" in out
    assert f"torch {torch.__version__}" in out
    assert "LocalVim" not in out  # only of the paper's table
    assert "Inference, medians of 2 common rounds" in out
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"


def test_training_steps_as_json(printed, tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "out.JSON"))
    out = printed("benchmark", "test_efficientnet", "--train", "--batch", "2", *QUICK, *output)
    assert "Training steps, medians of 2 common rounds" in out
    (found,) = json.loads((tmp_path / "out.JSON").read_text())
    assert (found["train"], found["fused"], found["error"]) == (True, False, "")


def test_scaling_prints_the_exponent(printed) -> None:
    out = printed("benchmark", "--scaling", "test_efficientnet", "--size", "32,64,96", *QUICK)
    assert "cost = c * pixels^p" in out
    assert "batch 1, float32, eager, cpu: test_efficientnet " in out


def test_scaling_s_defaults_reach_from_192_to_1024() -> None:
    sizes = [int(size) for size in SCALED_SIZES.split(",")]
    assert (sizes[0], sizes[-1]) == (192, 1024)
    assert "mobilemamba_s6" in SCALED_MODELS


def test_ops_beside_the_ceilings(printed, tmp_path: Path) -> None:
    files = ("--output", str(tmp_path / "out.csv"))
    out = printed("benchmark", "--ops", "mobilemamba_t2", "--size", "64", "--batch", "1", *QUICK, *files)
    assert "ceilings in the same rounds" in out
    assert {row["backend"] for row in rows(tmp_path / "out.csv")} >= {"chunked"}
    assert all(float(row["gbytes_per_second"]) > 0 for row in rows(tmp_path / "out.csv"))


def test_the_paper_s_table_is_the_default_and_names_what_is_missing(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(self: Workshop, case: networks.Case) -> None:
        asked.append(case.model)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Workshop, "build", fail)
    with pytest.raises(MobileMambaError, match="nothing could be measured") as caught:
        printed("benchmark", "--batch", "1", "--layout", "contiguous", *QUICK)
    assert caught.value.exit_code == 1
    assert {"efficientvit_m2", "efficientvit_m4", "efficientvit_m5", "mobilemamba_t2", "mobilemamba_b4"} <= set(asked)


def test_the_default_is_each_network_in_its_fastest_runtime(
    printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    tool = importlib.import_module("mobilemamba.tools.benchmark")
    monkeypatch.setattr(tool, "DEFAULT_MODELS", ("test_efficientnet",))
    monkeypatch.setattr(tool, "DEFAULT_RUNTIMES", ("onnxruntime", "openvino"))
    monkeypatch.setattr(tool, "packages_of", lambda name: (name.replace("openvino", "not_there"),))
    options = ("--batch", "1", "--layout", "contiguous", *QUICK, "--output", str(tmp_path / "out.csv"))
    out = printed("benchmark", *options)
    assert [row["mode"] for row in rows(tmp_path / "out.csv")] == ["eager", "onnxruntime"]
    assert "openvino: not installed, so not measured" in out
    assert out.count("│ test_efficientnet") == 1, "its faster mode alone is in the table"


def test_kernels_are_told_only_where_a_row_runs_in_pytorch(printed) -> None:
    pytest.importorskip("onnxruntime")
    for modes, told in (("onnxruntime", False), ("onnxruntime,eager", True)):
        out = printed("benchmark", "test_efficientnet", "--size", "32", "--batch", "1", "--mode", modes, *QUICK)
        assert "│ onnxruntime │" in out
        assert ("\nkernels: " in out) == told


def test_by_default_all_takes_ten_minutes_at_most(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(cases: list[Case], rounds: int, seconds: float, *_: object) -> None:
        asked.append((len(cases), rounds, seconds))
        raise ConfigError("enough")

    monkeypatch.setattr(importlib.import_module("mobilemamba.tools.benchmark"), "measure", stop)
    for rounds in (15, 1000, 100_000):
        with pytest.raises(ConfigError, match="enough"):
            printed("benchmark", "test_resnet", "test_efficientnet", "--batch", "1", "--rounds", str(rounds))
    assert asked == [(2, 15, 0.5), (2, 1000, pytest.approx(0.3)), (2, 100_000, 0.05)]


def test_layouts_to_compare_are_all_shown(printed) -> None:
    layouts = ("--size", "32", "--batch", "1", "--layout", "contiguous,channels_last")
    assert printed("benchmark", "test_efficientnet", *layouts, *QUICK).count("│ test_efficientnet") == 2


def test_missing_networks_are_named(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = importlib.import_module("mobilemamba.tools.benchmark")  # the package has the function by that name
    monkeypatch.setattr(tool, "DEFAULT_MODELS", ("test_efficientnet",))
    out = printed("benchmark", "--batch", "1", "--mode", "eager", *QUICK)
    assert "timm lacks them, so not measured: LocalVim, Eff" in out


def test_threads_are_set_and_given_back(printed, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    eager = ["--size", "32", "--batch", "1", "--mode", "eager"]
    printed("benchmark", "test_efficientnet", *eager, "--threads", "2", *QUICK, "--output", str(tmp_path / "o.csv"))
    assert rows(tmp_path / "o.csv")[0]["threads"] == "2"
    assert torch.get_num_threads() == before


def test_a_runtime_that_is_missing_is_named_before_the_measuring(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIMES[".tflite"], "reads", ("not_there",))
    with pytest.raises(ConfigError, match=r"^.tflite files need not_there: pip install 'mobilemamba\[litert\]'$"):
        printed("benchmark", "test_efficientnet", "--mode", "eager,litert", *QUICK)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["mobilemamba_t3"], ConfigError, "did you mean mobilemamba_t"),
        (["--dtype", "int3"], ConfigError, "dtype 'int3'"),
        (["--batch", "many"], ConfigError, "--batch many: expected whole numbers"),
        (["--batch", "0"], ConfigError, "batch 0"),
        (["--batch", ","], ConfigError, "batch: there is none; give at least one, or leave it out"),
        (["--layout", ""], ConfigError, "layout: there is none"),
        (["--head", ""], ConfigError, "head '': expected one of: "),
        (["--rounds", "0"], ConfigError, "--rounds 0: expected more than 0"),
        (["--device", "quantum"], ConfigError, "device quantum"),
        (["--scan_backend", "mamba_ssm", "--device", "cpu"], BackendUnavailableError, "mamba_ssm"),
        (["--output", "out.txt"], ConfigError, r"--output out.txt: .*\.csv or \.json"),
        (["--output", "nowhere/out.csv"], ConfigError, "there is no folder nowhere"),
        (["--plot", "out.jpg"], ConfigError, r"--plot out.jpg: .*\.png"),
        (["--ops", "efficientvit_m2"], ConfigError, "no selective scan"),
        (["--ops", "--scaling"], ConfigError, "--ops with --scaling"),
        (["--ops", "--plot", "out.png"], ConfigError, "--ops with --plot"),
        (["--ops", "--mode", "compiled"], ConfigError, "--ops with --mode"),
        (["--ops", "--no-fused"], ConfigError, "--ops with --fused"),
        (["test_resnet", "--scan_backend", "chunked"], ConfigError, "scan_backend chunked: none of these networks has"),
    ],
)
def test_mistakes_are_one_line(printed, options: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        printed("benchmark", *options)
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "exit_code", 2) == 2


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        (["a", "--train", "b"], ["a", "--train=true", "b"]),
        (["--no-fused"], ["--fused=false"]),
        (["--train", "false"], ["--train", "false"]),
        (["--train=false"], ["--train=false"]),
        (["--no-output", "--batch", "1"], ["--no-output", "--batch", "1"]),
    ],
)
def test_yes_or_no_settings(given: list[str], spelt: list[str]) -> None:
    assert spell_out_switches(given, ["train", "fused"]) == spelt


def test_heads_on_backbones(printed, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    models = ("mobilemamba_t2", "test_resnet")
    printed("benchmark", *models, "--head", "pspnet", "--size", "64", *QUICK, "--output", str(out))
    found = rows(out)
    assert [(row["model"], row["batch"], row["error"]) for row in found] == [
        (f"pspnet+{name}", "1", "") for name in models
    ]
    printed("benchmark", "test_resnet", "--head", "pspnet", "--train", "--size", "64", *QUICK, "--output", str(out))
    assert [(row["batch"], row["error"]) for row in rows(out)] == [("2", "")]
    with pytest.raises(ConfigError, match=r"head 'pspnt': expected one of: deeplabv3, .*; did you mean pspnet\?"):
        printed("benchmark", "test_resnet", "--head", "pspnt")
    with pytest.raises(ConfigError, match=r"--head pspnet: x\.ckpt is of a whole network"):
        printed("benchmark", "x.ckpt", "--head", "pspnet")


def test_a_detectors_time_by_parts(printed, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    given = ("benchmark", "mobilemamba_t2", "--head", "ssdlite", "--size", "64x96", *QUICK, "--output", str(out))
    text = printed(*given)
    assert "ssdlite+mobilemamba_t2 at 64x96 px" in " ".join(text.split())
    assert "networks alone" not in text
    (row,) = rows(out)
    times = [float(row[f"{part}_ms"]) for part in ("backbone", "neck", "head", "rest")]
    assert all(time > 0 for time in times)
    assert (row["height"], row["size"], row["error"]) == ("64", "96", "")
    for options, message in (
        (("--train",), r"train with ssdlite\+mobilemamba_t2: detectors are timed in inference"),
        (("--size", "64x"), "size 64x|--size 64x: expected sides as 512 or 800x1280"),
        (("--size", "axb"), "--size axb: expected sides as 512 or 800x1280"),
        (("--size", "20x64"), "size 20: expected 32 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            printed("benchmark", "mobilemamba_t2", "--head", "ssdlite", *options)
