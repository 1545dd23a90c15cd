"""Numbers with their 95 % intervals, and what these say about a claim: it holds, is contradicted, or is inconclusive.

estimate = {"mean", "low", "high"}, and "parts" {name: number}: what it is made of
"""

import math
from collections.abc import Callable
from statistics import correlation, fmean, stdev
from typing import NamedTuple

from core.ranking_metrics import mean_and_error, wilson_interval

# Student's t for 95 %, by degrees of freedom 1, 2, …; the normal distribution's 1.96 beyond
STUDENT = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)


def student(n):
    """Student's t for 95 % of n observations: how many standard errors wide half of the interval is."""
    return STUDENT[n - 2] if 2 <= n < len(STUDENT) + 2 else 1.96


def mean_and_student_error(values):
    """As mean_and_error, with Student's t: of few values the interval is wider."""
    mean, error = mean_and_error(values)
    return mean, error * student(len(values)) / 1.96


def estimate_of(mean, error, **parts):
    """An estimate from half the width of its interval."""
    return {"mean": mean, "low": mean - error, "high": mean + error, "parts": parts}


def interval_of(values, shares=True):
    """Mean over prompts; of shares within 0 … 1, and Wilson's interval where every value is yes or no.

    Leaves out None -> an estimate; None where nothing is left.
    """
    values = [value for value in values if value is not None]
    if not values:
        return None
    mean, error = mean_and_student_error(values)
    low, high = mean - error, mean + error
    if shares:
        low, high = max(0, low), min(1, high)
        if set(values) <= {0, 1}:
            low, high = wilson_interval(mean, len(values))
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def difference(one, other, **parts):
    """one - other of two estimates, as if they were independent (on the same prompts the true interval is narrower)."""
    mean = one["mean"] - other["mean"]
    below = math.hypot(one["mean"] - one["low"], other["high"] - other["mean"])
    above = math.hypot(one["high"] - one["mean"], other["mean"] - other["low"])
    return {"mean": mean, "low": mean - below, "high": mean + above, "parts": parts}


def paired_difference(ours, theirs, times=1, names=()):
    """Mean over prompts of ours - times · theirs, where both are there; None where they never are.

    ours, theirs: a share or None per prompt; names: of ours and theirs, for "parts". Where all differences are equal,
    the interval is that of two independent shares (Newcombe 1998, from Wilson's).
    """
    pairs = [(a, b) for a, b in zip(ours, theirs) if a is not None and b is not None]
    if not pairs:
        return None
    one, other = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    estimate = estimate_of(*mean_and_student_error([a - times * b for a, b in pairs]), **dict(zip(names, (one, other))))
    estimate["n"] = len(pairs)
    if estimate["low"] == estimate["high"]:  # no spread to go by, as of one pair, or where all are right, all are wrong
        (low, high), (other_low, other_high) = (wilson_interval(mean, len(pairs)) for mean in (one, other))
        estimate["low"] -= math.hypot(one - low, times * (other_high - other))
        estimate["high"] += math.hypot(high - one, times * (other - other_low))
    return estimate | {"low": max(-times, estimate["low"]), "high": min(1, estimate["high"])}


def correlation_interval(x, y):
    """Pearson's correlation with Fisher's interval; None of fewer than 4 points. If one is constant it could be any."""
    if len(x) < 4:
        return None
    if len(set(x)) == 1 or len(set(y)) == 1:
        return {"mean": 0.0, "low": -1.0, "high": 1.0, "n": len(x)}
    r = correlation(x, y)
    z, error = math.atanh(max(-0.999999, min(0.999999, r))), 1.96 / math.sqrt(len(x) - 3)
    return {"mean": r, "low": math.tanh(z - error), "high": math.tanh(z + error), "n": len(x)}


def over_runs(estimates):
    """The mean of several runs. Its interval is the wider of two: that of the prompts, with these seeds, and Student's
    over the runs, which says what other seeds would give."""
    k = len(estimates)
    if k == 1:
        return estimates[0]
    mean = fmean(estimate["mean"] for estimate in estimates)
    seeds = student(k) * stdev(estimate["mean"] for estimate in estimates) / math.sqrt(k)
    below, above = (math.hypot(*(e["mean"] - e[end] for e in estimates)) / k for end in ("low", "high"))
    low, high = mean - max(below, seeds), mean + max(above, seeds)
    for least in (0, -1):  # shares stay within 0 … 1; differences of shares, and correlations, within -1 … 1
        if all(least <= estimate["low"] and estimate["high"] <= 1 for estimate in estimates):
            low, high = max(least, low), min(1, high)
    names = estimates[0].get("parts", {})
    parts = {name: fmean(estimate["parts"][name] for estimate in estimates) for name in names}
    whole = {"mean": mean, "low": low, "high": high, "parts": parts}
    return whole | {"n": sum(estimate["n"] for estimate in estimates)} if "n" in estimates[0] else whole


# ---------------------------------------------------------------------------------------------------- claims


class Claim(NamedTuple):
    """Something that the paper found, and the number that decides whether it is so here, too."""

    number: str  # of the claim, as in docs/claims.md
    says: str
    paper: str  # its numbers
    how: str  # what is measured here
    find: Callable  # {"report": report.json, …} -> an estimate; None: not measured
    least: float = -math.inf  # it holds if the whole interval lies above this
    most: float = math.inf  # and below this
    unit: str = "%"
    otherwise: str = ""  # why it may not hold here


def verdict(estimate, claim):
    """What the interval says -> "holds", "contradicted", or "inconclusive"."""
    low, high = estimate["low"], estimate["high"]
    if low > claim.least and high < claim.most:
        return "holds"
    return "contradicted" if high < claim.least or low > claim.most else "inconclusive"


def range_text(claim):
    """The range in which a claim holds, in its unit: "> 50", "< 0", "-5 … 5"."""
    least, most = (f"{(100 if claim.unit == '%' else 1) * end:g}" for end in (claim.least, claim.most))
    if math.isinf(claim.most):
        return f"> {least}"
    return f"< {most}" if math.isinf(claim.least) else f"{least} … {most}"


def number_text(value, unit):
    """A number of a unit; shares, of unit "%", in percent."""
    factor, digits = (100, 1) if unit == "%" else (1, 2)
    return f"{round(factor * value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.0


def interval_text(estimate, unit):
    """ "mean [low, high]" """
    mean, low, high = (number_text(estimate[key], unit) for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def estimate_text(estimate, unit):
    """ "mean [low, high] (what it is made of)" """
    parts = ", ".join(f"{name} {number_text(value, unit)}" for name, value in estimate.get("parts", {}).items())
    return f"{interval_text(estimate, unit)} ({parts})" if parts else interval_text(estimate, unit)
