"""Which configurations a request stands for, and which are refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mobilemamba.analysis.benchmark.cases import expand, own_size
from mobilemamba.analysis.benchmark.published import FRONT, NOT_IN_TIMM, PEERS, TABLE7, family, published_top1
from mobilemamba.analysis.benchmark.workload import Workshop
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.models.card import CARD_KEY
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.runtime import RUNTIMES


def test_every_combination_once_with_the_models_fastest():
    cases = expand(["efficientvit_m2", "mobilemamba_t2"], batches=(1, 2), dtypes=("float32", "bfloat16"))
    assert len(cases) == len(set(cases)) == 8
    assert [case.model for case in cases] == ["efficientvit_m2", "mobilemamba_t2"] * 4
    assert {(case.batch, case.dtype) for case in cases} == {(b, d) for b in (1, 2) for d in ("float32", "bfloat16")}


def test_each_network_at_its_own_size_unless_told():
    assert [case.size for case in expand(["mobilemamba_t2", "mobilemamba_b4"], batches=(1,))] == [192, 512]
    assert [case.size for case in expand(["mobilemamba_t2"], sizes=(64, 96), batches=(1,))] == [64, 96]
    assert own_size("efficientvit_m5") == 224


def test_training_is_never_fused():
    assert not expand(["mobilemamba_t2"], batches=(2,), train=True)[0].fused
    assert expand(["mobilemamba_t2"], batches=(2,))[0].fused


def test_a_weights_file_is_what_its_card_says(tmp_path):
    card = ModelCard("mobilemamba_t2", Preprocessing((64, 64), (0.5,), (0.5,)), 7, 1, arch={"depths": [1, 1, 1]})
    network = build_network(card)
    save_weights(network, tmp_path / "own.safetensors", card)
    (case,) = expand([str(tmp_path / "own.safetensors")], batches=(2,), scan_backend="chunked")
    assert (case.size, case.is_ours, case.scan_backend) == (64, True, "chunked")
    for other in (case, replace(case, scan_backend="auto"), replace(case, fused=False, train=True)):
        Workshop().build(replace(other, layout="channels_last")).run()
    workload = Workshop().build(replace(case, fused=False, train=False, layout="contiguous"))
    assert workload.run().shape == (2, 7)
    held = workload.network.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in network.state_dict().items())
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ConfigError, match=r"plain.pth does not say which network it is of; .* convert"):
        expand([str(tmp_path / "plain.pth")])
    save_weights(network, tmp_path / "masks.safetensors", replace(card, task="masks"))
    with pytest.raises(WeightsError, match=r"masks.safetensors is of a network for masks; expected one for classific"):
        expand([str(tmp_path / "masks.safetensors")])
    with pytest.raises(WeightsError, match=r"no weights at absent\.ckpt"):
        expand(["absent.ckpt"])


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["mobilemamba_t3"], {}, r"'mobilemamba_t3'.*did you mean mobilemamba_t"),
        ([], {}, "no model"),
        (["mobilemamba_t2"], {"dtypes": ["int3"]}, r"dtype 'int3': expected one of: float32, bfloat16, float16"),
        (["mobilemamba_t2"], {"modes": ["egaer"]}, r"mode 'egaer': expected one of: eager, .*; did you mean eager\?"),
        (["mobilemamba_t2"], {"layouts": ["last"]}, r"layout 'last': expected one of: auto, contiguous, channels_last"),
        (["mobilemamba_t2"], {"sizes": [16]}, r"size 16: expected 32 or more"),
        (["mobilemamba_t2"], {"batches": [0]}, r"batch 0: expected 1 or more"),
        (["mobilemamba_t2"], {"batches": [1], "train": True}, r"batch 1: expected 2 or more; a norm"),
        (["mobilemamba_t2"], {"batches": [2], "train": True, "modes": ["exported"]}, r"mode 'exported'"),
        (["mobilemamba_t2"], {"devices": ["quantum"]}, r"device quantum: torch has none of that name; use auto or cpu"),
        (["mobilemamba_t2"], {"scan_backend": "magic"}, r"unknown scan backend 'magic'"),
    ],
)
def test_mistakes_are_one_line(models, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        expand(models, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    with pytest.raises(ConfigError, match=r"device cuda: .*; use auto or cpu"):
        expand(["mobilemamba_t2"], devices=["cuda"])
    assert expand(["mobilemamba_t2"], devices=["auto"])[0].device == "cpu"


def test_other_runtimes_are_for_inference_in_float32_on_a_cpu():
    cases = expand(["mobilemamba_t2"], batches=(1,), modes=["eager", "onnxruntime", "openvino"])
    assert [(case.mode, case.layout) for case in cases] == [
        ("eager", "auto"),
        ("onnxruntime", "contiguous"),
        ("openvino", "contiguous"),
    ]
    for options, message in (
        ({"dtypes": ["bfloat16"]}, "mode 'openvino' with dtype bfloat16: it is measured in float32"),
        ({"fused": False}, "mode 'openvino' with fused=False: exports have folded norms"),
        ({"train": True, "batches": (2,)}, "mode 'openvino': another runtime is for inference"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand(["mobilemamba_t2"], modes=["openvino"], **options)


def test_the_paper_s_table_is_measured_or_named():
    assert all(published_top1(case.model, case.size) for case in expand(TABLE7, batches=(1,)))
    assert not {name.lower().replace("-", "_") for name in NOT_IN_TIMM} & set(TABLE7)


def test_accuracies_are_those_of_the_published_size():
    assert [published_top1("mobilemamba_t2", size) for size in (192, 224)] == [73.6, None]
    assert [published_top1("efficientvit_m5", size) for size in (224, 192)] == [77.1, None]
    assert [published_top1("emo_5m", size) for size in (224, 256)] == [78.4, None]
    assert [published_top1("levit_128", 224, best=best) for best in (False, True)] == [None, 78.5]
    assert [published_top1("mobilemamba_b4", 512, best=best) for best in (False, True)] == [82.5, 83.6]


def test_the_front_is_measured_at_the_sizes_of_its_accuracies():
    assert not PEERS.keys() & FRONT.keys()
    assert all(published_top1(case.model, case.size, best=True) for case in expand([*PEERS, *FRONT], batches=(1,)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mobilemamba_t2", "mobilemamba"),
        ("efficientvit_m5", "efficientvit"),
        ("emo_1m", "emo"),
        ("efficientvit_b1", "efficientvit_b"),  # of other authors than efficientvit_m1
        ("cpubone_b1_bfrobust", "cpubone"),
        ("resnet18", "resnet18"),
    ],
)
def test_families(model, expected):
    assert family(model) == expected


def test_an_exported_file_runs_in_its_own_runtime(monkeypatch):
    card = ModelCard("test_resnet", Preprocessing((64, 64), (0.5,), (0.5,)), 7)
    said = {CARD_KEY: json.dumps(card.as_dict())}
    runtime = SimpleNamespace(name="openvino", reads=(), metadata=lambda path: said)
    monkeypatch.setitem(RUNTIMES, ".own", runtime)
    cases = expand(["x.own", "test_resnet"], batches=(1,), modes=["eager", "onnxruntime"], layouts=["contiguous"])
    modes = [("x.own", "openvino"), ("test_resnet", "eager"), ("test_resnet", "onnxruntime")]
    assert [(case.model, case.mode) for case in cases] == modes
    with pytest.raises(ConfigError, match="mode 'openvino' with dtype bfloat16"):
        expand(["x.own"], dtypes=["bfloat16"])
