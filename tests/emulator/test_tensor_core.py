"""The twins of mma, ldmatrix and movmatrix against the fragment layouts of the PTX manual, written down here once more.

PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", "… mma.m16n8k8 …" (.tf32), "ldmatrix" and
"movmatrix": groupID = laneid >> 2, threadID_in_group = laneid % 4.
"""

import numpy as np
import pytest
import torch

_emu = pytest.importorskip("kdfast._emu", reason="a build with KDFAST_EMULATOR=ON brings it")
probe = _emu.probe


def a_place(k: int, lane: int, i: int) -> tuple[int, int]:
    """(row, column) in A [16, k] of the lane's element a_i."""
    group, in_group = lane >> 2, lane % 4
    if k == 16:
        row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
        column = in_group * 2 + (i & 1) if i < 4 else in_group * 2 + (i & 1) + 8
    else:
        row = group if i in (0, 2) else group + 8
        column = in_group if i in (0, 1) else in_group + 4
    return row, column


def b_place(k: int, lane: int, i: int) -> tuple[int, int]:
    """(row, column) in B [k, 8] of b_i."""
    group, in_group = lane >> 2, lane % 4
    if k == 16:
        return in_group * 2 + (i & 1) + (0 if i < 2 else 8), group
    return in_group + (0 if i == 0 else 4), group


def c_place(lane: int, i: int) -> tuple[int, int]:
    """(row, column) in C and D [16, 8] of c_i."""
    return (lane >> 2) + (0 if i < 2 else 8), (lane % 4) * 2 + (i & 1)


def bits(x: torch.Tensor) -> np.ndarray:
    if x.element_size() == 4:
        return x.numpy().view(np.uint32)
    return x.view(torch.int16).numpy().view(np.uint16)


def multiply(name: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """C + A B through fragments in registers; two 16-bit elements a register, the first one low."""
    k = a.shape[1]
    each = k // 8
    a_bits, b_bits = bits(a), bits(b)
    registers_a, registers_b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    c_in, d = np.zeros((32, 4), np.float32), np.zeros((32, 4), np.float32)
    for lane in range(32):
        for i in range(4 * each):
            registers_a[lane, i // each] |= np.uint32(int(a_bits[a_place(k, lane, i)]) << 16 * (i % each))
        for i in range(2 * each):
            registers_b[lane, i // each] |= np.uint32(int(b_bits[b_place(k, lane, i)]) << 16 * (i % each))
        for i in range(4):
            c_in[lane, i] = c[c_place(lane, i)]
    probe.multiply(name, registers_a.ctypes.data, registers_b.ctypes.data, c_in.ctypes.data, d.ctypes.data)
    result = torch.full((16, 8), torch.nan)
    for lane in range(32):
        for i in range(4):
            result[c_place(lane, i)] = float(d[lane, i])
    return result


@pytest.mark.parametrize(
    ("name", "dtype", "k"), [("bf16", torch.bfloat16, 16), ("f16", torch.float16, 16), ("tf32", torch.float32, 8)]
)
def test_products_of_small_integers_are_exact(name: str, dtype: torch.dtype, k: int) -> None:
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        a, b, c = (torch.randint(-8, 9, shape, generator=rng) for shape in ((16, k), (k, 8), (16, 8)))
        assert torch.equal(multiply(name, a.to(dtype), b.to(dtype), c.float()), (c + a @ b).float())


def test_tf32_reads_19_bits() -> None:
    a, b, c = torch.zeros(16, 8), torch.zeros(8, 8), torch.zeros(16, 8)
    a[0, 0], b[0, 0] = 1 + 2**-10 + 2**-11, 1.0  # the last bit is the eleventh behind the point
    assert multiply("tf32", a, b, c)[0, 0].item() == 1 + 2**-10


@pytest.mark.parametrize(("name", "dtype", "k"), [("bf16", torch.bfloat16, 16), ("tf32", torch.float32, 8)])
def test_products_need_compute_capability_8(name: str, dtype: torch.dtype, k: int) -> None:
    _emu.set_compute_capability(75)
    try:
        with pytest.raises(_emu.EmulatorError, match=r"mma.m16n8k\d+ .*needs compute capability 8.0"):
            multiply(name, torch.zeros(16, k, dtype=dtype), torch.zeros(k, 8, dtype=dtype), torch.zeros(16, 8))
    finally:
        _emu.set_compute_capability(90)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(matrices: int, transpose: bool) -> None:
    source = np.arange(64 * matrices, dtype=np.uint16).reshape(matrices, 8, 8)
    out = np.zeros((32, matrices), np.uint32)
    probe.load_matrices(matrices, transpose, source.ctypes.data, out.ctypes.data)
    for lane in range(32):
        for m in range(matrices):
            row, column = lane // 4, lane % 4 * 2
            for e in range(2):
                at = (column + e, row) if transpose else (row, column + e)
                assert out[lane, m] >> 16 * e & 0xFFFF == source[m][at]


def test_movmatrix() -> None:
    source, out = np.arange(64, dtype=np.uint16).reshape(8, 8), np.zeros(32, np.uint32)
    probe.transpose_matrix(source.ctypes.data, out.ctypes.data)
    for lane in range(32):
        for e in range(2):
            assert out[lane] >> 16 * e & 0xFFFF == source[lane % 4 * 2 + e, lane // 4]


def test_fast_instructions_miss_by_what_the_manual_allows_and_no_more() -> None:
    n = 4000
    x = np.random.default_rng(0).uniform(0.01, 60.0, n).astype(np.float32)
    x[:1000] = x[:1000] / 60 + 0.5  # log2 close to 0
    exp2, log2, reciprocal = (np.zeros(n, np.float32) for _ in range(3))
    tf32 = np.zeros(n, np.uint32)
    probe.approximate(*(v.ctypes.data for v in (x, exp2, log2, reciprocal, tf32)), n)
    exact = x.astype(np.float64)
    close = np.abs(np.log2(exact)) < 1
    errors = {
        "exp2": np.abs(exp2 / np.exp2(exact) - 1),
        "log2": np.abs(log2 - np.log2(exact)) / np.where(close, 1.0, np.abs(np.log2(exact))),
        "reciprocal": np.abs(reciprocal * exact - 1),
    }
    for name, allowed in (("exp2", 2**-22), ("log2", 2**-22), ("reciprocal", 2**-23)):
        assert allowed / 2 < errors[name].max() < allowed + 2**-23, name  # that much are the twins' own roundings
    rounded = tf32.view(np.float32)
    assert (np.abs(rounded / exact - 1) <= 2**-11).all()
    assert not (tf32 & 0x1FFF).any()
