"""DPO: the reward model is the policy itself (Rafailov et al. 2023).

    python alternatives/dpo.py                       # -> dpo.pt, on all pairs of all rankings
    python alternatives/dpo.py --best_vs_worst       # one pair per ranking
    python alternatives/dpo.py --ipo --beta 0.1      # the squared loss of IPO (Azar et al. 2023)

Reads as a variation on reward.py: the same rankings, the same pairs, the same loss, but the score of an answer y is

    r̂(x, y) = β ( log π(y|x) - log π_ref(y|x) )          log π(y|x) = Σ over response tokens, end-of-text included

so no reward model and no sampling is needed. Why that is RLHF: the policy that maximises E[r] - β KL(π‖π_ref) is
π ∝ π_ref exp(r/β), so r = β log(π/π_ref) + β log Z(x); in the difference of two answers to one prompt log Z(x) cancels,
and Eq. 1 of InstructGPT becomes

    L = -log σ( r̂(x, y_w) - r̂(x, y_l) )                  ln 2 at the start, where π = π_ref

The gradient pulls hardest where the implicit rewards are most wrong: its weight is σ( r̂(x, y_l) - r̂(x, y_w) ).

The reference is PPO's initial policy, which wrote most of the answers; where others wrote them, as in data/hh.py's
folder, fine-tune it on the chosen ones first. Deviations: AdamW, not RMSprop; cosine without the 150 steps of warm-up;
gradients clipped to 1, not 10; an answer that was cut off has no end-of-text; rankings give all their pairs, each
prompt weighing the same, as in reward.py (DPO's data are pairs). Chosen answers becoming less likely too is no bug:
only the difference is trained, and both may fall.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from alternatives.common import Inputs, Run, minibatches, rankings_of_people
from model import pad, response_mask, token_logprobs
from plumbing import adamw, check_finite, command_line, cosine_to_tenth, optimizer_step, require
from reward import accuracy, encode_ranking, pair_outcomes, pairs_of


@dataclass
class Config(Inputs):
    beta: float = 0.3  # β: how dear it is to leave the reference                              paper: 0.1 to 0.5
    label_smoothing: float = 0.0  # share of the pairs that labelers may have put the wrong way round
    ipo: bool = False  # (h - 1/(2β))² instead of -log σ(βh), h the difference of log-ratios
    best_vs_worst: bool = False  # of every ranking only the best against the worst answer
    epochs: int = 1  # passes over the rankings                                                paper: 1
    batch_size: int = 16  # prompts per step                                                   paper: 64 pairs
    learning_rate: float = 1e-4  # peak, cosine to a tenth                                     paper: 1e-6
    eval_every: int = 50  # steps between looks at held-out rankings
    name: str = "dpo"  # writes OUT/NAME.pt


def preference_loss(h, beta, label_smoothing=0.0, ipo=False):
    """Loss of each pair. h: (pairs,) log-ratio log(π/π_ref) of the winner less that of the loser -> (pairs,)."""
    if ipo:
        return (h - 1 / (2 * beta)) ** 2
    return (1 - label_smoothing) * F.softplus(-beta * h) + label_smoothing * F.softplus(beta * h)


def sequence_logprobs(model, rows, device):
    """log π(y|x) of each row, SUMMED over its response tokens. rows: [(ids, length of the prompt)] -> (N,)"""
    tokens, lengths = pad([ids for ids, _ in rows], device)
    mask = response_mask(torch.tensor([n for _, n in rows], device=device), lengths, tokens.size(1))
    return (token_logprobs(model, tokens, mask) * mask).sum(1)


def log_ratios(policy, reference, rankings, device):
    """log(π/π_ref) of all answers of all rankings, one forward pass for all of them. -> (N,)"""
    rows = [row for answers, _ in rankings for row in answers]
    with torch.no_grad():
        base = sequence_logprobs(reference, rows, device)
    return sequence_logprobs(policy, rows, device) - base


def encode(records, encoding, block_size, best_vs_worst):
    """-> [([(ids, length of the prompt)], [rank])] of the rankings in which two answers differ."""
    rankings = []
    for r in records:
        n = len(encoding.encode_ordinary(r["prompt"]))
        answers = [((ids, n), rank) for ids, rank, *_ in encode_ranking(r, encoding, block_size)]
        answers.sort(key=lambda a: a[1])
        if best_vs_worst:
            answers = answers[:1] + answers[-1:]
        if answers and answers[0][1] < answers[-1][1]:
            rankings.append(tuple(map(list, zip(*answers))))
    return rankings


def main(cfg):
    run = Run(cfg, cfg.name)
    require(cfg.beta > 0 and cfg.learning_rate > 0, "--beta and --learning_rate must be positive")
    require(min(cfg.epochs, cfg.batch_size, cfg.eval_every) >= 1, "--epochs, --batch_size, --eval_every: at least 1")
    require(0 <= cfg.label_smoothing < 0.5, f"--label_smoothing {cfg.label_smoothing}: from 0 to less than 0.5")
    policy, reference = run.load("ppo_init"), run.load("ppo_init").requires_grad_(False)
    records = [r for r in rankings_of_people(run) if r.get("group", "training") == "training"]
    train, valid = (
        encode([r for r in records if r["split"] == split], run.encoding, policy.config.block_size, best_vs_worst)
        for split, best_vs_worst in (("train", cfg.best_vs_worst), ("valid", False))
    )
    require(train and valid, "DPO needs rankings of the training and of the validation split")
    optimizer = adamw(policy, cfg.learning_rate)
    lengths = [max(len(ids) for ids, _ in answers) for answers, _ in train]
    for step, steps, some in minibatches(lengths, cfg.epochs, cfg.batch_size, run.order):
        batch = [train[i] for i in some]
        h = log_ratios(policy, reference, batch, run.device)  # (N,)
        ranks = torch.tensor([rank for _, ranks in batch for rank in ranks], device=run.device)
        prompt = torch.tensor([i for i, (_, ranks) in enumerate(batch) for _ in ranks], device=run.device)
        winner, loser, weight = pairs_of(ranks, prompt)
        loss = (weight * preference_loss(h[winner] - h[loser], cfg.beta, cfg.label_smoothing, cfg.ipo)).sum()
        loss.backward()
        lr = cosine_to_tenth(step, steps, cfg.learning_rate)
        norm = optimizer_step(optimizer, policy, lr, cfg.max_grad_norm)
        check_finite(norm, "the gradient", f"step {step}", "try a smaller --learning_rate")
        if step % cfg.eval_every == 0 or step + 1 == steps:
            h = cfg.beta * h.detach()  # the implicit rewards
            record = {"loss": loss.item(), "chosen": h[winner].mean().item(), "rejected": h[loser].mean().item()}
            record |= look(policy, reference, valid, cfg, run.device)
            run.log.write(step=step, learning_rate=lr, **record)
            print(f"step {step:4}/{steps}  " + "  ".join(f"{k} {v:+.3f}" for k, v in record.items()), flush=True)
    run.finish(policy, **record)


@torch.no_grad()
def look(policy, reference, rankings, cfg, device):
    """Implicit rewards on held-out rankings: accuracy of their order and mean margin of winner over loser."""
    outcomes = []
    for start in range(0, len(rankings), cfg.batch_size):
        batch = rankings[start : start + cfg.batch_size]
        rewards = (cfg.beta * log_ratios(policy, reference, batch, device)).tolist()
        for _, ranks in batch:
            outcomes.append(pair_outcomes(rewards[: len(ranks)], ranks))
            del rewards[: len(ranks)]
    margins = [sum(o) / len(o) for o in outcomes]
    return {"valid_accuracy": accuracy(outcomes)[0], "valid_margin": sum(margins) / len(margins)}


if __name__ == "__main__":
    command_line(Config, main, __doc__)
