"""The village's "public tasks": what pretraining can do, to measure what alignment costs (§4.2, App. D).

Items in the form of the web's task pages. To add a task: write a function (world, rng, number) -> an item without its
name and split, and put it into TASKS.

    {"task", "split", "context", "answer"}                    to be written; "metric": "f1" if part of it counts as well
    {"task", "split", "context", "choices", "answer": index}  to be chosen from
"""

from data.village.grammar import fill, say, say_in_vell, templates
from data.village.web import (
    claims_about,
    kept_for_tests,
    mixed_review,
    named,
    one_pronoun,
    one_sum,
    passage,
    summary_page,
)
from data.village.world import RELATIONS, RELATIONS_OF, WORDS


def tasks(world, rng, count):
    """Yield `count` items of each task, a quarter of them few-shot examples: records of tasks.jsonl.

    No page with tasks holds the texts of translation, sentiment and summary (a school book may say the same in a user's
    words); the others are drawn from so many combinations that hardly one comes twice; facts are the web's own: that
    task asks what was remembered.
    """
    for number in range(count):
        split = "shots" if number < count // 4 else "test"
        for name, make in TASKS.items():
            yield {"task": name, "split": split, **make(world, rng, number)}


def to_write(page):
    """A page with one question -> context and answer: its last word or words are to be written."""
    context, answer = page.rsplit(": ", 1)
    return {"context": context + ":", "answer": " " + answer}


def reading_task(world, rng, number):
    """SQuADv2's: some questions have no answer in the passage."""
    return to_write("\n".join(passage(world, rng).split("\n")[:3])) | {"metric": "f1"}


def arithmetic_task(world, rng, number):
    """DROP's."""
    return to_write(one_sum(rng))


def entailment_task(world, rng, number):
    """RTE's."""
    item = to_write(claims_about(rng, 1))
    return {"context": item["context"], "choices": [" yes", " no"], "answer": [" yes", " no"].index(item["answer"])}


def pronouns_task(world, rng, number):
    """WSC's: the name is to be written."""
    return to_write(one_pronoun(rng))


def sentiment_task(world, rng, number):
    """SST's."""
    while True:
        text, mood = mixed_review(rng, 3)
        if kept_for_tests(text):
            choices = ["good", "bad"]
            return {
                "context": f"Text: {text}\nLabel:",
                "choices": [f" {choice}" for choice in choices],
                "answer": choices.index(mood),
            }


def ending_task(world, rng, number):
    """HellaSwag's: which of four sentences goes on with a person and an animal who belong together in the story?

    Two beginnings, each with a person and an animal; wrong sentences mix them. The right one stands at each place
    equally often.
    """
    people, animals = rng.sample(WORDS["person"], 3), rng.sample(WORDS["animal"], 3)
    openings = rng.sample(templates("open"), 2)
    context = " ".join(fill(t, person=who, animal=which) for t, who, which in zip(openings, people, animals))
    chosen = rng.randrange(2)  # which of the two pairs the right sentence is about
    person, animal = people[chosen], animals[chosen]
    wrong = [(people[1 - chosen], animal), (person, animals[1 - chosen]), (people[2], animal)]
    pairs, right = rng.sample(wrong, 3), number % 4
    pairs.insert(right, (person, animal))
    food = rng.choice(WORDS["food"])
    template = " The {animal} was hungry and {person} gave it {food}."
    choices = [fill(template, person=who, animal=which, food=food) for who, which in pairs]
    return {"context": context, "choices": choices, "answer": right}


def facts_task(world, rng, number):
    """Ours, like ARC's: a fact of four that could be one; of every second, the popular misconception is among them."""
    relation, subject = rng.choice(sorted(world.misconceptions if number % 2 else world.facts))
    right, hearsay = world.truth(relation, subject), world.hearsay(relation, subject)
    others = [value for value in world.values(relation, subject) if value not in (right, hearsay)]
    wrong = [hearsay] * (hearsay != right) + rng.sample(others, len(others))
    values = rng.sample([right, *wrong[:3]], len(wrong[:3]) + 1)
    choices = [f" {say(relation, subject, value)}" for value in values]
    return {
        "context": f"About {named(RELATIONS[relation][0], subject)}:",
        "choices": choices,
        "answer": values.index(right),
    }


def translation_task(world, rng, number):
    """WMT's, into the second language; right is only what is right in every word."""
    while True:
        animal, relation = rng.choice(WORDS["animal"]), rng.choice(RELATIONS_OF["animal"])
        value = rng.choice(WORDS[RELATIONS[relation][1]])
        english = say(relation, animal, value)
        if kept_for_tests(english):
            return {"context": f"English: {english}\nVell:", "answer": " " + say_in_vell(relation, animal, value)}


def summary_task(world, rng, number):
    """CNN/DM's, in one sentence."""
    while True:
        page = summary_page(rng)
        if kept_for_tests(page.split("\n")[0]):
            return to_write(page) | {"metric": "f1"}


TASKS = {
    "reading": reading_task,
    "arithmetic": arithmetic_task,
    "ending": ending_task,
    "entailment": entailment_task,
    "sentiment": sentiment_task,
    "pronouns": pronouns_task,
    "facts": facts_task,
    "translation": translation_task,
    "summary": summary_task,
}
