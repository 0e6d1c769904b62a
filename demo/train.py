"""Trains the demo model: `python -m demo.train OUT`, again to go on where it stopped.

Where only an exported checkpoint is left of a run, `--begin-with CHECKPOINT --begin-at 76
--tokens 86 --seed 1` goes on from it: the optimizer begins anew, the schedule at 76 of 86 million
tokens, and another seed draws other samples.

Workers of one thread each take batches of a step from a common counter, add up their gradients in
shared memory and each move some of the parameters. So a core that others use slows a step down by
what it is slower, not by a wait at every operation. What a step reads follows from the seed and its
number; only the order of sums depends on who was faster.

OUT gets state.safetensors, all that is needed to go on, and curve.jsonl, a line per evaluation.
Knows the order of a run; does not know skills or kernels.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing

from demo import pointwise
from demo.batches import (
    SKILL_NAMES,
    Batch,
    first_question,
    held_out_batches,
    step_batches,
    teaching_queries,
)
from demo.beginning import lay_out_looking_back
from demo.data import blank_twins, tokenizer
from demo.export import exported
from demo.model import DemoModel, Pass, fast_dtype
from demo.moe import SparseMoe
from demo.optimizer import Optimizer, Rates
from demo.progress import Tally, curve_line, progress_line
from demo.schedule import is_sparse, mix_at, rate_at
from demo.shape import BLOCK_TOKENS, DemoShape

_BALANCE_RATE = 4e-3
_MAX_GRADIENT_NORM = 1.0
_SAVE_EVERY_S = 120
_HELD_OUT_TOKENS = 1000  # of a needle's example while training


@dataclass(frozen=True, slots=True)
class Settings:
    out: Path
    tokens: int
    step_tokens: int
    seed: int
    workers: int
    evaluate_every: int  # steps
    held_out: int  # examples of each skill
    rates: Rates
    begin_with: Path | None = None  # an exported checkpoint
    begin_at: int = 0  # tokens that it was trained on


class Shared:
    """What workers share: parameters, gradients, tallies, the counter of batches, a barrier."""

    def __init__(self, settings: Settings, context: SpawnContext) -> None:
        shape = DemoShape(vocab_size=tokenizer().vocab_size)
        self.model = DemoModel(shape, settings.seed)
        self.optimizer = Optimizer(self.model, settings.rates)
        self.done = torch.zeros(3, dtype=torch.long)  # steps, tokens, whether to save now
        if (settings.out / "state.safetensors").exists():
            self._restore(settings.out)
        elif settings.begin_with is not None:
            self.model.load_state_dict(exported(settings.begin_with).state_dict())
            self.done[1] = settings.begin_at
        else:
            lay_out_looking_back(self.model, settings.seed, blank_twins())
        self.model.share_memory()
        self.done.share_memory_()
        self.gradients = {
            name: torch.zeros_like(parameter).share_memory_()
            for name, parameter in self.model.named_parameters()
        }
        self.loads = torch.zeros(len(self.experts), shape.num_experts).share_memory_()
        self.tally = Tally(len(SKILL_NAMES))
        self.next_batch = context.Value("l", 0)
        self.lock = context.Lock()
        self.barrier = context.Barrier(settings.workers)

    @property
    def experts(self) -> list[SparseMoe]:
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, SparseMoe)]

    def take(self, count: int) -> int | None:
        """The number of one of ``count`` batches that nobody has taken, if there is one."""
        with self.next_batch.get_lock():
            if self.next_batch.value >= count:
                return None
            self.next_batch.value += 1
            return self.next_batch.value - 1

    def save(self, out: Path) -> None:
        """A file replaces the one before when it is whole."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in self.optimizer.state.items()}
        state = {name: value.clone() for name, value in state.items()}
        part = out / "state.part"
        save_file({**state, "done": self.done.clone()}, part)
        part.replace(out / "state.safetensors")

    def _restore(self, out: Path) -> None:
        state = load_file(out / "state.safetensors")
        self.done.copy_(state.pop("done"))
        optimizer = {n: v for n, v in state.items() if n.startswith("optimizer.")}
        self.model.load_state_dict(
            {n.removeprefix("model."): v for n, v in state.items() if n not in optimizer}
        )
        for name, value in optimizer.items():
            self.optimizer.state[name.removeprefix("optimizer.")].copy_(value)


class Worker:
    """One of ``settings.workers``; the first also counts, tells and saves."""

    def __init__(self, number: int, settings: Settings, shared: Shared) -> None:
        self.settings, self.shared = settings, shared
        self.leads = number == 0
        self.model = shared.model
        self.names = shared.optimizer.shares(settings.workers)[number]
        self.began_s = self.saved_s = time.monotonic()
        self.began_tokens = int(shared.done[1])

    @property
    def tokens_per_s(self) -> float:
        passed_s = time.monotonic() - self.began_s
        return (int(self.shared.done[1]) - self.began_tokens) / passed_s

    def run(self) -> None:
        shared, settings = self.shared, self.settings
        while (tokens := int(shared.done[1])) < settings.tokens:
            step, share = int(shared.done[0]), tokens / settings.tokens
            batches = step_batches(settings.seed, step, settings.step_tokens, mix_at(share))
            self._learn(batches, sparse=is_sparse(share))
            self._move(step + 1, rate_at(share, settings.begin_at / settings.tokens))
            if self.leads:
                shared.done[0] += 1
                shared.done[1] += sum(batch.token_ids.numel() for batch in batches)
                self._tell()
            shared.barrier.wait()
            over = int(shared.done[1]) >= settings.tokens
            if over or (step + 1) % settings.evaluate_every == 0:
                self._evaluate()
            if self.leads and shared.done[2]:
                shared.save(settings.out)
                self.saved_s = time.monotonic()
            shared.barrier.wait()

    def _learn(self, batches: list[Batch], *, sparse: bool) -> None:
        """Gradients of the batches that this worker gets, added to the shared ones."""
        total_weight = sum(float(batch.weights.sum()) for batch in batches)
        total_tokens = sum(batch.token_ids.numel() for batch in batches)
        while (number := self.shared.take(len(batches))) is not None:
            batch = batches[number]
            run = self._begin(batch, sparse=sparse and not batch.is_long)
            if batch.token_ids.shape[1] > 2 * BLOCK_TOKENS:
                run.index_queries = teaching_queries(batch)
            if batch.is_long:
                run.all_seen_from = first_question(batch)
            losses, logits = self._losses(batch, run)
            loss = (losses * batch.weights).sum() / total_weight
            if run.index_losses:
                index_loss = torch.stack(run.index_losses).mean()
                loss = loss + index_loss * batch.token_ids.numel() / total_tokens
            loss.backward()
            with self.shared.lock:
                self.shared.tally.count(batch, losses, logits, run.index_losses)
                if not batch.is_long:  # or experts would be shared out to suit its filler
                    self.shared.loads += torch.stack(run.loads)
        with self.shared.lock:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    self.shared.gradients[name] += parameter.grad
                    parameter.grad = None
        self.shared.barrier.wait()

    def _begin(self, batch: Batch, *, sparse: bool) -> Pass:
        return self.model.begin(batch.token_ids.shape[1], dtype=fast_dtype(), sparse=sparse)

    def _losses(self, batch: Batch, run: Pass) -> tuple[Tensor, Tensor]:
        hidden = self.model.hidden(batch.token_ids, run).flatten(0, 1)
        logits = self.model.logits(hidden[batch.rows], run).float()
        return F.cross_entropy(logits, batch.targets, reduction="none"), logits

    def _move(self, step: int, factor: float) -> None:
        """The ``step``-th step of this worker's share of the parameters."""
        shared = self.shared
        squares = torch.stack([gradient.square().sum() for gradient in shared.gradients.values()])
        norm = float(squares.sum().sqrt())
        shared.barrier.wait()  # nobody reads any more what is scaled now
        for name in self.names:
            gradient = shared.gradients[name]
            gradient.mul_(min(1.0, _MAX_GRADIENT_NORM / (norm + 1e-6)))
            shared.optimizer.move(name, gradient, step, factor)
            gradient.zero_()
        if self.leads:
            for layer, load in zip(shared.experts, shared.loads, strict=True):
                layer.balance(load, _BALANCE_RATE)
            shared.loads.zero_()
            shared.next_batch.value = 0

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Held-out examples: an answer is right if each of its tokens is the likeliest, which is
        when greedy decoding would write it."""
        shared, settings = self.shared, self.settings
        taught = shared.tally.copy()
        shared.barrier.wait()
        if self.leads:
            shared.tally.clear()
        shared.barrier.wait()
        batches = held_out_batches(settings.seed + 1, settings.held_out, _HELD_OUT_TOKENS)
        while (number := shared.take(len(batches))) is not None:
            batch = batches[number]
            run = self._begin(batch, sparse=True)
            losses, logits = self._losses(batch, run)
            with shared.lock:
                shared.tally.count(batch, losses, logits, [])
        shared.barrier.wait()
        if self.leads:
            steps, tokens, _ = shared.done.tolist()
            line = curve_line(steps, tokens, self.tokens_per_s, SKILL_NAMES, taught, shared.tally)
            with (settings.out / "curve.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            print(f"\n{line}", flush=True)
            shared.tally.clear()
            shared.next_batch.value = 0

    def _tell(self) -> None:
        """A progress bar, and whether it is time to save."""
        shared, settings = self.shared, self.settings
        _, tokens, _ = shared.done.tolist()
        due = time.monotonic() - self.saved_s > _SAVE_EVERY_S
        shared.done[2] = due or tokens >= settings.tokens
        line = progress_line(tokens, settings.tokens, self.tokens_per_s, shared.tally)
        print(f"\r{line}", end="", flush=True)


def work(number: int, settings: Settings, shared: Shared) -> None:
    """The life of one worker's process."""
    torch.set_num_threads(1)
    pointwise.compile_pointwise()
    Worker(number, settings, shared).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the run; one that exists is continued")
    parser.add_argument("--tokens", type=float, default=84.0, help="millions to train on in all")
    parser.add_argument("--step-tokens", type=int, default=6144)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--evaluate-every", type=int, default=50, help="steps")
    parser.add_argument("--held-out", type=int, default=24, help="examples of each skill")
    parser.add_argument("--matrix-rate", type=float, default=Rates().matrix)
    parser.add_argument("--vector-rate", type=float, default=Rates().vector)
    parser.add_argument("--begin-with", type=Path, help="a checkpoint instead of random weights")
    parser.add_argument("--begin-at", type=float, default=0.0, help="millions it was trained on")
    given = parser.parse_args()
    if given.begin_with is None and given.begin_at:
        parser.error("--begin-at belongs to --begin-with")
    given.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        out=given.out,
        tokens=int(given.tokens * 1e6),
        step_tokens=given.step_tokens,
        seed=given.seed,
        workers=given.workers,
        evaluate_every=given.evaluate_every,
        held_out=given.held_out,
        rates=Rates(matrix=given.matrix_rate, vector=given.vector_rate),
        begin_with=given.begin_with,
        begin_at=int(given.begin_at * 1e6),
    )
    context = multiprocessing.get_context("spawn")
    shared = Shared(settings, context)
    multiprocessing.spawn(work, (settings, shared), nprocs=settings.workers)


if __name__ == "__main__":
    main()
