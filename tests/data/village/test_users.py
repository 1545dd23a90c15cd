"""What users send: the paper's mix, with something to do for every construction step."""

import random
from collections import Counter

import pytest

from data.construct import construct
from data.village.grammar import PROMPT_END
from data.village.intents import USE_CASES, find_intent, understand
from data.village.users import PREFIXES, prefixes, requests
from data.village.world import VALLEYS


def test_use_cases_follow_the_papers_mix(draw_prompts):
    drawn = Counter(intent.use_case for _, intent, _ in draw_prompts(random.Random(4), 6000))
    for use_case, percent in USE_CASES.items():
        assert drawn[use_case] / 60 == pytest.approx(percent, abs=2.5)


def test_requests_give_construction_something_to_do(world):
    raw = list(requests(world, random.Random(5), 10))
    kept, steps = construct([dict(r) for r in raw])
    removed = {name: gone for name, _, gone in steps}
    assert removed["common prefix"] > 100 and removed["200 per user"] > 0 and removed["PII (train)"] > 0
    splits = {}
    assert all(splits.setdefault(r["user"], r["split"]) == r["split"] for r in kept)


def test_users_ask_about_their_own_valley(world):
    for record in requests(world, random.Random(6), 3):
        intent, slots = understand(record["prompt"])
        assert (intent.name, intent.use_case) == (record["intent"], record["use_case"])
        kind, entity = intent.about(slots)
        number = int(record["user"].split("-")[1])
        assert entity in world.valleys[number][kind] and number in VALLEYS[record["split"]]


def test_prefixes_are_solved_requests(world):
    for names, record in zip(PREFIXES, prefixes(world), strict=True):
        heading, *solved = record["prefix"].removesuffix("\n\n").split("\n\n")
        assert heading == "Exercises" and record["prefix"].endswith("\n\n")
        for name, shot in zip(names, solved, strict=True):
            prompt, answer = shot.split(PROMPT_END)
            intent, slots = understand(prompt)
            assert intent is find_intent(name) and all(intent.requirements_met(slots, answer).values())
