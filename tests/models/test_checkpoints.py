"""Checkpoints of both formats load whole or not at all, and say what became of each tensor."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from mobilemamba.errors import MobileMambaError, WeightsError
from mobilemamba.models import MobileMamba, convert, fuse_norms, load_weights, save_weights
from mobilemamba.models.release_names import is_fused, is_release, ours_to_release, release_to_ours

Build = Callable[..., MobileMamba]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source(tiny: Build) -> MobileMamba:
    return tiny()


@pytest.fixture
def target() -> MobileMamba:
    """A fresh network of the same architecture."""
    return timm.create_model("mobilemamba_s6", embed_dims=(32, 48, 64), depths=(1, 1, 1), num_classes=7).eval()


def assert_equal(model: nn.Module, state: State) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


def assert_same_output(one: nn.Module, other: nn.Module) -> None:
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = one(pictures)
        assert (other(pictures) - expected).norm() < 1e-5 * expected.norm()


def snapshot(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def release_fused(model: MobileMamba) -> State:
    """A fused checkpoint by the release's names: its layers take the place of a convolution with norm."""
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


# Names


@pytest.mark.parametrize(
    "choices", [{}, {"directions": 4, "d_state": 3}, {"directions": 1}, {"depths": (2, 3, 2)}], ids=str
)
def test_round_trip_is_bit_exact(tiny: Build, choices: dict[str, Any]) -> None:
    model = tiny(**choices)
    release = ours_to_release(model.state_dict())
    assert is_release(release)
    assert not is_release(model.state_dict())
    assert_equal(model, release_to_ours(release, model.config.directions))
    again = ours_to_release(release_to_ours(release, model.config.directions))
    assert again.keys() == release.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in release.items())


def test_release_names() -> None:
    """By the release's own list; the whole list is compared where the optional test data is."""
    release = ours_to_release(timm.create_model("mobilemamba_s6").state_dict())
    attention = "blocks2.4.mixer.m.attn.global_op.global_atten"
    assert release.keys() > {
        "patch_embed.0.c.weight",
        "blocks1.0.dw0.m.c.weight",
        "blocks2.0.0.m.bn.weight",
        "blocks2.0.1.m.pw1.c.weight",
        "blocks3.1.conv2.c.weight",
        f"{attention}.x_proj_weight",
        "head.l.weight",
    }
    assert release[f"{attention}.A_logs"].shape == (2 * 544, 1)
    assert release[f"{attention}.Ds"].shape == (2 * 544,)


# Formats


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
def test_files_of_both_formats(
    source: MobileMamba, target: MobileMamba, tmp_path: Path, release: bool, suffix: str, capsys: pytest.CaptureFixture
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
    assert_equal(target, source.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: {"net": state, "epoch": 3}, id="net"),
        pytest.param(lambda state: {"state_dict": state, "lr": 0.1}, id="state_dict"),
        pytest.param(lambda state: {"net": {f"module.{n}": t for n, t in state.items()}}, id="net-module."),
        pytest.param(lambda state: {f"ema.{n}": t for n, t in state.items()}, id="ema."),
        pytest.param(lambda state: {f"module.ema.{n}": t for n, t in state.items()}, id="module.ema."),
        pytest.param(
            lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss.w": torch.ones(1)}},
            id="state_dict-model.",
        ),
    ],
)
@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
def test_containers_and_prefixes(source: MobileMamba, target: MobileMamba, wrap: Callable, release: bool) -> None:
    state = ours_to_release(source.state_dict()) if release else source.state_dict()
    assert load_weights(target, wrap(state), verbose=False).complete
    assert_equal(target, source.state_dict())


def test_several_networks_in_one_are_refused(source: MobileMamba, target: MobileMamba) -> None:
    state = source.state_dict()
    both = {f"{prefix}.{name}": tensor for prefix in ("model", "ema") for name, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"several networks \(\['ema\.', 'model\.'\]\)"):
        load_weights(target, both)


@pytest.mark.parametrize("release", [False, True], ids=["ours", "release"])
@pytest.mark.parametrize("into", ["fused", "unfused"])
def test_fused_checkpoints(source: MobileMamba, target: MobileMamba, into: str, release: bool) -> None:
    state = release_fused(source) if release else fuse_norms(source).state_dict()
    assert is_fused(state)
    assert is_release(state) == release
    network = fuse_norms(target) if into == "fused" else target
    report = load_weights(network, state, verbose=False)
    assert report.complete
    assert report.format == ("release" if release else "mobilemamba") + ", norms fused"
    assert_same_output(source, network)


def test_norm_counters_may_lack(source: MobileMamba, target: MobileMamba) -> None:
    state = {n: t for n, t in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert load_weights(target, state, verbose=False).complete


# Reports and refusals


def damaged(source: nn.Module) -> State:
    state = snapshot(source)
    del state["patch_embed.2.conv.weight"]
    state["head.linear.weight"] = torch.zeros(1000, 64)
    state["teacher.weight"] = torch.zeros(1)
    return state


def test_what_does_not_fit_is_refused_by_name(source: MobileMamba, target: MobileMamba) -> None:
    before = snapshot(target)
    with pytest.raises(WeightsError) as error:
        load_weights(target, damaged(source))
    message = str(error.value)
    assert "1 missing (patch_embed.2.conv.weight)" in message
    assert "1 unexpected (teacher.weight)" in message
    assert "1 wrong shape (head.linear.weight (1000, 64), the model has (7, 64))" in message
    assert "partial=True" in message
    assert_equal(target, before)


def test_partial_loads_what_fits(source: MobileMamba, target: MobileMamba, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(target)
    report = load_weights(target, damaged(source), partial=True)
    assert not report.complete
    assert report.missing == ["patch_embed.2.conv.weight"]
    assert report.unexpected == ["teacher.weight"]
    assert [text.split()[0] for text in report.wrong_shape] == ["head.linear.weight"]
    assert "teacher.weight" in capsys.readouterr().out
    kept = {"patch_embed.2.conv.weight", "head.linear.weight"}
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name in kept else source.state_dict()[name])


def test_another_architecture_is_refused(tiny: Build, target: MobileMamba) -> None:
    with pytest.raises(WeightsError, match="wrong shape"):
        load_weights(target, tiny(embed_dims=(32, 64, 64)).state_dict())
    with pytest.raises(WeightsError, match="unexpected"):
        load_weights(target, ours_to_release(tiny(depths=(1, 2, 1)).state_dict()))


def write_garbage(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>" * 50)


def write_half(path: Path) -> None:
    torch.save({"patch_embed.0.conv.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def write_other_network(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, path)


class Payload:
    """Code that a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return pytest.fail, ("a checkpoint ran code",)


def write_payload(path: Path) -> None:
    torch.save({"net": Payload()}, path)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"net": Payload()}))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_garbage, "cannot read .*expected a .safetensors file or a .pth"),
        (Path.touch, "cannot read"),
        (write_half, "cannot read"),
        (write_list, "holds a list; expected a state dict"),
        (write_other_network, "holds no MobileMamba.*conv1.weight"),
        (write_payload, "cannot read"),
        (write_pickle, "cannot read"),
        (Path.mkdir, "no weights at"),
        (lambda path: None, "no weights at"),
    ],
    ids=["garbage", "empty", "cut-off", "list", "other-network", "code", "pickled-code", "folder", "absent"],
)
def test_unusable_files(write: Callable, message: str, target: MobileMamba, tmp_path: Path) -> None:
    path, before = tmp_path / "weights.pth", snapshot(target)
    write(path)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(target, path)
    assert "\n" not in str(error.value)
    assert_equal(target, before)


def test_unusable_safetensors(target: MobileMamba, tmp_path: Path) -> None:
    write_garbage(tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="cannot read"):
        load_weights(target, tmp_path / "weights.safetensors")


# Writing


def test_saved_weights_load_again(source: MobileMamba, target: MobileMamba, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_text("an older file")
    save_weights(source, path, {"note": "of a test"})
    assert load_weights(target, path, verbose=False).complete
    assert_equal(target, source.state_dict())
    with safe_open(path, "pt") as file:
        assert file.metadata()["note"] == "of a test"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_a_missing_folder_is_named(source: MobileMamba, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot write .*nowhere"):
        save_weights(source, tmp_path / "nowhere" / "weights.safetensors")


@pytest.mark.parametrize("num_classes", [1000, 3, 0])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_convert(trained: Build, tmp_path: Path, num_classes: int, fused: bool) -> None:
    model = trained("mobilemamba_t2", num_classes=num_classes)
    state = fuse_norms(model).state_dict() if fused else ours_to_release(model.state_dict())
    torch.save({"net": state}, tmp_path / "release.pth")
    target = tmp_path / "ours.safetensors"
    report = convert(tmp_path / "release.pth", target, "mobilemamba_t2")
    assert report.complete
    converted = load_file(target)
    assert converted.keys() == model.state_dict().keys()
    with safe_open(target, "pt") as file:
        assert file.metadata()["model"] == "mobilemamba_t2"
    if not fused:
        assert_equal(model, converted)
    again = timm.create_model("mobilemamba_t2", num_classes=num_classes).eval()
    load_weights(again, target, verbose=False)
    assert_same_output(model, again)


@pytest.mark.parametrize(
    ("target", "model", "message"),
    [
        ("ours.pth", "mobilemamba_t2", "ends in .safetensors"),
        ("ours.safetensors", "mobilemamba_s6", "wrong shape"),
        ("ours.safetensors", "mobilemamba_x9", "unknown model"),
        ("nowhere/ours.safetensors", "mobilemamba_t2", "cannot write"),
    ],
    ids=["suffix", "another-model", "unknown-model", "no-folder"],
)
def test_convert_refuses(trained: Build, tmp_path: Path, target: str, model: str, message: str) -> None:
    torch.save(ours_to_release(trained("mobilemamba_t2").state_dict()), tmp_path / "release.pth")
    with pytest.raises(MobileMambaError, match=message):
        convert(tmp_path / "release.pth", tmp_path / target, model)
    assert [p.name for p in tmp_path.iterdir()] == ["release.pth"]
