"""Knowledge distillation (Hinton et al., 2015): a frozen teacher, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing, load_network
from mobilemamba.models.create import check_model_name


@dataclass
class Distillation:
    """Settings of distillation; except for the teacher, the defaults are those of the paper's models with a dagger.

    Their loss is that of the task plus 5 times the soft distillation loss; their teacher is ``tresnet_v2_l``.

    Attributes:
        teacher: Name of any timm model; by default the one named in the model card of ``weights``.
        weights: The teacher's checkpoint (.safetensors, .ckpt, .pth); by default timm's, which is downloaded.
        kind: Compare with the teacher's probabilities (``soft``) or with its most probable class (``hard``).
        weight: Weight of the distillation loss; that of the task's own loss is 1.
        tau: Temperature of the soft loss.
        img_size: Side in pixels of the teacher's input; by default the teacher's own.
        mean: Mean per channel of the teacher's input, for pictures in 0..1; by default the teacher's own.
        std: Standard deviation per channel, for pictures in 0..1; by default the teacher's own.
        interpolation: Interpolation if the student's pictures have another size.
        antialias: Apply a low-pass filter before scaling down. The paper's training did not, as torchvision 0.16 does
            not by default for tensors.

    Raises:
        ConfigError: If neither a teacher nor weights are given, or a value is out of range.
    """

    teacher: str | None = None
    weights: str | None = None
    kind: Literal["soft", "hard"] = "soft"
    weight: float = 5.0
    tau: float = 1.0
    img_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False

    def __post_init__(self) -> None:
        if self.teacher is None and self.weights is None:
            raise ConfigError(
                "distillation has no teacher; set distillation.weights to its checkpoint, or distillation.teacher to "
                "a timm model with pretrained weights, or distillation to null"
            )
        for name, choices in (("kind", ("soft", "hard")), ("interpolation", ("bicubic", "bilinear"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"distillation.{name}={getattr(self, name)!r}: expected {' or '.join(choices)}")
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"distillation.weight={self.weight}: expected 0 or more, e.g. 5")
        if not 0 < self.tau < float("inf"):
            raise ConfigError(f"distillation.tau={self.tau}: expected a temperature above 0, e.g. 1")
        if self.img_size is not None and self.img_size < 1:
            raise ConfigError(f"distillation.img_size={self.img_size}: expected 1 pixel or more, e.g. 224")
        if self.std is not None and not min(self.std, default=0) > 0:
            raise ConfigError(f"distillation.std={self.std}: expected one number above 0 for each channel")


class Teacher(nn.Module):
    """A frozen network with its own preprocessing of a student's batches.

    Maps the student's input (B, C, H, W), normalised for the student and possibly mixed or erased, to logits (B,
    classes) float32, under the caller's autocast and without gradients. It always stays in evaluation mode.
    """

    mean: Tensor
    std: Tensor
    student_mean: Tensor
    student_std: Tensor

    # timm.task's DistillationTeacher would only help with the normalisation: it does not resize, freeze, stay in
    # evaluation mode, load a checkpoint of ours or check its classes. Older versions of timm lack it.

    def __init__(
        self,
        config: Distillation,
        num_classes: int,
        student_mean: Sequence[float],
        student_std: Sequence[float],
        class_names: Sequence[str] = (),
    ) -> None:
        """Loads the teacher; does not change the random state.

        Args:
            config: The teacher and its preprocessing.
            num_classes: Number of classes of the student.
            student_mean: Mean per channel by which the student's pictures are normalised.
            student_std: Standard deviation per channel by which they are normalised.
            class_names: Names of the student's classes; empty if unknown.

        Raises:
            ConfigError: If there is no such teacher, its weights cannot be downloaded, or its classes, their order or
                its number of channels differ from the student's.
            WeightsError: If its checkpoint cannot be read or does not fit.
        """
        super().__init__()
        network, self.card = _load(config)
        own = self.card.preprocessing
        if self.card.num_classes != num_classes:
            raise ConfigError(
                f"the teacher {self.card.model} has {self.card.num_classes} classes and the network {num_classes}: "
                "choose a teacher for the same data set, by distillation.teacher and distillation.weights"
            )
        for there, here in zip(self.card.class_names, class_names, strict=False):  # either may be unknown
            if there != here:
                raise ConfigError(
                    f"the teacher {self.card.model} knows other classes, or in another order: {there!r} where the "
                    f"data have {here!r}; choose a teacher for the same data set by distillation.weights"
                )
        mean, std = config.mean or own.mean, config.std or own.std
        lengths = {len(values) for values in (mean, std, student_mean, student_std)}
        if lengths != {self.card.in_chans}:
            raise ConfigError(
                f"distillation.mean={mean}, distillation.std={std}, and a student of {len(student_mean)} channels: "
                f"the teacher {self.card.model} has {self.card.in_chans}, and all must agree"
            )
        self.size = own.img_size if config.img_size is None else (config.img_size, config.img_size)
        self.interpolation, self.antialias = config.interpolation, config.antialias
        statistics = {"mean": mean, "std": std, "student_mean": student_mean, "student_std": student_std}
        for name, values in statistics.items():
            self.register_buffer(name, torch.tensor(tuple(values)).view(1, -1, 1, 1), persistent=False)
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)  # faster convolutions
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(self.prepare(pictures)).float()

    def prepare(self, pictures: Tensor) -> Tensor:
        """Prepares the student's pictures for the teacher: back to colours in 0..1, scaled, then normalised anew."""
        x = pictures.to(self.mean.dtype) * self.student_std + self.student_mean
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=self.antialias)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode, whatever ``mode`` is."""
        return super().train(False)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: Literal["soft", "hard"] = "soft", tau: float = 1.0
) -> Tensor:
    """Returns the distance of a student from its teacher, averaged over the batch, in fp32 or better.

    ``soft``: ``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))``, summed over the classes, as the paper's
    models were trained. (DeiT's code also divides by the number of classes.) ``hard``: the cross entropy with the
    teacher's most probable class as the target.

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes); no gradient flows to them.
        kind: ``soft`` or ``hard``.
        tau: Temperature of the soft loss.
    """
    student, teacher = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student_logits, teacher_logits))
    teacher = teacher.detach()
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(-1))
    return tau**2 * F.kl_div(
        F.log_softmax(student / tau, -1), F.log_softmax(teacher / tau, -1), reduction="batchmean", log_target=True
    )


def _load(config: Distillation) -> tuple[nn.Module, ModelCard]:
    if config.weights is not None:
        return load_network(config.weights, config.teacher, option="model.distillation.teacher")
    assert config.teacher is not None
    check_model_name(config.teacher)
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(config.teacher, pretrained=True)
    except Exception as error:  # the errors of the hub's client have no common base class
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"no pretrained weights for distillation.teacher={config.teacher} ({reason}); set distillation.weights to "
            "a file of them"
        ) from error
    classes = network.num_classes
    assert isinstance(classes, int)
    return network, ModelCard(config.teacher, Preprocessing.of_model(config.teacher), classes)
