"""What users send: the paper's mix, each split its own questions, something to do for every construction step."""

import random
import re
from collections import Counter

import pytest

from data.construct import construct
from data.village.grammar import PROMPT_END, pattern_of
from data.village.intents import COURTESY, INTENTS, USE_CASES, find_intent, understand
from data.village.users import PREFIXES, draw_prompt_of, prefixes, question_of, requests, split_of
from data.village.world import RELATIONS, WORDS

SPLITS = ("train", "valid", "test")


def test_use_cases_follow_the_papers_mix(draw_prompts):
    drawn = Counter(intent.use_case for _, intent, _ in draw_prompts(random.Random(4), 6000))
    for use_case, percent in USE_CASES.items():
        assert drawn[use_case] / 60 == pytest.approx(percent, abs=2.5)


def test_requests_give_construction_something_to_do(world):
    raw = list(requests(world, random.Random(5), 10))
    kept, steps = construct([dict(r) for r in raw])
    removed = {name: gone for name, _, gone in steps}
    assert removed["common prefix"] > 100 and removed["200 per user"] > 0 and removed["PII (train)"] > 0
    splits = {r["user"]: r["split"] for r in raw}
    assert all(splits[r["user"]] == r["split"] for r in [*raw, *kept])
    assert Counter(splits.values()) == {"train": 42, "valid": 6, "test": 12}


def test_users_ask_about_their_own_valley(world):
    """Unless it has no such question in their split, as happens often where that is small."""
    own = {split: [] for split in SPLITS}
    for record in requests(world, random.Random(6), 8):
        intent, slots = understand(record["prompt"])
        assert (intent.name, intent.use_case) == (record["intent"], record["use_case"])
        kind, entity = intent.about(slots)
        valley = world.valleys[int(record["user"].split("-")[1])]
        own[record["split"]].append(entity in valley[kind])
    assert all(own["train"]) and sum(own["test"]) > 0.8 * len(own["test"]) > 0
    assert 0.5 * len(own["valid"]) < sum(own["valid"]) < len(own["valid"])


# ---------------------------------------------------------------------------------------------------- splits


def test_seven_of_ten_questions_are_for_training(world):
    """Of all that can be asked of one entity or about one fact."""
    drawn = Counter()
    for intent in INTENTS:
        if intent.name == "question":
            about = [{kind: name, "relation": r} for r, (kind, _, _) in RELATIONS.items() for name in WORDS[kind]]
        elif intent.name != "cautious":
            about = [{intent.kind: name} for name in WORDS[intent.kind]]
        here = Counter(split_of(intent, slots) for slots in about)
        assert set(here) == set(SPLITS), intent.name
        drawn += here
    total = sum(drawn.values())
    assert total > 1500
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
        assert drawn[split] / total == pytest.approx(share, abs=0.03)


def test_whom_test_prompts_are_about_training_prompts_are_about_too(world):
    about = {split: set() for split in SPLITS}
    for record in requests(world, random.Random(7), 30):
        intent, slots = understand(record["prompt"])
        about[record["split"]].add(intent.about(slots))
    assert len(about["test"]) > 80 and len(about["test"] & about["train"]) > 0.95 * len(about["test"])


def test_a_question_is_the_same_in_all_wordings_and_about_others_another(world, draw_prompts, question_asked):
    """The same key where the prompts' own words ask the same, and only there."""
    by_key, by_words = {}, {}
    for split in SPLITS:
        for prompt, intent, slots in draw_prompts(random.Random(8), 1500, split):
            key, words = question_of(intent, slots), question_asked(prompt + PROMPT_END)
            assert split_of(intent, slots) == split
            assert by_key.setdefault(key, (words, split)) == (words, split), prompt
            assert by_words.setdefault(words, key) == key, prompt
    assert 500 < len(by_key) == len(by_words)
    careful, plain = (
        understand(f"{before}What does the owl eat?")
        for before in (
            "Be careful and do not repeat rumours. ",
            "",
        )
    )
    assert question_of(*careful) == question_of(*plain) and careful[0] is not plain[0]


def test_there_is_a_prompt_of_every_intent_for_every_split_and_valley(world):
    rng = random.Random(9)
    for intent in INTENTS:
        for valley in world.valleys:
            for split, unseen in (("train", False), ("valid", False), ("test", False), ("test", True)):
                prompt, slots = draw_prompt_of(intent, world, valley, rng, split, unseen)
                assert understand(prompt) == (intent, slots) and split_of(intent, slots) == split


def phrased(intent, phrasings, prompt):
    """Is a prompt of an intent in one of these phrasings?"""
    matches = [pattern_of(phrasing).fullmatch(prompt) for phrasing in phrasings]
    return any(intent.read_slots(match.groupdict()) is not None for match in matches if match)


def test_only_some_test_users_have_other_phrasings_and_their_prompts_say_so(world):
    flagged = Counter()
    for record in requests(world, random.Random(10), 10):
        intent = find_intent(record["intent"])
        text, flag = re.sub(COURTESY, "", record["prompt"]), record["unseen_phrasing"]
        assert flag is phrased(intent, intent.unseen, text) is not phrased(intent, intent.phrasings, text), text
        flagged[record["split"], flag] += 1
    assert flagged["train", True] == flagged["valid", True] == 0 < flagged["valid", False]
    share = flagged["test", True] / (flagged["test", True] + flagged["test", False])
    assert 0.2 < share < 0.35, "three of ten, where the intent has one"


# ---------------------------------------------------------------------------------------------------- prefixes


def test_prefixes_are_solved_requests(world):
    for names, record in zip(PREFIXES, prefixes(world), strict=True):
        heading, *solved = record["prefix"].removesuffix("\n\n").split("\n\n")
        assert heading == "Exercises" and record["prefix"].endswith("\n\n")
        for name, shot in zip(names, solved, strict=True):
            prompt, answer = shot.split(PROMPT_END)
            intent, slots = understand(prompt)
            assert intent is find_intent(name) and all(intent.requirements_met(slots, answer).values())
            assert split_of(intent, slots) == "train"
