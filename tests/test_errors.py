"""Errors of any kind as a line of a report."""

import pytest
import torch

from mobilemamba.errors import in_one_line, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ValueError("\n first\nsecond"), "ValueError: first"),
        (KeyError(), "KeyError: "),
    ],
)
def test_errors_in_one_line(error, line):
    assert in_one_line(error) == line
    assert is_out_of_memory(error) == (line == "out of memory")
