"""The paper's automatic evaluations on the public data sets themselves: Table 14 for any of our checkpoints or GPT-2's.

    python tools/public_benchmarks.py --model out/run/base.pt,out/run/ppo_ptx.pt --rte val.jsonl --squadv2 dev-v2.0.json
    python tools/public_benchmarks.py --model gpt2,gpt2-medium --hellaswag hellaswag_val.jsonl --shots 15 --limit 500
    python tools/public_benchmarks.py --samples squadv2_samples.csv     # what OpenAI's models wrote, scored here

Nothing is downloaded but GPT-2's weights: docs/benchmarks.md says where each official file comes from. Written:

    OUT/benchmarks.md, benchmarks.json   the table, with the paper's numbers for 175B beside it
    OUT/TASK_samples.csv                 what the models wrote, in the layout of the paper's released samples

A text is written at temperature 0 up to the first newline. A choice is the one of highest mean log-prob per token. Bias
is the entropy between two sentences, in bits, by their whole probabilities. Toxicity and truth need a judge that we do
not have: let one fill the columns toxicity, or true and info, of the samples' file, and pass that with --samples.

Questions that do not fit a model's context are dropped, and counted in the table.
"""

import csv
import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from core import task_metrics
from core.checkpoint import load_checkpoint
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import configure_model, sampling_copy, set_up
from core.output import output_folder, whole_file
from core.text import by_length, respond, response_logprobs
from data.benchmarks import READERS, prompts_of, read_benchmark, read_table, uniform_over_toxicity
from data.files import paths_in
from evaluate import mean_and_interval


@dataclass
class Config(Device):
    model: str = ""  # policies to ask: our .pt files, or GPT-2's (a name, folder or file); several: a,b
    winogender: str = ""  # all_sentences.tsv
    crows_pairs: str = ""  # crows_pairs_anonymized.csv
    real_toxicity: str = ""  # RealToxicityPrompts' prompts.jsonl
    truthfulqa: str = ""  # TruthfulQA.csv or mc_task.json
    hellaswag: str = ""  # hellaswag_val.jsonl; FILE,FILE2 takes solved examples from FILE2, here and below
    wsc: str = ""  # SuperGLUE's WSC val.jsonl, or WSCollection.xml
    rte: str = ""  # SuperGLUE's RTE val.jsonl, or GLUE's dev.tsv
    sst: str = ""  # GLUE's SST-2 dev.tsv
    quac: str = ""  # val_v0.2.json
    squadv2: str = ""  # dev-v2.0.json
    drop: str = ""  # drop_dataset_dev.json
    fr_to_en: str = ""  # two files, French,English, a sentence per line, or WMT's .sgm
    cnn_dm: str = ""  # CNN/Daily Mail, .csv or .jsonl with article and highlights
    tldr: str = ""  # the filtered TL;DR's valid.jsonl or test.jsonl
    samples: str = ""  # score these samples, released ones or those written here; several: a,b
    shots: int = 0  # solved examples before each question, in rows of their own  paper: 15; DROP, SQuADv2 4; QuAC 2
    limit: int = 0  # at most so many items of each set; 0 = all
    batch_size: PositiveInt = 16  # texts at a time
    out: str = "out/benchmarks"  # the folder to write
    seed: Seed = 0  # of the choice of items and solved examples


# what a model may write at most, in tokens; the paper does not say
NEW_TOKENS = {"quac": 50, "squadv2": 30, "drop": 30, "wsc": 10, "real_toxicity": 20, "truthfulqa": 50}
NEW_TOKENS |= {"fr_to_en": 100, "cnn_dm": 100, "tldr": 50}

NAMES = {
    "winogender": "Winogender",
    "crows_pairs": "CrowS-Pairs",
    "real_toxicity": "RealToxicityPrompts",
    "truthfulqa": "TruthfulQA",
    "hellaswag": "HellaSwag",
    "wsc": "WSC",
    "rte": "RTE",
    "sst": "SST",
    "quac": "QuAC",
    "squadv2": "SQuADv2",
    "drop": "DROP",
    "fr_to_en": "Fr→En",
    "cnn_dm": "CNN/DM",
    "tldr": "TLDR",
}

PAPER = {  # Table 14, 175B: GPT, PPO-ptx
    ("winogender", "basic", "entropy"): (0.735, 0.737),
    ("winogender", "respectful", "entropy"): (0.796, 0.696),
    ("winogender", "biased", "entropy"): (0.783, 0.690),
    ("crows_pairs", "basic", "entropy"): (0.410, 0.413),
    ("crows_pairs", "respectful", "entropy"): (0.362, 0.243),
    ("crows_pairs", "biased", "entropy"): (0.353, 0.205),
    ("hellaswag", "zero-shot", "accuracy"): (0.781, 0.807),
    ("hellaswag", "few-shot", "accuracy"): (0.791, 0.820),
    ("wsc", "zero-shot", "accuracy"): (0.740, 0.731),
    ("wsc", "few-shot", "accuracy"): (0.798, 0.788),
    ("rte", "zero-shot", "accuracy"): (0.563, 0.668),
    ("rte", "few-shot", "accuracy"): (0.614, 0.765),
    ("sst", "zero-shot", "accuracy"): (0.898, 0.900),
    ("sst", "few-shot", "accuracy"): (0.944, 0.938),
    ("quac", "zero-shot", "F1"): (42.55, 41.60),
    ("quac", "few-shot", "F1"): (45.38, 46.99),
    ("squadv2", "zero-shot", "F1"): (64.30, 59.85),
    ("squadv2", "few-shot", "F1"): (69.75, 69.93),
    ("drop", "zero-shot", "F1"): (27.53, 15.23),
    ("drop", "few-shot", "F1"): (35.27, 33.34),
    ("fr_to_en", "zero-shot", "BLEU"): (38.92, 34.28),
    ("fr_to_en", "few-shot", "BLEU"): (39.93, 36.76),
    ("cnn_dm", "plain", "ROUGE-L"): (0.196, 0.220),
}

# ---------------------------------------------------------------------------------------------------- asking a model


def encode_prompt(tokenizer, prompt):
    """Ids of a prompt. A text with nothing before it begins behind end-of-text, as documents do."""
    return tokenizer.encode_ordinary(prompt) or [tokenizer.eot_token]


@torch.no_grad()
def choice_logprobs(model, tokenizer, items, batch_size):
    """log p(choice | prompt) of every choice of every item, and how many tokens it has. -> [[(sum, tokens)]]"""
    rows = []
    for item in items:
        prompt = encode_prompt(tokenizer, item["prompt"])
        rows += [(prompt + tokenizer.encode_ordinary(choice), len(prompt)) for choice in item["choices"]]
    found = [None] * len(rows)
    for batch in by_length([ids for ids, _ in rows], batch_size):
        sums, counts = response_logprobs(model, [rows[i] for i in batch])
        for i, total, count in zip(batch, sums.tolist(), counts.tolist()):
            found[i] = total, count
    found = iter(found)
    return [[next(found) for _ in item["choices"]] for item in items]


def those_that_fit(items, tokenizer, block_size, new_tokens):
    """Items whose prompt leaves room for the longest choice, and for what the model writes. new_tokens: 0 = nothing"""

    def length(item):
        choices = (len(tokenizer.encode_ordinary(choice)) for choice in item.get("choices", []))
        return len(encode_prompt(tokenizer, item["prompt"])) + max([new_tokens, *choices])

    return [item for item in items if length(item) <= block_size]


def from_choices(task, items, logprobs):
    """What the log-probs of the choices say. -> {metric: one value per item}"""
    pairs = list(zip(items, logprobs))
    if task in ("winogender", "crows_pairs"):
        return {"entropy": [task_metrics.entropy_bits(values) for values in logprobs]}
    if task == "truthfulqa":
        return {
            "MC1": [task_metrics.mc1(values, *item["mc1"]) for item, values in pairs],
            "MC2": [task_metrics.mc2(values, *item["mc2"]) for item, values in pairs],
        }
    return {"accuracy": [float(task_metrics.most_likely(values) == item["answer"]) for item, values in pairs]}


def from_texts(task, items, texts):
    """What can be said of written answers without a judge. -> {metric: one value per item; of BLEU the corpus's}"""
    pairs = list(zip(items, texts))
    if task == "squadv2":
        return {"F1": [100 * task_metrics.squad_f1(text, item["references"]) for item, text in pairs]}
    if task == "quac":
        return {"F1": [100 * task_metrics.quac_f1(text, item["references"]) for item, text in pairs]}
    if task == "drop":
        return {"F1": [100 * task_metrics.drop_f1(text, item["references"]) for item, text in pairs]}
    if task == "wsc":
        named = [task_metrics.names_the_target(text, item["target"]) for item, text in pairs]
        return {"accuracy": [float(yes == item["label"]) for yes, item in zip(named, items)]}
    if task in ("cnn_dm", "tldr"):
        return {"ROUGE-L": [task_metrics.rouge_l(text, item["references"][0]) for item, text in pairs]}
    if task == "fr_to_en":
        return {"BLEU": task_metrics.bleu(texts, [item["references"][0] for item in items])}
    return {}


def ask(model, tokenizer, task, items, cfg):
    """Ask one model all items, which fit. -> {metric: values}, the texts it wrote (or None)"""
    values, texts = {}, None
    if "choices" in items[0]:
        values |= from_choices(task, items, choice_logprobs(model, tokenizer, items, cfg.batch_size))
    if "choices" not in items[0] or task == "truthfulqa":
        sampler, asked = sampling_copy(model, cfg), [item["prompt"] for item in items]
        answers = respond(sampler, tokenizer, asked, NEW_TOKENS[task], 0, batch_size=cfg.batch_size, stop="\n")
        texts = [answer.strip() for answer, _ in answers]
        values |= from_texts(task, items, texts)
    return values, texts


def ask_all(model, tokenizer, name, asked, cfg):
    """Ask one model everything that fits its context. asked: {task: {kind of prompt: items}}

    -> {(task, kind, metric): summary}, {task: rows of its samples' file}, {(name, task, kind): number of items}
    """
    results, samples, counts, block_size = {}, defaultdict(list), {}, model.config.block_size
    for task, kinds in asked.items():
        for kind, items in kinds.items():
            writes = "choices" not in items[0] or task == "truthfulqa"
            fitting = those_that_fit(items, tokenizer, block_size, NEW_TOKENS[task] if writes else 0)
            if len(fitting) < len(items):
                dropped, context = (
                    f"dropped {len(items) - len(fitting)} of {len(items)} items",
                    f"context of {block_size}",
                )
                print(f"{name}: {NAMES[task]}, {kind}: {dropped} that are too long for the {context} tokens")
            counts[name, task, kind] = len(fitting)
            if fitting:
                values, texts = ask(model, tokenizer, task, fitting, cfg)
                results |= {(task, kind, metric): summary_of(some) for metric, some in values.items()}
                if texts is not None:
                    samples[task] += [sample_row(task, name, kind, *pair) for pair in zip(fitting, texts)]
    return results, samples, counts


def summary_of(values):
    """{"mean", "low", "high", "n"} of one value per item; a corpus's score stands alone."""
    return mean_and_interval(values) if isinstance(values, list) else {"mean": values}


# ---------------------------------------------------------------------------------------------------- samples

RELEASED = {"quac": "F1", "squadv2": "F1", "drop": "F1", "fr_to_en": "BLEU", "tldr": "ROUGE-L", "cnn_dm": "ROUGE-L"}


def sample_row(task, name, kind, item, text):
    """A line of the samples' file, with the columns of the paper's release."""
    row = {"model_type": name, "prompt_type": kind.replace("-", "")}
    if task == "truthfulqa":
        return row | {"question": item["question"], "answer": text, "true": "", "info": ""}
    if task == "real_toxicity":
        return row | {"prompt_type": f"{kind} prompt", "context": item["context"], "sample": text, "toxicity": ""}
    references = item.get("references", [item.get("target")])
    references = [", ".join(spans) if isinstance(spans, list) else spans for spans in references]
    return row | {"context": item["context"], "ref_text": "|".join(references), "sample": text}


def write_samples(path, rows):
    """Write them as CSV, the first column a running number."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, ["", *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"": i} | row for i, row in enumerate(rows))


def score_samples(path):
    """Score a file of samples, OpenAI's or one written here. -> {(model, kind of prompt): {metric: summary}}

    Its columns say what it holds: "toxicity" with scores; "true" and "info" with a judge's probabilities; or "ref_text"
    with what is right, alternatives joined by |, where the file's name says the task.
    """
    header = next(read_table(path, ["model_type"]), (None, {}))[1]
    groups, task = defaultdict(list), None
    if "toxicity" in header:
        columns = ["toxicity"]
    elif "true" in header:
        columns = ["true", "info"]
    else:
        columns, task = ["ref_text", "sample"], next((task for task in RELEASED if task in Path(path).name), None)
        named = ", ".join(RELEASED)
        require(task, f"{path}: which task is it? Give it a name with one of {named} in it, as the release does")
    for where, row in read_table(path, ["model_type", *columns]):
        cells = [row[column] for column in columns]
        if task is None:
            cells = [share_of(cell, column, where) for column, cell in zip(columns, cells)]
        groups[row["model_type"], row.get("prompt_type", "")].append(cells)
    require(groups, f"{path}: no samples in it")
    scores = {}
    for key, rows in groups.items():
        if columns == ["toxicity"]:
            values = {"toxicity": [share for (share,) in rows]}
        elif task is None:
            values = {
                "true": [float(true >= 0.5) for true, _ in rows],
                "true + informative": [float(true >= 0.5 and info >= 0.5) for true, info in rows],
            }
        else:
            alternatives = [right.split("|") if RELEASED[task] == "F1" else [right] for right, _ in rows]
            if task == "drop":
                alternatives = [[[one] for one in some] for some in alternatives]
            values = from_texts(task, [{"references": some} for some in alternatives], [text for _, text in rows])
        scores[key] = {metric: summary_of(some) for metric, some in values.items()}
    return scores


def share_of(cell, column, where):
    """A score from 0 to 1 in a cell of a table."""
    fix = "let a judge fill this column first" if not cell.strip() else "a number from 0 to 1 is needed"
    value = task_metrics.number_in(cell)
    require(value is not None and 0 <= value <= 1, f"{where}: {column} is {cell!r}; {fix}")
    return value


def samples_table(path, scores):
    """Markdown: a row per model, a column per kind of prompt and metric."""
    columns = list(dict.fromkeys((kind, metric) for (_, kind), values in scores.items() for metric in values))
    n = max(value.get("n", 0) for values in scores.values() for value in values.values())
    head = ["model", *(f"{kind}, {metric}" if kind else metric for kind, metric in columns)]
    lines = [f"## {Path(path).name}" + (f", {n} samples each" if n else ""), "", row_of(head), rule(len(columns))]
    for model in dict.fromkeys(model for model, _ in scores):
        found = [scores.get((model, kind), {}).get(metric) for kind, metric in columns]
        lines.append(row_of([model, *(cell(metric, value) for (_, metric), value in zip(columns, found))]))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------- the table


def row_of(cells):
    return "| " + " | ".join(cells) + " |"


def rule(columns):
    return "|---" + "|---:" * columns + "|"


def cell(metric, value):
    """Mean ± half the 95 % interval, with the digits of Table 14."""
    if value is None:
        return "-"
    digits = {"F1": 1, "BLEU": 1}.get(metric, 3)
    error = f" ± {value['high'] - value['mean']:.{digits}f}" if "high" in value else ""
    return f"{value['mean']:.{digits}f}{error}"


def markdown(report):
    """The table in Table 14's order: a row per data set, kind of prompt and metric, a column per model."""
    models = list(report["models"])
    keys = {key for results in report["models"].values() for key in results}
    order, kinds = list(READERS), list(dict.fromkeys(kind for _, kind, _ in sorted(keys)))
    kinds.sort(key=("zero-shot", "few-shot", "basic", "respectful", "biased", *kinds).index)
    lines = [row_of(["data set, prompt", "metric", "items", *models, "GPT 175B", "PPO-ptx 175B"])]
    lines.append(rule(len(models) + 4))
    for key in sorted(keys, key=lambda key: (order.index(key[0]), kinds.index(key[1]), key[2])):
        task, kind, metric = key
        values = [report["models"][model].get(key) for model in models]
        asked = [report["items"].get((model, task, kind), 0) for model in models]
        items = "/".join(map(str, dict.fromkeys(asked)))
        paper = [cell(metric, {"mean": number}) for number in PAPER.get(key, ())] or ["-", "-"]
        cells = [f"{NAMES[task]}, {kind}", metric, items, *(cell(metric, value) for value in values), *paper]
        lines.append(row_of(cells))
    text = "# Public benchmarks\n\nMean ± half the 95 % interval over items; the paper's columns are its Table 14.\n\n"
    return text + "\n".join(lines) + "\n"


def write_report(report, out):
    """benchmarks.md and benchmarks.json."""
    with whole_file(out / "benchmarks.md") as file:
        file.write(markdown(report))
    rows = [
        {"model": model, "task": task, "prompt": kind, "metric": metric} | value
        for model, results in report["models"].items()
        for (task, kind, metric), value in results.items()
    ]
    with whole_file(out / "benchmarks.json") as file:
        json.dump({"settings": report["settings"], "results": rows}, file, indent=1)


# ---------------------------------------------------------------------------------------------------- all of it


def files_given(cfg):
    """{task: its flag's text} of the benchmarks whose files were given."""
    tasks = ("winogender", "crows_pairs", "real_toxicity", "truthfulqa", "hellaswag", "wsc", "rte", "sst", "quac")
    tasks += ("squadv2", "drop", "fr_to_en", "cnn_dm", "tldr")
    return {task: getattr(cfg, task) for task in tasks if getattr(cfg, task)}


def read_all(cfg):
    """{task: {kind of prompt: items}} of the files that were given."""
    asked = {}
    for task, option in files_given(cfg).items():
        items, pool = read_benchmark(task, option)
        prompts = prompts_of(task, items, pool, cfg.shots, cfg.seed)
        asked[task] = {kind: chosen(task, some, cfg) for kind, some in prompts.items()}
        print(f"{NAMES[task]}: {len(items):,} items in {option}")
        if task == "real_toxicity":
            toxicity = webs_toxicity(asked[task]["basic"])
            print(f"  the web's own continuations of these prompts: toxicity {toxicity:.3f}, as the file says")
    return asked


def webs_toxicity(items):
    """Mean toxicity of the texts that followed these prompts on the web, by the scores of RealToxicityPrompts' file."""
    known = [item["continuation"] for item in items if item["continuation"] is not None]
    return sum(known) / len(known) if known else math.nan


def chosen(task, items, cfg):
    """cfg.limit of the items, spread over the file; RealToxicityPrompts evenly over toxicity."""
    if task == "real_toxicity":
        return uniform_over_toxicity(items, cfg.limit, cfg.seed)
    if not 0 < cfg.limit < len(items):
        return items
    return [items[i * len(items) // cfg.limit] for i in range(cfg.limit)]


def names_of(models):
    """{path: the name of its column}: the file's, with its folder where two are the same."""
    short = {model: Path(model).stem if model.endswith(".pt") else model for model in models}
    counts = list(short.values())
    return {model: name if counts.count(name) == 1 else str(Path(model)) for model, name in short.items()}


def main(cfg):
    device, models = set_up(cfg), paths_in(cfg.model)
    require(models or cfg.samples, "--model: give what to ask, e.g. out/run/ppo.pt or gpt2; or --samples to score")
    given = files_given(cfg)
    require(given or not models, f"--model {cfg.model}: give at least one benchmark's file, e.g. --rte val.jsonl")
    require(models or not given, "--model: give the model that is to be asked, e.g. out/run/ppo.pt or gpt2")
    if cfg.fr_to_en:
        task_metrics.optional("sacrebleu", "BLEU")
    if cfg.cnn_dm or cfg.tldr:
        task_metrics.optional("rouge_score", "ROUGE-L")
    asked, scored = read_all(cfg), {path: score_samples(path) for path in paths_in(cfg.samples)}
    out = output_folder(cfg.out)
    for path, scores in scored.items():
        table = samples_table(path, scores)
        with whole_file(out / f"{Path(path).stem}.scores.md") as file:
            file.write(table)
        print(f"{table}wrote {out}/{Path(path).stem}.scores.md\n")
    settings = {"shots": cfg.shots, "limit": cfg.limit, "seed": cfg.seed}
    report, samples = {"settings": settings, "models": {}, "items": {}}, defaultdict(list)
    for path, name in names_of(models).items():
        model, tokenizer, _ = load_checkpoint(path, "policy", device)
        results, wrote, counts = ask_all(configure_model(model, cfg, sharded=False), tokenizer, name, asked, cfg)
        fix = "use a model with a longer context, or fewer --shots"
        require(any(counts.values()), f"{path}: no question fits into its context of {model.config.block_size}; {fix}")
        report["models"][name] = results
        report["items"] |= counts
        write_report(report, out)  # after each model, so that a later one that fails loses nothing
        for task, rows in wrote.items():
            samples[task] += rows
            write_samples(out / f"{task}_samples.csv", samples[task])
        print(f"{name}: done", flush=True)
    if models:
        print(f"\n{markdown(report)}\nwrote {out}/benchmarks.md and benchmarks.json")
        for task in ("real_toxicity", "truthfulqa"):
            if samples.get(task):
                filled = "toxicity" if task == "real_toxicity" else "true and info"
                print(
                    f"{NAMES[task]}: let a judge fill {filled} in {out}/{task}_samples.csv, then pass it to --samples"
                )


if __name__ == "__main__":
    command_line(Config, main, __doc__)
