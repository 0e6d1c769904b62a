"""What all endpoints share: the engine, the text tools, the names served, the life of the server.

Knows whether work may be admitted. Does not know HTTP.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from mserve.checkpoint import read_sampling_defaults
from mserve.core import NotFoundError, NotReadyError, RequestOutput, SamplingParams
from mserve.observe import EngineReading, EngineTimes, ServerMetrics
from mserve.server.errors import shutting_down
from mserve.text import (
    ChatTemplate,
    Tokenizer,
    load_chat_template,
    load_tokenizer,
)
from mserve.wire import (
    EngineClient,
    EngineStats,
    EngineStatus,
    Phase,
    Ready,
    not_ready_message,
)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every knob of the front end."""

    served_model_names: tuple[str, ...]  # the first is the one that answers carry
    api_keys: tuple[str, ...] = ()  # none: no key is asked for
    policy: Literal["fcfs", "priority"] = "fcfs"
    shutdown_timeout_s: float = 30.0  # how long requests may finish after SIGTERM
    log_requests: bool = False  # a line per finished request


class TextTools(msgspec.Struct, frozen=True):
    """What a checkpoint brings for text."""

    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams


def load_text_tools(checkpoint: Path, chat_template: Path | None = None) -> TextTools:
    """Raises ``CheckpointError`` for what is there and cannot be used."""
    return TextTools(
        load_tokenizer(checkpoint),
        load_chat_template(checkpoint, chat_template),
        read_sampling_defaults(checkpoint),
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
