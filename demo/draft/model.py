"""The draft's mathematics, with gradients: one Llama layer over the target's residual streams.

At position t it reads the embedding of token t + 1 and a feature of position t, and guesses token
t + 2. The feature is ``fc`` of three of the target's residual streams; for the next guess, where
the target has not been yet, it is the draft's own output. Training unrolls several steps. In
step j, position t continues a draft that began at t - j:

    feature of step j at t        output of step j - 1 at t - 1
    keys it sees                  of step 0 up to t - j, then of step i at t - j + i for i = 1..j

Layout and order of operations are those of published EAGLE3 heads (Li et al. 2025). Legend: B
sequences, N tokens, H hidden size, G KV heads, D head width. Knows tensors; does not know text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DraftShape:
    """The sizes of a draft. ``taps``: numbers of target layers whose inputs it reads."""

    target_size: int = 192
    hidden_size: int = 192
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    mlp_size: int = 512
    vocab_size: int = 2048
    rope_theta: float = 50_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    taps: tuple[int, ...] = (1, 3, 5)


class Draft(nn.Module):
    """Parameters under their published names. ``d2t`` [vocab_size]: what to add to a draft's token
    id to get the target's."""

    def __init__(self, shape: DraftShape, d2t: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.hidden_size
        self.fc = _linear(len(shape.taps) * shape.target_size, hidden)
        self.midlayer = DraftLayer(shape)
        self.norm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.lm_head = _linear(hidden, shape.vocab_size)
        self.register_buffer("d2t", d2t)
        self.register_buffer(
            "frequencies",
            shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).double() / shape.head_dim),
            persistent=False,
        )
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
        with torch.no_grad():
            self.midlayer.self_attn.o_proj.weight *= 0.1
            self.lm_head.weight *= 0.1

    @property
    def target_ids(self) -> Tensor:
        """[vocab_size]: the target's id of each of the draft's tokens."""
        return torch.arange(len(self.d2t)) + self.d2t

    def unrolled(self, embedded: Tensor, streams: Tensor, steps: int) -> list[Tensor]:
        """Residual streams [B, N, H] behind the layer, one per step. ``embedded`` [B, N, H]: of
        each position's next token; ``streams`` [B, N, taps * target_size]. Positions before the
        number of a step mean nothing there."""
        length = embedded.shape[1]
        angles = (torch.arange(length)[:, None].double() * self.frequencies).float()
        rotation = (angles.cos()[:, None], angles.sin()[:, None])
        feature = self.fc(streams)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for _ in range(steps):
            out = self.midlayer(embedded, feature, rotation, keys, values)
            outputs.append(out)
            feature = F.pad(out, (0, 0, 1, 0))[:, :-1]
        return outputs

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., H] to [.., vocab_size], in the draft's numbering."""
        return self.lm_head(self.norm(hidden))


class DraftLayer(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.hidden_norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = DraftAttention(shape)
        self.mlp = DraftMlp(shape)

    def forward(
        self,
        embedded: Tensor,
        feature: Tensor,
        rotation: tuple[Tensor, Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """Adds this step's keys and values to those of the steps before."""
        both = torch.cat([self.input_layernorm(embedded), self.hidden_norm(feature)], -1)
        hidden = feature + self.self_attn(both, rotation, keys, values)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class DraftAttention(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.shape = shape
        width, hidden = shape.head_dim, shape.hidden_size
        self.q_proj = _linear(2 * hidden, shape.num_heads * width)
        self.k_proj = _linear(2 * hidden, shape.num_kv_heads * width)
        self.v_proj = _linear(2 * hidden, shape.num_kv_heads * width)
        self.o_proj = _linear(shape.num_heads * width, hidden)

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        per_group = self.shape.num_heads // self.shape.num_kv_heads
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.shape.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = rotated(query, rotation).transpose(1, 2)  # [B, heads, N, D]
        keys.append(rotated(key, rotation).repeat_interleave(per_group, 2).transpose(1, 2))
        values.append(value.repeat_interleave(per_group, 2).transpose(1, 2))
        return self.o_proj(_attend(query, keys, values).transpose(1, 2).flatten(2))


class DraftMlp(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden_size, shape.mlp_size)
        self.up_proj = _linear(shape.hidden_size, shape.mlp_size)
        self.down_proj = _linear(shape.mlp_size, shape.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """[B, heads, N, D] of the last of the steps whose keys are given."""
    step, (length, width) = len(keys) - 1, query.shape[2:]
    positions = torch.arange(length)
    begun = positions[:, None] - step  # where the draft that a query continues began
    scores = (query @ keys[0].mT * width**-0.5).masked_fill(positions > begun, -torch.inf)
    own = [
        ((query * _moved(key, step - number)).sum(-1, keepdim=True) * width**-0.5).masked_fill(
            (begun + number < 0), -torch.inf
        )
        for number, key in enumerate(keys[1:], 1)
    ]
    shares = torch.cat([scores, *own], -1).softmax(-1)
    out = shares[..., :length] @ values[0]
    for number, value in enumerate(values[1:], 1):
        column = length + number - 1
        out = out + shares[..., column : column + 1] * _moved(value, step - number)
    return out


def _moved(x: Tensor, places: int) -> Tensor:
    """[.., N, D], each row where the ``places``-th after it was; zeros come in."""
    return F.pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]


def rotated(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """[.., N, heads, D] turned by ``rotation``, dimensions half of D apart."""
    cos, sin = rotation
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _linear(inner: int, outer: int) -> nn.Linear:
    return nn.Linear(inner, outer, bias=False)
