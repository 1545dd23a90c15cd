"""What the village's tests share: one world, a small data folder of it, prompts, and what they ask."""

import re

import pytest

from data.folder import read_prompts
from data.village import make
from data.village.grammar import VELL
from data.village.intents import understand
from data.village.users import draw_prompt
from data.village.world import ENTITIES, WORDS, World


@pytest.fixture(scope="session")
def world():
    return World(0)


@pytest.fixture(scope="session")
def village_folder(tmp_path_factory):
    """A data folder of the same world. Tests read it and do not write into it."""
    path = tmp_path_factory.mktemp("village")
    make.main(make.Config(out=str(path), web_pages=1500, users=20, demonstrations=150, exams=200, task_items=16))
    return path


@pytest.fixture(scope="session")
def draw_prompts(world):
    """draw_prompts(rng, count, split="test") yields (prompt, intent, slots), some in phrasings of test users only."""

    def draw(rng, count, split="test"):
        for _ in range(count):
            yield draw_prompt(world, rng.choice(world.valleys), rng, split, unseen=rng.random() < 0.3)

    return draw


KIND_OF = {name: kind for kind in ENTITIES for name in WORDS[kind]}
ENGLISH = {vell: word for word, vell in VELL.items()}


@pytest.fixture(scope="session")
def question_asked():
    """question_asked(prompt) -> what it asks, read off the prompt's own words; None if nobody would send it.

    The intent and the fact it asks for, and the names that stand in the last instruction: by kind, and of one kind in
    their order ("Replace Ada with Bram" is not "Replace Bram with Ada").
    """

    def question(prompt):
        intent, slots = understand(prompt)
        if not intent.name:
            return None
        text = prompt.rsplit("\n\n", 1)[-1]
        names = [ENGLISH.get(word, word) for word in re.findall(r"\w+", text)]
        names = sorted(dict.fromkeys(name for name in names if name in KIND_OF), key=KIND_OF.get)
        same = {"cautious": "question", "complete_politely": "complete", "complete_rudely": "complete"}
        return (same.get(intent.name, intent.name), slots.get("relation"), *names)

    return question


@pytest.fixture(scope="session")
def later_questions(village_folder, question_asked):
    """What the prompts of the validation and test split ask, a set."""
    prompts = [r["prompt"] for split in ("valid", "test") for r in read_prompts(village_folder, split)]
    asked = {question_asked(prompt) for prompt in prompts}
    assert len(asked) > 80 and None not in asked
    return asked
