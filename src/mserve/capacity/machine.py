"""What this process may use of the machine: memory and cores, containers included.

A container often sees the host's memory and cores but is killed or throttled beyond its own
limits, so the limits of control groups (version 1 and 2, every level above the process) count as
much as what the kernel reports free. Knows files under /proc, /sys and /dev; not what memory
is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mserve.capacity.cores import Core, Threads, granted_cores, share_out

# The kernel gives page cache back before it refuses memory, so cached files count as free.
_RECLAIMABLE = {"inactive_file", "active_file", "total_inactive_file", "total_active_file"}

_GPU_DEVICES = ("dev/nvidiactl", "dev/dxg")  # Linux, and Linux inside Windows


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    total_bytes: int
    available_bytes: int  # of this process's use: free memory, or what its limit still leaves
    limit_bytes: int | None  # the tightest control group, if any
    cores: tuple[Core, ...]  # granted by affinity, in the order of their nodes
    cpu_quota: float | None  # cores' worth of time, if limited
    has_gpu: bool  # a driver for NVIDIA GPUs is loaded; torch says later whether one can be used

    def threads(self, asked: int | None, ranks: int) -> tuple[Threads, ...]:
        """Those of each of ``ranks``, ``asked`` in all or as many as the machine grants."""
        return share_out(self.cores, self.cpu_quota, asked, ranks)


def read_machine(root: Path = Path("/")) -> Machine:
    """Read what ``root``'s proc and sys say; tests give a folder of their own."""
    meminfo = _sizes(root / "proc/meminfo")
    total = meminfo["MemTotal"] * 1024
    available = meminfo["MemAvailable"] * 1024
    limits = [room for room in _memory_limits(root) if room[0] < total]
    return Machine(
        total_bytes=total,
        available_bytes=max(0, min([available, *(limit - used for limit, used in limits)])),
        limit_bytes=min((limit for limit, _ in limits), default=None),
        cores=granted_cores(root, os.sched_getaffinity(0)),
        cpu_quota=min(_cpu_quotas(root), default=None),
        has_gpu=any((root / node).exists() for node in _GPU_DEVICES),
    )


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and bytes in use, without page cache, of each control group above this process."""
    for group in _groups(root, "memory"):
        for limit_file, usage_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = _number(group / limit_file), _number(group / usage_file)
            if limit is not None and usage is not None:
                yield limit, max(0, usage - _reclaimable_bytes(group))


def _reclaimable_bytes(group: Path) -> int:
    stat = _sizes(group / "memory.stat")
    # Version 1 lists both a group's own and, as total_*, its children's too.
    with_children = {name: size for name, size in stat.items() if name.startswith("total_")}
    return sum(size for name, size in (with_children or stat).items() if name in _RECLAIMABLE)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        words = _text(group / "cpu.max").split()
        if len(words) == 2 and words[0].isdecimal():
            yield int(words[0]) / int(words[1])
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and period:
            yield quota / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, innermost first, up to the mount."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top = mount
        elif controller in controllers.split(","):
            top = mount / controller
        else:
            continue
        group = top / path.lstrip("/")
        while group != top:
            yield group
            group = group.parent
        yield top


def _sizes(file: Path) -> dict[str, int]:
    """Lines of a name and a number, as in meminfo and memory.stat."""
    pairs = (line.replace(":", " ").split() for line in _text(file).splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) > 1 and words[1].isdecimal()}


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
