"""JetTransformer once more, with torch.nn's own layers on padded jets: an independent statement of the model."""

import torch
from torch import Tensor, nn

from kdfast.models import JetTransformer


class PaddedTwin(nn.Module):
    """The evaluation-mode model on x [B, N, F] with mask [B, N] (true: a constituent); needs no empty jet."""

    def __init__(self, model: JetTransformer) -> None:
        super().__init__()
        c = model.config
        self.model = model
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, c.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.pool = nn.MultiheadAttention(c.width, c.pooling_heads, batch_first=True)
        self.to(next(model.parameters()).dtype)
        with torch.no_grad():
            for theirs, ours in zip(self.encoder.layers, model.encoder, strict=True):
                theirs.norm1.load_state_dict(ours.norm1.state_dict())
                theirs.norm2.load_state_dict(ours.norm2.state_dict())
                theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
                theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
                theirs.self_attn.out_proj.load_state_dict(ours.out.state_dict())
                theirs.linear1.load_state_dict(ours.ffn_in.state_dict())
                theirs.linear2.load_state_dict(ours.ffn_out.state_dict())
            self.pool.in_proj_weight.copy_(torch.cat([model.pool.q.weight, model.pool.kv.weight]))
            self.pool.in_proj_bias.copy_(torch.cat([model.pool.q.bias, model.pool.kv.bias]))
            self.pool.out_proj.load_state_dict(model.pool.out.state_dict())

    @staticmethod
    def _dense(block: nn.Module, x: Tensor) -> Tensor:
        norm = block.norm
        scaled = (block.linear(x) - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        return nn.functional.gelu(scaled * norm.weight + norm.bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        h = self.encoder(self._dense(model.embed, x), src_key_padding_mask=~mask)
        query = model.pool.query.expand(len(x), 1, -1)
        pooled, weights = self.pool(query, h, h, key_padding_mask=~mask)
        h = self._dense(model.dense1, model.pool_norm(pooled[:, 0]))
        h = h + self._dense(model.dense2, h)
        return model.classify(self._dense(model.dense3, h)), weights[:, 0][mask]
