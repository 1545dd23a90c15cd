"""From texts to tokens and back: answering prompts, and what models think of answers.

Prompt and answer are encoded apart, as they are when the answer is sampled, and joined as they stand.
"""

import math

import torch

from core.config import require
from core.sampling import generate
from model import pad, response_mask, token_logprobs


def encode_answer(tokenizer, prompt, text, ended=True):
    """-> ids of a prompt, ids of an answer to it; the latter with end-of-text if the answer has ended."""
    answer = tokenizer.encode_ordinary(text)
    if ended:
        answer.append(tokenizer.eot_token)
    return tokenizer.encode_ordinary(prompt), answer


def decode_answer(tokenizer, response):
    """Ids of a response -> (text, whether it has ended with end-of-text)."""
    ended = response[-1] == tokenizer.eot_token
    return tokenizer.decode(response[:-1] if ended else response), ended


def by_length(rows, batch_size):
    """Batches of indices, rows of similar length together, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def respond(model, tokenizer, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=512, stop=""):
    """Answer prompts (list of str) -> [(text, ended)], in their order.

    ended says whether end-of-text came in time. `stop` cuts an answer at its first occurrence and counts as an end: a
    few-shot prompted model starts the next example instead of ending.
    """
    ids = [tokenizer.encode_ordinary(prompt) for prompt in prompts]
    answers = [None] * len(ids)
    for batch in by_length(ids, batch_size):
        asked, eot = [ids[i] for i in batch], tokenizer.eot_token
        tokens, lengths, _ = generate(model, asked, max_new_tokens, eot, temperature, generator=generator)
        for i, row, length in zip(batch, tokens.tolist(), lengths.tolist()):
            text, ended = decode_answer(tokenizer, row[len(ids[i]) : length])
            if stop and stop in text:
                text, ended = text.split(stop)[0], True
            answers[i] = (text, ended)
    return answers


# ---------------------------------------------------------------------------------------------------- scores


@torch.no_grad()
def score_rows(reward_model, rows, batch_size=128):
    """Reward-model score of every row of ids -> [float]; nan where a row exceeds the context."""
    scores = [math.nan] * len(rows)
    fits = [i for i, row in enumerate(rows) if len(row) <= reward_model.config.block_size]
    device = reward_model.transformer.wte.weight.device
    for batch in by_length([rows[i] for i in fits], batch_size):
        batch = [fits[j] for j in batch]
        values = reward_model.score(*pad([rows[i] for i in batch], device))
        for i, value in zip(batch, values.tolist()):
            scores[i] = value
    return scores


def score_answers(reward_model, tokenizer, prompts, answers):
    """Reward-model score of each answer (text, ended) to each prompt -> [float]; nan where it exceeds the context."""
    rows = [sum(encode_answer(tokenizer, p, text, ended), []) for p, (text, ended) in zip(prompts, answers)]
    return score_rows(reward_model, rows)


def mean_score(reward_model, tokenizer, prompts, answers):
    """Mean reward-model score of answers (text, ended), those that fit the context. Refuses if none does (BadInput)."""
    scores = [s for s in score_answers(reward_model, tokenizer, prompts, answers) if not math.isnan(s)]
    require(scores, "none of the answers fits into the reward model's context; use shorter prompts or answers")
    return sum(scores) / len(scores)


def best_of_n(reward_model, tokenizer, prompts, answers, n):
    """Of every n answers to a prompt the index and score of the one that scores highest. Longer than the context: last.

    prompts: list of str; answers: n per prompt, one prompt after the other. -> [(index into answers, score)]
    """
    asked = [prompt for prompt in prompts for _ in range(n)]
    scores = [-math.inf if math.isnan(s) else s for s in score_answers(reward_model, tokenizer, asked, answers)]
    best = [max(range(first, first + n), key=scores.__getitem__) for first in range(0, len(answers), n)]
    return [(i, scores[i]) for i in best]


# ---------------------------------------------------------------------------------------------------- log-probs


def pad_responses(rows, device):
    """[(ids of prompt and response, length of the prompt)] -> tokens (B, T) and mask (B, T), 1 on the response."""
    tokens, lengths = pad([ids for ids, _ in rows], device)
    prompt_lengths = torch.tensor([n for _, n in rows], dtype=torch.long, device=device)
    return tokens, response_mask(prompt_lengths, lengths, tokens.size(1))


def response_logprobs(model, rows):
    """log π(y|x) of each row, summed over its response tokens, and how many these are. With gradient.

    rows: [(ids of prompt and response, length of the prompt)] -> (N,), (N,)
    """
    tokens, mask = pad_responses(rows, model.transformer.wte.weight.device)
    return token_logprobs(model, tokens, mask).sum(1), mask.sum(1)


@torch.no_grad()
def answer_logprobs(model, tokenizer, answers, batch_size=128):
    """log π(answer | prompt), and the number of its tokens. answers: [(prompt, text, ended)] -> [(sum, tokens)]."""
    encoded = [encode_answer(tokenizer, *answer) for answer in answers]
    rows, result = [(prompt + response, len(prompt)) for prompt, response in encoded], [None] * len(answers)
    for batch in by_length([ids for ids, _ in rows], batch_size):
        sums, counts = response_logprobs(model, [rows[i] for i in batch])
        for i, total, count in zip(batch, sums.tolist(), counts.tolist()):
            result[i] = total, count
    return result


def kl_of_answers(model, reference, tokenizer, prompts, answers, prefix=""):
    """Mean over prompts of log π/π_ref of the answers (text, ended), nats; None if there is nothing to score.

    prefix: what stood in front of every prompt when the model was asked; the reference has never been told to heed it.
    """
    own, base = [], []
    for prompt, (text, ended) in zip(prompts, answers):
        ids = sum(encode_answer(tokenizer, prefix + prompt, text, ended), [])
        if (text or ended) and len(ids) <= model.config.block_size:
            own.append((prefix + prompt, text, ended))
            base.append((prompt, text, ended))
    if not own:
        return None
    pairs = zip(answer_logprobs(model, tokenizer, own), answer_logprobs(reference, tokenizer, base))
    return sum(a - b for (a, _), (b, _) in pairs) / len(own)
