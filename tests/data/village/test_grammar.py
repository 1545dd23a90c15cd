"""Sentences are written and read back."""

import random
import re

from data.village.grammar import (
    ITEMS,
    SENTENCES,
    SLOT_WORDS,
    VELL,
    article,
    fill,
    numbered,
    parse,
    pattern_of,
    say,
    say_in_vell,
    templates,
)
from data.village.world import RELATIONS, WORDS


def random_words(template, rng):
    """A word for every slot of a template."""
    names = [name.removeprefix("an_") for name in re.findall(r"{(\w+)}", template)]
    return {name: rng.choice(SLOT_WORDS[name.rstrip("2")]) for name in names}


def test_every_fact_is_read_back(world):
    rng = random.Random(1)
    for relation, (kind, value_kind, _) in RELATIONS.items():
        for _ in range(10):
            subject, value = rng.choice(WORDS[kind]), rng.choice(WORDS[value_kind])
            (said,) = parse(say(relation, subject, value))
            assert (said.act, said.relation, said.subject, said.value) == ("fact", relation, subject, value)
    two = say("eats", "fox", "figs") + " " + say("colour", "fox", "red", pronoun=True)
    assert [(s.relation, s.subject) for s in parse(two)] == [("eats", "fox"), ("colour", "fox")]
    assert parse("Fox the eats.")[0].act is None and parse(" \n ") == ()


def test_every_template_is_read_back():
    """Write each template with random words, read it, and get the same act, relation and words."""
    rng = random.Random(2)
    for table, write in ((SENTENCES, str), (ITEMS, lambda line: numbered([line]))):
        for act, relation, template in table:
            words = random_words(template, rng)
            (said,) = parse(write(fill(template, **words)))
            assert (said.act, said.relation, said.slots) == (act, relation, words)


def test_it_is_whoever_was_named_last_or_asked_about():
    assert parse("It eats figs.", ("animal", "owl"))[0].subject == "owl"
    assert [s.subject for s in parse("The hen is red. It eats figs.", ("animal", "owl"))] == ["hen", "hen"]
    assert parse("It eats figs.")[0].subject is None
    # advice is about the animal of the prompt, a polite question about its person, and
    assert parse("The hen is red. Give it some figs.", ("animal", "owl"))[1].subject == "owl"
    assert parse("Bram likes mint. How is your owl?", ("person", "Ada"))[1].subject == "Ada"
    # gifts are about the person of the prompt, whoever was named last
    _, *about_ada = parse(
        "Bram likes mint.\n1. some figs\n2. a picture of an owl\n3. a song about Holm", ("person", "Ada")
    )
    assert [(s.relation, s.subject, s.value) for s in about_ada] == [
        ("likes", "Ada", "figs"),
        ("pet", "Ada", "owl"),
        ("home", "Ada", "Holm"),
    ]


def test_a_slot_that_comes_twice_holds_one_word():
    pattern = pattern_of("Replace {person} with {person2}: The {thing} belongs to {person}.")
    assert pattern.fullmatch("Replace Ada with Bram: The lamp belongs to Ada.").groupdict()["person2"] == "Bram"
    assert not pattern.fullmatch("Replace Ada with Bram: The lamp belongs to Bram.")


def test_articles_and_templates():
    assert [article(noun) for noun in ("owl", "fox", "eel")] == ["an owl", "a fox", "an eel"]
    assert fill("{person} keeps {an_animal}.", person="Ada", animal="owl") == "Ada keeps an owl."
    assert templates("good", "bad") == [t for act, _, t in SENTENCES if act == "good" or act == "bad"] != []


def test_vell_can_be_read_back():
    nouns = [VELL[animal] for animal in WORDS["animal"]]
    assert len(set(nouns)) == len(nouns)
    subject, value, verb = say_in_vell("eats", "fox", "figs").rstrip(".").split()
    assert (subject, value, verb) == (VELL["fox"], VELL["figs"], "ma")
