"""Answers without a server: prompts in, completions out.

    with LLM("demo") as llm:
        for completion in llm.generate(["Hello"], SamplingParams(max_tokens=20)):
            print(completion.text)

It drives the same engine as the server does, in this process; with several ranks this process is
rank 0. Knows prompts, texts and when an answer is complete. Does not know how a step is planned
or computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import msgspec

from mserve.checkpoint import checkpoint_folder
from mserve.core import (
    CacheConfig,
    CacheDtype,
    EngineConfig,
    EngineError,
    FinishReason,
    ModelConfig,
    ParallelConfig,
    Request,
    RequestError,
    RequestOutput,
    SamplingParams,
    SchedulerConfig,
    TokenLogprobs,
)
from mserve.engine.startup import start
from mserve.text import Answer, ByteLevelTokenizer, Tokenizer, load_tokenizer
from mserve.wire import EngineStats, Loading

# Nobody is turned away: all prompts of one call wait in memory anyway.
_MAX_WAITING = 1 << 31

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. ``text`` is None where the checkpoint has no tokenizer. ``token_ids`` include
    the token that ended the answer, and the whole of the last one when a stop string did."""

    prompt_token_ids: list[int]
    text: str | None
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[TokenLogprobs] | None  # one per token, if asked for
    prompt_logprobs: list[TokenLogprobs | None] | None  # None for the first token
    num_cached_tokens: int  # prompt tokens that were not computed again


class LLM:
    """One loaded checkpoint. Close it, or use it in a ``with`` block."""

    def __init__(
        self,
        model: str,
        *,
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        quantization: Literal["mxfp8", "fp8", "int8"] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        enable_expert_parallel: bool = False,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        enable_prefix_caching: bool = True,
        memory_utilization: float = 0.9,
        kv_cache_memory_bytes: int | None = None,
        kv_cache_dtype: CacheDtype = "auto",
        index_cache_dtype: CacheDtype = "auto",
        seed: int = 0,
        deterministic: bool = False,
        num_threads: int | None = None,
        report: Callable[[Loading], None] = lambda loading: None,
    ) -> None:
        """Load ``model``, a checkpoint folder. The settings are those of ``core.EngineConfig``;
        ``report`` hears of the progress. ``SetupError`` says what cannot work and why."""
        config = EngineConfig(
            model=ModelConfig(
                path=str(checkpoint_folder(model)),
                dtype=dtype,
                quantization=quantization,
                max_model_len=max_model_len,
                device=device,
            ),
            cache=CacheConfig(
                memory_utilization=memory_utilization,
                kv_cache_memory_bytes=kv_cache_memory_bytes,
                enable_prefix_caching=enable_prefix_caching,
                kv_cache_dtype=kv_cache_dtype,
                index_cache_dtype=index_cache_dtype,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
            ),
            parallel=ParallelConfig(
                tensor_parallel_size=tensor_parallel_size,
                enable_expert_parallel=enable_expert_parallel,
            ),
            seed=seed,
            deterministic=deterministic,
            num_threads=num_threads,
        )
        self._start(config, report)

    @classmethod
    def of(
        cls, config: EngineConfig, report: Callable[[Loading], None] = lambda loading: None
    ) -> Self:
        """One that runs by ``config``, but for ``max_waiting``: here nobody is turned away."""
        llm = cls.__new__(cls)
        llm._start(config, report)
        return llm

    def _start(self, config: EngineConfig, report: Callable[[Loading], None]) -> None:
        scheduler = msgspec.structs.replace(config.scheduler, max_waiting=_MAX_WAITING)
        self._started = start(msgspec.structs.replace(config, scheduler=scheduler), report)
        self._engine = self._started.engine
        self._tokenizer = load_tokenizer(self._started.checkpoint.path)
        self._num_requests = 0

    @property
    def default_sampling(self) -> SamplingParams:
        """What the checkpoint's ``generation_config.json`` recommends."""
        return self._started.checkpoint.sampling

    @property
    def report(self) -> list[str]:
        """What was found and decided at start, for people."""
        return self._started.ready.report

    @property
    def stats(self) -> EngineStats:
        """What runs now, and totals since start."""
        return self._engine.stats()

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Continue every prompt, a text or token ids. ``sampling`` is one for all or one for each;
        without it the checkpoint's defaults apply. Returns the completions in the order of the
        prompts, ``n`` in a row for a prompt with ``n`` choices. ``progress`` is called with the
        completions finished and the tokens made so far.

        ``RequestError`` for a prompt or a setting that cannot be served, before anything runs;
        ``EngineError`` if an answer could not be computed.
        """
        drafts = self._drafts(prompts, self._sampling_of_each(len(prompts), sampling))
        growing = {draft.request.request_id: draft for draft in drafts}
        num_tokens = 0
        try:
            outputs = self._engine.submit(draft.request for draft in drafts)
            while growing:
                for output in outputs:
                    draft = growing[output.request_id]
                    num_tokens += draft.take(output)
                    if draft.completion is not None:
                        del growing[output.request_id]
                        if output.finish_reason is None:  # a stop string, which only we know of
                            self._engine.abort([output.request_id])
                if progress is not None:
                    progress(len(drafts) - len(growing), num_tokens)
                outputs = self._engine.step()
        finally:
            self._engine.abort(growing)  # what an error or an interrupt left behind
        return [draft.completion for draft in drafts if draft.completion is not None]

    def close(self) -> None:
        """Let go of the other ranks' processes. Safe to call twice."""
        self._started.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _sampling_of_each(
        self, count: int, sampling: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if sampling is None:
            sampling = self.default_sampling
        if isinstance(sampling, SamplingParams):
            return [sampling] * count
        if len(sampling) != count:
            raise RequestError(f"{len(sampling)} sampling parameters for {count} prompts")
        return list(sampling)

    def _drafts(
        self, prompts: Sequence[str | Sequence[int]], sampling: Sequence[SamplingParams]
    ) -> list[_Draft]:
        drafts = []
        for number, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
            params.validate(self._started.ready.vocab_size)
            if params.stop and not isinstance(self._tokenizer, ByteLevelTokenizer):
                raise RequestError(
                    "stop strings need a tokenizer; use stop_token_ids", param="stop"
                )
            token_ids = self._token_ids(number, prompt)
            for choice in range(params.n):
                seed = None if params.seed is None else params.seed + choice
                one = msgspec.structs.replace(params, n=1, seed=seed)
                self._num_requests += 1
                request = Request(
                    request_id=f"offline-{self._num_requests}",
                    prompt_token_ids=token_ids,
                    sampling=one,
                )
                drafts.append(_Draft(request, _answer(self._tokenizer, one)))
        return drafts

    def _token_ids(self, number: int, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special_tokens=True)
        vocab_size = self._started.ready.vocab_size
        for token_id in prompt:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"prompt {number} holds token id {token_id}; the vocabulary is 0 to "
                    f"{vocab_size - 1}",
                    param="prompt",
                )
        return list(prompt)


def _answer(tokenizer: Tokenizer, sampling: SamplingParams) -> Answer | None:
    return Answer(tokenizer, sampling) if isinstance(tokenizer, ByteLevelTokenizer) else None


@dataclass(slots=True)
class _Draft:
    """A completion as it grows."""

    request: Request
    answer: Answer | None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    completion: Completion | None = None

    def take(self, output: RequestOutput) -> int:
        """Add what one step gave; returns the tokens that count. ``EngineError`` or
        ``RequestError`` if the engine gave up."""
        reason = output.finish_reason
        if reason is FinishReason.ERROR:
            raise _error(output)
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.num_cached_tokens = output.num_cached_tokens or self.num_cached_tokens
        count, stopped = len(output.new_token_ids), False
        if self.answer is not None:
            piece = self.answer.push(
                output.new_token_ids,
                last=reason is not None,
                stop_token_id=output.stop_token_id,
            )
            self.texts.append(piece.content)
            count, stopped = piece.num_tokens, piece.stop is not None
        self.token_ids += output.new_token_ids[:count]
        self.logprobs += (output.logprobs or [])[:count]
        if stopped or reason is not None:
            self._finish("stop" if stopped or reason is FinishReason.STOP else "length")
        return count

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self.completion = Completion(
            prompt_token_ids=self.request.prompt_token_ids,
            text=None if self.answer is None else "".join(self.texts),
            token_ids=self.token_ids,
            finish_reason=reason,
            logprobs=None if self.request.sampling.logprobs is None else self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            num_cached_tokens=self.num_cached_tokens,
        )


def _error(output: RequestOutput) -> RequestError | EngineError:
    message = output.error or "the answer could not be computed"
    if output.error_code in (None, EngineError.code):
        return EngineError(message)
    return RequestError(message, code=output.error_code)
