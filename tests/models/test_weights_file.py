"""Files of every kind give one network's tensors, or one line that says why not."""

import argparse
import errno
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mobilemamba.analysis.benchmark.cases import card_of
from mobilemamba.errors import WeightsError
from mobilemamba.models import read_card
from mobilemamba.models.weights_file import find_tensors, read_checkpoint

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return timm.create_model("test_resnet").state_dict()


def prefixed(state: State, *prefixes: str) -> State:
    return {f"{prefix}{name}": tensor + i for i, prefix in enumerate(prefixes) for name, tensor in state.items()}


WRAPS: list[tuple[Callable[[State], Any], bool]] = [  # and whether they say that the weights are averaged
    (lambda state: state, False),
    (lambda state: {"net": state, "epoch": 3}, False),
    (lambda state: {"state_dict": state, "lr": 0.1}, False),
    (lambda state: {"net": prefixed(state, "module.")}, False),
    (lambda state: prefixed(state, "ema."), True),
    (lambda state: prefixed(state, "module.ema."), True),
    (lambda state: {"ema": prefixed(state, "module.")}, True),
    (lambda state: {"state_dict_ema": state}, True),
    (lambda state: prefixed(state, "schema."), False),
    (lambda state: {"state_dict": prefixed(state, "model.") | {"loss.w": torch.ones(1)}}, False),
    (lambda state: prefixed(state, "backbone.0._orig_mod."), False),
]


@pytest.mark.parametrize(("wrap", "ema"), WRAPS, ids=range(len(WRAPS)))
def test_containers_and_prefixes(state: State, wrap: Callable, ema: bool) -> None:
    found = find_tensors(wrap(state), state.keys())
    assert found.state.keys() == state.keys()
    assert all(found.state[name] is tensor or torch.equal(found.state[name], tensor) for name, tensor in state.items())
    assert found.ema == ema


def test_most_names_may_be_unknown(state: State) -> None:
    """As where norms were folded, so that few names are as the network has them."""
    few = dict(list(state.items())[:6]) | {f"{name}_fused": tensor for name, tensor in state.items()}
    assert find_tensors(prefixed(few, "encoder."), state.keys()).state.keys() == few.keys()


def test_with_no_known_name_common_wrappers_come_off(state: State) -> None:
    strange = {f"x{i}": tensor for i, tensor in enumerate(state.values())}
    assert find_tensors({"state_dict": prefixed(strange, "module.model.")}, state.keys()).state.keys() == strange.keys()
    assert (
        find_tensors(prefixed(strange, "encoder."), state.keys()).state.keys() == prefixed(strange, "encoder.").keys()
    )


def test_blocks_of_another_network_are_not_several_networks() -> None:
    """A residual block has a ``conv1.weight`` inside, as the network has one outside."""
    state = timm.create_model("resnet18").state_dict()
    blocks = {name.replace("layer", "stage"): tensor for name, tensor in state.items() if name.startswith("layer")}
    assert find_tensors(blocks, state.keys()).state.keys() == blocks.keys()


def test_several_networks_in_one_are_refused(state: State) -> None:
    with pytest.raises(WeightsError, match=r"several networks \(\['ema\.', 'model\.'\]\)"):
        find_tensors(prefixed(state, "model.", "ema."), state.keys())


# A Lightning checkpoint of ours: the network, and its average beside it


def checkpoint(state: State, **entries: Any) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.6.6", "state_dict": prefixed(state, "model.", "ema.module."), **entries}


@pytest.mark.parametrize(
    ("entries", "ema", "taken"),
    [
        ({"use_ema": True}, None, True),
        ({"use_ema": False}, None, False),
        ({}, None, False),
        ({"use_ema": True}, False, False),
        ({"use_ema": False}, True, True),
    ],
)
def test_the_better_of_raw_and_averaged(state: State, entries: dict, ema: bool | None, taken: bool) -> None:
    found = find_tensors(checkpoint(state, **entries), state.keys(), ema=ema)
    assert found.ema == taken
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], tensor + taken) for name, tensor in state.items())


def test_averages_in_a_container_of_their_own(state: State) -> None:
    both = {"state_dict": state, "state_dict_ema": prefixed(state, "module.")}
    assert not find_tensors(both, state.keys()).ema
    assert find_tensors(both, state.keys(), ema=True).ema


@pytest.mark.parametrize(("ema", "message"), [(True, "no EMA weights"), (False, "only EMA weights")])
def test_a_kind_that_is_not_there(state: State, ema: bool, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        find_tensors(prefixed(state, "model." if ema else "ema."), state.keys(), ema=ema)


# Files


def test_a_files_order_is_kept_but_by_safetensors(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    pth, safetensors = (find_tensors(tmp_path / f"weights.{kind}", state.keys()) for kind in ("pth", "safetensors"))
    assert list(pth.state) == list(state)
    assert pth.ordered
    assert safetensors.state.keys() == state.keys()
    assert not safetensors.ordered


def test_the_arguments_that_timms_training_keeps_are_no_obstacle(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "last.pth.tar")
    assert find_tensors(tmp_path / "last.pth.tar", state.keys()).state.keys() == state.keys()


def write_garbage(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>" * 50)


def write_half(path: Path) -> None:
    torch.save({"patch_embed.0.conv.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


class Payload:
    """Code that a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return pytest.fail, ("a checkpoint ran code",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_garbage, "cannot read .*: it is no file of torch's, or a damaged one; expected a .safetensors file or"),
        (lambda path: path.write_text("hi\n"), "cannot read .*: it is no file of torch's, or a damaged one; expected"),
        (Path.touch, "cannot read"),
        (write_half, "cannot read"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds a list; expected a state dict"),
        (lambda path: torch.save({"net": Payload()}, path), "cannot read"),
        (lambda path: path.write_bytes(pickle.dumps({"net": Payload()}, protocol=2)), "cannot read"),
        (Path.mkdir, "is a folder; give"),
        (lambda path: None, "no weights at"),
    ],
    ids=["garbage", "text", "empty", "cut-off", "list", "code", "pickled-code", "folder", "absent"],
)
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_unusable_files(write: Callable, message: str, tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(WeightsError, match=message) as error:
        read_checkpoint(path, mmap=mmap)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("suffix", "why"), [(".pth", "it is no file of torch's"), (".safetensors", "it is empty;")])
def test_reasons_are_not_the_libraries_own(tmp_path: Path, suffix: str, why: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x.txt", "of no folder")
    else:
        path.touch()
    for read in (read_checkpoint, read_card):
        with pytest.raises(WeightsError, match=rf"cannot read .*{suffix}: {why}"):
            read(path)


def test_of_a_runs_folder_its_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(WeightsError, match=r"is a folder; give \S+best\.safetensors$"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match=r"is a folder; give \S+best\.safetensors$"):
        card_of(str(tmp_path))


def test_unusable_safetensors(tmp_path: Path) -> None:
    write_garbage(tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="cannot read"):
        read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["own.pth", "own.safetensors"])
def test_a_file_that_may_not_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by a stand-in, as an administrator may read everything."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    path = tmp_path / name
    path.touch()
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("mobilemamba.models.card.safe_open", refuse)
    for read in (read_checkpoint, read_card) if path.suffix == ".safetensors" else (read_checkpoint,):
        with pytest.raises(WeightsError, match=rf"cannot read .*{name}: Permission denied; expected"):
            read(path)


def test_the_log_that_mmengines_training_keeps_is_passed_over(shared: Path) -> None:
    path = shared / "parity" / "dense" / "wrapped_tiny.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the optional test data")
    found = find_tensors(path, ["backbone.weight", "neck.weight"])
    assert list(found.state)[:3] == ["backbone.weight", "backbone.bias", "neck.weight"]
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.state.values())


def test_the_message_about_code_names_it_and_gives_no_dangerous_advice(tmp_path: Path) -> None:
    torch.save({"net": torch.nn.ReLU()}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"it holds more than tensors \(torch.nn.modules.activation.ReLU\)") as error:
        read_checkpoint(tmp_path / "own.pth")
    assert "weights_only" not in str(error.value)


def test_a_few_of_the_names_elsewhere_are_no_second_network() -> None:
    names = [f"layer{i}.weight" for i in range(6)]
    state = {f"model.{name}": torch.ones(1) for name in names} | {f"head.{name}": torch.zeros(1) for name in names[:3]}
    assert find_tensors(state, names).state == dict.fromkeys(names, 1)


def test_the_other_kind_of_weights_is_not_taken_because_of_an_empty_container() -> None:
    source = {"state_dict": {"layer.weight": torch.ones(1)}, "ema": {"decay": torch.tensor(0.9)}}
    with pytest.raises(WeightsError, match="holds no EMA weights"):
        find_tensors(source, ["layer.weight"], ema=True)
