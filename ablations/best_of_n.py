"""What holds PPO back? PPO and best of n by the reward model, and by what it stands for, the labelers' own utility.

    python ablations/best_of_n.py    # after run.py, two minutes -> OUT/best_of_n.md, .json, with matplotlib .png

The training labelers' mean utility, without the noise of a ranking, is the best reward that a reward model could learn.
Best of n: of n answers by PPO's initial policy to a new prompt the best one is kept, by reward.pt or by this utility;
the answers are the same. PPO: run.py's, and one with the same settings that the utility rewards (OUT/utility.pt),
scaled and shifted until it scores those answers with reward.pt's mean and spread. A second table says in which requests
PPO stays below a perfect answer, complete and true. Win rates are by held-out labelers against one SFT answer per
prompt, both at T = 1, as in evaluate.py.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import ppo
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, settings_of
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder
from core.report import colours, interval, new_figure, percent, save_results, shortened, table
from core.text import decode_answer, respond, score_answers
from data.folder import load_tokenizer
from data.village.grammar import PROMPT_END
from data.village.intents import understand
from data.village.judge import Judge
from data.village.labelers import load_labelers
from evaluate import gold_report, test_records, win_rate


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village
    out: str = "out/run"  # run folder
    best_of: PositiveInt = 16  # largest n, a power of two
    prompts: PositiveInt = 430  # test prompts
    labelers: PositiveInt = 3  # held-out labelers per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    seed: Seed = 0  # of sampling and of the choice of labelers
    unseen_prompts = 0  # all in phrasings that training prompts have


class Utility:
    """How much labelers like an answer on average, without noise; scores rows of tokens as a reward model does."""

    def __init__(self, labelers, tokenizer, scale=1.0, shift=0.0):
        self.labelers, self.tokenizer, self.scale, self.shift = labelers, tokenizer, scale, shift

    def of(self, prompt, text):
        return self.scale * fmean(person.impression(prompt, text) for person in self.labelers) + self.shift

    def score(self, tokens, lengths):
        """Rows of a prompt, which ends with PROMPT_END, and a response. tokens: (B, T), lengths: (B,) -> (B,)"""
        texts = [decode_answer(self.tokenizer, row[:n])[0] for row, n in zip(tokens.tolist(), lengths.tolist())]
        parts = [text.partition(PROMPT_END) for text in texts]
        return torch.tensor([self.of(asked + end, answer) for asked, end, answer in parts], device=tokens.device)


def best_of_first(scores, n, of):
    """Of the first n of every `of` answers to a prompt the index of the one that scores highest.

    scores: of `of` answers per prompt, one prompt after the other. -> [index into scores]
    """
    return [max(range(first, first + n), key=scores.__getitem__) for first in range(0, len(scores), of)]


def scale_and_shift(utilities, scores, n):
    """scale, shift that give utilities the scores' mean, and their spread among the n answers to one prompt.

    utilities, scores: of n answers per prompt, one prompt after the other.
    """
    scale = spread_within_prompts(scores, n) / spread_within_prompts(utilities, n)
    return scale, fmean(scores) - scale * fmean(utilities)


def spread_within_prompts(scores, n):
    """Standard deviation of the scores of n answers to one prompt, over all prompts. scores: n per prompt, in a row."""
    return torch.tensor(scores).view(-1, n).var(dim=1, correction=0).mean().sqrt().item()


def main(cfg):
    power_of_two = cfg.best_of > 1 and cfg.best_of & (cfg.best_of - 1) == 0
    require(power_of_two, f"--best_of {cfg.best_of}: must be a power of two, and not 1")
    device, out = set_up(cfg), output_folder(cfg.out)
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    judge, training, held_out = Judge(cfg.data), *(load_labelers(cfg.data, group) for group in ("training", "held_out"))
    sft = load_policy(out / "sft_best.pt", cfg, device, tokenizer_spec, sharded=False)
    policy = load_policy(out / "ppo_init.pt", cfg, device, tokenizer_spec, sharded=False)
    reward_model = load_scalar_model(out / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    records, _ = test_records(cfg, tokenizer, policy.config.block_size - cfg.max_new_tokens)
    prompts = [record["prompt"] for record in records]

    def answers_of(model, asked, purpose):
        rng = generator(cfg.seed, purpose)
        return respond(sampling_copy(model, cfg), tokenizer, asked, cfg.max_new_tokens, 1.0, rng)

    def judged(texts):
        rate = win_rate(held_out, cfg.labelers, prompts, texts, opponents, cfg.seed)
        gold = gold_report(judge, records, texts)
        return {"held_out": rate} | {key: gold[key] for key in ("helpful", "truthful_and_informative", "likert")}

    opponents = [text for text, _ in answers_of(sft, prompts, "opponents")]
    asked = [prompt for prompt in prompts for _ in range(cfg.best_of)]
    sampled, utility = answers_of(policy, asked, "best of n"), Utility(training, tokenizer)
    scores = {
        "reward model": score_answers(reward_model, tokenizer, asked, sampled),
        "labelers' utility": [utility.of(prompt, text) for prompt, (text, _) in zip(asked, sampled)],
    }
    curves = {name: {} for name in scores}
    for name, of_answers in scores.items():
        for n in (2**k for k in range(cfg.best_of.bit_length())):
            curves[name][n] = judged([sampled[i][0] for i in best_of_first(of_answers, n, cfg.best_of)])
    perfect = judged([judge.good_answer(prompt) for prompt in prompts])

    scale, shift = scale_and_shift(scores["labelers' utility"], scores["reward model"], cfg.best_of)
    utility = Utility(training, tokenizer, scale, shift)
    shared = {name: getattr(cfg, name) for name in ("data", "out", "device", "threads", "dtype")}
    settings = settings_of(out / "ppo.pt", ppo.Config) | shared | {"name": "utility", "save_every": 0, "resume": False}
    ppo.main(ppo.Config(**settings), reward_model=utility)
    answers = {}
    for name, file in {"reward model": "ppo.pt", "labelers' utility": "utility.pt"}.items():
        improved = load_policy(out / file, cfg, device, tokenizer_spec, sharded=False)
        answers[name] = [text for text, _ in answers_of(improved, prompts, "answers")]
    by_ppo = {name: judged(texts) for name, texts in answers.items()}
    lost = {name: points_lost(judge, prompts, texts) for name, texts in answers.items()}

    rows = [cells(f"best of {n} by {name}", found) for name, curve in curves.items() for n, found in curve.items()]
    rows += [cells(f"PPO by {name}", found) for name, found in by_ppo.items()] + [cells("a perfect answer", perfect)]
    text = table(["", "win % vs SFT, held-out", "helpful", "truthful + informative", "Likert"], rows)
    text += f"\n\n{lost_table(lost)}\n"
    found = {"config": vars(cfg), "curves": curves, "ppo": by_ppo, "perfect": perfect, "points_lost": lost}
    found |= {"scale": scale, "shift": shift}
    save_results(out, "best_of_n", found, text, best_of_n_figure(curves, by_ppo, perfect))


def cells(name, found):
    """A row of the table."""
    numbers = [f"{found[key]:.2f}" for key in ("helpful", "truthful_and_informative", "likert")]
    return [name, interval(found["held_out"]), *numbers]


def points_lost(judge, prompts, texts):
    """How far the answers stay below the judge's 7, by kind of request.

    -> {kind: {"n", "points": in all, "example": [prompt, answer] of the first answer that lacks most}}, most first
    """
    by_kind = defaultdict(list)
    for prompt, text in zip(prompts, texts):
        by_kind[understand(prompt)[0].name].append((7 - judge(prompt, text)["likert"], prompt, text))
    found = {}
    for kind, answers in by_kind.items():
        _, *example = max(answers, key=lambda answer: answer[0])
        found[kind] = {"n": len(answers), "points": sum(points for points, *_ in answers), "example": example}
    return dict(sorted(found.items(), key=lambda item: -item[1]["points"]))


def lost_table(lost, kinds=12):
    """The kinds of request in which PPO by the reward model loses most, beside PPO by the labelers' utility."""
    (by_model, by_utility), rows = lost.values(), []
    total = max(1, sum(found["points"] for found in by_model.values()))
    for kind, found in list(by_model.items())[:kinds]:
        prompt, answer = found["example"]
        each = [f"{some[kind]['points'] / some[kind]['n']:.1f}" for some in (by_model, by_utility)]
        example = f"{shortened(prompt, 70)} → {shortened(answer, 60)}"
        rows.append([kind, found["n"], percent(found["points"] / total), *each, example])
    head = ["request", "n", "of all points below 7", "per answer, by reward model", "by utility", "for example"]
    return table(head, rows)


def best_of_n_figure(curves, by_ppo, perfect):
    """Win rate against n, a line per chooser, and what PPO and a perfect answer get. -> matplotlib's Figure or None"""
    if (figure := new_figure(4)) is None:
        return None
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), colours(len(curves))):
        rates = [found["held_out"] for found in curve.values()]
        errors = [100 * (rate["high"] - rate["mean"]) for rate in rates]
        axes.errorbar(
            list(curve),
            [100 * rate["mean"] for rate in rates],
            errors,
            capsize=2,
            color=colour,
            label=f"best by {name}",
        )
        axes.axhline(100 * by_ppo[name]["held_out"]["mean"], color=colour, linestyle=":", label=f"PPO by {name}")
    axes.axhline(100 * perfect["held_out"]["mean"], color="grey", linestyle="--", label="a perfect answer")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="n answers to choose from", ylabel="win rate against SFT, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    command_line(Config, main, __doc__)
