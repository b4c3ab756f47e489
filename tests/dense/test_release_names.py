"""The authors' segmentation checkpoints find their places by name, each tensor one, whatever they are wrapped in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mobilemamba.dense import SEGMENTATION_HEADS, Segmenter, create_segmenter
from mobilemamba.dense.release_names import release_to_ours
from mobilemamba.errors import WeightsError
from mobilemamba.models import load_weights

Tiny = Callable[..., Segmenter]


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_names_and_shapes_are_the_releases(parity: Callable[[str], Any], head: str) -> None:
    segmenter = create_segmenter(head, "mobilemamba_b4", 150, auxiliary=head != "semantic_fpn")
    own, shapes = segmenter.state_dict(), parity(f"shapes_{head}.json")
    assert {name: list(tensor.shape) for name, tensor in segmenter.to_release(own).items()} == shapes
    back = segmenter.from_release({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert {name: tensor.shape for name, tensor in back.items()} == {n: tensor.shape for n, tensor in own.items()}


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_a_wrapped_checkpoint_loads_by_name(tiny: Tiny, head: str) -> None:
    source, target = tiny(head, auxiliary=True), tiny(head, auxiliary=True)
    for parameter in target.parameters():
        parameter.data.zero_()
    wrapped = {"meta": {"iter": 80000}, "state_dict": source.to_release(source.state_dict())}
    report = load_weights(target, wrapped, verbose=False)
    assert report.complete
    assert report.format == "release"
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())


def test_another_heads_checkpoint_is_refused(tiny: Tiny) -> None:
    source = tiny("pspnet")
    with pytest.raises(WeightsError, match=r"missing \(head.image_pool.1.conv.weight"):
        load_weights(tiny("deeplabv3"), source.to_release(source.state_dict()), verbose=False)


def test_an_unknown_name_stays(tiny: Tiny) -> None:
    assert release_to_ours({"decode_head.new.weight": torch.zeros(1)}, 2).keys() == {"head.new.weight"}
