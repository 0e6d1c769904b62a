"""Memory and cores that a process may use, from made-up proc and sys folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mserve.capacity import read_machine

GIB = 1 << 30
GROUP = "sys/fs/cgroup"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GiB with 40 GiB available and no control groups."""
    put(tmp_path, "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {40 << 20} kB\n")
    return tmp_path


def put(root: Path, name: str, content: str | int) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n")


def test_a_free_machine(root: Path) -> None:
    machine = read_machine(root)
    assert machine.total_bytes == 64 * GIB
    assert machine.available_bytes == 40 * GIB
    assert machine.limit_bytes is None
    assert machine.cpu_quota is None
    assert {core.cpu for core in machine.cores} == os.sched_getaffinity(0)


def test_version_2_counts_page_cache_as_free(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/a/b")
    put(root, f"{GROUP}/a/b/memory.max", 16 * GIB)
    put(root, f"{GROUP}/a/b/memory.current", 12 * GIB)
    stat = f"anon {2 * GIB}\ninactive_file {7 * GIB}\nactive_file {1 * GIB}\nshmem {2 * GIB}"
    put(root, f"{GROUP}/a/b/memory.stat", stat)
    machine = read_machine(root)
    assert machine.limit_bytes == 16 * GIB
    assert machine.available_bytes == 12 * GIB


def test_the_tightest_level_counts(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/a/b")
    put(root, f"{GROUP}/a/b/memory.max", "max")
    put(root, f"{GROUP}/a/b/memory.current", GIB)
    put(root, f"{GROUP}/a/memory.max", 8 * GIB)
    put(root, f"{GROUP}/a/memory.current", 3 * GIB)
    put(root, f"{GROUP}/memory.max", 32 * GIB)
    put(root, f"{GROUP}/memory.current", 4 * GIB)
    machine = read_machine(root)
    assert machine.limit_bytes == 8 * GIB
    assert machine.available_bytes == 5 * GIB


def test_a_container_whose_group_is_mounted_as_the_root(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/outside/this/mount")
    put(root, f"{GROUP}/memory.max", 4 * GIB)
    put(root, f"{GROUP}/memory.current", GIB)
    assert read_machine(root).available_bytes == 3 * GIB


def test_version_1(root: Path) -> None:
    put(root, "proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/")
    put(root, f"{GROUP}/memory/job/memory.limit_in_bytes", 10 * GIB)
    put(root, f"{GROUP}/memory/job/memory.usage_in_bytes", 6 * GIB)
    stat = f"inactive_file {GIB}\ntotal_inactive_file {2 * GIB}\ntotal_active_file {GIB}"
    put(root, f"{GROUP}/memory/job/memory.stat", stat)
    put(root, f"{GROUP}/memory/memory.limit_in_bytes", 9223372036854771712)
    put(root, f"{GROUP}/memory/memory.usage_in_bytes", 20 * GIB)
    put(root, f"{GROUP}/cpu/job/cpu.cfs_quota_us", 150000)
    put(root, f"{GROUP}/cpu/job/cpu.cfs_period_us", 100000)
    machine = read_machine(root)
    assert machine.limit_bytes == 10 * GIB
    assert machine.available_bytes == 7 * GIB
    assert machine.cpu_quota == 1.5


@pytest.mark.parametrize(("content", "quota"), [("max 100000", None), ("50000 100000", 0.5)])
def test_a_quota_below_one_core_still_grants_one(
    root: Path, content: str, quota: float | None
) -> None:
    put(root, "proc/self/cgroup", "0::/")
    put(root, f"{GROUP}/cpu.max", content)
    machine = read_machine(root)
    assert machine.cpu_quota == quota
    assert machine.threads(None, ranks=1)[0].count == (1 if quota else len(machine.cores))


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert 0 < machine.available_bytes <= machine.total_bytes
    assert len(machine.cores) >= 1


@pytest.mark.parametrize("node", ["dev/nvidiactl", "dev/dxg"])
def test_a_gpu_shows_in_the_device_folder(root: Path, node: str) -> None:
    assert not read_machine(root).has_gpu
    (root / "dev").mkdir()
    (root / node).touch()
    assert read_machine(root).has_gpu
