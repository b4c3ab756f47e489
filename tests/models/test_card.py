"""What a weights file says of its network survives every file format, and is refused in one line if it is broken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import VARIANTS, ArchOverrides, ModelCard, Preprocessing, create_model, read_card
from mobilemamba.models.card import CARD_KEY

CARD = ModelCard(
    "mobilemamba_s6",
    Preprocessing((96, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9),
    num_classes=2,
    arch={"depths": (1, 1, 1), "kernel_sizes": ((3, 5), 5, 3)},
    class_names=("ein Täßchen", "二"),
    data="two cups (8,000 + 2,000 pictures)",
)

finite = st.floats(0.01, 1)
cards = st.builds(
    ModelCard,
    st.sampled_from(list(VARIANTS)),
    st.builds(
        Preprocessing,
        st.tuples(*[st.integers(1, 999)] * 2),
        st.tuples(*[finite] * 3),
        st.tuples(*[finite] * 3),
        st.sampled_from(["bilinear", "bicubic"]),
        finite,
        antialias=st.booleans(),
        upright=st.none() | st.booleans(),
        resize=st.none() | st.sampled_from(["fit", "stretch"]),
    ),
    num_classes=st.integers(0, 9999),
    in_chans=st.integers(1, 9),
    arch=st.fixed_dictionaries(
        {},
        optional={
            "depths": st.tuples(*[st.integers(1, 4)] * 3),
            "global_ratio": st.tuples(*[st.floats(0.1, 0.3)] * 3),
            "wavelet": st.sampled_from(["db1", "none"]),
        },
    ),
    distilled=st.booleans(),
    class_names=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    data=st.text(max_size=9),
)


@given(cards)
def test_json_keeps_all(card: ModelCard) -> None:
    assert ModelCard.from_dict(json.loads(json.dumps(card.as_dict()))) == card


def test_older_cards_do_not_say_whether_pictures_are_turned() -> None:
    content = CARD.as_dict()
    del content["preprocessing"]["upright"]
    assert ModelCard.from_dict(content) == CARD
    assert CARD.preprocessing.upright is None


def write(path: Path, content: Any) -> None:
    if path.suffix == ".safetensors":
        text = content if isinstance(content, str) else json.dumps(content)
        save_file({"x": torch.zeros(1)}, path, {CARD_KEY: text})
    else:
        torch.save({CARD_KEY: content, "state_dict": {"x": torch.zeros(1)}}, path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
def test_files_keep_all(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, CARD.as_dict())
    assert read_card(tmp_path / name) == CARD


def test_a_card_builds_its_network() -> None:
    assert CARD.overrides == ArchOverrides(depths=[1, 1, 1], kernel_sizes=[[3, 5], 5, 3])
    model = create_model(CARD.model, CARD.overrides, CARD.num_classes)
    assert model.config.depths == (1, 1, 1)
    assert model.config.kernel_sizes == ((3, 5), 5, 3)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt", "weights.pth"])
def test_files_without_a_card(tmp_path: Path, name: str) -> None:
    if name.endswith(".safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    else:
        torch.save({"x": torch.zeros(1)}, tmp_path / name)
    assert read_card(tmp_path / name) is None


@pytest.mark.parametrize(
    "content",
    [
        {"model": "mobilemamba_s6"},
        {**CARD.as_dict(), "colour": "red"},
        {**CARD.as_dict(), "arch": {"gamma": 1}},
        {**CARD.as_dict(), "preprocessing": {"size": 3}},
        {**CARD.as_dict(), "preprocessing": None},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "mean": "grey"}},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "std": [0.1, 0, 0.1]}},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "mean": [0, 0], "std": [1, 1]}},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "crop_pct": 0}},
        {**CARD.as_dict(), "category_ids": [1]},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "img_size": [0, 0]}},
        {**CARD.as_dict(), "preprocessing": {**CARD.as_dict()["preprocessing"], "interpolation": "magic"}},
        {**CARD.as_dict(), "model": 5},
        {**CARD.as_dict(), "model": "mobilemamba_z9"},
        {**CARD.as_dict(), "arch": {"depths": "deep"}},
        {**CARD.as_dict(), "class_names": 2},
        {**CARD.as_dict(), "class_names": "ab"},
        {**CARD.as_dict(), "class_names": [1, 2]},
        {**CARD.as_dict(), "num_classes": -2},
        {**CARD.as_dict(), "num_classes": "two"},
        {**CARD.as_dict(), "in_chans": None},
        ["a list"],
        {},
        "no json",
        3,
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
def test_broken_cards(tmp_path: Path, name: str, content: Any) -> None:
    write(tmp_path / name, content)
    with pytest.raises(WeightsError, match=rf"cannot read what .*{name} says of its network: ") as error:
        read_card(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.ckpt"])
@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\x00" * 100])
def test_broken_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="no weights at" if content is None else "cannot read"):
        read_card(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilemamba_t2", (192, "bicubic", 0.875, 0.485)),
        ("mobilemamba_b4", (512, "bicubic", 0.875, 0.485)),
        ("tresnet_v2_l", (224, "bilinear", 0.875, 0.0)),
        ("tf_efficientnet_lite0", (224, "bicubic", 0.875, 0.5)),
    ],
)
def test_preprocessing_of_known_models(name: str, expected: tuple) -> None:
    of = Preprocessing.of_model(name)
    assert (of.img_size[0], of.interpolation, of.crop_pct, of.mean[0]) == expected
    assert of.img_size[0] == of.img_size[1]
    assert len(of.mean) == len(of.std) == 3


def test_preprocessing_of_no_model() -> None:
    with pytest.raises(ConfigError, match="mobilemamba_z1"):
        Preprocessing.of_model("mobilemamba_z1")


def test_as_many_names_as_classes(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {**CARD.as_dict(), "num_classes": 3, "class_names": ["a"]})
    with pytest.raises(WeightsError, match="1 names for 3 classes"):
        read_card(tmp_path / "x.safetensors")
