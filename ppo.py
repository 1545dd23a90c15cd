"""Step 3: proximal policy optimisation (PPO) against a reward model, with or without pretraining mix (§3.5, App. C.4).

    python ppo.py                       # -> ppo.pt         PPO (γ = 0)
    python ppo.py --ptx_coef 0.2        # -> ppo_ptx.pt     PPO-ptx, "InstructGPT"

Maximises  E_{x, y~π} [ r(x, y) - β log( π(y|x) / π_ref(y|x) ) ]  +  γ E_{x ~ pretraining} [ log π(x) ]          (Eq. 2)

One iteration (§3.5, App. C.4; a "bandit": one prompt, one response, one score, the episode ends):
  1. rollout   sample a response to each of `batch_size` prompts at temperature 1                  y ~ π(·|x)
  2. score     reward model at the last response token; log-probs under π and π_ref; values        r, log π_ref, V
  3. reward    per token: -β (log π - log π_ref), plus the score at the last token                 R_t
  4. GAE       advantages with discount 1 and λ; value targets; THEN whiten the advantages         A_t, G_t
  5. update    per minibatch: clipped policy loss + γ · pretraining loss, one step; clipped value loss, one step

symbol   variable                             where
r        scores, one per response             score_responses          log π     logprobs       score_responses
R_t      rewards, one per token               shaped_rewards           π_ref     reference      main
A_t      advantages                           gae, whiten              ρ_t       ratio          update_policy
G_t      returns, the value targets           gae                      β         kl_coef        shaped_rewards
V_t      values                               score_responses          γ         ptx_coef       update_policy

Scores are (B,); all that is per token is (B, T), aligned with the tokens: entry t is about token t and the state before
it. `mask` is 1 on response tokens, end-of-text included; it is made where tokens are sampled. Dropout is off
everywhere, so the ratio starts at 1. (Log-probs are never those of the sampler, whose weights may be bfloat16.)

Where the paper is silent (ours): λ, whitening, value clipping, gradient clipping, Adam ε; the EMA is per policy update,
and the averaged weights are what is saved. γ multiplies the MEAN loss per pretraining token, so the paper's 27.8, whose
reduction is not stated, does not carry over. The first iterations only train the value model.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from core.batches import generator, shuffled_rows
from core.checkpoint import load_policy, load_scalar_model, save_checkpoint
from core.config import Fraction, PositiveFloat, PositiveInt, Real, Seed, Training, command_line, require
from core.device import sampling_copy, set_up
from core.distributed import all_reduce_sum, gather_rows, micro_batches, own_rows, world_size
from core.log import JsonLines, Log
from core.optim import adamw, optimizer_step
from core.output import output_folder
from core.sampling import generate
from core.training_state import TrainingState
from core.watch import PPO_COLUMNS, episode_metrics, keep_samples, mean_metrics
from data.folder import Corpus, load_tokenizer, read_prompts, with_room
from model import lm_loss, masked_mean, token_logprobs, token_values
from pretrain import corpus_loss


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder
    name: str = ""  # writes OUT/NAME.pt and OUT/NAME.jsonl; default: ppo, or ppo_ptx if ptx_coef is not 0
    init: str = ""  # initial policy AND frozen reference (C.3); default: OUT/ppo_init.pt
    reward_model: str = ""  # default: OUT/reward.pt; the value model starts from it too
    # rollout
    iterations: PositiveInt = 60  # collect + update                                        paper: 500
    batch_size: PositiveInt = 256  # episodes per iteration                                 paper: 512
    max_new_tokens: PositiveInt = 40  # longest response                                    paper: about 1000
    tensor_parallel: PositiveInt = 1  # of several GPUs: so many have one copy of the policy together while sampling
    capture: bool = False  # on a GPU: record each kind of decoding step as a CUDA graph and replay it
    score_without_eot: bool = True  # unfinished responses get their RM score; --no- gives them missing_eot_score
    missing_eot_score: Real = -3.0  # used only with --no-score_without_eot
    # objective
    kl_coef: float = 0.15  # β in Eq. 2                                                     paper: 0.02
    ptx_coef: float = 0.0  # γ in Eq. 2, times the mean loss per token      paper: 0 for PPO, 27.8 for PPO-ptx
    ptx_per_episode: PositiveInt = 4  # pretraining examples per episode                    paper: 8
    ptx_window: PositiveInt = 32  # tokens of a pretraining example                         paper: silent
    discount: Fraction = 1.0  # of GAE, not γ of Eq. 2; 1 = none                                 paper: 1
    lam: Fraction = 0.95  # λ of GAE                                                        paper: silent
    whiten: bool = True  # advantages to mean 0, variance 1                                 paper: silent
    clip_ratio: PositiveFloat = 0.2  # ε of the clipped policy loss                         paper: 0.2
    clip_value: float = 0.2  # how far a value may move per iteration; 0 = no clipping      paper: silent
    # optimisation
    minibatch_size: PositiveInt = 32  # episodes per policy update                          paper: 64
    epochs: PositiveInt = 1  # passes over the collected episodes                           paper: 1
    learning_rate: PositiveFloat = 2.5e-4  # of the policy, after the warm-up     paper: 2.55e-6 to 2.55e-5 scanned
    warmup_iterations: int = 4  # from a tenth of the learning rate                        paper: 10
    value_learning_rate: PositiveFloat = 1e-3  # constant                                   paper: 9e-6
    value_only_iterations: int = 4  # at the start only the value model learns              paper: silent
    max_grad_norm: PositiveFloat = 1.0  # paper: silent
    ema: Fraction = 0.985  # of the policy weights, per update        paper: 0.992, over about nine times as many
    # looking at it
    sample_every: PositiveInt = 5  # iterations between samples on validation prompts
    sample_prompts: PositiveInt = 96  # how many
    seed: Seed = 0  # of prompts, sampling and minibatches


# ---------------------------------------------------------------------------------------------------- the mathematics


def shaped_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """R_t = -β (log π - log π_ref) for every response token, plus the score at the last one (Eq. 2, App. C.4).

    scores: (B,), the others (B, T) -> (B, T). Summed over a response: score - β log( π(y|x) / π_ref(y|x) ).
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    return rewards + scores[:, None] * last_token(mask)


def last_token(mask):
    """1 at the last response token of each row, else 0. (B, T) -> (B, T)."""
    next_mask = F.pad(mask[:, 1:], (0, 1))
    return mask * (1 - next_mask)


def gae(rewards, values, mask, discount, lam):
    """Generalised advantage estimation (Schulman et al. 2016), from the last token backwards.

    δ_t = R_t + discount V_{t+1} - V_t,   A_t = δ_t + discount λ A_{t+1},   G_t = A_t + V_t,   and V = 0 after the end.
    All (B, T); returns advantages and returns (value targets), both 0 outside the mask.
    """
    rewards, values = rewards * mask, values * mask  # the episode is over after the mask: nothing to bootstrap from
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        next_advantage = (delta + discount * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(x, mask):
    """Mean 0 and variance 1 over the masked entries, 0 elsewhere. (B, T), (B, T) -> (B, T)."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def advantages_and_returns(rewards, values, mask, cfg):
    """GAE, and the advantages whitened AFTER the value targets have been computed from them. (B, T) each."""
    advantages, returns = gae(rewards, values, mask, cfg.discount, cfg.lam)
    return whiten(advantages, mask) if cfg.whiten else advantages, returns


def clipped_policy_loss(ratio, advantages, clip_ratio):
    """PPO's clipped objective, to be minimised, per token: max( -A ρ, -A clip(ρ, 1-ε, 1+ε) ). All (B, T)."""
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(new_values, values, returns, clip_value):
    """Per token: ½ max( (V - G)², (V_old + clip(V - V_old) - G)² ). All (B, T)."""
    error = (new_values - returns) ** 2
    if clip_value > 0:
        clipped = values + (new_values - values).clamp(-clip_value, clip_value)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * error


def policy_learning_rate(iteration, cfg):
    """Constant after rising from a tenth (C.4). iteration: counted from 0, from the first where the policy learns."""
    if iteration >= cfg.warmup_iterations:
        return cfg.learning_rate
    return cfg.learning_rate * (0.1 + 0.9 * iteration / cfg.warmup_iterations)


@torch.no_grad()
def update_ema(ema_weights, model, decay):
    """ema_weights ← decay · ema_weights + (1 - decay) · weights."""
    for name, weight in model.state_dict().items():
        ema_weights[name].lerp_(weight, 1 - decay)


# ---------------------------------------------------------------------------------------------------- collect


@torch.no_grad()
def rollout(policy, prompts, eot, cfg, rng):
    """Step 1: sample a response to each prompt. prompts: B lists of ids -> {tokens, mask (B, T), lengths, ended (B,)}.

    Of several processes, each answers its share of the prompts.
    """
    uniforms = torch.rand(len(prompts), cfg.max_new_tokens, generator=rng)  # the same on every process
    uniforms = own_rows(uniforms).T.to(policy.transformer.wte.weight.device)
    tokens, lengths, mask = generate(policy, own_rows(prompts), cfg.max_new_tokens, eot, uniforms=uniforms)
    ended = tokens.gather(1, lengths[:, None] - 1).squeeze(1) == eot
    return {"tokens": tokens, "mask": mask, "lengths": lengths, "ended": ended}


@torch.no_grad()
def score_responses(episodes, policy, reference, reward_model, value_model, cfg):
    """Step 2: scores, log-probs under π and π_ref, values. -> {scores (B,), logprobs, ref_logprobs, values (B, T)}"""
    scores = torch.zeros_like(episodes["mask"][:, 0])
    logprobs, ref_logprobs, values = (torch.zeros_like(episodes["mask"]) for _ in range(3))
    for rows in episodes["lengths"].argsort().chunk(4):  # similar lengths together: less padding
        part = select(episodes, rows)
        tokens, mask, T = part["tokens"], part["mask"], part["tokens"].size(1)
        scores[rows] = reward_model.score(tokens, part["lengths"])
        logprobs[rows, :T] = token_logprobs(policy, tokens, mask)
        ref_logprobs[rows, :T] = token_logprobs(reference, tokens, mask)
        values[rows, :T] = token_values(value_model, tokens, mask)
    if not cfg.score_without_eot:
        scores = scores.where(episodes["ended"], cfg.missing_eot_score)
    return {"scores": scores, "logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values}


def select(episodes, rows):
    """Some rows of the episodes; tokens and what belongs to them are cut to the longest response of these rows."""
    longest = max(episodes["lengths"][rows].tolist(), default=1)
    return {name: x[rows, :longest] if x.dim() == 2 else x[rows] for name, x in episodes.items()}


# ---------------------------------------------------------------------------------------------------- update


def update_policy(policy, optimizer, ema_weights, minibatch, learning_rate, cfg):
    """Step 5 for the policy: one optimizer step on Eq. 2, and one of the EMA. -> metrics

    minibatch: {name: (b,) or (b, T)}, and "pretraining" (b, examples per episode, tokens + 1) if γ is not 0.
    """
    b, metrics = len(minibatch["mask"]), defaultdict(float)
    n_tokens = minibatch["mask"].sum()  # of the whole minibatch: micro-batches and processes add up
    n_ptx_tokens = b * cfg.ptx_per_episode * cfg.ptx_window
    for rows in micro_batches(torch.arange(b, device=n_tokens.device), cfg):
        episodes = select(minibatch, rows)
        advantages, mask = episodes["advantages"], episodes["mask"]
        new_logprobs = token_logprobs(policy, episodes["tokens"], mask)
        logratio = new_logprobs - episodes["logprobs"]  # (b, T), 0 outside the mask
        ratio = logratio.exp()

        def mean(x):
            return (x * mask).sum() / n_tokens  # noqa: B023

        loss = mean(clipped_policy_loss(ratio, advantages, cfg.clip_ratio))
        loss.backward()
        if cfg.ptx_coef:  # the gradients of both terms add up in the same buffer (C.4)
            ptx_loss = lm_loss(policy, episodes["pretraining"].flatten(0, 1)).sum() / n_ptx_tokens
            (cfg.ptx_coef * ptx_loss).backward()
            metrics["ptx_loss"] += ptx_loss.detach()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > cfg.clip_ratio).float()
            metrics["policy_loss"] += loss
            metrics["ratio"] += mean(ratio)
            metrics["clip_fraction"] += mean(outside)
            metrics["approx_kl"] += mean(ratio - 1 - logratio)  # of old to new, never negative
    metrics = all_reduce_sum(metrics)
    metrics["grad_norm"] = optimizer_step(optimizer, policy, learning_rate, cfg.max_grad_norm)
    update_ema(ema_weights, policy, cfg.ema)
    return metrics


def update_values(value_model, optimizer, minibatch, cfg):
    """Step 5 for the value model: one optimizer step on the clipped squared error. -> metrics"""
    b, metrics = len(minibatch["mask"]), defaultdict(float)
    n_tokens = minibatch["mask"].sum()
    for rows in micro_batches(torch.arange(b, device=n_tokens.device), cfg):
        episodes = select(minibatch, rows)
        new_values = token_values(value_model, episodes["tokens"], episodes["mask"])
        losses = clipped_value_loss(new_values, episodes["values"], episodes["returns"], cfg.clip_value)  # (b, T)
        loss = (losses * episodes["mask"]).sum() / n_tokens
        loss.backward()
        metrics["value_loss"] += loss.detach()
    metrics = all_reduce_sum(metrics)
    optimizer_step(optimizer, value_model, cfg.value_learning_rate, cfg.max_grad_norm)
    return metrics


# ---------------------------------------------------------------------------------------------------- the loop


def main(cfg, reward_model=None):
    """reward_model: what scores responses instead of the one in the file; all it needs is ScalarModel's `score`.

    The value model starts from the file all the same, and has to learn more where the scores are of another scale.
    """
    device, out = set_up(cfg), output_folder(cfg.out)
    name = cfg.name or ("ppo_ptx" if cfg.ptx_coef else "ppo")
    init, reward = cfg.init or out / "ppo_init.pt", cfg.reward_model or out / "reward.pt"
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    policy = load_policy(init, cfg, device, tokenizer_spec)
    reference = load_policy(init, cfg, device, tokenizer_spec).requires_grad_(False)
    if reward_model is None:
        reward_model = load_scalar_model(reward, cfg, device, tokenizer_spec).requires_grad_(False)
    value_model = load_scalar_model(reward, cfg, device, tokenizer_spec)  # starts from the reward model (C.4)
    policy_optimizer = adamw(policy, cfg.learning_rate)
    value_optimizer = adamw(value_model, cfg.value_learning_rate)
    ema_weights = {key: weight.clone() for key, weight in policy.state_dict().items()}
    check_sizes(cfg, policy.config.block_size)
    prompts = read_prompts_with_room(cfg, "train", tokenizer, policy)
    prompts = [tokenizer.encode_ordinary(prompt) for prompt in prompts]
    sample_prompts = read_prompts_with_room(cfg, "valid", tokenizer, policy)[: cfg.sample_prompts]
    corpus = Corpus(cfg.data, "train")

    log = Log(out / f"{name}.jsonl", cfg.iterations, PPO_COLUMNS, every=0)
    samples = JsonLines(out / f"{name}.samples.jsonl")
    parts = {
        "policy": policy,
        "policy_optimizer": policy_optimizer,
        "ema_weights": ema_weights,
        "value_model": value_model,
    }
    parts |= {"value_optimizer": value_optimizer, "log": log, "samples": samples}
    state = TrainingState(out, name, cfg, [cfg.data, init, reward], **parts)
    if state.already_finished():
        return
    first_iteration = state.resume()
    print_plan(cfg, len(prompts))

    for iteration in range(first_iteration, cfg.iterations):
        start = time.time()
        # 1. rollout
        asked = [prompts[i] for i in shuffled_rows(len(prompts), cfg.batch_size, cfg.seed, iteration)]
        rng = generator(cfg.seed, "rollout", iteration)
        episodes = rollout(sampling_copy(policy, cfg), asked, tokenizer.eot_token, cfg, rng)
        # 2. score
        episodes |= score_responses(episodes, policy, reference, reward_model, value_model, cfg)
        episodes = gather_rows(episodes)  # every process has them all from here on
        mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
        # 3. reward
        rewards = shaped_rewards(episodes["scores"], logprobs, ref_logprobs, mask, cfg.kl_coef)
        # 4. GAE
        advantages, returns = advantages_and_returns(rewards, episodes["values"], mask, cfg)
        episodes |= {"advantages": advantages, "returns": returns}
        if cfg.ptx_coef:  # pretraining examples beside each episode (C.4)
            rng = generator(cfg.seed, "pretraining", iteration)
            windows = corpus.windows(cfg.batch_size * cfg.ptx_per_episode, cfg.ptx_window + 1, rng)
            episodes["pretraining"] = windows.view(cfg.batch_size, cfg.ptx_per_episode, -1).to(device)
        collected = time.time()

        # 5. update
        policy_learns = iteration >= cfg.value_only_iterations
        learning_rate = policy_learning_rate(max(iteration - cfg.value_only_iterations, 0), cfg)
        policy_metrics, value_metrics = [], []
        rng = generator(cfg.seed, "minibatches", iteration)
        for _ in range(cfg.epochs):
            for rows in torch.randperm(cfg.batch_size, generator=rng).to(device).split(cfg.minibatch_size):
                minibatch = select(episodes, rows)
                if policy_learns:
                    updated = update_policy(policy, policy_optimizer, ema_weights, minibatch, learning_rate, cfg)
                    policy_metrics.append(updated)
                value_metrics.append(update_values(value_model, value_optimizer, minibatch, cfg))

        metrics = episode_metrics(episodes) | mean_metrics(policy_metrics) | mean_metrics(value_metrics)
        if policy_learns:
            metrics |= {"first_ratio": policy_metrics[0]["ratio"], "learning_rate": learning_rate}
        metrics |= {"seconds_rollout": collected - start, "seconds_update": time.time() - collected}
        log(iteration + 1, **metrics)
        if iteration % cfg.sample_every == 0 or iteration + 1 == cfg.iterations:
            keep_samples(samples, iteration, policy, reference, reward_model, sample_prompts, tokenizer, cfg)
        state.save_if_due(iteration + 1)

    policy.load_state_dict(ema_weights)
    final_loss = corpus_loss(policy, Corpus(cfg.data, "valid"))
    require(math.isfinite(final_loss), f"the corpus loss became {final_loss}; try a smaller --learning_rate")
    print(f"corpus loss {final_loss:.3f}; saving the averaged weights")
    save_checkpoint(out / f"{name}.value.pt", value_model, tokenizer_spec, cfg, cfg.iterations)  # to look at (page.py)
    save_checkpoint(out / f"{name}.pt", policy, tokenizer_spec, cfg, cfg.iterations, inputs=state.inputs)
    state.finish()
    print(f"wrote {out}/{name}.pt; next: python evaluate.py --data {cfg.data} --out {cfg.out}")


def print_plan(cfg, n_prompts):
    updates = cfg.batch_size // cfg.minibatch_size * cfg.epochs
    episodes, learning = cfg.iterations * cfg.batch_size, cfg.iterations - cfg.value_only_iterations
    print(
        f"{episodes:,} episodes on {n_prompts:,} prompts, {updates} updates per iteration; "
        f"{learning * updates:,} of the"
    )
    print(f"policy, which waits for {cfg.value_only_iterations} iterations until the value model has learned a little")


def check_sizes(cfg, block_size):
    """Refuse sizes that do not fit each other."""
    sizes = f"--batch_size {cfg.batch_size} must be a multiple of"
    require(cfg.batch_size % cfg.minibatch_size == 0, f"{sizes} --minibatch_size {cfg.minibatch_size}")
    require(cfg.batch_size % world_size() == 0, f"{sizes} {world_size()} processes")
    fits = cfg.value_only_iterations < cfg.iterations
    require(fits, f"--value_only_iterations {cfg.value_only_iterations}: must be less than --iterations")
    fits = cfg.ptx_window <= block_size
    require(fits, f"--ptx_window {cfg.ptx_window}: longer than the context, {block_size} tokens")


def read_prompts_with_room(cfg, split, tokenizer, policy):
    """Prompts (str) of a split that leave room for a response."""
    room = policy.config.block_size - cfg.max_new_tokens
    return [record["prompt"] for record in with_room(read_prompts(cfg.data, split), tokenizer, room)]


if __name__ == "__main__":
    command_line(Config, main, __doc__)
