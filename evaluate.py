"""Who prefers whom, and what did it cost? The paper's evaluation of all models of a run (§3.6, §4, App. D, E).

    python evaluate.py             # -> report.md, report.json, figures (with matplotlib)

Prompts are the test split's: other users, and in the village other entities, than anything was trained on. Every model
answers them once at temperature 1, and once greedily. Then:

  win rates      against one fixed SFT answer per prompt, by training labelers and by held-out labelers, each pair shown in
                 both orders, ties counted half; 95 % intervals over prompts (all votes on a prompt are one observation)
  gold           helpful / truthful / harmless, Likert 1-7 and the flags of the paper's Table 3, by the judge, which knows
                 all the facts and was never seen by anything that trained
  alignment tax  corpus loss, and accuracy on the web's "public tasks", zero- and few-shot
  over-optimisation   reward-model score and gold score against √KL, along PPO's training and for best-of-n

A data folder without simulated labelers gets what makes sense without them: reward-model accuracy on held-out rankings,
scores, KL and samples.
"""

import json
import math
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path

import torch

from core.report import figures, markdown, summary
from data.folder import Corpus, load_folder_tokenizer, read_jsonl, read_prompts, with_room
from machine import Device, for_sampling, prepare, set_up
from model import encode_answer, load_checkpoint, pad, respond, response_mask, score_answers, token_logprobs
from plumbing import command_line, generator, output_folder, require, whole_file
from pretrain import corpus_loss


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder; its models are evaluated, the report is written there
    prompts: int = 430  # test prompts; fewer if the data has fewer
    labelers: int = 3  # of each group, per prompt
    max_new_tokens: int = 40  # longest response
    shots: int = 2  # solved examples in front of a few-shot task
    best_of: int = 16  # largest n of best-of-n
    best_of_prompts: int = 96  # validation prompts for best-of-n (ppo.py's looks take as many) and the few-shot prefix
    also: str = ""  # more policies of the run folder to evaluate: names of .pt files without the ending, a,b
    seed: int = 0  # of sampling and of the choice of labelers


NAMES = {"gpt": "GPT", "gpt_prompted": "GPT (prompted)", "sft": "SFT", "ppo_init": "PPO's start", "ppo": "PPO"}
NAMES |= {"ppo_ptx": "PPO-ptx"}
FILES = {"gpt": ["base.pt"], "sft": ["sft_best.pt", "sft.pt"]}  # the others: OUT/KEY.pt

# ---------------------------------------------------------------------------------------------------- scores of texts


@torch.no_grad()
def sequence_logprobs(model, encoding, pairs, batch_size=128):
    """Sum of the token log-probs of each continuation given its context, and its number of tokens.

    pairs: [(context, continuation, ended)] -> [(sum, tokens)].
    """
    device = model.transformer.wte.weight.device
    rows = [encode_answer(encoding, *pair) for pair in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    result = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[start : start + batch_size]]
        tokens, lengths = pad([c + a for c, a in batch], device)
        mask = response_mask(torch.tensor([len(c) for c, _ in batch], device=device), lengths, tokens.size(1))
        sums, counts = token_logprobs(model, tokens, mask).sum(1).tolist(), mask.sum(1).tolist()
        for i, total, count in zip(order[start : start + batch_size], sums, counts):
            result[i] = total, count
    return result


def kl_of_texts(model, reference, encoding, prompts, answers, prefix=""):
    """Mean over prompts of log π/π_ref of the answers, nats, as they are encoded again; None if there is nothing to score.

    prefix: what stood in front of every prompt when the model was asked; the reference has never been told to heed it.
    """
    pairs = [(p, text, ended) for p, (text, ended) in zip(prompts, answers) if text or ended]
    asked = [(prefix + p, *answer) for p, *answer in pairs]
    fits = [len(sum(encode_answer(encoding, *row), [])) <= model.config.block_size for row in asked]
    pairs, asked = list(compress(pairs, fits)), list(compress(asked, fits))
    own, base = sequence_logprobs(model, encoding, asked), sequence_logprobs(reference, encoding, pairs)
    return sum(a - b for (a, _), (b, _) in zip(own, base)) / len(pairs) if pairs else None


def mean_and_interval(values):
    """Mean of one number per prompt and its 95 % interval -> {"mean", "low", "high", "n"}."""
    n = len(values)
    mean = sum(values) / n
    error = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / max(n - 1, 1) / n)
    return {"mean": mean, "low": mean - error, "high": mean + error, "n": n}


# ---------------------------------------------------------------------------------------------------- who prefers whom


def preference(labeler, prompt, answer, opponent):
    """Share of the two orders in which a labeler ranks `answer` over `opponent`; a tie is half. -> 0 … 1"""
    first, second = labeler.rank(prompt, [answer, opponent])
    second_order, first_order = labeler.rank(prompt, [opponent, answer])
    wins = [
        (first < second) + 0.5 * (first == second),
        (first_order < second_order) + 0.5 * (first_order == second_order),
    ]
    return sum(wins) / 2


def win_rate(labelers, per_prompt, prompts, answers, opponents, seed):
    """Win rate over prompts, the same randomly drawn labelers for every model. One observation per prompt."""
    rng, by_prompt = random.Random(f"labelers {seed}"), []
    for prompt, answer, opponent in zip(prompts, answers, opponents):
        drawn = rng.sample(labelers, min(per_prompt, len(labelers)))
        by_prompt.append(sum(preference(labeler, prompt, answer, opponent) for labeler in drawn) / len(drawn))
    return mean_and_interval(by_prompt)


def choose_prefix(gpt, reward_model, encoding, prefixes, prompts, cfg):
    """GPT (prompted): of the hand-written few-shot prefixes, the one whose answers score highest (§3.5, footnote)."""
    scores, sampler = [], for_sampling(gpt, cfg)
    for prefix in prefixes:
        asked, draw = [prefix + p for p in prompts], generator(cfg.seed)
        answers = respond(sampler, encoding, asked, cfg.max_new_tokens, 1.0, draw, stop="\n\n")
        values = [s for s in score_answers(reward_model, encoding, prompts, answers) if not math.isnan(s)]
        scores.append(sum(values) / max(len(values), 1))
    return scores.index(max(scores)), scores


# ---------------------------------------------------------------------------------------------------- alignment tax


TASK_TOKENS = 24  # longest answer to a task


def with_shots(items, shots):
    """Test items with the context to answer them in: `shots` solved ones of the same task put in front (App. D)."""
    examples = defaultdict(list)
    for item in items:
        if item["split"] == "shots":
            reply = item["choices"][item["answer"]] if "choices" in item else item["answer"]
            examples[item["task"]].append(item["context"] + reply + "\n")
    test = (item for item in items if item["split"] == "test")
    return [(item, "".join(examples[item["task"]][:shots]) + item["context"]) for item in test]


def task_scores(model, encoding, items, shots=0):
    """Accuracy per public task, {task: share right}.

    Items with choices: the choice of highest mean token log-prob. Others: greedy text up to the first newline, right if
    it is the answer.
    """
    right, test = defaultdict(list), with_shots(items, shots)
    pairs = [(context, choice, False) for item, context in test for choice in item.get("choices", [])]
    means = iter([total / count for total, count in sequence_logprobs(model, encoding, pairs)])
    free = [context for item, context in test if "choices" not in item]
    texts = iter(respond(model, encoding, free, TASK_TOKENS, temperature=0, stop="\n"))
    for item, _ in test:
        if "choices" in item:
            values = [next(means) for _ in item["choices"]]
            right[item["task"]].append(values.index(max(values)) == item["answer"])
        else:
            right[item["task"]].append(next(texts)[0].strip() == item["answer"].strip())
    return {task: sum(r) / len(r) for task, r in right.items()}


# ---------------------------------------------------------------------------------------------------- over-optimisation


def along_training(path, judge):
    """From the samples that ppo.py kept: [{"iteration", "sqrt_kl", "score", "gold"}], one entry per look."""
    looks = defaultdict(list)
    for _, r in read_jsonl(path):
        looks[r["iteration"]].append(
            (r["kl"], r["score"], judge(r["prompt"], r["completion"])["likert"] if judge else 0.0)
        )
    curve = []
    for iteration, rows in sorted(looks.items()):
        kl, score, gold = (sum(column) / len(rows) for column in zip(*rows))
        curve.append({"iteration": iteration, "sqrt_kl": math.sqrt(max(kl, 0)), "score": score, "gold": gold})
    return curve


def best_of_n(model, reward_model, encoding, prompts, judge, cfg):
    """Sample n answers, keep the one the reward model likes best: its KL is ln n - (n-1)/n at most (Stiennon et al.)."""
    asked = [p for p in prompts for _ in range(cfg.best_of)]
    draws = respond(for_sampling(model, cfg), encoding, asked, cfg.max_new_tokens, 1.0, generator(cfg.seed))
    scores = score_answers(reward_model, encoding, asked, draws)
    curve, n = [], 1
    while n <= cfg.best_of:
        picked = []
        for first in range(0, len(draws), n):  # every n draws of a prompt
            best = max(range(first, first + n), key=lambda j: -math.inf if math.isnan(scores[j]) else scores[j])
            if not math.isnan(scores[best]):
                picked.append((scores[best], judge(prompts[first // cfg.best_of], draws[best][0])["likert"]))
        score, gold = (sum(column) / len(picked) for column in zip(*picked))
        curve.append({"n": n, "sqrt_kl": math.sqrt(math.log(n) - (n - 1) / n), "score": score, "gold": gold})
        n *= 2
    return curve


# ---------------------------------------------------------------------------------------------------- the evaluation


def main(cfg):
    start = time.time()
    device = set_up(cfg)
    require(
        min(cfg.prompts, cfg.labelers, cfg.best_of, cfg.best_of_prompts, cfg.max_new_tokens) >= 1 and cfg.shots >= 0,
        "--prompts, --labelers, --best_of, --best_of_prompts, --max_new_tokens must be positive, --shots not negative",
    )
    require(cfg.best_of & (cfg.best_of - 1) == 0, f"--best_of {cfg.best_of}: must be a power of two")
    tokenizer, encoding = load_folder_tokenizer(cfg.data)
    out = output_folder(cfg.out)
    models = {}
    also = [name.strip() for name in cfg.also.split(",") if name.strip()]
    for name in also:
        require((out / f"{name}.pt").exists(), f"--also {name}: {out}/{name}.pt not found")
    titles = NAMES | {name: NAMES.get(name, name) for name in also}
    for key in titles:
        path = next((out / name for name in FILES.get(key, [f"{key}.pt"]) if (out / name).exists()), None)
        if path:
            models[key] = prepare(load_checkpoint(path, "policy", device, tokenizer=tokenizer)[0], cfg, shard=False)
    require("sft" in models, f"{out}/sft.pt: not found; the win rates need it, run the earlier steps first")
    reward_model, _, reward_checkpoint = load_checkpoint(out / "reward.pt", "scalar", device, tokenizer=tokenizer)
    prepare(reward_model, cfg, shard=False)
    reference = models.get("ppo_init", models["sft"])
    village = (Path(cfg.data) / "village.json").exists()
    judge, groups = None, {}
    if village:
        from data.judge import Judge
        from data.labelers import load_labelers

        judge, groups = Judge(cfg.data), {group: load_labelers(cfg.data, group) for group in ("training", "held_out")}

    # Everybody answers.
    prefixes = (
        [r["prefix"] for _, r in read_jsonl(Path(cfg.data) / "prefixes.jsonl")]
        if (Path(cfg.data) / "prefixes.jsonl").exists()
        else []
    )
    room = models["sft"].config.block_size - cfg.max_new_tokens
    tight = room - max((len(encoding.encode_ordinary(p)) for p in prefixes), default=0)
    records = with_room(read_prompts(cfg.data, "test"), encoding, tight)
    records = random.Random(f"test {cfg.seed}").sample(records, min(cfg.prompts, len(records)))
    prompts = [r["prompt"] for r in records]
    valid = [r["prompt"] for r in with_room(read_prompts(cfg.data, "valid"), encoding, room)][: cfg.best_of_prompts]
    report = {"seed": cfg.seed, "n_prompts": len(prompts), "models": {}, "config": asdict(cfg)}
    sampler, draw = for_sampling(models["sft"], cfg), generator(cfg.seed + 1)
    opponents = [text for text, _ in respond(sampler, encoding, prompts, cfg.max_new_tokens, 1.0, draw)]
    answers, greedy, networks = {}, {}, {}
    for key in titles:
        prefix, stop, network = "", "", models.get(key)
        if key == "gpt_prompted" and "gpt" in models and prefixes:
            network = models["gpt"]
            short = [p for p in valid if len(encoding.encode_ordinary(p)) <= tight][:64]
            best, scores = choose_prefix(network, reward_model, encoding, prefixes, short, cfg)
            prefix, stop = prefixes[best], "\n\n"
            report["prefix"] = {"text": prefix, "scores": scores}
        if network is None:
            continue
        asked = [prefix + p for p in prompts]
        networks[key], sampler, draw = network, for_sampling(network, cfg), generator(cfg.seed + 2)
        answers[key] = respond(sampler, encoding, asked, cfg.max_new_tokens, 1.0, draw, stop=stop)
        greedy[key] = respond(sampler, encoding, asked, cfg.max_new_tokens, 0.0, stop=stop)
    print(f"{len(prompts)} test prompts answered by {len(answers)} models in {time.time() - start:.0f} s", flush=True)

    # How good are they?
    corpus = Corpus(cfg.data, "valid")
    window = min(128, models["sft"].config.block_size)
    task_file = Path(cfg.data) / "tasks.jsonl"
    items = [r for _, r in read_jsonl(task_file)] if task_file.exists() else []
    if items:
        longest = max(len(encoding.encode_ordinary(context)) for _, context in with_shots(items, cfg.shots))
        fits = longest + TASK_TOKENS <= models["sft"].config.block_size
        require(fits, f"--shots {cfg.shots}: so many solved tasks do not fit into the context; use fewer")
    for key, network in networks.items():
        result = {"name": titles[key]}
        texts = [text for text, _ in answers[key]]
        if judge:
            result["win_rate"] = {
                g: win_rate(people, cfg.labelers, prompts, texts, opponents, cfg.seed) for g, people in groups.items()
            }
            greedy_texts = [text for text, _ in greedy[key]]
            people = groups["held_out"]
            result["win_rate_greedy"] = win_rate(people, cfg.labelers, prompts, greedy_texts, opponents, cfg.seed)
            result |= gold_report(judge, records, texts)
        result["length"] = sum(len(encoding.encode_ordinary(t)) for t in texts) / len(texts)
        scores = [s for s in score_answers(reward_model, encoding, prompts, answers[key]) if not math.isnan(s)]
        result["score"] = sum(scores) / max(len(scores), 1)
        if not key.startswith("gpt"):
            result["kl"] = kl_of_texts(network, reference, encoding, prompts, answers[key])
        if key == "gpt_prompted":
            result |= {
                k: report["models"]["gpt"][k] for k in ("corpus_loss", "tasks") if k in report["models"]["gpt"]
            }  # same weights
        else:
            result["corpus_loss"] = corpus_loss(network, corpus, window)
            if items:
                result["tasks"] = {"zero_shot": task_scores(network, encoding, items)}
                if cfg.shots:
                    result["tasks"]["few_shot"] = task_scores(network, encoding, items, cfg.shots)
        report["models"][key] = result
    for name in titles:
        if (out / f"{name}.samples.jsonl").exists() and judge:
            report.setdefault("over_optimisation", {})[name] = along_training(out / f"{name}.samples.jsonl", judge)
    if judge:
        report.setdefault("over_optimisation", {})["best_of_n"] = best_of_n(
            reference, reward_model, encoding, valid, judge, cfg
        )
    report["reward_model"] = reward_checkpoint.get("results", {})
    shown = random.Random(cfg.seed).sample(range(len(prompts)), min(6, len(prompts)))
    report["samples"] = [{"prompt": prompts[i], **{k: a[i][0] for k, a in answers.items()}} for i in shown]
    stages = out / "stages.json"
    report["seconds"] = {k: v["seconds"] for k, v in json.loads(stages.read_text()).items()} if stages.exists() else {}
    report["seconds"]["evaluate"] = time.time() - start

    with whole_file(out / "report.json") as file:
        json.dump(report, file, indent=1)
    figure_files = figures(report, out)
    with whole_file(out / "report.md") as file:
        file.write(markdown(report, figure_files))
    print(f"\n{summary(report, out, figure_files)}")


def gold_report(judge, records, texts):
    """Means of what the judge says, over all prompts and by use case; truth on questions people get wrong, apart."""
    verdicts = [judge(r["prompt"], text) for r, text in zip(records, texts)]

    def mean(some, key):
        values = [v[key] for v in some if v[key] is not None]
        return sum(values) / len(values) if values else None

    by_use_case = defaultdict(list)
    for record, verdict in zip(records, verdicts):
        by_use_case[record["use_case"]].append(verdict)
    tricky = [v for r, v in zip(records, verdicts) if judge.is_tricky(r["prompt"])]
    result = {key: mean(verdicts, key) for key in ("helpful", "truthful", "harmless", "likert")}
    flags = [key for key in verdicts[0] if key not in (*result, "informative")]
    asked_to = [v["harmless"] for r, v in zip(records, verdicts) if r.get("intent") == "rude"]
    if asked_to:
        result["harmless_when_asked_for_harm"] = {"mean": sum(asked_to) / len(asked_to), "n": len(asked_to)}
    result["flags"] = {flag: mean(verdicts, flag) for flag in flags}
    result["likert_by_use_case"] = {use_case: mean(some, "likert") for use_case, some in sorted(by_use_case.items())}
    if tricky:
        both = [v["truthful"] * v["informative"] for v in tricky]
        result["misconceptions"] = {
            "truthful": mean(tricky, "truthful"),
            "truthful_and_informative": sum(both) / len(both),
            "n": len(tricky),
        }
    return result


if __name__ == "__main__":
    command_line(Config, main, __doc__)
