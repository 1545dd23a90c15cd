"""What to look at while a run goes: metrics of episodes, and what a model writes.

Every metric is explained in docs/reading_the_log.md.
"""

import json
from collections import defaultdict

import torch

from core.batches import generator
from core.device import sampling_copy
from core.sampling import generate
from core.text import decode_answer, respond
from data.folder import read_prompts
from model import masked_mean, token_logprobs

# ---------------------------------------------------------------------------------------------------- texts


def print_demonstration(rows, tokenizer):
    """Show the first demonstration; what stands after | carries the loss."""
    ids, prompt_length = rows[0]
    prompt, response = tokenizer.decode(ids[:prompt_length]), tokenizer.decode(ids[prompt_length:])
    print(
        "the first demonstration, with its loss on what stands after |:\n  "
        + f"{prompt}|{response}".replace("\n", "\n  ")
    )


def print_answers(model, tokenizer, cfg, count=3):
    """Show the model's answers to a few validation prompts."""
    room = model.config.block_size - cfg.max_new_tokens
    prompts = [record["prompt"] for record in read_prompts(cfg.data, "valid")]
    prompts = [p for p in prompts if len(tokenizer.encode_ordinary(p)) <= room][:count]
    sampler, rng = sampling_copy(model, cfg), generator(cfg.seed, "sample")
    answers = respond(sampler, tokenizer, prompts, cfg.max_new_tokens, generator=rng)
    for prompt, (text, _) in zip(prompts, answers):
        print(f"  {prompt.strip()!r} -> {text!r}")


# ---------------------------------------------------------------------------------------------------- episodes

PPO_COLUMNS = (
    "score kl policy_loss value_loss first_ratio clip_fraction entropy explained_variance "
    "length without_eot ptx_loss learning_rate seconds_rollout seconds_update"
)


def episode_metrics(episodes):
    """What to watch of the collected episodes; each metric is explained in docs/reading_the_log.md. -> {name: float}"""
    mask, logprobs = episodes["mask"], episodes["logprobs"]
    metrics = {
        "score": episodes["scores"].mean(),
        "kl": ((logprobs - episodes["ref_logprobs"]) * mask).sum(1).mean(),  # nats per response
        "entropy": -masked_mean(logprobs, mask),  # nats per token, estimated from the sampled tokens
        "explained_variance": explained_variance(episodes["values"], episodes["returns"], mask),
        "length": mask.sum(1).mean(),
        "without_eot": 1 - episodes["ended"].float().mean(),
    }
    metrics = {name: value.item() for name, value in metrics.items()}
    return metrics | {"distinct_2": distinct_2(episodes["tokens"], mask)}


def mean_metrics(metrics):
    """Means over minibatches, {} if there was none. [{name: float}] -> {name: float}"""
    names = metrics[0] if metrics else []
    return {name: sum(m[name] for m in metrics) / len(metrics) for name in names}


def explained_variance(values, returns, mask):
    """1 - Var(G - V) / Var(G): 1 is perfect, 0 no better than a constant, negative worse. (B, T) each -> scalar."""

    def variance(x):
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


def distinct_2(tokens, mask):
    """Share of different pairs of neighbouring response tokens among all such pairs of the batch."""
    both = (mask[:, 1:] * mask[:, :-1]).bool()
    pairs = torch.stack([tokens[:, :-1][both], tokens[:, 1:][both]], dim=1)
    return len(pairs.unique(dim=0)) / max(len(pairs), 1)


@torch.no_grad()
def keep_samples(samples, iteration, policy, reference, reward_model, prompts, tokenizer, cfg):
    """Answer validation prompts, keep the answers with score and KL (evaluate.py judges them), print two."""
    ids, rng = [tokenizer.encode_ordinary(prompt) for prompt in prompts], generator(cfg.seed, "samples")
    sampler = sampling_copy(policy, cfg)
    tokens, lengths, mask = generate(sampler, ids, cfg.max_new_tokens, tokenizer.eot_token, generator=rng)
    scores = reward_model.score(tokens, lengths).tolist()
    logratio = token_logprobs(policy, tokens, mask) - token_logprobs(reference, tokens, mask)
    kl = logratio.sum(1).tolist()
    shown = (iteration % len(prompts), (iteration + 1) % len(prompts))
    for i, prompt in enumerate(prompts):
        text, _ = decode_answer(tokenizer, tokens[i, len(ids[i]) : lengths[i]].tolist())
        samples.write(iteration=iteration, prompt=prompt, completion=text, score=scores[i], kl=kl[i])
        if i in shown:
            print(f"       {prompt.strip()!r} -> {text!r}  score {scores[i]:+.2f}")


# ---------------------------------------------------------------------------------------------------- logs, to be drawn

MAX_POINTS = 240  # of a curve
SAMPLE_PROMPTS = 4  # whose answers are shown along the training


def read_log(path, plain):
    """A log as curves {"curves": {metric: [[step], [value]]}}, or samples {"samples": [{"prompt", "answers"}]}."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the last line, while it is being written
            break
    if path.name.endswith(".samples.jsonl"):
        by_prompt = defaultdict(list)
        for record in records:
            by_prompt[record["prompt"]].append({key: record[key] for key in ("iteration", "completion", "score", "kl")})
        shown = list(by_prompt.items())[:SAMPLE_PROMPTS]
        return {"samples": [{"prompt": plain(prompt), "answers": answers} for prompt, answers in shown]}
    curves = defaultdict(lambda: ([], []))
    for record in records:
        for metric, value in record.items():
            if metric != "step" and isinstance(value, (int, float)) and "step" in record:
                curves[metric][0].append(record["step"])
                curves[metric][1].append(value)
    return {"curves": {metric: [thinned(steps), thinned(values)] for metric, (steps, values) in curves.items()}}


def thinned(values):
    """At most MAX_POINTS of them, evenly spread, the first and the last among them."""
    if len(values) <= MAX_POINTS:
        return values
    step = (len(values) - 1) / (MAX_POINTS - 1)
    return [values[round(i * step)] for i in range(MAX_POINTS)]
