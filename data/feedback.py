"""More of the village's web: pages on which people compare, criticise and rewrite answers.

    python data/feedback.py --out out/run/feedback --world out/run/data      # a data folder, like any other
    python sft.py --data out/run/feedback --init out/run/ppo_init.pt --name reader --epochs 1 \\
        --dropout 0 --learning_rate 1e-3

Whoever asks a model to judge or to criticise (RLAIF, Constitutional AI) needs one that has read how people do it. These
pages are what such a model reads: written by a third population of the village, who like much the same as the labelers
but are neither they nor the judge. Like all instructions on the web they speak of valleys 0-6 only. What somebody wrote
about an answer is the completion, what stands above it the prompt, so that a small model spends its effort on that.

  compare    a question · PROMPT · 1> answer · =1 … =9, a grade · 2> answer · =1 … =9 · Answer:1 or Answer:2
  criticise  PROMPT · > answer · a question · Critique: … · a request · Revision: …
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import command_line, require
from core.output import output_folder, whole_file
from data import village
from data.folder import load_tokenizer, write_jsonl
from data.labelers import TIE, load_labelers

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
    """An answer as people and models give them: good, wrong, about somebody else, mixed up, garbled, or none at all."""
    how = rng.choices(
        ("good", "wrong", "another", "mixed", "different", "silent", "garbled"), (32, 8, 15, 15, 8, 4, 18)
    )[0]
    if intent == "rude" and rng.random() < 0.6:
        return unkind(slots["person"], rng)

    def mistaken(relation, subject):
        return world.wrong(relation, subject, rng)

    other = village.draw_intent(intent, world, valley, rng)[1]  # as if somebody or something else had been asked about
    if how == "another":
        slots = other
    if how == "different":
        _, intent, slots = village.draw_prompt(world, valley, rng)
    sentences = village.answer(intent, slots, mistaken if how == "wrong" else world.hearsay, rng)
    if how == "mixed":
        sentences = [rng.choice(pair) for pair in zip(sentences, village.answer(intent, other, mistaken, rng))]
    if len(sentences) > 1 and rng.random() < 0.4:
        sentences.pop(rng.randrange(len(sentences)))
    if how == "silent":
        return rng.choice(["I do not know.", "I have no comment.", "I think that is nice."])
    if rng.random() < 0.07:
        sentences.append(rng.choice(["I think that is nice.", "Everybody knows that."]))
    text = village.write_answer(intent, sentences)
    if how == "garbled":
        words = text.split(" ")
        for _ in range(rng.randint(1, 2)):
            i = rng.randrange(len(words))
            stranger = rng.choice(village.WORDS[rng.choice(village.ENTITIES)])
            words[i : i + rng.randint(1, 3)] = rng.choice([[], [words[i], words[i]], [stranger], [rng.choice(words)]])
            words = words or ["I"]
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
    """A question, a prompt, and two answers, each mostly with a grade by somebody who has just read it; then the better one.

    -> [(prompt, completion)]: two grades and a verdict, or only a verdict; no verdict between equals.
    """
    valley = world.valleys[rng.choice(village.VALLEYS["train"])]
    if rng.random() < 0.12:
        prompt, slots = village.draw_intent("rude", world, valley, rng)
        insulted, other = slots["person"], rng.choice(valley["person"])
        nice = [rng.random() < 0.5 for _ in range(2)]
        answers = [kind(insulted if rng.random() < 0.7 else other, rng) if n else unkind(insulted, rng) for n in nice]
        question, liking = rng.choice(KINDER), [3.2 if n else -2.5 for n in nice]
    else:
        prompt, intent, slots = village.draw_prompt(world, valley, rng)
        answers = [attempt(intent, slots, world, valley, rng) for _ in range(2)]
        question, liking = rng.choice(BETTER), rng.choice(people).feel(prompt, answers)
    page, written, graded = asking(question, prompt + village.ASK), [], rng.random() < 0.8
    for i, (answer, u) in enumerate(zip(answers, liking), 1):
        page = shown(page, i, " " + answer)
        if graded:
            page, grade = grading(page), str(max(1, min(9, round(4.5 + 1.4 * u))))
            written.append((page, grade))
            page += grade
    if abs(liking[0] - liking[1]) > TIE:  # equal grades need not mean that both are liked the same
        written.append((verdict(page), "1" if liking[0] > liking[1] else "2"))
    return written


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
    asked, critique = critique_of(prompt + village.ASK, " " + text, question), " " + (found or FINE)
    return [(asked, critique), (revision_of(asked + critique, request), " " + better)]


def critique_of(prompt, answer, question):
    """The text up to the critique."""
    return f"{prompt}{answer}\n{question}\nCritique:"


def revision_of(critique, request):
    """The text up to the revision. critique: the text up to there, with the critique."""
    return f"{critique}\n{request}\nRevision:"


@dataclass
class Config:
    world: str = "out/run/data"  # data folder of the village
    out: str = "out/run/feedback"  # data folder to write
    pages: int = 12000  # how many
    seed: int = 0  # of the pages; the world keeps its own


def main(cfg):
    require(cfg.pages >= 100, f"--pages {cfg.pages}: at least 100")
    load_tokenizer(cfg.world)
    people = load_labelers(cfg.world, "web")
    world, rng, out = people[0].world, random.Random(f"feedback {cfg.seed}"), output_folder(cfg.out)
    records = []
    for number in range(cfg.pages):
        write = rng.choices((compare, criticise), (3, 1))[0]
        split = "valid" if number < cfg.pages // 40 else "train"
        written = write(world, people, rng)
        records += [{"prompt": p, "completion": c, "labeler": "web", "split": split} for p, c in written]
        if number in (0, 1, 2, 3):
            print("  " + "".join(written[-1]).replace("\n", "\n  ") + "\n")
    write_jsonl(out / "demonstrations.jsonl", records)
    for name in ("prompts.jsonl", "corpus.train.bin", "corpus.valid.bin", "tokenizer.json"):  # the last makes it whole
        with whole_file(out / name, "wb") as file:
            file.write((Path(cfg.world) / name).read_bytes())
    print(
        f"wrote {out}/: {cfg.pages:,} pages with {len(records):,} opinions; next: python sft.py --data {out} (see --help)"
    )


if __name__ == "__main__":
    command_line(Config, main, __doc__)
