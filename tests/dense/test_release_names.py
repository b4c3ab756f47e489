"""The authors' segmentation checkpoints find their places by name, each tensor one, whatever they are wrapped in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilemamba.dense import (
    DETECTION_HEADS,
    SEGMENTATION_HEADS,
    Detector,
    Segmenter,
    create_detector,
    create_segmenter,
)
from mobilemamba.dense.release_cards import card_of_release
from mobilemamba.dense.release_names import release_to_ours
from mobilemamba.errors import WeightsError
from mobilemamba.models import ModelCard, Preprocessing, fuse_norms, load_network, load_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba_command import main
from tests.states import assert_same_state

Tiny = Callable[..., Segmenter]


@pytest.mark.parametrize("head", [*SEGMENTATION_HEADS, *DETECTION_HEADS])
def test_names_and_shapes_are_the_releases(parity: Callable[[str], Any], head: str) -> None:
    if head in DETECTION_HEADS:
        network: Segmenter | Detector = create_detector(head, "mobilemamba_b1")
    else:
        network = create_segmenter(head, "mobilemamba_b4", 150, auxiliary=head != "semantic_fpn")
    own, shapes = network.state_dict(), parity(f"shapes_{'ssdlite_320' if head == 'ssdlite' else head}.json")
    assert {name: list(tensor.shape) for name, tensor in network.to_release(own).items()} == shapes
    back = network.from_release({name: torch.zeros(shape) for name, shape in shapes.items()})
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
    assert_same_state(target, source)


def test_another_heads_checkpoint_is_refused(tiny: Tiny) -> None:
    source = tiny("pspnet")
    with pytest.raises(WeightsError, match=r"missing \(head.image_pool.1.conv.weight"):
        load_weights(tiny("deeplabv3"), source.to_release(source.state_dict()), verbose=False)


def test_an_unknown_name_stays(tiny: Tiny) -> None:
    assert release_to_ours({"decode_head.new.weight": torch.zeros(1)}, 2).keys() == {"head.new.weight"}


@pytest.mark.parametrize(
    ("head", "classes", "size"),
    [("mask_rcnn", 80, (800, 1333)), ("retinanet", 80, (800, 1333)), ("ssdlite", 80, (320, 320))]
    + [(head, 150, (512, 512)) for head in SEGMENTATION_HEADS],
)
def test_a_file_is_told_by_its_tensors(
    parity: Callable[[str], Any], head: str, classes: int, size: tuple[int, int]
) -> None:
    shapes = parity(f"shapes_{'ssdlite_512' if head == 'ssdlite' else head}.json")
    card = card_of_release({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "resnet18")
    assert card is not None
    assert (card.head, card.num_classes, card.preprocessing.img_size, card.model) == (head, classes, size, "resnet18")
    assert not card.preprocessing.antialias
    assert card.task == ("detection" if head in DETECTION_HEADS else "segmentation")
    assert card.head_options == ({"auxiliary": True} if head in ("deeplabv3", "pspnet") else {})
    fitted = "stretch" if head == "ssdlite" else "fit"
    assert card.preprocessing.resize == (fitted if head in DETECTION_HEADS else None)
    assert card.class_names[:: classes - 1] == (("person", "toothbrush") if classes == 80 else ("wall", "flag"))


@pytest.mark.parametrize(("classes", "known"), [(80, True), (79, False)])
def test_a_detector_of_coco_s_classes_answers_in_coco_s_ids(classes: int, known: bool) -> None:
    state = {"bbox_head.retina_cls.weight": torch.empty(0), "bbox_head.retina_cls.bias": torch.empty(9 * classes)}
    card = card_of_release(state, "resnet18")
    assert card is not None
    named = dict(zip(card.category_ids, card.class_names, strict=True))
    expected = {1: "person", 13: "stop sign", 90: "toothbrush"} if known else {}
    assert {number: named[number] for number in (1, 12, 13, 90) if number in named} == expected


@pytest.mark.parametrize("head", ["ssdlite", "pspnet"])
def test_the_authors_file_becomes_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str) -> None:
    source = (
        create_detector(head, "mobilemamba_t2", 3) if head == "ssdlite" else create_segmenter(head, "mobilemamba_t2", 3)
    )
    torch.save({"meta": {"iter": 1}, "state_dict": source.to_release(source.state_dict())}, tmp_path / "epoch.pth")
    given = [str(tmp_path / "epoch.pth"), str(tmp_path / "ours.safetensors"), "--model", "mobilemamba_t2"]
    main(["convert", *given])
    assert "release: " in capsys.readouterr().out
    network, card = load_network(tmp_path / "ours.safetensors", verbose=False)
    assert (card.head, card.num_classes) == (head, 3)
    assert_same_state(network, source)


def test_a_detectors_checkpoint_loads_by_name(tiny_detector: Callable[..., Detector]) -> None:
    sources = {head: tiny_detector(head) for head in DETECTION_HEADS}
    for source in sources.values():
        target = copy.deepcopy(source)
        for parameter in target.parameters():
            parameter.data.zero_()
        report = load_weights(target, {"state_dict": source.to_release(source.state_dict())}, verbose=False)
        assert (report.complete, report.format) == (True, "release")
        assert_same_state(target, source)
        assert load_weights(target, fuse_norms(source).state_dict(), verbose=False).complete
    other = sources["retinanet"].to_release(sources["retinanet"].state_dict())
    with pytest.raises(WeightsError, match=r"missing \(neck.extras"):
        load_weights(sources["ssdlite"], other, verbose=False)


def test_a_card_that_cannot_be() -> None:
    how = Preprocessing((32, 32), (0.5,), (0.5,))
    for head, options, message in (
        ("ssdlite", {"window": 3}, "head_options has 'window': expected head_dim, prune"),
        ("ssdlite", {"head_dim": "wide"}, "head_options has 'head_dim' = 'wide': expected int"),
        ("ssd", {}, "the weights describe a network that cannot be built: head 'ssd'"),
    ):
        card = ModelCard("mobilemamba_t2", how, 3, task="detection", head=head, head_options=options)
        with pytest.raises(WeightsError, match=message):
            build_network(card)
