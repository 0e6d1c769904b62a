"""The offline interface: prompts in, completions out, on one rank and on two."""

import numpy as np
import pytest

from mserve.core import (
    CheckpointError,
    ContextLengthError,
    EngineError,
    RequestError,
    SamplingParams,
)
from mserve.llm import LLM
from mserve.testing.toys import greedy, small_toy, transformers_of

SMALL = {
    "kv_cache_memory_bytes": 32 << 20,
    "max_model_len": 1024,
    "max_num_batched_tokens": 256,
    "max_num_seqs": 8,
    "num_threads": 1,
}


def greedy_rule(count, **fields):
    return SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count, **fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small_toy(tmp_path_factory.mktemp("toys"), "m3")


@pytest.fixture(scope="module")
def llm(checkpoint):
    with LLM(str(checkpoint), **SMALL) as loaded:
        yield loaded


def prompts_of(*lengths):
    draw = np.random.default_rng(1)
    return [draw.integers(0, 1000, length).tolist() for length in lengths]


@pytest.mark.parametrize(("arch", "expert_parallel"), [("m2", False), ("m3", False), ("m3", True)])
def test_two_ranks_answer_as_one_and_as_transformers(tmp_path, arch, expert_parallel):
    path = small_toy(tmp_path, arch)
    prompts = prompts_of(5, 300, 390)
    model = transformers_of(path)
    expected = [greedy(model, prompt, 10) for prompt in prompts]
    rule = greedy_rule(10, logprobs=1)
    answers = {}
    for size in (1, 2):
        with LLM(
            str(path),
            tensor_parallel_size=size,
            enable_expert_parallel=expert_parallel,
            **SMALL,
        ) as ranks:
            answers[size] = ranks.generate(prompts, rule)
    assert [found.token_ids for found in answers[1]] == expected
    assert [found.token_ids for found in answers[2]] == expected
    for one, two in zip(answers[1], answers[2], strict=True):
        assert [entry.logprob for entry in one.logprobs] == pytest.approx(
            [entry.logprob for entry in two.logprobs], abs=1e-4
        )


def test_ranks_that_lost_step_never_answer_again(checkpoint, monkeypatch):
    """An error on one rank alone must not leave the next step to pair with half of this one."""
    with LLM(str(checkpoint), tensor_parallel_size=2, **SMALL) as llm:
        llm.generate([[1, 2]], greedy_rule(2))

        def broken(runner, spans):
            raise RuntimeError("a deliberate failure")

        with monkeypatch.context() as patch:
            patch.setattr("mserve.runner.execute.Runner._compute", broken)
            with pytest.raises(EngineError, match="step failed"):
                llm.generate([[1, 2]], greedy_rule(2))
        with pytest.raises(EngineError, match="rank 1 is gone"):
            llm.generate([[1, 2]], greedy_rule(2))


def test_texts_and_ids_are_equal_prompts(llm):
    text = "A block is a block."
    by_text, plain = llm.generate([text, [1, 2, 3]], greedy_rule(6))
    (by_ids,) = llm.generate([by_text.prompt_token_ids], greedy_rule(6))
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == by_ids.text
    assert isinstance(by_text.text, str)
    assert plain.prompt_token_ids == [1, 2, 3]
    assert by_text.finish_reason == plain.finish_reason == "length"
    assert by_text.logprobs is None


def test_a_stop_string_ends_the_answer_and_frees_its_blocks(llm):
    (whole,) = llm.generate([[5, 6, 7]], greedy_rule(40))
    stop = whole.text[8:11]
    rule = greedy_rule(40, stop=(stop,), logprobs=0)
    cut, other = llm.generate([[5, 6, 7], [9, 9]], [rule, greedy_rule(40)])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < 40
    assert len(cut.logprobs) == len(cut.token_ids)
    assert len(other.token_ids) == 40
    stats = llm.stats
    assert stats.num_free_blocks == stats.num_blocks


def test_a_stop_token_ends_the_answer(llm):
    (whole,) = llm.generate([[5, 6, 7]], greedy_rule(20))
    end = whole.token_ids[6]
    first = whole.token_ids.index(end)
    (cut,) = llm.generate([[5, 6, 7]], greedy_rule(20, stop_token_ids=(end,)))
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.finish_reason == "stop"
    (later,) = llm.generate([[5, 6, 7]], greedy_rule(20, stop_token_ids=(end,), min_tokens=12))
    assert end not in later.token_ids[:12]
    assert later.token_ids[:first] == whole.token_ids[:first]


def test_choices_differ_and_repeat_under_one_seed(llm):
    rule = SamplingParams(n=3, seed=5, temperature=1.5, ignore_eos=True, max_tokens=8)
    prompt = prompts_of(200)[0]
    choices = llm.generate([prompt, [1]], [rule, greedy_rule(2)])
    assert len(choices) == 4
    texts = [tuple(choice.token_ids) for choice in choices[:3]]
    assert len(set(texts)) == 3
    again = llm.generate([prompt], rule)
    assert [tuple(choice.token_ids) for choice in again] == texts
    assert all(choice.num_cached_tokens == 128 for choice in again)


def test_scoring_a_prompt_generates_nothing(llm):
    """What an evaluation asks for: the prompt's log-probabilities and no answer."""
    prompt = prompts_of(300)[0]
    rule = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (scored,) = llm.generate([prompt], rule)
    assert scored.token_ids == []
    assert scored.finish_reason == "length"
    assert [entry and entry.token_id for entry in scored.prompt_logprobs] == [None, *prompt[1:]]


def test_progress_counts_answers_and_tokens(llm):
    seen = []
    llm.generate(prompts_of(3, 4), greedy_rule(5), progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (2, 10)
    assert seen == sorted(seen)


def test_without_sampling_parameters_the_checkpoints_defaults_apply(tmp_path):
    path = small_toy(tmp_path, "m2")
    (path / "generation_config.json").write_text('{"do_sample": true, "top_k": 1}')
    prompt = prompts_of(1000)[0]
    with LLM(str(path), **SMALL) as llm:
        assert llm.default_sampling == SamplingParams(top_k=1)
        (found,) = llm.generate([prompt])
        (expected,) = llm.generate([prompt], SamplingParams(temperature=0.0))
    assert found.token_ids == expected.token_ids
    assert len(found.token_ids) == 24 or found.finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "rule", "problem"),
    [
        ([1, 1024], SamplingParams(), "token id 1024"),
        ([-1], SamplingParams(), "token id -1"),
        ([1], SamplingParams(temperature=-1.0), "temperature"),
        ([1], SamplingParams(top_k=5000), "top_k"),
        ([], SamplingParams(), "empty"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(llm, prompt, rule, problem):
    steps = llm.stats.steps_total
    with pytest.raises(RequestError, match=problem):
        llm.generate([[1, 2], prompt], [greedy_rule(3), rule])
    assert llm.stats.steps_total == steps
    assert llm.stats.num_running == llm.stats.num_waiting == 0


def test_a_prompt_longer_than_the_context_is_refused(llm):
    with pytest.raises(RequestError, match="1024") as refused:
        llm.generate([[1] * 1024], greedy_rule(3))
    assert refused.value.code == ContextLengthError.code
    assert llm.stats.num_running == llm.stats.num_waiting == 0


def test_one_sampling_for_each_prompt_or_one_for_all(llm):
    with pytest.raises(RequestError, match="2 sampling parameters for 1 prompts"):
        llm.generate([[1]], [greedy_rule(1), greedy_rule(1)])


def test_without_a_tokenizer_ids_work_and_text_is_refused(tmp_path):
    path = small_toy(tmp_path, "m2")
    (path / "tokenizer.json").unlink()
    with LLM(str(path), **SMALL) as bare:
        (found,) = bare.generate([[1, 2, 3]], greedy_rule(4))
        assert found.text is None
        assert len(found.token_ids) == 4
        with pytest.raises(RequestError, match=r"no tokenizer\.json"):
            bare.generate(["text"], greedy_rule(4))
        with pytest.raises(RequestError, match="stop strings"):
            bare.generate([[1]], greedy_rule(4, stop=("a",)))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM(str(tmp_path))
