"""``mserve toy``: a random checkpoint in the published layout, of any size.

The flags are the fields of ``mserve.toy.ToyShape``, written out so that ``--help`` need not load
numpy; a test compares the two. Knows flags; does not know what a checkpoint looks like.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Size = Annotated[int | None, typer.Option(rich_help_panel="Sizes (default: the preset's)")]
SizeM3 = Annotated[int | None, typer.Option(rich_help_panel="Sizes that only M3 has")]


def toy(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write, new or empty.")],
    arch: Annotated[
        Literal["m2", "m3"] | None, typer.Option(help="Architecture. Default: the preset's, or m3.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="m2-tiny, m3-tiny, m2-bench, m3-bench or demo.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed and sizes, same files.")] = 0,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None, typer.Option(help="Of the matrices.")
    ] = None,
    vocab_size: Size = None,
    hidden_size: Size = None,
    num_layers: Size = None,
    num_heads: Size = None,
    num_kv_heads: Size = None,
    head_dim: Size = None,
    num_experts: Size = None,
    experts_per_token: Size = None,
    intermediate_size: Size = None,
    max_position_embeddings: Size = None,
    num_dense_layers: SizeM3 = None,
    dense_intermediate_size: SizeM3 = None,
    index_head_dim: SizeM3 = None,
    topk_blocks: SizeM3 = None,
    local_blocks: SizeM3 = None,
    init_blocks: SizeM3 = None,
) -> None:
    """Write a random checkpoint, tokenizer and chat template included."""
    from rich.console import Console
    from rich.progress import Progress

    from mserve.toy import write_toy

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"writing {out}", total=None)
        write_toy(
            out,
            preset=preset,
            arch=arch,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            dtype=dtype,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position_embeddings,
            num_dense_layers=num_dense_layers,
            dense_intermediate_size=dense_intermediate_size,
            index_head_dim=index_head_dim,
            topk_blocks=topk_blocks,
            local_blocks=local_blocks,
            init_blocks=init_blocks,
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"wrote {out}: {size / 1e6:.1f} MB", err=True)
