"""RLAIF: a model is the labeler (Lee et al. 2023).

    python alternatives/rlaif.py                    # -> rlaif.pt, with a reward model distilled from the labeler
    python alternatives/rlaif.py --direct           # -> rlaif_direct.pt: the labeler's grade is the reward, no reward model

Reads as a variation on reward.py and ppo.py. Nobody is asked about this policy's answers: what people prefer, the
labeler knows from pages on which they compare answers (data/feedback.py, which says how to make it, and how many).

  1. label      two answers by PPO's initial policy to each prompt; the labeler reads a question, the prompt and both
                answers, writes down its thoughts (a grade behind each), and its log-probs of the tokens 1 and 2 make the
                preference; both orders are asked and averaged, because it may like one place better:
                p = ½ ( P(1 | x, a, b) + P(2 | x, b, a) )
  2. distil     a reward model on these soft labels      L = -p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a)
  3. RL         REINFORCE with a learned baseline; the whole return Z of a response is known at its end (discount 1):
                Z = (1-β) r - β log(π/π_ref)             L_π = -Σ_t log π(a_t) (Z - V_t)       L_V = Σ_t (Z - V_t)²

  direct        r = Σ_i i · P(grade i), rescaled to [-1, 1], instead of 1. and 2.

Deviations: the labeler is fine-tuned and no larger than the policy (paper: a larger model as it is, asked with a
preamble); grades are 1 to 9, one token each (paper: 1 to 10); thoughts are grades, not sentences; the KL stands in the
return, where the paper says only that it is part of the loss; several updates per batch of episodes, without a ratio to
correct for it; answers are sampled at T = 0.9 and scored at T = 1; the last policy, not the best of several by a
labeler; AdamW, not Adafactor; the baseline is a model of its own; losses are means over tokens, as everywhere here.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from data.feedback import BETTER, asking, shown, verdict

from alternatives.common import Inputs, Run, encoded_rankings, fit, rankings_of_people
from alternatives.labeler import grades, loss_on_pairs, preferences, report_on_labeler, two_answers
from model import ScalarModel, generate, masked_mean, score_rows, token_logprobs, values_before
from plumbing import adamw, check_finite, command_line, optimizer_step, require
from reward import accuracy, outcomes_of


@dataclass
class Config(Inputs):
    labeler: str = "reader"  # policy of the run folder that judges
    thoughts: bool = True  # it thinks before it compares
    direct: bool = False  # its grades are the reward, without a reward model
    name: str = ""  # writes OUT/NAME.pt; default: rlaif, or rlaif_direct
    pairs: int = 2400  # training prompts with two answers each
    epochs: int = 2  # passes over the pairs                                                   paper: 2 to 3
    batch_size: int = 32  # pairs per step                                                     paper: 32, 128
    learning_rate: float = 8e-4  # of the reward model, cosine to a tenth                      paper: 1e-5
    iterations: int = 16  # of reinforcement learning: sample, then one pass                   paper: 8 epochs
    episodes: int = 128  # per iteration                                                       paper: 128
    minibatch_size: int = 32  # episodes per update
    temperature: float = 0.9  # of sampling while learning                                     paper: 0.9
    kl_weight: float = 0.2  # β                                                                paper: 0.05
    policy_learning_rate: float = 2e-4  # constant                                             paper: 1e-5
    value_learning_rate: float = 5e-4  # constant


# ---------------------------------------------------------------------------------------------------- the reward model


def label(run, cfg, policy, labeler):
    """Step 1 -> [(ids, ids, p)]: two different answers of one prompt and the labeler's preference."""
    prompts = run.prompts(policy, "train")
    prompts = (prompts * math.ceil(cfg.pairs / len(prompts)))[: cfg.pairs]
    drawn = two_answers(run, policy, prompts)
    p, _ = preferences(labeler, run.encoding, [(x, a[0], b[0]) for x, a, b in drawn], thoughts=cfg.thoughts)
    sure = (p - 0.5).abs().mean().item() + 0.5
    print(f"{len(drawn)} pairs labelled; the labeler is {100 * sure:.0f} % sure of itself; the first one:")
    x, a, b = drawn[0]
    page = verdict(shown(shown(asking(BETTER[0], x), 1, a[0]), 2, b[0]))
    print(
        "  " + page.replace("\n", "\n  ") + f"  p(1 is better) = {p[0]:.2f}" + " (its grades left out)" * cfg.thoughts
    )
    return [(run.ids(x, *a), run.ids(x, *b), q) for (x, a, b), q in zip(drawn, p.tolist())]


def distil(run, model, pairs, cfg):
    """Step 2: train a scalar model in place on [(ids of prompt + first, ids of prompt + second, p)]."""
    lengths = [max(len(a), len(b)) for a, b, _ in pairs]

    def loss_of(some):
        return loss_on_pairs(model, [pairs[i] for i in some], run.device)

    losses = fit(model, loss_of, lengths, run, cfg.epochs, cfg.batch_size, cfg.learning_rate)
    last = losses[-20:]
    print(f"loss of the reward model {losses[0]:.3f} → {sum(last) / len(last):.3f} (no less than the labels' entropy)")


# ---------------------------------------------------------------------------------------------------- REINFORCE


def returns_of(scores, logprobs, ref_logprobs, mask, kl_weight):
    """Z = (1-β) r - β Σ_t log(π/π_ref), one per response. scores: (B,), the others (B, T) -> (B,)"""
    return (1 - kl_weight) * scores - kl_weight * ((logprobs - ref_logprobs) * mask).sum(1)


def reinforce_loss(logprobs, values, Z, mask):
    """Policy loss and value loss. logprobs, values, mask: (B, T); Z: (B,). The advantage Z - V is no part of the graph."""
    advantages = (Z[:, None] - values).detach()
    return -masked_mean(logprobs * advantages, mask), masked_mean((Z[:, None] - values) ** 2, mask)


def reinforce(run, cfg, policy, reference, score):
    """Step 3, in place. score(prompts, tokens, prompt lengths, lengths) -> (B,)."""
    value_model = ScalarModel.from_gpt(reference)
    value_model.head.weight.data.zero_()  # values start at 0
    optimizers = adamw(policy, cfg.policy_learning_rate), adamw(value_model, cfg.value_learning_rate)
    prompts, queue = run.prompts(policy, "train"), []
    ids = [run.encoding.encode_ordinary(x) for x in prompts]
    for iteration in range(cfg.iterations):
        while len(queue) < cfg.episodes:
            queue += torch.randperm(len(ids), generator=run.order).tolist()
        asked, queue = queue[: cfg.episodes], queue[cfg.episodes :]
        tokens, lengths, mask = generate(
            policy, [ids[i] for i in asked], cfg.max_new_tokens, run.encoding.eot_token, cfg.temperature, run.draw
        )
        run.cost["tokens"] += int(mask.sum())
        r = score([prompts[i] for i in asked], tokens, [len(ids[i]) for i in asked], lengths)
        seen = []
        for rows in torch.randperm(cfg.episodes, generator=run.order).to(run.device).split(cfg.minibatch_size):
            T = int(lengths[rows].max())
            some, inside = tokens[rows, :T], mask[rows, :T]
            with torch.no_grad():
                ref_logprobs = token_logprobs(reference, some, inside)
            logprobs, values = token_logprobs(policy, some, inside), values_before(value_model, some, inside)
            Z = returns_of(r[rows], logprobs.detach(), ref_logprobs, inside, cfg.kl_weight)
            policy_loss, value_loss = reinforce_loss(logprobs, values, Z, inside)
            (policy_loss + value_loss).backward()
            optimizer_step(optimizers[0], policy, cfg.policy_learning_rate, cfg.max_grad_norm)
            optimizer_step(optimizers[1], value_model, cfg.value_learning_rate, cfg.max_grad_norm)
            kl = ((logprobs.detach() - ref_logprobs) * inside).sum(1).mean()
            seen.append((r[rows].mean().item(), kl.item(), value_loss.item()))
        reward, kl, value = (sum(column) / len(seen) for column in zip(*seen))
        check_finite(value, "the value loss", f"iteration {iteration}", "try smaller learning rates")
        run.log.write(iteration=iteration, reward=reward, kl=kl, value_loss=value, length=mask.sum(1).mean().item())
        if iteration % 4 == 0 or iteration + 1 == cfg.iterations:
            print(
                f"iteration {iteration:3}/{cfg.iterations}  reward {reward:+.3f}  KL {kl:.2f}  value loss {value:.3f}"
            )


def main(cfg):
    cfg = replace(cfg, name=cfg.name or ("rlaif_direct" if cfg.direct else "rlaif"))
    run = Run(cfg, cfg.name)
    positive = (cfg.pairs, cfg.epochs, cfg.batch_size, cfg.iterations, cfg.episodes, cfg.minibatch_size)
    require(
        min(positive) >= 1, "--pairs, --epochs, --batch_size, --iterations, --episodes, --minibatch_size: at least 1"
    )
    require(0 <= cfg.kl_weight <= 1 and cfg.temperature > 0, "--kl_weight is a share, --temperature positive")
    labeler, policy, reference = run.load(cfg.labeler), run.load("ppo_init"), run.load("ppo_init")
    reference.requires_grad_(False)
    valid = [r for r in rankings_of_people(run, learn=False) if r["split"] == "valid"]
    results = report_on_labeler(run, labeler, valid, cfg.thoughts)
    if cfg.direct:

        def score(prompts, tokens, prompt_lengths, lengths):
            rows = zip(tokens.tolist(), prompt_lengths, lengths.tolist())
            texts = [
                run.encoding.decode([t for t in row[n:end] if t != run.encoding.eot_token]) for row, n, end in rows
            ]
            return grades(labeler, run.encoding, prompts, texts).to(run.device)
    else:
        pairs = label(run, cfg, policy, labeler)
        reward_model = ScalarModel.from_gpt(reference)
        distil(run, reward_model, pairs, cfg)
        rankings = encoded_rankings(run, policy.config.block_size, learn=False)["valid"]
        results["rm_accuracy"] = accuracy(outcomes_of(reward_model, rankings))[0]
        print(f"the distilled reward model orders {100 * results['rm_accuracy']:.1f} % of people's pairs as they do")
        typical = torch.tensor(score_rows(reward_model, [a for a, _, _ in pairs[:256]])).mean()
        reward_model.bias -= typical.to(run.device)  # what the policy writes scores 0 on average

        def score(prompts, tokens, prompt_lengths, lengths):
            with torch.no_grad():
                return reward_model.score(tokens, lengths)

    reinforce(run, cfg, policy, reference, score)
    run.finish(policy, **results)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
