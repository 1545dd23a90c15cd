"""RLAIF: a model is the labeler (Lee et al. 2023).

    python alternatives/rlaif.py                    # -> rlaif.pt, with a reward model distilled from the labeler
    python alternatives/rlaif.py --direct           # -> rlaif_direct.pt: the labeler's grade is the reward, no reward model

Reads as a variation on reward.py and ppo.py. The labeler is a model that has read pages on which people compare answers
(data/feedback.py, which says how to make it). No person judges anything here.

  1. label      two answers by PPO's initial policy to each prompt; the labeler reads prompt, answer 1, answer 2 and a
                question, writes down its thoughts (a grade behind each), and its log-probs of the tokens 1 and 2 make the
                preference; both orders are asked and averaged, because it may like one place better:
                p = ½ ( P(1 | x, a, b) + P(2 | x, b, a) )
  2. distil     a reward model on these soft labels      L = -p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a)
  3. RL         REINFORCE with a learned baseline; the whole return Z of a response is known at its end (discount 1):
                Z = (1-β) r - β log(π/π_ref)             L_π = -Σ_t log π(a_t) (Z - V_t)       L_V = Σ_t (Z - V_t)²

  direct        r = Σ_i i · P(grade i), rescaled to [-1, 1], instead of 1. and 2.

Deviations: grades are 1 to 9, one token each (paper: 1 to 10); thoughts are grades, not sentences; the KL
stands in the return, where the paper says only that it is part of the loss; AdamW, not Adafactor; the baseline is a model
of its own that starts from the initial policy; losses are means over tokens, as everywhere here.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from alternatives.common import Inputs, Run, minibatches, rankings_of_people
from data.feedback import BETTER, asking, grading, shown, verdict
from model import (
    ScalarModel,
    encode_answer,
    generate,
    masked_mean,
    pad,
    score_rows,
    token_logprobs,
    values_before,
)
from plumbing import adamw, check_finite, command_line, cosine_to_tenth, optimizer_step, require
from reward import accuracy, encode_ranking, outcomes_of


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


# ---------------------------------------------------------------------------------------------------- the labeler

GRADES = list("123456789")


@torch.no_grad()
def choice_probabilities(labeler, encoding, contexts, choices, batch_size=128):
    """P(choice | context) among the choices, by the labeler's log-probs. -> (contexts, choices)

    Every choice is one token, so one forward pass per context gives the log-probs of all: at its last position.
    """
    ids = [encoding.encode_ordinary(choice) for choice in choices]
    require(all(len(i) == 1 for i in ids), f"each of {choices} must be one token of this tokenizer")
    rows, device = [encoding.encode_ordinary(c) for c in contexts], labeler.transformer.wte.weight.device
    order, result = sorted(range(len(rows)), key=lambda i: len(rows[i])), torch.zeros(len(rows), len(choices))
    for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        tokens, lengths = pad([rows[i] for i in batch], device)
        last = labeler(tokens)[torch.arange(len(batch), device=device), lengths - 1]
        result[batch] = labeler.unembed(last).float()[:, sum(ids, [])].softmax(-1).cpu()
    return result


def preferences(labeler, encoding, triples, questions=BETTER[:1], thoughts=True):
    """p that the first answer is better, both orders averaged, and P(1) in either order.

    triples: [(prompt, first, second)]; questions: one for all, or one for each. thoughts: let the labeler write a grade,
    its most likely one, behind each answer that it has read (chain of thought). -> (N,), (N, 2)
    """
    questions = list(questions) * len(triples) if len(questions) == 1 else questions
    pages = [asking(q, x) for (x, _, _), q in zip(triples, questions)] * 2
    orders = [(a, b) for _, a, b in triples] + [(b, a) for _, a, b in triples]
    for place in (0, 1):
        pages = [shown(page, place + 1, order[place]) for page, order in zip(pages, orders)]
        if thoughts:
            best = choice_probabilities(labeler, encoding, [grading(page) for page in pages], GRADES).argmax(1)
            pages = [grading(page) + GRADES[i] for page, i in zip(pages, best)]
    one = choice_probabilities(labeler, encoding, [verdict(page) for page in pages], ["1", "2"])[:, 0].view(2, -1)
    return (one[0] + 1 - one[1]) / 2, one.T  # one: (order, N)


def grades(labeler, encoding, prompts, answers):
    """Expected grade of each answer, rescaled from 1…9 to [-1, 1]. -> (N,)"""
    asked = [grading(shown(asking(BETTER[0], x), 1, text)) for x, text in zip(prompts, answers)]
    p = choice_probabilities(labeler, encoding, asked, GRADES)
    return (p @ torch.arange(1.0, 10.0) - 5) / 4


def report_on_labeler(run, labeler, records, thoughts):
    """How good a labeler is it? Agreement with people, and whether it sticks to a place when the answers are swapped."""
    triples, first_won = [], []
    for r in records:
        K = range(len(r["ranks"]))
        for i, j in [(i, j) for i in K for j in K if i < j and r["ranks"][i] != r["ranks"][j]][:3]:
            triples.append((r["prompt"], r["completions"][i], r["completions"][j]))
            first_won.append(r["ranks"][i] < r["ranks"][j])
    p, one = preferences(labeler, run.encoding, triples, thoughts=thoughts)
    agree = sum(0.5 if abs(q - 0.5) < 1e-3 else (q > 0.5) == w for q, w in zip(p.tolist(), first_won)) / len(first_won)
    same_place = ((one > 0.5).sum(1) != 1).float().mean().item()  # 1 in both orders, or 2 in both
    print(
        f"the labeler agrees with people on {100 * agree:.1f} % of {len(triples)} pairs; keeps to the same place after a "
        f"swap on {100 * same_place:.1f} % (says 1 on {100 * (one > 0.5).float().mean().item():.0f} %)"
    )
    return {"labeler_agreement": agree, "position_bias": same_place}


# ---------------------------------------------------------------------------------------------------- the reward model


def soft_label_loss(first, second, p):
    """-p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a), mean. All (N,) -> scalar."""
    return (p * F.softplus(second - first) + (1 - p) * F.softplus(first - second)).mean()


def distil(run, model, pairs, cfg):
    """Train a scalar model in place on [(ids of prompt + first, ids of prompt + second, p)]."""
    optimizer = adamw(model, cfg.learning_rate)
    lengths = [max(len(a), len(b)) for a, b, _ in pairs]
    for step, steps, some in minibatches(lengths, cfg.epochs, cfg.batch_size, run.order):
        model.train()
        first, second, p = zip(*(pairs[i] for i in some))
        r = model.score(*pad(first + second, run.device))  # one forward pass for both
        loss = soft_label_loss(*r.chunk(2), torch.tensor(p, device=run.device))
        loss.backward()
        lr = cosine_to_tenth(step, steps, cfg.learning_rate)
        optimizer_step(optimizer, model, lr, cfg.max_grad_norm)
        check_finite(loss.item(), "the loss", f"step {step}", "try a smaller --learning_rate")
        if step % 25 == 0 or step + 1 == steps:
            run.log.write(step=step, loss=loss.item())
            print(f"step {step:4}/{steps}  loss {loss.item():.3f} (no less than the labels' entropy)", flush=True)
    return model.eval()


def label(run, cfg, policy, labeler):
    """Step 1 -> [(ids, ids, p)]: two different answers of one prompt and the labeler's preference."""
    prompts = run.prompts(policy, "train")
    prompts = (prompts * math.ceil(cfg.pairs / len(prompts)))[: cfg.pairs]
    answers = run.answers(policy, [x for x in prompts for _ in range(2)])
    triples, ends = [], []
    for x, a, b in zip(prompts, answers[::2], answers[1::2]):
        if a[0] != b[0] and a[0].strip() and b[0].strip():
            triples.append((x, a[0], b[0]))
            ends.append((a[1], b[1]))
    p, _ = preferences(labeler, run.encoding, triples, thoughts=cfg.thoughts)
    rows = [
        [sum(encode_answer(run.encoding, x, text, ended), []) for text, ended in zip((a, b), end)]
        for (x, a, b), end in zip(triples, ends)
    ]
    sure = (p - 0.5).abs().mean().item() + 0.5
    print(f"{len(rows)} pairs labelled; the labeler is {100 * sure:.0f} % sure of itself; the first one:")
    x, a, b = triples[0]
    page = verdict(shown(shown(asking(BETTER[0], x), 1, a), 2, b))
    print("  " + page.replace("\n", "\n  ") + f"  p(1 is better) = {p[0]:.2f}")
    return [(*row, q) for row, q in zip(rows, p.tolist())]


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
    records = rankings_of_people(run)
    held_out = [r for r in records if r["split"] == "valid" and r.get("group", "training") == "training"]
    results = report_on_labeler(run, labeler, held_out, cfg.thoughts)
    if cfg.direct:

        def score(prompts, tokens, prompt_lengths, lengths):
            rows = zip(tokens.tolist(), prompt_lengths, lengths.tolist())
            texts = [
                run.encoding.decode([t for t in row[n:end] if t != run.encoding.eot_token]) for row, n, end in rows
            ]
            return grades(labeler, run.encoding, prompts, texts).to(run.device)
    else:
        pairs = label(run, cfg, policy, labeler)
        reward_model = distil(run, ScalarModel.from_gpt(reference), pairs, cfg)
        rankings = [encode_ranking(r, run.encoding, policy.config.block_size) for r in held_out]
        results["rm_accuracy"] = accuracy(outcomes_of(reward_model, rankings))[0]
        typical = score_rows(reward_model, [a for a, _, _ in pairs[:256]])
        mean, spread = torch.tensor(typical).mean().item(), torch.tensor(typical).std().item()
        print(f"the distilled reward model orders {100 * results['rm_accuracy']:.1f} % of people's pairs as they do")

        def score(prompts, tokens, prompt_lengths, lengths):
            with torch.no_grad():
                return reward_model.score(tokens, lengths) - mean

        results["rm_spread"] = spread
    reinforce(run, cfg, policy, reference, score)
    run.finish(policy, **results)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
