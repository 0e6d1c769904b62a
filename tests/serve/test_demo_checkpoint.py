"""The demo model answers, and evaluation notices when something below it is broken on purpose.

Each break is one that random weights cannot show: the text stays fluent, and only answers that
depend on the broken part go wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mserve.checkpoint import DEMO, checkpoint_folder
from mserve.cli.evaluate import BELOW_A_FLOOR
from mserve.evaluate import parse_floor, suite_names

CHECKPOINT = checkpoint_folder(DEMO)
SERVE_FLAGS = ["--kv-cache-memory-bytes", "512M", "--num-threads", "2"]
NEEDLE = ["--suite", "needle", "--limit", "5", "--min", "needle/4k=0.8"]
FACTS = ["--suite", "facts", "--limit", "24", "--min", "facts=0.75"]
SUMS = ["--suite", "arithmetic", "--limit", "24", "--min", "arithmetic=0.75"]


def mserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mserve.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=900,  # ends a hang; an old processor takes minutes for all suites
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def exit_code(checkpoint: Path, *arguments: str) -> int:
    done = mserve("eval", str(checkpoint), *arguments, "--", *SERVE_FLAGS)
    assert done.returncode in (0, BELOW_A_FLOOR), done.stderr
    return done.returncode


def broken(source: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy in which ``change`` was made to some tensors, by their names."""
    shutil.copytree(source, out)
    num_changed = 0
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        changed = {name: change(name, tensor) for name, tensor in tensors.items()}
        num_changed += sum(changed[name] is not tensors[name] for name in tensors)
        save_file(changed, file)
    assert num_changed
    return out


def test_the_demo_reaches_its_floors(makefile_values: Callable[[str, str], list[str]]) -> None:
    """All suites, and what a newly trained one must reach; what the other tests break is whole
    before."""
    floors = makefile_values("demo-model", "--min")
    assert {parse_floor(floor).name.partition("/")[0] for floor in floors} == set(suite_names())
    assert exit_code(CHECKPOINT, *(word for floor in floors for word in ("--min", floor))) == 0


def test_corrupted_index_keys_are_noticed(tmp_path: Path) -> None:
    """Turned around, they make selection prefer the blocks that matter least."""

    def turn(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return -tensor if name.endswith("index_k_proj.weight") else tensor

    turned = broken(CHECKPOINT, tmp_path / "turned", turn)
    assert exit_code(turned, *NEEDLE) == BELOW_A_FLOOR


def test_dropped_blocks_are_noticed(tmp_path: Path) -> None:
    """Of the blocks that are chosen, all but each token's own are lost."""
    short = tmp_path / "short"
    shutil.copytree(CHECKPOINT, short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["sparse_attention_config"]["sparse_topk_blocks"] = 1
    (short / "config.json").write_text(json.dumps(config))
    assert exit_code(short, *NEEDLE) == BELOW_A_FLOOR


def test_a_wrong_scale_is_noticed(tmp_path: Path) -> None:
    """MXFP8 scales of attention's outputs are twice what they should be; right ones pass."""
    right = tmp_path / "right"
    assert mserve("quantize", str(CHECKPOINT), str(right), "--format", "mxfp8").returncode == 0
    assert exit_code(right, *FACTS) == 0
    assert exit_code(right, *SUMS) == 0

    def double(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 1 if name.endswith("o_proj.weight_scale_inv") else tensor

    wrong = broken(right, tmp_path / "wrong", double)
    assert exit_code(wrong, *FACTS) == BELOW_A_FLOOR
    assert exit_code(wrong, *SUMS) == BELOW_A_FLOOR
