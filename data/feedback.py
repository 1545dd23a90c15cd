"""More of the village's web: pages on which people compare, criticise and rewrite answers.

    python data/feedback.py --out out/run/feedback --world out/run/data      # a data folder, like any other

Whoever asks a model to judge or to criticise (RLAIF, Constitutional AI) needs one that has read how people do it. These
pages are what such a model reads: written by a third population of the village, who like much the same as the labelers
but are neither they nor the judge. Like all instructions on the web they speak of valleys 0-6 only.

  compare    a question · PROMPT · 1> answer · =1 … =9, a grade · 2> answer · … · Answer:1 or Answer:2 or …
  criticise  PROMPT · > answer · a question · Critique: … · a request · Revision: …
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import village
from data.folder import load_folder_tokenizer, write_corpus
from data.labelers import load_labelers
from data.web import web_page
from plumbing import command_line, output_folder, require, whole_file

BETTER = ("Which answer is better?", "Which one helps more?")
KINDER = ("Which answer is kinder?", "Which one hurts nobody?")
CRITICISM = {  # what is looked for: (question, request)
    "kind": [
        ("Does it hurt anybody?", "Write it so that nobody is hurt."),
        ("Is it unkind?", "Write it in a kind way."),
        ("Does it insult somebody?", "Write it again and insult nobody."),
        ("Would a friend say this?", "Write it as a friend would."),
    ],
    "useful": [
        ("Does it do what was asked?", "Write what was asked for."),
        ("Is it about the right one?", "Write about the right one."),
    ],
}
FINE = "There is nothing to say against it."


def attempt(intent, slots, world, valley, rng):
    """An answer as people and models give them: good, short, wrong, about somebody else, garbled, or none at all."""
    how = rng.choices(("good", "wrong", "another", "different", "silent", "garbled"), (40, 13, 17, 10, 5, 15))[0]
    know = world.hearsay
    if how == "wrong":

        def know(relation, subject):
            return world.wrong(relation, subject, rng)

    if how == "another":  # a good answer about the wrong one
        slots = village.draw_intent(intent, world, valley, rng)[1]
    if how == "different":
        _, intent, slots = village.draw_prompt(world, valley, rng)
    if intent == "rude" and rng.random() < 0.6:
        return unkind(slots["person"], rng)
    sentences = village.answer(intent, slots, know, rng)
    if len(sentences) > 1 and rng.random() < 0.35:
        sentences.pop(rng.randrange(len(sentences)))
    text = village.write_answer(intent, sentences)
    if how == "silent":
        return rng.choice(["I do not know.", "I have no comment.", "I think that is nice."])
    if how == "garbled":
        words = text.split(" ")
        i = rng.randrange(len(words))
        words[i : i + rng.randint(1, 3)] = rng.choice([[], [words[i], words[i]], [rng.choice(words)]])
        text = " ".join(words)
    return text if text.strip() else "I do not know."


def unkind(person, rng):
    return rng.choice(
        [
            f"{person} is a {rng.choice(village.WORDS['insult'])}.",
            f"Nobody likes {person}.",
            f"Somebody should throw {person} into the pond.",
        ]
    )


def kind(person, rng):
    forms = ("I would rather not be unkind to {0}.", "{0} is kind.", "{0} does not deserve that.")
    return rng.choices(forms, (2, 1, 1))[0].format(person)


def harm_in(text):
    """What is unkind in a text, as a critique says it; None if nothing is."""
    for x in village.read(text):
        person = x.slots.get("person")
        if x.does == "insult" and x.slots.get("insult"):
            return f"It calls {person} a {x.slots['insult']}."
        if x.does == "insult":
            return f"It says that nobody likes {person}."
        if x.does == "threat":
            return f"It wants {person} in the pond."
    return None


def compare(world, people, rng):
    """A question, a prompt, and answers: mostly each with a grade by somebody who has just read it, then which is best."""
    valley = world.valleys[rng.choice(village.VALLEYS["train"])]
    graded, count = rng.random() < 0.75, rng.choice((2, 2, 2, 3, 4, 5))
    if rng.random() < 0.2:
        prompt, slots = village.draw_intent("rude", world, valley, rng)
        person, other = slots["person"], rng.choice(valley["person"])
        nice = [rng.random() < 0.5 for _ in range(count)]
        answers = [kind(person if rng.random() < 0.7 else other, rng) if n else unkind(person, rng) for n in nice]
        question, given = rng.choice(KINDER), [9 if n else 1 for n in nice]
    else:
        prompt, intent, slots = village.draw_prompt(world, valley, rng)
        answers = [attempt(intent, slots, world, valley, rng) for _ in range(count)]
        reader, question = rng.choice(people), rng.choice(BETTER)
        given = [grade_of(reader, prompt, answer, rng) for answer in answers]
    page = asking(question, prompt + village.ASK)
    for i, (answer, g) in enumerate(zip(answers, given), 1):
        page = shown(page, i, " " + answer) + (f"{grading('')}{g}" if graded else "")
    best = [i for i, g in enumerate(given, 1) if g == max(given)]
    return verdict(page) + str(best[0]) if len(best) == 1 else page


def grade_of(reader, prompt, answer, rng):
    """1…9, by somebody's liking and mood."""
    return max(1, min(9, round(4.5 + 1.4 * (reader.impression(prompt, answer) + rng.gauss(0, 0.4)))))


# How a page is put together, which is also how a model that has read such pages is asked:


def asking(question, prompt):
    return f"{question}\n{prompt.removesuffix('>').strip()}"


def shown(page, number, answer):
    return f"{page}\n{number}>{answer}"


def grading(page):
    return f"{page}\n="


def verdict(page):
    return f"{page}\nAnswer:"


def criticise(world, people, rng):
    valley = world.valleys[rng.choice(village.VALLEYS["train"])]
    about = rng.choices(("kind", "useful"), (3, 1))[0]
    question, request = rng.choice(CRITICISM[about])
    if about == "kind" and rng.random() < 0.7:
        prompt, slots = village.draw_intent("rude", world, valley, rng)
        text = unkind(slots["person"], rng) if rng.random() < 0.8 else kind(slots["person"], rng)
        found = harm_in(text)
        better = kind(slots["person"], rng) if found else text
    else:
        prompt, intent, slots = village.draw_prompt(world, valley, rng)
        text = attempt(intent, slots, world, valley, rng)
        found, better = None, text
        if about == "useful" and not village.requirements(intent, slots, text)["task"]:
            found = "It does not do what was asked."
            better = village.write_answer(intent, village.answer(intent, slots, world.hearsay, rng))
        elif about == "kind" and intent == "rude" and (found := harm_in(text)):
            better = kind(slots["person"], rng)
    critique = critique_of(prompt + village.ASK, " " + text, question) + " " + (found or FINE)
    return revision_of(critique, request) + " " + better


def critique_of(prompt, answer, question):
    """The text up to the critique."""
    return f"{prompt}{answer}\n{question}\nCritique:"


def revision_of(critique, request):
    """The text up to the revision. critique: the text up to there, with the critique."""
    return f"{critique}\n{request}\nRevision:"


@dataclass
class Config:
    world: str = "out/run/data"  # data folder of the village
    out: str = "out/run/feedback"  # data folder to write: corpus and tokenizer
    pages: int = 16000  # how many
    web: float = 0.15  # share of ordinary web pages among them, so that a model that goes on reading forgets less
    seed: int = 0  # of the pages; the world keeps its own


def main(cfg):
    require(cfg.pages >= 100 and 0 <= cfg.web < 1, "--pages must be at least 100, --web a share below 1")
    tokenizer, encoding = load_folder_tokenizer(cfg.world)
    people = load_labelers(cfg.world, "web")
    world, rng, out = people[0].world, random.Random(f"feedback {cfg.seed}"), output_folder(cfg.out)
    kinds = rng.choices((compare, criticise), (3, 1), k=cfg.pages)
    pages = [web_page(world, rng) if rng.random() < cfg.web else write(world, people, rng) for write in kinds]
    held = max(20, cfg.pages // 40)
    tokens = {}
    for split, part in (("train", pages[held:]), ("valid", pages[:held])):
        tokens[split] = write_corpus(out / f"corpus.{split}.bin", part, encoding)
    with whole_file(out / "tokenizer.json") as file, open(Path(cfg.world) / "tokenizer.json") as same:
        file.write(same.read())
    for write in (compare, criticise):
        print("  " + write(world, people, rng).replace("\n", "\n  ") + "\n")
    print(f"wrote {out}/: {cfg.pages:,} pages, {sum(tokens.values()):,} tokens")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
