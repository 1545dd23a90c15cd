"""A model as labeler: what it prefers, by its own log-probs (Lee et al. 2023 §2, Bai et al. 2022 §4)."""

from itertools import combinations

import torch
import torch.nn.functional as F

from core.config import require
from core.text import by_length
from data.village.feedback import BETTER, up_to_answers, up_to_choice, up_to_grade, with_answer
from model import pad

GRADES = list("123456789")


@torch.no_grad()
def choice_probabilities(labeler, tokenizer, contexts, choices, batch_size=128):
    """P(choice | context) among the choices, by the labeler's log-probs. contexts: [str] -> (contexts, choices)

    Every choice is one token, so one forward pass per context gives the log-probs of all: at its last position.
    """
    choice_ids = [tokenizer.encode_ordinary(choice) for choice in choices]
    require(all(len(ids) == 1 for ids in choice_ids), f"each of {choices} must be one token of this tokenizer")
    choice_ids = [ids[0] for ids in choice_ids]
    rows, device = [tokenizer.encode_ordinary(text) for text in contexts], labeler.transformer.wte.weight.device
    longest, room = max(map(len, rows)), labeler.config.block_size
    require(
        longest <= room, f"a page of {longest} tokens exceeds the labeler's context of {room}; fewer --max_new_tokens?"
    )
    probabilities = torch.zeros(len(rows), len(choices))
    for batch in by_length(rows, batch_size):
        tokens, lengths = pad([rows[i] for i in batch], device)
        last_hidden = labeler(tokens)[torch.arange(len(batch), device=device), lengths - 1]  # (B, C)
        probabilities[batch] = labeler.unembed(last_hidden).float()[:, choice_ids].softmax(-1).cpu()
    return probabilities


def preferences(labeler, tokenizer, triples, questions=BETTER[:1], thoughts=True):
    """p that the first answer is better, both orders averaged, and P(1) in either order. -> (N,), (N, 2)

    triples: [(prompt, first, second)]; questions: one for all, or one for each. thoughts: let the labeler write a
    grade, its most likely one, behind each answer that it has read (chain of thought).
    """
    if len(questions) == 1:
        questions = list(questions) * len(triples)
    pages = [up_to_answers(question, prompt) for (prompt, _, _), question in zip(triples, questions)] * 2
    orders = [(first, second) for _, first, second in triples] + [(second, first) for _, first, second in triples]
    for place in (0, 1):
        pages = [with_answer(page, place + 1, order[place]) for page, order in zip(pages, orders)]
        if thoughts:
            best = choice_probabilities(labeler, tokenizer, [up_to_grade(page) for page in pages], GRADES).argmax(1)
            pages = [up_to_grade(page) + GRADES[i] for page, i in zip(pages, best)]
    says_1 = choice_probabilities(labeler, tokenizer, [up_to_choice(page) for page in pages], ["1", "2"])[:, 0]  # (2N,)
    as_given, swapped = says_1.chunk(2)
    return (as_given + 1 - swapped) / 2, torch.stack([as_given, swapped], dim=1)


def two_answers(run, model, prompts, rng):
    """Two different answers to each prompt at temperature 1. -> [(prompt, (text, ended), (text, ended))]"""
    answers = run.answers(model, [prompt for prompt in prompts for _ in range(2)], rng)
    pairs = []
    for prompt, first, second in zip(prompts, answers[::2], answers[1::2]):
        if first[0] != second[0] and first[0].strip() and second[0].strip():
            pairs.append((prompt, first, second))
    require(pairs, "no prompt got two different answers; try more prompts")
    return pairs


def grades(labeler, tokenizer, prompts, answers):
    """Expected grade of each answer, rescaled from 1…9 to [-1, 1]. -> (N,)"""
    pages = [
        up_to_grade(with_answer(up_to_answers(BETTER[0], prompt), 1, text)) for prompt, text in zip(prompts, answers)
    ]
    p = choice_probabilities(labeler, tokenizer, pages, GRADES)  # (N, 9)
    return (p @ torch.arange(1.0, 10.0) - 5) / 4


def report_on_labeler(run, labeler, records, thoughts):
    """How good a labeler is it? Agreement with people, and whether it sticks to a place when the answers are swapped.

    records: rankings by people; three pairs of each are asked. -> {"labeler_agreement", "position_bias"}: shares
    """
    triples, first_won = [], []
    for record in records:
        ranks, completions = record["ranks"], record["completions"]
        for i, j in [pair for pair in combinations(range(len(ranks)), 2) if ranks[pair[0]] != ranks[pair[1]]][:3]:
            triples.append((record["prompt"], completions[i], completions[j]))
            first_won.append(ranks[i] < ranks[j])
    require(triples, "no ranking of the validation split by a training labeler tells answers apart")
    p, says_1 = preferences(labeler, run.tokenizer, triples, thoughts=thoughts)
    agreed = 0.0
    for prefers_first, won in zip(p.tolist(), first_won):
        undecided = abs(prefers_first - 0.5) < 1e-3
        agreed += 0.5 if undecided else (prefers_first > 0.5) == won
    agreement = agreed / len(triples)
    chooses_1 = says_1 > 0.5  # (N, 2)
    same_place = (chooses_1[:, 0] == chooses_1[:, 1]).float().mean().item()
    print(f"the labeler agrees with people on {100 * agreement:.1f} % of {len(triples)} pairs; keeps to the same place")
    print(f"after a swap on {100 * same_place:.1f} % (says 1 on {100 * chooses_1.float().mean().item():.0f} %)")
    return {"labeler_agreement": agreement, "position_bias": same_place}


def soft_label_loss(first, second, p):
    """-p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a), mean. Scores of both answers, p that a is better: (N,)."""
    return -(p * F.logsigmoid(first - second) + (1 - p) * F.logsigmoid(second - first)).mean()


def loss_on_pairs(model, pairs, device):
    """soft_label_loss of [(ids of prompt + first, ids of prompt + second, p)], one forward pass for both answers."""
    first, second, p = zip(*pairs)
    scores = model.score(*pad(first + second, device))  # (2N,)
    return soft_label_loss(*scores.chunk(2), torch.tensor(p, device=device))
