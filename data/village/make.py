"""Make the village's data folder: web, tokenizer, prompts, demonstrations, few-shot prefixes and public tasks.

    python data/village/make.py --out out/run/data           # a data folder (see data/folder.py), in seconds

data/village/__init__.py says what the village is, data/construct.py how prompts become the paper's prompt data set.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.config import PositiveInt, Seed, command_line, require
from core.output import output_folder, whole_file
from data.bpe import build_tokenizer, tokenizer_spec_from, train_bpe
from data.construct import construct, expand_few_shot, tables, use_case_mix
from data.folder import write_corpus, write_jsonl
from data.village.grammar import PROMPT_END
from data.village.intents import USE_CASES, find_intent, understand
from data.village.labelers import GROUPS, Labeler
from data.village.tasks import tasks
from data.village.users import COURTESIES, draw_prompt, draw_prompt_of, personal_details, prefixes, requests
from data.village.web import exams, web_page
from data.village.world import World


@dataclass
class Config:
    out: str = "out/run/data"  # the data folder to write
    seed: Seed = 0  # of the facts, the web, the users and the labelers
    vocab_size: PositiveInt = 1360  # of the tokenizer that is trained on the web       GPT-2: 50257
    web_pages: PositiveInt = 75000  # documents of the pretraining corpus
    users: PositiveInt = 500  # per valley; the first of each is a heavy user
    demonstrations: PositiveInt = 12725  # for SFT, training split                      paper: 12725 prompts
    exams: PositiveInt = 6000  # multiple-choice questions, which the reward model begins with
    task_items: PositiveInt = 120  # per public task, a quarter of them for few-shot examples


def main(cfg):
    least = {"vocab_size": 258, "web_pages": 100, "users": 2, "demonstrations": 20, "task_items": 8}
    for name, number in least.items():
        require(getattr(cfg, name) >= number, f"--{name} {getattr(cfg, name)}: at least {number}")
    out = output_folder(cfg.out)
    world, rng = World(cfg.seed), Random(f"data {cfg.seed}")

    # The web, and the tokenizer trained on it.
    pages = [web_page(world, rng) for _ in range(cfg.web_pages)]
    held_out = cfg.web_pages // 40
    corpus = {"train": pages[held_out:], "valid": pages[:held_out]}
    tokenizer_spec = tokenizer_spec_from(train_bpe(corpus["train"], cfg.vocab_size), "village")
    tokenizer = build_tokenizer(tokenizer_spec)

    # Prompts: what users sent, made into a data set as in the paper.
    sent = list(requests(world, rng, cfg.users))
    constructed, steps = construct(sent)
    prompts = use_case_mix(constructed, USE_CASES)
    steps = [("raw requests", len(sent), 0), *steps, ("use-case mix", len(prompts), len(constructed) - len(prompts))]

    # Demonstrations: mostly on prompts that labelers wrote themselves (paper Table 6), a tenth on customers' prompts.
    labelers = [Labeler(world, "training", number) for number in range(GROUPS["training"])]
    demonstrations, total = [], 0
    for split, count in (("train", cfg.demonstrations), ("valid", cfg.demonstrations // 8)):
        customers = [r["prompt"] for r in prompts if r["split"] == split and not find_intent(r["intent"]).rare]
        customers = rng.sample(customers, min(count // 10, len(customers)))
        demonstrations += [{"prompt": prompt, "source": "customer", "split": split} for prompt in customers]
        total += count
        own = prompts_of_labelers(world, split, total - len(demonstrations), labelers[0], rng)
        demonstrations += [{"prompt": prompt, "source": "labeler", "split": split} for prompt in own]
    for record in demonstrations:
        labeler, prompt = rng.choice(labelers), record["prompt"]
        record["completion"] = " " + labeler.demonstrate(prompt, rng)
        record["labeler"], record["use_case"] = labeler.name, understand(prompt)[0].use_case
        record["prompt"] = prompt + PROMPT_END
    for record in prompts:
        record["prompt"], record["source"] = record["prompt"] + PROMPT_END, "customer"

    # Everything is there: write it, each file whole or not at all.
    (out / "tokenizer.json").unlink(missing_ok=True)  # comes last: without it a folder is unfinished, and says so
    size = sum(write_corpus(out / f"corpus.{split}.bin", part, tokenizer) for split, part in corpus.items())
    (out / "comparisons.jsonl").unlink(missing_ok=True)  # of another world that was here before
    write_jsonl(out / "prompts.jsonl", prompts)
    write_jsonl(out / "demonstrations.jsonl", demonstrations)
    write_jsonl(out / "prefixes.jsonl", prefixes(world))
    write_jsonl(out / "exams.jsonl", exams(world, rng, cfg.exams))
    write_jsonl(out / "tasks.jsonl", tasks(world, rng, cfg.task_items))
    with whole_file(out / "village.json") as file:
        json.dump({"seed": cfg.seed}, file)
    construction = report(steps, demonstrations, prompts, tokenizer)
    with whole_file(out / "construction.txt") as file:
        file.write(construction + "\n")
    with whole_file(out / "tokenizer.json") as file:
        json.dump(tokenizer_spec, file)

    print(construction)
    print(f"\nweb: {cfg.web_pages:,} pages, {size:,} tokens, vocabulary {tokenizer.n_vocab}; one page:")
    print("  " + pages[0].replace("\n", "\n  "))
    written = "tokenizer, corpus, prompts, demonstrations, prefixes, tasks"
    print(f"wrote {out}/ ({written}); next: python pretrain.py --data {out}")


def prompts_of_labelers(world, split, count, labeler, rng):
    """At least `count` prompts that labelers thought up themselves. -> [prompt]

    One in twenty times it is three few-shot prompts (App. A.1), whose examples `labeler` solves. Rare intents hardly
    come up. What users add to a request, courtesies and invented personal details, is there, too.
    """
    prompts = []
    while len(prompts) < count:
        valley = rng.choice(world.valleys)
        prompt, intent, _ = draw_prompt(world, valley, rng, split)
        if intent.rare and rng.random() < 0.9:
            continue
        if rng.random() >= 0.05:
            addition = rng.choice([rng.choice(COURTESIES), personal_details(rng)]) if rng.random() < 0.15 else ""
            prompts.append(prompt + addition)
        else:  # one instruction with several query/response pairs
            queries = [draw_prompt_of(intent, world, valley, rng, split)[0] for _ in range(3)]
            solved = [(query + PROMPT_END, " " + labeler.demonstrate(query, rng)) for query in queries]
            prompts += [few_shot.removesuffix(PROMPT_END) for few_shot, _ in expand_few_shot(solved, rng)]
    return prompts


def report(steps, demonstrations, prompts, tokenizer):
    """The paper's tables about the data set, as text."""
    sizes, lengths = {}, {}
    for name, records, splits in (
        ("SFT", demonstrations, ("train", "valid")),
        ("RL", prompts, ("train", "valid", "test")),
    ):
        for split in splits:
            part = [record for record in records if record["split"] == split]
            if part:
                lengths[f"{name} {split}"] = [len(tokenizer.encode_ordinary(record["prompt"])) for record in part]
                sources = Counter(record["source"] for record in part)
                sizes[name, split] = {source: sources[source] for source in ("labeler", "customer")}
    return tables(steps, sizes, prompts, lengths)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
