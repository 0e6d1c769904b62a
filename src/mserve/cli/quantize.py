"""``mserve quantize``: a bf16 checkpoint written again with packed weights.

Knows flags; does not know formats (``weights``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mserve.checkpoint import checkpoint_folder


def quantize(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="IN", parser=checkpoint_folder, help="bf16 checkpoint, or `demo`."),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", file_okay=False, help="Folder to write, new or empty.")
    ],
    to: Annotated[
        Literal["mxfp8", "fp8", "int8"],
        typer.Option("--format", help="fp8: blocks of 128 x 128. int8: W8A8, dynamic."),
    ],
) -> None:
    """Write a checkpoint with its matrices in 8 bits, for this and other engines."""
    from rich.console import Console
    from rich.progress import Progress

    from mserve.weights import quantize_checkpoint

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"writing {out}", total=None)
        quantize_checkpoint(
            checkpoint,
            out,
            to,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"wrote {out}: {size / 1e6:.1f} MB", err=True)
