"""Multi-head self-attention among the constituents of a jet."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdfast.errors import ConfigError
from kdfast.nn.entrances import JetModule, check_sizes
from kdfast.ops.constituent_attention import constituent_attention_qkvpacked

__all__ = ["ConstituentAttention"]


class ConstituentAttention(JetModule):
    """out(attention(q, k, v)) with q, k, v = qkv(x), within each jet: torch.nn.MultiheadAttention on packed jets.

    It takes packed and padded constituents, see `forward`. load_state_dict also takes the names of
    torch.nn.MultiheadAttention.

    Parameters
    ----------
    width : int
        Features of a constituent, a multiple of heads. width / heads of 8, 16, 24, 32 or 64 runs the compiled
        kernel, any other the reference, with a warning.
    heads : int
        Attention heads.
    dropout : float
        Probability in [0, 1) that an attention weight is dropped in training mode.
    bias : bool
        Whether both projections have a bias.
    device, dtype
        Of the parameters.

    Raises
    ------
    ConfigError
        For sizes that do not fit together.

    Examples
    --------
    >>> attention = ConstituentAttention(width=32, heads=4)
    >>> attention(torch.randn(5, 32), torch.tensor([0, 3, 5])).shape
    torch.Size([5, 32])
    """

    _torch_names: ClassVar = {"in_proj_": "qkv.", "out_proj.": "out."}

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes("ConstituentAttention", dropout, width=width, heads=heads)
        super().__init__()
        self.width = width
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias, device=device, dtype=dtype)
        self.out = nn.Linear(width, width, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def _packed(self, x: Tensor, offsets: Tensor, pair_bias: Tensor | None, seed: int | Tensor | None) -> Tensor:
        return attend(x, offsets, self.qkv, self.out, self.heads, pair_bias, self.dropout, seed)

    @classmethod
    def from_torch(cls, layer: nn.MultiheadAttention) -> ConstituentAttention:
        """The same attention: a copy of weights, dtype, device and mode. Raises ConfigError if there is none."""
        check_attention(layer)
        weight = layer.in_proj_weight
        module = cls(
            layer.embed_dim,
            layer.num_heads,
            layer.dropout,
            layer.in_proj_bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        module.load_state_dict(layer.state_dict())
        return module.train(layer.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """torch's layer (batch first) with a copy of the weights, dtype, device and mode."""
        weight = self.qkv.weight
        layer = nn.MultiheadAttention(
            self.width,
            self.heads,
            self.dropout,
            self.qkv.bias is not None,
            batch_first=True,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.load_state_dict(self._torch_state())
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"width={self.width}, heads={self.heads}, dropout={self.dropout}"


def attend(
    x: Tensor,
    offsets: Tensor,
    qkv: nn.Linear,
    out: nn.Linear,
    heads: int,
    pair_bias: Tensor | None,
    dropout: float,
    seed: int | Tensor | None,
) -> Tensor:
    """Self-attention of packed constituents x [M, width], projected back; no dropout where seed is None."""
    rows, width = x.shape  # not len(x), which export would take for a constant
    packed = qkv(x).view(rows, 3, heads, width // heads)
    if seed is None:
        attended = constituent_attention_qkvpacked(packed, offsets, bias=pair_bias)
    else:
        attended = constituent_attention_qkvpacked(packed, offsets, bias=pair_bias, dropout_p=dropout, seed=seed)
    return out(attended.flatten(1))


def check_attention(layer: nn.MultiheadAttention) -> None:
    """Raises ConfigError for a layer that does more than self-attention by one projection."""
    if layer.in_proj_weight is None:
        what = f"keys and values of other widths ({layer.kdim}, {layer.vdim}) than queries ({layer.embed_dim})"  # type: ignore[unreachable]
        raise ConfigError(f"has {what}; this is self-attention", where="from_torch")
    if layer.bias_k is not None or layer.add_zero_attn:
        raise ConfigError("add_bias_kv and add_zero_attn have no counterpart here", where="from_torch")
