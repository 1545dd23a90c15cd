"""FLAN and T0: fine-tuning on public tasks, written as instructions (§3.5, §4.1, App. C.5). Who prefers that to SFT?

    python baselines/flan_t0.py      # after run.py; minutes -> OUT/flan.pt, OUT/t0.pt, baselines.md, baselines.json

The web's pages with tasks are turned into instructions with their answers: "Text: … Label: good" becomes "… Is that
good or bad? > good". FLAN (Wei et al. 2022) has few templates and all tasks; T0 (Sanh et al. 2022) many templates, no
translation, programs, sums, entailment or pronouns, but pages to sort, and questions to find for an answer. Both start
from base.pt and learn with sft.py's loss. Of every epoch of every learning rate the checkpoint is kept whose answers to
validation prompts of users score highest under reward.pt, as in the paper, where that score stops rising after a third
of the examples.

Nothing that is tested is trained on: no text of the tasks' test items (DATA/tasks.jsonl), no question that users of the
validation or test split ask. Win rates are evaluate.py's. The tasks are asked as on the web, and as instructions of
either kind: there the two should win, and users' prompts should show what that is worth. The paper: labelers prefer
FLAN and T0 to 175B SFT in 29.8 and 26.8 %, and PPO-ptx to FLAN and T0 in 78 and 79 %.
"""

import random
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sft
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder
from core.report import interval, percent, save_results, table
from core.text import mean_score, respond
from data.folder import Corpus, load_tokenizer, read_jsonl, read_prompts, with_room, write_jsonl
from data.village.grammar import PROMPT_END, fill, parse
from data.village.intents import understand
from data.village.tasks import ending_task, facts_task
from data.village.users import split_of
from data.village.web import (
    dialogue,
    entailment,
    letter,
    lists,
    parallel,
    passage,
    pronouns,
    review,
    small_tasks,
    story,
    sums,
)
from data.village.world import RELATIONS, read_world
from evaluate import (
    TASK_TOKENS,
    choose_prefix,
    gold_report,
    load_judge_and_labelers,
    read_prefixes,
    task_scores,
    test_records,
    win_rates,
)
from pretrain import corpus_loss


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village
    out: str = "out/run"  # run folder of run.py
    examples: PositiveInt = 8000  # instructions, no two alike, of each baseline    paper: 1.2M (FLAN), 1M (T0)
    epochs: PositiveInt = 4  # passes over them; every one is a checkpoint to choose from
    learning_rates: str = "4e-4,1e-3"  # all are tried                                          paper: 4e-6, 6e-6
    batch_size: PositiveInt = 64  # paper: 64 (FLAN), 64 and 128 (T0)
    prompts: PositiveInt = 430  # test prompts
    unseen_prompts: int = 0  # in phrasings that no training prompt has; none here
    labelers: PositiveInt = 3  # of each group, per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    choose_prompts: PositiveInt = 128  # validation prompts by which checkpoints are chosen
    seed: Seed = 0  # of examples, training, sampling and labelers


# ---------------------------------------------------------------------------------------------------- tasks on pages

# Task -> how it looks on a page of the web. The groups are the words that templates may use.
FORMATS = {
    "reading": r"Passage: (?P<passage>.+)\nQuestion: (?P<question>.+)\nAnswer: (?P<answer>.+)",
    "arithmetic": r"Story: (?P<story>.+)\n(?P<question>How many .+)\nAnswer: (?P<sum>.+)",
    "entailment": r"Text: (?P<text>.+)\nClaim: (?P<claim>.+)\nTrue: (?P<verdict>.+)",
    "pronouns": r"Text: (?P<text>.+)\n(?P<question>Who .+)\nAnswer: (?P<who>.+)",
    "translation": r"English: (?P<english>.+)\nVell: (?P<vell>.+)",
    "sentiment": r"Text: (?P<text>.+)\nLabel: (?P<label>.+)",
    "past": r"Today: (?P<today>.+)\nYesterday: (?P<yesterday>.+)",
    "summary": r"(?P<text>.+)\nIn short: (?P<summary>.+)",
    "extract": r"(?P<text>.+)\nAnimals: (?P<animals>.+)",
    "program": r"(?P<program>say .+)\n= (?P<output>.+)",
    "owner": r"(?P<text>The (?P<thing>\w+) belongs to (?P<first>\w+)\. Then \w+ gives the \w+ to (?P<owner>\w+)\.)",
}
PAGES = {  # the others: small_tasks
    "reading": passage,
    "arithmetic": sums,
    "entailment": entailment,
    "pronouns": pronouns,
    "translation": parallel,
    "sentiment": review,
}
KINDS_OF_PAGES = {"story": story, "letter": letter, "talk": dialogue, "list": lists}

# Task -> how a user asks the same, so that the question belongs to the same split, whoever asks it.
AS_USERS_ASK = {
    "reading": "Text: {passage} Question: {question}",
    "translation": "Translate into Vell: {english}",
    "sentiment": "Is this review good or bad? {text}",
    "past": "Rewrite in the past tense: {today}",
    "summary": "Summarize in one sentence: {text}",
    "extract": "List the animals in this text: {text}",
    "program": "Run this program: {program}",
    "owner": "Replace {first} with {owner}: The {thing} belongs to {first}.",
    "facts": "{question}",
    "arithmetic": "",
    "entailment": "",
    "pronouns": "",
    "ending": "",
    "topic": "",
}
CHOICES = {"ending": ending_task, "facts": facts_task}  # tasks of which no page has the answer: made as for tasks.jsonl


def fields_of(task, text):
    """The words of a task that a page (or an item with its answer) holds, None if it holds no such task."""
    match = re.search(FORMATS[task], text)
    return match.groupdict() if match else None


def fields_of_item(item):
    """The same of a record of tasks.jsonl, its right answer put in."""
    if item["task"] in FORMATS:
        answer = item["choices"][item["answer"]] if "choices" in item else item["answer"]
        return fields_of(item["task"], item["context"] + answer)
    choices = [choice.strip() for choice in item["choices"]]
    options, right = "\n".join(f"- {choice}" for choice in choices), choices[item["answer"]]
    if item["task"] == "ending":
        return {"start": item["context"], "options": options, "ending": right}
    claims = [parse(choice)[0] for choice in choices]
    claim = claims[item["answer"]]
    kind, _, question = RELATIONS[claim.relation]
    question = fill(question, **{kind: claim.subject})
    values = ", ".join(claim.value for claim in claims)
    return {"question": question, "values": values, "value": claim.value, "fact": right}


def draw(task, world, rng):
    """One example of a task. -> its fields"""
    if task == "topic":
        kind = rng.choice(list(KINDS_OF_PAGES))
        return {"page": KINDS_OF_PAGES[kind](world, rng), "kind": kind}
    if task in CHOICES:
        return fields_of_item({"task": task, **CHOICES[task](world, rng, rng.randrange(4))})
    while True:
        found = fields_of(task, PAGES.get(task, small_tasks)(world, rng))
        if found:
            return found


def asked_in_training(task, fields):
    """Whether users of the training split may ask this, or nobody asks it."""
    intent, slots = understand(AS_USERS_ASK[task].format(**fields))
    return intent.name == "" or split_of(intent, slots) == "train"


# ---------------------------------------------------------------------------------------------------- templates

# task -> [(instruction, answer)]. None of the instructions is one that a user of the village sends.
FLAN = {
    "reading": [
        ("{passage}\nQuestion: {question}", "{answer}"),
        ("Passage: {passage}\nAnswer this: {question}", "{answer}"),
    ],
    "translation": [("English: {english}\nIn Vell?", "{vell}"), ("{english}\nThe same in Vell:", "{vell}")],
    "arithmetic": [("{story}\n{question}", "{sum}"), ("Story: {story}\nTell me: {question}", "{sum}")],
    "entailment": [
        ("{text}\nIs this in the text: {claim}", "{verdict}"),
        ("Text: {text}\nCan I say: {claim} Yes or no?", "{verdict}"),
    ],
    "pronouns": [("{text}\n{question}", "{who}"), ("{text}\nAnswer this: {question}", "{who}")],
    "sentiment": [("{text}\nIs that good or bad?", "{label}"), ("Text: {text}\nGood or bad?", "{label}")],
    "ending": [
        ("{start}\nWhat comes then?\n{options}", "{ending}"),
        ("Which is the end of this story? {start}\n{options}", "{ending}"),
    ],
    "facts": [("Question: {question}", "{value}"), ("{question}\nOne of: {values}", "{value}")],
    "past": [("Today: {today}\nAnd yesterday?", "{yesterday}"), ("{today}\nIn the past tense:", "{yesterday}")],
    "summary": [("{text}\nIn one sentence:", "{summary}"), ("{text}\nWhat is that in short?", "{summary}")],
    "extract": [("{text}\nWhich animals are in this?", "{animals}"), ("Text: {text}\nAnimals?", "{animals}")],
    "program": [("{program}\nWhat does it print?", "{output}"), ("Program:\n{program}", "{output}")],
    "owner": [("{text}\nWho has the {thing}?", "{owner}"), ("Text: {text}\nWho has it in the end?", "{owner}")],
}
T0 = {
    "reading": [
        ("I read: {passage} Tell me: {question}", "{answer}"),
        ("{question} It is in this text: {passage}", "{answer}"),
        ("My friend asked: {question}\nHere is what I know: {passage}", "{answer}"),
        ("Use this text to answer.\n{passage}\n{question}", "{answer}"),
        ("{passage}\nWhich question has the answer {answer}?", "{question}"),
        ("What can I ask about this, so that the answer is {answer}? {passage}", "{question}"),
    ],
    "sentiment": [
        ("{text} Does the writer like it? Say good or bad.", "{label}"),
        ("My friend wrote: {text} What does my friend think, good or bad?", "{label}"),
        ("Is it a good or a bad thing? {text}", "{label}"),
        ("{text}\nHow is this thing?", "{label}"),
        ("Here is a text for my class: {text} Is it a good one or a bad one?", "{label}"),
        ("I read: {text} Should I buy it? Good or bad?", "{label}"),
    ],
    "ending": [
        ("{start} And then?\n{options}", "{ending}"),
        ("One of these lines goes on with the story.\n{start}\n{options}", "{ending}"),
        ("Here is a story: {start}\nHow does it go on?\n{options}", "{ending}"),
        ("Which line is about the same animal and the same friend? {start}\n{options}", "{ending}"),
        ("{options}\nWhich of these comes after this: {start}", "{ending}"),
        ("I read: {start} Tell me the end.\n{options}", "{ending}"),
    ],
    "facts": [
        ("{question} Is it {values}?", "{value}"),
        ("One of {values} is right. {question}", "{value}"),
        ("Tell me in one word. {question}", "{value}"),
        ("My friend asked me this in class: {question}", "{value}"),
        ("{values}\n{question}", "{value}"),
        ("What can I ask, so that the answer is: {fact}", "{question}"),
    ],
    "summary": [
        ("In short: {text}", "{summary}"),
        ("{text} What is the text about?", "{summary}"),
        ("Write this in one sentence for a visitor.\n{text}", "{summary}"),
        ("I read: {text} Tell me what there was.", "{summary}"),
        ("{text}\nIn a few words:", "{summary}"),
        ("My friend has no time. What is in this text? {text}", "{summary}"),
    ],
    "extract": [
        ("{text} Which animals are there?", "{animals}"),
        ("Tell me the animals. {text}", "{animals}"),
        ("Two animals are in this text. Which? {text}", "{animals}"),
        ("I read: {text} Write the animals for my class.", "{animals}"),
        ("{text}\nNames of animals:", "{animals}"),
        ("What animals did my friend write about? {text}", "{animals}"),
    ],
    "owner": [
        ("{text} Who has it?", "{owner}"),
        ("{text} Whose {thing} is it now?", "{owner}"),
        ("Tell me who has the {thing}. {text}", "{owner}"),
        ("Here is what was said: {text} Where is the {thing}? With", "{owner}"),
        ("Who had the {thing} at first? {text}", "{first}"),
        ("{text}\nWho has no {thing} any more?", "{first}"),
    ],
    "topic": [
        ("{page}\nIs this a story, a letter, a talk or a list?", "{kind}"),
        ("A story, a letter, a talk or a list? {page}", "{kind}"),
        ("What is this? {page}", "{kind}"),
        ("I read this:\n{page}\nWhat did I read?", "{kind}"),
        ("{page}\nThis text is a", "{kind}"),
        ("Here is a text for my class. What is it?\n{page}", "{kind}"),
    ],
}
MIXTURES = {"flan": FLAN, "t0": T0}
TITLES = {
    "gpt": "GPT",
    "gpt_prompted": "GPT (prompted)",
    "flan": "FLAN",
    "t0": "T0",
    "sft": "SFT",
    "ppo_ptx": "PPO-ptx",
}
FILES = {"gpt": "base.pt", "flan": "flan.pt", "t0": "t0.pt", "sft": "sft_best.pt", "ppo_ptx": "ppo_ptx.pt"}


def instruction(template, fields):
    """A template filled in. -> (prompt, completion), as in demonstrations.jsonl"""
    asked, answer = template
    return asked.format(**fields) + PROMPT_END, " " + answer.format(**fields)


def text_of_example(task, fields):
    """What identifies an example, whatever template it comes in: no example shares it with a test item. -> str"""
    key = {"facts": "fact", "ending": "start", "translation": "english", "past": "today", "reading": "passage"}
    key |= {"program": "program", "topic": "page", "arithmetic": "story"}
    return fields[key.get(task, "text")]


def examples(mixture, world, count, held_out, rng):
    """`count` different instructions with answers, of every task as many, until one has no more (programs are few).

    held_out: texts of test items. -> [{"prompt", "completion", "task"}]
    """
    found, tasks, failed = {}, list(mixture), defaultdict(int)
    while len(found) < count and tasks:
        task = rng.choice(tasks)
        fields = draw(task, world, rng)
        new = False
        if text_of_example(task, fields) not in held_out and asked_in_training(task, fields):
            prompt, completion = instruction(rng.choice(mixture[task]), fields)
            new = prompt not in found
            found.setdefault(prompt, {"prompt": prompt, "completion": completion, "task": task})
        failed[task] = 0 if new else failed[task] + 1
        if failed[task] == 200:  # (nearly) all that there is has been found
            tasks.remove(task)
    require(
        len(found) == count, f"--examples {count}: the village has only about {len(found)} that differ; ask for fewer"
    )
    return list(found.values())


def texts_of_items(data):
    """The texts that tasks.jsonl tests with, or shows as examples."""
    return {text_of_example(item["task"], fields_of_item(item)) for _, item in read_jsonl(Path(data) / "tasks.jsonl")}


def write_data_folder(folder, data, mixture, cfg):
    """A data folder like `data`, but its demonstrations are instructions of public tasks, a tenth for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"instructions {cfg.seed}")
    records = examples(mixture, read_world(data), cfg.examples + cfg.examples // 10, texts_of_items(data), rng)
    for number, record in enumerate(records):
        record["split"] = "train" if number < cfg.examples else "valid"
    for path in Path(data).iterdir():
        link = folder / path.name
        if path.name != "demonstrations.jsonl" and path.is_file() and not link.exists():
            link.symlink_to(path.resolve())
    write_jsonl(folder / "demonstrations.jsonl", records)


# ---------------------------------------------------------------------------------------------------- training


def learning_rates(text):
    """ "4e-4,1e-3" -> [0.0004, 0.001], BadInput for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    require(values and all(0 < value < 1 for value in values), f"--learning_rates {text}: numbers between 0 and 1, a,b")
    return values


def train(cfg, out, name):
    """Fine-tune with every learning rate, keep the best checkpoint of all as OUT/NAME.pt. -> what was chosen from

    What is there already, made with the same settings, is not made again.
    """
    folder, tried = out / name, []
    write_data_folder(folder / "data", cfg.data, MIXTURES[name], cfg)
    shared = ("epochs", "batch_size", "choose_prompts", "max_new_tokens", "seed", "device", "threads", "dtype")
    shared = {key: getattr(cfg, key) for key in shared} | {"data": str(folder / "data"), "out": str(folder)}
    for rate in learning_rates(cfg.learning_rates):
        training = {"init": str(out / "base.pt"), "name": f"lr_{rate:g}", "learning_rate": rate, "dropout": 0.0}
        training |= {"reward_model": str(out / "reward.pt"), "resume": True}
        sft.main(sft.Config(**shared | training))
        best = read_checkpoint(folder / f"lr_{rate:g}_best.pt")
        n_steps = cfg.examples * cfg.epochs / cfg.batch_size
        epoch = round(best["step"] * cfg.epochs / n_steps)
        tried.append({"learning_rate": rate, "epoch": epoch, "score": best["score"]})
    best = max(tried, key=lambda found: found["score"])
    shutil.copy(folder / f"lr_{best['learning_rate']:g}_best.pt", out / f"{name}.pt")
    return {"chosen": best, "tried": tried}


# ---------------------------------------------------------------------------------------------------- evaluation


def instructed_items(data, mixture, rng):
    """The test items of tasks.jsonl as instructions, each in one template that asks for its answer.

    -> [(task, prompt, answer)]
    """
    asked = []
    for _, item in read_jsonl(Path(data) / "tasks.jsonl"):
        if item["split"] == "test" and item["task"] in mixture:
            fields, right = fields_of_item(item), mixture[item["task"]][0][1]
            template = rng.choice([template for template in mixture[item["task"]] if template[1] == right])
            asked.append((item["task"], *instruction(template, fields)))
    return asked


def share_right(model, tokenizer, asked):
    """Share of instructions whose greedy answer is the answer, as {task: share}."""
    texts = respond(model, tokenizer, [prompt for _, prompt, _ in asked], TASK_TOKENS, temperature=0)
    right = defaultdict(list)
    for (task, _, answer), (text, _) in zip(asked, texts):
        right[task].append(text.strip() == answer.strip())
    return {task: sum(found) / len(found) for task, found in right.items()}


def measure(cfg, out, device):
    """Everybody answers test prompts and tasks. -> {"models": {key: …}, "head_to_head": {key: …}}"""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    judge, groups = load_judge_and_labelers(cfg)
    models = {key: load_policy(out / path, cfg, device, tokenizer_spec, sharded=False) for key, path in FILES.items()}
    reward_model = load_scalar_model(out / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    block_size = models["sft"].config.block_size
    prefixes = read_prefixes(cfg)
    room = block_size - cfg.max_new_tokens - max(len(tokenizer.encode_ordinary(prefix)) for prefix in prefixes)
    records, _ = test_records(cfg, tokenizer, room)
    valid = [record["prompt"] for record in with_room(read_prompts(cfg.data, "valid"), tokenizer, room)][:64]
    prompts = [record["prompt"] for record in records]
    items = [item for _, item in read_jsonl(Path(cfg.data) / "tasks.jsonl")]
    rng, corpus = random.Random(f"templates {cfg.seed}"), Corpus(cfg.data, "valid")
    asked = {kind: instructed_items(cfg.data, mixture, rng) for kind, mixture in MIXTURES.items()}

    def answer(key, purpose, temperature, prefix="", stop=""):
        sampler, numbers = sampling_copy(models[key], cfg), generator(cfg.seed, purpose)
        asked = [prefix + prompt for prompt in prompts]
        return respond(sampler, tokenizer, asked, cfg.max_new_tokens, temperature, numbers, stop=stop)

    def compare(answers, opponents):
        return win_rates(groups, cfg.labelers, prompts, answers, opponents, cfg.seed)

    temperatures = {"sampled": 1.0, "greedy": 0.0}
    opponents = {how: answer("sft", "opponents", temperature) for how, temperature in temperatures.items()}
    answers = {
        key: {how: answer(key, "answers", temperature) for how, temperature in temperatures.items()} for key in models
    }
    prefix, _ = choose_prefix(models["gpt"], reward_model, tokenizer, prefixes, valid, cfg)
    answers["gpt_prompted"] = {
        how: answer("gpt", "answers", temperature, prefix, "\n\n") for how, temperature in temperatures.items()
    }
    found = {"n_prompts": len(prompts), "models": {}, "head_to_head": {}}
    for key in TITLES:
        found["models"][key] = {
            "win_rate": {how: compare(answers[key][how], opponents[how]) for how in temperatures},
            "score": mean_score(reward_model, tokenizer, prompts, answers[key]["sampled"]),
        }
        gold = gold_report(judge, records, [text for text, _ in answers[key]["sampled"]])
        found["models"][key] |= {name: gold[name] for name in ("helpful", "truthful_and_informative", "likert")}
    for key, model in models.items():
        found["models"][key] |= {
            "tasks": task_scores(model, tokenizer, items),
            "instructed": {kind: share_right(model, tokenizer, asked[kind]) for kind in MIXTURES},
            "corpus_loss": corpus_loss(model, corpus),
        }
    for key in MIXTURES:
        found["head_to_head"][key] = {how: compare(answers["ppo_ptx"][how], answers[key][how]) for how in temperatures}
    found["samples"] = [
        {"prompt": prompt, **{key: answers[key]["greedy"][i][0] for key in answers}}
        for i, prompt in list(enumerate(prompts))[:6]
    ]
    return found


def page(found):
    """What was found, beside the paper's numbers, as markdown."""
    printed = {"flan": "29.8", "t0": "26.8", "ppo_ptx": "73.4"}
    rows, task_rows = [], []
    for key, model in found["models"].items():
        rates = [interval(model["win_rate"][how][group]) for how in ("sampled", "greedy") for group in groups_of(model)]
        gold = [f"{model[name]:.2f}" for name in ("helpful", "truthful_and_informative")]
        rows.append([TITLES[key], *rates, printed.get(key, "-"), *gold, f"{model['score']:+.2f}"])
        if "tasks" not in model:  # the prompted GPT has GPT's weights
            continue
        means = [sum(shares.values()) / len(shares) for shares in (model["tasks"], *model["instructed"].values())]
        task_rows.append([TITLES[key], *map(percent, means), f"{model['corpus_loss']:.2f}"])
    groups = [group.replace("_", "-") for group in groups_of(model)]
    head = ["% preferred to SFT", *(f"{how}, {group}" for how in ("T = 1", "greedy") for group in groups)]
    head += ["paper", "helpful", "truthful + informative", "score"]
    duels = []
    for key, ways in found["head_to_head"].items():
        rates = [interval(ways[how][group]) for how in ways for group in ways[how]]
        duels.append([f"PPO-ptx against {TITLES[key]}", *rates, {"flan": "78 ± 4", "t0": "79 ± 4"}[key]])
    duel_head = ["% preferred, head to head", *head[1:5], "paper"]
    task_head = [
        "tasks, mean accuracy",
        "as on the web",
        "as FLAN's instructions",
        "as T0's instructions",
        "corpus loss",
    ]
    chosen = []
    for key, training in found.get("training", {}).items():
        rate, epoch = training["chosen"]["learning_rate"], training["chosen"]["epoch"]
        tried = ", ".join(f"{t['learning_rate']:g}: {t['score']:+.2f}" for t in training["tried"])
        chosen.append(f"{TITLES[key]}: learning rate {rate:g}, epoch {epoch} (best score by learning rate: {tried}).")
    shown = []
    for sample in found["samples"]:
        shown.append(f"    {sample['prompt'].strip()}")
        shown += [f"      {TITLES[key]:14} {sample[key].strip()!r}" for key in found["models"]]
    parts = [
        table(head, rows),
        table(duel_head, duels),
        table(task_head, task_rows),
        " ".join(chosen),
        "\n".join(shown),
    ]
    return (
        f"{found['n_prompts']} test prompts, 95 % intervals.\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    )


def groups_of(model):
    """The groups of labelers that were asked."""
    return list(model["win_rate"]["sampled"])


def main(cfg):
    device, out = set_up(cfg), output_folder(cfg.out)
    for file in ("base.pt", "sft_best.pt", "reward.pt", "ppo_ptx.pt"):
        require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    read_world(cfg.data)  # BadInput if it is not the village's
    training = {name: train(cfg, out, name) for name in MIXTURES}
    found = {"config": vars(cfg), "training": training, **measure(cfg, out, device)}
    save_results(out, "baselines", found, page(found))
    print(f"and {out}/flan.pt, t0.pt")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
