"""Text completions: the shapes of prompts, and the log-probabilities that evaluations sum."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from mserve.testing.fake_engine import scored


def test_prompts_of_every_shape(server: Any) -> None:
    ids = list(b"abc")
    for prompt, count in (("abc", 1), (["abc", "abc"], 2), (ids, 1), ([ids, ids, ids], 3)):
        answer = server.complete(prompt, max_tokens=2).json()
        assert [choice["text"] for choice in answer["choices"]] == ["ab"] * count
        assert [choice["index"] for choice in answer["choices"]] == list(range(count))
        assert answer["usage"]["prompt_tokens"] == 3 * count
        assert answer["usage"]["completion_tokens"] == 2 * count
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * count


def test_openai_client(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.completions.create(model="scripted", prompt="abc", max_tokens=3)
        assert answer.object == "text_completion"
        assert answer.choices[0].text == "abc"
        stream = client.completions.create(
            model="scripted", prompt="abc", max_tokens=6, stream=True
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abcabc"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_choices_per_prompt(server: Any) -> None:
    answer = server.complete(["ab", "cd"], n=2, max_tokens=2).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "cd", "cd"]
    assert answer["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("prompt", ["hello€!", [259, 111, 226, 130, 172, 33]])
def test_echo_with_logprobs_as_lm_eval_reads_it(server: Any, prompt: Any) -> None:
    """Scores of prompt[context:] are token_logprobs[context:-1]; greedy means equal to the best
    of top_logprobs."""
    ids = [259, 111, 226, 130, 172, 33]
    answer = server.complete(prompt, echo=True, max_tokens=1, logprobs=1, temperature=0).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "hello€!hell"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [
        *("hell", "o", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "!", "hell")
    ]
    assert logprobs["text_offset"] == [0, 4, 5, 5, 5, 6, 7]
    expected = [None, *(scored(i, 1).logprob for i in [*ids[1:], 259])]
    assert logprobs["token_logprobs"] == expected
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(logprobs["tokens"], expected, logprobs["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == max(top.values()) == logprob
    assert answer["usage"]["completion_tokens"] == 1


def test_echo_alone(server: Any) -> None:
    (choice,) = server.complete("hello", echo=True, max_tokens=0).json()["choices"]
    assert (choice["text"], choice["logprobs"]) == ("hello", None)
    (scored_choice,) = server.complete("abc", echo=True, max_tokens=0, logprobs=0).json()["choices"]
    assert scored_choice["text"] == "abc"
    assert scored_choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert scored_choice["finish_reason"] == "length"


def test_stream_with_echo_and_logprobs_is_the_whole_in_pieces(server: Any) -> None:
    fields = {"echo": True, "logprobs": 2, "max_tokens": 4, "n": 2}
    whole = server.complete("hello", **fields).json()
    blocks = server.complete("hello", **fields, stream=True).text.split("\n\n")
    assert blocks[-2] == "data: [DONE]"
    pieces = [json.loads(block.removeprefix("data: "))["choices"][0] for block in blocks[:-2]]
    for choice in whole["choices"]:
        mine = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for piece in mine for value in piece["logprobs"][name]] == values


def test_stop_string_cuts_tokens_and_logprobs(server: Any) -> None:
    (choice,) = server.complete("abcdef", stop="cd", logprobs=0).json()["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "d"]
    (early,) = server.complete("aXaXaX", stop="X", min_tokens=3).json()["choices"]
    assert early["text"] == "aXa"


def test_prompt_logprobs_per_choice(server: Any) -> None:
    answer = server.complete(["ab", "cd"], prompt_logprobs=0, max_tokens=1).json()
    for choice, second in zip(answer["choices"], "bd", strict=True):
        first_entry, entry = choice["prompt_logprobs"]
        assert first_entry is None
        assert entry[str(ord(second))]["decoded_token"] == second


def test_tokenize_and_detokenize(server: Any) -> None:
    def post(path: str, **body: Any) -> Any:
        response = server.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    answer = post("/tokenize", prompt="hello", return_token_strs=True)
    assert answer == {
        "count": 2,
        "max_model_len": 256,
        "tokens": [259, 111],
        "token_strs": ["hell", "o"],
    }
    chat = post("/tokenize", messages=[{"role": "user", "content": "hello"}])
    assert chat["count"] == 13
    assert chat["token_strs"] is None
    assert post("/detokenize", tokens=chat["tokens"]) == {"prompt": "[user]hello<end>[ai]"}
    assert post("/tokenize", prompt="")["count"] == 0
    assert post("/detokenize", tokens=[]) == {"prompt": ""}
