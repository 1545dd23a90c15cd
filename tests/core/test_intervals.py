"""Intervals by second derivations: simulation, hand, the definition."""

import math
import random

import pytest

from core.intervals import (
    Claim,
    correlation_interval,
    difference,
    estimate_of,
    estimate_text,
    interval_of,
    over_runs,
    paired_difference,
    range_text,
    verdict,
)


def test_yes_or_no_has_wilsons_interval_and_shares_the_normal_one():
    """Wilson's by its definition: the shares that lie 1.96 of their own standard errors from what was seen."""
    found = interval_of([1, 0, 0, 1, 1, None, 1, 1, 0])
    assert found["mean"] == 5 / 8 and found["n"] == 8
    for bound in (found["low"], found["high"]):
        assert abs(bound - 5 / 8) / math.sqrt(bound * (1 - bound) / 8) == pytest.approx(1.96)
    found = interval_of([0.4, 0.6, 0.5])
    assert (found["mean"], found["n"]) == (0.5, 3) and found["high"] == pytest.approx(0.5 + 4.3 * 0.1 / math.sqrt(3))
    assert interval_of([1, 1, 1, 1], shares=False)["low"] == 1, "marks, not shares"
    assert interval_of([0.0, 0.1])["low"] == 0 > interval_of([0.0, 0.1], shares=False)["low"]
    assert interval_of([0.0] * 20)["high"] > 0.1 and interval_of([None, None]) is None


@pytest.mark.parametrize("n", [10, 80])
def test_paired_difference_covers_the_true_one_in_95_of_100_samples(n):
    rng, inside = random.Random(0), 0
    for _ in range(1000):
        skill = [rng.random() for _ in range(n)]
        ours, theirs = ([float(rng.random() < k * s) for s in skill] for k in (0.9, 0.6))
        found = paired_difference(ours, theirs, times=2)
        inside += found["low"] <= (0.9 - 2 * 0.6) / 2 <= found["high"]
    assert 930 <= inside <= 970


def test_only_pairs_count_and_the_parts_are_their_means():
    found = paired_difference([1.0, None, 0.5, 0.0], [0.0, 1.0, 0.5, None], times=0.5, names=("PPO", "GPT"))
    assert list(found["parts"].items()) == [("PPO", 0.75), ("GPT", 0.25)] and found["mean"] == pytest.approx(
        0.75 - 0.5 * 0.25
    )
    assert paired_difference([None], [1.0]) is None and paired_difference([], []) is None


def test_where_nothing_varies_the_interval_is_that_of_independent_shares():
    """All of ours right, none of theirs. Newcombe: 1 of n and 0 of n, Wilson's bounds by closed form at the ends."""
    n = 12
    found = paired_difference([1.0] * n, [0.0] * n)
    bound = 1.96**2 / (n + 1.96**2)  # of no one in n
    assert found["mean"] == 1 and found["low"] == pytest.approx(1 - math.hypot(bound, bound))
    assert found["high"] == pytest.approx(1)
    assert paired_difference([1.0], [0.0])["low"] < 0, "one pair says nothing"
    few = paired_difference([1.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert (few["low"], few["high"]) == (-1, 1), "no difference of shares is larger"
    assert -2 <= paired_difference([0.0, 0.0, 1.0], [1.0, 1.0, 0.0], times=2)["low"] < -1


def test_errors_of_independent_numbers_add_in_squares():
    found = difference(estimate_of(0.7, 0.03), estimate_of(0.5, 0.04), a=0.5, b=0.7)
    assert found["mean"] == pytest.approx(0.2) and found["high"] - found["mean"] == pytest.approx(0.05)
    assert found["parts"] == {"a": 0.5, "b": 0.7}


def test_correlation_covers_the_true_one():
    rng, inside = random.Random(1), 0
    for _ in range(500):
        x = [rng.gauss(0, 1) for _ in range(40)]
        y = [0.6 * v + 0.8 * rng.gauss(0, 1) for v in x]
        found = correlation_interval(x, y)
        inside += found["low"] <= 0.6 <= found["high"]
    assert 455 <= inside <= 492
    mean_x, mean_y = sum(x) / 40, sum(y) / 40
    products = [sum((a - m) * (b - k) for a, b in zip(p, q)) for p, m, q, k in ((x, mean_x, y, mean_y),)]
    squares = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    assert found["mean"] == pytest.approx(products[0] / squares)
    z = [math.atanh(found[key]) for key in ("low", "mean", "high")]
    assert z[2] - z[1] == pytest.approx(z[1] - z[0]) == pytest.approx(1.96 / math.sqrt(37))
    assert correlation_interval([1, 2], [1, 2]) is None
    constant = correlation_interval([0, 1, 2, 3], [1, 1, 1, 1])
    assert (constant["low"], constant["high"]) == (-1, 1), "nothing is known"
    assert correlation_interval([0, 1, 2, 3], [0, 1, 2, 3])["high"] <= 1


def test_over_runs_the_wider_of_two_intervals():
    one = estimate_of(0.5, 0.1, GPT=0.2)
    assert over_runs([one]) == one
    same = over_runs([one] * 4)
    assert same["high"] - same["mean"] == pytest.approx(0.1 / 2), "runs alike: that of all prompts"
    apart = over_runs([estimate_of(m, 0.001, GPT=m) for m in (0.3, 0.5, 0.7)])
    assert apart["mean"] == pytest.approx(0.5) and apart["parts"] == {"GPT": pytest.approx(0.5)}
    assert apart["high"] - 0.5 == pytest.approx(4.30 * 0.2 / math.sqrt(3)), "Student's t, two degrees of freedom"


def test_lopsided_intervals_stay_lopsided():
    """Of three runs with 0 of 20 each: Wilson's upper end, a square root of three nearer; nothing below 0."""
    never = interval_of([0.0] * 20)
    whole = over_runs([never] * 3)
    assert whole["low"] == 0 and whole["high"] == pytest.approx(never["high"] / math.sqrt(3)) and never["high"] > 0.1
    drop = difference(never, {"mean": 0.5, "low": 0.4, "high": 0.9})
    assert drop["low"] == pytest.approx(-0.5 - 0.4) and drop["high"] == pytest.approx(
        -0.5 + math.hypot(never["high"], 0.1)
    )


@pytest.mark.parametrize(
    "low, high, said",
    [(0.51, 0.6, "holds"), (0.4, 0.49, "contradicted"), (0.4, 0.6, "inconclusive"), (0.5, 0.5, "inconclusive")],
)
def test_the_interval_decides(low, high, said):
    estimate = {"mean": (low + high) / 2, "low": low, "high": high}
    assert verdict(estimate, Claim("1", "", "", "", None, least=0.5)) == said
    mirrored = {"mean": 1 - estimate["mean"], "low": 1 - high, "high": 1 - low}
    assert verdict(mirrored, Claim("1", "", "", "", None, most=0.5)) == said


def test_a_range_of_two_ends():
    claim = Claim("1", "", "", "", None, -0.05, 0.05)
    assert (
        verdict(estimate_of(0.01, 0.03), claim) == "holds" and verdict(estimate_of(0.2, 0.1), claim) == "contradicted"
    )
    assert verdict(estimate_of(0.04, 0.03), claim) == verdict(estimate_of(0.0, 0.3), claim) == "inconclusive"


def test_ranges_as_text():
    ranges = [(0.5, math.inf, "%"), (-math.inf, 0, "%"), (-0.05, 0.05, "%"), (-math.inf, 0.1, "bits")]
    said = [range_text(Claim("1", "", "", "", None, least, most, unit)) for least, most, unit in ranges]
    assert said == ["> 50", "< 0", "-5 … 5", "< 0.1"]


def test_numbers_as_text():
    assert estimate_text(estimate_of(0.25, 0.05, GPT=0.5, SFT=0.75), "%") == "25.0 [20.0, 30.0] (GPT 50.0, SFT 75.0)"
    assert estimate_text({"mean": -0.054, "low": -0.054, "high": -0.054}, "bits") == "-0.05"
    assert estimate_text({"mean": -1e-17, "low": -1e-17, "high": 0.5}, "%") == "0.0 [0.0, 50.0]"


def test_shares_stay_shares_over_runs_and_differences_may_be_negative():
    shares = over_runs([estimate_of(0.99, 0.01), estimate_of(0.8, 0.02), estimate_of(0.95, 0.02)])
    assert shares["high"] == 1 and 0 < shares["low"] < 0.8
    differences = over_runs([estimate_of(0.99, 0.01), estimate_of(0.8, 0.02), estimate_of(0.01, 0.02)])
    assert -1 < differences["low"] < -0.5 and differences["high"] == 1
    doubled = over_runs([estimate_of(-0.9, 0.2), estimate_of(-0.2, 0.2)])  # as a share minus twice another
    assert doubled["low"] < -1
