"""The machine report: true where it can be checked, and never a traceback."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from mserve.cli.doctor import numa_line
from mserve.cli.main import run


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_report_says_what_torch_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys)
    assert found["torch"] == str(torch.__version__)
    assert isinstance(found["gpus"], list)
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["kernels"]


def test_lines_and_json_report_the_same_things(capsys: pytest.CaptureFixture[str]) -> None:
    names = list(report(capsys))
    assert run(["doctor"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_a_torch_that_does_not_load_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    assert run(["doctor"]) == 0
    assert "does not load" in capsys.readouterr().out


def test_several_nodes_are_named_with_their_processors() -> None:
    assert numa_line({0: "0-7", 1: "8-15"}) == "2: node 0 has 0-7, node 1 has 8-15"
    assert numa_line({0: "0-7"}) == numa_line({}) == "1"
