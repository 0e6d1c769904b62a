"""lm-eval's tasks without lm-eval: what is asked for them, and how its results are read."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from mserve.evaluate import AskClient, Score, task_scores, wilson
from mserve.evaluate.harness import generation_body, likelihood, run_tasks
from mserve.evaluate.tally import share


def test_scores_of_tasks_get_intervals_where_they_are_shares() -> None:
    found = {
        "results": {
            "t": {
                "alias": "t",
                "exact_match,strict": 0.75,
                "exact_match_stderr,strict": 0.1,
                "exact_match,loose": 1.0,
                "perplexity,none": 12.5,
            }
        },
        "n-samples": {"t": {"original": 8, "effective": 4}},
    }
    scores = task_scores(found)
    assert scores["t/exact_match"] == Score(rate=0.75, num_cases=4, interval=wilson(3, 4))
    assert scores["t/exact_match,loose"].rate == 1.0
    assert scores["t/perplexity"].interval is None
    assert len(scores) == 3


def test_scores_of_groups_count_the_cases_of_their_tasks() -> None:
    """A mean over tasks of several sizes is no share of the cases."""
    results = {
        "big": {"acc,none": 1.0, "sample_len": 2},
        "small": {"acc,none": 0.0, "sample_len": 1},
        "of_cases": {"alias": "a", "acc,none": 2 / 3, "sample_len": 3, "acc_stderr,none": "N/A"},
        "of_tasks": {"acc,none": 0.5, "sample_len": 3, "sample_count": {"acc,none": 3}},
        "of_none": {"alias": "a"},
    }
    asked = {"big": {"original": 9, "effective": 2}, "small": {"original": 9, "effective": 1}}
    assert task_scores({"results": results, "n-samples": asked}) == {
        "big/acc": share(2, 2),
        "small/acc": share(0, 1),
        "of_cases/acc": share(2, 3),
        "of_tasks/acc": Score(rate=0.5, num_cases=3),
    }


def test_generation_options_become_a_chat_request() -> None:
    options = {"until": ["\n", ""], "max_gen_toks": 7, "temperature": 0.7, "do_sample": False}
    body = generation_body("Q", options, {"temperature": 0.0})
    assert body == {
        "messages": [{"role": "user", "content": "Q"}],
        "max_tokens": 7,
        "stop": ["\n"],
        "temperature": 0.0,
    }
    assert generation_body("Q", {**options, "do_sample": True}, {})["temperature"] == 0.7


def test_likelihood_counts_what_follows_the_context() -> None:
    logprobs = {
        "text_offset": [0, 2, 5, 6],
        "token_logprobs": [None, -9.0, -0.5, -0.25],
        "top_logprobs": [None, {"a": -0.1}, {"b": -0.5}, {"c": -0.25}],
    }
    assert likelihood(logprobs, 5) == (-0.75, True)
    assert likelihood(logprobs, 0) == (-9.75, False)


def test_the_library_gets_a_model_that_asks_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval itself is not needed: its stand-in calls the model as it does, and reports."""

    async def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["model"] == "m"
        if request.url.path == "/v1/chat/completions":
            message = {"content": body["messages"][0]["content"].upper()}
            return httpx.Response(200, json={"choices": [{"message": message}]})
        tokens = {"text_offset": [0, 1], "token_logprobs": [None, -float(len(body["prompt"]))]}
        logprobs = {**tokens, "top_logprobs": [None, {"x": -1.0}]}
        return httpx.Response(200, json={"choices": [{"logprobs": logprobs}]})

    def simple_evaluate(model: Any, tasks: list[str], **options: Any) -> dict[str, Any]:
        def requests(*arguments: Any) -> list[Any]:
            return [SimpleNamespace(args=one) for one in arguments]

        assert options["limit"] == 2
        said_back = model.generate_until(requests(("ab", {"until": ["\n"]}), ("c", {})))
        metrics = {"said,none": said_back == ["AB", "C"]}
        assert model.loglikelihood(requests(("a", "b"), ("a", "bcd"))) == [(-2, False), (-4, False)]
        assert model.loglikelihood_rolling(requests(("abc",))) == [-3.0]
        return {"results": {tasks[0]: {k: float(v) for k, v in metrics.items()}}, "n-samples": {}}

    library, model_module = ModuleType("lm_eval"), ModuleType("lm_eval.api.model")
    library.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    model_module.LM = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", library)
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", model_module)
    monkeypatch.setattr("mserve.evaluate.harness.require_harness", lambda: None)
    monkeypatch.setattr(
        "mserve.evaluate.harness.AskClient",
        lambda url, api_key: AskClient(url, transport=httpx.MockTransport(answer)),
    )
    found = run_tasks(
        "http://it", ["t"], model="m", api_key=None, settings={}, limit=2, concurrency=2
    )
    assert task_scores(found)["t/said"].rate == 1.0
