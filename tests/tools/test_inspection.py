"""What the tools ``backends`` and ``summary`` print."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba.ops.native import library
from mobilemamba.ops.selective_scan import BACKENDS

pytestmark = pytest.mark.kernels


def test_backends_say_what_runs_and_why_not(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = printed("backends")
    for op in ("scan", "wavelet", "batch norm", "scan, norm, gate", "mix channels", "depthwise", "mlstm", "ttt"):
        assert re.search(rf"^│ {op} +│ (native|chunked|PyTorch) +│", out, re.MULTILINE), op
    assert "On cpu, 1 thread" in out
    assert "On cuda" not in out
    row = {
        name: next(line for line in out.splitlines() if re.match(rf"\W*{name} ", line))
        for name in ("chunked", "reference")
    }
    assert all(line.rstrip(" │").endswith("runs") for line in row.values())
    assert "mamba_ssm" in out
    assert "no: " in out
    assert f"auto on cpu: {BACKENDS.choose('auto', torch.device('cpu'), torch.float32).name}\n" in out


def test_backends_say_why_all_is_slow(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_not", lambda: "switched off")
    monkeypatch.setenv("COLUMNS", "80")
    out = printed("backends")
    assert len(re.findall(r"^│ [\w ,]+│ (?:chunked|PyTorch) +│ native: switched off +│$", out, re.MULTILINE)) == 6
    assert all(len(line) <= 80 for line in out.splitlines())


def test_summary_of_the_six_sizes_beside_the_paper(printed) -> None:
    out = printed("summary")
    rows = {cells[0]: cells[1:] for line in out.splitlines() if (cells := re.findall(r"[\w.,]+", line))}
    assert rows["mobilemamba_s6"][:3] == ["224", "15,036,632", "652,334,736"]
    assert rows["mobilemamba_s6"][-2:] == ["15.0", "652"]
    assert rows["mobilemamba_b4"][:3] == ["512", "17,122,849", "4,313,308,544"]
    assert {f"mobilemamba_{size}" for size in ("t2", "t4", "s6", "b1", "b2", "b4")} < rows.keys()
    assert "norms not folded" in out
    assert "the paper's convention" in out  # each number says how it was obtained


def test_summary_of_networks_by_their_names(printed) -> None:
    out = printed("summary", "resnet18", "mobilemamba_t2")
    rows = [re.findall(r"[\w.,]+", line) for line in out.splitlines() if re.match(r"\W*(resnet|mobile)", line)]
    assert [row[0] for row in rows] == ["resnet18", "mobilemamba_t2"]
    assert rows[0][1:3] == ["224", "11,689,512"]
    assert 1.81e9 < float(rows[0][4].replace(",", "")) < 1.83e9  # its MACs, as everybody counts them
    assert rows[1][-2:] == ["8.8", "255"]
    assert "paper:" not in printed("summary", "resnet18")
    with pytest.raises(ConfigError, match=r"model name 'resnet81': .*did you mean"):
        printed("summary", "resnet81")


@pytest.mark.parametrize(
    ("head", "message"), [("pspnet", "the configuration says its own; name models"), ("", "--head")]
)
def test_a_head_is_put_on_models_alone(printed, head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        printed("summary", "--config", "experiments/ablation_xi.yaml", "--head", head)


def test_summary_of_heads_on_a_backbone_and_of_weights(printed, tmp_path: Path) -> None:
    out = printed("summary", "mobilemamba_b4", "--head", "pspnet,semantic_fpn")
    assert "150 classes" in out
    assert re.search(r"pspnet\+mobilemamba_b4 +│ +512 │ 20,564,303 │ 4,538,136,576 │ 4,521,139,200", out)
    assert re.search(r"semantic_fpn\+mobilemamba_b4 +│ +512 │ 19,758,671 │ 5,644,145,664", out)
    assert "leave the scan out" in out
    preprocessing = Preprocessing((64, 96), (0.5,) * 3, (0.5,) * 3)
    options: dict[str, Any] = {"num_classes": 7, "task": "segmentation", "head": "pspnet"}
    card = ModelCard("test_resnet", preprocessing, **options, head_options={"auxiliary": True})
    save_weights(segmenter := build_network(card), tmp_path / "own.safetensors", card)
    out = printed("summary", str(tmp_path / "own.safetensors"))
    answering = sum(p.numel() for name, p in segmenter.named_parameters() if "auxiliary" not in name)
    assert f"64x96 │ {answering:,} │" in out
    assert "7 classes" in out


@pytest.mark.slow
def test_summary_of_detectors(printed) -> None:
    text = printed("summary", "mobilemamba_b1", "--head", "ssdlite")
    assert "18,020,845" in text
    assert "80 classes" in text
    assert "second head" not in text


def test_summary_of_a_sweep(printed, root: Path) -> None:
    out = printed("summary", "--config", str(root / "experiments" / "ablation_xi.yaml"))
    rows = re.findall(r"224\W+(\d\d,\d{3},\d{3})\W+(\d{3},\d{3},\d{3})", out)
    assert len(rows) >= 8
    assert ("15,036,632", "652,334,736") in rows
    assert ["14.615", "619.78"] in [
        [f"{int(p.replace(',', '')) / 1e6:.3f}", f"{int(f.replace(',', '')) / 1e6:.2f}"] for p, f in rows
    ]


def test_summary_folds_what_the_table_folds_and_needs_no_pictures(printed, root: Path) -> None:
    out = printed("summary", "--config", str(root / "experiments/ablation_strategies.yaml"))
    assert "norms not folded but in kd_1000e_fused" in out
    assert re.search(r"kd_1000e_fused │ +224 │ 15,000,456 │ 647,565,424", out)
    assert "15,036,632" in printed("summary", "--config", str(root / "experiments/imagenet/mobilemamba.yaml"))


def test_an_unknown_tool_may_have_been_another(printed) -> None:
    with pytest.raises(ConfigError, match=r"unknown command 'sumary': did you mean summary?"):
        printed("sumary")
