"""HIR: keep the answer, change the instruction (Zhang et al. 2023, "The Wisdom of Hindsight").

    python alternatives/hir.py                       # -> hir.pt
    python alternatives/hir.py --slices              # random slices of the answers as targets, as in the paper
    python alternatives/hir.py --label_smoothing 0.2 # the paper's cross-entropy; see below why it is not ours

Nothing is maximised. The goal stands in the text, as one of two instructions p in front of the question q, and an
answer that misses its goal is a perfect example of the other one. Each round

    1. sample answers o to (p_ok, q) at temperature 1
    2. in hindsight, which instruction did o follow?   p* = p_ok if people liked it, else p_bad;   p̄ = the opposite
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
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from alternatives.common import CommonConfig, Run, minibatches, rankings_of_people, require_finite
from core.config import Fraction, PositiveFloat, PositiveInt, command_line, require
from core.device import sampling_copy
from core.optim import adamw, optimizer_step
from core.text import encode_answer, pad_responses, respond
from data.folder import Corpus
from data.village.labelers import load_labelers
from model import lm_loss


@dataclass
class Config(CommonConfig):
    good: str = "Answer well.\n"  # p_ok, in front of the prompt; on its own line the prompt keeps its tokens
    bad: str = "Answer badly.\n"  # p_bad
    ranked: bool = True  # begin with the answers that people have ranked for reward.py
    rounds: PositiveInt = 3  # of sampling, asking people, learning                                    code: 31
    prompts: PositiveInt = 192  # prompts per round                                                    paper: all
    samples: PositiveInt = 4  # answers per prompt  paper: 4 (code: 1)
    epochs: PositiveInt = 1  # passes over the answers of one round                                    paper: 10
    batch_size: PositiveInt = 32  # answers per step                                                   paper: 64
    learning_rate: PositiveFloat = 3e-4  # constant                                                    paper: 5e-4
    label_smoothing: Fraction = 0.0  # ε of the cross-entropy                                          paper: 0.2
    contrast: float = 5.0  # α, weight of telling the two instructions apart                           paper: 1
    contrast_smoothing: Fraction = 0.2  # ε of the contrast                                            code: 0.2
    entropy_coef: float = 0.001  # β, weight of the entropy                                            paper: 0.001
    pretrain_mix: Fraction = 0.1  # share of pretraining text in the loss, as in all fine-tuning here    paper: none
    slices: bool = False  # targets are random slices of the answers, else whole answers           paper: slices
    name: str = "hir"  # writes OUT/NAME.pt


# ---------------------------------------------------------------------------------------------------- hindsight


def relabel(ranks):
    """Ranks of the answers to one prompt, 1 = best -> for each: does it get p_ok (or else p_bad)? Empty if all tie."""
    if len(set(ranks)) < 2:
        return []
    return [sum(other > rank for other in ranks) > sum(other < rank for other in ranks) for rank in ranks]


def hindsight(run, policy, questions, labelers, rng, number):
    """Steps 1 and 2: sample, ask people, relabel. -> [(question, text, ended, good)] and what there is to say about it

    number: of the round.
    """
    asked = [run.cfg.good + question for question in questions for _ in range(run.cfg.samples)]
    answers = run.answers(policy, asked, run.generator("answers", number))
    examples, n_rankings = [], 0
    for i, question in enumerate(questions):
        own_answers = answers[i * run.cfg.samples : (i + 1) * run.cfg.samples]
        ended = {text: end for text, end in own_answers if text.strip()}  # equal texts are shown once
        if len(ended) < 2:
            continue
        ranks = rng.choice(labelers).rank(question, list(ended))  # people see the question without the instruction
        n_rankings += 1
        for (text, end), good in zip(ended.items(), relabel(ranks)):  # none if all tie
            examples.append((question, text, end, good))
    run.cost["labels"] += n_rankings
    require(examples, f"none of {n_rankings} rankings tells answers apart; try more --samples or more --prompts")
    return examples, {"rankings": n_rankings, "p_ok": share_of_good(examples)}


def already_ranked(run):
    """Round 0, which shows what the instructions mean: reward.py's rankings, relabelled. -> as `hindsight`"""
    examples = []
    for record in rankings_of_people(run):
        if record["split"] == "train":
            ended = record.get("ended") or [True] * len(record["ranks"])
            for text, end, good in zip(record["completions"], ended, relabel(record["ranks"])):
                examples.append((record["prompt"], text, end, good))
    require(examples, "no ranking of the training split tells answers apart; use --no-ranked")
    return examples, {"rankings": run.cost["labels"], "p_ok": share_of_good(examples)}


def share_of_good(examples):
    """Share of the answers that get p_ok."""
    return sum(good for _, _, _, good in examples) / len(examples)


def encode_examples(examples, cfg, tokenizer, block_size):
    """-> [(ids of p* and question, ids of p̄ and question, ids of the answer)] of all that fit the context"""
    rows = []
    for question, text, ended, good in examples:
        own, opposite = (cfg.good, cfg.bad) if good else (cfg.bad, cfg.good)
        source, answer = encode_answer(tokenizer, own + question, text, ended)
        other = tokenizer.encode_ordinary(opposite + question)
        if max(len(source), len(other)) + len(answer) <= block_size:
            rows.append((source, other, answer))
    return rows


# ---------------------------------------------------------------------------------------------------- the loss


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
    """-(1-ε) log f - ε log(1-f), f = e^a / (e^a + e^b) = σ(a - b). a, b: mean log-probs under p* and p̄, (B,)"""
    return -((1 - smooth) * F.logsigmoid(a - b) + smooth * F.logsigmoid(b - a)).mean()


def mean_entropy(logits):
    """Mean entropy (nats) of the predictions. (N, V) -> scalar"""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1).mean()


def loss_terms(model, batch, cfg, device):
    """batch: [(source, other source, answer, i, j)] -> the three terms, and the share of answers with f > 1/2.

    Shifts by hand what model.token_logprobs shifts elsewhere: the hidden state at position t-1 predicts token t. That
    gives log-probs of the targets alone; label smoothing and entropy need those of the whole vocabulary.
    """
    rows = [cut(source, answer, i, j) for source, _, answer, i, j in batch]
    rows += [cut(other, answer, i, j) for _, other, answer, i, j in batch]  # both instructions in one pass: 2B rows
    tokens, mask = pad_responses(rows, device)  # (2B, T)
    chosen = mask.bool()
    before = model(tokens)[:, :-1][chosen[:, 1:]]  # (2N, C): hidden states one position before the targets
    logits, targets = model.unembed(before).float(), tokens[chosen]  # (2N, V), (2N,): the same N targets twice
    logprobs = torch.zeros_like(mask).masked_scatter(chosen, -F.cross_entropy(logits, targets, reduction="none"))
    a, b = (logprobs.sum(1) / mask.sum(1)).chunk(2)  # (B,) means over each slice, under p* and under p̄
    logits, targets = logits[: len(logits) // 2], targets[: len(targets) // 2]  # under p*
    nll = smoothed_nll(logits, targets, cfg.label_smoothing)
    return nll, contrast(a, b, cfg.contrast_smoothing), mean_entropy(logits), (a > b).float().mean()


# ---------------------------------------------------------------------------------------------------- the rounds


def learn(policy, optimizer, rows, run, rng, number):
    """Step 3: `epochs` passes over the answers of a round, each time cut anew. -> means of the loss and of its terms

    rng: of the slices; number: of the round.
    """
    cfg, sums = run.cfg, torch.zeros(5)
    corpus = Corpus(cfg.data, "train") if cfg.pretrain_mix else None
    window, n_windows = min(128, policy.config.block_size - 1), max(1, round(cfg.pretrain_mix * cfg.batch_size))
    windows_rng, order = run.generator("pretraining", number), run.generator("order", number)
    lengths = [len(source) + len(answer) for source, _, answer in rows]
    batches = minibatches(lengths, cfg.epochs, cfg.batch_size, order)
    for step, indices in enumerate(batches):
        batch = []
        for source, other, answer in (rows[i] for i in indices):
            i, j = random_slice(len(answer), rng) if cfg.slices else (0, len(answer))
            batch.append((source, other, answer, i, j))
        nll, apart, entropy, told_apart = loss_terms(policy, batch, cfg, run.device)
        loss = nll + cfg.contrast * apart - cfg.entropy_coef * entropy
        ((1 - cfg.pretrain_mix) * loss).backward()
        if cfg.pretrain_mix:
            windows = corpus.windows(n_windows, window + 1, windows_rng).to(run.device)
            (cfg.pretrain_mix * lm_loss(policy, windows).mean()).backward()
        grad_norm = optimizer_step(optimizer, policy, cfg.learning_rate, cfg.max_grad_norm)
        require_finite(grad_norm, "the gradient", f"{step + 1} of round {number}")
        sums += torch.stack([loss, nll, apart, entropy, told_apart]).detach().cpu()
    means = (sums / len(batches)).tolist()
    return dict(zip(("loss", "nll", "contrast", "entropy", "told_apart"), means))


def questions_of(run, policy, split):
    """Prompts that leave room for a response behind either instruction."""
    room, questions = policy.config.block_size - run.cfg.max_new_tokens, []
    for question in run.prompts(policy, split):
        lengths = [len(run.tokenizer.encode_ordinary(p + question)) for p in (run.cfg.good, run.cfg.bad)]
        if max(lengths) <= room:
            questions.append(question)
    require(questions, "no prompt is short enough for --good and --bad in front of it; shorten them")
    return questions


def main(cfg):
    require(cfg.good != cfg.bad, f"--good and --bad are both {cfg.good!r}: they must differ")
    require(cfg.samples >= 2, f"--samples {cfg.samples}: must be at least 2, for a ranking")
    for name in ("label_smoothing", "contrast_smoothing"):
        require(getattr(cfg, name) < 0.5, f"--{name} {getattr(cfg, name)}: must be less than 0.5")
    require(cfg.pretrain_mix < 1, f"--pretrain_mix {cfg.pretrain_mix}: must be less than 1")
    run = Run(cfg, cfg.name)
    labelers, policy = load_labelers(cfg.data, "training"), run.load_policy("ppo_init")
    questions, held_out = questions_of(run, policy, "train"), questions_of(run, policy, "valid")
    optimizer, rng = adamw(policy, cfg.learning_rate), random.Random(cfg.seed)
    log = run.log(cfg.rounds, "loss nll contrast entropy told_apart p_ok rankings answers")
    for number in range(0 if cfg.ranked else 1, cfg.rounds + 1):
        if number == 0:
            examples, counts = already_ranked(run)
        else:
            drawn = rng.sample(questions, min(cfg.prompts, len(questions)))
            examples, counts = hindsight(run, policy, drawn, labelers, rng, number)
        rows = encode_examples(examples, cfg, run.tokenizer, policy.config.block_size)
        metrics = learn(policy, optimizer, rows, run, rng, number)
        log(number, **metrics, **counts, answers=len(rows))
    run.finish(policy, prefix=cfg.good)
    sampler, rng = sampling_copy(policy, cfg), run.generator("shown")
    for question, instruction in product(held_out[:2], (cfg.good, cfg.bad)):
        prompt = instruction + question
        ((text, _),) = respond(sampler, run.tokenizer, [prompt], cfg.max_new_tokens, generator=rng)
        print(f"  {prompt.strip()!r} -> {text!r}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
