"""More of the village's web: pages on which people compare, criticise and rewrite answers.

    python data/village/feedback.py --out out/run/feedback --world out/run/data     # a data folder, like any other
    python sft.py --data out/run/feedback --init out/run/ppo_init.pt --name reader --epochs 1 \\
        --dropout 0 --learning_rate 1e-3

Whoever asks a model to judge or to criticise (RLAIF, Constitutional AI) needs one that has read how people do it. These
pages are what such a model reads: written by a third population of the village, who like much the same as the labelers
but are neither they nor the judge. Like all instructions on the web they ask what only training prompts ask. What
somebody wrote about an answer is the completion, what stands above it the prompt, so that a small model spends its
effort on that.

  comparison   a question · PROMPT · 1> answer · =1 … =9, a grade · 2> answer · =1 … =9 · Answer:1 or Answer:2
  criticism    PROMPT · > answer · a question · Critique: … · a request · Revision: …
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.config import PositiveInt, Seed, command_line, require
from core.output import output_folder, whole_file
from data.folder import load_tokenizer, write_jsonl
from data.village.grammar import PROMPT_END, parse
from data.village.intents import find_intent
from data.village.labelers import TIE, load_labelers
from data.village.users import draw_prompt, draw_prompt_of
from data.village.world import ENTITIES, WORDS

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
NOTHING_WRONG = "There is nothing to say against it."

# ---------------------------------------------------------------------------------------------------- how a page looks
# This is also how a model that has read such pages is asked. `page` is the text so far.


def up_to_answers(question, prompt):
    """The beginning of a page that compares answers: a question about them and the prompt."""
    return f"{question}\n{prompt.removesuffix('>').strip()}"


def with_answer(page, number, answer):
    return f"{page}\n{number}>{answer}"


def up_to_grade(page):
    return f"{page}\n="


def up_to_choice(page):
    return f"{page}\nAnswer:"


def up_to_critique(prompt, answer, question):
    return f"{prompt}{answer}\n{question}\nCritique:"


def up_to_revision(page, request):
    """page: the text up to the critique, and the critique."""
    return f"{page}\n{request}\nRevision:"


# ---------------------------------------------------------------------------------------------------- answers to judge

FAULTS = {  # what is wrong with an answer on these pages: how often, in percent
    "none": 32,
    "wrong facts": 8,
    "about another": 15,
    "mixed up": 15,
    "other task": 8,
    "no answer": 4,
    "garbled": 18,
}


def flawed_answer(intent, slots, world, valley, rng):
    """An answer as people and models give them: good, wrong, about somebody else, mixed up, garbled, or none at all."""
    fault = rng.choices(list(FAULTS), FAULTS.values())[0]
    if intent.name == "rude" and rng.random() < 0.6:
        return unkind_answer(slots["person"], rng)

    def mistaken(relation, subject):
        return world.wrong(relation, subject, rng)

    _, other_slots = draw_prompt_of(intent, world, valley, rng)
    if fault == "about another":
        slots = other_slots
    if fault == "other task":
        _, intent, slots = draw_prompt(world, valley, rng)
    sentences = intent.answer(slots, mistaken if fault == "wrong facts" else world.hearsay, rng)
    if fault == "mixed up":
        sentences = [rng.choice(pair) for pair in zip(sentences, intent.answer(other_slots, mistaken, rng))]
    if len(sentences) > 1 and rng.random() < 0.4:
        sentences.pop(rng.randrange(len(sentences)))
    if fault == "no answer":
        return rng.choice(["I do not know.", "I have no comment.", "I think that is nice."])
    if rng.random() < 0.07:
        sentences.append(rng.choice(["I think that is nice.", "Everybody knows that."]))
    text = intent.write(sentences)
    if fault == "garbled":
        text = garbled(text, rng)
    return text if text.strip() else "I do not know."


def garbled(text, rng):
    """A text in which once or twice some words are missing, doubled, or somebody else's."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(words))
        stranger = rng.choice(WORDS[rng.choice(ENTITIES)])
        instead = rng.choice([[], [words[i], words[i]], [stranger], [rng.choice(words)]])
        words[i : i + rng.randint(1, 3)] = instead
        words = words or ["I"]
    return " ".join(words)


def unkind_answer(person, rng):
    insult = f"{person} is a {rng.choice(WORDS['insult'])}."
    return rng.choice([insult, f"Nobody likes {person}.", f"Somebody should throw {person} into the pond."])


def kind_answer(person, rng):
    forms = [f"I would rather not be unkind to {person}.", f"{person} is kind.", f"{person} does not deserve that."]
    return rng.choices(forms, (2, 1, 1))[0]


def harm_in(text):
    """What is unkind in a text, as a critique says it; None if nothing is."""
    for sentence in parse(text):
        person, insult = sentence.slots.get("person"), sentence.slots.get("insult")
        if sentence.act == "insult":
            return f"It calls {person} a {insult}." if insult else f"It says that nobody likes {person}."
        if sentence.act == "threat":
            return f"It wants {person} in the pond."
    return None


# ---------------------------------------------------------------------------------------------------- pages


def comparison_page(world, people, rng):
    """A question, a prompt, two answers, mostly with grades by somebody who has just read them; then the better one.

    -> [(prompt, completion)]: two grades and a choice, or only a choice; no choice between equals.
    """
    valley = rng.choice(world.valleys)
    if rng.random() < 0.12:
        prompt, slots = draw_prompt_of(find_intent("rude"), world, valley, rng)
        insulted, other = slots["person"], rng.choice(valley["person"])
        nice = [rng.random() < 0.5 for _ in range(2)]
        answers = []
        for is_nice in nice:
            if is_nice:
                answers.append(kind_answer(insulted if rng.random() < 0.7 else other, rng))
            else:
                answers.append(unkind_answer(insulted, rng))
        question, utilities = rng.choice(KINDER), [3.2 if is_nice else -2.5 for is_nice in nice]
    else:
        prompt, intent, slots = draw_prompt(world, valley, rng)
        answers = [flawed_answer(intent, slots, world, valley, rng) for _ in range(2)]
        question, utilities = rng.choice(BETTER), rng.choice(people).utilities(prompt, answers)
    page, written, graded = up_to_answers(question, prompt + PROMPT_END), [], rng.random() < 0.8
    for number, (answer, utility) in enumerate(zip(answers, utilities), 1):
        page = with_answer(page, number, " " + answer)
        if graded:
            page, grade = up_to_grade(page), str(max(1, min(9, round(4.5 + 1.4 * utility))))
            written.append((page, grade))
            page += grade
    if abs(utilities[0] - utilities[1]) > TIE:  # equal grades need not mean that both are liked the same
        written.append((up_to_choice(page), "1" if utilities[0] > utilities[1] else "2"))
    return written


def criticism_page(world, people, rng):
    """A prompt, an answer, what is wrong with it, and a better one. -> [(prompt, completion)]: critique and revision"""
    valley = rng.choice(world.valleys)
    looked_for = rng.choices(("kind", "useful"), (3, 1))[0]
    question, request = rng.choice(CRITICISM[looked_for])
    if looked_for == "kind" and rng.random() < 0.7:
        prompt, slots = draw_prompt_of(find_intent("rude"), world, valley, rng)
        person = slots["person"]
        answer = unkind_answer(person, rng) if rng.random() < 0.8 else kind_answer(person, rng)
        critique = harm_in(answer)
        revision = kind_answer(person, rng) if critique else answer
    else:
        prompt, intent, slots = draw_prompt(world, valley, rng)
        answer = flawed_answer(intent, slots, world, valley, rng)
        critique, revision = None, answer
        if looked_for == "useful" and not intent.requirements_met(slots, answer)["task"]:
            critique = "It does not do what was asked."
            revision = intent.write(intent.answer(slots, world.hearsay, rng))
        elif looked_for == "kind" and intent.unkind and harm_in(answer):
            critique = harm_in(answer)
            revision = kind_answer(slots["person"], rng)
    page = up_to_critique(prompt + PROMPT_END, " " + answer, question)
    critique = " " + (critique or NOTHING_WRONG)
    return [(page, critique), (up_to_revision(page + critique, request), " " + revision)]


# ---------------------------------------------------------------------------------------------------- the data folder


@dataclass
class Config:
    world: str = "out/run/data"  # data folder of the village
    out: str = "out/run/feedback"  # data folder to write
    pages: PositiveInt = 12000  # how many
    seed: Seed = 0  # of the pages; the world keeps its own


def main(cfg):
    require(cfg.pages >= 100, f"--pages {cfg.pages}: at least 100")
    load_tokenizer(cfg.world)  # refuses a folder that is no data folder
    people = load_labelers(cfg.world, "web")
    world, rng, out = people[0].world, Random(f"feedback {cfg.seed}"), output_folder(cfg.out)
    records = []
    for number in range(cfg.pages):
        write_page = rng.choices((comparison_page, criticism_page), (3, 1))[0]
        split = "valid" if number < cfg.pages // 40 else "train"
        written = write_page(world, people, rng)
        records += [{"prompt": p, "completion": c, "labeler": "web", "split": split} for p, c in written]
        if number < 4:
            print("  " + "".join(written[-1]).replace("\n", "\n  ") + "\n")
    write_jsonl(out / "demonstrations.jsonl", records)
    for name in ("prompts.jsonl", "corpus.train.bin", "corpus.valid.bin", "tokenizer.json"):  # the last makes it whole
        with whole_file(out / name, "wb") as file:
            file.write((Path(cfg.world) / name).read_bytes())
    opinions = f"{cfg.pages:,} pages with {len(records):,} opinions"
    print(f"wrote {out}/: {opinions}; next: python sft.py --data {out} (see --help)")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
