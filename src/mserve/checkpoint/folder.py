"""Which folder the name of a checkpoint means."""

from __future__ import annotations

from pathlib import Path

from mserve.core import CheckpointError

DEMO = "demo"
_DEMO_FOLDER = Path(__file__).resolve().parents[1] / "demo"


def checkpoint_folder(name: str) -> Path:
    """The folder ``name``; ``demo`` is the model that comes with mserve, unless a checkpoint of
    that name lies in the present folder."""
    folder = Path(name)
    if name == DEMO and not (folder / "config.json").exists():
        return _DEMO_FOLDER
    return folder


def check_is_folder(folder: Path) -> None:
    """``CheckpointError`` for a path where no folder is."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder",
            hint="give the folder of a downloaded checkpoint; mserve downloads nothing",
        )
