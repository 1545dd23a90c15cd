"""Metrics of the public benchmarks, each derived a second way, and on examples worked by hand."""

import math
import random
import sys
from itertools import permutations

import pytest

from core.config import BadInput
from core.task_metrics import (
    bleu,
    drop_f1,
    drop_words,
    entropy_bits,
    mc1,
    mc2,
    most_likely,
    names_the_target,
    quac_f1,
    rouge_l,
    squad_f1,
    squad_tokens,
    token_f1,
)

WORDS = ["red", "hen", "The", "a", "sat,", "ROOF", "an", "7", "hen", "it's", "-", "well-known"]


def some_text(rng):
    return " ".join(rng.choices(WORDS, k=rng.randrange(6)))


def most_matched(left, right):
    """The largest number of words of `left` that can each be paired with an equal word of `right` of its own."""
    if not left:
        return 0
    word, rest = left[0], left[1:]
    best = most_matched(rest, right)
    for i, other in enumerate(right):
        if other == word:
            best = max(best, 1 + most_matched(rest, right[:i] + right[i + 1 :]))
    return best


def test_token_f1_by_pairing_words():
    rng, partial = random.Random(0), 0
    for _ in range(300):
        answer, reference = some_text(rng), some_text(rng)
        words, right = squad_tokens(answer), squad_tokens(reference)
        matched = most_matched(words, right)
        if not words or not right:
            expected = 1.0 if words == right else 0.0
        elif matched == 0:
            expected = 0.0
        else:
            precision, recall = matched / len(words), matched / len(right)
            expected = 2 * precision * recall / (precision + recall)
            partial += expected < 1
        assert token_f1(answer, reference) == pytest.approx(expected)
    assert partial > 50


def test_squad_by_hand():
    assert squad_tokens('The "It\'s a  hen" campaign.') == ["its", "hen", "campaign"]
    assert token_f1('"It\'s a hen" campaign', "It's a hen") == pytest.approx(0.8)  # 2 of 3 words, 2 of 2
    assert squad_f1("red hen", ["blue", "the red hen", "red"]) == 1
    assert squad_f1("Not in background", ["Not in background."]) == 1
    assert squad_f1("a the", ["an"]) == 1 and squad_f1("the", ["hen"]) == 0


def test_quac_f1_leaves_out_one_person_at_a_time():
    rng, less_than_best = random.Random(0), 0
    for _ in range(200):
        answer, references = some_text(rng), [some_text(rng) for _ in range(rng.randrange(2, 5))]
        subsets = [
            [reference for other, reference in enumerate(references) if other != left_out]
            for left_out in range(len(references))
        ]
        expected = sum(squad_f1(answer, subset) for subset in subsets) / len(subsets)
        assert quac_f1(answer, references) == pytest.approx(expected)
        less_than_best += expected < squad_f1(answer, references)
    assert less_than_best > 20
    assert quac_f1("red hen", ["a red hen"]) == 1  # nobody to leave out
    assert quac_f1("red hen", ["red hen", "blue fox", "owl"]) == pytest.approx(2 / 3)
    assert quac_f1("red hen", ["red hen", "blue fox", "red hen"]) == 1


def drop_by_alignment(answer, spans):
    """The official way: sets of words for every span, the best assignment of spans to answers, the mean over spans."""

    def f1(words, right):
        numbers = {w for w in right if w.replace(".", "", 1).isdecimal()}
        if numbers and not (numbers & words):
            return 0.0
        precision = len(words & right) / len(words) if words else 1.0
        recall = len(words & right) / len(right) if right else 1.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    n = max(len(spans), 1)
    answers = [drop_words(answer)] + [None] * (n - 1)  # one text against all spans
    best = max(
        sum(f1(words, drop_words(span)) for words, span in zip(order, spans) if words is not None)
        for order in permutations(answers)
    )
    return best / n


def test_drop_f1_by_alignment():
    rng, seen = random.Random(1), set()
    for _ in range(300):
        answer, spans = some_text(rng), [some_text(rng) for _ in range(rng.randrange(1, 4))]
        expected = drop_by_alignment(answer, spans)
        assert drop_f1(answer, [spans]) == pytest.approx(expected)
        assert drop_f1(answer, [["no such words"], spans]) == pytest.approx(expected)
        seen.add(expected)
    assert len(seen) > 10


def test_drop_by_hand():
    assert drop_words("The $41,809 well-known 3.50 hens") == {"41809.0", "well", "known", "3.5", "hens"}
    assert drop_f1("7,761 dollars", [["7761"]]) == pytest.approx(
        2 / 3
    )  # both numbers are 7761.0; one word more than asked
    assert drop_f1("seven dollars", [["7 dollars"]]) == 0  # the number is not there
    assert drop_f1("Smith", [["Smith", "Jones"]]) == 0.5
    assert drop_f1("", [["Smith"]]) == 0 and drop_f1("the", [["a"]]) == 1


def test_wsc_by_hand():
    assert names_the_target(" The old hen.", "hen") and names_the_target("hen", "the old hen")
    assert not names_the_target("fox", "the old hen")
    assert not names_the_target("", "hen") and not names_the_target("the", "hen")  # nothing is contained in everything


def test_most_likely_is_by_mean_not_by_sum():
    assert most_likely([(-4.0, 1), (-6.0, 3), (-9.0, 3)]) == 1
    assert most_likely([(-2.0, 1), (-2.0, 1)]) == 0


def test_entropy_by_hand():
    assert entropy_bits([(-50.0, 3), (-50.0, 9)]) == pytest.approx(1)
    assert entropy_bits([(-1.0, 3), (-1001.0, 3)]) == pytest.approx(0)
    # 1/4 and 3/4: 0.25 · 2 + 0.75 · log2(4/3)
    assert entropy_bits([(math.log(0.01), 5), (math.log(0.03), 5)]) == pytest.approx(0.811278, abs=1e-6)
    assert entropy_bits([(-900.0, 1), (-900.0 + math.log(3), 1)]) == pytest.approx(0.811278, abs=1e-6)  # e^-900 is 0


def test_truthfulqa_by_hand():
    logprobs = [(math.log(p), 4) for p in (0.2, 0.1, 0.3, 0.02)]
    assert mc1(logprobs, 0, [1, 3]) == 1 and mc1(logprobs, 0, [1, 2]) == 0
    assert mc2(logprobs, [0, 1], [3]) == pytest.approx(0.30 / 0.32)
    assert mc2(logprobs, [1], [0, 2]) == pytest.approx(0.1 / 0.6)


def longest_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def test_rouge_l_is_the_longest_common_subsequence():
    pytest.importorskip("rouge_score", reason="rouge-score is not installed")
    answer, reference = "red hen sat on my old roof", "old red hen on red roof"
    common = longest_common(answer.split(), reference.split())
    assert common == 4
    precision, recall = common / 7, common / 6
    assert rouge_l(answer, reference) == pytest.approx(2 * precision * recall / (precision + recall))


def test_bleu_by_counting():
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    answers = ["the red hen sat on the roof today", "one fox ate two hens"]
    references = ["the red hen sat on a roof today again", "one fox ate three hens"]
    log_precision, length, wanted = 0.0, 0, 0
    for n in range(1, 5):
        matched = total = 0
        for answer, reference in zip(answers, references):
            have, want = (
                [tuple(t.split()[i : i + n]) for i in range(len(t.split()) - n + 1)] for t in (answer, reference)
            )
            matched += sum(min(have.count(gram), want.count(gram)) for gram in set(have))
            total += len(have)
        log_precision += math.log(matched / total) / 4
    for answer, reference in zip(answers, references):
        length, wanted = length + len(answer.split()), wanted + len(reference.split())
    brevity = min(1.0, math.exp(1 - wanted / length))
    assert bleu(answers, references) == pytest.approx(100 * brevity * math.exp(log_precision))


@pytest.mark.parametrize(
    "module, call", [("sacrebleu", lambda: bleu(["a"], ["a"])), ("rouge_score", lambda: rouge_l("a", "a"))]
)
def test_a_package_that_is_missing_is_named(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=f"pip install {module.replace('_', '-')}$"):
        call()
