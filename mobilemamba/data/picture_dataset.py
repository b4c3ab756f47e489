"""The base class of data sets that read pictures and their targets one by one, on access."""

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from mobilemamba.data.batches import Unreadable
from mobilemamba.data.sampling import seeded
from mobilemamba.errors import DataError
from mobilemamba.text import printable


class PictureDataset(Dataset[Any]):
    """Pictures with their targets; in training, random changes depend only on (seed, epoch, picture).

    Indexed by the keys of :mod:`mobilemamba.data.sampling`; returns what :meth:`prepared` or :meth:`changed` returns.

    Args:
        seed: 0 or more; None for an evaluation.
        upright: Rotate pictures by their EXIF orientation.
        skip: Return an :class:`~mobilemamba.data.batches.Unreadable` for a picture that cannot be used.

    Raises:
        DataError: On access, if a picture cannot be used and ``skip`` is not set.
    """

    def __init__(self, seed: int | None = None, *, upright: bool = True, skip: bool = False) -> None:
        self.seed, self.upright, self.skip = seed, upright, skip

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: int) -> Any:
        epoch, index = divmod(key, len(self))
        try:
            picture, target = self.read(index)
        except DataError as error:
            if self.skip:
                return Unreadable(self.name(index), str(error))
            raise self.refusal(index, error) from error
        if self.seed is None:
            return self.prepared(picture, target)
        with seeded(self.seed, epoch, index):
            return self.changed(picture, target)

    def name(self, index: int) -> str:
        """Returns the picture's name for messages: its path."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[Image.Image, Any]:
        """Returns a picture and its target as they are stored.

        Raises:
            DataError: If they cannot be used; the message is only the reason.
        """
        raise NotImplementedError

    def prepared(self, picture: Image.Image, target: Any) -> Any:
        """Returns them as the network is evaluated on them."""
        raise NotImplementedError

    def changed(self, picture: Image.Image, target: Any) -> Any:
        """Returns them as the network learns from them; draws from the global random generators."""
        raise NotImplementedError

    def refusal(self, index: int, reason: DataError) -> DataError:
        """Returns the error for a picture that cannot be used."""
        return DataError(f"{printable(self.name(index))} cannot be used ({reason}): mend it or remove it")
