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

from alternatives.common import CommonConfig, Run, fine_tune, rankings_of_people, require_finite
from core.config import PositiveFloat, PositiveInt, command_line, require
from core.text import score_answers
from data.folder import read_demonstrations
from sft import mean_sample_score


@dataclass
class Config(CommonConfig):
    grow: PositiveInt = 2  # Grow steps                                                               paper: 1 or 2
    prompts: PositiveInt = 600  # training prompts per Grow step                                      paper: all
    samples: PositiveInt = 4  # N: answers per prompt                                                 paper: 25 to 1000
    temperature: float = 0.8  # of those answers                                                      paper: 0.8
    thresholds: str = "0.7,0.8,0.9"  # τ of each Improve step, rising             paper: 0, 0.7, 0.8, 0.9, 0.95, 0.99
    percentile: bool = False  # thresholds are shares of each prompt's own answers, lowest first
    learning_rate: PositiveFloat = 1e-3  # peak in the first Improve step, cosine to a tenth          paper: silent
    decay: PositiveFloat = 0.5  # of the learning rate from one Improve step to the next  paper: falls, no numbers
    batch_size: PositiveInt = 32  # answers per step                                                  paper: silent
    valid_prompts: PositiveInt = 300  # validation prompts whose reward says when to stop
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
    rewards_of = defaultdict(list)
    for prompt, reward in zip(prompts, rewards):
        rewards_of[prompt].append(reward)
    kept = []
    for i, prompt in enumerate(prompts):
        quantile = torch.tensor(rewards_of[prompt], dtype=torch.float64).quantile(share).item()
        if len(rewards_of[prompt]) > 1 and rewards[i] >= quantile - 1e-9:
            kept.append(i)
    return kept


def improve_rate(step, cfg):
    """Peak learning rate of an Improve step, 0 the first: each one is `decay` times the one before."""
    return cfg.learning_rate * cfg.decay**step


def parse_thresholds(text):
    """'0.6,0.7' -> [0.6, 0.7]: rising numbers from 0 to less than 1."""
    try:
        taus = [float(part) for part in text.split(",")]
    except ValueError:
        taus = []
    rising = all(low < high for low, high in zip(taus, taus[1:]))
    fits = taus and rising and 0 <= taus[0] and taus[-1] < 1
    require(fits, f"--thresholds {text}: must be rising numbers a,b,c from 0 to less than 1")
    return taus


# ---------------------------------------------------------------------------------------------------- Grow, Improve


def grow(run, policy, reward_model, prompts, demonstrations, rng):
    """Sample `samples` answers to each prompt, add the demonstrations, score all. -> [(prompt, text, ended)], [float]

    What exceeds the context is left out.
    """
    cfg = run.cfg
    asked = [prompt for prompt in prompts for _ in range(cfg.samples)]
    sampled = run.answers(policy, asked, rng, cfg.temperature)
    answers = [(prompt, *answer) for prompt, answer in zip(asked, sampled)] + demonstrations
    texts = [(text, ended) for _, text, ended in answers]
    scores = score_answers(reward_model, run.tokenizer, [prompt for prompt, _, _ in answers], texts)
    fits = [i for i, score in enumerate(scores) if not math.isnan(score)]
    return [answers[i] for i in fits], [scores[i] for i in fits]


def validation_reward(run, policy, reward_model, prompts):
    """Mean reward of one answer per prompt at temperature 1, the same random numbers for every policy."""
    return mean_sample_score(policy, reward_model, run.tokenizer, prompts, run.cfg)


def improve(run, policy, reward_model, answers, scores, best, taus, valid_prompts, number=1):
    """Improve steps on one data set, until one does not raise `best`, the validation reward. In place. -> the new best

    answers: [(prompt, text, ended)]; number: of the Grow step that made them.
    """
    cfg, rewards = run.cfg, rescale(scores)
    for step, tau in enumerate(taus):
        if cfg.percentile:
            kept = best_of_each([prompt for prompt, _, _ in answers], scores, tau)
        else:
            kept = above(rewards, tau)
        rows = run.rows([answers[i] for i in kept])
        if not rows:
            print(f"  τ {tau:.2f}: nothing is left")
            break
        before = {name: weight.clone() for name, weight in policy.state_dict().items()}
        learning_rate, rng = improve_rate(step, cfg), run.generator(f"improve {number}", step)
        loss = fine_tune(policy, rows, run, rng, 1, learning_rate, cfg.batch_size)
        reward = validation_reward(run, policy, reward_model, valid_prompts)
        require_finite(reward, "the validation reward", step + 1)
        n_prompts, kept_reward = len({answers[i][0] for i in kept}), sum(scores[i] for i in kept) / len(kept)
        metrics = {"answers": len(rows), "prompts": n_prompts, "kept_reward": kept_reward, "loss": loss}
        metrics |= {"valid_reward": reward, "learning_rate": learning_rate, "better": reward > best}
        run.records.write(step=step, tau=tau, **metrics)
        print(
            f"  τ {tau:.2f}: {len(rows):5,} answers to {n_prompts:5,} prompts, mean reward {kept_reward:+.3f}"
            f"  lr {learning_rate:.1e}  loss {loss:.3f}  validation reward {reward:+.3f}"
            f"{'' if reward > best else ' (not better)'}",
            flush=True,
        )
        if reward <= best:
            policy.load_state_dict(before)
            break
        best = reward
    return best


def main(cfg):
    thresholds = parse_thresholds(cfg.thresholds)
    require(cfg.decay < 1, f"--decay {cfg.decay}: must be less than 1, so that the learning rate falls")
    run = Run(cfg, cfg.name)
    policy, reward_model = run.load_policy("ppo_init"), run.load_scalar_model("reward").requires_grad_(False)
    prompts, valid_prompts = run.prompts(policy, "train"), run.prompts(policy, "valid", cfg.valid_prompts)
    demonstrations = [(r["prompt"], r["completion"], True) for r in read_demonstrations(cfg.data, "train")]
    rankings_of_people(run)  # the reward model has learned from them: they count
    start = best = validation_reward(run, policy, reward_model, valid_prompts)
    print(f"PPO's start: validation reward {start:+.3f}")

    for number in range(1, cfg.grow + 1):
        first = (number - 1) * cfg.prompts
        asked = [prompts[i % len(prompts)] for i in range(first, first + cfg.prompts)]
        asked = list(dict.fromkeys(asked))
        rng = run.generator("grow", number)
        answers, scores = grow(run, policy, reward_model, asked, demonstrations, rng)
        mean, mean_rescaled = sum(scores) / len(scores), sum(rescale(scores)) / len(scores)
        taus = [tau for tau in thresholds if cfg.percentile or tau > mean_rescaled]
        enough = taus or number > 1
        require(enough, f"--thresholds {cfg.thresholds}: none exceeds the mean reward, {mean_rescaled:.2f}")
        run.records.write(grow=number, answers=len(answers), mean_sample_score=mean, mean_rescaled=mean_rescaled)
        print(
            f"Grow {number}: {len(answers):,} answers, mean reward {mean:+.3f}, rescaled {mean_rescaled:.3f}", end="; "
        )
        print(f"thresholds {', '.join(map(str, taus)) or 'that exceed it: none'}")
        best = improve(run, policy, reward_model, answers, scores, best, taus, valid_prompts, number)
    run.finish(policy, valid_reward=best, valid_reward_at_start=start)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
