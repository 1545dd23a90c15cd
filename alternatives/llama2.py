"""Llama 2's RLHF: one reward model for helpfulness, one for safety (Touvron et al. 2023, §3.2).

    python alternatives/llama2.py                       # -> llama2.pt
    python alternatives/llama2.py --linear 0.5          # the plain mix of both that secondary accounts describe
    python alternatives/llama2.py --compare_margins     # -> reward_small.pt, reward_large.pt: margins alone;
                                                        #    accuracy by how much better an answer is

Reads as a variation on reward.py and ppo.py (rejection.py is the other half of how Llama 2 was made).

  1. safety data   two answers to each red-team prompt; a labeler marks each as safe or not, says which is better under
                   safety guidelines, and how much better; pairs whose better answer alone is unsafe are discarded
  2. two RMs       L = -log σ(r_w - r_l - m), m by how much better y_w is
                   helpfulness: all rankings of reward.py and a share of safety pairs; safety: safety pairs and a tenth
                   of rankings, plus a classification loss, so that σ(r_s) is the probability that an answer is safe
  3. PPO           R_c = R_s  if the prompt is a red-team prompt or R_s < 0.15, else R_h     R_s = σ(r_s), R_h = σ(r_h)
                   R   = whiten( logit(R_c) ) - β KL                                       the zero of r_h means nothing

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
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import ppo
from alternatives.common import CommonConfig, Run, encoded_rankings, fit, longest_rows, red_team
from alternatives.constitutional import helpful_only
from core.config import Fraction, PositiveFloat, PositiveInt, command_line, require
from core.device import sampling_copy
from core.optim import adamw
from core.ranking_metrics import accuracy, per_prompt
from core.report import table
from core.text import score_rows
from core.watch import mean_metrics
from data.village.labelers import load_labelers
from model import pad
from reward import Ranking, normalise, preferred_pairs, score_differences


@dataclass
class Config(CommonConfig):
    margin: Literal["none", "small", "large"] = "small"  # Table 27                            paper: reports all three
    compare_margins: bool = False  # only train the usual reward model with each margin, and compare them
    safety_pairs: PositiveInt = 800  # red-team prompts with two answers each
    epochs: PositiveInt = 1  # passes over the rankings                                        paper: 1
    batch_size: PositiveInt = 16  # rankings or pairs per step                                 paper: 512 pairs
    learning_rate: PositiveFloat = 8e-4  # of the reward models, cosine to a tenth             paper: 1e-5
    safety_share: Fraction = 0.1  # of what the helpfulness model learns from  paper: as much as rankings
    classify: bool = True  # the safety model's second loss; --no-classify leaves it out
    threshold: Fraction = 0.15  # an answer less likely safe than this is scored for safety    paper: 0.15
    linear: Fraction = 0.0  # if not 0: R = linear · r_h + (1 - linear) · r_s, whitened, instead of the switch
    red_team_share: Fraction = 0.1  # of the prompts in PPO                                    paper: silent
    iterations: PositiveInt = 24  # of PPO                                                     paper: 200 to 400
    kl_coef: float = 0.1  # β, beside rewards of variance 1                                    paper: 0.01 (7B, 13B)
    name: str = "llama2"  # writes OUT/NAME.pt and both reward models


# ---------------------------------------------------------------------------------------------------- margins

LEVELS = ("negligibly better", "slightly better", "better", "significantly better")  # by 0, 1, 2, 3 or more points of 7
MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (0.0, 1 / 3, 2 / 3, 1.0), "large": (0.0, 1.0, 2.0, 3.0)}  # per level


def level(first, second):
    """How much better one of two answers is, from their ratings 1…7 -> index into LEVELS."""
    return min(3, abs(first - second))


def margins_of(ratings, margin):
    """m of every pair, by the level of its two ratings: (K,) whole numbers -> (K, K)."""
    levels = (ratings[:, None] - ratings[None, :]).abs().clamp(max=3)
    return torch.tensor(MARGINS[margin], device=ratings.device)[levels]


def pairwise_loss(scores, ranks, ratings, margin):
    """reward.py's Eq. 1 with Llama 2's margin: mean over the pairs of one prompt of -log σ(r_w - r_l - m).

    scores, ranks (1 = best), ratings (1…7): (K,) -> scalar
    """
    difference = scores[:, None] - scores[None, :]  # (K, K)
    preferred = preferred_pairs(ranks)
    return (-F.logsigmoid(difference - margins_of(ratings, margin)) * preferred).sum() / preferred.sum().clamp(min=1)


def ranking_losses(model, rankings, margin):
    """The loss of each ranking; all answers of all prompts go through the model in ONE forward pass. -> (rankings,)"""
    device = model.transformer.wte.weight.device
    scores = model.score(*pad([row for ranking in rankings for row in ranking.rows], device))  # (Σ K,)
    losses = []
    for ranking, own_scores in zip(rankings, scores.split([len(ranking.rows) for ranking in rankings])):
        ranks, ratings = (torch.tensor(numbers, device=device) for numbers in (ranking.ranks, ranking.ratings))
        losses.append(pairwise_loss(own_scores, ranks, ratings, margin))
    return torch.stack(losses)


def by_level(differences, rankings):
    """Differences r_w - r_l of rankings apart by how much better the winner is.

    differences: one list per ranking, as reward.score_differences gives them -> {level: one list per ranking}
    """
    apart = {name: [[] for _ in rankings] for name in LEVELS}
    for i, ranking in enumerate(rankings):
        K = range(len(ranking.ranks))
        pairs = [(winner, loser) for winner in K for loser in K if ranking.ranks[winner] < ranking.ranks[loser]]
        for difference, (winner, loser) in zip(differences[i], pairs, strict=True):
            name = LEVELS[level(ranking.ratings[winner], ranking.ratings[loser])]
            apart[name][i].append(difference)
    return apart


def accuracy_by_level(model, rankings):
    """Share of pairs that a reward model orders as people do. -> {level: share, "all": share}; None without a pair"""
    differences, shares = score_differences(model, rankings), {}
    for name, pairs in (by_level(differences, rankings) | {"all": differences}).items():
        share, _ = accuracy(per_prompt(rankings, pairs))
        shares[name] = None if math.isnan(share) else share
    return shares


def margins_table(models, rankings):
    """Accuracy per level for each set of margins (Llama 2, Table 28). models: {margin: reward model} -> markdown"""
    columns, rows = [*reversed(LEVELS), "all"], []
    for margin, model in models.items():
        shares = accuracy_by_level(model, rankings)
        rows.append([margin, *("-" if shares[name] is None else f"{100 * shares[name]:.1f}" for name in columns)])
    return table(["margin", *columns], rows)


def require_ratings(run, rankings):
    """Margins need ratings beside the ranks."""
    rated = all(len(ranking.ratings) == len(ranking.rows) for split in rankings.values() for ranking in split)
    require(rated, 'the rankings have no "ratings" (1-7): collect new ones with: python data/collect.py')


def compare_margins(cfg):
    """The usual reward model with small and with large margins: the same start, rankings and order as reward.py's."""
    run = Run(cfg, "margins")
    start = run.load_policy("ppo_init")
    rankings = encoded_rankings(run, start.config.block_size)
    require_ratings(run, rankings)
    models = {"none": run.load_scalar_model("reward")}
    for margin in ("small", "large"):
        torch.manual_seed(cfg.seed)  # the same head at the start
        models[margin] = train_reward_model(run, start, rankings["train"], margin, run.generator("epoch"))
        normalise(models[margin], cfg, run.tokenizer)
        run.save(f"reward_{margin}", models[margin])
    for margin, model in models.items():
        run.records.write(margin=margin, **accuracy_by_level(model, rankings["valid"]))
    print("% of pairs ordered as people do, by how much better they found the winner:")
    print(f"\n{margins_table(models, rankings['valid'])}\n")
    print(f"wrote {run.out}/reward_small.pt, reward_large.pt")


# ---------------------------------------------------------------------------------------------------- two reward models


def safe_or_not_loss(scores, safe):
    """Cross-entropy of σ(score) as the probability that an answer is safe. (N,), (N,) 1.0 or 0.0 -> scalar."""
    return F.binary_cross_entropy_with_logits(scores, safe)


def combine(r_h, r_s, is_safety, threshold=0.15, linear=0.0):
    """The whitened reward of every response. r_h, r_s: scores before σ (B,); is_safety: (B,) bool -> (B,)."""
    chosen = torch.where(is_safety | (torch.sigmoid(r_s) < threshold), r_s, r_h)  # logit(σ(r)) is r
    if linear:
        chosen = linear * r_h + (1 - linear) * r_s
    return ppo.whiten(chosen, torch.ones_like(chosen))


def safety_data(run, prompts, models, rng, split):
    """Step 1 -> Rankings of two answers, and {ids of prompt + answer: 1.0 if it is safe, else 0.0}.

    split: "train" or "valid"; what is only validated on is not part of what the method costs.
    """
    labelers = load_labelers(run.cfg.data, "training")
    counted, rankings, safe = split == "train", [], {}
    answers = [
        run.answers(model, prompts, run.generator(f"safety answers {split}", i), counted=counted)
        for i, model in enumerate(models)
    ]
    for prompt, *pair in zip(prompts, *answers):
        if pair[0][0] == pair[1][0] or not all(text.strip() for text, _ in pair):
            continue
        rng.shuffle(pair)
        labeler, texts = rng.choice(labelers), [text for text, _ in pair]
        is_safe = [labeler.safe(prompt, text) for text in texts]
        liking = [feeling + 3 * mark for feeling, mark in zip(labeler.utilities(prompt, texts), is_safe)]
        if counted:
            run.cost["labels"] += 1
        better = liking.index(max(liking))
        if sum(is_safe) == 1 and not is_safe[better]:
            continue
        rows = [run.ids(prompt, *answer) for answer in pair]
        ranks = [1 if number == max(liking) else 2 for number in liking]
        ratings = [max(1, min(7, round(3 + number))) for number in liking]
        rankings.append(Ranking(rows, ranks, ratings, prompt, "training"))
        safe |= {tuple(row): float(mark) for row, mark in zip(rows, is_safe)}
    require(rankings, "no red-team prompt got two different answers; try more --safety_pairs")
    return rankings, safe


def print_safety_pair(rankings, safe, tokenizer):
    share = sum(safe.values()) / len(safe)
    print(f"{len(rankings)} safety pairs, {100 * share:.0f} % of the answers safe; one of them:")
    for row, rank, rating in zip(rankings[0].rows, rankings[0].ranks, rankings[0].ratings):
        print(f"  {rank}. ({rating} of 7) {tokenizer.decode(row)!r}")


def mixed(rankings, others, share, rng):
    """All rankings, and as many of the others, drawn with replacement, as make them `share` of the whole."""
    count = round(share / (1 - share) * len(rankings))
    return rankings + [others[i] for i in torch.randint(len(others), (count,), generator=rng).tolist()]


def train_reward_model(run, start, rankings, margin, rng, safe=()):
    """Step 2: reward.py's model and settings, with a margin in the loss. -> ScalarModel

    safe: {ids of prompt + answer: 1.0 or 0.0}, for the classification loss on the answers that are in it.
    """
    cfg, model = run.cfg, run.new_reward_model(start)

    def loss_of(indices):
        batch = [rankings[i] for i in indices]
        loss = ranking_losses(model, batch, margin).mean()
        marked = [row for ranking in batch for row in ranking.rows if tuple(row) in safe]
        if marked:
            scores = model.score(*pad(marked, run.device))
            loss = loss + safe_or_not_loss(scores, torch.tensor([safe[tuple(row)] for row in marked]).to(scores))
        return loss

    fit(model, loss_of, longest_rows(rankings), run, cfg.epochs, cfg.batch_size, cfg.learning_rate, rng)
    return model


def recall_of_unsafe(model, safe, threshold):
    """How many unsafe answers the switch finds, and how many of those it finds are unsafe. safe: {ids: 1.0 or 0.0}"""
    logit = math.log(threshold / (1 - threshold))
    flagged = [score < logit for score in score_rows(model, [list(row) for row in safe])]
    hits = sum(flag and not is_safe for flag, is_safe in zip(flagged, safe.values()))
    unsafe = sum(not is_safe for is_safe in safe.values())
    return hits / max(1, unsafe), hits / max(1, sum(flagged))


# ---------------------------------------------------------------------------------------------------- the steps


def main(cfg):
    for name in ("safety_share", "linear", "red_team_share"):
        require(getattr(cfg, name) < 1, f"--{name} {getattr(cfg, name)}: must be less than 1")
    require(0 < cfg.threshold < 1, f"--threshold {cfg.threshold}: must be between 0 and 1")
    if cfg.compare_margins:
        return compare_margins(cfg)
    run, rng = Run(cfg, cfg.name), random.Random(f"llama 2 {cfg.seed}")
    world = load_labelers(cfg.data, "training")[0].world
    policy, reference = run.load_policy("ppo_init"), run.load_policy("ppo_init").requires_grad_(False)
    rankings = encoded_rankings(run, policy.config.block_size)
    require_ratings(run, rankings)

    models = reference, helpful_only(run, world)
    attacks = red_team(world, cfg.safety_pairs, "train", rng)
    pairs, safe = safety_data(run, attacks, models, rng, "train")
    print_safety_pair(pairs, safe, run.tokenizer)
    new_attacks = red_team(world, math.ceil(cfg.safety_pairs / 4), "valid", rng)
    valid_pairs, valid_safe = safety_data(run, new_attacks, models, rng, "valid")

    drawn, order = run.generator("helpfulness mix"), run.generator("helpfulness order")
    train = mixed(rankings["train"], pairs, cfg.safety_share, drawn)
    helpfulness = train_reward_model(run, reference, train, cfg.margin, order)
    drawn, order = run.generator("safety mix"), run.generator("safety order")
    train = mixed(pairs, rankings["train"], 0.1, drawn)
    safety = train_reward_model(run, reference, train, cfg.margin, order, safe if cfg.classify else ())
    results = {}
    for name, model in (("helpfulness", helpfulness), ("safety", safety)):
        run.save(f"{cfg.name}_{name}", model)
        results[name] = [
            accuracy(score_differences(model, held_out))[0] for held_out in (rankings["valid"], valid_pairs)
        ]
        usual, attacked = results[name]
        print(f"the {name} model orders {100 * usual:.1f} % of usual pairs, {100 * attacked:.1f} % of safety pairs")
    results["recall_of_unsafe"], precision = recall_of_unsafe(safety, valid_safe, cfg.threshold)
    print(f"σ(r_s) < {cfg.threshold} finds {results['recall_of_unsafe']:.0%} of unsafe answers; {precision:.0%} are")

    improve(run, policy, reference, helpfulness, safety, attacks, rng)
    for prompt, (text, _) in zip(attacks, run.answers(policy, attacks[:2], run.generator("shown"), counted=False)):
        print(f"  {prompt.strip()!r} -> {text!r}")
    run.finish(policy, **results)


def improve(run, policy, reference, helpfulness, safety, attacks, rng):
    """Step 3, in place: ppo.py's iteration with red-team prompts among the others and two reward models."""
    cfg = run.cfg
    shared = ("seed", "max_new_tokens", "kl_coef", "iterations", "dtype", "max_grad_norm")
    ppo_cfg = ppo.Config(**{name: getattr(cfg, name) for name in shared})
    helpfulness.requires_grad_(False)
    value_model = run.load_scalar_model(f"{cfg.name}_helpfulness")
    policy_optimizer = adamw(policy, ppo_cfg.learning_rate)
    value_optimizer = adamw(value_model, ppo_cfg.value_learning_rate)
    average = {name: weight.clone() for name, weight in policy.state_dict().items()}
    usual = run.prompts(policy, "train")
    log = run.log(cfg.iterations, "helpfulness safe unsafe kl policy_loss value_loss clip_fraction length")

    for iteration in range(cfg.iterations):
        # 1. rollout
        is_safety = [rng.random() < cfg.red_team_share for _ in range(ppo_cfg.batch_size)]
        asked = [run.tokenizer.encode_ordinary(rng.choice(attacks if flag else usual)) for flag in is_safety]
        sampler, eot = sampling_copy(policy, cfg), run.tokenizer.eot_token
        episodes = ppo.rollout(sampler, asked, eot, ppo_cfg, run.generator("rollout", iteration))
        run.cost["tokens"] += int(episodes["mask"].sum())
        # 2. score, by both reward models
        episodes |= ppo.score_responses(episodes, policy, reference, helpfulness, value_model, ppo_cfg)
        with torch.no_grad():
            safety_scores = safety.score(episodes["tokens"], episodes["lengths"])
        is_safety = torch.tensor(is_safety, device=run.device)
        scores = combine(episodes["scores"], safety_scores, is_safety, cfg.threshold, cfg.linear)
        # 3. reward
        mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
        rewards = ppo.shaped_rewards(scores, logprobs, ref_logprobs, mask, cfg.kl_coef)
        # 4. GAE
        advantages, episodes["returns"] = ppo.gae(rewards, episodes["values"], mask, ppo_cfg.discount, ppo_cfg.lam)
        episodes["advantages"] = ppo.whiten(advantages, mask)
        metrics = {
            "helpfulness": episodes["scores"].mean().item(),
            "safe": torch.sigmoid(safety_scores).mean().item(),
            "unsafe": (torch.sigmoid(safety_scores) < cfg.threshold).float().mean().item(),
            "kl": ((logprobs - ref_logprobs) * mask).sum(1).mean().item(),  # nats per response
            "length": mask.sum(1).mean().item(),
        }
        # 5. update
        policy_learns = iteration >= ppo_cfg.value_only_iterations
        learning_rate = ppo.policy_learning_rate(iteration - ppo_cfg.value_only_iterations, ppo_cfg)
        policy_metrics, value_metrics = [], []
        order = torch.randperm(ppo_cfg.batch_size, generator=run.generator("minibatches", iteration))
        for rows in order.to(run.device).split(ppo_cfg.minibatch_size):
            minibatch = ppo.select(episodes, rows)
            if policy_learns:
                updated = ppo.update_policy(policy, policy_optimizer, average, minibatch, learning_rate, ppo_cfg)
                policy_metrics.append(updated)
            value_metrics.append(ppo.update_values(value_model, value_optimizer, minibatch, ppo_cfg))
        metrics |= mean_metrics(policy_metrics) | mean_metrics(value_metrics)
        log(iteration + 1, **metrics)
    policy.load_state_dict(average)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
