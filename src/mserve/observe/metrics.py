"""What /metrics exports, under the names that vLLM dashboards already query.

Knows names, units and buckets. Does not know who measures (the server feeds it) or who reads.
Every series carries ``model_name`` and ``engine``; each server owns a registry, so that two in
one process do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

_LABELS = ("model_name", "engine")

_LATENCY_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_TOKEN_COUNT_BUCKETS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
    200_000, 500_000, 1_000_000,
)  # fmt: skip
_CHOICE_BUCKETS = (1, 2, 5, 10, 20, 50, 100)


class EngineReading(msgspec.Struct, frozen=True, kw_only=True):
    """State of the engine at a scrape. Totals count since the engine process started."""

    num_running: int
    num_waiting: int
    cache_usage: float  # share of blocks in use, 0 to 1
    num_blocks: int
    preemptions_total: int
    prefix_query_tokens_total: int
    prefix_hit_tokens_total: int


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its client saw it. Durations in seconds; ``None``: never happened."""

    reason: str  # "stop", "length", "abort" or "error"
    num_prompt_tokens: int
    num_output_tokens: int
    num_choices: int
    max_tokens: int | None
    first_token_s: float | None  # from arrival
    total_s: float  # from arrival to last token


class EngineTimes(msgspec.Struct, frozen=True):
    """How the engine spent one request's time, in seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


class ServerMetrics:
    """Counters and histograms of one server, plus the engine's state read at each scrape."""

    def __init__(self, model_name: str, read_engine: Callable[[], EngineReading]) -> None:
        # Otherwise every counter comes with a second series that no dashboard reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self.registry.register(_EngineCollector(read_engine, list(self._labels.values())))

        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self._success = Counter(
            "vllm:request_success",
            "Requests by how they ended",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(**self._labels, finished_reason=reason)
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused before the engine saw them",
            (*_LABELS, "reason"),
            registry=self.registry,
        )
        self._restarts = self._counter("mserve:engine_restarts", "Engine processes replaced")

        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token", _LATENCY_BUCKETS_S
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between tokens of a stream", _TOKEN_LATENCY_BUCKETS_S
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first",
            _TOKEN_LATENCY_BUCKETS_S,
        )
        self._total = self._histogram(
            "e2e_request_latency_seconds", "Arrival to last token", _LATENCY_BUCKETS_S
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "Arrival to admission", _LATENCY_BUCKETS_S
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "Admission to first token", _LATENCY_BUCKETS_S
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "First to last token", _LATENCY_BUCKETS_S
        )
        self._inference = self._histogram(
            "request_inference_time_seconds", "Admission to last token", _LATENCY_BUCKETS_S
        )
        self._num_prompt = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request", _TOKEN_COUNT_BUCKETS
        )
        self._num_output = self._histogram(
            "request_generation_tokens", "Output tokens of a request", _TOKEN_COUNT_BUCKETS
        )
        self._choices = self._histogram("request_params_n", "Choices asked for", _CHOICE_BUCKETS)
        self._max_tokens = self._histogram(
            "request_params_max_tokens", "max_tokens asked for", _TOKEN_COUNT_BUCKETS
        )
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in a step", _TOKEN_COUNT_BUCKETS
        )

    def set_cache_config(self, config: dict[str, str]) -> None:
        """One series valued 1 whose labels are the cache's settings."""
        info = Gauge(
            "vllm:cache_config_info",
            "Settings of the KV cache",
            ("engine", *config),
            registry=self.registry,
        )
        info.labels(engine="0", **config).set(1)

    def step_done(self, num_tokens: int) -> None:
        if num_tokens:
            self._step_tokens.observe(num_tokens)

    def tokens_arrived(self, num_tokens: int, since_last_s: float | None) -> None:
        """New tokens of a stream, and the time since its previous ones."""
        self._generation_tokens.inc(num_tokens)
        if since_last_s is not None and num_tokens:
            for _ in range(num_tokens):
                self._inter_token.observe(since_last_s / num_tokens)

    def request_rejected(self, reason: str) -> None:
        self._rejections.labels(**self._labels, reason=reason).inc()

    def engine_restarted(self) -> None:
        self._restarts.inc()

    def engine_times(self, times: EngineTimes) -> None:
        self._queue.observe(times.queue_s)
        self._prefill.observe(times.prefill_s)
        self._decode.observe(times.decode_s)
        self._inference.observe(times.prefill_s + times.decode_s)

    def request_finished(self, request: FinishedRequest) -> None:
        self._success.labels(**self._labels, finished_reason=request.reason).inc()
        self._prompt_tokens.inc(request.num_prompt_tokens)
        self._num_prompt.observe(request.num_prompt_tokens)
        self._num_output.observe(request.num_output_tokens)
        self._choices.observe(request.num_choices)
        self._total.observe(request.total_s)
        if request.max_tokens is not None:
            self._max_tokens.observe(request.max_tokens)
        if request.first_token_s is not None:
            self._first_token.observe(request.first_token_s)
            if request.num_output_tokens > 1:
                decode_s = request.total_s - request.first_token_s
                self._per_token.observe(decode_s / (request.num_output_tokens - 1))

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        full = name if ":" in name else f"vllm:{name}"
        return Counter(full, text, _LABELS, registry=self.registry).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, _LABELS, buckets=tuple(buckets), registry=self.registry
        )
        return histogram.labels(**self._labels)


class _EngineCollector(Collector):
    """Reads the engine's last report when scraped, so that idle servers cost nothing."""

    def __init__(self, read: Callable[[], EngineReading], labels: list[str]) -> None:
        self._read = read
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        for name, text, value in (
            ("num_requests_running", "Requests in the batch", reading.num_running),
            ("num_requests_waiting", "Requests in the queue", reading.num_waiting),
            ("kv_cache_usage_perc", "Share of KV blocks in use", reading.cache_usage),
            ("gpu_cache_usage_perc", "Old name of kv_cache_usage_perc", reading.cache_usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        queries, hits = reading.prefix_query_tokens_total, reading.prefix_hit_tokens_total
        for name, text, total in (
            ("num_preemptions", "Requests sent back to the queue", reading.preemptions_total),
            ("prefix_cache_queries", "Tokens looked up in the prefix cache", queries),
            ("prefix_cache_hits", "Tokens found in the prefix cache", hits),
            ("gpu_prefix_cache_queries", "Old name of prefix_cache_queries", queries),
            ("gpu_prefix_cache_hits", "Old name of prefix_cache_hits", hits),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            counter.add_metric(self._labels, total)
            yield counter
