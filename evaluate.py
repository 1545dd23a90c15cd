"""placeholder"""
import math
from collections import Counter, defaultdict

import torch

from model import pad, response_mask, respond, token_logprobs


# ---------------------------------------------------------------------------------------------------- alignment tax


@torch.no_grad()
def mean_logprobs(model, encoding, pairs, batch_size=128):
    """Average per-token log-prob of each continuation given its context: [(context, continuation)] -> [float] (App. D)."""
    device = model.transformer.wte.weight.device
    rows = [(encoding.encode_ordinary(c), encoding.encode_ordinary(a)) for c, a in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    result = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[start : start + batch_size]]
        tokens, lengths = pad([c + a for c, a in batch], device)
        mask = response_mask(torch.tensor([len(c) for c, _ in batch], device=device), lengths, tokens.size(1))
        means = (token_logprobs(model, tokens, mask).sum(1) / mask.sum(1)).tolist()
        for i, value in zip(order[start : start + batch_size], means):
            result[i] = value
    return result


def task_scores(model, encoding, items, shots=0, max_new_tokens=24):
    """Accuracy per public task, {task: share right}. shots: solved items of the same task put in front (App. D).

    Items with choices: the choice of highest mean token log-prob. Others: greedy text up to the first newline, right if
    it is the answer.
    """
    examples = defaultdict(list)
    for item in items:
        if item["split"] == "shots":
            reply = item["choices"][item["answer"]] if "choices" in item else item["answer"]
            examples[item["task"]].append(item["context"] + reply + "\n")
    test = [item for item in items if item["split"] == "test"]
    prefix = {task: "".join(found[:shots]) for task, found in examples.items()}
    chosen = [(i, c) for i in test if "choices" in i for c in range(len(i["choices"]))]
    values = mean_logprobs(model, encoding, [(prefix.get(i["task"], "") + i["context"], i["choices"][c]) for i, c in chosen])
    options = defaultdict(list)
    for (item, _), value in zip(chosen, values):
        options[id(item)].append(value)
    free = [i for i in test if "choices" not in i]
    texts = respond(model, encoding, [prefix.get(i["task"], "") + i["context"] for i in free], max_new_tokens, temperature=0, stop="\n") if free else []
    right = defaultdict(list)
    for item, (text, _) in zip(free, texts):
        right[item["task"]].append(text.strip() == item["answer"].strip())
    for item in test:
        if "choices" in item:
            values = options[id(item)]
            right[item["task"]].append(values.index(max(values)) == item["answer"])
    return {task: sum(r) / len(r) for task, r in right.items()}
