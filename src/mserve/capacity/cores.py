"""Which cores this process may compute on, and which thread goes where.

A core whose two hardware threads are both granted counts once: kernels keep its units and its
caches busy with one. Threads are pinned only where they are sure to have their cores to
themselves: all cores are taken, and no quota of time takes some of them away again.
Knows cores and the nodes of memory beside them. Does not know what a thread computes, or pin one.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Core(msgspec.Struct, frozen=True):
    cpu: int  # the lowest of its hardware threads that is granted
    node: int  # of memory beside it


class Threads(msgspec.Struct, frozen=True):
    """Threads of one rank. ``cpus``: one for each thread, in the order of ``nodes``, the nodes they
    belong to; none where they are not pinned, and then ``why_not``."""

    count: int
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    why_not: str = ""

    @property
    def line(self) -> str:
        noun = "thread" if self.count == 1 else "threads"
        if not self.cpus:
            return f"{self.count} {noun}, not pinned: {self.why_not}"
        line = f"{self.count} {noun}, pinned to cores"
        spread = f" of {len(self.nodes)} nodes, weights split over these"
        return line + spread if len(self.nodes) > 1 else line


def granted_cores(root: Path, granted_cpus: set[int]) -> tuple[Core, ...]:
    """The cores that ``granted_cpus`` belong to, in the order of their nodes, from ``root``'s sys.
    What sys does not tell is a core of its own, on node 0."""
    nodes = {cpu: number for number, cpus in numa_nodes(root).items() for cpu in cpu_numbers(cpus)}
    cores: dict[frozenset[int], Core] = {}
    for cpu in sorted(granted_cpus):
        listed = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings = cpu_numbers(_text(listed)) or {cpu}
        cores.setdefault(frozenset(siblings), Core(cpu, nodes.get(cpu, 0)))
    return tuple(sorted(cores.values(), key=lambda core: (core.node, core.cpu)))


def numa_nodes(root: Path) -> dict[int, str]:
    """List of processors by number of node, such as {0: "0-15"}; empty where sys has none."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    lists = {int(path.name.removeprefix("node")): _text(path / "cpulist") for path in folders}
    return {number: lists[number] for number in sorted(lists)}


def cpu_numbers(listed: str) -> set[int]:
    """{0, 1, 2, 8} of "0-2,8", the kernel's way to list processors."""
    numbers: set[int] = set()
    for item in filter(None, listed.split(",")):
        first, _, last = item.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def share_out(
    cores: tuple[Core, ...], quota: float | None, asked: int | None, ranks: int
) -> tuple[Threads, ...]:
    """Threads of each of ``ranks``: ``asked`` in all, or the cores that affinity and ``quota``, in
    cores' worth of time, grant. Every rank has at least one."""
    granted = granted_count(cores, quota)
    count = max(1, (asked or granted) // ranks)
    why_not = ""
    if quota is not None and quota < len(cores):
        why_not = f"a quota of {quota:g} cores is spread over {len(cores)}"
    elif count * ranks > len(cores):
        why_not = f"{count * ranks} on {_cores(len(cores))}"
    elif asked is not None and asked < len(cores):
        why_not = f"they leave some of {_cores(len(cores))} to others"
    if why_not:
        return (Threads(count, why_not=why_not),) * ranks
    sets = [cores[first : first + count] for first in range(0, count * ranks, count)]
    return tuple(
        Threads(
            count,
            cpus=tuple(core.cpu for core in own),
            nodes=tuple(sorted({core.node for core in own})),
        )
        for own in sets
    )


def granted_count(cores: tuple[Core, ...], quota: float | None) -> int:
    """Cores to compute on, at least one."""
    whole = len(cores) if quota is None else int(quota)
    return max(1, min(len(cores), whole))


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
