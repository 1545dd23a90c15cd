"""What holds PPO back, its reward model or its policy? Best of n by the reward model, and by the labelers' own taste.

    python ablations/best_of_n.py      # after run.py -> OUT/best_of_n.md, .json, with matplotlib .png

Of n answers by PPO's initial policy to a new prompt the best one is kept, by reward.pt or by the mean taste of the
training labelers, which no reward model can know better than they do. The same answers, so the gap between the two
curves is the reward model's. What is still missing to a perfect answer, complete and true, is the policy's: it did
not write it in n tries. Win rates are by held-out labelers against one SFT answer per prompt, both at T = 1, as in
evaluate.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model
from core.config import Device, PositiveInt, Seed, command_line
from core.device import sampling_copy, set_up
from core.output import output_folder
from core.report import interval, new_figure, save_results, table
from core.text import best_of_n, respond
from data.folder import load_tokenizer
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


def best_by_taste(labelers, prompts, answers, n):
    """Of every n answers to a prompt the index of the one that the labelers like best on average, before any mood.

    prompts: list of str; answers: n per prompt, one prompt after the other, as (text, ended). -> [index into answers]
    """
    liking = [
        sum(person.impression(prompts[i // n], text) for person in labelers) for i, (text, _) in enumerate(answers)
    ]
    return [max(range(first, first + n), key=liking.__getitem__) for first in range(0, len(answers), n)]


def main(cfg):
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
    sampled = answers_of(policy, [prompt for prompt in prompts for _ in range(cfg.best_of)], "best of n")
    curves, n = {"reward model": {}, "labelers' own taste": {}}, 1
    while n <= cfg.best_of:
        first_n = [sampled[i] for i in range(len(sampled)) if i % cfg.best_of < n]
        chosen = {
            "reward model": [i for i, _ in best_of_n(reward_model, tokenizer, prompts, first_n, n)],
            "labelers' own taste": best_by_taste(training, prompts, first_n, n),
        }
        for name, indices in chosen.items():
            curves[name][n] = judged([first_n[i][0] for i in indices])
        n *= 2
    perfect = judged([judge.good_answer(prompt) for prompt in prompts])

    rows = [cells(f"best of {n} by {name}", found) for name, curve in curves.items() for n, found in curve.items()]
    head = ["", "win % vs SFT, held-out", "helpful", "true, on task", "Likert"]
    text = table(head, [*rows, cells("a perfect answer", perfect)]) + "\n"
    found = {"config": vars(cfg), "curves": curves, "perfect": perfect}
    save_results(out, "best_of_n", found, text, best_of_n_figure(curves, perfect))


def cells(name, found):
    """A row of the table."""
    numbers = [f"{found[key]:.2f}" for key in ("helpful", "truthful_and_informative", "likert")]
    return [name, interval(found["held_out"]), *numbers]


def best_of_n_figure(curves, perfect):
    """Win rate against n, a line per chooser, and what a perfect answer gets. -> matplotlib's Figure or None"""
    if (figure := new_figure(4)) is None:
        return None
    axes = figure.subplots()
    for name, curve in curves.items():
        rates = [found["held_out"] for found in curve.values()]
        errors = [100 * (rate["high"] - rate["mean"]) for rate in rates]
        axes.errorbar(list(curve), [100 * rate["mean"] for rate in rates], errors, capsize=2, label=f"best by {name}")
    axes.axhline(100 * perfect["held_out"]["mean"], color="grey", linestyle="--", label="a perfect answer")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="n answers to choose from", ylabel="win rate against SFT, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    command_line(Config, main, __doc__)
