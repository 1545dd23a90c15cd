"""All methods on one table: the same world, the same judge, the same prompts.

    python run.py                                                   # first: the models that everything starts from
    python alternatives/compare.py                                  # trains what is missing: about 24 minutes, 2 cores
    python alternatives/compare.py --runs out/run,out/seed1,out/seed2
    python alternatives/compare.py --methods dpo,rest               # only these

Prints and writes RUN/alternatives.md and alternatives.json, and with matplotlib alternatives.png. Win rates are against
the same fixed SFT answers as evaluate.py's, and against PPO-ptx's own; "red team" is the share of harmless answers to
test prompts that ask for something unkind. Labels are rankings or pairs that people judged for this method, whatever
their size; tokens are those that were sampled for it, ranked answers included; seconds include whatever it builds on
beside PPO's start: collecting rankings, training the reward model or the reading model. What is used by several is
counted for each.
"""

import json
import math
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.judge import Judge
from data.labelers import load_labelers

import ppo
import reward
import sft
from alternatives import constitutional, dpo, hir, llama2, rejection, rest, rlaif
from alternatives.common import cost_of_rankings
from core.report import comparison_figure, comparison_table, interval, save_figure, table
from data import feedback, village
from data.folder import Corpus, load_folder_tokenizer, read_jsonl, read_prompts, with_room
from evaluate import gold_report, kl_of_texts, win_rate
from machine import Device, for_sampling, prepare, set_up
from model import load_checkpoint, respond, score_answers
from plumbing import command_line, generator, require, whole_file
from pretrain import corpus_loss


@dataclass
class Config(Device):
    runs: str = "out/run"  # run folders of run.py, a,b,c: one per seed
    methods: str = ""  # which to train where missing and to compare, a,b; default: all but llama2_linear
    redo: bool = False  # train again what is there
    prompts: int = 430  # test prompts
    labelers: int = 3  # of each group, per prompt
    best_of: int = 16  # n of best-of-n
    max_new_tokens: int = 40  # longest response
    seed: int = 0  # added to each run's own when test prompts and answers are drawn
    quick: bool = False  # tiny settings, to see every step work


# name -> (title, script, settings, what it builds on beside run.py's policies)
METHODS = {
    "dpo": ("DPO", dpo, {}, ["rankings"]),
    "rest": ("ReST", rest, {}, ["reward"]),
    "rejection": ("rejection sampling", rejection, {"ppo_iterations": 0}, ["reward"]),
    "rejection_ppo": ("rejection sampling + PPO", rejection, {}, ["reward"]),
    "llama2": ("two reward models", llama2, {}, ["rankings"]),
    "llama2_linear": ("two reward models, linear", llama2, {"linear": 0.5, "name": "llama2_linear"}, ["rankings"]),
    "rlaif": ("RLAIF", rlaif, {}, ["reader"]),
    "rlaif_direct": ("RLAIF, direct", rlaif, {"direct": True}, ["reader"]),
    "helpful": ("helpful only", constitutional, {}, []),
    "cai_sl": ("SL-CAI", constitutional, {}, ["reader"]),
    "cai": ("RL-CAI", constitutional, {}, ["reader", "rankings"]),
    "hir": ("HIR", hir, {}, ["rankings"]),
}
ON_REQUEST = ("llama2_linear",)  # only if --methods names it
FROM_RUN = {"sft": "SFT", "ppo_init": "PPO's start", "ppo": "PPO", "ppo_ptx": "PPO-ptx", "best_of_n": "best of n"}
QUICK = {
    "dpo": {"eval_every": 1000},
    "rest": {"prompts": 16, "samples": 2, "valid_prompts": 16},
    "rejection": {"rounds": 1, "prompts": 16, "samples": 4, "ranked": 8, "valid_prompts": 16, "ppo_iterations": 2},
    "llama2": {"safety_pairs": 32, "iterations": 2},
    "rlaif": {"pairs": 24, "iterations": 2, "episodes": 16, "minibatch_size": 8},
    "constitutional": {"red_team": 16, "revisions": 1, "helpful_prompts": 16, "ppo_iterations": 2},
    "hir": {"rounds": 1, "prompts": 8, "epochs": 1},
    "feedback": {"pages": 120},
}


# ---------------------------------------------------------------------------------------------------- training


def train_missing(cfg, out, seed, wanted):
    """Run the scripts whose policy is not in the run folder yet. -> {script or model: seconds}"""
    shared = {"data": str(out / "data"), "out": str(out), "seed": seed, "max_new_tokens": cfg.max_new_tokens}
    shared |= {k: getattr(cfg, k) for k in ("device", "threads", "dtype")}
    record = out / "alternatives.seconds.json"
    seconds = json.loads(record.read_text()) if record.exists() else {}

    def run(what, module, settings, *names):
        if all((out / f"{name}.pt").exists() for name in names) and not cfg.redo:
            return
        print(f"\n=== {what}: {module.__name__.split('.')[-1]}.py ===", flush=True)
        start = time.time()
        module.main(module.Config(**settings))
        seconds[what] = time.time() - start
        with whole_file(record) as file:
            json.dump(seconds, file)

    if any("reader" in METHODS[name][3] for name in wanted):
        pages = str(out / "feedback")
        more = QUICK["feedback"] if cfg.quick else {}
        run("pages", feedback, {"world": shared["data"], "out": pages, "seed": seed} | more, "reader")
        read = shared | {"data": pages, "init": str(out / "ppo_init.pt"), "name": "reader", "epochs": 1}
        run("reader", sft, read | {"dropout": 0.0, "learning_rate": 1e-3}, "reader")
    if "llama2" in wanted:  # the table of margins: the same rankings with each set; none is run.py's own
        for margin in ("small", "large"):
            name = f"reward_{margin}"
            run(name, reward, shared | {"margin": margin, "name": name}, name)
    for name in wanted:
        _, module, settings, _ = METHODS[name]
        # One run of a script may write several of them.
        together = [other for other in wanted if METHODS[other][1:3] == (module, settings)]
        if name != together[0] or name == "rejection" and "rejection_ppo" in wanted:
            continue
        quick = QUICK[module.__name__.split(".")[-1]] if cfg.quick else {}
        run(name, module, shared | settings | quick, *together)
    return seconds


def margins_table(out):
    """Accuracy per level of how much better an answer is, for each set of margins (Llama 2, Table 28)."""
    rows = []
    for margin, name in (("none", "reward"), ("small", "reward_small"), ("large", "reward_large")):
        path = out / f"{name}.pt"
        results = load_checkpoint(path, "scalar")[2].get("results", {}) if path.exists() else {}
        levels = results.get("training", {}).get("levels")
        if levels:
            cells = [f"{100 * levels[level][0]:.1f}" if level in levels else "-" for level in reward.LEVELS[::-1]]
            rows.append([margin, *cells, f"{100 * results['training']['accuracy'][0]:.1f}"])
    return table(["margin", *reward.LEVELS[::-1], "all"], rows) if rows else ""


# ---------------------------------------------------------------------------------------------------- comparing


def compare(cfg, out, seed, device, wanted, seconds):
    """Every policy answers the test prompts once. -> {name: its row}"""
    tokenizer, encoding = load_folder_tokenizer(out / "data")
    judge, corpus = Judge(out / "data"), Corpus(out / "data", "valid")
    groups = {group: load_labelers(out / "data", group) for group in ("training", "held_out")}
    reward_model = load_checkpoint(out / "reward.pt", "scalar", device, tokenizer=tokenizer)[0]

    def load(name):
        policy, _, checkpoint = load_checkpoint(out / f"{name}.pt", "policy", device, tokenizer=tokenizer)
        return prepare(policy, cfg, shard=False), checkpoint

    reference = load("ppo_init")[0]
    room = reference.config.block_size - cfg.max_new_tokens - 8  # and for HIR's instruction
    records = with_room(read_prompts(out / "data", "test"), encoding, room)
    records = random.Random(f"test {seed}").sample(records, min(cfg.prompts, len(records)))
    prompts = [r["prompt"] for r in records]
    rng = random.Random(f"red team {seed}")
    attacks = [
        x
        for unseen in (False, True)
        for x in constitutional.red_team(judge.world, min(40, cfg.prompts), village.VALLEYS["test"], rng, unseen=unseen)
    ]

    def answer(policy, asked, plus):
        return respond(for_sampling(policy, cfg), encoding, asked, cfg.max_new_tokens, 1.0, generator(seed + plus))

    sft_name = "sft_best" if (out / "sft_best.pt").exists() else "sft"
    opponents = [text for text, _ in answer(load(sft_name)[0], prompts, 1)]
    rivals = [text for text, _ in answer(load("ppo_ptx")[0], prompts, 3)]
    costs, rows = costs_of_run(out, encoding), {}
    took = seconds | {"rankings": costs["rankings"]["seconds"], "reward": costs["reward"]["seconds"]}
    took["reader"] = seconds.get("pages", 0) + seconds.get("reader", 0)
    for name in (*FROM_RUN, *wanted):
        if name == "best_of_n":
            policy, checkpoint, prefix = reference, {}, ""
            best = [best_of_n(cfg, policy, reward_model, encoding, asked, seed) for asked in (prompts, attacks)]
            answers, under_attack = best
        else:
            policy, checkpoint = load(sft_name if name == "sft" else name)
            prefix = (checkpoint.get("results") or {}).get("prefix", "")
            answers, under_attack = (answer(policy, [prefix + x for x in some], 2) for some in (prompts, attacks))
        texts = [text for text, _ in answers]
        row = {"title": FROM_RUN.get(name) or METHODS[name][0], "length": mean([len(t.split()) for t in texts])}
        for group, people in groups.items():
            row[group] = win_rate(people, cfg.labelers, prompts, texts, opponents, seed)
        row["against_ppo_ptx"] = win_rate(groups["training"], cfg.labelers, prompts, texts, rivals, seed)
        row |= {k: v for k, v in gold_report(judge, records, texts).items() if k in ("helpful", "truthful", "harmless")}
        row["red_team"] = mean([judge(x, text)["harmless"] for x, (text, _) in zip(attacks, under_attack)])
        refusals = [any(s.does == "refuse" for s in village.read(text)) for text, _ in under_attack]
        row["red_team_refuses"] = mean(refusals)
        row["score"] = mean([s for s in score_answers(reward_model, encoding, prompts, answers) if not math.isnan(s)])
        n = cfg.best_of
        row["kl"] = (
            math.log(n) - (n - 1) / n
            if name == "best_of_n"
            else kl_of_texts(policy, reference, encoding, prompts, answers, prefix)
        )
        row["corpus_loss"] = corpus_loss(policy, corpus, min(128, policy.config.block_size))
        cost = dict(costs[name]) if name in costs else checkpoint.get("cost", {})
        for used in METHODS[name][3] if name in METHODS else []:
            cost["seconds"] = cost.get("seconds", 0) + took[used]
        row |= {"cost": cost, "samples": [[x, text] for x, (text, _) in list(zip(prompts, answers))[:3]]}
        rows[name] = row
        print(f"{row['title']:26} {interval(row['training'])}", flush=True)
    return rows


def mean(values):
    return sum(values) / max(len(values), 1)


def best_of_n(cfg, policy, reward_model, encoding, prompts, seed):
    """Of n answers the one the reward model likes best: no training at all, n times the sampling."""
    asked = [x for x in prompts for _ in range(cfg.best_of)]
    draws = respond(for_sampling(policy, cfg), encoding, asked, cfg.max_new_tokens, 1.0, generator(seed + 2))
    scores = [-math.inf if math.isnan(s) else s for s in score_answers(reward_model, encoding, asked, draws)]
    n = cfg.best_of
    return [draws[max(range(i, i + n), key=scores.__getitem__)] for i in range(0, len(asked), n)]


def costs_of_run(out, encoding):
    """What run.py's own models cost, by its logs: from PPO's start on, rankings and reward model included."""
    stages = json.loads((out / "stages.json").read_text()) if (out / "stages.json").exists() else {}
    took = defaultdict(float, {k: v["seconds"] for k, v in stages.items()})
    ranked = cost_of_rankings([r for _, r in read_jsonl(out / "comparisons.jsonl")], encoding)
    collecting = [r["seconds_collecting"] for _, r in read_jsonl(out / "reward.jsonl") if "seconds_collecting" in r]
    costs = {"sft": {"labels": 0, "tokens": 0, "seconds": 0.0}, "ppo_init": {"labels": 0, "tokens": 0, "seconds": 0.0}}
    costs["rankings"] = ranked | {"seconds": sum(collecting)}
    costs["reward"] = costs["best_of_n"] = ranked | {"seconds": took["reward"]}
    for name in ("ppo", "ppo_ptx"):
        tokens = round(sum(r["length"] for _, r in read_jsonl(out / f"{name}.jsonl")) * ppo.Config.batch_size)
        costs[name] = ranked | {"tokens": ranked["tokens"] + tokens, "seconds": took["reward"] + took[name]}
    return costs


def main(cfg):
    device = set_up(cfg)
    wanted = [name.strip() for name in cfg.methods.split(",") if name.strip()] or [
        m for m in METHODS if m not in ON_REQUEST
    ]
    for name in wanted:
        require(name in METHODS, f"--methods {name}: choose from {', '.join(METHODS)}")
    require(min(cfg.prompts, cfg.labelers, cfg.best_of, cfg.max_new_tokens) >= 1, "counts must be at least 1")
    runs = [Path(run.strip()) for run in cfg.runs.split(",") if run.strip()]
    for out in runs:
        for file in ("data/village.json", "ppo_init.pt", "ppo_ptx.pt", "reward.pt", "comparisons.jsonl"):
            require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    reports = {}
    for out in runs:
        seed = json.loads((out / "data" / "village.json").read_text())["seed"]
        seconds = train_missing(cfg, out, seed, wanted)
        reports[str(out)] = compare(cfg, out, seed + cfg.seed, device, wanted, seconds)
        with whole_file(out / "alternatives.json") as file:
            json.dump(reports[str(out)], file, indent=1)
    text = comparison_table(reports)
    if margins := margins_table(runs[0]):
        text += f"\n\nReward model, % of pairs by how much better people found the winner:\n\n{margins}"
    print("\n" + text)
    with whole_file(runs[0] / "alternatives.md") as file:
        file.write(text + "\n")
    drawn = comparison_figure(reports)
    if drawn is not None:
        save_figure(drawn, runs[0] / "alternatives.png")
    print(f"\nwrote {runs[0]}/alternatives.md, alternatives.json{', alternatives.png' if drawn else ''}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
