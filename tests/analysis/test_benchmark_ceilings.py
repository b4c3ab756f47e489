"""The machine's limits: what is computed and copied, and that no library is passed over."""

import time

import pytest
import torch

from mobilemamba.analysis.benchmark import ceilings
from mobilemamba.analysis.benchmark.cases import DTYPES
from mobilemamba.analysis.benchmark.ceilings import matrix_product, memory_copy
from mobilemamba.ops import onednn


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.02)])
def test_every_library_multiplies_the_same_matrices(dtype, tolerance, monkeypatch):
    tried = []
    monkeypatch.setattr(ceilings, "_fastest", lambda runs, device: tried.extend(runs) or runs[0])
    _, macs = matrix_product("cpu", dtype, side=48)
    products = [run() for run in tried]
    assert macs == 48**3
    assert len(products) == (1 if onednn.unavailable(torch.device("cpu"), DTYPES[dtype]) else 2)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(48, 48, generator=generator).to(DTYPES[dtype]).double() for _ in range(2))
    for product in products:
        torch.testing.assert_close(product.double(), left @ right, atol=tolerance, rtol=tolerance)


def test_half_precision_without_instructions_for_it_gets_smaller_matrices(monkeypatch):
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", {"cpu": 64})
    for dtype in DTYPES:
        loops = dtype == "float16" and onednn.unavailable(torch.device("cpu"), torch.float16)
        assert matrix_product("cpu", dtype)[1] == (16 if loops else 64) ** 3


def test_the_fastest_is_taken():
    def slow():
        time.sleep(0.01)

    def fast():
        pass

    assert ceilings._fastest([slow, fast], "cpu") is fast
    assert ceilings._fastest([fast, slow], "cpu") is fast
    assert ceilings._fastest([slow], "cpu") is slow


def test_a_copy_reads_and_writes_each_byte():
    run, moved = memory_copy("cpu", size=4096)
    assert moved == 2 * 4096
    assert run().nbytes == 4096
