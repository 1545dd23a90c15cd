"""How fast is it, and how fast could it be? One table for one size and device.

    python tools/benchmark.py                              # the village's size on this machine
    python tools/benchmark.py --size gpt2 --batch_size 32 --prompt_tokens 64 --new_tokens 64
    python tools/benchmark.py --versus transformers        # the same sampling there, in turn, if it is installed
    python tools/benchmark.py --versus trl                 # the same PPO iteration in TRL's experimental PPOTrainer

Every speed stands beside its roofline, measured here and now: the rate at which memory is read (by copying a large
tensor), for reading the weights and the cache for each new token, or the rate of floating-point operations (by one
large matrix product). The weights are random: speed does not depend on them, except on how soon responses end, which
is set to a mean of `mean_length` tokens.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import model as plain
import ppo
from core.batches import generator
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import compute_dtype, configure_model, sampling_copy, set_up
from core.gpt2 import to_gpt2
from core.optim import adamw, optimizer_step
from core.sampling import generate
from model import GPT, SIZES, ScalarModel, lm_loss
from reward import Ranking, ranking_losses
from tools import plan


@dataclass
class Config(Device):
    size: Literal[tuple(SIZES)] = "village"  # shape of all models: village, gpt2, gpt2-medium, …
    batch_size: PositiveInt = 128  # rows that are sampled at a time; episodes of a PPO iteration
    prompt_tokens: PositiveInt = 32  # per prompt
    new_tokens: PositiveInt = 40  # per response
    mean_length: PositiveInt = 15  # mean length of responses that end by themselves
    minibatch_size: PositiveInt = 16  # episodes per policy update
    ptx_per_episode: int = 8  # pretraining examples per episode; 0 = no PPO-ptx
    ptx_window: PositiveInt = 16  # tokens of a pretraining example
    micro_batch_size: int = 0  # episodes per forward pass; 0 = a whole minibatch
    recompute: bool = False  # keep no activations inside a block, compute them again in the backward pass
    compile: bool = False  # torch.compile every block
    capture: bool = False  # on a GPU: record each kind of decoding step as a CUDA graph and replay it
    without_cache: bool = True  # also sample without a cache, which takes long for large models
    repeat: PositiveInt = 3  # each timing is the best of so many
    versus: Literal["", "transformers", "trl"] = ""  # also time transformers or trl, if it is installed
    seed: Seed = 0  # of weights and tokens


# ---------------------------------------------------------------------------------------------------- timing


def synchronize(device):
    """Wait until the GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def best_seconds(work, device, repeat):
    """Best of `repeat` runs of work(), after one to warm up."""
    return interleaved((work,), device, repeat)[0]


def interleaved(works, device, repeat):
    """The same for several pieces of work, one after the other `repeat` times: a machine may be slower for a while."""
    best = [float("inf")] * len(works)
    for i in range(repeat + 1):
        for j, work in enumerate(works):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            if i > 0:
                best[j] = min(best[j], time.perf_counter() - start)
    return best


def row(what, measured, roofline="", note=""):
    """Print one row of the table."""
    print(f"{what:46}{measured:>16}{roofline:>16}  {note}", flush=True)


# ---------------------------------------------------------------------------------------------------- rooflines


class Rates(NamedTuple):
    """What a machine can do at most, per second."""

    flops: float  # floating-point operations of a matrix product
    bandwidth: float  # bytes that are read or written


def measure_rates(device, dtype):
    """Time one large matrix product, and copying one large tensor, which is read once and written once. -> Rates"""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    flops = 2 * n**3 / best_seconds(lambda: a @ a, device, 5)
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(flops, 2 * source.numel() / best_seconds(lambda: target.copy_(source), device, 5))


def forward_flops(shape, tokens, context, unembedded):
    """Of a forward pass over `tokens` tokens that look back at `context` others on average: 2 per weight and token."""
    body = shape.n_layer * 12 * shape.n_embd**2
    attention = 2 * shape.n_layer * shape.n_embd * context
    return 2 * tokens * (body + attention) + 2 * unembedded * shape.vocab_size * shape.n_embd


def sampling_roofline(shape, B, P, N, itemsize, rates):
    """Least seconds for sampling N tokens in B rows: the prompts once, then for each token all weights and the cache.

    itemsize: bytes of a weight and of a number in the cache.
    """
    weights = shape.n_layer * 12 * shape.n_embd**2 + shape.vocab_size * shape.n_embd
    total = forward_flops(shape, B * P, P / 2, B) / rates.flops
    for n in range(N):
        moved = itemsize * (weights + 2 * B * shape.n_layer * shape.n_embd * (P + n))
        total += max(moved / rates.bandwidth, forward_flops(shape, B, P + n, B) / rates.flops)
    return total


def ppo_roofline(shape, cfg, itemsize, rates):
    """Least seconds of one PPO iteration: rollout, scoring, update, ptx."""
    B, T = cfg.batch_size, cfg.prompt_tokens + cfg.new_tokens
    forward = forward_flops(shape, B * T, T / 2, 0) / rates.flops
    unembed = 2 * B * cfg.new_tokens * shape.vocab_size * shape.n_embd / rates.flops
    rollout = sampling_roofline(shape, B, cfg.prompt_tokens, cfg.new_tokens, itemsize, rates)
    scoring = 4 * forward + 2 * unembed
    update = 3 * (2 * forward + unembed)  # a backward pass is two forward passes
    n = cfg.ptx_per_episode * B * cfg.ptx_window
    return rollout, scoring, update, 3 * forward_flops(shape, n, cfg.ptx_window / 2, n) / rates.flops


# ---------------------------------------------------------------------------------------------------- memory


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


@torch.no_grad()
def set_mean_length(model, eot, mean):
    """Make each token end-of-text with probability 1/mean: shift its logit, by a bias in its embedding's direction."""
    wte, ln = model.transformer.wte.weight, model.transformer.ln_f
    direction = torch.zeros_like(ln.bias)
    direction[0] = 1.0
    ln.weight[0] = 0.0
    ln.bias.copy_(4.0 * direction)
    wte[:, 0] = 0.0
    others = model.unembed(model(torch.randint(model.config.vocab_size, (4, 32), device=wte.device)))
    level = others[..., :eot].float().logsumexp(-1).mean()
    wte[eot] = direction * (level - torch.log(torch.tensor(mean - 1.0))) / 4.0


def main(cfg):
    device = set_up(cfg)
    require(cfg.mean_length >= 2, f"--mean_length {cfg.mean_length}: at least 2, a token and end-of-text")
    shape, needed = replace(SIZES[cfg.size], dropout=0.0), cfg.prompt_tokens + cfg.new_tokens
    fits = f"--prompt_tokens {cfg.prompt_tokens} + --new_tokens {cfg.new_tokens}: more than"
    require(needed <= shape.block_size, f"{fits} the context of {shape.block_size}")
    require(cfg.ptx_window <= shape.block_size, f"--ptx_window {cfg.ptx_window}: more than the context")
    multiple = f"--batch_size {cfg.batch_size} must be a multiple of --minibatch_size {cfg.minibatch_size}"
    require(cfg.batch_size % cfg.minibatch_size == 0, multiple)
    dtype = compute_dtype(cfg, device)
    rates = measure_rates(device, dtype)
    name = f"{cfg.size}: {plan.parameters(shape) / 1e6:.2f}M parameters"
    print(f"{name}, {dtype}, torch {torch.__version__}, {device_name(device)}")
    print(f"matrix products {rates.flops / 1e12:.3f} TFLOP/s, copying {rates.bandwidth / 1e9:.1f} GB/s\n")
    row("", "measured", "roofline")
    policy = configure_model(GPT(shape).to(device), cfg)
    prompts = torch.randint(shape.vocab_size - 1, (cfg.batch_size, cfg.prompt_tokens), generator=generator(cfg.seed))
    prompts = prompts.tolist()
    time_sampling(policy, prompts, dtype.itemsize, rates, cfg, device)
    time_training(policy, rates, cfg, device)
    reward_model = configure_model(ScalarModel(shape).to(device), cfg)
    time_reward_model(reward_model, prompts, cfg, device)
    time_ppo(policy, reward_model, prompts, dtype.itemsize, rates, cfg, device)


def time_sampling(policy, prompts, itemsize, rates, cfg, device):
    """With a cache and without, to a fixed length and until responses end; leaves a policy whose responses end."""
    B, P, N, eot = cfg.batch_size, cfg.prompt_tokens, cfg.new_tokens, policy.config.vocab_size - 1
    uniforms = torch.rand(N, B, generator=generator(cfg.seed, "sampling")).to(device)

    def to_fixed_length():
        return generate(sampler, prompts, N, -1, uniforms=uniforms)  # no token is -1, so nothing ends

    def until_they_end():
        return generate(sampler, prompts, N, eot, uniforms=uniforms)

    sampler = sampling_copy(policy, cfg).eval()
    fixed = best_seconds(to_fixed_length, device, cfg.repeat)
    least = sampling_roofline(policy.config, B, P, N, itemsize, rates)
    speed = f"{B * N / fixed:,.0f} tok/s"
    row(f"sampling {B} x {P} + {N} tokens", speed, f"{B * N / least:,.0f}", f"{least / fixed:.0%}")
    if cfg.without_cache:
        uncached = best_seconds(lambda: plain.generate(sampler, prompts, N, -1, uniforms=uniforms), device, 1)
        note = f"the cache makes it {uncached / fixed:.1f} times as fast"
        row("  without a cache", f"{B * N / uncached:,.0f} tok/s", "", note)
    set_mean_length(policy, eot, cfg.mean_length)
    sampler = sampling_copy(policy, cfg).eval()
    ended = best_seconds(until_they_end, device, cfg.repeat)
    n_tokens = int(until_they_end()[2].sum())
    row(f"  responses that end, {n_tokens / B:.1f} tokens on average", f"{n_tokens / ended:,.0f} tok/s")
    if cfg.versus == "transformers":
        against_transformers(policy, prompts, cfg, device, to_fixed_length, until_they_end, n_tokens)


def time_training(policy, rates, cfg, device):
    """Optimizer steps of next-token prediction."""
    shape = policy.config
    T = min(shape.block_size, cfg.prompt_tokens + cfg.new_tokens)
    windows = torch.randint(shape.vocab_size, (cfg.minibatch_size, T + 1), device=device)
    optimizer = adamw(policy, 1e-6)

    def step():
        lm_loss(policy, windows).mean().backward()
        optimizer_step(optimizer, policy, 1e-6, 1.0)

    n_tokens = cfg.minibatch_size * T
    took = best_seconds(step, device, cfg.repeat)
    flops = 3 * forward_flops(shape, n_tokens, T / 2, n_tokens)
    what = f"training, {cfg.minibatch_size} x {T} tokens per step"
    least = flops / rates.flops
    row(what, f"{n_tokens / took:,.0f} tok/s", f"{n_tokens / least:,.0f}", f"{least / took:.0%}")


def time_reward_model(reward_model, prompts, cfg, device):
    """Forward and backward pass of rankings: K answers cost K rows, however many pairs they make."""
    for K in (2, 4, 9):
        rankings = []
        for i in range(8):
            rows = [prompts[i % len(prompts)] + [1 + k] * 8 for k in range(K)]
            rankings.append(Ranking(rows, list(range(K)), [], "", ""))
        took = best_seconds(lambda: ranking_losses(reward_model, rankings).mean().backward(), device, cfg.repeat)
        if K == 2:
            two = took
        what = f"reward model, 8 rankings of K = {K} ({K * (K - 1) // 2} pairs each)"
        row(what, f"{1000 * took:,.1f} ms", "", f"{took / two:.1f} times K = 2")
    reward_model.zero_grad()


def ppo_iteration(policy, reward_model, prompts, cfg, device):
    """One whole iteration by ppo.py's own functions -> a function that does it and returns the seconds of rollout,
    scoring, update, ptx; and a function that returns all tensors that are held between iterations."""
    shape = policy.config
    settings = {"batch_size": cfg.batch_size, "minibatch_size": cfg.minibatch_size, "max_new_tokens": cfg.new_tokens}
    settings |= {"ptx_per_episode": cfg.ptx_per_episode, "ptx_window": cfg.ptx_window}
    for name in ("dtype", "micro_batch_size", "recompute", "compile", "capture"):
        settings[name] = getattr(cfg, name)
    without_ptx = ppo.Config(**settings)
    with_ptx = replace(without_ptx, ptx_coef=0.5)
    reference, value_model = GPT(shape).to(device), ScalarModel(shape).to(device)
    for model in (reference, value_model):
        configure_model(model, cfg)
    reference.load_state_dict(policy.state_dict())
    optimizers = adamw(policy, 1e-6), adamw(value_model, 1e-6)
    average = {name: value.clone() for name, value in policy.state_dict().items()}

    def update(episodes, cfg):
        for rows in torch.arange(cfg.batch_size, device=device).split(cfg.minibatch_size):
            minibatch = ppo.select(episodes, rows)
            ppo.update_policy(policy, optimizers[0], average, minibatch, 1e-6, cfg)
            ppo.update_values(value_model, optimizers[1], minibatch, cfg)

    def timed(work):
        synchronize(device)
        start = time.perf_counter()
        result = work()
        synchronize(device)
        return result, time.perf_counter() - start

    def rollout():
        sampler = sampling_copy(policy, without_ptx)
        return ppo.rollout(sampler, prompts, -1, without_ptx, generator(cfg.seed, "rollout"))  # no token is -1

    def score(episodes):
        episodes |= ppo.score_responses(episodes, policy, reference, reward_model, value_model, without_ptx)
        mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
        rewards = ppo.shaped_rewards(episodes["scores"], logprobs, ref_logprobs, mask, without_ptx.kl_coef)
        advantages, episodes["returns"] = ppo.gae(rewards, episodes["values"], mask, 1.0, 0.95)
        episodes["advantages"] = ppo.whiten(advantages, mask)

    def iteration():
        episodes, of_rollout = timed(rollout)
        _, of_scoring = timed(lambda: score(episodes))
        _, of_update = timed(lambda: update(episodes, without_ptx))
        of_ptx = 0.0
        if cfg.ptx_per_episode > 0:  # the same update once more, with its pretraining term
            windows = cfg.batch_size, cfg.ptx_per_episode, cfg.ptx_window + 1
            episodes["pretraining"] = torch.randint(shape.vocab_size, windows, device=device)
            of_ptx = max(timed(lambda: update(episodes, with_ptx))[1] - of_update, 0.0)
        return of_rollout, of_scoring, of_update, of_ptx

    def held():
        tensors = [*policy.parameters(), *value_model.parameters(), *reference.parameters(), *reward_model.parameters()]
        tensors += [value for o in optimizers for state in o.state.values() for value in state.values()]
        return [*tensors, *average.values()]

    return iteration, held


def time_ppo(policy, reward_model, prompts, itemsize, rates, cfg, device):
    """An iteration by phases, and its peak memory."""
    shape = policy.config
    iteration, held = ppo_iteration(policy, reward_model, prompts, cfg, device)
    iteration()
    best = min((iteration() for _ in range(cfg.repeat)), key=sum)
    rooflines = ppo_roofline(shape, cfg, itemsize, rates)
    total, least = sum(best), sum(rooflines)
    what = f"{'PPO-ptx' if cfg.ptx_per_episode else 'PPO'} iteration, {cfg.batch_size} episodes"
    row(what, f"{total:.3f} s", f"{least:.3f} s", f"{least / total:.0%}")
    for name, took, roofline in zip(("rollout", "scoring", "update", "ptx"), best, rooflines):
        row(f"  {name}", f"{took:.3f} s", f"{roofline:.3f} s")
    peak = peak_memory(iteration, device, sum(x.numel() * x.element_size() for x in held()))
    planned = plan.peak(plan.memory_plan(shape, shape, cfg, itemsize=itemsize))
    row("  peak memory, its tensors", f"{peak / 1e9:.3f} GB", f"{planned:.3f} GB", "roofline: tools/plan.py's figure")
    if cfg.versus == "trl":
        against_trl(policy, prompts, cfg, device, iteration)


# ---------------------------------------------------------------------------------------------------- others


def device_name(device):
    """The GPU's name, or the processor's and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, cpuinfo = "CPU", Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads"


def gpt2_config(shape, eot):
    """A GPTConfig as transformers writes it; no dropout."""
    from transformers import GPT2Config

    names = {"n_positions": shape.block_size, "vocab_size": shape.vocab_size, "n_embd": shape.n_embd}
    names |= {"n_layer": shape.n_layer, "n_head": shape.n_head, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2Config(**names, attn_pdrop=0.0, bos_token_id=eot, eos_token_id=eot, pad_token_id=eot)


def against_trl(policy, prompts, cfg, device, iteration):
    """A PPO iteration of TRL's experimental PPOTrainer: as many episodes, minibatches and tokens, no early end, no ptx.

    iteration(): ours -> seconds of rollout, scoring, update, ptx.
    """
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
    dtype = compute_dtype(cfg, device)
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
        theirs, ours = [], []

        class InTurn(transformers.TrainerCallback):
            """After each of their iterations one of ours."""

            def on_train_begin(self, *args, **kwargs):
                self.start = time.perf_counter()

            def on_step_end(self, *args, **kwargs):
                theirs.append(time.perf_counter() - self.start)
                ours.append(sum(iteration()[:3]))  # without ptx, which they do not have
                self.start = time.perf_counter()

        trainer.add_callback(InTurn())
        trainer.train()
    we, they = min(ours), min(theirs[1:])  # their first one warms up
    note = f"ours in turn {we:.3f} s without ptx, {they / we:.1f} times as fast"
    row(f"  TRL's PPOTrainer, {cfg.batch_size} episodes", f"{they:.3f} s", "", note)


def against_transformers(policy, prompts, cfg, device, to_fixed_length, until_they_end, our_tokens):
    """The same weights, prompts and lengths, sampled by transformers: interleaved with ours, in this process.

    to_fixed_length(), until_they_end(): our sampling; our_tokens: how many tokens the latter samples.
    """
    try:
        import transformers
    except ImportError:
        return row("  transformers", "not installed")
    N, eot = cfg.new_tokens, policy.config.vocab_size - 1
    theirs = transformers.GPT2LMHeadModel(gpt2_config(policy.config, eot))
    theirs.load_state_dict(to_gpt2(policy.state_dict()) | {"lm_head.weight": policy.transformer.wte.weight})
    theirs.to(device, compute_dtype(cfg, device)).eval()
    ids = torch.tensor(prompts, device=device)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": N, "pad_token_id": eot}

    @torch.no_grad()
    def run(**more):
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings, **more)

    we, they = interleaved((to_fixed_length, lambda: run(min_new_tokens=N)), device, cfg.repeat)
    n_tokens = len(prompts) * N
    note = f"ours in turn {n_tokens / we:,.0f}, {they / we:.1f} times as fast"
    row("  transformers, fixed length", f"{n_tokens / they:,.0f} tok/s", "", note)
    torch.manual_seed(cfg.seed)
    ends = (run()[:, ids.size(1) :] == eot).long()
    n_tokens = int((ends.cumsum(1) - ends == 0).sum())  # no end before them
    we, they = interleaved((until_they_end, run), device, cfg.repeat)
    ours, speed = our_tokens / we, n_tokens / they
    note = f"ours in turn {ours:,.0f}, {ours / speed:.1f} times as fast"
    row(f"  transformers, responses that end ({n_tokens / len(prompts):.1f})", f"{speed:,.0f} tok/s", "", note)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
