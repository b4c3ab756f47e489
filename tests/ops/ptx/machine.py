"""Runs PTX, what Triton makes of a kernel for NVIDIA's GPUs, with NumPy: one instruction of all threads at a time.

Triton's interpreter runs a kernel's source, where nothing says yet which thread does what. Here is what a GPU gets:
the threads' parts, shuffles, shared memory, barriers, the layouts of matrix products. Besides the numbers it finds what
a GPU punishes only at times: addresses beside tensors or across an alignment, barriers that some threads do not reach,
threads that use what another writes with no barrier in between.

It knows the instructions that our kernels consist of, and fails at any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.ops.ptx.arithmetic import (
    COMPUTED,
    KNOWN,
    OPERANDS,
    compared,
    dtype_of,
    factors,
    flushed,
    from_bf16,
    rounded,
    wide,
)
from tests.ops.ptx.memory import WARP, Array, GPUError, Memory, Segment, Threads
from tests.ops.ptx.program import Instruction, Program

_LANES = np.arange(WARP)
_REGISTERS = {"%p": "bool", "%rs": "u2", "%r": "u4", "%rd": "u8"}


class Registers(dict[str, Array]):
    """Each register of all threads, as bits; a register that nothing has written has all bits set."""

    def __init__(self, threads: int):
        self.threads = threads

    def __missing__(self, register: str) -> Array:
        return ~np.zeros(self.threads, self.dtype(register))

    @staticmethod
    def dtype(register: str) -> np.dtype[Any]:
        return np.dtype(_REGISTERS[register.rstrip("0123456789")])


class Machine:
    """Runs a program for all threads of a launch.

    Args:
        program: The program.
        grid: Programs along each axis.
        warps: Warps of a program.
        arguments: Of the parameters, as 64 bits each; addresses of tensors are those of their segments.
        shared: Bytes of a program's shared memory.
    """

    def __init__(self, program: Program, grid: Sequence[int], warps: int, arguments: Sequence[int], shared: int):
        self.program, self.threads = program, Threads(grid, warps)
        self.parameters = dict(zip(program.parameters, arguments, strict=True))
        self.registers = Registers(len(self.threads.number))
        self.registers["%tid.x"] = (self.threads.number % self.threads.per_program).astype(np.uint32)
        at = self.threads.program
        for axis, size in zip("xyz", (*grid, 1, 1), strict=False):
            self.registers[f"%ctaid.{axis}"] = (at % size).astype(np.uint32)
            self.registers[f"%nctaid.{axis}"] = np.full(len(at), size, np.uint32)
            at = at // size
        poison = np.full(int(np.prod(grid)) * shared, 255, np.uint8)
        self.shared, self.shared_start = Memory([Segment(0, poison)], self.threads), self.threads.program * shared
        self.step = 0

    def run(self, tensors: Sequence[Segment]) -> None:
        """Runs until all threads have returned. Those that are least far go on: so they meet again after a branch."""
        self.tensors = Memory(tensors, self.threads)
        at = {0: np.full(len(self.threads.number), True)}
        while at:
            place = min(at)
            active, instruction = at.pop(place), self.program.instructions[place]
            self.step += 1
            self.active, goes_on = active, active
            if predicate := instruction.predicate:
                self.active = active & (self._read(predicate.lstrip("!"), "pred") ^ (predicate[0] == "!"))
            if instruction.parts[0] in ("bra", "ret"):
                goes_on = active & ~self.active
                if instruction.parts[0] == "bra" and self.active.any():
                    target = self.program.labels[instruction.operands[0]]
                    at[target] = at.get(target, False) | self.active
            elif self.active.any():
                try:
                    self._execute(instruction)
                except GPUError as fault:
                    fault.add_note(f"in {instruction.name}, {instruction.source}")
                    raise
            if goes_on.any():
                at[place + 1] = at.get(place + 1, False) | goes_on

    def _execute(self, instruction: Instruction) -> None:
        _, name, (operation, *modifiers), operands, _ = instruction
        if not KNOWN.issuperset(modifiers) or (operation in COMPUTED and modifiers[-1] in ("f16x2", "bf16", "bf16x2")):
            raise NotImplementedError(name)
        special = {
            "ld": self._load, "st": self._store, "cvt": self._convert, "setp": self._compare, "shfl": self._shuffle,
            "ldmatrix": self._load_matrices, "stmatrix": self._store_matrices, "mma": self._multiply, "bar": self._wait,
        }  # fmt: skip
        if operation in special:
            special[operation](modifiers, operands)
        elif operation == "mov" and "{" in "".join(operands):
            self._repack(operands)
        elif operation in COMPUTED:
            self._compute(operation, modifiers, operands)
        else:
            raise NotImplementedError(name)

    # Registers

    def _read(self, operand: str, kind: str) -> Array:
        """An operand of all threads: a register, a number, or the address of shared memory."""
        dtype, count = dtype_of(kind), len(self.threads.number)
        if operand[0] == "%":
            parts = self.registers[operand].view(dtype)  # the low bits, where the register has more
            return parts if len(parts) == count else parts.reshape(count, -1)[:, 0]
        if kind == "pred":
            return np.full(count, operand != "0")
        if operand.startswith("0f"):
            number = int(f"0x{operand[2:]}", 0)
        else:
            number = int(operand.removeprefix("global_smem").strip("+U") or "0", 0)
        return np.full(count, number & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}").view(dtype)

    def _write(self, register: str, x: Array) -> None:
        """Keeps an array of all threads in a register of as many bits or more, in those that are active."""
        if register == "_":
            return
        dtype = self.registers.dtype(register)
        if x.dtype.itemsize < dtype.itemsize:
            x = x.astype(f"{x.dtype.kind}{dtype.itemsize}")
        self.registers[register] = np.where(self.active, x.view(dtype), self.registers[register])

    @staticmethod
    def _listed(operand: str) -> list[str]:
        return re.findall(r"[^\s,{}]+", operand)

    # Numbers

    def _compute(self, operation: str, modifiers: list[str], operands: list[str]) -> None:
        kind, function = modifiers[-1], COMPUTED[operation]
        if "NaN" in modifiers:
            function = {"max": np.maximum, "min": np.minimum}[operation]
        own = OPERANDS.get(operation, {})
        values = [self._read(operand, own.get(i, kind)) for i, operand in enumerate(operands[1:])]
        if "wide" in modifiers or "hi" in modifiers:
            values[:2] = map(wide, values[:2])
            if operation == "mad":
                values[2] = self._read(operands[3], f"{kind[0]}{8 * values[0].dtype.itemsize}")
        if "ftz" in modifiers:
            values = [flushed(x) for x in values]
        result = function(*values)
        if "hi" in modifiers:
            result = (result >> 4 * result.dtype.itemsize).astype(dtype_of(kind))
        self._write(operands[0], flushed(result) if "ftz" in modifiers else result)

    def _compare(self, modifiers: list[str], operands: list[str]) -> None:
        compare, kind = modifiers[0], modifiers[-1]
        result = compared(compare, *(self._read(operand, kind) for operand in operands[1:3]))
        if modifiers[1] in ("and", "or"):
            result = COMPUTED[modifiers[1]](result, self._read(operands[3], "pred"))
        self._write(operands[0], result)

    def _convert(self, modifiers: list[str], operands: list[str]) -> None:
        to, source = modifiers[-2:]
        values = [self._read(operand, source) for operand in operands[1:]]
        if to in ("f16x2", "bf16x2"):
            upper, lower = (rounded(x, to).astype(np.uint32) for x in values)
            result = upper << 16 | lower
        elif source == "f32" and to in ("f16", "bf16", "tf32"):
            result = rounded(values[0], to)
        else:
            result = from_bf16(values[0]) if source == "bf16" else values[0].astype(dtype_of(to))
        self._write(operands[0], result)

    def _repack(self, operands: list[str]) -> None:
        """``mov`` between a register and its parts."""
        target, source = map(self._listed, operands)
        if len(source) > 1:
            parts = np.stack([self.registers[part] for part in source], 1)
            self._write(target[0], parts.view(f"u{parts.itemsize * len(source)}")[:, 0])
        else:
            whole = self.registers[source[0]]
            parts = whole[:, None].view(f"u{whole.itemsize // len(target)}")
            for part, register in zip(parts.T, target, strict=True):
                self._write(register, np.ascontiguousarray(part))

    # Memory

    def _place(self, modifiers: list[str], operand: str) -> tuple[Memory, Array]:
        """The memory that ``[register + offset]`` is in, and the addresses of active threads there."""
        register, _, offset = operand.strip("[]").replace(" ", "").partition("+")
        is_shared = "shared" in modifiers
        at = self._read(register, "u32" if is_shared else "u64").astype(np.int64) + int(offset or "0")
        return (self.shared, (at + self.shared_start)[self.active]) if is_shared else (self.tensors, at[self.active])

    def _load(self, modifiers: list[str], operands: list[str]) -> None:
        if modifiers[0] == "param":
            number = self.parameters[operands[1].strip("[]")]
            self._write(operands[0], np.full(len(self.active), number, np.int64).astype(dtype_of(modifiers[-1])))
            return
        registers, dtype = self._listed(operands[0]), dtype_of(modifiers[-1])
        memory, at = self._place(modifiers, operands[1])
        who = np.flatnonzero(self.active)
        found = memory.load(self.step, who, at, dtype.itemsize * len(registers)).view(dtype)
        for register, column in zip(registers, found.T, strict=True):
            x = np.zeros(len(self.threads.number), dtype)
            x[who] = column
            self._write(register, x)

    def _store(self, modifiers: list[str], operands: list[str]) -> None:
        memory, at = self._place(modifiers, operands[0])
        values = np.stack([self._read(x, modifiers[-1])[self.active] for x in self._listed(operands[1])], 1)
        memory.store(self.step, np.flatnonzero(self.active), at, values.view(np.uint8))

    # All threads of a warp, or of a program

    def _wait(self, modifiers: list[str], operands: list[str]) -> None:
        of = WARP if "warp" in modifiers else self.threads.per_program
        assert operands == (["-1"] if "warp" in modifiers else ["0"]), operands  # all threads
        there = self.active.reshape(-1, of)
        if (there.any(1) != there.all(1)).any():
            raise GPUError("some threads do not reach a barrier")
        self.threads.waited_for_warp[self.active] = self.step
        if "warp" not in modifiers:
            self.threads.waited_for_program[self.active] = self.step

    def _warps(self) -> Array:
        """Which warps take part in what a warp does as a whole."""
        there = self.active.reshape(-1, WARP)
        if (there.any(1) != there.all(1)).any():
            raise GPUError("some threads of a warp do not reach what it does as a whole")
        return np.flatnonzero(there.any(1))

    def _spread(self, register: str, warps: Array, x: Array) -> None:
        """Writes (warps that take part, 32) to a register."""
        whole = np.zeros((len(self.threads.number) // WARP, WARP), x.dtype)
        whole[warps] = x
        self._write(register, whole.ravel())

    def _shuffle(self, modifiers: list[str], operands: list[str]) -> None:
        target, source, by, clamp, members = operands
        assert (clamp, members) == ("31", "-1")
        self._warps()
        lane, x = self.threads.number % WARP, self._read(source, "b32")
        other = {"bfly": np.bitwise_xor, "idx": lambda lane, by: by}[modifiers[1]](lane, self._read(by, "s32"))
        self._write(target, x[self.threads.number - lane + other % WARP])

    def _rows(self, modifiers: list[str], operand: str) -> tuple[Array, Array]:
        """Addresses of the eight rows, of 16 bytes each, of matrices in shared memory; and whose they are."""
        _, at = self._place(modifiers, operand)
        count = 8 * int(modifiers[modifiers.index("m8n8") + 1][1:])
        who = np.flatnonzero(self.active)
        return at.reshape(-1, WARP)[:, :count], who.reshape(-1, WARP)[:, :count]

    def _load_matrices(self, modifiers: list[str], operands: list[str]) -> None:
        warps, (at, who) = self._warps(), self._rows(modifiers, operands[1])
        found = self.shared.load(self.step, who.ravel(), at.ravel(), 16).view(np.uint16).reshape(len(warps), -1, 8, 8)
        found = found.swapaxes(2, 3) if "trans" in modifiers else found
        for i, register in enumerate(self._listed(operands[0])):
            pairs = np.ascontiguousarray(found[:, i]).reshape(len(warps), 64).view(np.uint32)
            self._spread(register, warps, pairs)

    def _store_matrices(self, modifiers: list[str], operands: list[str]) -> None:
        warps, (at, who) = self._warps(), self._rows(modifiers, operands[0])
        pairs = [self._read(x, "b32").reshape(-1, WARP)[warps] for x in self._listed(operands[1])]
        values = np.stack(pairs, 1).view(np.uint16).reshape(len(warps), -1, 8, 8)
        values = np.ascontiguousarray(values.swapaxes(2, 3) if "trans" in modifiers else values)
        self.shared.store(self.step, who.ravel(), at.ravel(), values.view(np.uint8).reshape(-1, 16))

    def _multiply(self, modifiers: list[str], operands: list[str]) -> None:
        """``D = A B + C`` with A (16, k) by rows and B (k, 8) by columns."""
        kind, warps = modifiers[-2], self._warps()
        a, b = (
            np.stack([factors(self._read(x, "b32").reshape(-1, WARP)[warps], kind) for x in self._listed(operand)], 2)
            for operand in operands[1:3]
        )  # (warps, lane, register, successive columns)
        group, pair, width = _LANES // 4, _LANES % 4, a.shape[-1]
        A, B = np.zeros((len(warps), 16, 8 * width), np.float32), np.zeros((len(warps), 8 * width, 8), np.float32)
        for i in range(4):
            for j in range(width):
                A[:, group + 8 * (i % 2), width * pair + j + 4 * width * (i // 2)] = a[:, :, i, j]
        for i in range(2):
            for j in range(width):
                B[:, width * pair + j + 4 * width * i, group] = b[:, :, i, j]
        D = A @ B
        for i, (target, source) in enumerate(zip(self._listed(operands[0]), self._listed(operands[3]), strict=True)):
            of_lanes = D[:, group + 8 * (i // 2), 2 * pair + i % 2]
            self._spread(target, warps, of_lanes + self._read(source, "f32").reshape(-1, WARP)[warps])
