"""Segmenters and detectors answer in other runtimes as they do in PyTorch."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mobilemamba.data import FashionObjects, FashionScenes
from mobilemamba.dense.candidates import Candidates, RuntimeDetector, as_candidates
from mobilemamba.dense.detection_predictor import RESULTS_FILE
from mobilemamba.dense.single_stage import SingleStageDetector
from mobilemamba.errors import ConfigError
from mobilemamba.export import FORMATS
from mobilemamba.export.calibration import read_calibration
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, load_network, save_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.predictor import predictor_of
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba_command import main
from tests.export.conftest import awaken

ARCH = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))  # wide enough to find several objects
HOW = Preprocessing((64, 96), FashionScenes.mean, FashionScenes.std, "bilinear", upright=True)
DATA = {"detection": FashionObjects, "segmentation": FashionScenes}
CARDS = {
    "ssdlite": ("detection", replace(HOW, img_size=(64, 64), resize="stretch")),
    "retinanet": ("detection", replace(HOW, img_size=(64, 90), resize="fit")),
    "mask_rcnn": ("detection", replace(HOW, img_size=(64, 90), resize="fit")),
    "semantic_fpn": ("segmentation", replace(HOW, img_size=(64, 64))),
}


def card_of(head: str, backbone: str = "") -> ModelCard:
    """By default, an ssdlite stands on a MobileMamba, which is long to follow, and every other head on a ResNet."""
    backbone = backbone or ("mobilemamba_t2" if head == "ssdlite" else "test_resnet")
    task, how = CARDS[head]
    names = DATA[task].class_names
    options = {"class_names": names, "task": task, "head": head, "head_options": {"head_dim": 8}}
    if backbone == "mobilemamba_t2":
        options["arch"] = ARCH.given()
    return ModelCard(backbone, how, len(names), **options)


def network_of(head: str, backbone: str = "") -> nn.Module:
    torch.manual_seed(0)
    network = awaken(build_network(card_of(head, backbone)))
    for module in network.head.modules() if head in ("ssdlite", "retinanet") else ():
        if isinstance(module, nn.Conv2d):  # which begin where nothing is found
            nn.init.kaiming_normal_(module.weight)
    for classifier in network.get_classifier():
        classifier.bias.data.fill_(-1)
    return network


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height).normal(120, 50, (height // 8, width // 8, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def answer(network: nn.Module, card: ModelCard, of: Image.Image) -> dict[str, Any]:
    predictor = predictor_of(network, card, torch.device("cpu"))
    return predictor.rows(predictor.forward(predictor.prepare(of)[None]), [(of.height, of.width)])[0]


def assert_same_objects(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(expected["objects"]) > 3
    assert [entry["name"] for entry in found["objects"]] == [entry["name"] for entry in expected["objects"]]
    for ours, theirs in zip(found["objects"], expected["objects"], strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["box"] == pytest.approx(theirs["box"], abs=0.05)


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[str, str], Path]:
    def export(head: str, suffix: str) -> Path:
        save_weights(network_of(head), tmp_path / "w.safetensors", card_of(head))
        main(["export", str(tmp_path / "w.safetensors"), str(tmp_path / f"x{suffix}")])
        return tmp_path / f"x{suffix}"

    return export


VALIDATE = "--data.num_workers 0 --data.batch_size 4 --trainer.limit_val_batches 1 --trainer.logger false"


def scores(weights: Path, data: type, size: int) -> dict[str, float]:
    """What ``validate`` finds on four pictures."""
    options = f"--data {data.__name__} --data.img_size {size} --trainer.accelerator cpu {VALIDATE}".split()
    found = main(["validate", "--weights", str(weights), *options]).trainer.callback_metrics
    return {name: float(value) for name, value in found.items() if "fused" not in name}


@pytest.mark.parametrize(
    ("head", "suffix", "size"),
    [("ssdlite", ".onnx", (150, 100)), ("semantic_fpn", ".xml", (120, 120))],
)
def test_a_file_answers_as_the_weights_do(
    exported: Callable[[str, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    head: str,
    suffix: str,
    size: tuple[int, int],
) -> None:
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino"}[suffix])
    pytest.importorskip("onnxscript")
    path = exported(head, suffix)
    of_what = "of the largest logit" if head == "semantic_fpn" else "of a picture's side or a probability of 1"
    assert f" {of_what}, on batches of 1, 2, 5\n" in capsys.readouterr().out
    (tmp_path / "pictures").mkdir()
    picture(*size).save(tmp_path / "pictures" / "1.png")
    rows = []
    for weights in (path, tmp_path / "w.safetensors"):
        out = tmp_path / weights.suffix[1:]
        main(["predict", str(tmp_path / "pictures"), "--weights", str(weights), "--output", str(out)])
        rows.append(answer(*load_network(weights, verbose=False), picture(*size)))
    data = DATA[CARDS[head][0]]
    ours, theirs = (scores(weights, data, 64) for weights in (path, tmp_path / "w.safetensors"))
    assert ours == pytest.approx(theirs, abs=1e-2, nan_ok=True)
    assert theirs["val/map" if head == "ssdlite" else "val/miou"] > 0.1
    drawn = [np.asarray(Image.open(tmp_path / name / "0001.png")) for name in (suffix[1:], "safetensors")]
    assert (drawn[0] != drawn[1]).mean() < 1e-3, "but for edges that are rounded to another pixel"
    if "objects" in rows[0]:
        assert_same_objects(*rows)
        assert len(json.loads((out / RESULTS_FILE).read_text())) == len(rows[1]["objects"])
    else:
        np.testing.assert_array_equal(rows[0]["labels"], rows[1]["labels"])
        assert len(rows[0]["classes"]) > 1


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("ssdlite", r"probabilities are off by 0\.(\d+) at most, those of 0\.3 or more by 0\.\d+ on average"),
        ("semantic_fpn", r"(\d+)\.\d % of the pixels answered as by the original"),
    ],
)
def test_int8_is_fitted_by_pictures_and_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, said: str
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights, path, pictures = tmp_path / "w.safetensors", tmp_path / "x.onnx", tmp_path / "pictures"
    save_weights(network_of(head, "test_resnet"), weights, card_of(head, "test_resnet"))
    pictures.mkdir()
    for number, size in enumerate([(150, 100), (64, 64), (80, 160)]):
        picture(*size).save(pictures / f"{number}.png")
    options = ["--dtype", "int8", "--calibration", str(pictures), "--batch", "1"]  # of any number it takes much longer
    main(["export", str(weights), str(path), *options])
    found = re.search(rf"\non 3 pictures of the calibration: {said}\n", capsys.readouterr().out)
    assert found is not None
    assert float(f"0.{found[1]}") < 0.3 if head != "semantic_fpn" else float(found[1]) > 80
    original, quantized = (load_network(file, verbose=False) for file in (weights, path))
    rows = [answer(network, card, picture(64, 64)) for network, card in (original, quantized)]
    if head == "semantic_fpn":
        assert (np.asarray(rows[0]["labels"]) == np.asarray(rows[1]["labels"])).mean() > 0.8
    else:
        scores = [[entry["score"] for entry in row["objects"]][:3] for row in rows]
        assert scores[0] == pytest.approx(scores[1], abs=0.1)
        assert scores[0] != pytest.approx(scores[1], abs=1e-5), "quantised"


def test_pictures_of_a_calibration_stand_where_those_of_an_answer_do(tmp_path: Path) -> None:
    network, ours = in_runtime("retinanet", (64, 96))
    seen: list[np.ndarray] = []
    run = ours.run
    ours.run = lambda pictures: (seen.append(pictures), run(pictures))[1]
    for number, size in enumerate([(128, 192), (192, 128)]):
        picture(*size).save(tmp_path / f"{number}.png")
        answer(ours, card_of("retinanet"), picture(*size))
    pictures = read_calibration(tmp_path, card_of("retinanet"), network).pictures
    assert torch.equal(pictures, torch.from_numpy(np.concatenate(seen)))
    assert pictures.shape == (2, 3, 64, 96)


class Eager(RuntimeNetwork):
    """A network as a runtime would have it, of one size of pictures."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(lambda x: network(torch.from_numpy(x)).detach().numpy(), (None, 3, *size), "")


def in_runtime(head: str, size: tuple[int, int]) -> tuple[nn.Module, RuntimeDetector]:
    network = network_of(head)
    candidates = as_candidates(network)
    assert isinstance(candidates, Candidates)
    kept = json.dumps(candidates.rules(size, 3).__dict__)
    return network, RuntimeDetector(Eager(candidates, size), {"kept": kept})


@pytest.mark.parametrize("size", [(128, 192), (192, 128), (100, 100)])
def test_pictures_of_any_shape_find_room(size: tuple[int, int]) -> None:
    """An upright picture is smaller in a canvas that lies; what it shows is found where it is."""
    network, ours = in_runtime("retinanet", (64, 96))
    row = answer(ours, card_of("retinanet"), picture(*size))
    assert row["objects"]
    assert ours(torch.zeros(2, 3, *size)).shape == ours(torch.zeros(2, 3, 64, 96)).shape
    for entry in row["objects"]:
        left, top, right, bottom = entry["box"]
        assert -0.01 <= left < right <= size[1] + 0.01
        assert -0.01 <= top < bottom <= size[0] + 0.01
    if size == (128, 192):  # which fills it
        assert_same_objects(row, answer(network, card_of("retinanet"), picture(*size)))


def test_cells_beyond_a_picture_say_nothing() -> None:
    network, ours = in_runtime("retinanet", (64, 128))
    assert isinstance(network, SingleStageDetector)
    images, run = torch.randn(1, 3, 64, 60), ours.run
    grids = [(x.shape[-2], x.shape[-1]) for x in network.levels(torch.zeros(1, 3, 64, 128))]
    inside = network.anchors.within(grids, (64, 64), torch.device("cpu")).numpy()
    for sure, found in ((~inside, False), (inside, True)):

        def answers(pictures: np.ndarray, sure: np.ndarray = sure) -> np.ndarray:
            candidates = run(pictures)
            candidates[..., 4:] = sure[:, None]
            return candidates

        ours.run = answers
        assert (len(ours.detect(images)[0]["boxes"]) > 0) == found


def test_of_padded_pictures_their_own_part_is_seen() -> None:
    network, ours = in_runtime("retinanet", (64, 64))
    images = torch.randn(2, 3, 64, 128)
    images[0, :, :, 64:] = 7
    found = ours.detect(images, torch.tensor([[64, 64], [64, 128]]))
    (expected,) = network.detect(images[:1, :, :, :64])
    for name, value in expected.items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-3)
    assert found[1]["boxes"][:, 2].max() > 64


@pytest.mark.parametrize(
    ("head", "suffix", "options"),
    [("ssdlite", ".onnx", ("--batch", "2")), ("retinanet", ".xml", ())],
)
def test_a_file_chooses_the_objects_itself(tmp_path: Path, head: str, suffix: str, options: tuple[str, ...]) -> None:
    for package in ("onnxscript", {".onnx": "onnxruntime", ".xml": "openvino"}[suffix]):
        pytest.importorskip(package)
    network, path = network_of(head, "test_resnet"), tmp_path / f"x{suffix}"
    save_weights(network, tmp_path / "w.safetensors", card_of(head, "test_resnet"))
    main(["export", str(tmp_path / "w.safetensors"), str(path), "--nms", *options])
    x = 2 * torch.randn(2, 3, 64, 64 if head == "ssdlite" else 96)
    (objects,) = FORMATS[suffix].load_objects(path)(x)[1:]
    (expected,) = network.detect(x)[1:]
    assert objects.shape == (network.max_boxes, 6)
    assert len(expected["scores"]) > 3
    theirs = torch.cat([expected["boxes"], expected["scores"][:, None], expected["labels"][:, None]], 1)
    ours = objects * torch.tensor([x.shape[3], x.shape[2]] * 2 + [1, 1])
    torch.testing.assert_close(ours[: len(theirs)], theirs, rtol=1e-4, atol=1e-3)
    assert not ours[len(theirs) :].any()
    files = path, tmp_path / "w.safetensors"
    assert_same_objects(*(answer(*load_network(file, verbose=False), picture(128, 2 * x.shape[3])) for file in files))


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("mask_rcnn", (), "MaskRCNN reads the regions that it has just found, .*; export a retinanet or an ssdlite"),
        ("ssdlite", ("--size", "dynamic"), "--size dynamic: a network on a mobilemamba backbone is laid out for"),
        ("retinanet", ("--size", "dynamic"), "--size dynamic: a detector's boxes are laid out for one size of pictur"),
        ("ssdlite", ("--softmax",), "--softmax: not for detectors, which answer with probabilities; leave it out"),
        ("semantic_fpn", ("--nms",), "--nms: only detectors answer with boxes; leave it out"),
        (
            "ssdlite",
            ("--nms", "--batch", "dynamic"),
            "--nms: each picture.s boxes are chosen apart; give the number",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, head: str, options: tuple[str, ...], message: str) -> None:
    save_weights(network_of(head), tmp_path / "w.safetensors", card_of(head))
    with pytest.raises(ConfigError, match=message) as caught:
        main(["export", str(tmp_path / "w.safetensors"), str(tmp_path / "x.onnx"), *options])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
