"""Weights load whole or not at all, are written bit for bit, and bring their network along."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from mobilemamba.errors import ConfigError, MobileMambaError, WeightsError
from mobilemamba.models import (
    MobileMamba,
    ModelCard,
    Preprocessing,
    convert,
    fuse_norms,
    load_network,
    load_weights,
    read_card,
    save_weights,
)
from mobilemamba.models.release_names import ours_to_release

Build = Callable[..., MobileMamba]
State = dict[str, Tensor]


def snapshot(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Loading


def damaged(source: nn.Module) -> State:
    state = snapshot(source)
    del state["patch_embed.2.conv.weight"]
    state["head.linear.weight"] = torch.zeros(1000, 64)
    state["teacher.weight"] = torch.zeros(1)
    return state


def test_what_does_not_fit_is_refused_by_name(source: MobileMamba, target: MobileMamba, equal: Callable) -> None:
    before = snapshot(target)
    with pytest.raises(WeightsError) as error:
        load_weights(target, damaged(source))
    message = str(error.value)
    assert "1 missing (patch_embed.2.conv.weight)" in message
    assert "1 unexpected (teacher.weight)" in message
    assert "1 wrong shape (head.linear.weight (1000, 64), the model has (7, 64))" in message
    assert "partial=True" in message
    assert equal(target, before)


def test_partial_loads_what_fits(source: MobileMamba, target: MobileMamba, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(target)
    report = load_weights(target, damaged(source), partial=True)
    assert not report.complete
    assert report.missing == ["patch_embed.2.conv.weight"]
    assert report.unexpected == ["teacher.weight"]
    assert [text.split()[0] for text in report.wrong_shape] == ["head.linear.weight"]
    assert "teacher.weight" in capsys.readouterr().out
    kept = {"patch_embed.2.conv.weight", "head.linear.weight"}
    expected = source.state_dict() | {name: before[name] for name in kept}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())


def test_another_architecture_is_refused(tiny: Build, target: MobileMamba) -> None:
    with pytest.raises(WeightsError, match="wrong shape"):
        load_weights(target, tiny(embed_dims=(32, 64, 64)).state_dict())
    with pytest.raises(WeightsError, match="unexpected"):
        load_weights(target, ours_to_release(tiny(depths=(1, 2, 1)).state_dict()))


@pytest.mark.parametrize("partial", [False, True])
def test_another_network_is_refused(target: MobileMamba, equal: Callable, tmp_path: Path, partial: bool) -> None:
    path, before = tmp_path / "weights.pth", snapshot(target)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"holds no MobileMamba.*conv1.weight"):
        load_weights(target, path, partial=partial)
    assert equal(target, before)


@pytest.mark.parametrize("use_ema", [False, True])
def test_the_better_of_a_lightning_checkpoint(
    tiny: Build, target: MobileMamba, equal: Callable, use_ema: bool, tmp_path: Path
) -> None:
    raw = tiny()
    averaged = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in snapshot(raw).items()}
    torch.save(lightning(raw.state_dict(), averaged, use_ema=use_ema), tmp_path / "best.ckpt")
    report = load_weights(target, tmp_path / "best.ckpt")
    assert report.format == ("mobilemamba, EMA weights" if use_ema else "mobilemamba")
    assert equal(target, averaged if use_ema else raw.state_dict())
    load_weights(target, tmp_path / "best.ckpt", ema=not use_ema)
    assert equal(target, raw.state_dict() if use_ema else averaged)


def lightning(raw: State, averaged: State, **entries: Any) -> dict[str, Any]:
    state = {f"model.{name}": t for name, t in raw.items()} | {f"ema.module.{name}": t for name, t in averaged.items()}
    return {"pytorch-lightning_version": "2.6.6", "epoch": 3, "state_dict": state, **entries}


# Writing


def card_of(model: MobileMamba, **entries: Any) -> ModelCard:
    preprocessing = Preprocessing((96, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9)
    arch = {"embed_dims": (32, 48, 64), "depths": (1, 1, 1)}
    return ModelCard("mobilemamba_s6", preprocessing, model.num_classes, arch=arch, **entries)


def test_saved_weights_load_again(source: MobileMamba, target: MobileMamba, equal: Callable, tmp_path: Path) -> None:
    path, card = tmp_path / "weights.safetensors", card_of(source, class_names=tuple("abcdefg"), data="seven letters")
    path.write_text("an older file")
    save_weights(source, path, card)
    assert load_weights(target, path, verbose=False).complete
    assert equal(target, source.state_dict())
    assert read_card(path) == card
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"  # without which other libraries refuse the file
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file stays
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it


def test_any_layout_and_shared_tensors_are_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 5), nn.Linear(5, 5)).to(memory_format=torch.channels_last)
    model[2].weight = model[1].weight
    save_weights(model, tmp_path / "weights.safetensors")
    written = load_file(tmp_path / "weights.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in model.state_dict().items())
    assert read_card(tmp_path / "weights.safetensors") is None


def test_a_missing_folder_is_named(source: MobileMamba, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot write .*nowhere"):
        save_weights(source, tmp_path / "nowhere" / "weights.safetensors")


# Converting


@pytest.mark.parametrize("num_classes", [1000, 3, 0])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_convert(
    trained: Build, equal: Callable, near: Callable, tmp_path: Path, num_classes: int, fused: bool
) -> None:
    model = trained("mobilemamba_t2", num_classes=num_classes)
    state = fuse_norms(model).state_dict() if fused else ours_to_release(model.state_dict())
    torch.save({"net": state}, tmp_path / "release.pth")
    target = tmp_path / "ours.safetensors"
    report = convert(tmp_path / "release.pth", target, "mobilemamba_t2")
    assert report.complete
    converted = load_file(target)
    assert converted.keys() == model.state_dict().keys()
    card = read_card(target)
    assert card == ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), num_classes)
    if not fused:
        assert equal(model, converted)
    again, card_again = load_network(target)
    assert card_again == card
    assert near(model, again)


def test_convert_takes_a_checkpoints_card_along(
    tiny: Build, equal: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tiny(distilled=True)
    card = card_of(model, distilled=True, class_names=tuple("abcdefg"))
    entries = {"use_ema": True, "model_card": card.as_dict()}
    torch.save(lightning(tiny(distilled=True).state_dict(), model.state_dict(), **entries), tmp_path / "best.ckpt")
    report = convert(tmp_path / "best.ckpt", tmp_path / "best.safetensors", verbose=False)
    assert report.format == "mobilemamba, EMA weights"
    assert not capsys.readouterr().out
    assert read_card(tmp_path / "best.safetensors") == card
    assert equal(model, load_file(tmp_path / "best.safetensors"))


def test_convert_any_timm_model(equal: Callable, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "weights.safetensors", "test_resnet")
    network, card = load_network(tmp_path / "weights.safetensors")
    assert equal(network, model.state_dict())
    assert card == ModelCard("test_resnet", Preprocessing.of_model("test_resnet"), 5)


@pytest.mark.parametrize(
    ("target", "model", "message"),
    [
        ("ours.pth", "mobilemamba_t2", "ends in .safetensors"),
        ("ours.safetensors", "mobilemamba_s6", "wrong shape"),
        ("ours.safetensors", "mobilemamba_x9", "'mobilemamba_x9': expected one of: mobilemamba_t2,"),
        ("ours.safetensors", None, "release.pth does not say which network it is of; give --model"),
        ("nowhere/ours.safetensors", "mobilemamba_t2", "cannot write"),
    ],
    ids=["suffix", "another-model", "unknown-model", "no-model", "no-folder"],
)
def test_convert_refuses(trained: Build, tmp_path: Path, target: str, model: str | None, message: str) -> None:
    torch.save(ours_to_release(trained("mobilemamba_t2").state_dict()), tmp_path / "release.pth")
    with pytest.raises(MobileMambaError, match=message):
        convert(tmp_path / "release.pth", tmp_path / target, model)
    assert [p.name for p in tmp_path.iterdir()] == ["release.pth"]


# The network of a file


@pytest.mark.parametrize("choices", [{}, {"distilled": True}, {"num_classes": 3}, {"num_classes": 0}], ids=str)
@pytest.mark.parametrize("form", ["ours", "release", "fused"])
def test_the_network_is_told_by_name_and_tensors(
    trained: Build, near: Callable, tmp_path: Path, choices: dict[str, Any], form: str
) -> None:
    model = trained("mobilemamba_t2", **choices)
    network = fuse_norms(model) if form == "fused" else model
    state = ours_to_release(network.state_dict()) if form == "release" else network.state_dict()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    loaded, card = load_network(tmp_path / "weights.pth", "mobilemamba_t2", verbose=False)
    preprocessing = Preprocessing.of_model("mobilemamba_t2")
    assert card == ModelCard(
        "mobilemamba_t2", preprocessing, model.num_classes, distilled=choices.get("distilled", False)
    )
    assert not loaded.training
    assert near(model, loaded)


def test_the_network_is_told_by_the_card(source: MobileMamba, equal: Callable, tmp_path: Path) -> None:
    card = card_of(source)
    save_weights(source, tmp_path / "weights.safetensors", card)
    for name in (None, "mobilemamba_s6"):
        network, found = load_network(tmp_path / "weights.safetensors", name, verbose=False)
        assert found == card
        assert equal(network, source.state_dict())
    with pytest.raises(ConfigError, match=r"is of a mobilemamba_s6, and the model named is mobilemamba_t2"):
        load_network(tmp_path / "weights.safetensors", "mobilemamba_t2")


def test_pictures_of_other_channels(tiny: Build, equal: Callable, tmp_path: Path) -> None:
    model = tiny(in_chans=1)
    card = ModelCard(
        "mobilemamba_s6",
        Preprocessing((28, 28), (0.3,), (0.4,)),
        7,
        in_chans=1,
        arch={"embed_dims": (32, 48, 64), "depths": (1, 1, 1)},
    )
    save_weights(model, tmp_path / "weights.safetensors", card)
    assert equal(load_network(tmp_path / "weights.safetensors")[0], model.state_dict())


def test_loading_leaves_the_random_state(source: MobileMamba, tmp_path: Path) -> None:
    save_weights(source, tmp_path / "weights.safetensors", card_of(source))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_network(tmp_path / "weights.safetensors")
    load_network(tmp_path / "weights.pth", "test_resnet")
    assert torch.equal(torch.rand(3), expected)


def test_a_file_by_order_gives_its_network(near: Callable, tmp_path: Path) -> None:
    model = timm.create_model("test_efficientnet", num_classes=11).eval()
    torch.save({f"layer.{i}": t for i, t in enumerate(model.state_dict().values())}, tmp_path / "weights.pth")
    network, card = load_network(tmp_path / "weights.pth", "test_efficientnet")
    assert card.num_classes == 11
    assert near(model, network)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("absent.pth", None, "no weights at"),
        ("absent.safetensors", "mobilemamba_s6", "no weights at"),
        ("numbers.pth", None, "numbers.pth .*no tensors"),
        ("plain.pth", None, "plain.pth does not say which network it is of; give --model"),
        ("plain.pth", "mobilemamba_y1", "model name 'mobilemamba_y1': expected"),
        ("plain.pth", "test_resnet", "holds no ResNet"),
        ("plain.safetensors", None, "plain.safetensors does not say"),
        ("half.safetensors", None, "1 missing"),
    ],
)
def test_files_without_a_network(
    source: MobileMamba, tmp_path: Path, name: str, model: str | None, message: str
) -> None:
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    save_weights(source, tmp_path / "plain.safetensors")
    save_weights(source, tmp_path / "half.safetensors", card_of(source))
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        metadata = file.metadata()
    state = load_file(tmp_path / "half.safetensors")
    del state["head.linear.bias"]
    save_file(state, tmp_path / "half.safetensors", metadata)
    with pytest.raises(MobileMambaError, match=message) as error:
        load_network(tmp_path / name, model)
    assert "\n" not in str(error.value)


def test_weights_that_hold_nan_are_refused(source: MobileMamba, target: MobileMamba, equal: Callable) -> None:
    state = {name: value.clone() for name, value in source.state_dict().items()}
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].view(-1)[-1] = torch.nan
    before = snapshot(target)
    with pytest.raises(WeightsError, match=f"1 of its tensors hold NaN, {name} for one"):
        load_weights(target, state, verbose=False)
    assert equal(target, before)
