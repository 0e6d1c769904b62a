"""Toy checkpoints, what transformers makes of them, and a bare engine over them, for tests.

Needs transformers, a dev extra; nothing that serves imports this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from mserve.cache import BlockLedger
from mserve.checkpoint import open_checkpoint
from mserve.core import (
    CacheConfig,
    EngineConfig,
    FinishReason,
    ModelConfig,
    Request,
    RequestOutput,
    SamplingParams,
    SchedulerConfig,
)
from mserve.engine import Engine
from mserve.engine.load import load_runner, load_vocabulary, use_threads
from mserve.parallel import Groups
from mserve.scheduler import Scheduler
from mserve.toy import write_toy
from mserve.wire import merged

_SHAPES = {
    "hidden_size": 64,
    "num_dense_layers": 1,
    "head_dim": 32,
    "index_head_dim": 32,
    "topk_blocks": 2,  # blocks are dropped from the third on
    "vocab_size": 1024,
    "dtype": "float32",
}


def small_toy(folder: Path, arch: str) -> Path:
    """A checkpoint in fp32 that computes a thousand tokens in a moment."""
    path = folder / arch
    write_toy(path, arch=arch, num_layers=2 if arch == "m2" else 3, seed=3, **_SHAPES)
    return path


def transformers_of(path: Path) -> transformers.PreTrainedModel:
    """The same checkpoint in transformers."""
    spec = open_checkpoint(path).spec
    loader = {
        "m2": transformers.AutoModelForCausalLM,
        "m3": transformers.AutoModelForImageTextToText,
    }[spec.family]
    model = loader.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval()


def greedy(model: transformers.PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """``count`` most likely tokens by transformers."""
    found = model.generate(torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False)
    return found[0, len(prompt) :].tolist()


class BareEngine:
    """Scheduler, runner and model without processes or a memory plan. Nothing but its length ends
    an output, unless it is to follow grammars, which have an end."""

    def __init__(
        self,
        path: Path,
        *,
        num_blocks: int = 64,
        max_model_len: int = 2048,
        scheduler: SchedulerConfig | None = None,
        cache: CacheConfig | None = None,
        enable_prefix_caching: bool = True,
        with_grammars: bool = False,
    ) -> None:
        checkpoint = open_checkpoint(path)
        scheduler = scheduler or SchedulerConfig()
        config = EngineConfig(
            model=ModelConfig(path=str(path)), scheduler=scheduler, cache=cache or CacheConfig()
        )
        device = torch.device("cpu")
        kernels = use_threads(config, checkpoint, device, torch.get_num_threads())
        self.runner = load_runner(
            checkpoint,
            config,
            Groups(),
            device,
            num_blocks,
            kernels,
            vocabulary=load_vocabulary(checkpoint) if with_grammars else None,
        )
        ledger = BlockLedger(num_blocks)
        self.engine = Engine(
            Scheduler(
                scheduler,
                ledger,
                max_model_len=max_model_len,
                eos_token_ids=checkpoint.spec.eos_token_ids if with_grammars else (),
                enable_prefix_caching=enable_prefix_caching,
            ),
            self.runner,
        )

    def run(self, *requests: tuple[Sequence[int], SamplingParams]) -> list[RequestOutput]:
        """Everything each request got, in one output. They start together."""
        whole: dict[str, RequestOutput] = {}
        submitted = [
            Request(request_id=str(number), prompt_token_ids=list(prompt), sampling=sampling)
            for number, (prompt, sampling) in enumerate(requests)
        ]
        outputs = self.engine.submit(submitted)
        while outputs or self.engine.has_work:
            for output in outputs:
                first = whole.get(output.request_id)
                whole[output.request_id] = merged(first, output) if first else output
            outputs = self.engine.step()
            self.engine.audit()
        assert all(output.finish_reason in FinishReason for output in whole.values())
        return [whole[request.request_id] for request in submitted]
