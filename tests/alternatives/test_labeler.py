"""A model as labeler: its probabilities, both orders, soft labels."""

import math

import pytest
import torch

import reward
from alternatives import labeler, rlaif
from alternatives.common import Run
from core.config import BadInput
from data.village.feedback import BETTER, up_to_answers, up_to_choice, up_to_grade, with_answer


@pytest.fixture
def process(data, run):
    return Run(rlaif.Config(data=str(data), out=str(run), max_new_tokens=6, device="cpu", threads=1), "x")


def test_soft_labels_are_a_cross_entropy():
    a, b, p = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.4]), torch.tensor([0.8, 0.3])
    by_hand = []
    for x, y, q in zip(a.tolist(), b.tolist(), p.tolist()):
        first = math.exp(x) / (math.exp(x) + math.exp(y))
        by_hand.append(-q * math.log(first) - (1 - q) * math.log(1 - first))
    assert labeler.soft_label_loss(a, b, p).item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    hard = labeler.soft_label_loss(a, b, torch.ones(2)).item()
    eq1 = [reward.pairwise_loss(scores, torch.tensor([1, 2])).item() for scores in torch.stack([a, b], 1)]
    assert hard == pytest.approx(sum(eq1) / 2, rel=1e-6)


def test_the_loss_of_pairs_scores_both_answers(process):
    model = process.new_scalar_model(process.load_policy("base"))
    pairs = [([3, 4, 5], [3, 4, 6, 7], 0.9), ([8, 9], [8, 10, 11, 12, 13], 0.2)]
    scores = [[model.score(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in pair[:2]] for pair in pairs]
    first, second = (torch.cat(column) for column in zip(*scores))
    want = labeler.soft_label_loss(first, second, torch.tensor([0.9, 0.2]))
    assert labeler.loss_on_pairs(model, pairs, "cpu").item() == pytest.approx(want.item(), rel=1e-4)


def test_swapping_the_answers_turns_the_preference_round(process):
    model = process.load_policy("base")
    triples = [("Q?\n>", " A cat.", " A dog."), ("P?\n>", " It is red.", " No.")]
    for thoughts in (True, False):
        p, one = labeler.preferences(model, process.tokenizer, triples, thoughts=thoughts)
        q, _ = labeler.preferences(model, process.tokenizer, [(x, b, a) for x, a, b in triples], thoughts=thoughts)
        assert torch.allclose(p + q, torch.ones(2), atol=1e-5) and ((p > 0) & (p < 1)).all()
        assert torch.allclose(p, (one[:, 0] + 1 - one[:, 1]) / 2)


def test_a_preference_reads_the_page_as_people_write_it(process):
    model, tokenizer = process.load_policy("base"), process.tokenizer
    prompt, first, second = "Q?\n>", " A cat.", " It is red."
    _, says_1 = labeler.preferences(model, tokenizer, [(prompt, first, second)], ["Which?"], thoughts=False)
    for order, (a, b) in enumerate([(first, second), (second, first)]):
        page = up_to_choice(with_answer(with_answer(up_to_answers("Which?", prompt), 1, a), 2, b))
        want = labeler.choice_probabilities(model, tokenizer, [page], ["1", "2"])[0, 0]
        assert says_1[0, order].item() == pytest.approx(want.item(), rel=1e-4)


def test_choice_probabilities_are_the_models_own(process):
    model, tokenizer = process.load_policy("base"), process.tokenizer
    contexts, choices = ["The cat is ", "A red owl sat on a blue roof. It is "], ["r", "b", "g"]
    got = labeler.choice_probabilities(model, tokenizer, contexts, choices)
    for context, row in zip(contexts, got.tolist()):
        logits = model.unembed(model(torch.tensor([tokenizer.encode_ordinary(context)])))[0, -1]
        weights = [math.exp(logits[tokenizer.encode_ordinary(c)[0]].item()) for c in choices]
        assert row == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)
    with pytest.raises(BadInput, match="one token"):
        labeler.choice_probabilities(model, tokenizer, contexts, ["red roof"])
    with pytest.raises(BadInput, match="exceeds the labeler's context of 64"):
        labeler.choice_probabilities(model, tokenizer, contexts + ["zq" * 40], choices)


def test_grades_are_expected_grades(process):
    model, tokenizer = process.load_policy("base"), process.tokenizer
    prompts, answers = ["Q?\n>", "P?\n>"], [" A cat.", " A dog."]
    pages = [
        up_to_grade(with_answer(up_to_answers(BETTER[0], prompt), 1, text)) for prompt, text in zip(prompts, answers)
    ]
    p = labeler.choice_probabilities(model, tokenizer, pages, list("123456789")).tolist()
    want = [(sum((i + 1) * share for i, share in enumerate(row)) - 5) / 4 for row in p]
    assert labeler.grades(model, tokenizer, prompts, answers).tolist() == pytest.approx(want, abs=1e-5)
    assert all(abs(grade) <= 1 for grade in want)


def test_two_answers_differ(process, monkeypatch):
    said = [("a", True), ("b", False), ("c", True), ("c", True), ("", True), ("d", True), ("e", True), ("f", True)]
    monkeypatch.setattr(process, "answers", lambda model, prompts, rng: said)
    pairs = labeler.two_answers(process, None, ["1", "2", "3", "4"], None)
    assert pairs == [("1", ("a", True), ("b", False)), ("4", ("e", True), ("f", True))]
    monkeypatch.setattr(process, "answers", lambda model, prompts, rng: [("a", True)] * 2)
    with pytest.raises(BadInput, match="two different answers"):
        labeler.two_answers(process, None, ["1"], None)


def test_the_labeler_is_measured_against_people(process, monkeypatch, capsys):
    """Four pairs that people order; agreement 1, 1/2 (undecided), 0, 1; the same place in one of them."""
    records = [{"prompt": "x", "completions": ["a", "b", "c"], "ranks": [1, 2, 1]}]  # a > b, c > b
    records += [{"prompt": "y", "completions": ["a", "b"], "ranks": [2, 1]}] * 2 + [
        {"prompt": "z", "completions": ["a", "b"], "ranks": [1, 1]}
    ]
    says_1 = torch.tensor([[0.9, 0.2], [0.5, 0.5], [0.8, 0.7], [0.1, 0.6]])
    p = torch.tensor([0.85, 0.5, 0.55, 0.25])
    asked = []

    def preferences(model, tokenizer, triples, thoughts):
        asked.extend(triples)
        return p, says_1

    monkeypatch.setattr(labeler, "preferences", preferences)
    results = labeler.report_on_labeler(process, None, records, True)
    assert asked == [("x", "a", "b"), ("x", "b", "c"), ("y", "a", "b"), ("y", "a", "b")]
    assert results["labeler_agreement"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert results["position_bias"] == pytest.approx(2 / 4)  # 0.5 twice is "2" twice
    with pytest.raises(BadInput, match="no ranking"):
        labeler.report_on_labeler(process, None, records[-1:], True)
