"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mserve.checkpoint import checkpoint_folder

CheckpointFolder = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        parser=checkpoint_folder,
        help="Folder of the checkpoint. `demo` is a small one that comes with mserve.",
    ),
]
