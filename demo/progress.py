"""What a run says of itself: tallies of losses and right answers, a bar, a line of the curve."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from demo.batches import Batch


class Tally:
    """Sums over batches, in shared memory. The caller holds a lock where several count."""

    def __init__(self, num_skills: int) -> None:
        # Per skill: sum of losses, tokens, right samples, samples.
        self.skills = torch.zeros(num_skills, 4).share_memory_()
        self.index = torch.zeros(2).share_memory_()  # sum of the index branch's losses, how many

    def count(
        self, batch: Batch, losses: Tensor, logits: Tensor, index_losses: Sequence[Tensor]
    ) -> None:
        """Add the samples of ``batch``; right is one whose answers are the likeliest throughout."""
        losses, wrong = losses.detach(), (logits.argmax(-1) != batch.targets).float()
        self.skills[:, 0].index_add_(0, batch.skills, losses)
        self.skills[:, 1].index_add_(0, batch.skills, torch.ones_like(losses))
        num_samples = int(batch.samples[-1]) + 1
        errors = torch.zeros(num_samples).index_add_(0, batch.samples, wrong)
        skills = torch.zeros(num_samples, dtype=torch.long)
        skills[batch.samples] = batch.skills
        self.skills[:, 2].index_add_(0, skills, (errors == 0).float())
        self.skills[:, 3].index_add_(0, skills, torch.ones(num_samples))
        for loss in index_losses:
            self.index += torch.tensor([float(loss.detach()), 1.0])

    @property
    def loss(self) -> float:
        """Mean over tokens."""
        return float(self.skills[:, 0].sum() / self.skills[:, 1].sum().clamp(min=1))

    @property
    def index_loss(self) -> float:
        return float(self.index[0] / self.index[1].clamp(min=1))

    def copy(self) -> Tally:
        other = Tally(len(self.skills))
        other.skills.copy_(self.skills)
        other.index.copy_(self.index)
        return other

    def clear(self) -> None:
        self.skills.zero_()
        self.index.zero_()


def curve_line(
    step: int,
    tokens: int,
    tokens_per_s: float,
    names: Sequence[str],
    taught: Tally,
    held_out: Tally,
) -> str:
    """One JSON object: losses on what was taught since the last line, right answers on the rest."""

    def shares(above: Tensor, below: Tensor) -> dict[str, float]:
        pairs = zip(names, (above / below.clamp(min=1)).tolist(), below.tolist(), strict=True)
        return {name: round(share, 4) for name, share, count in pairs if count}

    line = {
        "step": step,
        "tokens": tokens,
        "time_s": round(time.time()),
        "tokens_per_s": round(tokens_per_s),
        "loss": round(taught.loss, 4),
        "index_loss": round(taught.index_loss, 4),
        "losses": shares(taught.skills[:, 0], taught.skills[:, 1]),
        "taught": shares(taught.skills[:, 2], taught.skills[:, 3]),
        "held_out": shares(held_out.skills[:, 2], held_out.skills[:, 3]),
    }
    return json.dumps(line)


def progress_line(tokens: int, total: int, tokens_per_s: float, tally: Tally) -> str:
    done = min(1.0, tokens / total)
    bar = "#" * int(20 * done) + "." * (20 - int(20 * done))
    minutes = max(0, total - tokens) / max(tokens_per_s, 1.0) / 60
    return (
        f"[{bar}] {tokens / 1e6:.2f} M tokens, loss {tally.loss:.3f}, "
        f"index {tally.index_loss:.3f}, "
        f"{tokens_per_s:,.0f} tokens/s, {minutes:.0f} min left  "
    )
