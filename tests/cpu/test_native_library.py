"""The library: what is said where it is missing, and where its threads run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mserve.kernels import native
from mserve.testing.native import native_library  # noqa: F401 - a fixture


@pytest.fixture
def threads(native_library):  # noqa: F811
    before = native.num_threads()
    yield
    native.set_num_threads(before)


def workers() -> dict[str, set[int]]:
    """Processors that each worker of this process may run on, by its name."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    names = {task: Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in tasks}
    return {
        name: os.sched_getaffinity(task)
        for task, name in names.items()
        if name.startswith("mserve-")
    }


@pytest.mark.parametrize(
    ("compiler", "remedy"), [("g++", "not built: run"), ("none", r"not built: install g\+\+ 11")]
)
def test_a_library_that_is_not_there_says_what_to_do(tmp_path, monkeypatch, compiler, remedy):
    monkeypatch.setenv("MSERVE_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / compiler).touch(0o755)
    with pytest.raises(native.NativeUnavailable, match=remedy):
        native.library.__wrapped__()


def test_workers_are_pinned_and_the_caller_is_not(threads):
    mine = os.sched_getaffinity(0)
    cpus = sorted(mine) * 3
    assert native.set_num_threads(3, cpus[:3])
    assert workers() == {"mserve-1": {cpus[1]}, "mserve-2": {cpus[2]}}
    assert os.sched_getaffinity(0) == mine
    assert native.set_num_threads(3)
    assert workers() == {"mserve-1": mine, "mserve-2": mine}


def test_a_processor_that_is_not_there_is_said_and_the_worker_still_runs(threads):
    assert not native.set_num_threads(2, (0, 100_000))
    assert native.num_threads() == 2


def test_as_many_processors_as_threads(threads):
    with pytest.raises(ValueError, match="2 threads on 1"):
        native.set_num_threads(2, (0,))
