"""Grammars in the engine: masks on logits, rows that follow them, random weights under both."""

import json

import jsonschema
import numpy as np
import pytest
import torch

from mserve.checkpoint import open_checkpoint
from mserve.core import (
    BLOCK_TOKENS,
    CacheConfig,
    Constraint,
    EngineConfig,
    FinishReason,
    FreeText,
    KVLayout,
    ModelConfig,
    ParallelConfig,
    Plane,
    Request,
    RowStart,
    SamplingParams,
    SchedulerConfig,
    Span,
    StepPlan,
)
from mserve.engine.startup import start
from mserve.layers import KVCache
from mserve.matcher import Follower, Only, Vocabulary, VocabularyFacts
from mserve.parallel import SoloGroup
from mserve.runner import Runner
from mserve.sampler import Allowed, Penalties, SamplingInputs, sample
from mserve.testing.toys import BareEngine, small_toy
from mserve.text import Detokenizer, DialectParser, Start, load_tokenizer
from mserve.text.dialects import Tools, marker_ids, of_family
from mserve.text.events import CallFinished, ContentDelta
from mserve.text.grammar import Tool, constraint_for

BYTES = VocabularyFacts([bytes([value]) for value in range(256)], (0,), (0,))
EOS = 0


def inputs(num_rows, edits, temperature=0.0):
    return SamplingInputs(
        temperature=np.full(num_rows, temperature),
        top_k=np.zeros(num_rows, dtype=np.int64),
        top_p=np.ones(num_rows),
        min_p=np.zeros(num_rows),
        seeds=np.arange(num_rows, dtype=np.uint64),
        positions=np.zeros(num_rows, dtype=np.int64),
        edits=edits,
    )


@pytest.mark.parametrize("vocab", [61, 64, 100])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen_and_logits_come_back(vocab, temperature):
    generator = torch.Generator().manual_seed(5)
    rng = np.random.default_rng(5)
    logits = torch.randn(6, vocab, generator=generator)
    before = logits.clone()
    rows = np.array([4, 0, 3])
    bits = rng.random((3, 64)) < 0.1
    bits[:, 0] = True
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    sampled = sample(logits, inputs(6, [Allowed(rows, masks)], temperature))
    assert torch.equal(logits, before)
    assert not sampled.failed.any()
    for place, row in enumerate(rows):
        allowed = np.flatnonzero(bits[place][:vocab])
        assert sampled.token_ids[row] in allowed
        if not temperature:
            assert sampled.token_ids[row] == allowed[int(before[row, allowed].argmax())]
    if not temperature:
        free = [1, 2, 5]
        assert torch.equal(sampled.token_ids[free], before[free].argmax(-1))


def test_a_mask_comes_after_every_other_edit():
    logits = torch.tensor([[1.0, 5.0, 3.0]])
    one = np.array([1])
    penalty = Penalties(np.array([0]), one, one, np.array([1.0]), np.array([-9.0]), np.zeros(1))
    mask = Allowed(np.array([0]), np.array([[0b101]], dtype=np.int32))
    assert sample(logits, inputs(1, [penalty, mask])).token_ids.tolist() == [2]


class Letters:
    """Logits that want "z" most, then "y", and so on down; end of text least."""

    def forward(self, batch, cache):
        return torch.zeros(batch.num_tokens, 1)

    def logits(self, hidden):
        return torch.arange(256).float().expand(len(hidden), 256) / 10


def runner(vocabulary):
    cache = KVCache(KVLayout((Plane(0, "key", 1, 1, "float32"),)), 8, torch.device("cpu"))
    return Runner(
        Letters(),
        cache,
        SoloGroup(),
        num_rows=4,
        vocab_size=256,
        device=torch.device("cpu"),
        vocabulary=vocabulary,
    )


def begin(row, prompt, output, sampling):
    return RowStart(
        row=row,
        request_id=str(row),
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        seed=1,
    )


def answer(running, row, prompt, output, sampling, most=40):
    """Text of ``row`` from its start to its end of text, and the failure if there was one."""
    tokens = [*prompt, *output]
    starts = (begin(row, prompt, output, sampling),)
    computed = 0
    for step in range(most):
        blocks = (row,) if step == 0 else ()
        span = Span(row, computed, len(tokens) - computed, True, blocks)
        result = running.run(StepPlan(step, starts, (span,)))
        starts = ()
        if result.failed_rows:
            return bytes(tokens[len(prompt) :]), result.failed_rows[row]
        computed = len(tokens)
        tokens += result.rows[0].token_ids
        if tokens[-1] == EOS:
            break
    return bytes(tokens[len(prompt) : -1]), None


GREEDY = SamplingParams(temperature=0.0)
THINKING = FreeText(ends_with="</t>", forbidden_ids=tuple(range(ord("u"), 256)))


def following(grammar, *after):
    return SamplingParams(
        temperature=0.0, logprobs=2, constraint=Constraint(grammar=grammar, after=after)
    )


def test_a_row_follows_its_grammar_and_its_scores_are_the_models_own():
    running = runner(Vocabulary(BYTES))
    assert answer(running, 0, b"ab", b"", following("start: /[a-d]{3}/")) == (b"ddd", None)
    plan = StepPlan(
        9, (begin(0, b"q", b"", following("start: /[a-d]/")),), (Span(0, 0, 1, True, (0,)),)
    )
    (given,) = running.run(plan).rows
    (score,) = given.logprobs
    assert given.token_ids == (ord("d"),)
    assert score.rank == 256 - ord("d") and score.top[0][0] == 255
    free = torch.log_softmax(torch.arange(256) / 10, 0)
    assert score.logprob == pytest.approx(float(free[ord("d")]), abs=1e-4)


def test_a_preempted_row_resumes_where_it_was():
    """Its follower is made again from its tokens, in thinking and in the grammar."""
    sampling = following('start: "(" /[a-d]{6}/ ")"', THINKING)
    said = b"ttt</t>(dddddd)"
    for cut in range(len(said) + 1):
        running = runner(Vocabulary(BYTES))
        output = said[:cut]
        if cut < len(b"ttt</t>"):
            plan = StepPlan(
                0, (begin(0, b"p", output, sampling),), (Span(0, 0, 1 + cut, True, (0,)),)
            )
            (given,) = running.run(plan).rows
            assert given.token_ids == (ord("t"),)
        else:
            assert answer(running, 0, b"p", output, sampling) == (said, None)


def test_rows_do_not_disturb_each_other():
    running = runner(Vocabulary(BYTES))
    samplings = [following("start: /[a-d]+x/"), GREEDY, following("start: /[m-p]+/", THINKING)]
    starts = tuple(begin(row, b"p", b"", sampling) for row, sampling in enumerate(samplings))
    spans = tuple(Span(row, 0, 1, True, (row,)) for row in range(3))
    (first, free, thinking) = running.run(StepPlan(0, starts, spans)).rows
    assert (first.token_ids, free.token_ids) == ((ord("d"),), (255,))
    assert thinking.token_ids == (ord("t"),)
    again = (begin(1, b"p", b"", following('start: "k"')), begin(0, b"p", b"", GREEDY))
    given = running.run(StepPlan(1, again, (spans[1], spans[0]))).rows
    assert [row.token_ids for row in given] == [(ord("k"),), (255,)]


@pytest.mark.parametrize(
    ("vocabulary", "grammar", "reason"),
    [
        (None, 'start: "a"', "tokenizer"),
        (Vocabulary(BYTES), "start: (", "cannot be used"),
        (Vocabulary(BYTES), "start: /(?:(?:[a-z]{1,50}){1,50}){1,50}/", "cannot be used"),
    ],
)
def test_a_row_whose_grammar_cannot_be_followed_fails_alone(vocabulary, grammar, reason):
    running = runner(vocabulary)
    _, failure = answer(running, 0, b"p", b"", following(grammar))
    assert reason in failure
    result = running.run(StepPlan(9, (begin(1, b"p", b"", GREEDY),), (Span(1, 0, 1, True, (1,)),)))
    assert result.rows[0].token_ids == (255,) and not result.failed_rows


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [Tool("forecast", SCHEMA)]


@pytest.fixture(scope="module", params=["m2", "m3"])
def toy(request, tmp_path_factory):
    return small_toy(tmp_path_factory.mktemp("constrained"), request.param)


def test_random_weights_keep_to_schemas_and_calls(toy):
    """With too little room for all, so that rows are preempted on the way."""
    spec = open_checkpoint(toy).spec
    dialect, tokenizer = of_family(spec.family), load_tokenizer(toy)
    ids = marker_ids(dialect, tokenizer)
    engine = BareEngine(
        toy,
        num_blocks=5,
        max_model_len=5 * BLOCK_TOKENS,
        scheduler=SchedulerConfig(max_num_seqs=4),
        with_grammars=True,
    )
    asked = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    forms = [{"response_format": asked}, {"tools": TOOLS, "tool_choice": "required"}] * 2
    sampled = []
    for number, form in enumerate(forms):
        found = constraint_for(dialect, ids, Start.CONTENT, parallel_tool_calls=False, **form)
        sampling = SamplingParams(
            temperature=1.0, seed=number, max_tokens=400, constraint=found.constraint
        )
        sampled.append((range(3 + number, 3 + number + BLOCK_TOKENS - 2), sampling))
    outputs = engine.run(*sampled)
    assert engine.engine.stats().preemptions_total > 0
    num_whole = 0
    for form, output in zip(forms, outputs, strict=True):
        events = events_of(dialect, tokenizer, ids, output.new_token_ids[:-1])
        if output.finish_reason is FinishReason.LENGTH:
            continue
        num_whole += 1
        if "tools" in form:
            (text,) = [event.arguments for event in events if isinstance(event, CallFinished)]
        else:
            text = "".join(event.text for event in events if isinstance(event, ContentDelta))
        jsonschema.validate(json.loads(text), SCHEMA)
    assert num_whole >= 3


def test_with_two_ranks_the_first_one_masks_for_both(toy):
    config = EngineConfig(
        model=ModelConfig(path=str(toy), max_model_len=256),
        cache=CacheConfig(kv_cache_memory_bytes=8 << 20),
        scheduler=SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64),
        parallel=ParallelConfig(tensor_parallel_size=2),
        num_threads=1,
    )
    sampling = SamplingParams(
        seed=1, max_tokens=60, constraint=Constraint(grammar="start: /[a-f]{20}/")
    )
    request = Request(request_id="r", prompt_token_ids=[5, 6, 7], sampling=sampling)
    with start(config) as started:
        outputs = started.engine.submit([request])
        while started.engine.has_work:
            outputs += started.engine.step()
    token_ids = [token_id for output in outputs for token_id in output.new_token_ids]
    text = load_tokenizer(toy).decode(token_ids[:-1], skip_special_tokens=False)
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert len(text) == 20 and set(text) <= set("abcdef")


def events_of(dialect, tokenizer, ids, token_ids):
    tools = Tools({tool.name: tool.parameters for tool in TOOLS})
    parser = DialectParser(dialect, Start.CONTENT, tools, marker_ids=ids)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pushed = [parser.push(token_id, detokenizer.push(token_id)) for token_id in token_ids]
    return [event for events in (*pushed, parser.finish()) for event in events]


def test_the_same_constraint_gives_the_same_masks_in_any_process():
    """What the front end tries without the tokenizer, the engine follows with it."""
    plain, with_encoder = Vocabulary(BYTES), Vocabulary(BYTES, lambda text: list(text.encode()))
    constraint = Constraint(grammar='start: "ab" /[c-e]{2}/ "f"?')
    one, other = (Follower(constraint, vocabulary) for vocabulary in (plain, with_encoder))
    for token_id in b"abcdf":
        first, second = one.choice(), other.choice()
        assert isinstance(first, Only) and np.array_equal(first.mask, second.mask)
        one.accept(token_id)
        other.accept(token_id)
