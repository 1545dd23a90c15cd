"""HIR: keep the answer, change the instruction (Zhang et al. 2023, "The Wisdom of Hindsight").

    python alternatives/hir.py                       # -> hir.pt
    python alternatives/hir.py --slices              # random slices of the answers as targets, as in the paper
    python alternatives/hir.py --label_smoothing 0.2 # the paper's cross-entropy; see below why it is not ours

Nothing is maximised. The goal stands in the text, as one of two instructions p in front of the question q, and an
answer that misses its goal is a perfect example of the other one. Each round

    1. sample answers o to (p_ok, q) at temperature 1
    2. in hindsight, which instruction did o follow?   p* = p_ok if people liked it, else p_bad;   p̄ = the opposite of p*
    3. learn to give this answer to that instruction, of a random slice y = o[i:j] with o[:i] already written

        L = CE_ε(y | p*, q, o[:i])  +  α [ -(1-ε) log f - ε log(1-f) ]  -  β entropy

        f = a / (a + b),   a = exp(mean log π(y | p*, q, o[:i])),   b = the same under p̄;   f = 1/2 while p is ignored

so that asking for p_ok gets better with every round. The second term tells p_ok and p_bad apart; smoothed by ε = 0.2 it
is least at f = 0.8: a token, on geometric average, four times as likely under p* as under p̄.

Deviations. No label smoothing: CE_ε with the paper's ε = 0.2 wants a fifth of the probability spread over the whole
vocabulary, which is harmless for answers of a few tokens, but of twelve that are sampled at temperature 1 only 0.8¹² =
7 % come clean, and the next round learns from the rest. No slices, and α = 5: a slice hardly shows whether people liked
the whole, and with slices the two instructions were told apart no better than by chance. Round 0 learns from the
rankings that reward.py has collected. A tenth of the loss is on pretraining text, or the policy forgets its language.
Feedback: one person ranks the answers to a prompt (the paper: a script knows the right one); those with more of the
others below than above them get p_ok, the rest p_bad; where all tie nothing is learned (ours). Contrast: two-way, as in
the authors' code (the paper: a softmax over the batch). New prompts every round, fewer and shorter rounds; clipped
gradients; a GPT, not a T5. The start has never seen the instructions (FLAN-T5 has). Whoever asks hir.pt puts its
results["prefix"] in front of the question.
"""

import random
import sys
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from data.labelers import load_labelers

from alternatives.common import Inputs, Run, minibatches, rankings_of_people
from data.folder import Corpus
from model import encode_answer, pad, respond, response_mask
from plumbing import adamw, check_finite, command_line, optimizer_step, require
from pretrain import lm_loss


@dataclass
class Config(Inputs):
    good: str = "Answer well.\n"  # p_ok, in front of the prompt; on its own line the prompt keeps its tokens
    bad: str = "Answer badly.\n"  # p_bad
    ranked: bool = True  # begin with the answers that people have ranked for reward.py
    rounds: int = 3  # of sampling, asking people, learning                                    code: 31
    prompts: int = 192  # prompts per round                                                    paper: all
    samples: int = 4  # answers per prompt                                                     paper: 4 (code: 1)
    epochs: int = 1  # passes over the answers of one round                                    paper: 10
    batch_size: int = 32  # answers per step                                                   paper: 64
    learning_rate: float = 3e-4  # constant                                                    paper: 5e-4
    label_smoothing: float = 0.0  # ε of the cross-entropy                                     paper: 0.2
    contrast: float = 5.0  # α, weight of telling the two instructions apart                   paper: 1
    contrast_smoothing: float = 0.2  # ε of the contrast                                       code: 0.2
    entropy_coef: float = 0.001  # β, weight of the entropy                                    paper: 0.001
    pretrain_mix: float = 0.1  # share of pretraining text in the loss, as in all fine-tuning here    paper: none
    slices: bool = False  # targets are random slices of the answers, else whole answers    paper: slices
    name: str = "hir"  # writes OUT/NAME.pt


def relabel(ranks):
    """Ranks of the answers to one prompt, 1 = best -> for each: does it get p_ok (or else p_bad)? Empty if all tie."""
    if len(set(ranks)) < 2:
        return []
    return [sum(other > rank for other in ranks) > sum(other < rank for other in ranks) for rank in ranks]


def hindsight(run, policy, questions, people, rng):
    """One round of sampling and asking. -> [(question, text, ended, good)], and what there is to say about it"""
    found, asked = [], 0
    answers = iter(run.answers(policy, [run.cfg.good + q for q in questions for _ in range(run.cfg.samples)]))
    for q in questions:
        shown = {text: ended for text, ended in islice(answers, run.cfg.samples) if text.strip()}  # equal texts once
        if len(shown) < 2:
            continue
        ranks = rng.choice(people).rank(q, list(shown))  # people see the question without the instruction
        asked += 1
        found += [(q, *answer, good) for answer, good in zip(shown.items(), relabel(ranks))]  # none if all tie
    run.cost["labels"] += asked
    require(found, f"none of {asked} rankings tells answers apart; try more --samples or more --prompts")
    return found, {"rankings": asked, "p_ok": sum(good for *_, good in found) / len(found)}


def already_ranked(run):
    """Round 0, which shows what the instructions mean: reward.py's rankings, relabelled. -> as `hindsight`"""
    found = []
    for r in (r for r in rankings_of_people(run) if r["split"] == "train"):
        ended = r.get("ended") or [True] * len(r["ranks"])
        found += [(r["prompt"], *answer) for answer in zip(r["completions"], ended, relabel(r["ranks"]))]
    require(found, "no ranking of the training split tells answers apart; use --no-ranked")
    return found, {"rankings": run.cost["labels"], "p_ok": sum(good for *_, good in found) / len(found)}


def encode(found, cfg, encoding, block_size):
    """-> [(ids of p* and question, ids of p̄ and question, ids of the answer)] of all that fit the context"""
    rows = []
    for q, text, ended, good in found:
        own, opposite = (cfg.good, cfg.bad) if good else (cfg.bad, cfg.good)
        source, answer = encode_answer(encoding, own + q, text, ended)
        other = encoding.encode_ordinary(opposite + q)
        if max(len(source), len(other)) + len(answer) <= block_size:
            rows.append((source, other, answer))
    return rows


def random_slice(length, rng):
    """i < j, two of the length + 1 places where an answer can be cut."""
    return sorted(rng.sample(range(length + 1), 2))


def cut(source, answer, i, j):
    """-> ids up to the end of the slice, and how many of them are input; what comes after the slice is left out."""
    return source + answer[:j], len(source) + i


def smoothed_nll(logits, targets, smooth):
    """(1-ε) times -log p(target), ε times the mean of -log p over the vocabulary. (N, V), (N,) -> scalar"""
    return F.cross_entropy(logits, targets, label_smoothing=smooth)


def contrast(a, b, smooth):
    """-(1-ε) log f - ε log(1-f), f = e^a / (e^a + e^b) = σ(a - b). Mean log-probs under p* and p̄: (B,), (B,) -> scalar"""
    return -((1 - smooth) * F.logsigmoid(a - b) + smooth * F.logsigmoid(b - a)).mean()


def mean_entropy(logits):
    """Mean entropy (nats) of the predictions. (N, V) -> scalar"""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1).mean()


def loss_terms(model, batch, cfg, device):
    """batch: [(source, other source, answer, i, j)] -> the three terms, and the share of answers with f > 1/2."""
    rows = [cut(source, answer, i, j) for source, _, answer, i, j in batch]
    rows += [cut(other, answer, i, j) for _, other, answer, i, j in batch]  # both instructions in one pass: 2B rows
    tokens, lengths = pad([ids for ids, _ in rows], device)  # (2B, T)
    mask = response_mask(torch.tensor([n for _, n in rows], device=device), lengths, tokens.size(1))
    chosen = mask.bool()
    logits = model.unembed(model(tokens)[:, :-1][chosen[:, 1:]]).float()  # (2N, V), shifted as in model.token_logprobs
    targets = tokens[chosen]  # (2N,): the same N targets twice
    logprobs = torch.zeros_like(mask).masked_scatter(chosen, -F.cross_entropy(logits, targets, reduction="none"))
    a, b = (logprobs.sum(1) / mask.sum(1)).chunk(2)  # (B,) means over each slice, under p* and under p̄
    logits, targets = logits[: len(logits) // 2], targets[: len(targets) // 2]  # under p*
    nll = smoothed_nll(logits, targets, cfg.label_smoothing)
    return nll, contrast(a, b, cfg.contrast_smoothing), mean_entropy(logits), (a > b).float().mean()


def learn(policy, optimizer, rows, run, rng):
    """Step 3: `epochs` passes over the answers of a round, each time cut anew. -> means of the loss and of its terms"""
    cfg, total, corpus = run.cfg, torch.zeros(5), run.cfg.pretrain_mix and Corpus(run.cfg.data, "train")
    window, count = min(128, policy.config.block_size), max(1, round(cfg.pretrain_mix * cfg.batch_size))
    for step, steps, some in minibatches([len(s + a) for s, _, a in rows], cfg.epochs, cfg.batch_size, run.order):
        cuts = [random_slice(len(rows[k][2]), rng) if cfg.slices else (0, len(rows[k][2])) for k in some]
        batch = [(*rows[k], i, j) for k, (i, j) in zip(some, cuts)]
        nll, apart, entropy, told = loss_terms(policy, batch, cfg, run.device)
        loss = nll + cfg.contrast * apart - cfg.entropy_coef * entropy
        ((1 - cfg.pretrain_mix) * loss).backward()
        if cfg.pretrain_mix:
            pages = corpus.windows(count, window + 1, run.order).to(run.device)
            (cfg.pretrain_mix * lm_loss(policy, pages)).backward()
        norm = optimizer_step(optimizer, policy, cfg.learning_rate, cfg.max_grad_norm)
        check_finite(norm, "the gradient", f"step {step} of a round", "try a smaller --learning_rate")
        total += torch.stack([loss, nll, apart, entropy, told]).detach().cpu() / steps
    return dict(zip(("loss", "nll", "contrast", "entropy", "told_apart"), total.tolist()))


def questions_of(run, policy, split):
    """Prompts that leave room for a response behind either instruction."""
    room, both = policy.config.block_size - run.cfg.max_new_tokens, (run.cfg.good, run.cfg.bad)
    longest = {q: max(len(run.encoding.encode_ordinary(p + q)) for p in both) for q in run.prompts(policy, split)}
    fits = [q for q, n in longest.items() if n <= room]
    require(fits, "no prompt is short enough for --good and --bad in front of it; shorten them")
    return fits


def main(cfg):
    run = Run(cfg, cfg.name)
    require(cfg.good != cfg.bad, f"--good and --bad are both {cfg.good!r}: they must differ")
    counts = (cfg.rounds, cfg.prompts, cfg.epochs, cfg.batch_size)
    require(min(counts) >= 1, "--rounds, --prompts, --epochs, --batch_size: at least 1")
    require(
        cfg.samples >= 2 and cfg.learning_rate > 0, "--samples: at least 2, for a ranking; --learning_rate: positive"
    )
    smoothing = (cfg.label_smoothing, cfg.contrast_smoothing)
    require(0 <= min(smoothing) <= max(smoothing) < 0.5, "--label_smoothing, --contrast_smoothing: 0 to less than 0.5")
    require(min(cfg.contrast, cfg.entropy_coef) >= 0, "--contrast and --entropy_coef must not be negative")
    require(0 <= cfg.pretrain_mix < 1, f"--pretrain_mix {cfg.pretrain_mix}: a share below 1")
    people, policy = load_labelers(cfg.data, "training"), run.load("ppo_init")
    questions, held_out = questions_of(run, policy, "train"), questions_of(run, policy, "valid")
    optimizer, rng = adamw(policy, cfg.learning_rate), random.Random(cfg.seed)
    for n in range(0 if cfg.ranked else 1, cfg.rounds + 1):
        some = rng.sample(questions, min(cfg.prompts, len(questions)))
        found, figures = hindsight(run, policy, some, people, rng) if n else already_ranked(run)
        rows = encode(found, cfg, run.encoding, policy.config.block_size)
        r = learn(policy, optimizer, rows, run, rng) | figures
        run.log.write(round=n, answers=len(rows), **r)
        shown = ("loss", "nll", "contrast", "entropy", "told_apart", "p_ok")
        line = "  ".join(f"{k} {r[k]:6.3f}" for k in shown) + f"  answers {len(rows):5,}"
        print(f"round {n:2}/{cfg.rounds}  {line}  left {run.log.left(n, cfg.rounds)}", flush=True)
    run.finish(policy, prefix=cfg.good)
    for q, instruction in product(held_out[:2], (cfg.good, cfg.bad)):
        ((text, _),) = respond(policy, run.encoding, [instruction + q], cfg.max_new_tokens, generator=run.draw)
        print(f"  {(instruction + q).strip()!r} -> {text!r}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
