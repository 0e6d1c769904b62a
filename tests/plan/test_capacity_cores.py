"""Cores, nodes and who is pinned where, from made-up sys folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.capacity import Core, granted_cores, numa_nodes, share_out
from mserve.capacity.cores import cpu_numbers


def machine(root: Path, nodes: dict[int, str], siblings: dict[int, str]) -> Path:
    for node, cpus in nodes.items():
        put(root / f"sys/devices/system/node/node{node}/cpulist", cpus)
    for cpu, listed in siblings.items():
        put(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", listed)
    return root


def put(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(f"{content}\n")


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    pairs = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, pairs)
    assert granted_cores(root, set(range(8))) == (Core(0, 0), Core(1, 0), Core(2, 1), Core(3, 1))
    assert granted_cores(root, {1, 5, 6}) == (Core(1, 0), Core(6, 1))


def test_cores_are_in_the_order_of_their_nodes(tmp_path: Path) -> None:
    root = machine(tmp_path, {1: "0,2", 0: "1,3", 10: "4"}, {})
    expected = [(1, 0), (3, 0), (0, 1), (2, 1), (4, 10)]
    assert [(core.cpu, core.node) for core in granted_cores(root, set(range(5)))] == expected
    assert list(numa_nodes(root).items()) == [(0, "1,3"), (1, "0,2"), (10, "4")]


def test_without_sys_every_processor_is_a_core_of_one_node(tmp_path: Path) -> None:
    assert granted_cores(tmp_path, {3, 1}) == (Core(1, 0), Core(3, 0))
    assert numa_nodes(tmp_path) == {}


@given(st.sets(st.integers(0, 300)))
def test_lists_of_processors_are_read_back(numbers: set[int]) -> None:
    listed = ",".join(map(str, sorted(numbers)))
    assert cpu_numbers(listed) == numbers
    assert cpu_numbers("0-2,8,10-11") == {0, 1, 2, 8, 10, 11}


CORES = st.integers(1, 12).map(lambda count: tuple(Core(2 * n, n // 6) for n in range(count)))


@given(CORES, st.none() | st.floats(0.1, 20), st.none() | st.integers(1, 30), st.integers(1, 8))
def test_pinned_threads_have_cores_of_their_own(
    cores: tuple[Core, ...], quota: float | None, asked: int | None, ranks: int
) -> None:
    shares = share_out(cores, quota, asked, ranks)
    assert len(shares) == ranks and len({share.count for share in shares}) == 1
    used = [cpu for share in shares for cpu in share.cpus]
    assert len(set(used)) == len(used) and set(used) <= {core.cpu for core in cores}
    assert all(len(share.cpus) in (0, share.count) for share in shares)
    assert all(bool(share.cpus) != bool(share.why_not) for share in shares)
    if used:
        assert quota is None or quota >= len(cores)
    nodes = {core.cpu: core.node for core in cores}
    for share in shares:
        placed = [nodes[cpu] for cpu in share.cpus]
        assert placed == sorted(placed) and set(share.nodes) == set(placed)


def test_threads_of_several_nodes_say_that_weights_are_split() -> None:
    cores = tuple(Core(cpu, cpu // 2) for cpu in range(4))
    (whole,) = share_out(cores, None, None, 1)
    assert whole.line == "4 threads, pinned to cores of 2 nodes, weights split over these"
    assert [share.nodes for share in share_out(cores, None, None, 2)] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("quota", "asked", "ranks", "count", "line"),
    [
        (None, None, 1, 4, "4 threads, pinned to cores"),
        (8.0, 4, 1, 4, "4 threads, pinned to cores"),
        (None, None, 2, 2, "2 threads, pinned to cores"),
        (2.5, None, 1, 2, "2 threads, not pinned: a quota of 2.5 cores is spread over 4"),
        (None, 1, 1, 1, "1 thread, not pinned: they leave some of 4 cores to others"),
        (None, 6, 1, 6, "6 threads, not pinned: 6 on 4 cores"),
        (None, None, 5, 1, "1 thread, not pinned: 5 on 4 cores"),
    ],
)
def test_pinning_says_why_not(
    quota: float | None, asked: int | None, ranks: int, count: int, line: str
) -> None:
    first = share_out(tuple(Core(cpu, 0) for cpu in range(4)), quota, asked, ranks)[0]
    assert (first.count, first.line) == (count, line)
