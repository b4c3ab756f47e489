"""The sample embedded in the package: Fashion-MNIST's test part, 10,000 pictures of clothing in 10 classes."""

import gzip
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mobilemamba.data.classification import ImageDataModule
from mobilemamba.data.sampling import make_generator

_SIDE = 28
_EVERY = 5  # every fifth picture of each class, in the file's order, is for validation
_MEAN, _STD = 0.2867, 0.3522  # of the 8,000 training pictures


class FashionMNISTSample(ImageDataModule):
    """A fixed set of 8,000 training and 2,000 validation pictures of clothing; needs no download.

    Each of the 10 classes has 800 and 200 grey pictures of 28 x 28, scaled to ``img_size`` and repeated over three
    channels. The nearest neighbour in raw pixels reaches 80.3 % top-1 on the validation pictures. Scores on them do not
    compare with those published for Fashion-MNIST, whose training part is not used here.

    Args:
        img_size: Side in pixels, or (height, width); None for 64.
        num_workers: Number of loading processes; None for 0, as making a batch is faster than passing it between
            processes.
        max_shift: Training pictures are shifted at random by up to this many of their 28 pixels; 0 for no shift.
        hflip: Probability of a horizontal flip of training pictures.
        **options: Arguments of :class:`~mobilemamba.data.base.DataModule`.
    """

    name = "Fashion-MNIST sample (8,000/2,000)"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mean = (_MEAN, _MEAN, _MEAN)
    std = (_STD, _STD, _STD)
    interpolation = "bilinear"
    crop_pct = 1.0
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **ImageDataModule.LIMITS,
        "max_shift": (0, _SIDE - 1, f"0 to {_SIDE - 1} pixels"),
        "hflip": (0, 1, "a probability, 0 to 1"),
    }

    def __init__(
        self, img_size: int | tuple[int, int] | None = None, max_shift: int = 2, hflip: float = 0.5, **options: Any
    ) -> None:
        super().__init__(64 if img_size is None else img_size, **options)
        self.max_shift = max_shift
        self.hflip = hflip

    def default_workers(self) -> int:
        return 0

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once (0.1 s, 8 MB)."""
        self.check_arguments()
        if self.train_set is not None:
            return
        pictures_NHW, labels_N = read_sample()
        val = split_mask(labels_N)
        self.train_set = _Pictures(
            pictures_NHW[~val], labels_N[~val], self.image_hw, self.seed, max_shift=self.max_shift, hflip=self.hflip
        )
        self.val_set = _Pictures(pictures_NHW[val], labels_N[val], self.image_hw)


@cache
def read_sample() -> tuple[Tensor, Tensor]:
    """Returns all pictures (10000, 28, 28) uint8 and their labels (10000,) int64, in the file's order.

    Read once in a process: change neither in place.
    """
    folder = resources.files("mobilemamba.data") / "sample"
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    # The IDX format's headers: 16 bytes before pictures, 8 before labels.
    pictures = np.frombuffer(images, np.uint8, offset=16).reshape(-1, _SIDE, _SIDE)
    return torch.from_numpy(pictures.copy()), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )


def split_mask(labels_N: Tensor) -> Tensor:
    """Returns (N,) bool, true for validation pictures: every fifth of each class."""
    rank_N = torch.empty_like(labels_N)
    for label in labels_N.unique():
        of_class = labels_N == label
        rank_N[of_class] = torch.arange(int(of_class.sum()))
    return rank_N % _EVERY == _EVERY - 1


class _Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Makes whole batches at once: shifts and flips at 28 pixels, where this costs little, then scales.

    Scaled pictures are not kept, so that memory does not grow with the size.
    """

    def __init__(
        self,
        pictures_NHW: Tensor,
        labels_N: Tensor,
        size: tuple[int, int],
        seed: int = 0,
        *,
        max_shift: int = 0,
        hflip: float = 0.0,
    ) -> None:
        # With a dark margin on all sides, a shifted picture can be cropped by indexing.
        self.padded_NHW = F.pad(pictures_NHW, (max_shift,) * 4)
        self.labels_N = labels_N
        self.size = size
        self.seed = seed
        self.max_shift = max_shift
        self.hflip = hflip
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        images_BCHW, labels_B = self.__getitems__([key])
        return images_BCHW[0], labels_B[0]

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the batch (B, 3, H, W) float32 and its labels (B,) for keys of :mod:`mobilemamba.data.sampling`."""
        keys_B = torch.tensor(keys)
        index_B = keys_B % len(self)
        # All keys of a batch are of one epoch.
        shift_B2, flip_B = (drawn[index_B] for drawn in self._draw(keys[0] // len(self)))

        pixels = torch.arange(_SIDE)
        rows_BH1 = (shift_B2[:, 0, None] + pixels)[:, :, None]
        columns_BW = shift_B2[:, 1, None] + torch.where(flip_B[:, None], pixels.flip(0), pixels)
        grey_BHW = self.padded_NHW[index_B[:, None, None], rows_BH1, columns_BW[:, None, :]]

        images_B1HW = ((grey_BHW.float() / 255 - _MEAN) / _STD).unsqueeze(1)
        smaller = min(self.size) < _SIDE
        images_B1HW = F.interpolate(images_B1HW, self.size, mode="bilinear", antialias=smaller)
        # A copy, not a view, as Mixup and others write into a batch.
        return images_B1HW.expand(-1, 3, -1, -1).contiguous(), self.labels_N[index_B]

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns the top-left corners (N, 2) and flips (N,) of all pictures in an epoch, drawn once per epoch."""
        if self._drawn is None or self._drawn[0] != epoch:
            generator = make_generator(self.seed, epoch, 1)  # 1: different from the stream that orders the epoch
            shift_N2 = torch.randint(0, 2 * self.max_shift + 1, (len(self), 2), generator=generator)
            flip_N = torch.rand(len(self), generator=generator) < self.hflip
            self._drawn = (epoch, shift_N2, flip_N)
        return self._drawn[1:]
