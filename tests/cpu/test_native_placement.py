"""Memory placed by the worker that touches it, and by a policy: what the kernel says of both."""

from __future__ import annotations

import ctypes
import mmap
import platform
from pathlib import Path

import msgspec
import pytest
import torch

from mserve.capacity import weight_bytes
from mserve.checkpoint import QuantSpec
from mserve.engine.load import touch_weights
from mserve.kernels import native
from mserve.models import build_model
from mserve.parallel import Groups
from mserve.testing.native import native_library  # noqa: F401 - a fixture
from mserve.testing.tiny_models import m3_spec

PAGE = mmap.PAGESIZE
GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
INTERLEAVE, OF_ADDRESS = 3, 2


def fresh(rows: int, row_bytes: int) -> torch.Tensor:
    """Pages that nobody has written to, each of which faults by itself."""
    memory = mmap.mmap(-1, rows * row_bytes)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(rows, row_bytes)


def faults() -> dict[str, int]:
    """Pages that each thread of this process got by writing or reading first."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        found[name] = found.get(name, 0) + int(rest.split()[7])
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_each_worker_gets_the_pages_of_its_rows(native_library, workers):  # noqa: F811
    before = native.num_threads()
    native.set_num_threads(workers)
    values = fresh(600, 2 * PAGE)
    start = faults()
    native.touch_rows(values)
    end = faults()
    native.set_num_threads(before)
    each = 2 * 600 // workers
    for worker in range(1, workers):
        name = f"mserve-{worker}"
        assert each <= end[name] - start[name] < each + 20
    assert not values.any()


def test_touching_changes_nothing(native_library):  # noqa: F811
    for shape in ((0, 5), (1, 1), (37, 1000), (3, 50, 70)):
        values = torch.randn(shape)
        expected = values.clone()
        native.touch_rows(values)
        assert torch.equal(values, expected)


def policy_of(values: torch.Tensor) -> tuple[int, int]:
    """Mode and mask of nodes that the kernel has for the middle of ``values``."""
    mode, mask = ctypes.c_int(-1), ctypes.c_uint64()
    places = (ctypes.addressof(mode), ctypes.addressof(mask))
    address = values.data_ptr() + values.nbytes // 2
    arguments = (GET_MEMPOLICY[platform.machine()], *places, 65, address, OF_ADDRESS)
    assert ctypes.CDLL(None).syscall(*map(ctypes.c_long, arguments)) == 0
    return mode.value, mask.value


def test_interleaved_memory_has_that_policy(native_library):  # noqa: F811
    values = fresh(64, PAGE)
    if not native.interleave(values, (0,)):
        pytest.skip("this system forbids mbind")
    assert policy_of(values) == (INTERLEAVE, 1)


def test_a_node_that_is_not_there_is_refused(native_library):  # noqa: F811
    assert not native.interleave(fresh(4, PAGE), (63,))


@pytest.mark.parametrize(
    ("stored", "on_load"),
    [
        ("plain", False),
        ("mxfp8", True),
        ("fp8", True),
        ("int8", True),
        ("int8", False),
        ("int8_static", False),
    ],
)
def test_all_bytes_of_a_model_are_touched_once(monkeypatch, stored, on_load):
    """Converted on load, so that a destination is several tensors; INT8 also has some that are
    none. Norms are left out: some are held once for each head, which no plan counts."""
    quantization = QuantSpec(stored, on_load=on_load)
    spec = msgspec.structs.replace(m3_spec(hidden_size=64), quantization=quantization)
    model = build_model(spec, Groups(), torch.bfloat16, torch.device("cpu"))
    touched: list[torch.Tensor] = []
    monkeypatch.setattr(native, "touch_rows", touched.append)
    touch_weights(piece for piece in model.pieces() if "norm" not in piece.source)
    places = {(part.data_ptr(), part.nbytes) for part in touched}
    assert len(places) == len(touched)
    planned = weight_bytes(spec, ranks=1, dtype="bfloat16")
    assert sum(size for _, size in places) == sum(planned.values()) - planned["norms"]
