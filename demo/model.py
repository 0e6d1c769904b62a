"""MiniMax-M3's text model in a form that can be trained: batches, gradients, fp32 masters.

The mathematics is that of ``mserve.models.minimax_m3``; a test compares the logits. Parameters are
fp32 and cast to the pass's type where they are used, the residual stream is fp32. Sequences of a
batch have one length; shorter ones are filled up behind, where nothing before can see.

Legend: B sequences, N tokens of each, H query heads, G KV heads, D head width. Knows tensors of one
batch; does not know text, losses over time or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from demo.attention import attend, attend_nearby
from demo.index import BlockIndex
from demo.moe import SparseMoe
from demo.pointwise import gemma_norm, norm_and_rotate, swiglu
from demo.shape import DemoShape


@dataclass(slots=True)
class Pass:
    """What one forward pass is told, and what it notes down beside its result."""

    cos: Tensor  # [N, 1, rotary_dim / 2]
    sin: Tensor
    dtype: torch.dtype
    sparse: bool  # attend to chosen blocks only, as when serving
    index_queries: Tensor | None = None  # [B, Q]: positions that teach the index
    all_seen_from: int | None = None  # tokens before see only what is near, those behind see all
    index_losses: list[Tensor] = field(default_factory=list)
    loads: list[Tensor] = field(default_factory=list)  # per MoE layer: tokens per expert


def fast_dtype() -> torch.dtype:
    """bf16 where the processor multiplies it; elsewhere it would take ten times as long as fp32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class DemoModel(nn.Module):
    """``hidden`` of token ids, then ``logits`` of the rows that matter."""

    def __init__(self, shape: DemoShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)

        def matrix(*sizes: int, scale: float = 1.0) -> nn.Parameter:
            values = torch.randn(sizes, generator=generator)
            return nn.Parameter(values * (scale * sizes[-1] ** -0.5))

        self.embedding = nn.Parameter(
            torch.randn(shape.vocab_size, shape.hidden_size, generator=generator) * 0.5
        )
        self.layers = nn.ModuleList(Layer(shape, n, matrix) for n in range(shape.num_layers))
        self.norm = nn.Parameter(torch.zeros(shape.hidden_size))
        self.head = matrix(shape.vocab_size, shape.hidden_size, scale=0.3)
        frequency = torch.arange(0, shape.rotary_dim, 2, dtype=torch.float64) / shape.rotary_dim
        self.register_buffer("frequencies", shape.rope_theta**-frequency, persistent=False)

    def begin(self, length: int, *, dtype: torch.dtype, sparse: bool) -> Pass:
        """A pass over sequences of ``length`` tokens, in ``dtype``."""
        angles = (torch.arange(length)[:, None].double() * self.frequencies).float()[:, None]
        return Pass(angles.cos(), angles.sin(), dtype, sparse)

    def hidden(self, token_ids: Tensor, run: Pass) -> Tensor:
        """The residual stream behind the last layer, [B, N, hidden_size] fp32."""
        return self.residual_streams(token_ids, run)[-1]

    def residual_streams(self, token_ids: Tensor, run: Pass) -> list[Tensor]:
        """The residual stream before every layer and behind the last, [B, N, hidden_size] fp32."""
        streams = [F.embedding(token_ids, self.embedding)]
        for layer in self.layers:
            streams.append(layer(streams[-1], run))
        return streams

    def logits(self, hidden: Tensor, run: Pass) -> Tensor:
        normed = gemma_norm(hidden, self.norm, self.shape.rms_norm_eps, run.dtype)
        return F.linear(normed, self.head.to(run.dtype))


class Layer(nn.Module):
    def __init__(self, shape: DemoShape, number: int, matrix) -> None:
        super().__init__()
        self.eps = shape.rms_norm_eps
        self.attention_norm = nn.Parameter(torch.zeros(shape.hidden_size))
        self.attention = Attention(shape, number, matrix)
        self.mlp_norm = nn.Parameter(torch.zeros(shape.hidden_size))
        self.mlp = (
            SparseMoe(shape, matrix)
            if shape.is_sparse(number)
            else GatedMlp(shape, shape.dense_size, matrix)
        )

    def forward(self, hidden: Tensor, run: Pass) -> Tensor:
        hidden = hidden + self.attention(
            gemma_norm(hidden, self.attention_norm, self.eps, run.dtype), run
        )
        return hidden + self.mlp(gemma_norm(hidden, self.mlp_norm, self.eps, run.dtype), run)


class Attention(nn.Module):
    def __init__(self, shape: DemoShape, number: int, matrix) -> None:
        super().__init__()
        self.shape = shape
        hidden, width = shape.hidden_size, shape.head_dim
        self.q = matrix(shape.num_heads * width, hidden)
        self.k = matrix(shape.num_kv_heads * width, hidden)
        self.v = matrix(shape.num_kv_heads * width, hidden)
        self.o = matrix(hidden, shape.num_heads * width, scale=0.3)
        # Begun above zero: products of normed heads are then wide enough to point at one key.
        self.q_norm = nn.Parameter(torch.full((width,), 0.3))
        self.k_norm = nn.Parameter(torch.full((width,), 0.3))
        self.index = BlockIndex(shape, matrix) if shape.is_sparse(number) else None

    def forward(self, hidden: Tensor, run: Pass) -> Tensor:
        shape = self.shape
        num_rotated = shape.num_heads + shape.num_kv_heads
        projection = torch.cat([self.q, self.k, self.v]).to(run.dtype)
        heads = F.linear(hidden, projection).unflatten(-1, (-1, shape.head_dim))
        weight = torch.cat(
            [self.q_norm.expand(shape.num_heads, -1), self.k_norm.expand(shape.num_kv_heads, -1)]
        )
        rotated = norm_and_rotate(
            heads[:, :, :num_rotated], weight, run.cos, run.sin, shape.rms_norm_eps
        )
        query, key = rotated.split([shape.num_heads, shape.num_kv_heads], 2)
        value = heads[:, :, num_rotated:]
        chosen = None if self.index is None else self.index(hidden, query, key, run)
        if run.all_seen_from is None:
            mixed = attend(query, key, value, chosen)
        else:
            mixed = attend_nearby(query, key, value, run.all_seen_from)
        return F.linear(mixed.flatten(2), self.o.to(run.dtype))


class GatedMlp(nn.Module):
    def __init__(self, shape: DemoShape, width: int, matrix) -> None:
        super().__init__()
        self.activation = (shape.swiglu_alpha, shape.swiglu_limit)
        self.gate = matrix(width, shape.hidden_size)
        self.up = matrix(width, shape.hidden_size)
        self.down = matrix(shape.hidden_size, width, scale=0.3)

    def forward(self, hidden: Tensor, run: Pass) -> Tensor:
        both = F.linear(hidden, torch.cat([self.gate, self.up]).to(run.dtype))
        return F.linear(swiglu(both, *self.activation), self.down.to(run.dtype))
