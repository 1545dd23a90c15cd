"""A model as labeler: what it prefers, by its own log-probs (Lee et al. 2023 §2, Bai et al. 2022 §4)."""

import torch
import torch.nn.functional as F
from data.feedback import BETTER, asking, grading, shown, verdict

from model import pad
from plumbing import require

GRADES = list("123456789")


@torch.no_grad()
def choice_probabilities(labeler, encoding, contexts, choices, batch_size=128):
    """P(choice | context) among the choices, by the labeler's log-probs. -> (contexts, choices)

    Every choice is one token, so one forward pass per context gives the log-probs of all: at its last position.
    """
    ids = [encoding.encode_ordinary(choice) for choice in choices]
    require(all(len(i) == 1 for i in ids), f"each of {choices} must be one token of this tokenizer")
    ids = [i for (i,) in ids]
    rows, device = [encoding.encode_ordinary(c) for c in contexts], labeler.transformer.wte.weight.device
    order, result = sorted(range(len(rows)), key=lambda i: len(rows[i])), torch.zeros(len(rows), len(choices))
    for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        tokens, lengths = pad([rows[i] for i in batch], device)
        last = labeler(tokens)[torch.arange(len(batch), device=device), lengths - 1]
        result[batch] = labeler.unembed(last).float()[:, ids].softmax(-1).cpu()
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
    p_says_1 = choice_probabilities(labeler, encoding, [verdict(page) for page in pages], ["1", "2"])[:, 0].view(2, -1)
    return (p_says_1[0] + 1 - p_says_1[1]) / 2, p_says_1.T  # it was (order, N)


def two_answers(run, model, prompts):
    """Two different answers to each prompt at temperature 1. -> [(prompt, (text, ended), (text, ended))]"""
    answers = run.answers(model, [x for x in prompts for _ in range(2)])
    pairs = zip(prompts, answers[::2], answers[1::2])
    pairs = [(x, a, b) for x, a, b in pairs if a[0] != b[0] and a[0].strip() and b[0].strip()]
    require(pairs, "no prompt got two different answers; try more prompts")
    return pairs


def grades(labeler, encoding, prompts, answers):
    """Expected grade of each answer, rescaled from 1…9 to [-1, 1]. -> (N,)"""
    asked = [grading(shown(asking(BETTER[0], x), 1, text)) for x, text in zip(prompts, answers)]
    p = choice_probabilities(labeler, encoding, asked, GRADES)
    return (p @ torch.arange(1.0, 10.0) - 5) / 4


def report_on_labeler(run, labeler, records, thoughts):
    """How good a labeler is it? Agreement with people, and whether it sticks to a place when the answers are swapped."""
    triples, first_won = [], []
    for r in (r for r in records if r.get("group", "training") == "training"):
        K = range(len(r["ranks"]))
        for i, j in [(i, j) for i in K for j in K if i < j and r["ranks"][i] != r["ranks"][j]][:3]:
            triples.append((r["prompt"], r["completions"][i], r["completions"][j]))
            first_won.append(r["ranks"][i] < r["ranks"][j])
    p, p_says_1 = preferences(labeler, run.encoding, triples, thoughts=thoughts)
    agree = sum(0.5 if abs(q - 0.5) < 1e-3 else (q > 0.5) == w for q, w in zip(p.tolist(), first_won)) / len(first_won)
    same_place = ((p_says_1 > 0.5).sum(1) != 1).float().mean().item()  # 1 in both orders, or 2 in both
    print(
        f"the labeler agrees with people on {100 * agree:.1f} % of {len(triples)} pairs; keeps to the same place after a "
        f"swap on {100 * same_place:.1f} % (says 1 on {100 * (p_says_1 > 0.5).float().mean().item():.0f} %)"
    )
    return {"labeler_agreement": agree, "position_bias": same_place}


def soft_label_loss(first, second, p):
    """-p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a), mean. All (N,) -> scalar."""
    return (p * F.softplus(second - first) + (1 - p) * F.softplus(first - second)).mean()


def loss_on_pairs(model, pairs, device):
    """soft_label_loss of [(ids of prompt + first, ids of prompt + second, p)], one forward pass for both answers."""
    first, second, p = zip(*pairs)
    return soft_label_loss(*model.score(*pad(first + second, device)).chunk(2), torch.tensor(p, device=device))
