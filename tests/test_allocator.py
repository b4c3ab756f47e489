"""What is done with freed memory, seen by the pages that a process is given."""

import os
import subprocess
import sys

import pytest

from mobilemamba import allocator

# The module alone, and memory as PyTorch asks for it: to import either takes ten times as long as all of this.
_PAGES_OF_TEN_CALLS = """
import ctypes, resource, runpy
print(runpy.run_path({file!r})[{choose!r}]())
libc, block, size = ctypes.CDLL(None), ctypes.c_void_p(), ctypes.c_size_t(48 * 2**20)  # more than glibc keeps of itself
def faults():
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), size) == 0
    ctypes.memset(block, 1, size.value)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
calls = [faults() for _ in range(30)]
print(calls[-1] - calls[-11])
"""
_PAGES = 48 * 2**20 // os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(not allocator.has_choice(), reason="needs glibc")


def pages_of_ten_calls(choose: str, **environment: str) -> tuple[str, int]:
    code = _PAGES_OF_TEN_CALLS.format(file=allocator.__file__, choose=choose)
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    answer, pages = result.stdout.split()
    return answer, int(pages)


def test_kept_memory_is_used_again() -> None:
    answer, pages = pages_of_ten_calls("keep_freed_memory")
    assert answer == "True"
    assert pages < _PAGES / 10


def test_returned_memory_comes_anew() -> None:
    answer, pages = pages_of_ten_calls("return_freed_memory")
    assert answer == "True"
    assert pages > 9 * _PAGES


def test_the_environment_goes_before() -> None:
    answer, pages = pages_of_ten_calls("keep_freed_memory", MALLOC_TRIM_THRESHOLD_="131072")
    assert answer == "False"
    assert pages > 9 * _PAGES
