"""The network laid out for inference on a GPU computes the same, by the operations' definitions on a CPU."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.ffn import FFN
from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.models import MobileMamba, ModelCard, Preprocessing, for_inference
from mobilemamba.models import inference as optimize_module
from mobilemamba.models.inference import lay_out, packed
from mobilemamba.models.inference import layers as inference_layers
from mobilemamba.models.inference.layers import InferenceFFN, InferenceMixer, InferenceMRFFI
from mobilemamba.models.inference.packed import PackedConv
from mobilemamba.models.predictor import ClassificationPredictor
from mobilemamba.ops.backends import Backend, Backends, standard_operators
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from tests.models.inference.alike import assert_same_output, fast_mixers

Build = Callable[..., MobileMamba]


@pytest.fixture
def for_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Lays a network out for a GPU whose scan has a kernel, so that it runs by the operations' definitions here."""
    kernels = Backends("scan, norm, gate on a GPU", scan_norm_gate, Backend("triton", "", scan_norm_gate))
    monkeypatch.setattr(inference_layers, "scan_norm_gate", kernels)

    def build(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        return lay_out(model, torch.device("cuda"), dtype)

    return build


@pytest.mark.parametrize(
    "choices",
    [{}, {"wavelet": "none"}, {"wavelet": "db2"}, {"global_mixer": "attention"}, {"directions": 4, "d_state": 2}],
    ids=str,
)
def test_laid_out_for_a_gpu_by_pytorch_s_operators(tiny: Build, for_gpu: Any, choices: dict[str, Any]) -> None:
    model = tiny(**choices)
    optimized = for_gpu(model)
    mixers = [m for m in optimized.modules() if isinstance(m, InferenceMixer | InferenceMRFFI)]
    assert len(mixers) == (0 if "global_mixer" in choices else 3)
    assert type(optimized) is MobileMamba  # which may be compiled
    with standard_operators():
        assert_same_output(model, optimized)
    kept = [m.weight for m in optimized.modules() if isinstance(m, PackedConv)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kept)


def test_on_a_gpu_with_all_kernels_mrffi_is_one(tiny: Build, for_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Backends("mix channels on a GPU", mix_channels, Backend("triton", "", mix_channels))
    monkeypatch.setattr(inference_layers, "mix_channels", kernels)
    model = tiny()
    optimized = for_gpu(model)
    assert fast_mixers(optimized) == 3
    assert not any(isinstance(module, InferenceMixer) for module in optimized.modules())
    for backend, fast in (("triton", 3), ("chunked", 0)):
        use_scan_backend(other := copy.deepcopy(model), backend)
        assert fast_mixers(for_gpu(other)) == fast
    with standard_operators():
        assert_same_output(model, optimized)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-1), (torch.float16, 2e-2)], ids=str)
def test_half_precision_on_a_gpu_rounds_as_much_as_is_said(
    trained: Build, for_gpu: Any, dtype: torch.dtype, tolerance: float
) -> None:
    model, pictures = trained("mobilemamba_t2"), torch.randn(2, 3, 96, 96)
    optimized = for_gpu(model, dtype)
    with torch.inference_mode(), standard_operators():
        expected, found = model(pictures), optimized(pictures.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < tolerance * expected.norm()


def test_a_forward_pass_on_a_gpu_meets_no_number_of_the_cpu(tiny: Build, for_gpu: Any) -> None:
    """On tensors without memory any copy between devices, and any number that the host asks for, is an error."""
    optimized = for_gpu(tiny(), torch.float16).to("meta")
    assert {x.device.type for x in (*optimized.parameters(), *optimized.buffers())} == {"meta"}
    assert optimized(torch.empty(2, 3, 64, 64, dtype=torch.float16, device="meta")).shape == (2, 7)
    with pytest.raises(ConfigError, match=r"in torch.float16 on meta, the network got torch.float32 on meta"):
        optimized(torch.empty(2, 3, 64, 64, device="meta"))


def test_ours_is_chosen_on_a_gpu_where_its_kernels_run(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    gpu = torch.device("cuda")
    assert "norms folded, not optimized for inference" in for_inference(model, gpu, torch.float16)[1]  # none here
    monkeypatch.setitem(optimize_module._TABLES, "cuda", ())
    assert for_inference(model, gpu, torch.float16)[1] == "optimized for inference"
    predictor = ClassificationPredictor(
        model, ModelCard("mobilemamba_s6", Preprocessing.of_model("mobilemamba_s6")), gpu
    )
    assert predictor.how == "optimized for inference, by CUDA graphs"
    assert not predictor.network.graphs.at_once
    assert for_inference(nn.Sequential(model), gpu, cuda_graph=True)[1] == "optimized for inference"


@pytest.mark.parametrize("size", [(64, 96), (72, 40)], ids=str)
def test_sums_are_written_over_what_a_convolution_made_for_them(
    trained: Build, for_gpu: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """By the calls for a GPU, on a CPU."""
    for module in (packed, inference_layers):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)
    model = trained("mobilemamba_t2")
    optimized = for_gpu(model)
    written_over = [m for m in optimized.modules() if isinstance(m, InferenceFFN) and m.pw2.bias is None]
    assert len(written_over) == sum(isinstance(module, FFN) for module in model.modules()) == 14
    assert_same_output(model, optimized, size)
    assert_same_output(model, for_gpu(optimized), size)  # once more: nothing is added twice
    pictures = torch.randn(2, 3, *size)
    kept = pictures.clone()
    maps = optimized.forward_intermediates(pictures, intermediates_only=True)
    expected = model.forward_intermediates(pictures, intermediates_only=True)
    assert pictures.equal(kept)
    for found, wanted in zip(maps, expected, strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
