"""ReST: let the policy write, keep what the reward model likes, imitate it (Gulcehre et al. 2023).

    python alternatives/rest.py                                              # -> rest.pt
    python alternatives/rest.py --percentile --thresholds 0.25,0.5,0.75     # compares answers to one prompt only

Where PPO throws a batch away after one update, ReST samples a whole data set and learns from it several times,
off-line:

  Grow      sample N answers to every prompt from the policy, add the demonstrations, score all of it
            with reward.pt and rescale the rewards of this data set to [0, 1]
  Improve   for τ₁ < τ₂ < …, each time at a lower learning rate, fine-tune the CURRENT policy on what exceeds τ:

                J(θ) = E_{(x, y) in the data set} [ 1[ r(x, y) > τ ] · -log π_θ(y|x) ]

            until the reward on validation prompts no longer rises; the best policy so far writes in the next Grow

The loss is sft.py's (the paper's "BC", the best of those it tried): what is bad is left out, nothing is pushed down. τ₁
should exceed the mean reward, or imitating what is kept need not improve on the policy; thresholds that do not are
passed over.

One threshold for all prompts prefers the prompts that score high whatever one answers. --percentile takes the
thresholds as shares of a prompt's own answers instead: 0.75 keeps the best quarter of each. That needs answers to
compare, so it leaves out the demonstrations of prompts that nothing was sampled for.

The thresholds are the paper's first three after 0: higher ones leave too little of so few answers. Where it is silent
(ours): learning rates and their decay, one epoch per Improve step, other prompts in every Grow, one sampled answer to
each validation prompt as the measure of a policy, the optimizer, a tenth of pretraining loss. The authors warn that the
order by reward is not that by people, who liked one Grow step best.
"""

import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alternatives.common import Inputs, Run, fine_tune, rankings_of_people
from data.folder import read_demonstrations
from model import score_answers
from plumbing import check_finite, command_line, require
from sft import mean_reward


@dataclass
class Config(Inputs):
    grow: int = 2  # Grow steps                                                               paper: 1 or 2
    prompts: int = 600  # training prompts per Grow step                                      paper: all
    samples: int = 4  # N: answers per prompt                                                 paper: 25 to 1000
    temperature: float = 0.8  # of those answers                                              paper: 0.8
    thresholds: str = "0.7,0.8,0.9"  # τ of each Improve step, rising             paper: 0, 0.7, 0.8, 0.9, 0.95, 0.99
    percentile: bool = False  # thresholds are shares of each prompt's own answers, lowest first
    learning_rate: float = 1e-3  # peak in the first Improve step, cosine to a tenth          paper: silent
    decay: float = 0.5  # of the learning rate from one Improve step to the next          paper: falls, no numbers
    batch_size: int = 32  # answers per step                                                  paper: silent
    valid_prompts: int = 300  # validation prompts whose reward says when to stop
    name: str = "rest"  # writes OUT/NAME.pt


# ---------------------------------------------------------------------------------------------------- what is kept


def rescale(rewards):
    """Rewards of a data set to [0, 1]: the lowest becomes 0, the highest 1. All 0 if they are equal."""
    low, high = min(rewards), max(rewards)
    return [(r - low) / (high - low) if high > low else 0.0 for r in rewards]


def above(rewards, tau):
    """Indices of what exceeds the threshold."""
    return [i for i, r in enumerate(rewards) if r > tau]


def best_of_each(prompts, rewards, share):
    """Indices of the answers that reach the given quantile of the rewards of all answers to their own prompt.

    "Reach", not "exceed": the best answer always stays. A prompt with a single answer has nothing to compare and goes.
    """
    own = defaultdict(list)
    for prompt, reward in zip(prompts, rewards):
        own[prompt].append(reward)
    bar = {p: torch.tensor(some, dtype=torch.float64).quantile(share).item() for p, some in own.items()}
    return [i for i, (p, r) in enumerate(zip(prompts, rewards)) if len(own[p]) > 1 and r >= bar[p] - 1e-9]


def improve_rate(step, cfg):
    """Peak learning rate of an Improve step, 0 the first: each one is `decay` times the one before."""
    return cfg.learning_rate * cfg.decay**step


def numbers(text):
    """'0.6,0.7' -> [0.6, 0.7]: rising numbers from 0 to less than 1."""
    try:
        taus = [float(part) for part in text.split(",")]
    except ValueError:
        taus = []
    rising = all(low < high for low, high in zip(taus, taus[1:]))
    require(
        taus and rising and 0 <= taus[0] and taus[-1] < 1, f"--thresholds {text}: rising, from 0 to less than 1: a,b,c"
    )
    return taus


# ---------------------------------------------------------------------------------------------------- Grow, Improve


def write_and_score(run, policy, reward_model, prompts, demonstrations):
    """Grow: `samples` answers to each prompt and the demonstrations, with their rewards. -> [(prompt, text, ended)], [float]"""
    cfg = run.cfg
    asked = [prompt for prompt in prompts for _ in range(cfg.samples)]
    answers = run.answers(policy, asked, cfg.temperature)
    items = [(prompt, *answer) for prompt, answer in zip(asked, answers)] + demonstrations
    scores = score_answers(reward_model, run.encoding, [p for p, *_ in items], [answer for _, *answer in items])
    fits = [(item, s) for item, s in zip(items, scores) if not math.isnan(s)]  # within the context
    return [item for item, _ in fits], [s for _, s in fits]


def validation_reward(run, policy, reward_model, prompts):
    """Mean reward of one answer per prompt at temperature 1, the same random numbers for every policy."""
    return mean_reward(policy, reward_model, run.encoding, prompts, run.cfg)


def improve(run, policy, reward_model, items, scores, best, taus, valid):
    """Improve steps on one data set, until one does not raise `best`, the validation reward. In place. -> the new best"""
    cfg, rewards = run.cfg, rescale(scores)
    for step, tau in enumerate(taus):
        kept = best_of_each([p for p, *_ in items], scores, tau) if cfg.percentile else above(rewards, tau)
        rows = run.rows([items[i] for i in kept])
        if not rows:
            print(f"  τ {tau:.2f}: nothing is left")
            break
        before, lr = {k: v.clone() for k, v in policy.state_dict().items()}, improve_rate(step, cfg)
        loss = fine_tune(policy, rows, run, 1, lr, cfg.batch_size)
        reward = validation_reward(run, policy, reward_model, valid)
        check_finite(reward, "the validation reward", f"τ {tau}", "try a smaller --learning_rate")
        record = {"items": len(rows), "prompts": len({items[i][0] for i in kept}), "loss": loss, "valid_reward": reward}
        record["kept_reward"] = sum(scores[i] for i in kept) / len(kept)
        run.log.write(step=step, tau=tau, learning_rate=lr, better=reward > best, **record)
        print(
            f"  τ {tau:.2f}: {len(rows):5,} answers to {record['prompts']:5,} prompts, mean reward {record['kept_reward']:+.3f}"
            f"  lr {lr:.1e}  loss {loss:.3f}  validation reward {reward:+.3f}" + " (not better)" * (reward <= best),
            flush=True,
        )
        if reward <= best:
            policy.load_state_dict(before)
            break
        best = reward
    return best


def main(cfg):
    least = {name: getattr(cfg, name) for name in ("grow", "prompts", "samples", "batch_size", "valid_prompts")}
    for name, value in least.items():
        require(value >= 1, f"--{name} {value}: must be at least 1")
    require(cfg.learning_rate > 0 and cfg.temperature >= 0, "--learning_rate: positive, --temperature: not negative")
    require(0 < cfg.decay < 1, f"--decay {cfg.decay}: between 0 and 1, so that the learning rate falls")
    thresholds = numbers(cfg.thresholds)
    run = Run(cfg, cfg.name)
    policy, reward_model = run.load("ppo_init"), run.load("reward", "scalar").requires_grad_(False)
    prompts, valid = run.prompts(policy, "train"), run.prompts(policy, "valid", cfg.valid_prompts)
    demonstrations = [(r["prompt"], r["completion"], True) for r in read_demonstrations(cfg.data, "train")]
    rankings_of_people(run)  # the reward model has learned from them: they count
    start = best = validation_reward(run, policy, reward_model, valid)
    print(f"PPO's start: validation reward {best:+.3f}")

    for grow in range(cfg.grow):
        asked = [prompts[i % len(prompts)] for i in range(grow * cfg.prompts, (grow + 1) * cfg.prompts)]
        asked = list(dict.fromkeys(asked))
        items, scores = write_and_score(run, policy, reward_model, asked, demonstrations)
        mean = sum(rescale(scores)) / len(scores)
        taus = [tau for tau in thresholds if cfg.percentile or tau > mean]
        require(taus or grow > 0, f"--thresholds {cfg.thresholds}: none exceeds the mean reward, {mean:.2f}")
        run.log.write(grow=grow + 1, items=len(items), mean_reward=sum(scores) / len(scores), mean_rescaled=mean)
        print(
            f"Grow {grow + 1}: {len(items):,} answers, mean reward {sum(scores) / len(scores):+.3f}, rescaled {mean:.3f}; "
            f"thresholds {', '.join(map(str, taus)) or 'that exceed it: none'}"
        )
        best = improve(run, policy, reward_model, items, scores, best, taus, valid)
    run.finish(policy, valid_reward=best, valid_reward_at_start=start)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
