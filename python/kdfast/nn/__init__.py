"""Modules on packed or padded constituents, for models of one's own."""

from kdfast.nn.attention import ConstituentAttention
from kdfast.nn.encoder import EncoderBlock

__all__ = ["ConstituentAttention", "EncoderBlock"]
