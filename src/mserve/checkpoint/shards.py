"""Which safetensors files make up a checkpoint: the index, one single file, or numbered shards.

Knows file names; does not know what the files hold.
"""

from __future__ import annotations

from pathlib import Path

from mserve.checkpoint.keys import read_json
from mserve.core import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """Existing shard files in name order; ``CheckpointError`` for one that is named but absent."""
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if not index.is_file():
        files = [single] if single.is_file() else sorted(folder.glob("model-*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{folder}: no weights: neither {INDEX_FILE} nor {SINGLE_FILE} is there",
                hint="mserve reads safetensors only; download or convert the weights",
            )
        return files
    files = [folder / name for name in _named_files(index)]
    if single.is_file() and single not in files:
        raise CheckpointError(
            f"{folder}: both {SINGLE_FILE} and {INDEX_FILE} are there, and differ",
            hint="remove the one that does not belong to config.json",
        )
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"{index}: weight_map names {absent[0]}, which is missing"
            f" ({len(absent)} of {len(files)} files are)",
            hint="finish the download, or start it again",
        )
    return files


def _named_files(index: Path) -> list[str]:
    keys = read_json(index)
    names = set(keys.words("weight_map").values())
    for name in sorted(names):
        # A name with a folder in it would read files outside the checkpoint.
        if Path(name).name != name or not name.endswith(".safetensors"):
            keys.refuse("weight_map", "names of safetensors files beside it", found=name)
    if not names:
        keys.refuse("weight_map", "at least one tensor")
    return sorted(names)
