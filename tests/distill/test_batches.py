import torch

from kdfast.distill.batches import epoch_batches, gather


def test_batches_are_a_permutation_that_follows_seed_and_epoch():
    batches = epoch_batches(42, 3, 1000, 128)
    assert batches.shape == (7, 128)
    assert len(batches.flatten().unique()) == 7 * 128
    assert torch.equal(batches, epoch_batches(42, 3, 1000, 128))
    assert not torch.equal(batches, epoch_batches(42, 4, 1000, 128))
    assert not torch.equal(batches, epoch_batches(43, 3, 1000, 128))


def test_the_batch_size_does_not_change_the_order():
    a, b = epoch_batches(1, 0, 640, 64).flatten(), epoch_batches(1, 0, 640, 128).flatten()
    assert torch.equal(a, b)


def test_every_jet_comes_first_about_equally_often():
    first = torch.stack([epoch_batches(0, epoch, 10, 10)[0, 0] for epoch in range(2000)])
    counts = first.bincount(minlength=10).double()
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # χ² with 9 degrees of freedom, p = 0.001


def test_gather_takes_whole_jets():
    offsets = torch.tensor([0, 3, 3, 7, 8])
    features = torch.arange(8.0)[:, None]
    picked, new_offsets = gather(features, offsets, torch.tensor([2, 1, 0, 2]))
    assert picked[:, 0].tolist() == [3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6]
    assert new_offsets.tolist() == [0, 4, 4, 7, 11]


def test_windows_are_a_permutation_of_blocks_from_all_over():
    jets, window = 100_000, 2048
    order = epoch_batches(3, 0, jets, 1, window=window).flatten()
    assert torch.equal(order.sort().values, torch.arange(jets))
    size = window // 256
    for part in order[: 40 * window].split(window):
        blocks = part.div(size, rounding_mode="floor").unique()
        assert len(blocks) <= 257  # the last block of all may be short
        assert blocks.double().std() > 0.25 * (jets / size) / 12**0.5 * 2, "blocks come from all over"
        assert not torch.equal(part, part.sort().values)
    assert not torch.equal(order, epoch_batches(3, 1, jets, 1, window=window).flatten())


def test_a_window_that_holds_all_jets_changes_nothing():
    whole = epoch_batches(3, 2, 640, 64)
    assert torch.equal(epoch_batches(3, 2, 640, 64, window=640), whole)
    assert not torch.equal(epoch_batches(3, 2, 640, 64, window=320), whole)


def test_batches_of_windows_mix_classes_that_are_stored_apart():
    """Of 40,000 jets the first half is signal; a window is a fair sample all the same."""
    batches = epoch_batches(0, 0, 40_000, 512, window=2048)
    share = (batches < 20_000).double().mean(1)
    assert ((share - 0.5).abs() < 0.2).all()
