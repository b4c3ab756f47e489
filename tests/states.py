"""Comparing what networks hold."""

from collections.abc import Collection

import torch
from torch import nn


def assert_same_state(one: nn.Module, other: nn.Module, but: Collection[str] = ()) -> None:
    """That every tensor of the first, but for those named, is the other's of its name, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()  # once: a module walks through all of its parts for it
    assert not [name for name in ours.keys() - but if not torch.equal(ours[name], theirs[name])]
