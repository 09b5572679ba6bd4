"""The emulator of CUDA finds every planted bug on every schedule; the right twins pass, with the same bits on each."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

_emu = pytest.importorskip("kdfast._emu", reason="a build with KDFAST_EMULATOR=ON brings it")
probe = _emu.probe

SEEDS = [0, 1, 2, 3, 4, 17]  # 0: threads in their order; odd: any order; even: by priority
SIZE, THREADS = 1024, 128

# Kernel → what its bug is called.
RACE = "no barrier between"
BUGS = {
    "missing_barrier": f"uninitialised|{RACE}",
    "missing_warp_barrier": RACE,
    "shuffle_as_barrier": f"uninitialised|{RACE}",
    "barrier_in_branch": "thread exits while .* wait for it in __syncthreads|__syncthreads after .* exited",
    "barrier_after_exit": "thread exits while .* wait for it in __syncthreads|__syncthreads after .* exited",
    "barrier_in_uneven_loop": "thread exits while .* wait for it in __syncthreads|__syncthreads after .* exited",
    "two_barriers": "wait at different __syncthreads",
    "overwritten_too_early": RACE,
    "two_writers": RACE,
    "second_sum_reuses_slots": RACE,
    "second_block_sum_too_early": RACE,
    "read_beyond_atomics": RACE,
    "written_among_atomics": RACE,
    "out_of_bounds": r"index 128 outside of \[0, 128\)",
    "below_bounds": r"index -1 outside of \[0, 128\)",
    "dynamic_memory_too_small": "ends at byte 4100 of the launch's 4096",
    "too_many_static_arrays": r"45072 static and 4096 dynamic bytes .*, over the 49152 that .* at probe\.cu:\d+",
    "uninitialised": "reads uninitialised shared memory",
    "misaligned": "misaligned access of 16 bytes",
    "copy_not_waited_for": "before it was waited for",
    "copy_without_barrier": f"before it was waited for|uninitialised|{RACE}",
    "exit_during_copy": "exits before it has waited for its cp.async",
    "mixed_collectives": "lanes of one warp disagree: (vote meets shuffle|shuffle meets vote)",
    "different_masks": "lanes of one warp disagree: .* of another mask",
    "lane_outside_its_mask": "the calling lane is not in the mask",
    "shuffle_from_outside": "lane 0 reads lane 20, which is not in the mask",
    "shuffle_after_exit": "the mask names lanes that have exited|thread exits while its warp waits for it",
    "sum_in_branch": "lanes of one warp disagree: shuffle meets shuffle",
    "half_a_warp_multiplies": "thread exits while its warp waits for it in mma|the mask names lanes that have exited",
    "beyond_a_tensor": "0 bytes beyond the end of a tensor of 4096 bytes",
    "before_a_tensor": "4 bytes before the beginning of a tensor of 512 bytes",
    "writes_its_input": "a write to byte 0 of a read-only tensor of 4096 bytes",
    "stack_overflow": "stack overflow",
}
RIGHT = [name for name in probe.kernels if name not in ("masked_tail",)]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    yield
    _emu.set_seed(0)
    _emu.set_compute_capability(90)


class Tensors:
    """x [1024] and out [128] between guard pages."""

    def __init__(self, at_end: bool = True, n: int = SIZE) -> None:
        self.memory = [_emu.GuardedMemory(4 * n, at_end=at_end), _emu.GuardedMemory(4 * THREADS, at_end=at_end)]
        self.x, self.out = (np.frombuffer(m, dtype=np.float32) for m in self.memory)
        self.x[:] = np.arange(n) % 7
        self.memory[0].make_read_only()

    def run(self, name: str, bug: bool = False, n: int = 0) -> np.ndarray:
        probe.run(name, bug, self.x.ctypes.data, self.out.ctypes.data, n)
        return self.out.copy()


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_found_on_every_schedule(name: str) -> None:
    for seed in SEEDS:
        _emu.set_seed(seed)
        with pytest.raises(_emu.EmulatorError, match=BUGS[name]) as error:
            Tensors(at_end=name != "before_a_tensor").run(name, bug=True)
        print(error.value)


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_with_the_same_bits_on_every_schedule(name: str) -> None:
    results = []
    for seed in SEEDS:
        _emu.set_seed(seed)
        results.append(Tensors().run(name).tobytes())
    assert len(set(results)) == 1


def test_an_error_names_line_block_and_thread() -> None:
    with pytest.raises(
        _emu.EmulatorError, match=r"at probe\.cu:\d+ in block \(0, 0, 0\) thread 127 \(warp 3 lane 31\)"
    ):
        Tensors().run("out_of_bounds", bug=True)


def test_an_error_leaves_the_next_launch_alone() -> None:
    for name in BUGS:
        with pytest.raises(_emu.EmulatorError):
            Tensors(at_end=name != "before_a_tensor").run(name, bug=True)
        assert Tensors().run("missing_barrier").tolist() == [(t + 32) % 128 % 7 for t in range(128)]


def test_a_mask_that_is_off_by_one_shows_in_the_numbers_of_every_length_but_whole_tiles() -> None:
    for n in range(1, 65):
        for seed in SEEDS[:2]:
            _emu.set_seed(seed)
            right, wrong = (Tensors(n=n).run("masked_tail", bug, n)[0] for bug in (False, True))
            expected = float(sum(i % 7 for i in range(n)))
            assert right == expected, n
            assert (wrong == expected) == (n % 16 == 0 or (n - 1) % 7 == 0), n  # the element taken twice may be 0


def test_schedules_differ() -> None:
    """The thread that is caught first tells in which order they ran."""
    caught = set()
    for seed in range(8):
        _emu.set_seed(seed)
        with pytest.raises(_emu.EmulatorError) as error:
            Tensors().run("writes_its_input", bug=True)
        caught.add(str(error.value))
    assert len(caught) > 4


def test_guarded_memory_knows_what_was_written_around_it() -> None:
    for at_end in (False, True):
        memory = _emu.GuardedMemory(10, at_end=at_end)
        inside = np.frombuffer(memory, dtype=np.uint8)
        inside[:] = 1
        assert memory.is_intact()
        beyond = np.ctypeslib.as_array((ctypes.c_uint8 * 12).from_address(inside.ctypes.data))
        beyond[11] = 0
        assert not memory.is_intact()


def test_launches_that_no_gpu_takes() -> None:
    x = np.zeros(4, np.float32)
    for shape, message in [
        ((0, 32, 0), "a grid that is empty"),
        ((1, 2048, 0), "a block of 2048 threads"),
        ((1, 33, 0), "a block of 33 threads"),
    ]:
        with pytest.raises(_emu.EmulatorError, match=message):
            probe.launch(*shape, x.ctypes.data)


@pytest.mark.parametrize(
    ("capability", "kibibytes"), [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)]
)
def test_shared_memory_is_that_of_the_gpu(capability: int, kibibytes: int) -> None:
    x, limit = np.zeros(4, np.float32), kibibytes << 10
    _emu.set_compute_capability(capability)
    probe.launch(1, 32, limit, x.ctypes.data)
    message = rf"{limit + 1} bytes .* over the {limit} of compute capability {capability} at probe\.cu:\d+"
    with pytest.raises(_emu.EmulatorError, match=message):
        probe.launch(1, 32, limit + 1, x.ctypes.data)


def test_an_unknown_gpu_has_no_limit_to_hold_a_launch_to() -> None:
    _emu.set_compute_capability(42)
    with pytest.raises(_emu.EmulatorError, match="compute capability 42: its limit of shared memory is not known"):
        probe.launch(1, 32, 0, np.zeros(4, np.float32).ctypes.data)


def test_an_error_in_a_helper_names_the_kernel_as_well() -> None:
    with pytest.raises(_emu.EmulatorError, match=r"at gpu\.h:\d+, after probe\.cu:\d+, in block"):
        Tensors().run("second_block_sum_too_early", bug=True)
