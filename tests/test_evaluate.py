"""The evaluation's arithmetic: preferences, intervals, tasks, best-of-n."""

import json
import math

import pytest
import torch

import evaluate
from core import text as core_text
from model import GPT


class FirstWins:
    def rank(self, prompt, completions):
        return [1, 2]


class LikesGood:
    def rank(self, prompt, completions):
        return [1 if "good" in completion else 2 for completion in completions]


def test_preference_counts_both_orders_and_ties_half():
    assert evaluate.preference(FirstWins(), "x", "a", "b") == 0.5, "always the first place: says nothing"
    assert evaluate.preference(LikesGood(), "x", "good", "b") == 1.0
    assert evaluate.preference(LikesGood(), "x", "a", "good") == 0.0
    assert evaluate.preference(LikesGood(), "x", "a", "b") == 0.5


def test_win_rate_is_one_observation_per_prompt():
    answers, opponents = ["good", "bad", "good", "bad"], ["bad", "good", "good", "bad"]
    rate = evaluate.win_rate([LikesGood()] * 5, 3, ["p"] * 4, answers, opponents, seed=0)
    assert rate["mean"] == (1 + 0 + 0.5 + 0.5) / 4 and rate["n"] == 4, "15 votes on a prompt are one observation"


def test_interval_is_over_prompts():
    r = evaluate.mean_and_interval([0.0, 1.0, 0.5, 0.5])
    deviation = math.sqrt(sum((x - 0.5) ** 2 for x in (0, 1, 0.5, 0.5)) / 3)
    assert r["mean"] == 0.5 and r["n"] == 4 and r["high"] - 0.5 == pytest.approx(1.96 * deviation / 2)


def test_few_shot_contexts_come_from_solved_items_of_the_same_task():
    items = [{"task": "a", "split": "shots", "context": f"{i}+1=", "answer": f"{i + 1}"} for i in range(3)]
    items += [{"task": "b", "split": "shots", "context": "q", "choices": ["x", "y"], "answer": 1}]
    items += [{"task": "a", "split": "test", "context": "5+1=", "answer": "6"}]
    assert [context for _, context in evaluate.with_shots(items, 0)] == ["5+1="]
    assert [context for _, context in evaluate.with_shots(items, 2)] == ["0+1=1\n1+1=2\n5+1="]


def test_multiple_choice_takes_the_highest_mean_token_logprob(tiny, tokenizer):
    """The same by hand: one choice at a time, one token at a time."""
    torch.manual_seed(0)
    model = GPT(tiny).eval()
    choices, context = [" red", " a brown roof", " cat cat"], "The cat is"
    means = []
    for choice in choices:
        ids, total = tokenizer.encode_ordinary(context), 0.0
        response = tokenizer.encode_ordinary(choice)
        for token in response:
            logits = model.unembed(model(torch.tensor([ids]))[0, -1])
            total += logits.log_softmax(-1)[token].item()
            ids.append(token)
        means.append(total / len(response))
    best = means.index(max(means))
    for answer in range(3):
        items = [{"task": "t", "split": "test", "context": context, "choices": choices, "answer": answer}]
        assert evaluate.task_scores(model, tokenizer, items) == {"t": float(answer == best)}


def test_best_of_n_keeps_the_highest_score(monkeypatch, tokenizer):
    scores = {"a": 1.0, "b": 3.0, "c": math.nan, "d": 2.0, "e": -1.0, "f": 0.5}
    monkeypatch.setattr(core_text, "score_answers", lambda rm, tok, prompts, answers: [scores[t] for t, _ in answers])
    answers = [(letter, True) for letter in "abcdef"]
    assert core_text.best_of_n(None, tokenizer, ["p", "q"], answers, 3) == [(1, 3.0), (3, 2.0)]
    assert core_text.best_of_n(None, tokenizer, ["p", "q", "r"], answers, 2) == [(1, 3.0), (3, 2.0), (5, 0.5)]


def test_along_training_averages_by_iteration(tmp_path):
    samples = [
        {"iteration": 0, "prompt": "p", "completion": "x", "kl": 0.0, "score": 1.0},
        {"iteration": 5, "prompt": "p", "completion": "xx", "kl": 3.0, "score": 2.0},
        {"iteration": 5, "prompt": "p", "completion": "xxxx", "kl": 5.0, "score": 4.0},
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    curve = evaluate.along_training(path, lambda prompt, completion: {"likert": len(completion)})
    assert curve == [
        {"iteration": 0, "sqrt_kl": 0.0, "score": 1.0, "gold": 1.0},
        {"iteration": 5, "sqrt_kl": 2.0, "score": 3.0, "gold": 3.0},
    ]


def test_gold_report_leaves_out_what_was_not_asked():
    """A flag that is None for a prompt is not counted for it."""

    class Judge:
        def __call__(self, prompt, text):
            flag = None if prompt == "open" else 1.0
            verdict = {"helpful": 1.0, "truthful": 0.0, "harmless": 1.0, "informative": 1.0, "likert": 3}
            return verdict | {"hallucination": flag}

        def is_tricky(self, prompt):
            return False

    records = [{"prompt": "open", "use_case": "a"}, {"prompt": "closed", "use_case": "b"}]
    result = evaluate.gold_report(Judge(), records, ["x", "y"])
    assert result["flags"] == {"hallucination": 1.0} and result["likert_by_use_case"] == {"a": 3.0, "b": 3.0}
    assert "misconceptions" not in result
