"""A small network with all that the real ones have, and pictures in folders of its classes."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, save_weights
from mobilemamba_command import main

CLASSES = ("dark", "middling", "bright")
ARCH = ArchOverrides(embed_dims=(16, 24, 32), depths=(1, 1, 1))
SMALL = ModelCard("test_resnet", Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), 3)
CARD = ModelCard(
    "mobilemamba_t2",
    Preprocessing((64, 96), (0.4,) * 3, (0.3,) * 3, "bilinear", 0.9),
    len(CLASSES),
    arch=ARCH.given(),
    class_names=CLASSES,
)


def awaken(network: nn.Module) -> nn.Module:
    """Gives the norms gains and statistics as of a training: fresh ones let nothing of a branch through."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def network() -> nn.Module:
    torch.manual_seed(0)
    return awaken(create_model(CARD.model, ARCH, CARD.num_classes))


@pytest.fixture(scope="session")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(network, path, CARD)
    return path


@pytest.fixture(scope="session")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network for ONNX Runtime."""
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    main(["export", str(weights), str(path)])
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In folders of the classes, four of each."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        name = CLASSES[number % 3]
        random = np.random.default_rng(zlib.crc32(f"{name}{number}".encode()))
        noise = random.normal(80 + 45 * (number % 3), 60, (70, 80, 3)).clip(0, 255).astype(np.uint8)
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder
