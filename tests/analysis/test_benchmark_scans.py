"""The scans of the networks: their shapes, what they cost, and that each backend computes the same."""

import pytest
import torch
from rich.console import Console

from mobilemamba.analysis.benchmark import scans
from mobilemamba.analysis.benchmark.cases import expand
from mobilemamba.analysis.benchmark.scans import ScanShape, measure_scans, scan_cost, scan_inputs, scan_shapes
from mobilemamba.analysis.benchmark.tables import scan_notes, scan_table
from mobilemamba.analysis.timing import Timings
from mobilemamba.errors import ConfigError


def test_shapes_are_those_of_the_networks():
    """S6 at 224 px: maps of 14, 7 and 4; the sub-bands of the wavelet branch do not go through the scan."""
    found = scan_shapes(expand(["mobilemamba_s6"], batches=(8,)))
    widths = (320, 544, 544)  # twice the global channels 160, 272, 272
    assert found == {
        ScanShape(8, 2, width, 1, side, side): {"s6": count}
        for width, side, count in zip(widths, (14, 7, 4), (1, 2, 2), strict=True)
    }


def test_shapes_in_common_are_measured_once():
    found = scan_shapes(expand(["mobilemamba_b1", "mobilemamba_b2"], sizes=(256,), batches=(1,)))
    assert len(found) == 3
    assert [set(users) for users in found.values()] == [{"b1", "b2@256"}] * 3


def test_a_network_without_a_scan_is_refused():
    with pytest.raises(ConfigError, match="'efficientvit_m2' has no selective scan"):
        scan_shapes(expand(["efficientvit_m2"], batches=(1,)))


def test_cost_by_the_definition():
    shape = ScanShape(2, 2, 3, 1, 4, 5)
    floats = 2 * 20 * 3 + 2 * 2 * 20 * 3 + 2 * 3 + 2 * (2 * 2 * 20) + 2 * (2 * 3)  # u, dt, A, B and C, D and dt_bias
    output, operations = 2 * 20 * 3, 2 * 2 * 2 * 3 * 20 * (9 + 1)
    inputs = scan_inputs(shape)
    assert scan_cost(shape, inputs, train=False) == (4 * (floats + output), operations)
    assert scan_cost(shape, inputs, train=True) == (4 * (floats + output + output + 2 * floats), 4 * operations)


def test_inputs_are_of_the_network_s_dtype_but_for_the_state_matrix():
    u, dt, A, B, C, D, dt_bias = scan_inputs(ScanShape(1, 2, 3, 1, 4, 5, dtype="bfloat16"))
    assert {x.dtype for x in (u, dt, B, C, D, dt_bias)} == {torch.bfloat16}
    assert A.dtype == torch.float32
    assert (A < 0).all()


@pytest.mark.parametrize("train", [False, True])
def test_every_backend_that_runs_is_measured(short_benchmarks, train):
    cases = expand(["mobilemamba_t2"], sizes=(64,), batches=(2,), train=train)
    found = measure_scans(cases, rounds=2, seconds=0.001)
    assert "chunked" in {record.backend for record in found}
    assert len(found) == 3 * len({record.backend for record in found})
    for record in found:
        assert not record.error
        assert record.gbytes_per_second > 0
        assert record.train == train
        assert record.gflops_per_second * record.latency_ms == pytest.approx(
            (4 if train else 1) * 2 * 10 * 2 * 2 * record.width * record.height * record.map_width / 1e6
        )
    console = Console(width=80, record=True)
    console.print(scan_table(found, console.width))
    assert console.export_text().count("chunked") == 3
    assert "ceilings in the same rounds" in scan_notes(found)[0]


def test_rates_and_ceilings_of_known_times(short_benchmarks, monkeypatch):
    """Scans take 2 ms, a copy of 4096 bytes and a product of sides of 16 take 4 ms."""

    def time_all(clocks, *_):
        return {key: Timings((4e-3 if key[0] in ("copy", "product") else 2e-3,), 1) for key in clocks}, {}

    monkeypatch.setattr(scans, "interleave", time_all)
    for found in measure_scans(expand(["mobilemamba_t2"], sizes=(64,), batches=(1,)), 1, 0.001, ["chunked"]):
        shape = ScanShape(1, found.directions, found.width, found.d_state, found.height, found.map_width)
        moved, operations = scan_cost(shape, scan_inputs(shape), train=False)
        assert found.latency_ms == pytest.approx(2)
        assert found.gbytes_per_second == pytest.approx(moved / 2e-3 / 1e9)
        assert found.gflops_per_second == pytest.approx(operations / 2e-3 / 1e9)
        assert found.copy_gbytes_per_second == pytest.approx(2 * 4096 / 4e-3 / 1e9)
        assert found.product_gflops_per_second == pytest.approx(2 * 16**3 / 4e-3 / 1e9)


def test_one_backend_by_name(short_benchmarks):
    cases = expand(["mobilemamba_t2"], sizes=(64,), batches=(1,))
    assert {r.backend for r in measure_scans(cases, 1, 0.001, ["chunked"])} == {"chunked"}
    with pytest.raises(ConfigError, match="magic"):
        measure_scans(cases, 1, 0.001, ["magic"])
