from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler

from mobilemamba.training.loaders import pictures_a_step, pictures_used

PICTURES = list(range(13))


@pytest.mark.parametrize(("accumulated", "batches", "pictures"), [(2, 5, 16), (3, 2, 16), (1, 5, 8)])
def test_a_step_has_no_more_batches_than_an_epoch(accumulated, batches, pictures):
    loader = DataLoader(range(20), batch_size=4)
    trainer = SimpleNamespace(
        train_dataloader=loader, accumulate_grad_batches=accumulated, num_training_batches=batches, world_size=2
    )
    assert pictures_a_step(trainer) == pictures


class Endless(IterableDataset):
    def __iter__(self):
        return iter(int, 1)


@pytest.mark.parametrize(
    ("loader", "batches", "devices", "pictures"),
    [
        (DataLoader(PICTURES, batch_size=5), 3, 1, 13),
        (DataLoader(PICTURES, batch_size=5), 2, 1, 10),
        (DataLoader(PICTURES, batch_size=1000), 1, 1, 13),
        (DataLoader(PICTURES, batch_size=5, drop_last=True), 2, 1, 10),
        (DataLoader(PICTURES, batch_size=5), 0, 1, 0),
        # Two processes with shares of 7, one of which is a repeat.
        (DataLoader(PICTURES, batch_size=5, sampler=DistributedSampler(PICTURES, 2, 0)), 2, 2, 13),
        (DataLoader(PICTURES, batch_size=3, sampler=DistributedSampler(PICTURES, 2, 0)), 2, 2, 12),
        (DataLoader(PICTURES, batch_size=4, sampler=SubsetRandomSampler(PICTURES[:6])), 2, 1, 6),
        (DataLoader(PICTURES, batch_sampler=torch.utils.data.BatchSampler(PICTURES[:9], 4, False)), 3, 1, 9),
        (DataLoader(PICTURES, batch_sampler=[[0, 1], [2]]), 2, 1, None),
        ([DataLoader(PICTURES, batch_size=5), DataLoader(PICTURES[:4], batch_size=2)], [1, 2], 1, 9),
        ({"a": DataLoader(PICTURES, batch_size=5), "b": DataLoader(PICTURES[:4], batch_size=2)}, 1, 1, 7),
        (DataLoader(Endless(), batch_size=5), 3, 1, 15),
        (DataLoader(Endless(), batch_size=5), float("inf"), 1, None),
        (None, 1, 1, None),
    ],
)
def test_pictures_of_the_first_batches(loader, batches, devices, pictures):
    assert pictures_used(loader, batches, devices) == pictures
