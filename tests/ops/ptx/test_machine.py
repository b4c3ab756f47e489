"""The machine that runs PTX: what it computes, and that it finds what it is there to find."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.ptx.machine import Machine
from tests.ops.ptx.memory import GPUError, Segment
from tests.ops.ptx.program import parse

HEAD = ".visible .entry kernel(\n\t.param .u64 kernel_param_0\n)\n{\n"
#: The number of a thread, and the address of its four bytes in a tensor and in shared memory.
START = """
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, %ctaid.x;
    mad.wide.u32 %rd2, %r1, 4, %rd1;
"""


def run(body: str, tensor: np.ndarray, programs: int = 1, warps: int = 1, shared: int = 1024) -> np.ndarray:
    """Runs ``body`` with a tensor's address, and returns the tensor."""
    machine = Machine(parse(HEAD + START + body + "    ret;\n}\n"), (programs,), warps, [4096], shared)
    with np.errstate(all="ignore"):
        machine.run([Segment(4096, tensor.reshape(-1).view(np.uint8))])
    return tensor


def computed(body: str, *values: object) -> np.ndarray:
    """What thread 0 has in ``%r9`` after ``body``, whose ``{0}``, ``{1}``, ... are numbers as PTX writes them."""
    words = [f"0f{np.float32(v).view(np.uint32):08X}" if isinstance(v, float) else str(v) for v in values]
    found = run(body.format(*words) + "\n    st.global.b32 [%rd2], %r9;\n", np.zeros(32, np.uint32))
    return found[:1]


@pytest.mark.parametrize(
    ("instruction", "values", "expected"),
    [
        ("div.s32 %r9, {0}, {1};", (-7, 2), -3),
        ("rem.s32 %r9, {0}, {1};", (-7, 2), -1),
        ("shl.b32 %r9, {0}, {1};", (1, 32), 0),
        ("shr.s32 %r9, {0}, {1};", (-8, 40), -1),
        ("shr.u32 %r9, {0}, {1};", (-8, 28), 15),
        ("bfe.u32 %r9, {0}, 2, 3;", (0b110101,), 0b101),
        ("bfe.s32 %r9, {0}, 2, 1;", (0b100,), -1),
        ("cvt.s32.s8 %r9, {0};", (0x1234FE,), -2),
        ("prmt.b32 %r9, {0}, {1}, 0x7610U;", (0x11112222, 0x33334444), 0x33332222),
        ("min.s32 %r9, {0}, {1};", (-1, 1), -1),
        ("min.u32 %r9, {0}, {1};", (-1, 1), 1),
        ("mul.lo.s32 %r9, {0}, {1};", (2**30, 6), -(2**31)),
    ],
)
def test_integers(instruction: str, values: tuple[int, ...], expected: int) -> None:
    assert computed(instruction, *values).view(np.int32) == expected


@pytest.mark.parametrize(
    ("instruction", "values", "expected"),
    [
        ("fma.rn.f32 %r9, {0}, {1}, {2};", (1 + 2.0**-23, 1 - 2.0**-23, -1.0), -(2.0**-46)),  # not rounded between
        ("max.f32 %r9, {0}, {1};", (float("nan"), 2.0), 2.0),
        ("max.NaN.f32 %r9, {0}, {1};", (float("nan"), 2.0), float("nan")),
        ("ex2.approx.ftz.f32 %r9, {0};", (-127.0,), 0.0),
        ("ex2.approx.f32 %r9, {0};", (-127.0,), 2.0**-127),
        ("setp.lt.f32 %p1, {0}, {1}; \n selp.f32 %r9, {0}, {1}, %p1;", (float("nan"), 1.0), 1.0),
        ("setp.ltu.f32 %p1, {0}, {1}; \n selp.f32 %r9, {0}, {1}, %p1;", (float("nan"), 1.0), float("nan")),
        ("cvt.rna.tf32.f32 %r9, {0};", (1 + 2.0**-11,), 1 + 2.0**-10),
        ("cvt.rn.bf16.f32 %rs1, {0}; \n cvt.f32.bf16 %r9, %rs1;", (1 + 2.0**-8,), 1.0),
        ("cvt.rn.bf16.f32 %rs1, {0}; \n cvt.f32.bf16 %r9, %rs1;", (1 + 3 * 2.0**-8,), 1 + 2.0**-6),
        ("cvt.rn.f16x2.f32 %r8, {0}, {1}; \n mov.b32 {{%rs1, _}}, %r8; \n cvt.f32.f16 %r9, %rs1;", (1.0, 2.0), 2.0),
    ],
)
def test_numbers(instruction: str, values: tuple[float, ...], expected: float) -> None:
    np.testing.assert_array_equal(computed(instruction, *values).view(np.float32), np.float32(expected))


def test_threads_that_part_meet_again() -> None:
    body = """
    setp.lt.u32 %p1, %r1, 10;
    mov.b32 %r9, 1;
    @%p1 bra $there;
    mov.b32 %r9, 2;
    bra.uni $end;
$there:
    add.s32 %r9, %r9, 4;
$end:
    shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
    st.global.b32 [%rd2], %r9;
"""
    assert run(body, np.zeros(32, np.uint32)).tolist() == [5] * 10 + [2] * 22


def test_a_loop() -> None:
    """Each thread as often as its number says."""
    body = """
    mov.b32 %r8, 0;
    mov.b32 %r9, 0;
$again:
    setp.ge.u32 %p1, %r8, %r1;
    @%p1 bra $end;
    add.s32 %r9, %r9, %r8;
    add.s32 %r8, %r8, 1;
    bra.uni $again;
$end:
    st.global.b32 [%rd2], %r9;
"""
    assert run(body, np.zeros(32, np.uint32)).tolist() == [n * (n - 1) // 2 for n in range(32)]


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_a_matrix_product(kind: str) -> None:
    """By the layouts that PTX's manual gives: a thread's registers of A (16, k), B (k, 8) and C (16, 8)."""
    of_register = 1 if kind == "tf32" else 2
    k = 8 * of_register
    rng = np.random.default_rng(0)
    A, B, C = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8)))
    lane = np.arange(32)
    group, pair = lane // 4, lane % 4
    words = np.zeros((10, 32), np.uint32)
    for i in range(4):
        columns = [of_register * pair + j + 4 * of_register * (i // 2) for j in range(of_register)]
        words[i] = packed([A[group + 8 * (i % 2), column] for column in columns], kind)
    for i in range(2):
        rows = [of_register * pair + j + 4 * of_register * i for j in range(of_register)]
        words[4 + i] = packed([B[row, group] for row in rows], kind)
    for i in range(4):
        words[6 + i] = C[group + 8 * (i // 2), 2 * pair + i % 2].view(np.uint32)
    loads = "".join(f"    ld.global.b32 %r{10 + i}, [%rd2 + {128 * i}];\n" for i in range(10))
    shape = f"m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
    product = f"    mma.sync.aligned.{shape} {{%r30, %r31, %r32, %r33}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, "
    stores = "".join(f"    st.global.b32 [%rd2 + {128 * i}], %r{30 + i};\n" for i in range(4))
    found = run(loads + product + "{%r16, %r17, %r18, %r19};\n" + stores, words).view(np.float32)
    expected = A @ B + C
    for i in range(4):
        np.testing.assert_array_equal(found[i], expected[group + 8 * (i // 2), 2 * pair + i % 2])


def packed(numbers: list[np.ndarray], kind: str) -> np.ndarray:
    """One number a register, or two of 16 bits, the first in its lower half; they are small and whole."""
    if kind == "tf32":
        return numbers[0].view(np.uint32)
    halves = [n.astype(np.float16).view(np.uint16) if kind == "f16" else n.view(np.uint32) >> 16 for n in numbers]
    return halves[0].astype(np.uint32) | halves[1].astype(np.uint32) << 16


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_in_shared_memory(trans: str) -> None:
    """Rows of eight numbers of 16 bits, spread over a warp by ``ldmatrix``; ``stmatrix`` is its inverse."""
    body = f"""
    mul.lo.s32 %r4, %r1, 4;
    ld.global.b32 %r5, [%rd2];
    st.shared.b32 [%r4], %r5;
    bar.sync 0;
    mul.lo.s32 %r6, %r1, 16;
    ldmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 {{%r7}}, [%r6];
    st.global.b32 [%rd2], %r7;
    add.s32 %r8, %r6, 512;
    stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [%r8], {{%r7}};
    bar.sync 0;
    ld.shared.b32 %r9, [%r4 + 512];
    st.global.b32 [%rd2 + 128], %r9;
"""
    tensor = np.arange(128, dtype=np.uint16)
    first = tensor[:64].reshape(8, 8).copy()
    tensor[64:] = 0
    found = run(body, tensor, shared=1024)
    np.testing.assert_array_equal(found[:64], (first.T if trans else first).ravel())
    np.testing.assert_array_equal(found[64:], first.ravel())


FAULTS = {
    "beside all tensors": "ld.global.b32 %r9, [%rd2 + 4];",
    "no multiple of 8": "ld.global.v2.b32 {%r8, %r9}, [%rd2];",
    "different values to one place": "st.global.b32 [%rd1], %r1;",
    "reads what another has written": """
    st.shared.b32 [%r2], %r1;
    xor.b32 %r4, %r2, 4;
    ld.shared.b32 %r9, [%r4];
""",
    "writes what another has read": """
    xor.b32 %r4, %r2, 4;
    ld.shared.b32 %r9, [%r4];
    st.shared.b32 [%r2], %r1;
""",
    "writes what another has read or written": """
    xor.b32 %r4, %r2, 4;
    ld.shared.b32 %r9, [%r4];
    mov.b32 %r5, -1;
    st.shared.b32 [%r2], %r5;
    st.shared.b32 [%r2], %r1;
""",
    "writes what another has .* written": """
    mov.b32 %r5, 5;
    st.shared.b32 [%r2], %r5;
    xor.b32 %r4, %r2, 4;
    st.shared.b32 [%r4], %r5;
    st.shared.b32 [%r4], %r1;
""",
    "do not reach a barrier": """
    setp.lt.u32 %p1, %r1, 10;
    @%p1 bar.sync 0;
""",
    "a warp do not reach": """
    setp.lt.u32 %p1, %r1, 10;
    @%p1 shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;
""",
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_goes_wrong_on_a_gpu(message: str) -> None:
    with pytest.raises(GPUError, match=message):
        run(FAULTS[message], np.zeros(32, np.uint32))


@pytest.mark.parametrize(
    ("barrier", "partner", "is_enough"),
    [("bar.warp.sync -1", 1, True), ("bar.warp.sync -1", 32, False), ("bar.sync 0", 32, True)],
)
def test_whom_a_barrier_waits_for(barrier: str, partner: int, is_enough: bool) -> None:
    """A thread reads what its partner, of the same warp or of another one, has written before the barrier."""
    body = f"""
    st.shared.b32 [%r2], %r1;
    {barrier};
    xor.b32 %r4, %r2, {4 * partner};
    ld.shared.b32 %r9, [%r4];
    st.global.b32 [%rd2], %r9;
"""
    tensor = np.zeros(64, np.uint32)
    if is_enough:
        assert run(body, tensor, warps=2).tolist() == [n ^ partner for n in range(64)]
    else:
        with pytest.raises(GPUError, match="reads what another has written"):
            run(body, tensor, warps=2)


def test_programs_wait_for_nobody() -> None:
    body = """
    setp.eq.u32 %p1, %r3, 0;
    @%p1 st.global.b32 [%rd2], %r1;
    bar.sync 0;
    ld.global.b32 %r9, [%rd2];
"""
    assert run(body, np.zeros(32, np.uint32)).tolist() == list(range(32))
    with pytest.raises(GPUError, match="reads what another has written"):
        run(body, np.zeros(32, np.uint32), programs=2)


def test_programs_have_their_own_shared_memory() -> None:
    body = """
    st.shared.b32 [%r2], %r3;
    bar.sync 0;
    ld.shared.b32 %r9, [%r2];
    mul.wide.u32 %rd3, %r3, 128;
    add.s64 %rd4, %rd2, %rd3;
    st.global.b32 [%rd4], %r9;
"""
    assert run(body, np.zeros(64, np.uint32), programs=2).tolist() == [0] * 32 + [1] * 32


@pytest.mark.parametrize(
    "instruction",
    [
        "atom.global.add.u32 %r9, [%rd1], 1;",
        "add.rn.f16x2 %r9, %r1, %r1;",
        "cvt.rni.s32.f32 %r9, %r1;",
        "add.sat.f32 %r9, %r1, %r1;",
        "setp.eq.xor.u32 %p1, %r1, %r1, %p1;",
        "bar.arrive 0, 64;",
    ],
)
def test_an_instruction_that_it_does_not_know(instruction: str) -> None:
    with pytest.raises(NotImplementedError, match=instruction.split()[0]):
        run(instruction, np.zeros(32, np.uint32))
