import numpy as np
import torch
from pycocotools import mask as reference_mask

from mobilemamba.data.coco_masks import encode, pack, unpack


def test_packed_runs_are_read_back_here_and_by_cocos_own_code() -> None:
    for mask in (torch.rand(2, 48, 64, generator=torch.Generator().manual_seed(0)) < 0.5).numpy():
        packed = encode(mask)
        assert np.array_equal(reference_mask.decode(packed).astype(bool), mask)
        assert np.array_equal(unpack(pack(packed), 48, 64), mask)
