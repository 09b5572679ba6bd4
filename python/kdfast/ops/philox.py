"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11) in PyTorch, and the keys it is used with.

The twin of csrc/core/philox.h, which gives the same bits. A random number depends on its key (a `seed`,
derived from the study's seed, a purpose, step and layer) and its counter (jet, head, query, key or feature),
never on the order of computation, the number of threads or the device.
"""

from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF

UInt64s = npt.NDArray[np.uint64]


@overload
def splitmix64(x: int) -> int: ...
@overload
def splitmix64(x: UInt64s) -> UInt64s: ...
def splitmix64(x: Any) -> Any:
    """One output of splitmix64 (Steele et al., OOPSLA'14) for the state x, or for each of an array."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def derive_seed(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one use: the splitmix64 chain over (seed, purpose, *parts), e.g. ("dropout", step, layer).

    63 bits, so that it fits a signed 64-bit integer wherever it travels.
    """
    state = splitmix64(seed & _MASK64)
    for byte in purpose.encode():
        state = splitmix64(state ^ byte)
    for part in parts:
        state = splitmix64(state ^ (part & _MASK64))
    return state >> 1


@overload
def fold_seed(seed: int, part: int) -> int: ...
@overload
def fold_seed(seed: Tensor, part: int) -> Tensor: ...
@overload
def fold_seed(seed: UInt64s, part: int) -> UInt64s: ...
def fold_seed(seed: Any, part: int) -> Any:
    """One more link: a 63-bit seed for part (a layer, a step) of what seed is for; for each of an array.

    For an int64 tensor [] a tensor: under torch.compile a seed is then data, not a constant of the compiled
    code.
    """
    if isinstance(seed, Tensor):
        return torch.ops.kdfast.fold_seed.default(seed, part)
    return splitmix64(seed ^ (part & _MASK64)) >> 1


def seed_tensor(seed: int | Tensor) -> Tensor:
    """A seed as registered ops take it: an int64 tensor []; 64 unsigned bits become the same bits, signed."""
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed if seed < 2**63 else seed - 2**64, dtype=torch.int64)


def philox4x32(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (in int64) for each counter; the counters are int64 tensors that broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*(c & _MASK32 for c in (c0, c1, c2, c3)))
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(10):
        # int64 products keep the low 64 bits, all that 32 × 32 bits have; c1 and c3 hold garbage above their
        # 32.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK32, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK32, p0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1 & _MASK32, c2, c3 & _MASK32


def dropout_threshold(p: float) -> int:
    """p in [0, 1) as a threshold on 16 random bits; an element is kept where its bits ≥ threshold."""
    return min(int(p * 65536.0 + 0.5), 65535)


def dropout_scale(p: float) -> float:
    """What kept elements are multiplied by: 1 / (1 − p as quantised to 16 bits)."""
    return 65536.0 / (65536 - dropout_threshold(p))


def dropout_keep(seed: int, p: float, jet: Tensor, head: Tensor, row: Tensor, num_columns: int) -> Tensor:
    """Which elements dropout keeps: bool [..., num_columns], for int64 index tensors that broadcast to [...].

    One Philox call, at the counter (jet, head, row, column // 8), decides eight neighbouring columns: column
    c uses 16 bits of word (c % 8) // 2, the low half where c is even. jet: position in the batch; row: query
    or constituent within the jet; column: key or feature.
    """
    groups = torch.arange((num_columns + 7) // 8, device=jet.device)
    words = torch.stack(philox4x32(seed, jet[..., None], head[..., None], row[..., None], groups), dim=-1)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(-3)
    return halves[..., :num_columns] >= dropout_threshold(p)


def uniform_open(bits: Tensor) -> Tensor:
    """32 random bits to a float64 uniform in (0, 1): (bits + ½) · 2⁻³², exact."""
    return (bits.double() + 0.5) * 2.0**-32


def normal_pair(bits_radius: Tensor, bits_angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers (float64) from 2 × 32 random bits, by Box and Muller."""
    radius = torch.sqrt(-2.0 * torch.log(uniform_open(bits_radius)))
    angle = (2.0 * torch.pi) * uniform_open(bits_angle)
    return radius * torch.cos(angle), radius * torch.sin(angle)


# Opaque to compilers, which need not wrap 64-bit products around as the chain does.
_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define("fold_seed(Tensor seed, int part) -> Tensor")
_library.impl(
    "fold_seed", lambda seed, part: torch.full_like(seed, fold_seed(int(seed), part)), "CompositeExplicitAutograd"
)
torch.library.register_fake("kdfast::fold_seed", lambda seed, part: torch.empty_like(seed), lib=_library)
