"""RLAIF: a model is the labeler (Lee et al. 2023).

    python alternatives/rlaif.py                    # -> rlaif.pt, with a reward model distilled from the labeler
    python alternatives/rlaif.py --direct           # -> rlaif_direct.pt: the labeler's grade is the reward

Reads as a variation on reward.py and ppo.py. Nobody is asked about this policy's answers: what people prefer, the
labeler knows from pages on which they compare answers (data/village/feedback.py, which says how to make it).

  1. label      two answers by PPO's initial policy to each prompt; the labeler reads a question, the prompt and both
                answers, writes down its thoughts (a grade behind each), and its log-probs of the tokens 1 and 2 make
                the preference; both orders are asked and averaged, because it may like one place better:
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

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alternatives.common import CommonConfig, Run, encoded_rankings, fit, rankings_of_people
from alternatives.labeler import grades, loss_on_pairs, preferences, report_on_labeler, two_answers
from core.batches import shuffled_rows
from core.config import Fraction, PositiveFloat, PositiveInt, command_line
from core.device import sampling_copy
from core.optim import adamw, optimizer_step
from core.ranking_metrics import accuracy
from core.sampling import generate
from core.text import decode_answer, score_rows
from data.village.feedback import BETTER, up_to_answers, up_to_choice, with_answer
from model import masked_mean, token_logprobs, token_values
from ppo import mean_metrics, select
from reward import score_differences


@dataclass
class Config(CommonConfig):
    labeler: str = "reader"  # policy of the run folder that judges
    thoughts: bool = True  # it thinks before it compares
    direct: bool = False  # its grades are the reward, without a reward model
    name: str = ""  # writes OUT/NAME.pt; default: rlaif, or rlaif_direct
    pairs: PositiveInt = 2400  # training prompts with two answers each
    epochs: PositiveInt = 2  # passes over the pairs                                                   paper: 2 to 3
    batch_size: PositiveInt = 32  # pairs per step                                                     paper: 32, 128
    learning_rate: PositiveFloat = 8e-4  # of the reward model, cosine to a tenth                      paper: 1e-5
    iterations: PositiveInt = 16  # of reinforcement learning: sample, then one pass                   paper: 8 epochs
    episodes: PositiveInt = 128  # per iteration                                                       paper: 128
    minibatch_size: PositiveInt = 32  # episodes per update
    temperature: PositiveFloat = 0.9  # of sampling while learning                                     paper: 0.9
    kl_weight: Fraction = 0.2  # β                                                                     paper: 0.05
    policy_learning_rate: PositiveFloat = 2e-4  # constant                                             paper: 1e-5
    value_learning_rate: PositiveFloat = 5e-4  # constant


# ---------------------------------------------------------------------------------------------------- the mathematics


def returns_of(scores, logprobs, ref_logprobs, mask, kl_weight):
    """Z = (1-β) r - β Σ_t log(π/π_ref), one per response. scores: (B,), the others (B, T) -> (B,)"""
    return (1 - kl_weight) * scores - kl_weight * ((logprobs - ref_logprobs) * mask).sum(1)


def reinforce_loss(logprobs, values, Z, mask):
    """Policy loss and value loss. logprobs, values, mask: (B, T); Z: (B,). The advantage Z - V has no gradient."""
    advantages = (Z[:, None] - values).detach()
    return -masked_mean(logprobs * advantages, mask), masked_mean((Z[:, None] - values) ** 2, mask)


# ---------------------------------------------------------------------------------------------------- the reward model


def label(run, policy, labeler):
    """Step 1 -> [(ids, ids, p)]: two different answers to one prompt and the labeler's preference for the first."""
    cfg, prompts = run.cfg, run.prompts(policy, "train")
    prompts = [prompts[i % len(prompts)] for i in range(cfg.pairs)]
    answered = two_answers(run, policy, prompts, run.generator("answers to label"))
    triples = [(prompt, first[0], second[0]) for prompt, first, second in answered]
    p, _ = preferences(labeler, run.tokenizer, triples, thoughts=cfg.thoughts)
    sure = (p - 0.5).abs().mean().item() + 0.5
    print(f"{len(answered)} pairs labelled; the labeler is {100 * sure:.0f} % sure of itself; the first one:")
    prompt, first, second = triples[0]
    page = up_to_choice(with_answer(with_answer(up_to_answers(BETTER[0], prompt), 1, first), 2, second)).replace(
        "\n", "\n  "
    )
    print(f"  {page}  p(1 is better) = {p[0]:.2f}{' (its grades left out)' if cfg.thoughts else ''}")
    return [(run.ids(prompt, *a), run.ids(prompt, *b), q) for (prompt, a, b), q in zip(answered, p.tolist())]


def distil(run, start, pairs):
    """Step 2: a scalar model that starts as reward.py's learns [(ids of prompt + first, ids of prompt + second, p)]."""
    cfg, model = run.cfg, run.new_reward_model(start)
    lengths = [max(len(first), len(second)) for first, second, _ in pairs]

    def loss_of(indices):
        return loss_on_pairs(model, [pairs[i] for i in indices], run.device)

    losses = fit(model, loss_of, lengths, run, cfg.epochs, cfg.batch_size, cfg.learning_rate, run.generator("distil"))
    last = losses[-20:]
    print(f"loss of the reward model {losses[0]:.3f} → {sum(last) / len(last):.3f} (no less than the labels' entropy)")
    typical = score_rows(model, [first for first, _, _ in pairs[:256]])
    with torch.no_grad():
        model.head.bias -= sum(typical) / len(typical)  # what the policy writes scores 0 on average
    return model


# ---------------------------------------------------------------------------------------------------- REINFORCE


def reinforce(run, policy, reference, score):
    """Step 3, in place. score(prompts, tokens, prompt lengths, lengths) -> (B,)."""
    cfg, value_model = run.cfg, run.new_scalar_model(reference)
    torch.nn.init.zeros_(value_model.head.weight)  # values start at 0
    policy_optimizer = adamw(policy, cfg.policy_learning_rate)
    value_optimizer = adamw(value_model, cfg.value_learning_rate)
    prompts = run.prompts(policy, "train")
    ids = [run.tokenizer.encode_ordinary(prompt) for prompt in prompts]
    log = run.log(cfg.iterations, "reward kl policy_loss value_loss length")
    for iteration in range(cfg.iterations):
        asked = shuffled_rows(len(prompts), cfg.episodes, cfg.seed, iteration)
        sampler, rng, eot = sampling_copy(policy, cfg), run.generator("rollout", iteration), run.tokenizer.eot_token
        tokens, lengths, mask = generate(
            sampler, [ids[i] for i in asked], cfg.max_new_tokens, eot, cfg.temperature, generator=rng
        )
        run.cost["tokens"] += int(mask.sum())
        scores = score([prompts[i] for i in asked], tokens, [len(ids[i]) for i in asked], lengths)
        episodes = {"tokens": tokens, "mask": mask, "lengths": lengths, "scores": scores}
        metrics = []
        order = torch.randperm(cfg.episodes, generator=run.generator("update", iteration)).to(run.device)
        for rows in order.split(cfg.minibatch_size):
            minibatch = select(episodes, rows)
            metrics.append(update(policy, value_model, policy_optimizer, value_optimizer, reference, minibatch, cfg))
        log(iteration + 1, **mean_metrics(metrics), length=mask.sum(1).mean().item())


def update(policy, value_model, policy_optimizer, value_optimizer, reference, episodes, cfg):
    """One optimizer step of the policy and of the value model. episodes: {name: (b,) or (b, T)} -> metrics"""
    tokens, mask = episodes["tokens"], episodes["mask"]
    with torch.no_grad():
        ref_logprobs = token_logprobs(reference, tokens, mask)
    logprobs, values = token_logprobs(policy, tokens, mask), token_values(value_model, tokens, mask)
    Z = returns_of(episodes["scores"], logprobs.detach(), ref_logprobs, mask, cfg.kl_weight)
    policy_loss, value_loss = reinforce_loss(logprobs, values, Z, mask)
    (policy_loss + value_loss).backward()
    optimizer_step(policy_optimizer, policy, cfg.policy_learning_rate, cfg.max_grad_norm)
    optimizer_step(value_optimizer, value_model, cfg.value_learning_rate, cfg.max_grad_norm)
    kl = ((logprobs.detach() - ref_logprobs) * mask).sum(1).mean()  # nats per response
    metrics = {"reward": episodes["scores"].mean(), "kl": kl, "policy_loss": policy_loss, "value_loss": value_loss}
    return {name: value.item() for name, value in metrics.items()}


def main(cfg):
    cfg = replace(cfg, name=cfg.name or ("rlaif_direct" if cfg.direct else "rlaif"))
    run = Run(cfg, cfg.name)
    labeler, policy = run.load_policy(cfg.labeler), run.load_policy("ppo_init")
    reference = run.load_policy("ppo_init").requires_grad_(False)
    records = rankings_of_people(run, counted=False)  # only to see how good the labeler is
    by_training = [r for r in records if r["split"] == "valid" and r.get("group", "training") == "training"]
    results = report_on_labeler(run, labeler, by_training, cfg.thoughts)
    if cfg.direct:

        def score(prompts, tokens, prompt_lengths, lengths):
            rows = zip(tokens.tolist(), prompt_lengths, lengths.tolist())
            texts = [decode_answer(run.tokenizer, row[start:end])[0] for row, start, end in rows]
            return grades(labeler, run.tokenizer, prompts, texts).to(run.device)
    else:
        reward_model = distil(run, reference, label(run, policy, labeler))
        rankings = encoded_rankings(run, policy.config.block_size, counted=False)["valid"]
        results["rm_accuracy"] = accuracy(score_differences(reward_model, rankings))[0]
        print(f"the distilled reward model orders {100 * results['rm_accuracy']:.1f} % of people's pairs as they do")

        @torch.no_grad()
        def score(prompts, tokens, prompt_lengths, lengths):
            return reward_model.score(tokens, lengths)

    reinforce(run, policy, reference, score)
    run.finish(policy, **results)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
