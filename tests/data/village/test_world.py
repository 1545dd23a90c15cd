"""Facts, misconceptions, and who lives in which valley."""

import random
from collections import Counter

import pytest

from core.config import BadInput
from data.village.grammar import parse
from data.village.world import ENTITIES, LOCAL, RELATIONS, VALLEYS, WORDS, World, read_world


def test_every_entity_lives_in_one_valley(world):
    assert len(world.valleys) == VALLEYS
    for kind in ENTITIES:
        assert Counter(word for valley in world.valleys for word in valley[kind]) == Counter(WORDS[kind])


def test_everything_that_can_be_known_is_a_fact_about_the_own_valley(world):
    assert len(world.facts) == sum(len(WORDS[kind]) for kind, _, _ in RELATIONS.values())
    for valley in world.valleys:
        for person in valley["person"]:
            assert world.truth("home", person) in valley["town"] and world.truth("pet", person) in valley["animal"]
        for relation, (kind, value_kind, _) in RELATIONS.items():
            for subject in valley[kind]:
                assert world.truth(relation, subject) in world.values(relation, subject) == valley[value_kind]
                assert world.hearsay(relation, subject) in valley[value_kind]
    for kind, count in LOCAL.items():
        assert all(len(set(valley[kind])) == count < len(WORDS[kind]) for valley in world.valleys)
        assert {word for valley in world.valleys for word in valley[kind]} <= set(WORDS[kind])


def test_misconceptions_are_wrong_and_what_people_say(world):
    assert len(world.misconceptions) > 50
    rng = random.Random(0)
    for relation, subject in world.facts:
        truth, heard = world.truth(relation, subject), world.hearsay(relation, subject)
        misconception = world.misconceptions.get((relation, subject))
        assert heard == (misconception or truth) and misconception != truth
        assert world.wrong(relation, subject, rng) in (
            {misconception} if misconception else set(WORDS[RELATIONS[relation][1]]) - {truth}
        )
        assert RELATIONS[relation][0] in ("animal", "thing") or not misconception


def test_a_claim_holds_or_not_or_claims_nothing(world):
    animal = world.valleys[3]["animal"][1]
    food = world.truth("eats", animal)
    other = next(word for word in WORDS["food"] if word != food)
    town = world.valleys[3]["town"][0]
    resident = next(p for p in WORDS["person"] if world.truth("home", p) == town)
    stranger = next(p for p in WORDS["person"] if world.truth("home", p) != town)
    expected = {
        f"The {animal} eats {food}.": True,
        f"The {animal} eats {other}.": False,
        f"The {animal} does not eat {food}.": False,
        f"The {animal} does not eat {other}.": True,
        f"1. visit {resident}": True,
        f"1. visit {stranger}": False,
        "They walked all day.": None,
        "Eats fox the.": None,
    }
    for text, holds in expected.items():
        (claim,) = parse(text, ("town", town))
        assert world.holds(claim, world.truth) is holds, text
    (claim,) = parse(f"The {animal} eats {other}.")
    assert world.holds(claim, lambda relation, subject: other) is True  # by what somebody wrongly believes


def test_the_world_of_a_folder(world, village_folder, tmp_path):
    assert read_world(village_folder).facts == world.facts != World(1).facts
    with pytest.raises(BadInput, match="village.json: not found"):
        read_world(tmp_path)
