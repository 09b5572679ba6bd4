"""Blocks of memory that are used again: never while a tensor is alive, never more than agreed."""

import multiprocessing
import os
import threading

import pytest
import torch

from kdfast.ops import memory

MEGABYTE = 2**18  # float32 elements


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_blocks", [])


def test_is_an_ordinary_tensor() -> None:
    x = memory.empty((4, MEGABYTE), torch.float32)
    assert x.shape == (4, MEGABYTE)
    assert x.is_contiguous()
    assert not x._is_view()
    assert x.data_ptr() % 64 == 0
    assert len(memory._blocks) == 1
    assert memory.empty((3, 5), torch.bfloat16).shape == (3, 5)
    assert memory.empty((0, 5), torch.float32).numel() == 0
    assert len(memory._blocks) == 1


def test_is_used_again_when_nobody_holds_it() -> None:
    x = memory.empty((2, MEGABYTE), torch.float32)
    address = x.data_ptr()
    row = x[1]
    del x
    y = memory.empty((2, MEGABYTE), torch.float32)
    assert y.data_ptr() != address  # a view is alive
    del row
    assert memory.empty((4, MEGABYTE), torch.float16).data_ptr() == address
    assert memory.empty((9, MEGABYTE), torch.float32).data_ptr() != address  # too small


def test_idle_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST_IDLE", 2**23)
    tensors = [memory.empty((n, MEGABYTE), torch.float32) for n in (4, 1, 1, 5)]
    tensors.clear()
    last = memory.empty((40, MEGABYTE), torch.float32)
    assert sum(block.nbytes for block in memory._blocks) - last.nbytes <= 2**23
    assert len(memory._blocks) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_is_forked_while_a_thread_holds_the_lock_has_its_own() -> None:
    context = multiprocessing.get_context("fork")
    with memory._lock:
        child = context.Process(target=memory.empty, args=((MEGABYTE,), torch.float32))
        child.start()
        child.join(timeout=20)
    if child.is_alive():
        child.kill()
    child.join()
    assert child.exitcode == 0


def test_threads_get_different_blocks() -> None:
    tensors: list[torch.Tensor] = []

    def work() -> None:
        for i in range(50):
            x = memory.empty((MEGABYTE,), torch.float32).fill_(i)
            assert (x == i).all()
        tensors.append(x)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({x.data_ptr() for x in tensors}) == 4
