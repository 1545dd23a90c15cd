"""How fast is it, and how fast could it be? One table for one size and device.

    python benchmark.py                                            # the village's size on this machine
    python benchmark.py --size gpt2 --batch_size 32 --prompt_tokens 64 --new_tokens 64
    python benchmark.py --versus transformers                      # the same sampling there, in turn, if it is installed
    python benchmark.py --versus trl                               # the same PPO iteration in TRL's experimental PPOTrainer
    python benchmark.py --plan 8 --gpu_gb 80                       # only the memory of the paper's sizes on 8 such GPUs

Every speed stands beside what bounds it, measured here and now: reading the weights and the cache for each new token
(memory bandwidth, from copying a large tensor) or multiplying matrices (from one large product). The weights are random:
speed does not depend on them, except on how soon responses end, which is set to a mean of `ending` tokens.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import torch

import ppo
from machine import Training, for_sampling, matmul_dtype, prepare, set_up
from model import GPT, SIZES, ScalarModel, generate
from plumbing import adamw, command_line, generator, optimizer_step, require
from pretrain import lm_loss
from reward import batch_loss


@dataclass
class Config(Training):
    size: str = "village"  # shape of all models: village, gpt2, gpt2-medium, …
    batch_size: int = 128  # rows that are sampled at a time; episodes of a PPO iteration
    prompt_tokens: int = 32  # per prompt
    new_tokens: int = 40  # per response
    ending: int = 15  # mean length of responses that end by themselves
    minibatch_size: int = 16  # episodes per policy update
    ptx_per_episode: int = 8  # pretraining examples per episode; 0 = no PPO-ptx
    ptx_window: int = 16  # tokens of a pretraining example
    capture: bool = False  # on a GPU: record each kind of decoding step as a CUDA graph and replay it
    repeat: int = 3  # each timing is the best of so many
    versus: str = ""  # also time transformers or trl, if it is installed
    plan: int = 0  # print only the memory plan of the paper's sizes on so many GPUs
    gpu_gb: int = 80  # memory of one GPU, for the plan
    seed: int = 0  # of weights and tokens


def seconds(work, device, repeat):
    """Best of `repeat` runs of work(), after one to warm up."""
    return in_turn((work,), device, repeat)[0]


def in_turn(works, device, repeat):
    """The same for several pieces of work, one after the other `repeat` times: a machine may be slower for a while."""
    best = [float("inf")] * len(works)
    for i in range(repeat + 1):
        for j, work in enumerate(works):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                best[j] = min(best[j], time.perf_counter() - start)
    return best


# ---------------------------------------------------------------------------------------------------- what is possible


def matmul_rate(device, dtype):
    """Floating-point operations per second of one large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ a, device, 5)


def copy_rate(device):
    """Bytes per second of copying a large tensor: read once, written once."""
    a = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / seconds(lambda: b.copy_(a), device, 5)


def forward_flops(shape, tokens, context, unembedded):
    """Of one forward pass over `tokens` tokens that look back at `context` others on average (2 per weight and token)."""
    body = shape.n_layer * 12 * shape.n_embd**2
    return (
        2 * tokens * (body + 2 * shape.n_layer * shape.n_embd * context)
        + 2 * unembedded * shape.vocab_size * shape.n_embd
    )


def decode_floor(shape, B, P, N, width, rates):
    """Least seconds for sampling N tokens in B rows: the prompts once, then for each token all weights and the cache."""
    flops, copy = rates
    weights = shape.n_layer * 12 * shape.n_embd**2 + shape.vocab_size * shape.n_embd
    total = forward_flops(shape, B * P, P / 2, B) / flops
    for n in range(N):
        moved = width * (weights + 2 * B * shape.n_layer * shape.n_embd * (P + n))
        total += max(moved / copy, forward_flops(shape, B, P + n, B) / flops)
    return total


def ppo_floor(shape, cfg, width, rates):
    """Least seconds of one PPO iteration: rollout, scoring, update, ptx."""
    B, T = cfg.batch_size, cfg.prompt_tokens + cfg.new_tokens
    forward = forward_flops(shape, B * T, T / 2, 0) / rates[0]
    unembed = 2 * B * cfg.new_tokens * shape.vocab_size * shape.n_embd / rates[0]
    rollout = decode_floor(shape, B, cfg.prompt_tokens, cfg.new_tokens, width, rates)
    update = 3 * (2 * forward + unembed)
    n = cfg.ptx_per_episode * B * cfg.ptx_window
    return rollout, 4 * forward + 2 * unembed, update, 3 * forward_flops(shape, n, cfg.ptx_window / 2, n) / rates[0]


# ---------------------------------------------------------------------------------------------------- memory


@cache
def parameters(shape):
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(shape).parameters())


def memory_plan(policy, critic, cfg, gpus, width):
    """Bytes per GPU of ppo.py: {what: bytes}. policy, critic: GPTConfig of policy and reference, of RM and value."""
    p, v, T = parameters(policy), parameters(critic), cfg.prompt_tokens + cfg.new_tokens
    rows = -(-cfg.minibatch_size // gpus)  # a GPU's share of a minibatch, or a micro-batch of it
    rows = min(rows, cfg.micro_batch_size or rows)
    sampled = -(-cfg.batch_size // gpus)

    def activations(shape, tokens):
        """Kept for the backward pass: per layer about 17 C numbers per token of `width` bytes, or its input alone."""
        per_layer = (4 if cfg.recompute else 17 * width) * shape.n_embd
        return tokens * (shape.n_layer * per_layer + 17 * width * shape.n_embd)

    def logits(positions):
        return min(positions, 2**26 // policy.vocab_size) * policy.vocab_size * 4 * 3

    ptx = rows * cfg.ptx_per_episode * cfg.ptx_window
    passes = [activations(policy, rows * T) + logits(rows * cfg.new_tokens), activations(critic, rows * T)]
    passes.append(activations(policy, ptx) + logits(ptx))
    return {
        "policy: weights, gradient, Adam, average": 20 * p / gpus,
        "value model: weights, gradient, Adam": 16 * v / gpus,
        "reference and reward model": 4 * (p + v) / gpus,
        "copy of the policy for sampling": (width * p if width == 2 or gpus > 1 else 0),
        "cache while sampling": 2 * width * sampled * policy.n_layer * policy.n_embd * T,
        "activations and logits": max(passes),
    }


def print_plan(cfg):
    """The paper's models on cfg.plan GPUs."""
    print(
        f"memory of ppo.py in GB per GPU, {cfg.plan} GPUs of {cfg.gpu_gb} GB, bf16 products, minibatch {cfg.minibatch_size}"
    )
    sizes = (("gpt2", "gpt2"), ("gpt2-xl", "gpt2-xl"), ("gpt3-1.3b", "gpt3-6.7b"), ("gpt3-175b", "gpt3-6.7b"))
    for policy, critic in sizes:
        plan = memory_plan(SIZES[policy], SIZES[critic], cfg, cfg.plan, 2)
        total = sum(plan.values()) / 1e9
        print(f"\npolicy {policy}, reward and value model {critic}: {total:,.1f} GB, ", end="")
        print("fits" if total < 0.9 * cfg.gpu_gb else f"does not fit; {least_gpus(policy, critic, cfg)}")
        for what, n in plan.items():
            print(f"  {what:42}{n / 1e9:10,.2f}")


def least_gpus(policy, critic, cfg):
    for n in (2**i for i in range(14)):
        if sum(memory_plan(SIZES[policy], SIZES[critic], cfg, n, 2).values()) < 0.9e9 * cfg.gpu_gb:
            return f"{n} GPUs would do"
    return "no number of GPUs would do, because every process samples from a whole copy of the policy"


def peak_memory(work, device, before):
    """Most bytes in tensors during work(). before: what was there already, which only a GPU knows by itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as traced:
        work()
    with tempfile.TemporaryDirectory() as folder:
        traced.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return before + max(accumulate(change for _, change in changes))


# ---------------------------------------------------------------------------------------------------- the work


def let_it_end(model, eot, mean):
    """Shift end-of-text's logit so that each token is one with probability 1/mean: a bias in its embedding's direction."""
    with torch.no_grad():
        wte, ln = model.transformer.wte.weight, model.transformer.ln_f
        direction = torch.zeros_like(ln.bias)
        direction[0] = 1.0
        ln.weight[0] = 0.0
        ln.bias.copy_(4.0 * direction)
        wte[:, 0] = 0.0
        others = model.unembed(model(torch.randint(model.config.vocab_size, (4, 32), device=wte.device)))
        level = others[..., :eot].float().logsumexp(-1).mean()
        wte[eot] = direction * (level - torch.log(torch.tensor(mean - 1.0))) / 4.0


def row(what, took, floor="", note=""):
    print(f"{what:46}{took:>16}{floor:>16}  {note}", flush=True)


def main(cfg):
    device = set_up(cfg)
    if cfg.plan:
        return print_plan(cfg)
    positive = min(cfg.batch_size, cfg.prompt_tokens, cfg.new_tokens, cfg.minibatch_size, cfg.repeat) >= 1
    require(positive, "--batch_size, --prompt_tokens, --new_tokens, --minibatch_size, --repeat: at least 1")
    require(cfg.ending >= 2 and cfg.ptx_per_episode >= 0, "--ending must be at least 2, --ptx_per_episode not negative")
    require(cfg.size in SIZES, f"--size {cfg.size}: choose from {', '.join(SIZES)}")
    require(cfg.versus in ("", "transformers", "trl"), f"--versus {cfg.versus}: transformers, trl, or nothing")
    shape = replace(SIZES[cfg.size], dropout=0.0)
    B, P, N = cfg.batch_size, cfg.prompt_tokens, cfg.new_tokens
    require(
        P + N <= shape.block_size,
        f"--prompt_tokens {P} + --new_tokens {N}: more than the context of {shape.block_size}",
    )
    dtype = matmul_dtype(cfg, device)
    width = torch.finfo(dtype).bits // 8
    rates = matmul_rate(device, dtype), copy_rate(device)
    print(
        f"{cfg.size}: {parameters(shape) / 1e6:.2f}M parameters, {dtype}, torch {torch.__version__}, {device_name(device)}"
    )
    print(f"matrix products {rates[0] / 1e12:.3f} TFLOP/s, copying {rates[1] / 1e9:.1f} GB/s\n")
    policy = prepare(GPT(shape).to(device), cfg)
    eot = shape.vocab_size - 1
    draw = generator(cfg.seed)
    prompts = torch.randint(eot, (B, P), generator=draw).tolist()
    sampler = for_sampling(policy, cfg).eval()
    row("", "measured", "floor")

    def sample(end, **more):
        return lambda: generate(sampler, prompts, N, end, generator=generator(cfg.seed), **more)

    fixed = seconds(sample(-1), device, cfg.repeat)
    floor = decode_floor(shape, B, P, N, width, rates)
    row(
        f"sampling {B} x {P} + {N} tokens",
        f"{B * N / fixed:,.0f} tok/s",
        f"{B * N / floor:,.0f}",
        f"{floor / fixed:.0%}",
    )
    plain = seconds(sample(-1, use_cache=False), device, 1)
    row("  without a cache", f"{B * N / plain:,.0f} tok/s", "", f"the cache makes it {plain / fixed:.1f} times as fast")
    let_it_end(policy, eot, cfg.ending)
    sampler = for_sampling(policy, cfg).eval()
    ended = seconds(sample(eot), device, cfg.repeat)
    n = int(sample(eot)()[2].sum())
    row(f"  responses that end, {n / B:.1f} tokens on average", f"{n / ended:,.0f} tok/s")
    if cfg.versus == "transformers":
        against_transformers(policy, prompts, N, eot, cfg, device, (sample(-1), sample(eot), n))

    windows = torch.randint(shape.vocab_size, (cfg.minibatch_size, min(shape.block_size, P + N) + 1), device=device)
    optimizer = adamw(policy, 1e-6)

    def train():
        lm_loss(policy, windows).backward()
        optimizer_step(optimizer, policy, 1e-6, 1.0)

    tokens = windows[:, 1:].numel()
    took = seconds(train, device, cfg.repeat)
    flops = 3 * forward_flops(shape, tokens, windows.size(1) / 2, tokens)
    each = f"{windows.size(0)} x {windows.size(1) - 1}"
    row(
        f"training, {each} tokens per step",
        f"{tokens / took:,.0f} tok/s",
        f"{tokens / (flops / rates[0]):,.0f}",
        f"{flops / took / rates[0]:.0%}",
    )

    optimizer.state.clear()  # so that it does not count as what PPO needs
    scalar = prepare(ScalarModel(shape).to(device), cfg)
    base = None
    for K in (2, 4, 9):
        rankings = [[(prompts[i % B] + [1 + k] * 8, k) for k in range(K)] for i in range(8)]
        took = seconds(lambda: batch_loss(scalar, rankings, device).backward(), device, cfg.repeat)
        base = base or took
        row(
            f"reward model, 8 rankings of K = {K} ({K * (K - 1) // 2} pairs each)",
            f"{1000 * took:,.1f} ms",
            "",
            f"{took / base:.1f} times K = 2",
        )

    scalar.zero_grad()
    ppo_iteration(policy, scalar, prompts, shape, cfg, device, width, rates, draw)


def ppo_iteration(policy, reward_model, prompts, shape, cfg, device, width, rates, draw):
    """One whole iteration, by ppo.py's own functions."""
    settings = {"batch_size": cfg.batch_size, "minibatch_size": cfg.minibatch_size, "max_new_tokens": cfg.new_tokens}
    settings |= {
        "ptx_per_episode": cfg.ptx_per_episode or 1,
        "ptx_window": cfg.ptx_window,
        "ptx_coef": 0.5 * bool(cfg.ptx_per_episode),
    }
    shared = {k: getattr(cfg, k) for k in ("dtype", "micro_batch_size", "recompute", "compile", "capture")}
    cfg_ppo = ppo.Config(**settings, **shared)
    reference, value_model = GPT(shape).to(device), ScalarModel(shape).to(device)
    for model in (reference, value_model):
        prepare(model, cfg)
    reference.load_state_dict(policy.state_dict())
    optimizers = adamw(policy, 1e-6), adamw(value_model, 1e-6)
    average = {k: v.clone() for k, v in policy.state_dict().items()}
    encoding = SimpleNamespace(eot_token=-1)  # nobody ends: all episodes have their full length
    corpus = SimpleNamespace(windows=lambda n, T, g: torch.randint(shape.vocab_size, (n, T), generator=g))

    def iteration():
        start = time.perf_counter()
        batch, sampling = ppo.rollout(
            policy, reference, reward_model, value_model, prompts, encoding, cfg_ppo, generator(0)
        )
        batch["advantages"], batch["returns"] = ppo.gae(batch["values"], batch["values"], batch["mask"], 1.0, 0.95)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rolled = time.perf_counter()
        took = []
        for coefficient in {0.0, cfg_ppo.ptx_coef}:
            begin = time.perf_counter()
            changed = replace(cfg_ppo, ptx_coef=coefficient)
            streams = {"order": generator(1), "pages": generator(2)}
            ppo.update(policy, value_model, optimizers, average, batch, corpus, changed, 1e-6, streams)
            if device.type == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - begin)
        return sampling, rolled - start - sampling, min(took), max(took) - min(took)

    best = min([iteration() for _ in range(cfg.repeat + 1)][1:], key=sum)
    floors = ppo_floor(shape, cfg, width, rates)
    total, least = sum(best), sum(floors)
    row(
        f"PPO-ptx iteration, {cfg.batch_size} episodes",
        f"{total:.3f} s",
        f"{least:.3f} s",
        f"{total / least:.1f} times its floor",
    )
    for name, took, floor in zip(("rollout", "scoring", "update", "ptx"), best, floors):
        row(f"  {name}", f"{took:.3f} s", f"{floor:.3f} s")
    owned = [*policy.parameters(), *value_model.parameters()]
    owned += [v for o in optimizers for state in o.state.values() for v in state.values()]
    owned += [*average.values(), *reference.parameters(), *reward_model.parameters()]
    peak = peak_memory(iteration, device, sum(t.numel() * t.element_size() for t in owned))
    plan = sum(memory_plan(shape, shape, cfg, 1, width).values())
    row("  peak memory, its tensors", f"{peak / 1e9:.3f} GB", f"{plan / 1e9:.3f} GB", "floor: the plan's figure")
    if cfg.versus == "trl":
        against_trl(policy, prompts, cfg, device, iteration)


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = (
        next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "CPU")
        if sys.platform == "linux"
        else "CPU"
    )
    return f"{model}, {torch.get_num_threads()} threads"


def gpt2_config(shape, eot):
    """A GPTConfig as transformers writes it; no dropout."""
    from transformers import GPT2Config

    names = {"n_positions": shape.block_size, "vocab_size": shape.vocab_size, "n_embd": shape.n_embd}
    names |= {"n_layer": shape.n_layer, "n_head": shape.n_head, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2Config(**names, attn_pdrop=0.0, bos_token_id=eot, eos_token_id=eot, pad_token_id=eot)


def against_trl(policy, prompts, cfg, device, ours):
    """A PPO iteration of TRL's experimental PPOTrainer: as many episodes, minibatches and tokens, no early end, no ptx."""
    try:
        import tokenizers
        import transformers
        from datasets import Dataset
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError as missing:
        return row("  TRL", f"not installed ({missing.name})")
    eot = policy.config.vocab_size - 1
    words = tokenizers.models.WordLevel({str(i): i for i in range(eot + 1)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token=str(eot), eos_token=str(eot)
    )
    shape = gpt2_config(policy.config, eot)
    scalar = gpt2_config(policy.config, eot)
    scalar.num_labels = 1
    dtype = matmul_dtype(cfg, device)
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=cfg.batch_size,
            num_mini_batches=cfg.batch_size // cfg.minibatch_size,
            num_ppo_epochs=1,
            total_episodes=cfg.batch_size * (cfg.repeat + 1),
            local_rollout_forward_batch_size=cfg.batch_size,
            response_length=cfg.new_tokens,
            stop_token=None,
            learning_rate=1e-6,
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            gradient_checkpointing=cfg.recompute,
        )
        trainer = PPOTrainer(
            settings,
            tokenizer,
            transformers.GPT2LMHeadModel(shape),
            transformers.GPT2LMHeadModel(shape),
            transformers.GPT2ForSequenceClassification(scalar),
            Dataset.from_dict({"input_ids": prompts}),
            transformers.GPT2ForSequenceClassification(scalar),
        )
        theirs, mine, began = [], [], [0.0]

        class InTurn(transformers.TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                theirs.append(time.perf_counter() - began[0])
                mine.append(sum(ours()[:3]))  # without ptx, which they do not have
                began[0] = time.perf_counter()

        trainer.add_callback(InTurn())
        trainer.train()
    we, they = min(mine), min(theirs[1:])
    note = f"ours in turn {we:.3f} s without ptx, {they / we:.1f} times as fast"
    row(f"  TRL's PPOTrainer, {cfg.batch_size} episodes", f"{they:.3f} s", "", note)


def against_transformers(policy, prompts, N, eot, cfg, device, ours):
    """The same weights, prompts and lengths, sampled by transformers: in turn, in this process."""
    try:
        import transformers
    except ImportError:
        return row("  transformers", "not installed")
    from gpt2 import to_theirs

    shape = policy.config
    theirs = transformers.GPT2LMHeadModel(gpt2_config(shape, eot))
    theirs.load_state_dict(to_theirs(policy.state_dict()) | {"lm_head.weight": policy.transformer.wte.weight})
    theirs.to(device, matmul_dtype(cfg, device)).eval()
    ids = torch.tensor(prompts, device=device)
    more = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": N,
        "pad_token_id": eot,
    }

    @torch.no_grad()
    def run(**kwargs):
        return theirs.generate(ids, **more, **kwargs)

    fixed, ending, our_tokens = ours
    we, they = in_turn((fixed, lambda: run(min_new_tokens=N)), device, cfg.repeat)
    tokens = len(prompts) * N
    note = f"ours in turn {tokens / we:,.0f}, {they / we:.1f} times as fast"
    row("  transformers, fixed length", f"{tokens / they:,.0f} tok/s", "", note)
    torch.manual_seed(cfg.seed)
    new = run()[:, ids.size(1) :]
    n = int(((new == eot).cumsum(1) - (new == eot).long() == 0).sum())
    we, they = in_turn((ending, run), device, cfg.repeat)
    speeds = our_tokens / we, n / they
    note = f"ours in turn {speeds[0]:,.0f}, {speeds[0] / speeds[1]:.1f} times as fast"
    row(f"  transformers, responses that end ({n / len(prompts):.1f})", f"{speeds[1]:,.0f} tok/s", "", note)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
