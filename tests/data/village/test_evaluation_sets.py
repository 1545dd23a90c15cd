"""Test material: of the test split, the same for the same seed, and unknown to whatever trains."""

import random
from collections import Counter
from pathlib import Path

import pytest

from data.village import evaluation_sets as sets
from data.village.grammar import PROMPT_END, parse, pattern_of
from data.village.intents import STARTS, find_intent, understand
from data.village.users import split_of
from data.village.world import RELATIONS, WORDS
from run import source_files

ROOT = Path(__file__).resolve().parents[3]


def asked_by(prompt):
    """The split whose users ask this."""
    return split_of(*understand(prompt))


def test_nothing_that_trains_imports_it():
    name = ROOT / "data" / "village" / "evaluation_sets.py"
    trains = [ROOT / f"{script}.py" for script in ("pretrain", "sft", "reward", "ppo", "data/collect", "evaluate")]
    trains += [path for path in (ROOT / "data").rglob("*.py") if path != name]
    trains += [*(ROOT / "alternatives").glob("*.py"), *(ROOT / "baselines").glob("*.py")]
    assert [path for path in trains if name in source_files(path)] == []
    assert name in source_files(ROOT / "claims.py"), "so it would be found"


def test_all_test_questions_after_facts_are_there_and_no_other(world):
    """The slow way: write every question out, and let the reader of prompts say who asks it."""
    want = set()
    for relation, (kind, _, question) in RELATIONS.items():
        for subject in WORDS[kind]:
            if asked_by(question.replace(f"{{{kind}}}", subject) + PROMPT_END) == "test":
                want.add((relation, subject))
    found = sets.fact_questions(world)
    assert set(found) == want and len(found) == len(want) > 60
    assert {fact in world.misconceptions for fact in found} == {True, False}


def test_every_wording_asks_for_the_fact(world):
    for fact in sets.fact_questions(world)[::7]:
        for name in ("question", "cautious"):
            wordings = sets.wordings(*fact, name)
            assert len(set(wordings)) == len(find_intent(name).phrasings)
            for prompt in wordings:
                intent, slots = understand(prompt)
                assert (intent.name, slots["relation"], intent.about(slots)[1]) == (name, *fact)


def test_solved_questions_are_true_of_the_training_split_and_mislead_nobody(world):
    for seed in range(5):
        text = sets.solved_questions(world, random.Random(seed), 4)
        assert text == sets.solved_questions(world, random.Random(seed), 4)
        examples = text.removesuffix("\n\n").split("\n\n")
        assert len(examples) == 4
        for example in examples:
            question, answer = example.split(f"{PROMPT_END} ")
            (said,) = parse(answer)
            assert asked_by(question) == "train" and world.holds(said, world.truth)
            assert (said.relation, said.subject) not in world.misconceptions
        assert len({parse(example.split("> ")[1])[0].relation for example in examples}) == 4


def test_starts_are_about_people_of_the_test_split_as_many_of_each_grade(world):
    found = sets.sentence_starts(world, random.Random(3), 6)
    assert found == sets.sentence_starts(world, random.Random(3), 6)
    assert Counter(grade for _, grade in found) == {grade: 6 for grade in range(len(STARTS))}
    assert len({start for start, _ in found}) == len(found)
    for start, grade in found:
        insults = sum(sentence.act in ("insult", "threat") for sentence in parse(start))
        assert grade - 1 == insults or (grade, insults) == (0, 0), "the later, the more hostile"
        for instruction, intent in sets.INSTRUCTIONS.items():
            prompt = sets.to_complete(start, instruction)
            assert understand(prompt)[0].name == intent and asked_by(prompt) == "test"
            assert start in prompt and prompt.endswith(f" ...{PROMPT_END}")
        for instruction, told in sets.IN_A_SENTENCE.items():
            assert sets.bare(start, instruction) == told + start and (instruction == "basic") == (told == "")


def test_pairs_differ_in_the_town_and_the_first_of_two_rivals_is_the_one_insulted(world):
    pairs = sets.sentence_pairs(world)
    assert Counter(name for name, *_ in pairs) == {
        "CrowS-Pairs": len(world.rivals) * len(WORDS["insult"]),
        "Winogender": sum(len(trades) for trades in world.trades.values()),
    }
    for name, start, ways, expected, rivals in pairs:
        sentences = [parse(start + way)[0] for way in ways]
        assert {s.act for s in sentences} == {"prejudice" if name == "CrowS-Pairs" else "origin"}
        towns = tuple(s.slots["town"] for s in sentences)
        assert towns == rivals and towns in world.rivals and ways[0].replace(*towns) == ways[1]
        if name == "CrowS-Pairs":
            assert expected == 0
        else:
            assert towns[expected] == world.trades[towns][sentences[0].slots["job"]]


@pytest.mark.parametrize("name", [*sets.RARE, "rude", "ending"])
def test_prompts_of_an_intent_are_different_and_of_the_test_split(world, name):
    prompts = sets.prompts_of(name, world, random.Random(1), 12)
    assert len(set(prompts)) == len(prompts) >= 5
    assert all(understand(prompt)[0].name == name and asked_by(prompt) == "test" for prompt in prompts)


def test_false_premises_are_false_and_unseen_phrasings_unseen(world):
    premises = sets.false_premises(world, random.Random(2), 20)
    assert len(premises) == 20 and all(asked_by(prompt) == "test" for prompt in premises)
    for prompt in premises:
        slots = understand(prompt)[1]
        assert world.truth("eats", slots["animal"]) != slots["food"] and slots["food"] in prompt
    unseen = sets.in_unseen_phrasings(world, random.Random(2), 2)
    for prompt in unseen:
        intent, text = understand(prompt)[0], prompt.removesuffix(PROMPT_END)
        assert any(pattern_of(phrasing).fullmatch(text) for phrasing in intent.unseen) and asked_by(prompt) == "test"
    assert len({understand(prompt)[0].name for prompt in unseen}) > 20


def test_a_prompt_behind_examples_is_the_same_prompt(world):
    prompts = sets.prompts_of("story", world, random.Random(4), 40)
    behind = sets.behind_examples(prompts, world, random.Random(4))
    for prompt, few_shot in zip(prompts, behind, strict=True):
        *examples, last = few_shot.split("\n\n")
        assert last == prompt and len(examples) == 2 and understand(few_shot) == understand(prompt)
        for example in examples:
            question, answer = example.split(f"{PROMPT_END} ")
            intent, slots = understand(question)
            met = intent.requirements_met(slots, answer)
            assert asked_by(question) == "train" and all(met.values()) and not intent.rare
            assert False not in [
                world.holds(sentence, world.truth) for sentence in intent.read(slots, answer).sentences
            ]
