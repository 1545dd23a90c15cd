"""From texts to tokens and back, scores and log-probs of answers: each against one row at a time."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import make, shaken

import core.text as text_file
from core.config import BadInput
from core.text import (
    answer_logprobs,
    best_of_n,
    by_length,
    decode_answer,
    encode_answer,
    kl_of_answers,
    mean_score,
    pad_responses,
    respond,
    response_logprobs,
    score_answers,
    score_rows,
)
from data.bpe import build_tokenizer, tokenizer_spec_from
from model import GPT, GPTConfig, ScalarModel

PROMPTS = ["What colour is the cat?\n", "The red dog sat", "A"]
ANSWERS = [("It is red.", True), ("", True), ("A brown owl sat on", False)]
TOO_LONG = ("x" * 300, True)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of 256 bytes and end-of-text."""
    return build_tokenizer(tokenizer_spec_from([bytes([b]) for b in range(256)], "bytes"))


def test_prompt_and_answer_are_encoded_apart(tokenizer):
    for prompt, (text, ended) in zip(PROMPTS, ANSWERS):
        asked, answer = encode_answer(tokenizer, prompt, text, ended)
        assert tokenizer.decode(asked) == prompt
        assert decode_answer(tokenizer, answer or [0])[1] == ended
        assert tokenizer.decode(answer[:-1] if ended else answer) == text
        assert answer.count(tokenizer.eot_token) == ended
    joined, apart = (
        tokenizer.encode_ordinary("The red dog"),
        sum(encode_answer(tokenizer, "The r", "ed dog", False), []),
    )
    assert joined != apart, "the example must be one where it makes a difference"


def test_batches_hold_every_row_once_and_similar_lengths():
    rows = [[0] * n for n in (5, 1, 9, 3, 3, 7, 2)]
    batches = by_length(rows, 3)
    assert sorted(sum(batches, [])) == list(range(7)) and [len(batch) for batch in batches] == [3, 3, 1]
    lengths = [[len(rows[i]) for i in batch] for batch in batches]
    assert all(max(a) <= min(b) for a, b in zip(lengths, lengths[1:]))
    assert by_length([], 3) == []


class Alphabet(torch.nn.Module):
    """A model that says the alphabet: after each letter the next one, after z end-of-text."""

    def __init__(self):
        super().__init__()
        self.config = GPTConfig(1, 1, 1, 64, 257)
        block = SimpleNamespace(attn=SimpleNamespace(n_head=1))
        self.transformer = SimpleNamespace(wte=SimpleNamespace(weight=torch.zeros(257, 1)), h=[block])

    def forward(self, tokens, *cache_and_positions):
        return F.one_hot(torch.where(tokens >= ord("z"), 256, tokens + 1), 257).float()

    def unembed(self, hidden):
        return 100 * hidden


def test_respond_keeps_the_order_and_knows_who_ended(letters):
    prompts = ["say it: v", "x", "a", "abcdefg", "longer still, y"]
    for batch_size in (1, 2, 256):
        answers = respond(Alphabet(), letters, prompts, 4, batch_size=batch_size)
        assert answers == [("wxyz", False), ("yz", True), ("bcde", False), ("hijk", False), ("z", True)]
    answers = respond(Alphabet(), letters, prompts, 5, stop="y")
    assert answers == [("wx", True), ("", True), ("bcdef", False), ("hijkl", False), ("z", True)]
    assert respond(Alphabet(), letters, ["abc"], 5, stop="fg") == [("de", True)], "cut counts as an end"
    assert respond(Alphabet(), letters, [], 5) == []


def test_respond_is_seeded(tokenizer):
    model = shaken(make(vocab_size=tokenizer.n_vocab))
    one, same, other = (
        respond(model, tokenizer, PROMPTS, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


# ---------------------------------------------------------------------------------------------------- scores


def score_alone(model, row):
    return model.score(torch.tensor([row]), torch.tensor([len(row)])).item()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_scores_are_those_of_each_row_alone_in_order(batch_size):
    model = shaken(make(ScalarModel))
    rows = [[7, 1], [5] * 64, [3], [5] * 65, [9, 8, 7, 6], [250] * 30]
    scores = score_rows(model, rows, batch_size)
    for row, score in zip(rows, scores, strict=True):
        if len(row) > 64:
            assert math.isnan(score)
        else:
            assert score == pytest.approx(score_alone(model, row), abs=1e-5)
    assert score_rows(model, []) == []


@torch.no_grad()
def test_scores_of_answers_and_their_mean(tokenizer):
    model = shaken(make(ScalarModel, vocab_size=tokenizer.n_vocab))
    prompts, answers = [*PROMPTS, PROMPTS[0]], [*ANSWERS, TOO_LONG]
    scores = score_answers(model, tokenizer, prompts, answers)
    for prompt, (text, ended), score in zip(prompts[:3], answers, scores):
        row = tokenizer.encode_ordinary(prompt) + tokenizer.encode_ordinary(text) + [tokenizer.eot_token] * ended
        assert score == pytest.approx(score_alone(model, row), abs=1e-5)
    assert math.isnan(scores[3])
    mean = mean_score(model, tokenizer, prompts, answers)
    assert mean == pytest.approx((scores[0] + scores[1] + scores[2]) / 3), "what does not fit does not count"
    with pytest.raises(BadInput, match="none of the answers fits"):
        mean_score(model, tokenizer, PROMPTS[:1], [TOO_LONG])


def test_best_of_n_is_the_highest_score_that_fits(monkeypatch):
    scores = [0.5, -1.0, 2.0, math.nan, -3.0, -2.0, math.nan, math.nan, math.nan]
    asked = []

    def fake(reward_model, tokenizer, prompts, answers):
        asked.extend(prompts)
        return scores

    monkeypatch.setattr(text_file, "score_answers", fake)
    best = best_of_n(None, None, ["p", "q", "r"], ["a"] * 9, 3)
    assert asked == list("pppqqqrrr")
    assert best[:2] == [(2, 2.0), (5, -2.0)] and best[2] == (6, -math.inf)


# ---------------------------------------------------------------------------------------------------- log-probs


def test_padded_responses():
    tokens, mask = pad_responses([([5, 6, 7, 8], 3), ([9, 9], 1)], "cpu")
    assert tokens[0].tolist() == [5, 6, 7, 8] and tokens[1, :2].tolist() == [9, 9]
    assert mask.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    tokens, mask = pad_responses([], "cpu")
    assert len(tokens) == len(mask) == 0, "a process whose share is empty"


def logprob_alone(model, ids, prompt_length):
    """Of the tokens behind the prompt, one prefix at a time."""
    total = 0.0
    for t in range(prompt_length, len(ids)):
        logits = model.unembed(model(torch.tensor([ids[:t]])))[0, -1]
        total += logits.log_softmax(0)[ids[t]].item()
    return total


def test_response_logprobs_match_a_loop_and_have_a_gradient():
    model = shaken(make())
    rows = [([5, 6, 7, 8], 3), ([9, 9, 250], 1), ([1, 2], 2)]
    sums, counts = response_logprobs(model, rows)
    assert counts.tolist() == [1, 2, 0]
    for (ids, n), value in zip(rows, sums.tolist()):
        assert value == pytest.approx(logprob_alone(model, ids, n), abs=1e-4)
    sums.sum().backward()
    assert model.transformer.wte.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_answer_logprobs_are_in_order(tokenizer, batch_size):
    model = shaken(make(vocab_size=tokenizer.n_vocab))
    answers = [(prompt, text, ended) for prompt, (text, ended) in zip(PROMPTS, ANSWERS)]
    for answer, (total, count) in zip(answers, answer_logprobs(model, tokenizer, answers, batch_size), strict=True):
        asked, response = encode_answer(tokenizer, *answer)
        assert count == len(response)
        assert total == pytest.approx(logprob_alone(model, asked + response, len(asked)), abs=1e-4)


@torch.no_grad()
def test_kl_of_answers_is_the_mean_log_ratio(tokenizer):
    model, reference = (shaken(make(GPT, vocab_size=tokenizer.n_vocab), seed) for seed in (1, 2))
    answers = [ANSWERS[0], ("", False), TOO_LONG]  # nothing said and not ended: no token to score
    for prefix in ("", "Be kind. "):
        ids = sum(encode_answer(tokenizer, PROMPTS[0], *ANSWERS[0]), [])
        own = sum(encode_answer(tokenizer, prefix + PROMPTS[0], *ANSWERS[0]), [])
        n = len(encode_answer(tokenizer, *PROMPTS[:1], *ANSWERS[0])[1])
        want = logprob_alone(model, own, len(own) - n) - logprob_alone(reference, ids, len(ids) - n)
        got = kl_of_answers(model, reference, tokenizer, PROMPTS, answers, prefix)
        assert got == pytest.approx(want, abs=1e-4) and abs(got) > 1e-2
    assert kl_of_answers(model, reference, tokenizer, PROMPTS[:1], [TOO_LONG]) is None
    assert kl_of_answers(model, model, tokenizer, PROMPTS, ANSWERS) == pytest.approx(0, abs=1e-5)
