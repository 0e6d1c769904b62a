"""The index branch: which past blocks each query may read, and how it learns that.

Choosing is not differentiable, so the branch has a loss of its own: for some queries, the share of
attention that each past block gets when all keys are visible is the target of the block's score
(the largest score of its keys), and the same for single keys, which teaches all keys at once. The
branch reads detached inputs: it follows attention and does not pull at it.

Legend: N tokens of a sequence, Q queries that teach, H heads, G KV groups, D index width, B blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from demo.pointwise import norm_and_rotate
from demo.shape import BLOCK_TOKENS, DemoShape

if TYPE_CHECKING:
    from demo.model import Pass

# Queries scored together: bounds the scores held at a time.
_QUERY_CHUNK = 1024


class BlockIndex(nn.Module):
    def __init__(self, shape: DemoShape, matrix) -> None:
        super().__init__()
        self.shape = shape
        width = shape.index_head_dim
        self.q = matrix(shape.num_kv_heads * width, shape.hidden_size)
        self.k = matrix(width, shape.hidden_size)
        self.q_norm = nn.Parameter(torch.full((width,), 0.3))
        self.k_norm = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, hidden: Tensor, query: Tensor, key: Tensor, run: Pass) -> Tensor | None:
        """The chosen blocks [B, G, N, blocks] (bool), or None where all are visible. Adds to
        ``run.index_losses`` if the pass has queries that teach."""
        selects = run.sparse and hidden.shape[1] > self.shape.topk_blocks * BLOCK_TOKENS
        if not selects and run.index_queries is None:
            return None
        index_query, index_key = self._heads(hidden.detach(), run)
        if run.index_queries is not None:
            for number, rows in enumerate(run.index_queries):
                shares = past_attention(query[number].detach(), key[number].detach(), rows)
                run.index_losses.append(
                    index_loss(index_query[number, rows], index_key[number], rows, shares)
                )
        if not selects:
            return None
        pairs = zip(index_query, index_key, strict=True)
        return torch.stack([self.select(q, k) for q, k in pairs])

    def _heads(self, hidden: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        """Queries [B, N, G, D] and the one key head [B, N, D]."""
        groups = self.shape.num_kv_heads
        projection = torch.cat([self.q, self.k]).to(run.dtype)
        heads = F.linear(hidden, projection).unflatten(-1, (groups + 1, -1))
        weight = torch.cat([self.q_norm.expand(groups, -1), self.k_norm[None]])
        heads = norm_and_rotate(heads, weight, run.cos, run.sin, self.shape.rms_norm_eps)
        return heads[:, :, :groups], heads[:, :, groups]

    @torch.no_grad()
    def select(self, index_query: Tensor, index_key: Tensor) -> Tensor:
        """Each query's own block and those of highest score before it, [G, N, B] bool."""
        num_tokens = len(index_key)
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        own_block = torch.arange(num_tokens) // BLOCK_TOKENS
        padded = F.pad(index_key.float(), (0, 0, 0, num_blocks * BLOCK_TOKENS - num_tokens))
        result = torch.zeros(index_query.shape[1], num_tokens, num_blocks, dtype=torch.bool)
        for start in range(0, num_tokens, _QUERY_CHUNK):
            rows = slice(start, min(start + _QUERY_CHUNK, num_tokens))
            last = int(own_block[rows][-1]) + 1
            queries = index_query[rows].float().transpose(0, 1)
            scores = queries @ padded[: last * BLOCK_TOKENS].t()
            best = scores.unflatten(-1, (last, BLOCK_TOKENS)).amax(-1)
            blocks, own = torch.arange(last), own_block[rows, None]
            best = best.masked_fill(blocks > own, -torch.inf).masked_fill(blocks == own, torch.inf)
            ids = best.topk(min(self.shape.topk_blocks, last), -1).indices
            result[:, rows, :last] = torch.zeros_like(best, dtype=torch.bool).scatter(
                -1, ids, torch.ones_like(ids, dtype=torch.bool)
            )
        return result


@torch.no_grad()
def past_attention(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """How much the queries at ``rows`` attend to each key of past blocks, all keys visible: mean
    over the heads of a group, [G, Q, N] fp32."""
    num_groups, width = key.shape[1:]
    q = query[rows].float().unflatten(1, (num_groups, -1)).permute(1, 2, 0, 3)  # [G, H / G, Q, D]
    scores = (q @ key.float().permute(1, 2, 0)[:, None]) * width**-0.5
    positions = torch.arange(len(key))
    shares = scores.masked_fill(positions > rows[:, None], -torch.inf).softmax(-1).mean(1)
    return shares.masked_fill(~_is_past(rows, len(key)), 0.0)


def index_loss(index_query: Tensor, index_key: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Divergence of index scores from ``shares`` [G, Q, N] over past blocks and over single keys,
    each query weighted by how much it attends to the past. ``index_query`` [Q, G, D],
    ``index_key`` [N, D]."""
    num_tokens, width = index_key.shape
    scores = index_query.float().transpose(0, 1) @ index_key.float().t() * width**-0.5
    scores = scores.masked_fill(~_is_past(rows, num_tokens), -1e9)
    padding = -num_tokens % BLOCK_TOKENS
    blocks = F.pad(scores, (0, padding), value=-1e9).unflatten(-1, (-1, BLOCK_TOKENS)).amax(-1)
    mass = F.pad(shares, (0, padding)).unflatten(-1, (-1, BLOCK_TOKENS)).sum(-1)
    weight = mass.sum(-1)
    loss = _divergence(blocks, mass, weight) + _divergence(scores, shares, weight)
    return loss.sum() / weight.sum().clamp(min=1e-6)


def _divergence(scores: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """Weighted Kullback-Leibler divergence of softmax(scores) from shares / weight, [G, Q]."""
    target = shares / weight[..., None].clamp(min=1e-9)
    entropy = torch.special.entr(target).sum(-1)
    return weight * (-(target * scores.log_softmax(-1)).sum(-1) - entropy)


def _is_past(rows: Tensor, num_tokens: int) -> Tensor:
    """[Q, N]: whether the key lies in a complete block before that of the query."""
    blocks = torch.arange(num_tokens) // BLOCK_TOKENS
    return blocks < (rows // BLOCK_TOKENS)[:, None]
