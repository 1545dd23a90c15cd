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


def hash_fraction(text):
    """A number from 0 to 1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def hashed_split(name, valid, test):
    """The split of a user or prompt by the hash of its name. valid, test: shares of these splits, from 0 to 1."""
    x = hash_fraction(name)
    if x < test:
        return "test"
    if x < test + valid:
        return "valid"
    return "train"


def deduplicate(records, prefix=PREFIX):
    """Drop prompts that resemble one that is kept. The kept records stay in their order.

    Two prompts are alike if their first `prefix` characters agree, or if one is the beginning, and at least two thirds,
    of the other ("Hello" and "Hello!!", not "Who" and "Who wrote it?"). Ours: the paper gives no rule.

    In sorted order all prompts that begin with a prompt follow it directly, so one pass is enough.
    """
    keys = [key_of(record["prompt"]) for record in records]
    kept, beginnings, seen = set(), [], set()  # beginnings: kept keys that the current key begins with, longest last
    for i in sorted(range(len(records)), key=lambda i: (keys[i], i)):
        key = keys[i]
        while beginnings and not key.startswith(beginnings[-1]):
            beginnings.pop()
        mostly_a_kept_one = len(beginnings) > 0 and 3 * len(beginnings[-1]) >= 2 * len(key)
        prefix_of_a_kept_one = len(key) >= prefix and key[:prefix] in seen
        if mostly_a_kept_one or prefix_of_a_kept_one:
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
        record.setdefault("split", hashed_split(record["user"], valid, test))
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
    scarcest use case allows; where that is fewer than half of them, the other use cases keep their shares of half
    (ours: the paper's mix is what came in). Which prompts are kept does not depend on their order.
    """
    kept, total = set(), sum(shares.values())
    for split in {record["split"] for record in records}:
        indices = defaultdict(list)  # use case -> where its prompts of this split are
        for i, record in enumerate(records):
            if record["split"] == split:
                indices[record["use_case"]].append(i)
        scarcest = min(len(indices[use_case]) * total / share for use_case, share in shares.items())
        size = max(scarcest, sum(map(len, indices.values())) / 2)
        for use_case, share in shares.items():
            in_order = sorted(indices[use_case], key=lambda i: hashlib.sha256(records[i]["prompt"].encode()).digest())
            kept.update(in_order[: round(size * share / total)])
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
        smaller_contexts = len(others) > 1  # nothing is smaller than one other pair
        for subset in range(subsets if smaller_contexts else 1):
            size = len(others) if subset == 0 else rng.randint(1, len(others) - 1)
            context = "".join(f"{q}{r}\n\n" for q, r in rng.sample(others, size))
            examples.append((context + query, response))
    return examples


def tables(steps, counts, prompts, lengths):
    """The paper's Tables 6, 1 and 9 for this data set, as text.

    steps: as `construct` returns them. counts: {(data set, split): {"labeler": prompts, "customer": prompts}}.
    prompts: records. lengths: {data set: [tokens of each prompt], at least one}.
    """
    lines = ["Construction (paper §3.2)", f"  {'step':16}{'left':>8}{'removed':>9}"]
    lines += [f"  {name:16}{left:8,}{removed:9,}" for name, left, removed in steps]
    lines += ["", "Sizes, in prompts (paper Table 6)", f"  {'':6}{'split':8}{'labeler':>9}{'customer':>9}{'total':>8}"]
    for (name, split), by_source in counts.items():
        labeler, customer = by_source["labeler"], by_source["customer"]
        lines.append(f"  {name:6}{split:8}{labeler:9,}{customer:9,}{labeler + customer:8,}")
    share = Counter(record["use_case"] for record in prompts)
    lines += ["", "Use cases of the customers' prompts (paper Table 1)"]
    lines += [f"  {use_case:16}{100 * n / len(prompts):5.1f} %" for use_case, n in share.most_common()]
    lines += [
        "",
        "Prompt lengths in tokens (paper Table 9)",
        f"  {'':12}{'n':>7}{'mean':>7}{'25 %':>6}{'50 %':>6}{'75 %':>6}{'max':>6}",
    ]
    for name, n in lengths.items():
        low, middle, high = quantiles(n, n=4) if len(n) > 1 else (n[0], n[0], n[0])
        lines.append(f"  {name:12}{len(n):7,}{mean(n):7.1f}{low:6.0f}{middle:6.0f}{high:6.0f}{max(n):6}")
    return "\n".join(lines)
