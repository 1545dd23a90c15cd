"""From raw requests to a prompt data set: each step against a slower second one, or against its promise."""

import random
from collections import Counter

import pytest

from data.construct import cap_users, construct, deduplicate, expand_few_shot, filter_pii, split_by_user, use_case_mix


def records_of(prompts):
    return [{"prompt": p, "user": "u"} for p in prompts]


def alike(a, b, prefix):
    """Do two prompts begin with the same `prefix` characters, or is one two thirds of the other, and its beginning?"""
    a, b = sorted((" ".join(p.lower().split()).rstrip(".!?") for p in (a, b)), key=len)
    return (len(a) >= prefix and a[:prefix] == b[:prefix]) or (b.startswith(a) and len(a) >= 2 / 3 * len(b))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prefix", [2, 4, 60])
def test_deduplicate_against_all_pairs(seed, prefix):
    rng = random.Random(seed)
    prompts = ["".join(rng.choices("abAB  ", k=rng.randint(1, 8))) + rng.choice(["", "?", "!"]) for _ in range(60)]
    prompts = ["x" + p for p in prompts]  # no prompt is empty
    records = records_of(prompts)
    kept = deduplicate(records, prefix)
    places = [next(i for i, r in enumerate(records) if r is k) for k in kept]
    assert places == sorted(places), "the order is kept"
    for i in range(60):
        others = [j for j in places if j != i and alike(prompts[i], prompts[j], prefix)]
        assert bool(others) == (i not in places), "kept ones are alike to none of the kept, dropped ones to one"


def test_deduplicate_by_hand():
    long = "tell me a story about an owl that lives in the old mill near the "
    prompts = [long + "river", "Hello", "name a colour", long + "sea", "hello!", "NAME  a colour?", "name a fruit"]
    assert [r["prompt"] for r in deduplicate(records_of(prompts))] == [
        long + "river",
        "Hello",
        "name a colour",
        "name a fruit",
    ]


def test_a_prompt_of_punctuation_does_not_swallow_the_others():
    prompts = ["...", "name a colour", "what is the owl called"]
    assert {r["prompt"] for r in deduplicate(records_of(prompts))} >= set(prompts[1:])


@pytest.mark.parametrize("cap", [1, 3, 200])
def test_cap_per_user(cap):
    rng = random.Random(0)
    records = [{"prompt": str(i), "user": rng.choice("aaab")} for i in range(400)]
    kept = cap_users(records, cap)
    for user in "ab":
        own = [r for r in records if r["user"] == user]
        assert [r for r in kept if r["user"] == user] == own[:cap]
    assert kept == sorted(kept, key=lambda r: int(r["prompt"]))


def test_no_user_is_in_two_splits():
    records = [{"prompt": str(i), "user": f"user {i % 1000}"} for i in range(3000)]
    users = {s: {r["user"] for r in split_by_user(records) if r["split"] == s} for s in ("train", "valid", "test")}
    assert sum(map(len, users.values())) == 1000 and len(set.union(*users.values())) == 1000
    assert 60 < len(users["valid"]) < 140 and 60 < len(users["test"]) < 140  # a tenth each, four standard errors
    again = split_by_user([{"prompt": "new", "user": u} for u in sorted(users["valid"])])
    assert {r["split"] for r in again} == {"valid"}, "a user's split depends on nothing else"


def test_shares_of_the_splits_can_be_chosen():
    records = [{"prompt": str(i), "user": f"user {i}"} for i in range(2000)]
    split = [r["split"] for r in split_by_user(records, valid=0.3, test=0.0)]
    assert 500 < split.count("valid") < 700 and split.count("test") == 0


def test_a_given_split_is_kept_but_not_torn_apart():
    assert split_by_user([{"prompt": "p", "user": "u", "split": "test"}])[0]["split"] == "test"
    with pytest.raises(AssertionError, match="two splits"):
        split_by_user([{"prompt": "p", "user": "u", "split": s} for s in ("train", "test")])


PERSONAL = ["call me at 555-1234", "My number is 5551234.", "write to ann.b@mill.org", "I live at 12 Mill Lane"]
HARMLESS = ["count to 1234", "what is 12 + 555", "a story about a lane", "the mill @ night", "say owl 3 times"]


def test_pii_is_removed_from_training_only():
    def kept(split):
        records = [{"prompt": p, "user": "u", "split": split} for p in PERSONAL + HARMLESS]
        return [r["prompt"] for r in filter_pii(records)]

    assert kept("train") == HARMLESS
    assert kept("valid") == kept("test") == PERSONAL + HARMLESS


def test_construct_keeps_every_promise():
    rng = random.Random(1)
    words = ["owl", "mill", "call 555-1234", "river", "bread", "a", "the", "red"]
    users = [f"u{i}" for i in range(30)] + ["heavy"] * 60
    records = [{"prompt": " ".join(rng.choices(words, k=5)), "user": rng.choice(users)} for _ in range(4000)]
    kept, steps = construct([dict(r) for r in records])
    prompts = [r["prompt"] for r in kept]
    assert not any(alike(a, b, 60) for i, a in enumerate(prompts) for b in prompts[:i])
    by_user = {u: [r for r in kept if r["user"] == u] for u in set(users)}
    assert max(map(len, by_user.values())) <= 200
    assert all(len({r["split"] for r in own}) <= 1 for own in by_user.values())
    assert not any("555" in r["prompt"] for r in kept if r["split"] == "train")
    assert any("555" in r["prompt"] for r in kept if r["split"] != "train")
    left = 4000
    for _, n, removed in steps:
        assert left - removed == n
        left = n
    assert left == len(kept) and all(steps[i][2] > 0 for i in (0, 1, 3)) and steps[2][2] == 0


@pytest.mark.parametrize("K", [1, 2, 5])
def test_few_shot_expansion(K):
    pairs = [(f"Opposite of {i}?\n>", f" not {i}") for i in range(K)]
    examples = expand_few_shot(pairs, random.Random(0))
    assert [completion for _, completion in examples] == [response for _, response in pairs]
    for (query, _), (prompt, _) in zip(pairs, examples):
        *shots, last = prompt.split("\n\n")
        assert last == query
        assert sorted(shots) == sorted(q + r for q, r in pairs if q != query), "each other pair once, itself never"


def test_few_shot_expansion_with_smaller_contexts():
    pairs = [(f"Opposite of {i}?\n>", f" not {i}") for i in range(4)]
    examples = expand_few_shot(pairs, random.Random(0), subsets=3)
    assert len(examples) == 12
    for i, (prompt, completion) in enumerate(examples):
        query, response = pairs[i // 3]
        *shots, last = prompt.split("\n\n")
        assert (last, completion) == (query, response)
        assert len(shots) == len(set(shots)) and set(shots) <= {q + r for q, r in pairs if q != query}
        assert len(shots) == 3 if i % 3 == 0 else 1 <= len(shots) <= 3


def test_the_mix_comes_out_in_every_split_whatever_the_order():
    rng, shares = random.Random(1), {"a": 50.0, "b": 30.0, "c": 20.0}
    counts = {
        ("train", "a"): 300,
        ("train", "b"): 100,
        ("train", "c"): 120,
        ("test", "a"): 90,
        ("test", "b"): 90,
        ("test", "c"): 2,
    }
    records = [{"prompt": f"{s} {u} {i}", "split": s, "use_case": u} for (s, u), n in counts.items() for i in range(n)]
    kept = use_case_mix(records, shares)
    left = Counter((r["split"], r["use_case"]) for r in kept)
    assert [left["train", u] for u in "abc"] == [167, 100, 67]  # b is the scarcest: 100 / 30 %
    assert [left["test", u] for u in "abc"] == [46, 27, 2]  # c would leave 10 of 182: half stay instead
    assert kept == [r for r in records if r in kept]
    rng.shuffle(records)
    assert sorted(r["prompt"] for r in use_case_mix(records, shares)) == sorted(r["prompt"] for r in kept)
