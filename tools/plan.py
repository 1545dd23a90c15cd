"""How many GPUs does PPO need? The memory of ppo.py, added up on paper.

    python tools/plan.py                                           # the least number of GPUs of 80 GB, for every size
    python tools/plan.py --policy gpt3-175b --critic gpt3-6.7b     # the paper's largest, every term of the sum
    python tools/plan.py --policy gpt2 --gpus 1 --gpu_gb 24 --no-recompute --micro_batch_size 8

Four models are in memory all the time: the policy and the value model with what their optimizers need, the reference
and the reward model. All are spread over the GPUs (FSDP, core/distributed.py: shard), and so is the copy of the policy
that samples (--tensor_parallel, core/distributed.py: split_heads). To this comes what a phase of an iteration needs for
itself: a rollout its cache of keys and values, an update the activations that the backward pass asks for. What has to
fit is the four models and the largest of the phases.

This is arithmetic, not a measurement. It counts tensors; a GPU also holds a context of about 0.5 GB and gaps between
tensors, hence the tenth that is left free. Letters: C channels, V vocabulary.
"""

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import model as network
from core.config import PositiveInt, check, command_line, require
from model import GPT, SIZES


@dataclass
class Config:
    policy: Literal[("", *SIZES)] = ""  # size of policy and reference; default: all sizes, one line each
    critic: Literal[("", *SIZES)] = ""  # size of reward and value model; default: the policy's, at most 6.7B
    gpus: int = 0  # how many; 0 = the fewest that do, among those that divide batch_size
    gpu_gb: PositiveInt = 80  # memory of one
    tensor_parallel: int = 0  # GPUs that have one copy of the policy together while sampling; 0 = as many as possible
    batch_size: PositiveInt = 512  # episodes per iteration                 paper: 512
    prompt_tokens: PositiveInt = 128  # per prompt                          paper: up to about 1000
    new_tokens: PositiveInt = 128  # per response                           paper: about 1000
    minibatch_size: PositiveInt = 64  # episodes per update                 paper: 64
    ptx_per_episode: int = 8  # pretraining examples per episode            paper: 8
    ptx_window: PositiveInt = 128  # tokens of a pretraining example        paper: silent
    micro_batch_size: int = 1  # episodes per forward pass on each GPU; 0 = its whole share of a minibatch
    recompute: bool = True  # keep no activations inside a block
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of matrix products and of the copy that samples


# ---------------------------------------------------------------------------------------------------- counting


class Term(NamedTuple):
    """One line of the plan."""

    when: str  # "always", or the phase of an iteration
    what: str
    arithmetic: str
    bytes: float


@cache
def parameters(shape):
    """How many a GPT of this shape has."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(shape).parameters())


def term(when, what, *factors, spread=1, over="GPUs"):
    """The product of (number, unit)s, spread evenly over so many GPUs."""
    arithmetic = " x ".join(f"{short(number)} {unit}" for number, unit in factors)
    if spread > 1:
        arithmetic += f" / {spread} {over}"
    return Term(when, what, arithmetic, math.prod(number for number, _ in factors) / spread)


def short(number):
    """174.6 billion, 38.6 million, 2,048."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.1f} {word}"
    return f"{number:,}"


# ---------------------------------------------------------------------------------------------------- the plan

PHASES = ("rollout", "scoring", "policy update", "value update")


def memory_plan(policy, critic, cfg, gpus=1, sharers=1, itemsize=2):
    """Bytes on each GPU. policy, critic: GPTConfigs; cfg: sizes as in Config; sharers: GPUs per copy of the policy for
    sampling; itemsize: bytes of a number in matrix products, cache and copy. -> [Term]"""
    p, v, L, C, V = parameters(policy), parameters(critic), policy.n_layer, policy.n_embd, policy.vocab_size
    T, own = cfg.prompt_tokens + cfg.new_tokens, -(-cfg.batch_size // gpus)  # episodes of a GPU
    weights_of_p, weights_of_v = (p, "weights"), (v, "weights")
    plan = [
        term("always", "policy: weights 4, gradient 4, Adam 8, average 4", (20, "bytes"), weights_of_p, spread=gpus),
        term("always", "value model: weights 4, gradient 4, Adam 8", (16, "bytes"), weights_of_v, spread=gpus),
        term("always", "reference: weights", (4, "bytes"), weights_of_p, spread=gpus),
        term("always", "reward model: weights", (4, "bytes"), weights_of_v, spread=gpus),
    ]
    if itemsize == 2 or gpus > 1:  # otherwise the policy itself samples
        blocks, size = (12 * C**2 * L, "weights of blocks"), (itemsize, "bytes")
        plan.append(term("always", "the copy that samples", size, blocks, spread=sharers, over="sharers"))
        plan.append(term("always", "  its embeddings, on every GPU", size, (p - 12 * C**2 * L, "weights")))

    cache = (2, "(keys, values)"), (itemsize, "bytes"), (L, "layers"), (C, "channels"), (T, "tokens")
    plan.append(term("rollout", "keys and values", *cache, (own, "episodes")))
    probabilities = (12 + itemsize, "bytes (logits, as float32, softmax, sum)"), (V, "tokens of the vocabulary")
    plan.append(term("rollout", "choosing a token", *probabilities, (own * sharers, "episodes")))
    plan += one_block("rollout", policy, max(16, -(-own * sharers // 4)) * cfg.prompt_tokens, itemsize)  # prefill

    quarter = -(-own // 4)  # ppo.py: score_responses
    plan += one_block("scoring", policy, quarter * T, itemsize)
    plan += logits("scoring", policy, quarter * cfg.new_tokens, 8 + itemsize)
    rows = -(-cfg.minibatch_size // gpus)  # a GPU's share of a minibatch, or a part of it
    rows = min(rows, cfg.micro_batch_size or rows)
    n_ptx = rows * cfg.ptx_per_episode * cfg.ptx_window
    tokens, positions = (n_ptx, n_ptx) if n_ptx > rows * T else (rows * T, rows * cfg.new_tokens)
    plan += kept("policy update", policy, tokens, cfg.recompute, itemsize, gpus)
    plan += logits("policy update", policy, positions, 12)
    plan += kept("value update", critic, rows * T, cfg.recompute, itemsize, gpus)
    if gpus > 1:
        outside = {shape: (parameters(shape) - 12 * shape.n_embd**2 * shape.n_layer) for shape in (policy, critic)}
        frozen = (outside[policy] + outside[critic], "weights outside of blocks' matrices")
        plan.append(term("always", "reference, reward model: embeddings, whole", (4, "bytes"), frozen))
        plan.append(term("scoring", "policy, value model: embeddings, whole", (4, "bytes"), frozen))
        for when, shape, gradients in zip(PHASES[1:], (policy, policy, critic), (False, True, True)):
            # A block's attention and its MLP, the larger of them, come whole one after the other. FSDP has one in use,
            # one that arrives and one that is unpacked; a gradient, and two as float32 on their way to be summed.
            mlp = (8 * shape.n_embd**2, "weights of an MLP")
            plan.append(term(when, "weights of blocks on their way", (3 * itemsize, "bytes"), mlp))
            if gradients:
                plan.append(term(when, "gradients of blocks on their way", (itemsize + 8, "bytes"), mlp))
                plan.append(
                    term(when, "embeddings, whole, and their gradient", (8, "bytes"), (outside[shape], "weights"))
                )
        largest = (max(4 * C**2, V * C), "weights")
        plan.append(term("rollout", "one weight on its way into the copy", (4, "bytes"), largest))
    return plan


def one_block(when, shape, tokens, itemsize):
    """While a block is computed: its input, and all that the backward pass could ask for."""
    numbers = (8 + 14 * itemsize, "bytes"), (shape.n_embd, "channels"), (tokens, "tokens")
    return [term(when, "inside one block", *numbers)]


def kept(when, shape, tokens, recompute, itemsize, gpus=1):
    """Until the backward pass: activations, and weights rounded to bfloat16.

    Of a block: the inputs of its two layer norms in float32 (2 x 4 bytes), and of its matrix products 14 numbers per
    channel: both normalised inputs 2, queries, keys, values 3, the attention's result 1, before and behind the GELU
    4 + 4. With recomputation a block keeps its input alone, 4 bytes, and one block at a time has the rest. Behind the
    last block: input and result of the last layer norm.
    """
    of_a_token = (shape.n_embd, "channels"), (tokens, "tokens")
    per_block = (4 if recompute else 8 + 14 * itemsize, "bytes")
    terms = [term(when, "activations kept", per_block, (shape.n_layer, "layers"), *of_a_token)]
    terms.append(term(when, "  behind the last block", (8, "bytes"), *of_a_token))
    if recompute:
        terms += one_block(when, shape, tokens, itemsize)
    if itemsize == 2 and gpus == 1:
        blocks = 1 if recompute else shape.n_layer
        terms.append(
            term(when, "weights in bfloat16", (2, "bytes"), (12 * shape.n_embd**2, "weights"), (blocks, "blocks"))
        )
    return terms


def logits(when, shape, positions, bytes_each):
    """At most model.py's MAX_LOGITS are held at a time."""
    n = min(positions * shape.vocab_size, network.MAX_LOGITS)
    return [term(when, "logits", (bytes_each, "bytes"), (n, "logits"))]


def gigabytes(plan, *whens):
    return sum(t.bytes for t in plan if t.when in whens) / 1e9


def peak(plan):
    """GB on each GPU when it is fullest: the models, and the largest of the phases."""
    return gigabytes(plan, "always") + max(gigabytes(plan, phase) for phase in PHASES)


# ---------------------------------------------------------------------------------------------------- printing


def sharers_of(shape, gpus, cfg):
    """Into how many parts the copy that samples is cut: as many as divide both the GPUs and the heads."""
    return cfg.tensor_parallel or math.gcd(shape.n_head, gpus)


def planned(policy, critic, cfg, gpus):
    itemsize = 2 if cfg.dtype == "bfloat16" else 4
    return memory_plan(policy, critic, cfg, gpus, sharers_of(policy, gpus, cfg), itemsize)


def least_gpus(policy, critic, cfg):
    """The smallest number of GPUs on which it fits, and True; the largest that there may be, and False, if on none.

    ppo.py gives every GPU equally many episodes.
    """
    for gpus in (n for n in range(1, cfg.batch_size + 1) if cfg.batch_size % n == 0 and n >= cfg.tensor_parallel):
        if fits(planned(policy, critic, cfg, gpus), cfg):
            return gpus, True
    return cfg.batch_size, False


def fits(plan, cfg):
    return peak(plan) < 0.9 * cfg.gpu_gb


def critic_of(cfg, policy):
    """The size of reward and value model: the paper's are of 6B for all policies, here gpt3-6.7b at most."""
    return cfg.critic or (policy if parameters(SIZES[policy]) < parameters(SIZES["gpt3-6.7b"]) else "gpt3-6.7b")


def main(cfg):
    check(cfg)
    for name in ("gpus", "tensor_parallel"):
        require(not getattr(cfg, name) or cfg.policy, f"--{name} is for one size: pass --policy too")
    sharers, gpus = cfg.tensor_parallel or 1, cfg.gpus or cfg.tensor_parallel or 1
    heads = SIZES[cfg.policy].n_head if cfg.policy else sharers
    require(cfg.batch_size % gpus == 0, f"--batch_size {cfg.batch_size}: must be a multiple of {gpus} GPUs")
    divides = heads % sharers == 0 and gpus % sharers == 0
    require(divides, f"--tensor_parallel {sharers}: must divide the {gpus} GPUs and the {heads} heads")
    how = "recomputed" if cfg.recompute else "not recomputed"
    print(f"{cfg.batch_size} episodes of {cfg.prompt_tokens} + {cfg.new_tokens} tokens, minibatches of ", end="")
    print(
        f"{cfg.minibatch_size}, {cfg.micro_batch_size or 'all'} at a time, activations {how}; GPUs of {cfg.gpu_gb} GB\n"
    )
    if cfg.policy:
        print_terms(cfg)
    else:
        print_sizes(cfg)


def print_sizes(cfg):
    """One line per size: GPUs, and GB on each of them."""
    columns = ("policy", "critic", "GPUs", "sharers", "models", *PHASES, "most")
    print("{:13}{:11}{:>6}{:>9}{:>9}{:>9}{:>9}{:>15}{:>14}{:>7}".format(*columns))
    sizes = [(name, critic_of(cfg, name)) for name in SIZES if name != "village"]
    sizes.insert(-2, ("gpt3-1.3b", "gpt3-6.7b"))  # the paper's 1.3B policy with its 6B reward model
    for policy, critic in sizes:
        gpus, does = least_gpus(SIZES[policy], SIZES[critic], cfg)
        plan = planned(SIZES[policy], SIZES[critic], cfg, gpus)
        row = f"{policy:13}{critic:11}{gpus:>6}{sharers_of(SIZES[policy], gpus, cfg):>9}"
        cells = [gigabytes(plan, when) for when in ("always", *PHASES)]
        print(
            row
            + "{:9.1f}{:9.1f}{:9.1f}{:15.1f}{:14.1f}{:7.1f}".format(*cells, peak(plan))
            + (not does) * "  does not fit"
        )


def print_terms(cfg):
    """Every term of one size."""
    policy, critic = SIZES[cfg.policy], SIZES[critic_of(cfg, cfg.policy)]
    gpus = cfg.gpus or least_gpus(policy, critic, cfg)[0]
    plan, sharers = planned(policy, critic, cfg, gpus), sharers_of(policy, gpus, cfg)
    print(f"policy {cfg.policy}, reward and value model {critic_of(cfg, cfg.policy)}; GPUs: {gpus}, ", end="")
    print(f"sharers of a copy for sampling: {sharers}; GB on each GPU")
    for when in ("always", *PHASES):
        print(f"\n{when:50}{gigabytes(plan, when):9.2f}")
        for t in plan:
            if t.when == when:
                print(f"  {t.what:48}{t.bytes / 1e9:9.2f}  = {t.arithmetic}")
    verdict = "fits" if fits(plan, cfg) else "does not fit"
    print(f"\nmodels and the largest phase: {peak(plan):,.1f} GB of {cfg.gpu_gb}: {verdict}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
