"""Weights' memory: what the kernel says of the pages that it was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mserve.kernels import uninitialized

CPU = torch.device("cpu")
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> list[str]:
    """Of the mapping that ``address`` lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"{address:x} is not mapped")


@pytest.mark.skipif(not ENABLED.exists(), reason="this kernel has no large pages")
@pytest.mark.parametrize("num_bytes", [2 << 20, 3 << 20, 64 << 20])
def test_all_of_a_weight_asks_for_large_pages(num_bytes):
    values = uninitialized((num_bytes,), torch.uint8, CPU)
    for at in (0, num_bytes // 2, num_bytes - 1):
        assert "hg" in flags_of(values.data_ptr() + at)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (3, 5)])
def test_small_and_empty_ones_are_ordinary_tensors(shape):
    values = uninitialized(shape, torch.float32, CPU)
    assert values.shape == shape and values.dtype == torch.float32
    assert uninitialized(shape, torch.int8, torch.device("meta")).device.type == "meta"
