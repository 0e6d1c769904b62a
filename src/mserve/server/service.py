"""What all endpoints share: the engine, the text tools, the names served, the life of the server.

Knows whether work may be admitted. Does not know HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from mserve.checkpoint import read_sampling_defaults
from mserve.core import NotFoundError, NotReadyError, RequestOutput, SamplingParams
from mserve.observe import EngineReading, EngineTimes, ServerMetrics
from mserve.server.errors import shutting_down
from mserve.server.near_miss import NearMisses
from mserve.server.store import ResponseStore
from mserve.text import (
    STABLE_PREFIX_RULES,
    ChatTemplate,
    Dialect,
    Tokenizer,
    load_chat_template,
    load_tokenizer,
    marker_ids,
)
from mserve.text.grammar import GrammarChecker, vocabulary_facts
from mserve.wire import (
    EngineClient,
    EngineStats,
    EngineStatus,
    Phase,
    Ready,
    not_ready_message,
)

log = logging.getLogger(__name__)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every knob of the front end."""

    served_model_names: tuple[str, ...]  # the first is the one that answers carry
    api_keys: tuple[str, ...] = ()  # none: no key is asked for
    policy: Literal["fcfs", "priority"] = "fcfs"
    shutdown_timeout_s: float = 30.0  # how long requests may finish after SIGTERM
    log_requests: bool = False  # a line per finished request
    reasoning_field: Literal["both", "reasoning", "reasoning_content"] = "both"
    """What chat completions call thinking; clients disagree."""
    stable_prefix_rules: tuple[str, ...] = tuple(STABLE_PREFIX_RULES)
    """What is undone in prompts because it would void the prefix cache."""
    keep_thinking: bool = False
    """Thinking of earlier turns stays in the prompt, also where the template drops it."""
    repetition_tokens: int = 0
    """An answer whose last so many tokens are one short piece again and again ends; 0: never."""


class TextTools(msgspec.Struct, frozen=True):
    """What a checkpoint brings for text."""

    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams
    dialect: Dialect | None = None
    """How it writes thinking and calls; ``None``: not known, and all it writes is content."""
    marker_ids: dict[int, str] = {}
    eos_token_ids: tuple[int, ...] = ()


def load_text_tools(
    checkpoint: Path,
    chat_template: Path | None = None,
    dialect: Dialect | None = None,
    eos_token_ids: Sequence[int] = (),
) -> TextTools:
    """``eos_token_ids``: as the model's spec has them. Raises ``CheckpointError`` for what is
    there and cannot be used."""
    tokenizer = load_tokenizer(checkpoint)
    return TextTools(
        tokenizer,
        load_chat_template(checkpoint, chat_template),
        read_sampling_defaults(checkpoint),
        dialect,
        {} if dialect is None else marker_ids(dialect, tokenizer),
        tuple(eos_token_ids),
    )


class StatusListener(Protocol):
    """Shows the engine's life to whoever watches the terminal."""

    def __call__(self, status: EngineStatus, ready: Ready | None) -> None: ...


def _nobody(status: EngineStatus, ready: Ready | None) -> None:
    pass


class Service:
    """One model, served. Also the observer of its engine client."""

    def __init__(
        self, config: ServerConfig, text: TextTools, listener: StatusListener = _nobody
    ) -> None:
        self.config = config
        self.text = text
        self.client = EngineClient(self)
        self.metrics = ServerMetrics(config.served_model_names[0], self._read_engine)
        self.created = int(time.time())
        self.draining = False
        self.responses = ResponseStore()
        self._near_misses = NearMisses(text.tokenizer)
        self._background: set[asyncio.Task[None]] = set()
        self._listener = listener
        self._described_cache = False

    def admit(self) -> Ready:
        """The engine's limits, if work may be submitted now. Raises ``NotReadyError``."""
        if self.draining:
            raise shutting_down()
        ready = self.client.ready
        if ready is None:
            code = "engine_restarting" if self.client.status.phase is Phase.RESTARTING else None
            raise NotReadyError(not_ready_message(self.client.status), code=code)
        return ready

    @functools.cached_property
    def grammars(self) -> GrammarChecker:
        """Made with the first request that needs it: most servers see none."""
        text = self.text
        assert text.dialect is not None
        return GrammarChecker(vocabulary_facts(text.tokenizer, text.dialect, text.eos_token_ids))

    def close(self) -> None:
        """End the processes that this service has started."""
        if "grammars" in self.__dict__:
            self.grammars.close()

    def note_prompt(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Say where this prompt left an earlier one, to those who watch."""
        if self.config.log_requests or log.isEnabledFor(logging.DEBUG):
            near_miss = self._near_misses.note(request_id, token_ids)
            if near_miss is not None:
                log.info("near miss of the prefix cache: %s", near_miss)

    def keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` although nobody waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def resolve_model(self, name: str | None) -> str:
        """The name to answer under; any served name will do, and none means the first."""
        if name is None:
            return self.config.served_model_names[0]
        if name not in self.config.served_model_names:
            raise NotFoundError(
                f'the model "{name[:100]}" is not served here; served: '
                + ", ".join(self.config.served_model_names),
                param="model",
                code="model_not_found",
            )
        return name

    def status_changed(self, status: EngineStatus) -> None:
        ready = self.client.ready
        if ready is not None and not self._described_cache:
            self._described_cache = True
            self.metrics.set_cache_config(
                {"block_size": "128", "num_gpu_blocks": str(ready.num_blocks)}
            )
        self._listener(status, ready)

    def step_done(self, stats: EngineStats) -> None:
        self.metrics.step_done(stats.step_tokens)

    def request_finished(self, output: RequestOutput) -> None:
        times = output.times
        if times is not None and times.first_token_s > 0:
            self.metrics.engine_times(
                EngineTimes(
                    queue_s=times.scheduled_s - times.arrival_s,
                    prefill_s=times.first_token_s - times.scheduled_s,
                    decode_s=times.finished_s - times.first_token_s,
                )
            )

    def _read_engine(self) -> EngineReading:
        stats = self.client.stats
        used = stats.num_blocks - stats.num_free_blocks
        return EngineReading(
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            cache_usage=used / stats.num_blocks if stats.num_blocks else 0.0,
            num_blocks=stats.num_blocks,
            preemptions_total=stats.preemptions_total,
            prefix_query_tokens_total=stats.prefix_query_tokens_total,
            prefix_hit_tokens_total=stats.prefix_hit_tokens_total,
        )
