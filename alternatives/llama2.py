"""Llama 2's RLHF: one reward model for helpfulness, one for safety (Touvron et al. 2023, §3.2).

    python reward.py --margin small --name reward_small         # margins alone: accuracy by how much better an answer is
    python alternatives/llama2.py                               # -> llama2.pt
    python alternatives/llama2.py --linear 0.5                  # the plain mix of both that secondary accounts describe

Reads as a variation on reward.py and ppo.py (rejection.py is the other half of how Llama 2 was made).

  1. safety data   two answers to each red-team prompt; a labeler marks each as safe or not, says which is better under
                   safety guidelines, and how much better; a pair whose better answer is the only unsafe one is discarded
  2. two RMs       L = -log σ(r_w - r_l - m), m by how much better (reward.py --margin)
                   helpfulness: all rankings of reward.py, and a share of safety pairs; safety: nine tenths safety pairs, one
                   tenth helpfulness, plus a classification loss, so that σ(r) is the probability that an answer is safe
  3. PPO           R_c = R_s  if the prompt is a red-team prompt or σ(R_s) < 0.15, else R_h      (probabilities, after σ)
                   R   = whiten( logit(R_c) ) - β KL

Deviations: the form of the safe/unsafe loss is not printed in the paper; ours is the cross-entropy of σ(r), weight 1. K-way
rankings stand beside pairs; the safety answers come from PPO's start and from a model that does all it is asked
(constitutional.py's), where the paper has variants of its own; AdamW and this project's PPO settings.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import ppo
from alternatives.common import Inputs, Run, minibatches, rankings_of_people
from alternatives.constitutional import helpful_only, red_team
from data import village
from data.labelers import load_labelers
from machine import for_sampling
from model import ScalarModel, encode_answer, pad, save_checkpoint, score_rows
from plumbing import adamw, check_finite, command_line, cosine_to_tenth, generator, optimizer_step, require
from reward import MARGINS, accuracy, batch_loss, encode_ranking, outcomes_of


@dataclass
class Config(Inputs):
    margin: str = "small"  # none, small, large: Table 27                                  paper: reports all three
    safety_pairs: int = 800  # red-team prompts with two answers each
    epochs: int = 1  # passes over the rankings                                            paper: 1
    batch_size: int = 16  # rankings or pairs per step                                     paper: 512 pairs
    learning_rate: float = 8e-4  # of the reward models, cosine to a tenth                 paper: 1e-5
    safety_share: float = 0.1  # of the helpfulness model's steps that are on safety pairs
    threshold: float = 0.15  # an answer less likely safe than this is scored for safety   paper: 0.15
    linear: float = 0.0  # if not 0: R = linear · r_h + (1 - linear) · r_s, whitened, instead of the switch
    red_team: float = 0.1  # share of red-team prompts in PPO
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


def safety_data(run, world, models, rng):
    """Step 1 -> rankings of two answers [[(ids, rank, rating)] * 2], and for each [safe, safe] as 0.0 or 1.0."""
    people = load_labelers(run.cfg.data, "training")
    prompts = red_team(world, run.cfg.safety_pairs, village.VALLEYS["train"], rng)
    answers = [run.answers(model, prompts) for model in models]
    rankings, safe = [], []
    for x, *pair in zip(prompts, *answers):
        labeler = rng.choice(people)
        if pair[0][0] == pair[1][0] or not all(text.strip() for text, _ in pair):
            continue
        rng.shuffle(pair)
        marks = [labeler.safe(x, text) for text, _ in pair]
        ratings = [max(1, min(7, r + 3 * m - 1)) for r, m in zip(labeler.rate(x, [t for t, _ in pair]), marks)]
        run.cost["labels"] += 1
        if ratings[0] == ratings[1] or marks[ratings[1] > ratings[0]] < marks[ratings[1] < ratings[0]]:
            continue  # no choice, or the better one alone is unsafe
        ids = [sum(encode_answer(run.encoding, x, *answer), []) for answer in pair]
        rankings.append([(i, 1 + (r < max(ratings)), r) for i, r in zip(ids, ratings)])
        safe.append([float(m) for m in marks])
    count = [sum(map(sum, safe)), 2 * len(safe)]
    print(f"{len(safe)} safety pairs; {100 * count[0] / max(count[1], 1):.0f} % of the answers are safe; one of them:")
    for ids, rank, rating in rankings[0]:
        print(f"  {rank}. ({rating} of 7) {run.encoding.decode(ids)!r}")
    return rankings, safe


def train_rm(run, start, mine, other, share, safe=None):
    """A reward model on the rankings `mine`; with probability `share` a step is on `other` ones instead. safe: per ranking
    of `mine`, whether each answer is safe, for the classification loss."""
    cfg, model = run.cfg, ScalarModel.from_gpt(start)
    optimizer, total = adamw(model, cfg.learning_rate), 0.0
    lengths = [max(len(ids) for ids, *_ in ranking) for ranking in mine]
    for step, steps, some in minibatches(lengths, cfg.epochs, cfg.batch_size, run.order):
        model.train()
        if torch.rand((), generator=run.order) < share:
            drawn = torch.randint(len(other), (cfg.batch_size,), generator=run.order).tolist()
            loss = batch_loss(model, [other[i] for i in drawn], run.device, cfg.margin)
        else:
            loss = batch_loss(model, [mine[i] for i in some], run.device, cfg.margin)
            if safe is not None:
                scores = model.score(*pad([ids for i in some for ids, *_ in mine[i]], run.device))
                loss = loss + safe_or_not_loss(scores, torch.tensor([m for i in some for m in safe[i]]).to(scores))
        loss.backward()
        optimizer_step(optimizer, model, cosine_to_tenth(step, steps, cfg.learning_rate), cfg.max_grad_norm)
        check_finite(loss.item(), "the loss", f"step {step}", "try a smaller --learning_rate")
        total += loss.item()
    return model.eval()


def main(cfg):
    run, rng = Run(cfg, cfg.name), random.Random(f"llama 2 {cfg.seed}")
    require(cfg.margin in MARGINS, f"--margin {cfg.margin}: choose from {', '.join(MARGINS)}")
    require(min(cfg.safety_pairs, cfg.epochs, cfg.batch_size, cfg.iterations) >= 1, "counts must be at least 1")
    shares = (cfg.safety_share, cfg.threshold, cfg.linear, cfg.red_team)
    require(all(0 <= x < 1 for x in shares), "--safety_share, --threshold, --linear, --red_team: shares below 1")
    world = load_labelers(cfg.data, "training")[0].world
    policy, reference = run.load("ppo_init"), run.load("ppo_init").requires_grad_(False)
    path = run.out / "helpful.pt"
    helpful = run.load("helpful") if path.exists() else helpful_only(run, world, rng)
    pairs, safe = safety_data(run, world, (reference, helpful), rng)
    held = len(pairs) // 8
    rankings = {"train": [], "valid": []}
    for r in rankings_of_people(run):
        if r["split"] == "train" or r.get("group", "training") == "training":
            ranking = encode_ranking(r, run.encoding, policy.config.block_size)
            if len({rank for _, rank, *_ in ranking}) > 1:
                rankings[r["split"]].append(ranking)
    rated = all(len(answer) == 3 for ranking in rankings["train"] for answer in ranking)
    require(
        rated or cfg.margin == "none",
        'the rankings have no "ratings" for margins: run reward.py again, or --margin none',
    )
    if not rated:
        pairs = [[(ids, rank) for ids, rank, _ in pair] for pair in pairs]
    run.cost["labels"] += len(rankings["train"])
    r_h = train_rm(run, reference, rankings["train"], pairs[held:], cfg.safety_share)
    r_s = train_rm(run, reference, pairs[held:], rankings["train"], 0.1, safe[held:])
    results = {}
    for name, model in (("helpfulness", r_h), ("safety", r_s)):
        save_checkpoint(run.out / f"{cfg.name}_{name}.pt", model, run.tokenizer, cfg, 0)
        results[name] = [accuracy(outcomes_of(model, some))[0] for some in (rankings["valid"], pairs[:held])]
        text = " and ".join(f"{100 * a:.1f} % of {what}" for a, what in zip(results[name], ("usual", "safety pairs")))
        print(f"the {name} model orders {text} as people do")

    # PPO, as ppo.py does it; only where a response gets its reward is different.
    value_model = run.load(f"{cfg.name}_helpfulness", "scalar")
    cfg_ppo = ppo.Config(max_new_tokens=cfg.max_new_tokens, kl_coef=cfg.kl_coef, iterations=cfg.iterations)
    optimizers = adamw(policy, cfg_ppo.learning_rate), adamw(value_model, cfg_ppo.value_learning_rate)
    average = {k: v.clone() for k, v in policy.state_dict().items()}
    streams = {"order": generator(cfg.seed + 20_000)}
    usual = run.prompts(policy, "train")
    attacks = red_team(world, cfg.safety_pairs, village.VALLEYS["train"], rng)
    for iteration in range(cfg.iterations):
        is_safety = [rng.random() < cfg.red_team for _ in range(cfg_ppo.batch_size)]
        asked = [run.encoding.encode_ordinary(rng.choice(attacks if flag else usual)) for flag in is_safety]
        batch, _ = ppo.rollout(policy, reference, r_h, value_model, asked, run.encoding, cfg_ppo, run.draw)
        run.cost["tokens"] += int(batch["mask"].sum())
        rows = [row[:n] for row, n in zip(batch["tokens"].tolist(), batch["lengths"].tolist())]
        safety = torch.tensor(score_rows(r_s, rows), device=run.device)
        flags = torch.tensor(is_safety, device=run.device)
        R = combine(batch["scores"], safety, flags, cfg.threshold, cfg.linear)
        mask = batch["mask"]
        rewards = ppo.shaped_rewards(R, batch["logprobs"], batch["ref_logprobs"], mask, cfg.kl_coef)
        advantages, batch["returns"] = ppo.gae(rewards, batch["values"], mask, cfg_ppo.discount, cfg_ppo.lam)
        batch["advantages"] = ppo.whiten(advantages, mask)
        waits = iteration < cfg_ppo.value_only_iterations
        lr = 0.0 if waits else ppo.warmed_up(iteration - cfg_ppo.value_only_iterations, cfg_ppo)
        stats = ppo.update(policy, value_model, optimizers, average, batch, None, cfg_ppo, lr, streams)
        record = {"helpfulness": batch["scores"].mean().item(), "safe": torch.sigmoid(safety).mean().item()}
        record["kl"] = ((batch["logprobs"] - batch["ref_logprobs"]) * mask).sum(1).mean().item()
        record["switched"] = (torch.sigmoid(safety) < cfg.threshold).float().mean().item()
        check_finite(stats["value_loss"], "the value loss", f"iteration {iteration}", "try a larger --kl_coef")
        run.log.write(iteration=iteration, **record, **stats)
        if iteration % 4 == 0 or iteration + 1 == cfg.iterations:
            print(f"iteration {iteration:3}/{cfg.iterations}  " + "  ".join(f"{k} {v:+.3f}" for k, v in record.items()))
    policy.load_state_dict(average)
    sample = run.answers(for_sampling(policy, cfg), attacks[:2])
    for x, (text, _) in zip(attacks, sample):
        print(f"  {x.strip()!r} -> {text!r}")
    run.finish(policy, **results)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
