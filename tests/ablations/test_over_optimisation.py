"""Proxy and gold along training under several β. (tests/test_run.py runs the command.)"""

import math

import pytest

from ablations.over_optimisation import curve, name_of, numbers, page, sqrt_kl
from core.config import BadInput


def sample(iteration, prompt, score, kl, completion="x"):
    return {"iteration": iteration, "prompt": prompt, "completion": completion, "score": score, "kl": kl}


def judge(prompt, completion):
    return {"likert": 7.0 if completion == "good" else 1.0}


def test_a_curve_has_means_and_errors_of_every_iteration():
    """By hand: the mean of two numbers, and 1.96 times half the difference of how far the two have moved."""
    samples = [sample(3, "p", 5, 2.0), sample(0, "p", 1, 0.0, "good"), sample(3, "q", 1, 6.0), sample(0, "q", 3, 0.0)]
    first, last = curve(samples, judge)
    assert (first["iteration"], last["iteration"]) == (0, 3)
    assert first["score"] == (2, 0) and last["score"] == pytest.approx((3, 1.96 * 3)), "p by +4, q by -2"
    assert first["gold"] == (4, 0) and last["gold"] == pytest.approx((1, 1.96 * 3)), "p by -6, q by 0"
    assert sqrt_kl(first) == 0 and sqrt_kl(last) == pytest.approx(math.sqrt(4))
    assert sqrt_kl({"kl": (-0.1, 0.0)}) == 0, "an estimate may be negative"


def test_the_page_shows_four_answers_of_the_loosest_beta():
    answers = {beta: [sample(i, "Who?\n>", i, 0, f"β {beta} step {i}") for i in range(10)] for beta in (0.5, 0.0)}
    text = page({0.5: curve(answers[0.5], judge)}, answers)
    assert "β = 0: Who? >" in text and "β 0.5" not in text
    assert [i for i in range(10) if f"β 0.0 step {i}" in text] == [0, 3, 6, 9]
    assert text.count("| β = 0.5 ") == 4


def test_coefficients_are_read_or_refused():
    assert numbers("0, 0.02,1e-1") == [0.0, 0.02, 0.1]
    assert [name_of(value) for value in (0.0, 0.02)] == ["kl_coef_0", "kl_coef_0.02"]
    for wrong in ("", "a", "0,,1", "-0.1", "nan", "inf"):
        with pytest.raises(BadInput, match="--kl_coefs"):
            numbers(wrong)
