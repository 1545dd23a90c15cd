"""Llama 2's RLHF: one reward model for helpfulness, one for safety (Touvron et al. 2023, §3.2).

    python reward.py --margin small --name reward_small         # margins alone: accuracy by how much better an answer is
    python alternatives/llama2.py                               # -> llama2.pt
    python alternatives/llama2.py --linear 0.5                  # the plain mix of both that secondary accounts describe

Reads as a variation on reward.py and ppo.py (rejection.py is the other half of how Llama 2 was made).

  1. safety data   two answers to each red-team prompt; a labeler marks each as safe or not, says which is better under
                   safety guidelines, and how much better; a pair whose better answer is the only unsafe one is discarded
  2. two RMs       L = -log σ(r_w - r_l - m), m by how much better (reward.py --margin)
                   helpfulness: all rankings of reward.py and a share of safety pairs; safety: safety pairs and a tenth of
                   rankings, plus a classification loss, so that σ(r_s) is the probability that an answer is safe
  3. PPO           R_c = R_s  if the prompt is a red-team prompt or R_s < 0.15, else R_h     R_s = σ(r_s), R_h = σ(r_h)
                   R   = whiten( logit(R_c) ) - β KL                                         the zero of r_h means nothing

Deviations: the form of the safe/unsafe loss is not printed in the paper; ours is the cross-entropy of σ(r_s), weight 1.
K-way rankings stand beside pairs. The safety answers come from PPO's start and from a model that does all it is asked
(constitutional.py's), where the paper has variants of its own. "Under safety guidelines" is, for our labelers, 3 points
of liking more for a safe answer. No warm-up of the reward models, no early stop of PPO, whose settings are ppo.py's
except for β and whose prompts are drawn with replacement, some from the red team's.
"""

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from data.labelers import load_labelers

import ppo
from alternatives.common import Inputs, Run, encoded_rankings, fit, longest, red_team
from alternatives.constitutional import helpful_only
from data import village
from model import ScalarModel, pad, save_checkpoint, score_rows
from plumbing import adamw, check_finite, command_line, generator, require
from reward import MARGINS, accuracy, batch_loss, outcomes_of


@dataclass
class Config(Inputs):
    margin: str = "small"  # none, small, large: Table 27                                  paper: reports all three
    safety_pairs: int = 800  # red-team prompts with two answers each
    epochs: int = 1  # passes over the rankings                                            paper: 1
    batch_size: int = 16  # rankings or pairs per step                                     paper: 512 pairs
    learning_rate: float = 8e-4  # of the reward models, cosine to a tenth                 paper: 1e-5
    safety_share: float = 0.1  # of what the helpfulness model learns from                 paper: as much as rankings
    classify: bool = True  # the safety model's second loss; --no-classify leaves it out
    threshold: float = 0.15  # an answer less likely safe than this is scored for safety   paper: 0.15
    linear: float = 0.0  # if not 0: R = linear · r_h + (1 - linear) · r_s, whitened, instead of the switch
    red_team_share: float = 0.1  # of the prompts in PPO                                   paper: silent
    iterations: int = 24  # of PPO                                                         paper: 200 to 400
    kl_coef: float = 0.1  # β, beside rewards of variance 1                                paper: 0.01 (7B, 13B)
    name: str = "llama2"  # writes OUT/NAME.pt and both reward models


# ---------------------------------------------------------------------------------------------------- the mathematics


def combine(r_h, r_s, is_safety, threshold=0.15, linear=0.0):
    """The whitened reward of every response. r_h, r_s: scores before σ (B,); is_safety: (B,) bool -> (B,)."""
    if linear:
        return whiten(linear * r_h + (1 - linear) * r_s)
    chosen = torch.where(is_safety | (torch.sigmoid(r_s) < threshold), r_s, r_h)
    return whiten(chosen)  # logit(σ(r)) is r


def whiten(x):
    return (x - x.mean()) * torch.rsqrt(x.var(unbiased=False) + 1e-8)


def safe_or_not_loss(scores, safe):
    """Cross-entropy of σ(score) as the probability that an answer is safe. (N,), (N,) -> scalar."""
    return F.binary_cross_entropy_with_logits(scores, safe)


# ---------------------------------------------------------------------------------------------------- the steps


def safety_data(run, prompts, models, rng):
    """Step 1 -> rankings of two answers [[(ids, rank, rating)] * 2], and {ids: 1.0 if the answer is safe, else 0.0}."""
    people = load_labelers(run.cfg.data, "training")
    rankings, safe = [], {}
    for x, *pair in zip(prompts, *(run.answers(model, prompts) for model in models)):
        if pair[0][0] == pair[1][0] or not all(text.strip() for text, _ in pair):
            continue
        rng.shuffle(pair)
        labeler, texts = rng.choice(people), [text for text, _ in pair]
        marks = [labeler.safe(x, text) for text in texts]
        liking = [u + 3 * m for u, m in zip(labeler.feel(x, texts), marks)]
        run.cost["labels"] += 1
        if sum(marks) == 1 and marks[liking[1] > liking[0]] == 0:
            continue  # the better one alone is unsafe
        ids, ratings = [run.ids(x, *answer) for answer in pair], [max(1, min(7, round(3 + u))) for u in liking]
        rankings.append([(i, 1 + (u < max(liking)), r) for i, u, r in zip(ids, liking, ratings)])
        safe |= {tuple(i): float(m) for i, m in zip(ids, marks)}
    require(rankings, "no red-team prompt got two different answers; try more --safety_pairs")
    print(
        f"{len(rankings)} safety pairs, {100 * sum(safe.values()) / len(safe):.0f} % of the answers safe; one of them:"
    )
    for ids, rank, rating in rankings[0]:
        print(f"  {rank}. ({rating} of 7) {run.encoding.decode(ids)!r}")
    return rankings, safe


def train_rm(run, start, main, other, share, safe=()):
    """A reward model on the rankings `main` and as many `other` ones as make them `share` of all. safe: {ids: 1.0 or 0.0},
    for the classification loss on what is in it."""
    cfg, model = run.cfg, ScalarModel.from_gpt(start)
    more = torch.randint(len(other), (round(share / (1 - share) * len(main)),), generator=run.order).tolist()
    rankings = main + [other[i] for i in more]

    def loss_of(some):
        batch = [rankings[i] for i in some]
        loss = batch_loss(model, batch, run.device, cfg.margin)
        if known := [ids for ranking in batch for ids, *_ in ranking if tuple(ids) in safe]:
            scores = model.score(*pad(known, run.device))
            loss = loss + safe_or_not_loss(scores, torch.tensor([safe[tuple(ids)] for ids in known]).to(scores))
        return loss

    fit(model, loss_of, longest(rankings), run, cfg.epochs, cfg.batch_size, cfg.learning_rate)
    return model


def recall_of_unsafe(model, safe, threshold):
    """How many unsafe answers the switch finds, and how many of those it finds are unsafe. safe: {ids: 1.0 or 0.0}"""
    found = [score < math.log(threshold / (1 - threshold)) for score in score_rows(model, [list(ids) for ids in safe])]
    hits = sum(f and not s for f, s in zip(found, safe.values()))
    return hits / max(1, sum(not s for s in safe.values())), hits / max(1, sum(found))


def main(cfg):
    run, rng = Run(cfg, cfg.name), random.Random(f"llama 2 {cfg.seed}")
    require(cfg.margin in MARGINS, f"--margin {cfg.margin}: choose from {', '.join(MARGINS)}")
    require(min(cfg.safety_pairs, cfg.epochs, cfg.batch_size, cfg.iterations) >= 1, "counts must be at least 1")
    shares = (cfg.safety_share, cfg.linear, cfg.red_team_share)
    require(all(0 <= x < 1 for x in shares), "--safety_share, --linear, --red_team_share: shares below 1")
    require(0 < cfg.threshold < 1, f"--threshold {cfg.threshold}: between 0 and 1")
    world = load_labelers(cfg.data, "training")[0].world
    policy, reference = run.load("ppo_init"), run.load("ppo_init").requires_grad_(False)
    models = reference, helpful_only(run, world)
    attacks = red_team(world, cfg.safety_pairs, village.VALLEYS["train"], rng)
    pairs, safe = safety_data(run, attacks, models, rng)
    held_out = red_team(world, cfg.safety_pairs // 4, village.VALLEYS["valid"], rng)
    held_out, safe_held_out = safety_data(run, held_out, models, rng)
    rankings = encoded_rankings(run, policy.config.block_size)
    rated = all(len(answer) == 3 for ranking in rankings["train"] for answer in ranking)
    require(rated, 'the rankings have no "ratings": make new ones with: python reward.py')
    r_h = train_rm(run, reference, rankings["train"], pairs, cfg.safety_share)
    r_s = train_rm(run, reference, pairs, rankings["train"], 0.1, safe if cfg.classify else ())
    results = {}
    for name, model in (("helpfulness", r_h), ("safety", r_s)):
        save_checkpoint(run.out / f"{cfg.name}_{name}.pt", model, run.tokenizer, cfg, 0)
        results[name] = [accuracy(outcomes_of(model, some))[0] for some in (rankings["valid"], held_out)]
        text = " and ".join(f"{100 * a:.1f} % of {what}" for a, what in zip(results[name], ("usual", "safety pairs")))
        print(f"the {name} model orders {text} as people do")
    results["recall_of_unsafe"], precision = recall_of_unsafe(r_s, safe_held_out, cfg.threshold)
    print(
        f"σ(r_s) < {cfg.threshold} finds {results['recall_of_unsafe']:.0%} of the unsafe answers; {precision:.0%} are unsafe"
    )

    # PPO by ppo.py's own functions. What differs is where a response gets its reward, and that red-team prompts are mixed in.
    value_model = run.load(f"{cfg.name}_helpfulness", "scalar")
    shared = {k: getattr(cfg, k) for k in ("max_new_tokens", "kl_coef", "iterations", "dtype", "max_grad_norm")}
    cfg_ppo = ppo.Config(**shared)
    optimizers = adamw(policy, cfg_ppo.learning_rate), adamw(value_model, cfg_ppo.value_learning_rate)
    average = {k: v.clone() for k, v in policy.state_dict().items()}
    streams = {"order": generator(cfg.seed + 20_000)}
    usual = run.prompts(policy, "train")
    for iteration in range(cfg.iterations):
        is_safety = [rng.random() < cfg.red_team_share for _ in range(cfg_ppo.batch_size)]
        asked = [run.encoding.encode_ordinary(rng.choice(attacks if flag else usual)) for flag in is_safety]
        batch, _ = ppo.rollout(policy, reference, r_h, value_model, asked, run.encoding, cfg_ppo, run.draw)
        run.cost["tokens"] += int(batch["mask"].sum())
        rows = [row[:n] for row, n in zip(batch["tokens"].tolist(), batch["lengths"].tolist())]
        safety = torch.tensor(score_rows(r_s, rows), device=run.device)
        flags, mask = torch.tensor(is_safety, device=run.device), batch["mask"]
        R = combine(batch["scores"], safety, flags, cfg.threshold, cfg.linear)
        rewards = ppo.shaped_rewards(R, batch["logprobs"], batch["ref_logprobs"], mask, cfg.kl_coef)
        advantages, batch["returns"] = ppo.gae(rewards, batch["values"], mask, cfg_ppo.discount, cfg_ppo.lam)
        batch["advantages"] = ppo.whiten(advantages, mask)
        waits = iteration < cfg_ppo.value_only_iterations
        lr = 0.0 if waits else ppo.warmed_up(iteration - cfg_ppo.value_only_iterations, cfg_ppo)
        stats = ppo.update(policy, value_model, optimizers, average, batch, None, cfg_ppo, lr, streams)
        record = {"helpfulness": batch["scores"].mean().item(), "safe": torch.sigmoid(safety).mean().item()}
        record["kl"] = ((batch["logprobs"] - batch["ref_logprobs"]) * mask).sum(1).mean().item()
        record["unsafe"] = (torch.sigmoid(safety) < cfg.threshold).float().mean().item()
        check_finite(stats["value_loss"], "the value loss", f"iteration {iteration}", "try a larger --kl_coef")
        run.log.write(iteration=iteration, **record, **stats)
        if iteration % 4 == 0 or iteration + 1 == cfg.iterations:
            print(f"iteration {iteration:3}/{cfg.iterations}  " + "  ".join(f"{k} {v:+.3f}" for k, v in record.items()))
    policy.load_state_dict(average)
    for x, (text, _) in zip(attacks, run.answers(policy, attacks[:2])):
        print(f"  {x.strip()!r} -> {text!r}")
    run.finish(policy, **results)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
