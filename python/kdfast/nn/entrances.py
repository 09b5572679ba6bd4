"""What the modules share: the packed and the padded entrance, seeds of dropout, and torch.nn's names in state dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdfast.errors import ConfigError, DataError
from kdfast.ops.arrays import check_padded_bias, through_rows
from kdfast.ops.autograd import is_eager
from kdfast.ops.philox import seed_tensor

_TAIL = 16  # rows of padding that form one jet under torch.compile: attention costs 16 a row


class JetModule(nn.Module):
    """A module from constituents [M, width] to constituents [M, width], with a padded entrance.

    Subclasses set width, heads and dropout, compute `_packed`, and name in `_torch_names` the prefixes of
    torch.nn's parameters.
    """

    width: int
    heads: int
    dropout: float
    _torch_names: ClassVar[Mapping[str, str]]

    def forward(
        self,
        x: Tensor,
        offsets: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        pair_bias: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """The module's result, for packed or padded constituents. Give either offsets or mask.

        Parameters
        ----------
        x : Tensor [M, width] with offsets, or [B, N, width] with a mask
            The constituents.
        offsets : Tensor [B + 1], int64
            Where each jet begins. A jet may be empty.
        mask : Tensor [B, N], bool
            True for a constituent. The values in padding, NaN included, are never read, and the result is
            zero there.
        pair_bias : Tensor, optional
            Added to the scores of (query, key): for packed constituents [heads, Σ n²], each jet's n × n block
            after the other; for padded ones [B, heads, N, N], whose packing breaks the graph of
            torch.compile.
        seed : int or Tensor [], int64, optional
            Key of this call's dropout in training mode. By default it is drawn from torch's default
            generator. Each layer of a stack needs its own: `kdfast.ops.philox.fold_seed(seed, layer)`.

        Returns
        -------
        Tensor
            Of the shape of x.

        Raises
        ------
        DataError
            For shapes that do not fit together.
        ConfigError
            Unless exactly one of offsets and mask is given.
        """
        if (offsets is None) == (mask is None):
            hint = "give offsets [B + 1] for packed x [M, width], or mask=[B, N] bool for padded x [B, N, width]"
            raise ConfigError("exactly one of offsets and mask is needed", where=type(self).__name__, hint=hint)
        if x.dim() != (2 if mask is None else 3) or x.shape[-1] != self.width or not x.is_floating_point():
            wanted = f"[M, {self.width}] with offsets" if mask is None else f"[B, N, {self.width}] with a mask"
            raise DataError(f"must be floating-point {wanted}, is {x.dtype} {list(x.shape)}", where="x")
        seed = self._call_seed(x, seed)
        if offsets is not None:
            return self._packed(x, offsets, pair_bias, seed)
        assert mask is not None
        _check_mask(x, mask, pair_bias, self.heads)
        if is_eager(x) or pair_bias is not None:
            return through_rows(partial(self._packed, seed=seed), (x,), mask, pair_bias)
        return _through_fixed_rows(self._packed, x, mask, seed)

    def reset_parameters(self) -> None:
        """New weights from torch's default generator: Xavier-uniform matrices, zero biases, norms 1 and 0."""
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()

    def _packed(self, x: Tensor, offsets: Tensor, pair_bias: Tensor | None, seed: int | Tensor | None) -> Tensor:
        """The result for packed constituents; no dropout where seed is None."""
        raise NotImplementedError

    def _call_seed(self, x: Tensor, seed: int | Tensor | None) -> int | Tensor | None:
        """The key of this call's dropout, None for none; a tensor where x is traced, so that it is not compiled in."""
        if not self.training or self.dropout == 0:
            return None
        if seed is None:
            seed = torch.randint(2**62, (), device="cpu")
        return int(seed) if is_eager(x) else seed_tensor(seed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes the names of the torch.nn layer of the same kind too."""
        for key in list(state_dict):
            for theirs, ours in self._torch_names.items():
                if key.startswith(prefix + theirs):
                    renamed = prefix + ours + key.removeprefix(prefix + theirs)
                    if renamed not in state_dict:
                        state_dict[renamed] = state_dict.pop(key)
                    break
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _torch_state(self) -> dict[str, Tensor]:
        """The state dict with the names of the torch.nn layer of the same kind."""
        state = {}
        for key, value in self.state_dict().items():
            name = key
            for theirs, ours in self._torch_names.items():
                if key.startswith(ours):
                    name = theirs + key.removeprefix(ours)
            state[name] = value
        return state


_Packed = Callable[[Tensor, Tensor, Tensor | None, int | Tensor | None], Tensor]


def _through_fixed_rows(packed: _Packed, x: Tensor, mask: Tensor, seed: int | Tensor | None) -> Tensor:
    """The same with shapes that do not depend on what the mask holds, so that it compiles without a graph break.

    All B · N rows are computed, the padding as zeros behind the constituents, in jets of its own.
    """
    there = mask.flatten()
    slots = there.numel()
    constituents = there.sum()
    place = torch.where(there, there.cumsum(0) - 1, constituents - 1 + (~there).cumsum(0))  # a permutation
    tail = torch.arange(1, (slots + _TAIL - 1) // _TAIL + 1, device=mask.device) * _TAIL + constituents
    offsets = torch.cat([place.new_zeros(1), mask.sum(1).cumsum(0), tail.clamp(max=slots)])
    clean = torch.where(mask[..., None], x, 0.0).flatten(0, 1)
    out = packed(clean.new_zeros(clean.shape).index_copy(0, place, clean), offsets, None, seed)
    return torch.where(mask[..., None], out.index_select(0, place).view(x.shape), 0.0)


def _check_mask(x: Tensor, mask: Tensor, pair_bias: Tensor | None, heads: int) -> None:
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        hint = "true marks a constituent; torch.nn's key_padding_mask is the opposite"
        what = f"must be bool {list(x.shape[:2])}, is {mask.dtype} {list(mask.shape)}"
        raise DataError(what, where="mask", hint=hint)
    check_padded_bias(pair_bias, mask, heads, "pair_bias")


def check_sizes(where: str, dropout: float, **sizes: Any) -> None:
    """Raises ConfigError unless sizes are whole and above 0, heads divides width, and dropout lies in [0, 1)."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{name} must be a whole number above 0, is {size!r}", where=where)
    width = sizes["width"]
    heads = sizes["heads"]
    if width % heads:
        raise ConfigError(f"width {width} is not a multiple of heads {heads}", where=where)
    if not 0 <= dropout < 1:  # NaN fails too
        raise ConfigError(f"dropout must lie in [0, 1), is {dropout}", where=where)
