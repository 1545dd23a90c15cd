"""How well scores order what people have ranked: accuracy, labelers' agreement, calibration, and the report of them."""

import math
from collections import defaultdict


def differences(scores, ranks):
    """For one prompt: r_w - r_l of every pair that is not a tie, as a list."""
    K = range(len(ranks))
    return [scores[i] - scores[j] for i in K for j in K if ranks[i] < ranks[j]]


def share_right(pairs):
    """Of the pairs of one prompt, how many have the preferred answer scoring higher; equal scores count half.

    pairs: r_w - r_l of each, at least one -> 0 … 1
    """
    return sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in pairs) / len(pairs)


def accuracy(differences_by_prompt):
    """Share of pairs in the right order -> mean over prompts, 95 % error; nan where there is no pair.

    differences_by_prompt: a list of lists, see `differences`.
    """
    return mean_and_error([share_right(pairs) for pairs in differences_by_prompt if pairs])


def mean_and_error(values):
    """Mean and half the width of its 95 % interval; nan, nan where there is no value."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    return mean, 1.96 * math.sqrt(variance / n)


def wilson_interval(share, n):
    """95 % interval of a share of n yes-or-no observations (Wilson 1927): within 0 … 1, not of width 0 at its ends."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    error = 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - error), min(1.0, middle + error)  # rounding errors must not leave the range


def agreement(first, second):
    """Of the pairs that both labelers put in an order, how many they put in the same order, and how many there are.

    first, second: ranks of the same K answers -> (same, both)
    """
    same = both = 0
    for i in range(len(first)):
        for j in range(i):
            orders = (first[i] - first[j]) * (second[i] - second[j])
            both += orders != 0
            same += orders > 0
    return same, both


def calibration(differences_by_prompt, bins=5):
    """Does a difference of scores mean what it says? [(predicted, observed, pairs)] per bin of σ(|difference|)."""
    table = [[0.0, 0, 0] for _ in range(bins)]
    for pairs in differences_by_prompt:
        for difference in pairs:
            confidence = 1 / (1 + math.exp(-min(abs(difference), 50)))  # in the answer that the model likes better
            row = table[min(int((confidence - 0.5) * 2 * bins), bins - 1)]
            row[0] += confidence
            row[1] += difference > 0
            row[2] += 1
    return [(predicted / n, right / n, n) for predicted, right, n in table if n]


def per_prompt(rankings, pairs):
    """Pairs of all rankings of a prompt as one list: two labelers' views of it are not independent."""
    merged = defaultdict(list)
    for ranking, some in zip(rankings, pairs, strict=True):
        merged[ranking.prompt] += some
    return list(merged.values())


def agreement_in(records, group):
    """Mean over prompts of the agreement of the first two labelers of a group; None where no two ranked the same."""
    ranked = defaultdict(list)
    for record in records:
        if record["split"] == "valid" and record.get("group", "training") == group:
            ranked[record["prompt"], tuple(record["completions"])].append(record["ranks"])
    shares = []
    for ranks in ranked.values():
        if len(ranks) >= 2:
            same, both = agreement(*ranks[:2])
            if both:
                shares.append(same / both)
    return sum(shares) / len(shares) if shares else None


def report(on_training, groups, records):
    """Accuracy on new prompts beside agreement, a longer-is-better baseline and chance; calibration. -> dict

    on_training: accuracy and error on rankings that were trained on; groups: {group: (rankings, their differences)} of
    new ones; records: of comparisons.jsonl.
    """
    results = {"trained on": {"accuracy": on_training}}
    for group, (rankings, pairs) in groups.items():
        by_length = [differences([len(row) for row in ranking.rows], ranking.ranks) for ranking in rankings]
        possible = sum(math.comb(len(ranking.rows), 2) for ranking in rankings)
        results[group] = {
            "accuracy": accuracy(per_prompt(rankings, pairs)),
            "longer_is_better": accuracy(per_prompt(rankings, by_length)),
            "agreement": agreement_in(records, group),
            "ties": 1 - sum(map(len, pairs)) / possible,
            "pairs": possible,
            "calibration": calibration(pairs),
        }
    return results


def print_report(results):
    """Print what `report` found."""
    print("accuracy on pairs that are not ties, mean over prompts (chance: 50 %)")
    for group, result in results.items():
        mean, error = result["accuracy"]
        line = f"  {group:10} {100 * mean:.1f} ± {100 * error:.1f} %"
        if "ties" in result:
            line += f"  longer-is-better {100 * result['longer_is_better'][0]:.1f} %"
            if result["agreement"] is not None:
                line += f"  two labelers agree {100 * result['agreement']:.1f} %"
            line += f"  ties {100 * result['ties']:.0f} % of {result['pairs']}"
        print(line)
    for group, result in results.items():
        if "calibration" in result:
            cells = "  ".join(f"{100 * p:.0f}→{100 * observed:.0f}" for p, observed, _ in result["calibration"])
            print(f"  calibration, {group} (predicted → observed %): {cells}")
