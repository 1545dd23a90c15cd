"""How well scores order rankings: each number once more, counted pair by pair."""

import math
import random
from itertools import combinations
from types import SimpleNamespace

import pytest

from core.ranking_metrics import (
    accuracy,
    agreement,
    agreement_in,
    calibration,
    differences,
    mean_and_error,
    per_prompt,
    print_report,
    report,
    wilson_interval,
)

SCORES, RANKS = [0.5, -1.0, 2.0, 0.5], [2, 3, 1, 1]


def test_differences_are_of_every_pair_that_is_not_a_tie():
    want = []
    for i, j in combinations(range(4), 2):
        if RANKS[i] != RANKS[j]:
            winner, loser = (i, j) if RANKS[i] < RANKS[j] else (j, i)
            want.append(SCORES[winner] - SCORES[loser])
    assert sorted(differences(SCORES, RANKS)) == sorted(want) == sorted([1.5, 1.5, 0.0, 3.0, 1.5])
    assert differences([1.0, 2.0], [1, 1]) == []


def test_accuracy_weighs_prompts_alike_and_counts_equal_scores_half():
    mean, error = accuracy([[1.0, -1.0, 2.0], [0.0], [-3.0], []])
    shares = [2 / 3, 1 / 2, 0.0]
    assert mean == pytest.approx(sum(shares) / 3)
    variance = sum((s - mean) ** 2 for s in shares) / 2
    assert error == pytest.approx(1.96 * math.sqrt(variance / 3))
    assert all(math.isnan(x) for x in accuracy([[], []]))


def test_the_error_covers_the_truth_19_times_of_20():
    dice, hits = random.Random(0), 0
    for _ in range(1000):
        mean, error = mean_and_error([float(dice.random() < 0.7) for _ in range(100)])
        hits += abs(mean - 0.7) <= error
    assert 925 <= hits <= 970
    assert mean_and_error([2.0]) == (2.0, 0.0)


@pytest.mark.parametrize("share, n", [(0.0, 5), (1.0, 21), (0.5, 40), (0.1, 430), (1 / 3, 3)])
def test_the_interval_of_a_share_ends_where_the_share_would_be_unlikely(share, n):
    """Its ends are the two p whose distance to the share is 1.96 standard errors of p itself."""
    for p in wilson_interval(share, n):
        assert 0 <= round(p, 12) <= 1
        assert (share - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)
    low, high = wilson_interval(share, n)
    assert low <= share + 1e-9 and share - 1e-9 <= high and low < high


def test_agreement_leaves_out_what_either_ties():
    assert agreement([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert agreement([1, 2, 3], [3, 2, 1]) == (0, 3)
    assert agreement([1, 1, 2], [1, 2, 2]) == (1, 1)
    dice = random.Random(1)
    for _ in range(20):
        first, second = ([dice.randint(1, 4) for _ in range(6)] for _ in range(2))
        same = both = 0
        for i, j in combinations(range(6), 2):
            if first[i] != first[j] and second[i] != second[j]:
                both += 1
                same += (first[i] < first[j]) == (second[i] < second[j])
        assert agreement(first, second) == (same, both)


def test_calibration_of_a_model_that_means_what_it_says():
    """Outcomes drawn with the probability σ(difference) fall on the diagonal, and every pair is in one bin."""
    dice, pairs = random.Random(0), []
    for _ in range(20_000):
        size = dice.uniform(0, 6)
        pairs.append(size if dice.random() < 1 / (1 + math.exp(-size)) else -size)
    table = calibration([pairs[:7000], pairs[7000:]])
    assert sum(n for _, _, n in table) == 20_000 and len(table) == 5
    for i, (predicted, observed, n) in enumerate(table):
        assert 0.5 + i / 10 <= predicted <= 0.6 + i / 10
        assert abs(predicted - observed) < 4 * math.sqrt(0.25 / n)


def test_calibration_at_the_ends():
    assert calibration([[], []]) == []
    assert calibration([[0.0]]) == [(0.5, 0.0, 1)]
    (predicted, observed, n), *more = calibration([[1e6, -1e6, 800.0]])
    assert not more and predicted == pytest.approx(1) and observed == pytest.approx(2 / 3) and n == 3


def ranking(prompt, rows, ranks):
    return SimpleNamespace(prompt=prompt, rows=[[0] * n for n in rows], ranks=ranks)


def test_two_views_of_a_prompt_are_one_observation():
    rankings = [ranking("p", [1, 2], [1, 2]), ranking("q", [1, 2], [2, 1]), ranking("p", [1, 2], [2, 1])]
    assert per_prompt(rankings, [[1.0], [2.0], [3.0]]) == [[1.0, 3.0], [2.0]]


def record(prompt, ranks, split="valid", group="training", completions=("a", "b", "c")):
    return {"prompt": prompt, "completions": list(completions), "ranks": ranks, "split": split, "group": group}


def test_agreement_is_of_two_labelers_of_the_group_on_the_same_answers():
    records = [
        record("p", [1, 2, 3]),
        record("p", [3, 2, 1], group="held_out"),
        record("p", [1, 3, 2]),
        record("p", [3, 2, 1]),  # a third labeler is not asked
        record("q", [1, 2, 3], split="train"),
        record("q", [3, 2, 1], split="train"),
        record("r", [1, 2, 3]),
        record("r", [3, 2, 1], completions="xyz"),  # other answers
        record("s", [1, 1, 2]),
        record("s", [1, 2, 2]),
    ]
    del records[0]["group"]  # in data without groups everybody is one
    assert agreement_in(records, "training") == pytest.approx((2 / 3 + 1) / 2)
    assert agreement_in(records, "held_out") is None


def test_the_report(capsys):
    rankings = [ranking("p", [3, 1, 2], [1, 2, 2]), ranking("q", [1, 5, 9], [1, 2, 3])]
    pairs = [[1.0, 2.0], [-1.0, 1.0, 3.0]]
    records = [record("p", [1, 2, 2]), record("p", [1, 2, 3])]
    results = report((0.9, 0.05), {"training": (rankings, pairs)}, records)
    assert results["trained on"] == {"accuracy": (0.9, 0.05)}
    found = results["training"]
    assert found["accuracy"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert found["longer_is_better"][0] == pytest.approx((1 + 0) / 2)
    assert found["agreement"] == 1.0 and found["pairs"] == 6 and found["ties"] == pytest.approx(1 / 6)
    assert found["calibration"] == calibration(pairs)
    print_report(results)
    text = capsys.readouterr().out
    for part in ("90.0 ± 5.0 %", "83.3 ±", "longer-is-better 50.0 %", "agree 100.0 %", "ties 17 % of 6", "calibration"):
        assert part in text
