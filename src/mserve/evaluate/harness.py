"""lm-eval's tasks, asked of a server: its library brings questions and metrics, this the model.

Tasks that generate are asked as chat, one user's message each; what is said after thinking is the
answer. Tasks that compare likelihoods are scored on the bare text, as lm-eval does elsewhere.
Knows the library's interface for models. It is imported only here, and only when asked for, since
most installations do without it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mserve.core import SetupError
from mserve.evaluate.client import AskClient
from mserve.evaluate.tally import Score, share

_MAX_ANSWER_TOKENS = 2048  # where the task does not say; thinking counts


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise ``SetupError`` where lm-eval is not installed, or knows a task neither by its name
    nor as a file."""
    require_harness()
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    for task in tasks:
        if task not in known and not Path(task).is_file():
            raise SetupError(
                f"lm-eval has no task {task}",
                hint="`lm_eval ls tasks` lists them; the path of one's own ends in .yaml",
            )


def require_harness() -> None:
    """Raise ``SetupError`` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise SetupError(
            "--task needs lm-eval, which is not installed", hint="python -m pip install lm-eval"
        )


def run_tasks(
    url: str,
    tasks: Sequence[str],
    *,
    model: str,
    api_key: str | None,
    settings: Mapping[str, Any],
    limit: int | None,
    concurrency: int,
) -> dict[str, Any]:
    """What lm-eval says of ``tasks`` (names, or paths of YAML files): results by task, and
    "n-samples". Raises ``SetupError`` for a task that is not known or whose data are not there.
    """
    require_harness()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval import simple_evaluate

    served = _model_class()(url, model, api_key, dict(settings), concurrency)
    try:
        found = simple_evaluate(
            model=served, tasks=list(tasks), limit=limit, log_samples=False, bootstrap_iters=0
        )
    except SetupError:
        raise
    except Exception as error:  # the library and the data sets below it raise what they like
        first = (str(error).strip("'\"").splitlines() or [type(error).__name__])[0]
        raise SetupError(f"lm-eval could not run {', '.join(tasks)}: {first}") from error
    kept = {"results": found["results"], "n-samples": found["n-samples"]}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=float))  # numpy's numbers in it
    return plain


def task_scores(found: Mapping[str, Any]) -> dict[str, Score]:
    """Scores by ``task/metric``, and by ``task/metric,filter`` for the filters beyond the first.

    A metric gets an interval where it is a share of the task's cases, or of those of all tasks in
    a group.
    """
    scores: dict[str, Score] = {}
    for task, metrics in (found.get("results") or {}).items():
        asked = (found.get("n-samples") or {}).get(task) or {}  # of tasks only, not of groups
        num_cases = metrics.get("sample_len") or asked.get("effective", 0)
        for key, value in metrics.items():
            metric, _, rule = key.partition(",")
            if metric.endswith("_stderr") or not rule or isinstance(value, str | bool):
                continue
            name = f"{task}/{metric}"
            scores[f"{name},{rule}" if name in scores else name] = _score(value, num_cases)
    return scores


def _score(value: float, num_cases: int) -> Score:
    num_right = value * num_cases
    if num_cases and 0 <= value <= 1 and abs(num_right - round(num_right)) < 1e-6:
        return share(round(num_right), num_cases)
    return Score(rate=value, num_cases=num_cases)


def _model_class() -> Any:
    """Made when it is needed, since its base class is the library's."""
    from lm_eval.api.model import LM

    class ServedModel(LM):  # type: ignore[misc]
        """A model behind an OpenAI-compatible server; requests go out some at a time."""

        def __init__(
            self,
            url: str,
            model: str,
            api_key: str | None,
            settings: dict[str, Any],
            concurrency: int,
        ) -> None:
            super().__init__()
            self._url, self._model, self._api_key = url, model, api_key
            self._settings, self._concurrency = settings, concurrency

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            async def generated(client: AskClient, context: str, options: dict[str, Any]) -> str:
                body = generation_body(context, options, self._settings)
                return (await client.ask({**body, "model": self._model})).content

            return self._each(requests, generated)

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            async def scored(
                client: AskClient, context: str, continuation: str
            ) -> tuple[float, bool]:
                body = scoring_body(context + continuation)
                choice = await client.completion({**body, "model": self._model})
                return likelihood(choice["logprobs"], len(context))

            return self._each(requests, scored)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            """Of texts within the context; a longer one is refused by the server."""

            async def scored(client: AskClient, text: str) -> float:
                choice = await client.completion({**scoring_body(text), "model": self._model})
                return likelihood(choice["logprobs"], 0)[0]

            return self._each(requests, scored)

        def _each(self, requests: list[Any], ask: Callable[..., Awaitable[Any]]) -> list[Any]:
            async def run() -> list[Any]:
                slots = asyncio.Semaphore(self._concurrency)
                async with AskClient(self._url, api_key=self._api_key) as client:

                    async def one(request: Any) -> Any:
                        async with slots:
                            return await ask(client, *request.args)

                    return await asyncio.gather(*map(one, requests))

            return asyncio.run(run())

    return ServedModel


def generation_body(
    context: str, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A chat request for one of lm-eval's, whose options mix transformers' names and its own."""
    until = options.get("until") or []
    body: dict[str, Any] = {
        **settings,
        "messages": [{"role": "user", "content": context}],
        "max_tokens": options.get("max_gen_toks") or _MAX_ANSWER_TOKENS,
    }
    for name in ("temperature", "top_p", "top_k"):
        if options.get(name) is not None and options.get("do_sample"):
            body[name] = options[name]
    if stop := [text for text in ([until] if isinstance(until, str) else until) if text]:
        body["stop"] = stop
    return body


def scoring_body(text: str) -> dict[str, Any]:
    """A request that generates nothing and tells the log-probabilities of ``text``."""
    return {"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 1, "temperature": 0}


def likelihood(logprobs: Mapping[str, Any], num_context_chars: int) -> tuple[float, bool]:
    """The sum over the tokens that begin behind the context, and whether each was the likeliest.

    A text's first token has no probability and does not count.
    """
    total, is_greedy = 0.0, True
    for offset, logprob, top in zip(
        logprobs["text_offset"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        if offset >= num_context_chars and logprob is not None:
            total += logprob
            is_greedy &= logprob >= max(top.values(), default=logprob)
    return total, is_greedy
