"""The resident memory of a process, seen by tensors of a known size."""

import json
import subprocess
import sys

import pytest
import torch

from mobilemamba.analysis import resident
from mobilemamba.analysis.resident import can_forget_peak, peak_resident_bytes

_SIZE = 2**20 * 200

# In a process of its own: the heap of this one has been shaped by the tests before, and may keep what it frees. Of the
# package it has the module alone, as to import all takes longer than the rest.
_SIZES_AROUND_A_BLOCK = f"""
import json, runpy, torch
resident = runpy.run_path({resident.__file__!r})
before = resident["resident_bytes"]()
block = torch.ones({_SIZE // 4})
held = resident["resident_bytes"]()
del block
peak = resident["peak_resident_bytes"]()
resident["forget_peak"]()
print(json.dumps([before, held, peak, resident["peak_resident_bytes"]()]))
"""


@pytest.mark.skipif(not can_forget_peak(), reason="needs Linux")
def test_the_peak_is_forgotten_and_the_parent_s_does_not_count() -> None:
    ballast = torch.ones(_SIZE)  # 0.8 GiB: more than the other process ever has
    result = subprocess.run([sys.executable, "-c", _SIZES_AROUND_A_BLOCK], capture_output=True, text=True, check=True)
    del ballast
    before, held, peak, after = json.loads(result.stdout)
    slack = _SIZE // 10
    assert held - before == pytest.approx(_SIZE, abs=slack)
    assert peak == pytest.approx(held, abs=slack)
    assert after == pytest.approx(before, abs=slack)


def test_the_peak_of_this_process_holds_its_tensors() -> None:
    block = torch.ones(2**24)  # 64 MiB
    peak = peak_resident_bytes()
    assert peak is None or peak > block.nbytes
