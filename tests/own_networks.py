"""Networks as a user would write them, by name: tests.own_networks:function."""

import torch
from torch import nn

from kdfast.models import Adapter


class PlainDeepSets(nn.Module):
    """Sums over packed jets, with dropout and a batch norm, whose state has to be kept too."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(width, 1)

    def forward(self, features, offsets):
        x = self.dropout(torch.relu(self.embed(features)))
        total = torch.segment_reduce(x, "sum", offsets=offsets, axis=0, unsafe=True, initial=0)
        return self.classify(self.norm(total)).squeeze(-1)


class Attentive(nn.Module):
    """A padded network that returns the weights by which it pools."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 8)
        self.score = nn.Linear(8, 1)
        self.classify = nn.Linear(8, 1)

    def forward(self, x, mask):
        h = torch.tanh(self.embed(x))
        weights = self.score(h)[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
        return self.classify((weights[..., None] * h).sum(1)), weights


class ParticleTransformer(nn.Module):
    """weaver-core's, with the four-momenta that its pairs of constituents need."""

    def __init__(self) -> None:
        super().__init__()
        from weaver.nn.model.ParticleTransformer import ParticleTransformer

        self.net = ParticleTransformer(
            7, 1, embed_dims=(16, 16), pair_embed_dims=(8,), num_heads=2, num_layers=1, num_cls_layers=1, trim=False
        )

    def forward(self, x, mask):
        eta, phi, ln_pt = x[..., :3].unbind(-1)  # relative to the jet's axis
        pt = ln_pt.exp() * mask
        momenta = torch.stack([pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), pt * eta.cosh()], 1)
        return self.net(x.mT, v=momenta, mask=mask[:, None])


class ParticleNet(nn.Module):
    """weaver-core's."""

    def __init__(self) -> None:
        super().__init__()
        from weaver.nn.model.ParticleNet import ParticleNet

        self.net = ParticleNet(7, 1, conv_params=[(4, (8, 8))], fc_params=[(8, 0.1)], trim=False)

    def forward(self, x, mask):
        return self.net(x[..., :2].mT, x.mT, mask[:, None])


def attentive() -> Adapter:
    return Adapter(Attentive(), attention=True)


def particle_transformer() -> Adapter:
    return Adapter(ParticleTransformer(), standardised=False)


def particle_net() -> Adapter:
    return Adapter(ParticleNet(), min_length=5)  # each constituent has 4 neighbours


wide = lambda: PlainDeepSets(width=12)  # noqa: E731
not_a_function = 3
