"""The memory of a GPU that the tests make up: which threads share it, and what they may do without waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WARP = 32


class GPUError(AssertionError):
    """What a GPU would stop at, or compute differently at another time."""


class Threads:
    """All threads of a launch, program by program, and the steps at which each has last waited for others."""

    def __init__(self, grid: Sequence[int], warps: int):
        self.per_program = warps * WARP
        self.number = np.arange(int(np.prod(grid)) * self.per_program)
        self.program = self.number // self.per_program
        self.waited_for_program, self.waited_for_warp = np.zeros((2, len(self.number)), np.int64)

    def ordered(self, other: Array, step: Array, thread: Array) -> Array:
        """Whether what others (-1 is nobody) did at a step has happened for certain when a thread goes on."""
        same_program = other // self.per_program == thread // self.per_program
        same_warp = other // WARP == thread // WARP
        waited = same_program & (step < self.waited_for_program[thread])
        waited |= same_warp & (step < self.waited_for_warp[thread])
        return waited | (other < 0) | (other == thread)


class Segment:
    """Bytes at successive addresses; for each two, the last writer, and the readers since with the least number and the
    greatest: who goes on after both does so after all readers, as those between are of the same program or warp.
    """

    def __init__(self, start: int, data: Array):
        self.start, self.data = start, data
        self.writer, self.written, self.first, self.last, self.read = np.full((5, (len(data) + 1) // 2), -1)


class Memory:
    """Segments that threads of a launch can reach.

    Attributes:
        sectors: How many times warps have moved 32 successive bytes.
        needed: How many would be enough if all their bytes were needed.
        turns: Of warps at shared memory, which gives each of 32 banks of four bytes one word a turn.
        least: How many turns would be enough if all words were in different banks.
    """

    def __init__(self, segments: Sequence[Segment], threads: Threads):
        self.segments, self.threads = sorted(segments, key=lambda segment: segment.start), threads
        self.starts = np.array([segment.start for segment in self.segments])
        self.sectors = self.needed = self.turns = self.least = 0

    def load(self, step: int, thread: Array, at: Array, size: int) -> Array:
        """Returns the bytes at each thread's address, (threads, size)."""
        found = np.empty((len(at), size), np.uint8)
        for segment, here, offset in self._places(at, size, thread):
            who, unit = thread[here, None], offset[:, ::2] // 2
            if not self.threads.ordered(segment.writer[unit], segment.written[unit], who).all():
                raise GPUError("a thread reads what another has written, with no barrier in between")
            self._note_readers(step, segment, unit, np.broadcast_to(who, unit.shape))
            found[here] = segment.data[offset]
        return found

    def store(self, step: int, thread: Array, at: Array, values: Array) -> None:
        """Writes bytes at each thread's address, (threads, size)."""
        for segment, here, offset in self._places(at, values.shape[1], thread):
            unit, new = offset[:, ::2] // 2, values[here]
            who, changes = np.broadcast_to(thread[here, None], unit.shape), (segment.data[offset] != new).any(1)
            free = self.threads.ordered(segment.writer[unit], segment.written[unit], who)
            free &= self._read_before(segment, unit, who)
            if not free[changes].all():
                raise GPUError("a thread writes what another has read or written, with no barrier in between")
            segment.data[offset] = new
            if (segment.data[offset] != new).any():
                raise GPUError("two threads write different values to one place")
            free |= changes[:, None]
            segment.writer[unit[free]], segment.written[unit[free]] = who[free], step
            segment.first[unit[free]] = segment.last[unit[free]] = -1
            # To write what is there is no fault, and hides none of those before: it counts as having seen it.
            self._note_readers(step, segment, unit[~free], who[~free])

    def _note_readers(self, step: int, segment: Segment, unit: Array, thread: Array) -> None:
        over = unit[self._read_before(segment, unit, thread)]
        segment.first[over], segment.last[over] = len(self.threads.number), -1
        np.minimum.at(segment.first, unit, thread)
        np.maximum.at(segment.last, unit, thread)
        segment.read[unit] = step

    def _read_before(self, segment: Segment, unit: Array, thread: Array) -> Array:
        """Whether those who have read bytes since they were written have done so for certain when a thread goes on."""
        of_first, of_last = (
            self.threads.ordered(reader[unit], segment.read[unit], thread) for reader in (segment.first, segment.last)
        )
        return of_first & of_last

    def _places(self, at: Array, size: int, thread: Array) -> Iterator[tuple[Segment, Array, Array]]:
        """Yields each segment accessed, by which of the threads, and their bytes of it, (threads, size)."""
        if (at % size).any():
            raise GPUError(f"{size} bytes at an address that is no multiple of {size}")
        self._count(at, size, thread)
        which = np.searchsorted(self.starts, at, "right") - 1
        for i in np.unique(which):
            here = np.flatnonzero(which == i)
            offset = at[here, None] - self.segments[i].start + np.arange(size)
            if i < 0 or offset.max() >= len(self.segments[i].data):
                raise GPUError("an address beside all tensors")
            yield self.segments[i], here, offset

    def _count(self, at: Array, size: int, thread: Array) -> None:
        places = np.unique(np.stack([thread // WARP, at // size], 1), axis=0)
        self.sectors += len(np.unique(np.stack([places[:, 0], places[:, 1] * size // 32], 1), axis=0))
        self.needed += int(np.ceil(np.bincount(places[:, 0]) * size / 32).sum())
        together = thread // min(WARP, 128 // size)  # threads whose words make up 32 at most
        words = at[:, None] // 4 + np.arange(max(size // 4, 1))
        pairs = np.unique(np.stack([np.broadcast_to(together[:, None], words.shape).ravel(), words.ravel()], 1), axis=0)
        in_bank = np.zeros((together.max() + 1, 32), np.int64)
        np.add.at(in_bank, (pairs[:, 0], pairs[:, 1] % 32), 1)
        self.turns += int(in_bank.max(1).sum())
        self.least += len(np.unique(together))
