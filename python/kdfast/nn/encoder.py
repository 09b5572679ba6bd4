"""A transformer encoder layer on the constituents of a jet."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdfast.errors import ConfigError, suggest
from kdfast.nn.attention import attend, check_attention
from kdfast.nn.entrances import JetModule, check_sizes
from kdfast.ops.dropout import dropout as drop_elements
from kdfast.ops.philox import fold_seed

__all__ = ["EncoderBlock"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class EncoderBlock(JetModule):
    """Attention and feed-forward network, each with a residual: torch.nn.TransformerEncoderLayer on packed jets.

    With norm_first: x + attention(norm1(x)), then x + ffn(norm2(x)); otherwise norm1(x + attention(x)), then
    norm2(x + ffn(x)). ffn(x) = ffn_out(activation(ffn_in(x))).

    It takes packed and padded constituents, see `forward`. Its parameters have the names of an encoder layer
    of JetTransformer, and the same seed gives the same numbers. load_state_dict also takes the names of
    torch.nn.TransformerEncoderLayer.

    Parameters
    ----------
    width : int
        Features of a constituent, a multiple of heads.
    heads : int
        Attention heads.
    ffn : int
        Hidden width of the feed-forward network.
    dropout : float
        Probability in [0, 1), in training mode: of attention weights (by fold_seed(seed, 0)), the attention's
        output (1), hidden activations (2) and the network's output (3).
    norm_first : bool
        Whether the norms come before attention and network.
    activation : str
        "gelu" (exact) or "relu".
    bias : bool
        Whether linear maps and norms have a bias.
    eps : float
        Of the norms.
    device, dtype
        Of the parameters.

    Raises
    ------
    ConfigError
        For sizes that do not fit together, or an unknown activation.

    Examples
    --------
    >>> block = EncoderBlock(width=32, heads=4, ffn=64)
    >>> block(torch.randn(5, 32), torch.tensor([0, 3, 5])).shape
    torch.Size([5, 32])

    Padded jets:

    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> block(torch.randn(2, 3, 32), mask=mask).shape
    torch.Size([2, 3, 32])
    """

    _torch_names: ClassVar = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "ffn_in.",
        "linear2.": "ffn_out.",
    }

    def __init__(
        self,
        width: int,
        heads: int,
        ffn: int,
        dropout: float = 0.1,
        norm_first: bool = True,
        activation: str = "gelu",
        *,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes("EncoderBlock", dropout, width=width, heads=heads, ffn=ffn)
        if activation not in _ACTIVATIONS:
            hint = suggest(str(activation), list(_ACTIVATIONS))
            raise ConfigError(f"unknown activation {activation!r}", where="EncoderBlock", hint=hint)
        super().__init__()
        self.width = width
        self.heads = heads
        self.ffn = ffn
        self.dropout = dropout
        self.norm_first = norm_first
        self.activation = activation
        self.norm1 = nn.LayerNorm(width, eps, bias=bias, device=device, dtype=dtype)
        self.qkv = nn.Linear(width, 3 * width, bias, device=device, dtype=dtype)
        self.out = nn.Linear(width, width, bias, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(width, eps, bias=bias, device=device, dtype=dtype)
        self.ffn_in = nn.Linear(width, ffn, bias, device=device, dtype=dtype)
        self.ffn_out = nn.Linear(ffn, width, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def _packed(self, x: Tensor, offsets: Tensor, pair_bias: Tensor | None, seed: int | Tensor | None) -> Tensor:
        def drop(x: Tensor, part: int) -> Tensor:
            return x if seed is None else drop_elements(x, offsets, self.dropout, fold_seed(seed, part))

        def attention(x: Tensor) -> Tensor:
            weights_seed = None if seed is None else fold_seed(seed, 0)
            return drop(attend(x, offsets, self.qkv, self.out, self.heads, pair_bias, self.dropout, weights_seed), 1)

        def network(x: Tensor) -> Tensor:
            return drop(self.ffn_out(drop(_ACTIVATIONS[self.activation](self.ffn_in(x)), 2)), 3)

        if self.norm_first:
            x = x + attention(self.norm1(x))
            return x + network(self.norm2(x))
        x = self.norm1(x + attention(x))
        return self.norm2(x + network(x))

    @classmethod
    def from_torch(cls, layer: nn.TransformerEncoderLayer) -> EncoderBlock:
        """The same layer: a copy of weights, dtype, device and mode. Raises ConfigError if there is none."""
        check_attention(layer.self_attn)
        rates = {layer.self_attn.dropout, layer.dropout.p, layer.dropout1.p, layer.dropout2.p}
        if len(rates) > 1 or layer.norm1.eps != layer.norm2.eps:
            raise ConfigError("has several dropout probabilities, or several eps of its norms", where="from_torch")
        weight = layer.linear1.weight
        block = cls(
            layer.self_attn.embed_dim,
            layer.self_attn.num_heads,
            layer.linear1.out_features,
            layer.dropout.p,
            layer.norm_first,
            _activation_name(layer.activation),
            bias=layer.linear1.bias is not None,
            eps=layer.norm1.eps,
            device=weight.device,
            dtype=weight.dtype,
        )
        block.load_state_dict(layer.state_dict())
        return block.train(layer.training)

    def to_torch(self) -> nn.TransformerEncoderLayer:
        """torch's layer (batch first) with a copy of the weights, dtype, device and mode."""
        weight = self.ffn_in.weight
        layer = nn.TransformerEncoderLayer(
            self.width,
            self.heads,
            self.ffn,
            self.dropout,
            self.activation,
            self.norm1.eps,
            batch_first=True,
            norm_first=self.norm_first,
            bias=self.ffn_in.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.load_state_dict(self._torch_state())
        return layer.train(self.training)

    def extra_repr(self) -> str:
        order = "norm_first" if self.norm_first else "norm_last"
        sizes = f"width={self.width}, heads={self.heads}, ffn={self.ffn}, dropout={self.dropout}"
        return f"{sizes}, {order}, activation={self.activation!r}"


def _activation_name(activation: object) -> str:
    """ "gelu" or "relu" for what torch's layer holds; ConfigError for anything else."""
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return "relu"
    if activation is F.gelu or (isinstance(activation, nn.GELU) and activation.approximate == "none"):
        return "gelu"
    raise ConfigError(f"its activation {activation} is neither exact GELU nor ReLU", where="from_torch")
