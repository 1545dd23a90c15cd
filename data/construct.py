"""From raw requests to the paper's prompt data set (§3.2, App. A): what each step does, and what it removed.

deduplicate   drop prompts that share a long common prefix with one that is kept
cap           at most 200 prompts per user
split         by user, so that no user is in two splits
PII filter    on the training split only
expand        few-shot prompts: K pairs of one instruction give K examples, each with the other K-1 in context
"""

import hashlib
import re
from collections import Counter, defaultdict
from statistics import mean, quantiles

PREFIX = 60  # characters; the paper gives no length
USER_CAP = 200  # prompts per user (§3.2)
PII = re.compile(r"\b\d{3}[-. ]?\d{4}\b|[\w.+-]+@[\w-]+\.\w+|\b\d+ \w+ (street|lane|road|avenue)\b", re.IGNORECASE)


def key_of(prompt):
    """What two prompts are compared by: case, spacing and the last punctuation do not make them different."""
    return re.sub(r"\s+", " ", prompt.lower()).strip().rstrip(".!?")


def deduplicate(records, prefix=PREFIX):
    """Keep one of all prompts whose first `prefix` characters agree, or of which one is the beginning, and at least
    two thirds, of the other ("Hello" and "Hello!!", not "Who" and "Who wrote it?"). Ours: the paper gives no rule.

    In sorted order all prompts that begin with a prompt follow it directly, so one pass is enough. Order is kept.
    """
    kept, beginnings, seen = set(), [], set()  # beginnings: kept keys that the current key begins with, longest last
    for i in sorted(range(len(records)), key=lambda i: (key_of(records[i]["prompt"]), i)):
        key = key_of(records[i]["prompt"])
        while beginnings and not key.startswith(beginnings[-1]):
            beginnings.pop()
        nearly_all = beginnings and 3 * len(beginnings[-1]) >= 2 * len(key)
        if nearly_all or (len(key) >= prefix and key[:prefix] in seen):
            continue
        kept.add(i)
        beginnings.append(key)
        seen.add(key[:prefix])
    return [record for i, record in enumerate(records) if i in kept]


def cap_users(records, cap=USER_CAP):
    """The first `cap` prompts of every user."""
    seen, kept = Counter(), []
    for record in records:
        seen[record["user"]] += 1
        if seen[record["user"]] <= cap:
            kept.append(record)
    return kept


def split_by_user(records, valid=0.1, test=0.1):
    """Give every record a split that depends on its user alone; records that already say their split keep it."""
    for record in records:
        x = int(hashlib.sha256(record["user"].encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
        record.setdefault("split", "test" if x < test else "valid" if x < test + valid else "train")
    splits = defaultdict(set)
    for record in records:
        splits[record["user"]].add(record["split"])
    mixed = sorted(user for user, found in splits.items() if len(found) > 1)
    assert not mixed, f"users in two splits: {mixed[:3]}"
    return records


def filter_pii(records):
    """Training prompts with what looks like a phone number, an e-mail or a street address are dropped."""
    return [r for r in records if r["split"] != "train" or not PII.search(r["prompt"])]


def use_case_mix(records, shares):
    """Thin what is too frequent, so that every split has the mix of Table 1 again. shares: {use case: percent}.

    Deduplication takes more from the use cases whose prompts resemble each other. A split keeps as many prompts as its
    scarcest use case allows; where that is fewer than half of them, the other use cases keep their shares of half (ours:
    the paper's mix is what came in). Which prompts are kept does not depend on their order.
    """
    kept, total = set(), sum(shares.values())
    for split in {r["split"]: 0 for r in records}:
        by = defaultdict(list)
        for i, record in enumerate(records):
            if record["split"] == split:
                by[record["use_case"]].append(i)
        scarcest = min(len(by[u]) * total / share for u, share in shares.items())
        size = max(scarcest, sum(map(len, by.values())) / 2)
        for u, share in shares.items():
            by[u].sort(key=lambda i: hashlib.sha256(records[i]["prompt"].encode()).digest())
            kept.update(by[u][: round(size * share / total)])
    return [record for i, record in enumerate(records) if i in kept]


def construct(records):
    """All steps in the paper's order -> (kept records, [(step, prompts left, removed)])."""
    steps, left = [], len(records)
    for name, step in (
        ("common prefix", deduplicate),
        ("200 per user", cap_users),
        ("split by user", split_by_user),
        ("PII (train)", filter_pii),
    ):
        records = step(records)
        steps.append((name, len(records), left - len(records)))
        left = len(records)
    return records, steps


def expand_few_shot(pairs, rng, subsets=1):
    """K (query, response) pairs of one instruction -> examples with the other K-1 in context (App. A.1, A.3).

    subsets > 1 makes further examples with other, smaller contexts. Returns (prompt, completion) pairs.
    """
    examples = []
    for i, (query, response) in enumerate(pairs):
        others = pairs[:i] + pairs[i + 1 :]
        for subset in range(subsets if len(others) > 1 else 1):  # nothing smaller than one other pair
            shots = rng.sample(others, len(others) if subset == 0 else rng.randint(1, len(others) - 1))
            examples.append(("".join(f"{q}{r}\n\n" for q, r in shots) + query, response))
    return examples


def tables(steps, counts, prompts, lengths):
    """The paper's Tables 6, 1 and 9 for this data set, as text. lengths: {data set: list of prompt tokens}."""
    lines = ["Construction (paper §3.2)", f"  {'step':16}{'left':>8}{'removed':>9}"]
    lines += [f"  {name:16}{left:8,}{removed:9,}" for name, left, removed in steps]
    lines += ["", "Sizes, in prompts (paper Table 6)", f"  {'':6}{'split':8}{'labeler':>9}{'customer':>9}{'total':>8}"]
    for (name, split), by in counts.items():
        lines.append(f"  {name:6}{split:8}{by['labeler']:9,}{by['customer']:9,}{sum(by.values()):8,}")
    share = Counter(r["use_case"] for r in prompts)
    lines += ["", "Use cases of the customers' prompts (paper Table 1)"]
    lines += [f"  {use_case:16}{100 * n / len(prompts):5.1f} %" for use_case, n in share.most_common()]
    lines += [
        "",
        "Prompt lengths in tokens (paper Table 9)",
        f"  {'':12}{'n':>7}{'mean':>7}{'25 %':>6}{'50 %':>6}{'75 %':>6}{'max':>6}",
    ]
    for name, n in lengths.items():
        low, middle, high = quantiles(n if len(n) > 1 else 2 * n, n=4)
        lines.append(f"  {name:12}{len(n):7,}{mean(n):7.1f}{low:6.0f}{middle:6.0f}{high:6.0f}{max(n):6}")
    return "\n".join(lines)
