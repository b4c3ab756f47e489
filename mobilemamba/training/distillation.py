"""Knowledge distillation (Hinton et al., 2015): a frozen teacher for any student's batches, and the loss."""

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
    """Learning from a teacher; the defaults are those of the paper's models with a dagger, but for the teacher itself.

    Their loss is the task's plus 5 times the soft distillation loss; their teacher is ``tresnet_v2_l``.

    Attributes:
        teacher: Any timm model; by default what the card in ``weights`` says.
        weights: The teacher's checkpoint (.safetensors, .ckpt, .pth); by default timm's, which are downloaded.
        kind: Compare with the teacher's probabilities (``soft``) or with its likeliest class (``hard``).
        weight: Of the distillation loss, beside the task's own of weight 1.
        tau: Temperature of the soft loss.
        img_size: Side in pixels of the teacher's pictures; by default the teacher's own.
        mean: Per channel, of pictures in 0..1; by default the teacher's own.
        std: Per channel, of pictures in 0..1; by default the teacher's own.
        interpolation: Of the scaling where the student's pictures have another size.
        antialias: Low-pass filter before scaling down. The paper's training had none, as torchvision 0.16 had none by
            default for tensors.

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
    """A frozen network that answers a student's batches, prepared as it wants them itself.

    (B, C, H, W), normalised for the student and mixed or erased as the student sees them, to logits (B, classes)
    float32, under the caller's autocast and without gradients. It stays in evaluation mode, whatever ``train`` says.
    """

    mean: Tensor
    std: Tensor
    student_mean: Tensor
    student_std: Tensor

    # timm.task's DistillationTeacher would serve for the normalisation alone: it neither resizes nor freezes nor stays
    # in evaluation, and has no file of its own names or classes to check; older timm versions lack it.

    def __init__(
        self, config: Distillation, num_classes: int, student_mean: Sequence[float], student_std: Sequence[float]
    ) -> None:
        """Loads the teacher; the random state stays as it was.

        Args:
            config: Which teacher, and how its pictures are prepared.
            num_classes: The student's.
            student_mean: Per channel, by which the student's pictures are normalised.
            student_std: Likewise.

        Raises:
            ConfigError: If there is no such teacher, its weights cannot be downloaded, or it has other classes or
                channels than the student.
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
        """The student's pictures as the teacher wants them: colours back to 0..1, scaled, then normalised anew."""
        x = pictures.to(self.mean.dtype) * self.student_std + self.student_mean
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=self.antialias)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode, whatever ``mode``."""
        return super().train(False)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, kind: Literal["soft", "hard"] = "soft", tau: float = 1.0
) -> Tensor:
    """How far a student is from its teacher, a mean over the batch, in fp32 or better.

    ``soft``: ``tau^2 KL(softmax(teacher / tau) || softmax(student / tau))``, summed over the classes, as the paper's
    models were trained. (DeiT's code divides by the number of classes, too.) ``hard``: the cross entropy to the class
    that the teacher finds likeliest.

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
    except Exception as error:  # the hub's client has many, and not all of them have a base in common
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"no pretrained weights for distillation.teacher={config.teacher} ({reason}); set distillation.weights to "
            "a file of them"
        ) from error
    classes = network.num_classes
    assert isinstance(classes, int)
    return network, ModelCard(config.teacher, Preprocessing.of_model(config.teacher), classes)
