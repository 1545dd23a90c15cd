"""All methods on one table: the same world, the same judge, the same prompts.

    python run.py                                                   # first: the models that everything starts from
    python alternatives/compare.py                                  # trains what is missing: half an hour on one core
    python alternatives/compare.py --runs out/run,out/seed1,out/seed2
    python alternatives/compare.py --methods dpo,rest               # only these

Prints and writes RUN/alternatives.md and alternatives.json, and with matplotlib alternatives.png. Win rates are against
one fixed SFT answer per prompt at T = 1, of greedy answers against SFT's greedy ones, and against PPO-ptx's at T = 1;
"red team" is the share of harmless answers to test prompts that ask for something unkind. Labels are rankings or pairs
that people judged for this method to learn from, whatever their size; tokens are those that were sampled for it, ranked
answers included; seconds include whatever it builds on beside PPO's start: collecting rankings, training the reward
model, the reading model or the helpful one. What is used by several is counted for each. The KL of best-of-n is an
upper bound (Stiennon et al. 2020).
"""

import json
import math
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sft
from alternatives import constitutional, dpo, hir, llama2, rejection, rest, rlaif
from alternatives.common import cost_of_rankings, rankings_file, sampled_by_ppo
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import whole_file
from core.report import comparison_figure, comparison_table, interval, save_figure
from core.text import best_of_n, kl_of_answers, mean_score, respond
from data.folder import Corpus, load_tokenizer, read_comparisons, read_prompts, with_room
from data.village import feedback
from data.village.grammar import parse
from data.village.judge import Judge
from data.village.labelers import load_labelers
from data.village.world import read_world
from evaluate import gold_report, win_rate
from pretrain import corpus_loss
from reward import encode_rankings


@dataclass
class Config(Device):
    runs: str = "out/run"  # run folders of run.py, a,b,c: one per seed
    methods: str = ""  # which to train where missing and to compare, a,b; default: all but llama2_linear
    redo: bool = False  # train again what is there
    prompts: PositiveInt = 430  # test prompts
    labelers: PositiveInt = 3  # of each group, per prompt
    best_of: PositiveInt = 16  # n of best-of-n
    max_new_tokens: PositiveInt = 40  # longest response
    seed: Seed = 0  # added to each run's own when test prompts and answers are drawn
    quick: bool = False  # tiny settings, to see every step work


class Method(NamedTuple):
    """A row of the table, and how its policy is made."""

    title: str
    script: ModuleType
    settings: dict  # of the script's Config
    builds_on: list  # beside run.py's policies; their seconds are added to the script's own


METHODS = {
    "dpo": Method("DPO", dpo, {}, ["rankings"]),
    "rest": Method("ReST", rest, {}, ["reward"]),
    "rejection": Method("rejection sampling", rejection, {"ppo_iterations": 0}, ["reward"]),
    "rejection_ppo": Method("rejection sampling + PPO", rejection, {}, ["reward"]),
    "llama2": Method("two reward models", llama2, {}, ["rankings"]),
    "llama2_linear": Method(
        "two reward models, linear", llama2, {"linear": 0.5, "name": "llama2_linear"}, ["rankings"]
    ),
    "rlaif": Method("RLAIF", rlaif, {}, ["reader", "reward_init"]),
    "rlaif_direct": Method("RLAIF, direct", rlaif, {"direct": True}, ["reader"]),
    "helpful": Method("helpful only", constitutional, {}, []),
    "cai_sl": Method("SL-CAI", constitutional, {}, ["reader"]),
    "cai": Method("RL-CAI", constitutional, {}, ["reader", "rankings"]),
    "hir": Method("HIR", hir, {}, ["rankings"]),
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
    shared |= {name: getattr(cfg, name) for name in ("device", "threads", "dtype")}
    path = out / "alternatives.seconds.json"
    seconds = json.loads(path.read_text()) if path.exists() else {}

    def train(what, module, settings, *names):
        if all((out / f"{name}.pt").exists() for name in names) and not cfg.redo:
            return
        print(f"\n=== {what}: {module.__name__.split('.')[-1]}.py ===", flush=True)
        start = time.time()
        module.main(module.Config(**settings))
        seconds[what] = time.time() - start
        with whole_file(path) as file:
            json.dump(seconds, file)

    if any("reader" in METHODS[name].builds_on for name in wanted):
        pages = {"world": shared["data"], "out": str(out / "feedback"), "seed": seed}
        train("pages", feedback, pages | quick_settings(cfg, feedback), "reader")
        reader = {"data": pages["out"], "init": str(out / "ppo_init.pt"), "name": "reader", "epochs": 1}
        train("reader", sft, shared | reader | {"dropout": 0.0, "learning_rate": 1e-3}, "reader")
    if "llama2" in wanted:
        train("margins", llama2, shared | {"compare_margins": True}, "reward_small", "reward_large")
    for name in wanted:
        method = METHODS[name]
        # One run of a script may write several policies.
        together = [other for other in wanted if METHODS[other][1:3] == (method.script, method.settings)]
        written_by_another = name != together[0] or (name == "rejection" and "rejection_ppo" in wanted)
        if not written_by_another:
            train(name, method.script, shared | method.settings | quick_settings(cfg, method.script), *together)
    return seconds


def quick_settings(cfg, script):
    """Tiny settings of a script with --quick, else none."""
    return QUICK[script.__name__.split(".")[-1]] if cfg.quick else {}


# ---------------------------------------------------------------------------------------------------- what it costs


def costs_of_run(out, tokenizer):
    """What run.py's own models cost, from PPO's start on: rankings and the reward model included.

    -> {name: {"labels", "tokens", "seconds"}}, also of "rankings" (collecting them) and "reward" (and training on them)
    """
    stages = json.loads((out / "stages.json").read_text()) if (out / "stages.json").exists() else {}
    seconds = defaultdict(float, {name: stage.get("seconds", 0.0) for name, stage in stages.items()})
    ranked = cost_of_rankings(out, read_comparisons(rankings_file(out)), tokenizer)
    nothing = {"labels": 0, "tokens": 0, "seconds": 0.0}
    both_rounds = ("collect_1", "reward_init", "reward_1", "ppo_1", "collect")
    costs = {"sft": nothing, "ppo_init": nothing}
    costs["rankings"] = ranked | {"seconds": sum(seconds[stage] for stage in both_rounds)}
    costs["reward_init"] = nothing | {"seconds": seconds["reward_init"]}  # before a reward model sees rankings
    to_a_reward_model = costs["rankings"]["seconds"] + seconds["reward"]
    costs["reward"] = costs["best_of_n"] = ranked | {"seconds": to_a_reward_model}
    for name in ("ppo", "ppo_ptx"):
        cost = {"tokens": ranked["tokens"] + sampled_by_ppo(out, name)}
        costs[name] = ranked | cost | {"seconds": costs["reward"]["seconds"] + seconds[name]}
    return costs


def cost_of(name, checkpoint, costs, seconds):
    """What a policy cost, with whatever it builds on. costs: of run.py's models; seconds: {script: of training it}."""
    if name not in METHODS:
        return costs[name]
    cost = dict(checkpoint["cost"])  # labels and tokens of rankings are in it
    built = {part: costs[part]["seconds"] for part in ("rankings", "reward_init", "reward")}
    built["reader"] = seconds.get("pages", 0.0) + seconds.get("reader", 0.0)
    cost["seconds"] += sum(built[part] for part in METHODS[name].builds_on)
    return cost


# ---------------------------------------------------------------------------------------------------- comparing


def compare(cfg, out, seed, device, wanted, seconds):
    """Every policy answers the test prompts once. -> {name: its row}"""
    tokenizer_spec, tokenizer = load_tokenizer(out / "data")
    judge, corpus = Judge(out / "data"), Corpus(out / "data", "valid")
    groups = {group: load_labelers(out / "data", group) for group in ("training", "held_out")}
    reward_model = load_scalar_model(out / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    costs = costs_of_run(out, tokenizer)

    def load(name):
        return load_policy(out / f"{name}.pt", cfg, device, tokenizer_spec, sharded=False)

    def answer(policy, asked, purpose, temperature=1.0):
        sampler, rng = sampling_copy(policy, cfg), generator(seed, purpose)
        return respond(sampler, tokenizer, asked, cfg.max_new_tokens, temperature, rng)

    reference = load("ppo_init")
    room = reference.config.block_size - cfg.max_new_tokens - 8  # and for HIR's instruction
    records = with_room(read_prompts(out / "data", "test"), tokenizer, room)
    records = random.Random(f"test {seed}").sample(records, min(cfg.prompts, len(records)))
    prompts, attacks = [record["prompt"] for record in records], red_team_prompts(cfg, judge.world, seed)
    sft_name = "sft_best" if (out / "sft_best.pt").exists() else "sft"
    opponents = {
        "sft": answer(load(sft_name), prompts, "opponents"),
        "sft_greedy": answer(load(sft_name), prompts, "opponents", temperature=0.0),
        "ppo_ptx": answer(load("ppo_ptx"), prompts, "PPO-ptx"),
    }
    opponents = {name: [text for text, _ in answers] for name, answers in opponents.items()}

    rows = {}
    for name in (*FROM_RUN, *wanted):
        title = METHODS[name].title if name in METHODS else FROM_RUN[name]
        policy, checkpoint, prefix, greedy = reference, {}, "", None
        if name == "best_of_n":
            answers = best_answers(cfg, policy, reward_model, tokenizer, prompts, answer)
            attacked = best_answers(cfg, policy, reward_model, tokenizer, attacks, answer)
        else:
            path = out / f"{sft_name if name == 'sft' else name}.pt"
            policy, checkpoint = load(path.stem), read_checkpoint(path)
            prefix = checkpoint.get("results", {}).get("prefix", "")  # HIR's instruction
            answers = answer(policy, [prefix + prompt for prompt in prompts], "answers")
            greedy = answer(policy, [prefix + prompt for prompt in prompts], "answers", temperature=0.0)
            attacked = answer(policy, [prefix + prompt for prompt in attacks], "answers to attacks")
        texts, attacked = [text for text, _ in answers], [text for text, _ in attacked]
        gold = gold_report(judge, records, texts)
        row = {"title": title, "length": fmean(len(text.split()) for text in texts)}
        for group, people in groups.items():
            row[group] = win_rate(people, cfg.labelers, prompts, texts, opponents["sft"], seed)
        if greedy:  # best of n greedy answers would be one
            people, greedy = groups["held_out"], [text for text, _ in greedy]
            row["held_out_greedy"] = win_rate(people, cfg.labelers, prompts, greedy, opponents["sft_greedy"], seed)
        row["against_ppo_ptx"] = win_rate(groups["training"], cfg.labelers, prompts, texts, opponents["ppo_ptx"], seed)
        row |= {key: gold[key] for key in ("helpful", "truthful", "harmless")}
        row["red_team"] = fmean(judge(prompt, text)["harmless"] for prompt, text in zip(attacks, attacked))
        row["red_team_refuses"] = fmean(refuses(text) for text in attacked)
        row["score"] = mean_score(reward_model, tokenizer, prompts, answers)
        if name == "best_of_n":
            row |= {"kl": math.log(cfg.best_of) - (cfg.best_of - 1) / cfg.best_of, "kl_is_upper_bound": True}
        else:
            row["kl"] = kl_of_answers(policy, reference, tokenizer, prompts, answers, prefix)
        row["corpus_loss"] = corpus_loss(policy, corpus)
        row["cost"] = cost_of(name, checkpoint, costs, seconds)
        row["samples"] = [[prompt, text] for prompt, text in zip(prompts[:3], texts)]
        rows[name] = row
        print(f"{title:26} {interval(row['training'])}", flush=True)
    return rows


def red_team_prompts(cfg, world, seed):
    """Test prompts that ask for something unkind, half of them in phrasings that nothing was trained on."""
    rng, count, prompts = random.Random(f"red team {seed}"), min(40, cfg.prompts), []
    for unseen in (False, True):
        prompts += constitutional.red_team(world, count, "test", rng, unseen=unseen)
    return prompts


def refuses(text):
    return any(sentence.act == "refuse" for sentence in parse(text))


def best_answers(cfg, policy, reward_model, tokenizer, prompts, answer):
    """Of n answers the one the reward model likes best: no training at all, n times the sampling. -> [(text, ended)]"""
    asked = [prompt for prompt in prompts for _ in range(cfg.best_of)]
    answers = answer(policy, asked, "best of n")
    return [answers[i] for i, _ in best_of_n(reward_model, tokenizer, prompts, answers, cfg.best_of)]


def margins_table(cfg, out, device):
    """llama2.py's table of margins, or "" where the reward models with margins have not been trained."""
    names = {"none": "reward", "small": "reward_small", "large": "reward_large"}
    if not all((out / f"{name}.pt").exists() for name in names.values()):
        return ""
    tokenizer_spec, tokenizer = load_tokenizer(out / "data")
    models = {}
    for margin, name in names.items():
        models[margin] = load_scalar_model(out / f"{name}.pt", cfg, device, tokenizer_spec, sharded=False)
    records = read_comparisons(rankings_file(out))
    records = [r for r in records if r["split"] == "valid" and r.get("group", "training") == "training"]
    return llama2.margins_table(models, encode_rankings(records, tokenizer, models["none"].config.block_size))


def main(cfg):
    device = set_up(cfg)
    wanted = [name.strip() for name in cfg.methods.split(",") if name.strip()]
    wanted = wanted or [name for name in METHODS if name not in ON_REQUEST]
    for name in wanted:
        require(name in METHODS, f"--methods {name}: choose from {', '.join(METHODS)}")
    runs = [Path(run.strip()) for run in cfg.runs.split(",") if run.strip()]
    require(runs, "--runs: name at least one run folder")
    for out in runs:
        for file in ("data/village.json", "ppo_init.pt", "ppo_ptx.pt", "reward.pt"):
            require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
        rankings_file(out)
    reports = {}
    for out in runs:
        seed = read_world(out / "data").seed
        seconds = train_missing(cfg, out, seed, wanted)
        reports[str(out)] = compare(cfg, out, seed + cfg.seed, device, wanted, seconds)
        with whole_file(out / "alternatives.json") as file:
            json.dump(reports[str(out)], file, indent=1)
    text = comparison_table(reports)
    margins = margins_table(cfg, runs[0], device)
    if margins:
        text += f"\n\nReward model, % of pairs by how much better people found the winner:\n\n{margins}"
    print("\n" + text)
    with whole_file(runs[0] / "alternatives.md") as file:
        file.write(text + "\n")
    figure, written = comparison_figure(reports), "alternatives.md, alternatives.json"
    if figure is not None:
        save_figure(figure, runs[0] / "alternatives.png")
        written += ", alternatives.png"
    print(f"\nwrote {runs[0]}/{written}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
