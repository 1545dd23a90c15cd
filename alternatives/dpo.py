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

from alternatives.common import CommonConfig, Run, encoded_rankings, longest_rows, minibatches
from core.config import Fraction, PositiveFloat, PositiveInt, command_line, require
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.ranking_metrics import accuracy, differences
from core.text import response_logprobs
from reward import preferred_pairs


@dataclass
class Config(CommonConfig):
    beta: PositiveFloat = 0.3  # β: how dear it is to leave the reference                              paper: 0.1 to 0.5
    label_smoothing: Fraction = 0.0  # share of the pairs that labelers may have put the wrong way round
    ipo: bool = False  # (h - 1/(2β))² instead of -log σ(βh), h the difference of log-ratios
    best_vs_worst: bool = False  # of every ranking only the best against the worst answer
    epochs: PositiveInt = 1  # passes over the rankings                                                paper: 1
    batch_size: PositiveInt = 16  # prompts per step                                                   paper: 64 pairs
    learning_rate: PositiveFloat = 1e-4  # peak, cosine to a tenth                                     paper: 1e-6
    eval_every: PositiveInt = 50  # steps between measurements on validation rankings
    name: str = "dpo"  # writes OUT/NAME.pt


# ---------------------------------------------------------------------------------------------------- the mathematics


def preference_loss(h, beta, label_smoothing=0.0, ipo=False):
    """Loss of each pair. h: log-ratio log(π/π_ref) of the winner less that of the loser, any shape -> same shape."""
    if ipo:
        return (h - 1 / (2 * beta)) ** 2
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def pairwise_loss(log_ratios, ranks, beta, label_smoothing=0.0, ipo=False):
    """reward.py's Eq. 1 for one prompt, with log-ratios for scores. log_ratios, ranks (1 = best): (K,) -> scalar."""
    h = log_ratios[:, None] - log_ratios[None, :]  # (K, K)
    preferred = preferred_pairs(ranks)
    return (preference_loss(h, beta, label_smoothing, ipo) * preferred).sum() / preferred.sum().clamp(min=1)


def log_ratios(policy, reference, rankings, tokenizer):
    """log(π/π_ref) of all answers, one forward pass for all of them. -> one tensor (K,) per ranking"""
    rows = []
    for ranking in rankings:
        prompt_length = len(tokenizer.encode_ordinary(ranking.prompt))
        rows += [(row, prompt_length) for row in ranking.rows]
    with torch.no_grad():
        ref_logprobs, _ = response_logprobs(reference, rows)  # (Σ K,)
    logprobs, _ = response_logprobs(policy, rows)  # (Σ K,)
    return (logprobs - ref_logprobs).split([len(ranking.rows) for ranking in rankings])


def best_and_worst(ranking):
    """Of a ranking only the best answer and the worst one, the first and the last of equals."""
    best = ranking.ranks.index(min(ranking.ranks))
    worst = max(range(len(ranking.ranks)), key=lambda i: (ranking.ranks[i], i))
    rows, ranks = [ranking.rows[i] for i in (best, worst)], [ranking.ranks[i] for i in (best, worst)]
    return ranking._replace(rows=rows, ranks=ranks)


# ---------------------------------------------------------------------------------------------------- training


def main(cfg):
    run = Run(cfg, cfg.name)
    require(cfg.label_smoothing < 0.5, f"--label_smoothing {cfg.label_smoothing}: must be less than 0.5")
    policy, reference = run.load_policy("ppo_init"), run.load_policy("ppo_init").requires_grad_(False)
    train, valid = encoded_rankings(run, policy.config.block_size).values()
    if cfg.best_vs_worst:
        train = [best_and_worst(ranking) for ranking in train]
    optimizer = adamw(policy, cfg.learning_rate)
    batches = minibatches(longest_rows(train), cfg.epochs, cfg.batch_size, run.generator("order"))
    steps = len(batches)
    log = run.log(steps, "loss chosen rejected valid_accuracy valid_margin learning_rate grad_norm")
    for step, indices in enumerate(batches):
        batch = [train[i] for i in indices]
        ratios = log_ratios(policy, reference, batch, run.tokenizer)
        ranks = [torch.tensor(ranking.ranks, device=run.device) for ranking in batch]
        settings = (cfg.beta, cfg.label_smoothing, cfg.ipo)
        loss = torch.stack([pairwise_loss(*pair, *settings) for pair in zip(ratios, ranks)]).mean()
        loss.backward()
        metrics = {"loss": loss.item(), **mean_implicit_rewards(ratios, ranks, cfg.beta)}
        metrics["learning_rate"] = cosine_to_tenth(step, steps, cfg.learning_rate)
        metrics["grad_norm"] = optimizer_step(optimizer, policy, metrics["learning_rate"], cfg.max_grad_norm)
        if (step + 1) % cfg.eval_every == 0 or step + 1 == steps:
            metrics |= validate(policy, reference, valid, run.tokenizer, cfg)
        log(step + 1, **metrics)
    run.finish(policy, **metrics)


@torch.no_grad()
def mean_implicit_rewards(ratios, ranks, beta):
    """Mean β log(π/π_ref) of the winner and of the loser of a pair, over all pairs of a batch. -> {name: float}"""
    winners = losers = pairs = 0.0
    for log_ratio, rank in zip(ratios, ranks):
        preferred = preferred_pairs(rank)  # (K, K)
        winners += (beta * log_ratio[:, None] * preferred).sum().item()
        losers += (beta * log_ratio[None, :] * preferred).sum().item()
        pairs += preferred.sum().item()
    return {"chosen": winners / max(pairs, 1), "rejected": losers / max(pairs, 1)}


@torch.no_grad()
def validate(policy, reference, rankings, tokenizer, cfg):
    """Implicit rewards on validation rankings: accuracy of their order and mean margin of winner over loser."""
    margins = []
    for start in range(0, len(rankings), cfg.batch_size):
        batch = rankings[start : start + cfg.batch_size]
        for ranking, ratio in zip(batch, log_ratios(policy, reference, batch, tokenizer)):
            margins.append(differences((cfg.beta * ratio).tolist(), ranking.ranks))
    means = [sum(pairs) / len(pairs) for pairs in margins]
    return {"valid_accuracy": accuracy(margins)[0], "valid_margin": sum(means) / len(means)}


if __name__ == "__main__":
    command_line(Config, main, __doc__)
