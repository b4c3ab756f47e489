import torch

from mobilemamba.data.batches import IGNORED_PIXEL, Masks
from mobilemamba.drawing import distinct_colours


def test_masks_that_do_not_count() -> None:
    images, masks = Masks().collate([(torch.zeros(3, 2, 2), torch.ones(5, 4, dtype=torch.int64))] * 2)
    assert images.shape == (2, 3, 2, 2)
    marked = Masks().ignored(masks, torch.tensor([False, True]))
    assert (marked[0] == 1).all()
    assert (marked[1] == IGNORED_PIXEL).all()
    assert (masks == 1).all()


def test_blank_does_not_count() -> None:
    image, mask = Masks().blank(4, 6)
    assert image.shape == (1, 3, 4, 6)
    assert mask.shape == (1, 4, 6)
    assert mask.dtype == torch.int64
    assert (mask == IGNORED_PIXEL).all()


def test_colours_differ() -> None:
    colours = distinct_colours(255)
    assert len(set(colours)) == 255
    assert colours[:11] == distinct_colours(11)
    first = torch.tensor(colours[:11]).float()
    assert torch.cdist(first, first).add(torch.eye(11) * 999).min() > 45
    assert all(0 <= part <= 255 for colour in colours for part in colour)
