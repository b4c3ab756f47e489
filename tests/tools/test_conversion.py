"""What ``convert`` writes."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from mobilemamba.errors import ConfigError, MobileMambaError, WeightsError
from mobilemamba.models import read_card, save_weights
from mobilemamba.models.release_names import ours_to_release


def test_convert_writes_our_format(printed, tmp_path: Path) -> None:
    model = timm.create_model("mobilemamba_t2", num_classes=3)
    torch.save({"net": ours_to_release(model.state_dict())}, tmp_path / "release.pth")
    target = tmp_path / "ours.safetensors"
    out = printed("convert", str(tmp_path / "release.pth"), str(target), "--model", "mobilemamba_t2")
    assert re.search(r"release: \d+ tensors loaded", out)
    assert f"wrote {target}" in out.replace("\n", " ")
    converted = load_file(target)
    assert all(torch.equal(converted[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        ("mobilemamba_x9", "release.pth", "mobilemamba_x9.*expected .*one of: mobilemamba_t2"),
        ("mobilemamba_t2", "absent.pth", "no weights at .*absent.pth"),
        ("mobilemamba_t2", "release.pth", "cannot read .*release.pth"),
    ],
    ids=["unknown-model", "absent", "garbage"],
)
def test_convert_errors(printed, tmp_path: Path, model: str, source: str, message: str) -> None:
    (tmp_path / "release.pth").write_text("no weights")
    with pytest.raises(MobileMambaError, match=message):
        printed("convert", str(tmp_path / source), str(tmp_path / "ours.safetensors"), "--model", model)


def test_the_model_has_to_be_named_unless_the_file_says_it(printed, tmp_path: Path) -> None:
    model = timm.create_model("mobilemamba_t2", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ConfigError, match=r"plain.pth does not say which .*; give --model, e.g. mobilemamba_s6"):
        printed("convert", str(tmp_path / "plain.pth"), str(tmp_path / "a.safetensors"))
    printed("convert", str(tmp_path / "plain.pth"), str(tmp_path / "a.safetensors"), "--model", "mobilemamba_t2")
    printed("convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    card = read_card(tmp_path / "b.safetensors")
    assert (card.model, card.num_classes, card.preprocessing.img_size) == ("mobilemamba_t2", 3, (192, 192))


def test_the_source_is_not_rewritten(printed, tmp_path: Path) -> None:
    save_weights(timm.create_model("mobilemamba_t2", num_classes=3), tmp_path / "a.safetensors")
    before, model = (tmp_path / "a.safetensors").read_bytes(), ("--model", "mobilemamba_t2")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    for target in (tmp_path / "a.safetensors", tmp_path / "." / "link.safetensors"):
        with pytest.raises(WeightsError, match="it is the source"):
            printed("convert", str(tmp_path / "a.safetensors"), str(target), *model)
    assert (tmp_path / "a.safetensors").read_bytes() == before
