"""The network laid out for inference on a CPU computes the same."""

import copy
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, MobileMamba, for_inference, fuse_norms, optimize_for_inference
from mobilemamba.models.inference.packed import PackedConv
from mobilemamba.ops import onednn
from mobilemamba.ops.backends import forget_choices
from mobilemamba.ops.native import library
from tests.models.inference.alike import NEEDS_KERNELS, assert_same_output, fast_mixers
from tests.models.test_fuse import OTHER_NORMS

Build = Callable[..., MobileMamba]

pytestmark = NEEDS_KERNELS


@pytest.mark.parametrize("name", VARIANTS)
def test_six_sizes(trained: Build, name: str) -> None:
    model = trained(name)
    optimized = optimize_for_inference(model)
    assert fast_mixers(optimized) == sum(model.config.depths)
    assert not any(isinstance(module, nn.Conv2d) for module in optimized.modules())
    assert_same_output(model, optimized)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 40), (224, 192)], ids=str)
def test_odd_sizes(trained: Build, size: tuple[int, int]) -> None:
    model = trained("mobilemamba_t2")
    assert_same_output(model, optimize_for_inference(model), size)


@pytest.mark.parametrize(
    ("choices", "fast"),
    [
        ({"directions": 4, "d_state": 2}, True),
        ({"directions": 1, "ssm_ratio": 1}, True),
        ({"kernel_sizes": ((3, 5, 7), (3, 5), 3)}, True),
        ({"wavelet": "none"}, True),
        ({"global_ratio": (1, 1, 1), "local_ratio": (0, 0, 0)}, True),
        ({"wavelet": "db2"}, False),
        ({"global_ratio": (0, 0, 0), "local_ratio": (1, 0.5, 0)}, False),
        ({"global_mixer": "attention"}, False),
        ({"global_mixer": "identity", "wavelet": "none"}, False),
        ({"num_classes": 0}, True),
        ({"drop_path_rate": 0.3, "distilled": True}, True),
    ],
    ids=str,
)
def test_every_choice_of_architecture(tiny: Build, choices: dict[str, Any], fast: bool) -> None:
    model = tiny(**choices)
    optimized = optimize_for_inference(model)
    assert (fast_mixers(optimized) > 0) == fast
    assert_same_output(model, optimized)


def test_wavelet_filters_other_than_haar_s_are_not_taken_for_them(tiny: Build) -> None:
    """A checkpoint may hold any filters; the kernel knows one."""
    model = tiny()
    plain = fuse_norms(model)
    state = {name: 1.5 * x if name.endswith("idwt_filters") else x for name, x in model.state_dict().items()}
    model.load_state_dict(state)
    optimized = optimize_for_inference(model)
    assert not torch.allclose(plain(torch.ones(1, 3, 64, 64)), optimized(torch.ones(1, 3, 64, 64)), rtol=1e-3)
    assert fast_mixers(optimized) == 0
    assert_same_output(model, optimized)


def test_stages_and_head_keep_their_interface(trained: Build) -> None:
    model = trained("mobilemamba_t2")
    optimized, pictures = optimize_for_inference(model), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, maps = (m.forward_intermediates(pictures, intermediates_only=True) for m in (model, optimized))
        for ours, theirs in zip(maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        pooled = optimized.forward_head(optimized.forward_features(pictures), pre_logits=True)
        torch.testing.assert_close(optimized.head(pooled), optimized(pictures))


def test_bfloat16_rounds_no_more_than_the_plain_network_does(trained: Build) -> None:
    model = trained("mobilemamba_t2")
    plain, optimized = fuse_norms(model).bfloat16(), optimize_for_inference(model, torch.bfloat16)
    pictures = torch.randn(8, 3, 96, 96).bfloat16()
    with torch.inference_mode():
        expected = model(pictures.float())
        errors = [(network(pictures).float() - expected).norm() for network in (optimized, plain)]
        assert optimized(pictures).dtype == torch.bfloat16
    assert errors[0] < min(1.2 * errors[1], 0.1 * expected.norm())


def test_what_the_kernels_take_in_float32_stays_so(tiny: Build) -> None:
    optimized = optimize_for_inference(tiny(), torch.bfloat16)
    before = {name: x.clone() for name, x in optimized.named_buffers()}
    optimized.to(torch.bfloat16).to(memory_format=torch.channels_last)
    assert before
    assert {x.dtype for x in before.values()} == {torch.float32}
    for name, x in optimized.named_buffers():
        assert torch.equal(x, before[name])
        assert x.is_contiguous()


def test_the_original_is_left_as_it_was(tiny: Build) -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    assert not optimized.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_same_bits_on_every_run(trained: Build) -> None:
    optimized, pictures = optimize_for_inference(trained("mobilemamba_t2")), torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        first = optimized(pictures)
        assert all(torch.equal(optimized(pictures), first) for _ in range(3))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs bfloat16 in oneDNN")
def test_no_weight_is_laid_out_again_in_a_later_call(capfd: pytest.CaptureFixture[str]) -> None:
    """S6's last embedding convolution takes another layout at its 28 pixels in bfloat16 than at larger sizes."""
    optimized = optimize_for_inference(timm.create_model("mobilemamba_s6"), torch.bfloat16)
    pictures = torch.randn(1, 3, 224, 224).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        optimized(pictures)
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            optimized(pictures)
    log = capfd.readouterr().out
    assert log.count("exec,cpu,convolution") >= 4
    assert "exec,cpu,reorder" not in log


def test_many_pictures_give_what_each_gives_alone(trained: Build) -> None:
    """The patch embedding takes them in parts, and the last part may be a smaller one."""
    optimized, pictures = optimize_for_inference(trained("mobilemamba_t2")), torch.randn(19, 3, 64, 64)
    with torch.inference_mode():
        logits = optimized(pictures)
        torch.testing.assert_close(logits, torch.cat([optimized(one) for one in pictures.split(1)]))
        embedded = optimized.patch_embed(pictures)
        assert embedded.is_contiguous(memory_format=torch.channels_last)
        assert optimized(pictures[:0]).shape == (0, 1000)


def pickled(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def reloaded(network: nn.Module) -> nn.Module:
    """Its state in the copy of another network, which has been called before."""
    other = optimize_for_inference(timm.create_model("mobilemamba_t2", depths=(1, 1, 1)).eval())
    with torch.inference_mode():
        other(torch.randn(2, 3, 64, 64))
    other.load_state_dict(network.state_dict())
    return other


def converted(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to("cpu", torch.float32).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, pickled, reloaded, converted, optimize_for_inference], ids=lambda f: f.__name__
)
def test_a_copy_computes_the_same(trained: Build, again: Callable[[nn.Module], nn.Module]) -> None:
    model = trained("mobilemamba_t2", depths=(1, 1, 1))
    optimized, pictures = optimize_for_inference(model), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = optimized(pictures)
        copied = again(optimized)
        assert isinstance(copied, MobileMamba)
        assert torch.equal(copied(pictures), expected)
    assert_same_output(model, copied)


def test_laid_out_in_inference_mode_too(tiny: Build) -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(optimize_for_inference(model)(pictures), model(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_another_dtype_is_one_clear_error(tiny: Build, dtype: torch.dtype) -> None:
    optimized, pictures = optimize_for_inference(tiny()), torch.randn(2, 3, 64, 64, dtype=dtype)
    for call in (optimized, optimized.forward_features):
        with pytest.raises(ConfigError, match=f"in torch.float32 on cpu, the network got {dtype} on cpu; convert"):
            call(pictures)


@pytest.mark.parametrize("shape", [(3, 64, 64), (64, 64, 3), (1, 2, 3, 64, 64)], ids=str)
def test_what_is_no_batch_of_pictures_is_one_clear_error(tiny: Build, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"an input of shape {re.escape(str(shape))}; expected a batch of pictures"):
        optimize_for_inference(tiny())(torch.randn(shape))


def test_autocast_is_named_where_it_hands_a_layer_another_dtype(tiny: Build) -> None:
    optimized = optimize_for_inference(tiny(global_mixer="attention"))
    with torch.autocast("cpu"), pytest.raises(ConfigError, match=r"got torch.bfloat16 on cpu; leave autocast out"):
        optimized(torch.randn(2, 3, 64, 64))


def test_the_compiler_leaves_it_alone(tiny: Build) -> None:
    optimized, pictures = optimize_for_inference(tiny()), torch.randn(2, 3, 64, 64)
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(optimized, backend=lambda graph, _: graphs.append(graph) or graph)
    with torch.inference_mode():
        assert torch.equal(compiled(pictures), optimized(pictures))
    assert not graphs


@pytest.mark.slow
def test_its_layers_compile(tiny: Build) -> None:
    optimized = optimize_for_inference(tiny())
    stages = optimized.stages[:2]  # the third has none but theirs, and takes as long
    assert {type(layer) for layer in optimized.stages[2].modules()} <= {type(layer) for layer in stages.modules()}
    with torch.inference_mode():
        x = optimized.patch_embed(torch.randn(2, 3, 64, 64))
        torch.testing.assert_close(torch.compile(stages)(x), stages(x), rtol=1e-3, atol=1e-3)


def test_exports(tiny: Build) -> None:
    optimized, pictures = optimize_for_inference(tiny()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(optimized, (pictures,)).module()
        torch.testing.assert_close(exported(pictures), optimized(pictures), rtol=1e-4, atol=1e-4)


def no_kernels(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(library, "why_not", lambda: "not compiled")
    return "not compiled"


def other_operators(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(onednn, "pack_linear", lambda _: torch.ops.mkldnn._such_an_operator_there_is_not)
    return "oneDNN's operators are not those .*_such_an_operator_there_is_not"


def other_results(patch: pytest.MonkeyPatch) -> str:
    linear = onednn.linear
    patch.setattr(onednn, "linear", lambda *args, **kwargs: 2 * linear(*args, **kwargs))
    return "oneDNN's operators are not those"


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    onednn._why_not.cache_clear()
    forget_choices()
    yield
    onednn._why_not.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("lacking", [no_kernels, other_operators, other_results], ids=lambda f: f.__name__)
def test_where_it_cannot_it_folds_the_norms_and_says_so(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, lacking: Callable[[pytest.MonkeyPatch], str]
) -> None:
    model, reason = tiny(), lacking(monkeypatch)
    with pytest.warns(UserWarning, match=f"norms are folded, and no more: {reason}") as warned:
        folded = optimize_for_inference(model)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert folded.state_dict().keys() == fuse_norms(model).state_dict().keys()
    _, how = for_inference(model, torch.device("cpu"))
    assert re.match(f"norms folded, not optimized for inference: {reason}", how)
    assert_same_output(model, folded)


def test_the_choice_of_a_scan_is_respected(tiny: Build) -> None:
    chunked = optimize_for_inference(tiny(scan_backend="chunked"))
    assert fast_mixers(chunked) == 0
    assert any(isinstance(m, PackedConv) for m in chunked.modules())
    with pytest.warns(UserWarning, match="scan_backend='reference'"):
        reference = optimize_for_inference(tiny(scan_backend="reference"))
    assert not any(isinstance(m, PackedConv) for m in reference.modules())


def test_what_it_cannot_lay_out_is_refused(tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"the model is on meta; move it to the cpu"):
        optimize_for_inference(tiny().to("meta"))
    with pytest.raises(ConfigError, match=r"dtype=torch.float16 on cpu; expected torch.float32 or torch.bfloat16"):
        optimize_for_inference(tiny(), torch.float16)


def test_a_network_of_timm_s_without_our_layers_is_packed_too() -> None:
    model = timm.create_model("test_convnext").eval()
    optimized, pictures = optimize_for_inference(model), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(pictures), model(pictures), rtol=1e-4, atol=1e-4)
    assert isinstance(optimized, type(fuse_norms(model)))


@pytest.mark.parametrize(
    "geometry",
    [{"padding": 1, "padding_mode": "reflect"}, {"padding": 1, "dilation": 2}, {"padding": 0}, {"stride": (1, 2)}],
    ids=str,
)
def test_convolutions_that_do_not_fit_stay(geometry: dict[str, Any]) -> None:
    model, pictures = nn.Sequential(nn.Conv2d(3, 8, 3, **geometry)).eval(), torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(optimize_for_inference(model)(pictures), model(pictures))


@pytest.mark.parametrize("name", OTHER_NORMS)
def test_norms_of_other_classes_are_folded_or_left_alone(tiny: Build, name: str) -> None:
    model, pictures = OTHER_NORMS[name](tiny(num_classes=5)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(optimize_for_inference(model)(pictures), model(pictures), rtol=1e-3, atol=1e-4)
