"""Ops in the forked workers of a data loader, whose parent has threads that the workers do not inherit."""

import pytest
import torch
from torch import Tensor

import kdfast
from kdfast.ops import backend
from tests.synthetic import synthetic_jets

pytestmark = pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))


class ViewsOfJets(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Items made with ops on two threads, in whatever process: features of an HLT view, attention over them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, seed: int) -> tuple[Tensor, Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        view = kdfast.emulate_hlt(synthetic_jets(40, seed=seed), seed=seed)
        features = kdfast.features(view)
        tokens = features.nan_to_num()[:, :1, None].expand(-1, 2, 8).contiguous()
        attended = kdfast.ops.constituent_attention(tokens, tokens, tokens, torch.as_tensor(view.offsets))
        torch.set_num_threads(before)
        return features, attended


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ops_in_the_forked_workers_of_a_data_loader() -> None:
    data = ViewsOfJets()
    here = [data[i] for i in range(len(data))]  # the parent's pool has threads now
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for from_worker, from_parent in zip(loader, here, strict=True):
        for theirs, ours in zip(from_worker, from_parent, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
