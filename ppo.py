"""Step 3: how does it improve? Proximal policy optimisation against the reward model, with or without pretraining mix.

    python ppo.py                       # -> ppo.pt         PPO (γ = 0)
    python ppo.py --ptx_coef 0.5        # -> ppo_ptx.pt     PPO-ptx, "InstructGPT"

Maximises  E_{x, y~π} [ r(x, y) - β log( π(y|x) / π_ref(y|x) ) ]  +  γ E_{x ~ pretraining} [ log π(x) ]             (Eq. 2)

One iteration (paper App. C.4; a "bandit": one prompt, one response, one score, the episode ends):
  1. rollout   sample a response to each of `batch_size` prompts at temperature 1               y ~ π_old(·|x)
  2. score     reward model at the last response token; log-probs under π_old and π_ref; values    r, log π_ref, V
  3. reward    per token: -β (log π_old - log π_ref), plus the score at the last token             R_t
  4. GAE       advantages with discount 1 and λ; value targets; THEN whiten the advantages         A_t, G_t
  5. update    per minibatch: clipped policy loss + γ · pretraining loss, one step; clipped value loss, one step

symbol → variable → where     r score (one per response) · R_t rewards (per token) · A_t advantages · G_t returns ·
β kl_coef · γ ptx_coef (not the discount, which is `discount`) · ρ_t ratio = exp(new_logprobs - logprobs) · V values

All arrays are (B, T), aligned with the tokens: entry t is about token t and the state before it. `mask` is 1 on response
tokens, end-of-text included; it is made where tokens are sampled. Dropout is off everywhere, so the ratio starts at 1.

Where the paper is silent (ours): λ, whitening, value clipping, gradient clipping, Adam ε; the EMA is per policy update,
and the averaged weights are what is saved. γ multiplies the MEAN loss per pretraining token, so the paper's 27.8, whose
reduction is not stated, does not carry over. The first iterations only train the value model.
"""

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data.folder import Corpus, load_folder_tokenizer, read_prompts, with_room
from machine import (
    Training,
    add_up,
    drop_states,
    finished,
    for_sampling,
    gather_rows,
    load_state,
    portions,
    prepare,
    rank,
    read_from,
    save_state,
    set_up,
    world,
)
from model import generate, load_checkpoint, masked_mean, save_checkpoint, token_logprobs, values_before
from plumbing import (
    MetricsLog,
    adamw,
    check_finite,
    command_line,
    generator,
    optimizer_step,
    output_folder,
    require,
)
from pretrain import corpus_loss, lm_loss


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder
    name: str = ""  # writes OUT/NAME.pt and OUT/NAME.jsonl; default: ppo, or ppo_ptx if ptx_coef is not 0
    init: str = ""  # initial policy AND frozen reference (C.3); default: OUT/ppo_init.pt
    reward_model: str = ""  # default: OUT/reward.pt; the value model starts from it too
    # rollout
    iterations: int = 28  # collect + update                                                paper: 500
    batch_size: int = 128  # episodes per iteration                                         paper: 512
    max_new_tokens: int = 40  # longest response                                            paper: about 1000
    capture: bool = False  # on a GPU: record each kind of decoding step as a CUDA graph and replay it
    score_without_eot: bool = True  # unfinished responses get their RM score; --no- gives them missing_eot_score
    missing_eot_score: float = -3.0  # used only with --no-score_without_eot
    # objective
    kl_coef: float = 0.15  # β in Eq. 2                                                     paper: 0.02
    ptx_coef: float = 0.0  # γ in Eq. 2, times the mean loss per token      paper: 0 for PPO, 27.8 for PPO-ptx
    ptx_per_episode: int = 8  # pretraining examples per episode                            paper: 8
    ptx_window: int = 16  # tokens of a pretraining example                                 paper: silent
    discount: float = 1.0  # γ of GAE: none                                                 paper: 1
    lam: float = 0.95  # λ of GAE                                                           paper: silent
    whiten: bool = True  # advantages to mean 0, variance 1                                 paper: silent
    clip_ratio: float = 0.2  # ε of the clipped policy loss                                 paper: 0.2
    clip_value: float = 0.2  # how far a value may move per iteration; 0 = no clipping      paper: silent
    # optimisation
    minibatch_size: int = 16  # episodes per policy update                                  paper: 64
    epochs: int = 1  # passes over the collected episodes                                   paper: 1
    learning_rate: float = 3e-4  # of the policy, constant after the warm-up        paper: 2.6e-6 to 2.6e-5 scanned
    warmup_iterations: int = 10  # from a tenth of the learning rate                        paper: 10
    value_learning_rate: float = 5e-4  # constant                                           paper: 9e-6
    value_only_iterations: int = 2  # at the start only the value model learns              paper: silent
    max_grad_norm: float = 1.0  # paper: silent
    ema: float = 0.992  # of the policy weights, per update                                 paper: 0.992
    # looking at it
    look_every: int = 5  # iterations between samples on validation prompts
    look_prompts: int = 96  # how many
    seed: int = 0  # of prompts, sampling and minibatches


# ---------------------------------------------------------------------------------------------------- the mathematics


def shaped_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    """R_t = -β (log π_old - log π_ref) for every response token, plus the score at the last one (Eq. 2, App. C.4).

    scores: (B,), the others (B, T) -> (B, T). Summed over a response: score - β log( π(y|x) / π_ref(y|x) ).
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    return rewards + scores[:, None] * last_token(mask)


def last_token(mask):
    """1 at the last response token of each row, else 0. (B, T) -> (B, T)."""
    after = F.pad(mask[:, 1:], (0, 1))
    return mask * (1 - after)


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
    """Mean 0 and variance 1 over the masked entries."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def policy_loss(new_logprobs, logprobs, advantages, mask, clip_ratio, count=None):
    """PPO's clipped objective, to be minimised: mean over tokens of max( -A ρ, -A clip(ρ, 1-ε, 1+ε) ).

    All (B, T). -> loss, and a dict of what to look at: first the ratio itself. count: the tokens of the whole minibatch,
    where these rows are a part of it; the losses of the parts then add up to the minibatch's.
    """
    logratio = (new_logprobs - logprobs) * mask
    ratio = logratio.exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    loss = masked_mean(torch.maximum(-advantages * ratio, -advantages * clipped), mask, count)
    with torch.no_grad():
        stats = {
            "ratio": masked_mean(ratio, mask, count),
            "clip_fraction": masked_mean(((ratio - 1).abs() > clip_ratio).float(), mask, count),
            "approx_kl": masked_mean(ratio - 1 - logratio, mask, count),  # of old to new, never negative
        }
    return loss, stats


def value_loss(new_values, values, returns, mask, clip_value, count=None):
    """½ mean over tokens of max( (V - G)², (V_old + clip(V - V_old) - G)² ). All (B, T) -> scalar."""
    error = (new_values - returns) ** 2
    if clip_value > 0:
        near = values + (new_values - values).clamp(-clip_value, clip_value)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * masked_mean(error, mask, count)


def explained_variance(values, returns, mask):
    """1 - Var(G - V) / Var(G): 1 is perfect, 0 no better than a constant, negative worse."""

    def variance(x):
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return (1 - variance(returns - values) / variance(returns).clamp(min=1e-8)).item()


def warmed_up(iteration, cfg):
    """Constant after rising from a tenth over the first iterations that the policy learns in (C.4): 0.1 at `iteration` 0."""
    share = min(1.0, max(iteration, 0) / cfg.warmup_iterations) if cfg.warmup_iterations else 1.0
    return cfg.learning_rate * (0.1 + 0.9 * share)


def update_ema(average, model, decay):
    """average ← decay · average + (1 - decay) · weights."""
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            average[name].lerp_(weight, 1 - decay)


# ---------------------------------------------------------------------------------------------------- the two verbs


@torch.no_grad()
def rollout(policy, reference, reward_model, value_model, prompts, encoding, cfg, draw):
    """Steps 1 and 2: let the policy answer, and everybody look at the answers. prompts: list of B lists of ids."""
    start = time.time()
    sampler = for_sampling(policy, cfg)
    u = torch.rand(cfg.max_new_tokens, len(prompts), generator=draw).to(sampler.transformer.wte.weight.device)
    own = slice(rank(), None, world())  # the prompts of this process, if there are several: see machine.py
    tokens, lengths, mask = generate(sampler, prompts[own], cfg.max_new_tokens, encoding.eot_token, uniforms=u[:, own])
    sampling = time.time() - start
    ended = tokens.gather(1, lengths[:, None] - 1).squeeze(1) == encoding.eot_token  # (B,)
    scores = torch.zeros(len(tokens), device=tokens.device)
    batch = {name: torch.zeros_like(mask) for name in ("logprobs", "ref_logprobs", "values")}
    for rows in lengths.argsort().chunk(4):  # similar lengths together: less padding
        T = int(lengths[rows].max())
        some, inside = tokens[rows, :T], mask[rows, :T]
        scores[rows] = reward_model.score(some, lengths[rows])
        batch["logprobs"][rows, :T] = token_logprobs(policy, some, inside)
        batch["ref_logprobs"][rows, :T] = token_logprobs(reference, some, inside)
        batch["values"][rows, :T] = values_before(value_model, some, inside)
    if not cfg.score_without_eot:
        scores = torch.where(ended, scores, torch.full_like(scores, cfg.missing_eot_score))
    batch |= {"tokens": tokens, "mask": mask, "lengths": lengths, "ended": ended, "scores": scores}
    return gather_rows(batch), sampling


def update(policy, value_model, optimizers, average, batch, corpus, cfg, lr, streams):
    """Step 5: `epochs` passes over the episodes in random minibatches. Returns the means of what to look at.

    optimizers: the policy's and the value model's. average: the EMA, changed in place. lr: of the policy; with 0 only the
    value model learns. streams: random numbers for the "order" of episodes and for pretraining "pages".
    """
    device, seen, first_ratio, learn_policy = batch["tokens"].device, [], None, lr > 0
    B = len(batch["tokens"])
    for _ in range(cfg.epochs):
        for minibatch in torch.randperm(B, generator=streams["order"]).split(cfg.minibatch_size):
            minibatch = minibatch.to(device)
            count = batch["mask"][minibatch].sum()  # response tokens: every loss is a mean over them
            if cfg.ptx_coef and learn_policy:  # (episodes, examples per episode, tokens + 1)
                windows = corpus.windows(cfg.ptx_per_episode * len(minibatch), cfg.ptx_window + 1, streams["pages"])
                windows = windows.view(len(minibatch), cfg.ptx_per_episode, -1).to(device)
            sums = defaultdict(float)
            # One portion, all of the minibatch, unless it is cut into micro-batches or shared by several GPUs.
            for part, weight in portions(torch.arange(len(minibatch)), cfg):
                rows = minibatch[part]
                longest = int(batch["lengths"][rows].max())
                mb = {k: v[rows] if v.dim() == 1 else v[rows, :longest] for k, v in batch.items()}
                mask = mb["mask"]
                with torch.set_grad_enabled(learn_policy):
                    new_logprobs, entropy = token_logprobs(policy, mb["tokens"], mask, entropy=True)
                    advantages = mb["advantages"]
                    loss, stats = policy_loss(new_logprobs, mb["logprobs"], advantages, mask, cfg.clip_ratio, count)
                    stats |= {"policy_loss": loss.detach(), "entropy": masked_mean(entropy, mask, count)}
                if learn_policy:
                    (weight * loss).backward()
                    if cfg.ptx_coef:  # gradients add up in the same buffer: one step for both terms of Eq. 2
                        ptx = lm_loss(policy, windows[part].flatten(0, 1)) * len(part) / len(minibatch)
                        (weight * cfg.ptx_coef * ptx).backward()
                        stats["ptx_loss"] = ptx.detach()
                new_values = values_before(value_model, mb["tokens"], mask)
                loss = value_loss(new_values, mb["values"], mb["returns"], mask, cfg.clip_value, count)
                (weight * loss).backward()
                for name, value in (stats | {"value_loss": loss.detach()}).items():
                    sums[name] += value * (weight > 0)
            if learn_policy:
                norm = optimizer_step(optimizers[0], policy, lr, cfg.max_grad_norm)
                update_ema(average, policy, cfg.ema)
            optimizer_step(optimizers[1], value_model, cfg.value_learning_rate, cfg.max_grad_norm)
            stats = {name: float(value) for name, value in add_up(sums).items()}
            if learn_policy:
                stats["policy_grad_norm"] = norm
            first_ratio = first_ratio or stats["ratio"]
            seen.append(stats)
    return {"first_ratio": first_ratio} | {k: sum(s[k] for s in seen) / len(seen) for k in seen[-1]}


# ---------------------------------------------------------------------------------------------------- the loop


def main(cfg):
    device = set_up(cfg)
    check(cfg)
    name = cfg.name or ("ppo_ptx" if cfg.ptx_coef else "ppo")
    tokenizer, encoding = load_folder_tokenizer(cfg.data)
    out = output_folder(cfg.out)
    if finished(out, name, cfg):
        return
    init = cfg.init or out / "ppo_init.pt"
    scores = cfg.reward_model or out / "reward.pt"
    (
        policy,
        reference,
        reward_model,
        value_model,
    ) = (  # one after the other, so that shards are made before the next comes
        prepare(load_checkpoint(path, kind, device, tokenizer=tokenizer)[0], cfg)
        for path, kind in ((init, "policy"), (init, "policy"), (scores, "scalar"), (scores, "scalar"))
    )
    # π learns; π_ref is the same weights, frozen; so is r; V starts as r and learns
    for frozen in (reference, reward_model):
        frozen.requires_grad_(False)
    optimizers = adamw(policy, cfg.learning_rate), adamw(value_model, cfg.value_learning_rate)
    average = {k: v.clone() for k, v in policy.state_dict().items()}

    room = policy.config.block_size - cfg.max_new_tokens
    prompts = [
        encoding.encode_ordinary(r["prompt"]) for r in with_room(read_prompts(cfg.data, "train"), encoding, room)
    ]
    look_at = [r["prompt"] for r in with_room(read_prompts(cfg.data, "valid"), encoding, room)][: cfg.look_prompts]
    corpus = Corpus(cfg.data, "train")
    fits = cfg.ptx_window <= policy.config.block_size
    require(fits, f"--ptx_window {cfg.ptx_window} is longer than the context of {policy.config.block_size}")
    corpus_valid = Corpus(cfg.data, "valid")
    # Streams of their own: PPO and PPO-ptx of one seed see the same prompts in the same minibatches.
    streams = {"draw": generator(cfg.seed), "order": generator(cfg.seed + 10_000)}
    streams["pages"] = generator(cfg.seed + 20_000)
    queue = []  # prompts still to come in this pass over them
    log, looks = (MetricsLog(out / f"{name}{end}", cfg.resume) for end in (".jsonl", ".samples.jsonl"))
    everything = {"policy": policy, "policy_optimizer": optimizers[0], "average": average, "queue": queue}
    everything |= {"value_model": value_model, "value_optimizer": optimizers[1], "log": log, "looks": looks} | streams
    everything["read_from"] = read_from(cfg.data, init, scores)
    first = load_state(out, name, cfg, **everything)
    updates = cfg.batch_size // cfg.minibatch_size * cfg.epochs
    episodes = cfg.iterations * cfg.batch_size
    learning = (cfg.iterations - cfg.value_only_iterations) * updates
    print(
        f"{episodes:,} episodes on {len(prompts):,} prompts, {updates} updates per iteration; {learning:,} of the policy, "
        f"which waits for {cfg.value_only_iterations} iterations until the value model has learned a little"
    )

    for iteration in range(first, cfg.iterations):
        start = time.time()
        while len(queue) < cfg.batch_size:
            queue += torch.randperm(len(prompts), generator=streams["order"]).tolist()
        asked = [prompts[i] for i in queue[: cfg.batch_size]]
        del queue[: cfg.batch_size]
        batch, sampling = rollout(policy, reference, reward_model, value_model, asked, encoding, cfg, streams["draw"])
        mask = batch["mask"]
        rewards = shaped_rewards(batch["scores"], batch["logprobs"], batch["ref_logprobs"], mask, cfg.kl_coef)
        advantages, batch["returns"] = gae(rewards, batch["values"], mask, cfg.discount, cfg.lam)
        batch["advantages"] = whiten(advantages, mask) if cfg.whiten else advantages
        rolled = time.time()
        waits = iteration < cfg.value_only_iterations
        lr = 0.0 if waits else warmed_up(iteration - cfg.value_only_iterations, cfg)
        stats = update(policy, value_model, optimizers, average, batch, corpus, cfg, lr, streams)
        record = {
            "iteration": iteration,
            "score": batch["scores"].mean().item(),
            "kl": ((batch["logprobs"] - batch["ref_logprobs"]) * mask).sum(1).mean().item(),  # nats per response
            **stats,
            "explained_variance": explained_variance(batch["values"], batch["returns"], mask),
            "length": mask.sum(1).mean().item(),
            "without_eot": 1 - batch["ended"].float().mean().item(),
            "distinct_2": distinct_2(batch["tokens"], mask),
            "learning_rate": lr,
            "seconds_rollout": rolled - start,
            "seconds_sampling": sampling,
            "seconds_update": time.time() - rolled,
            "tokens_per_second_rollout": mask.sum().item() / (rolled - start),
            "tokens_per_second_update": mask.sum().item() * cfg.epochs / (time.time() - rolled),
        }
        for what in ("score", "kl", "value_loss", "policy_loss"):
            check_finite(
                record.get(what, 0.0),
                what,
                f"iteration {iteration}",
                "try a smaller --learning_rate or a larger --kl_coef",
            )
        log.write(**record)
        line(record, cfg, log)
        if iteration % cfg.look_every == 0 or iteration + 1 == cfg.iterations:
            look(policy, reference, reward_model, look_at, encoding, cfg, iteration, looks, generator(cfg.seed))
        if cfg.save_every and (iteration + 1) % cfg.save_every == 0:
            save_state(out, name, iteration + 1, cfg, **everything)

    policy.load_state_dict(average)
    forgotten = corpus_loss(policy, corpus_valid, min(128, policy.config.block_size))
    check_finite(forgotten, "the corpus loss", "the end", "try a smaller --learning_rate or a larger --kl_coef")
    print(f"corpus loss {forgotten:.3f}; saving the averaged weights")
    save_checkpoint(out / f"{name}.pt", policy, tokenizer, cfg, cfg.iterations)
    drop_states(out, name)
    print(f"wrote {out}/{name}.pt; next: python evaluate.py --data {cfg.data} --out {cfg.out}")


def check(cfg):
    """Refuse what cannot work, before anything is loaded."""
    require(
        cfg.batch_size % max(cfg.minibatch_size, 1) == 0,
        f"--batch_size {cfg.batch_size} must be a multiple of --minibatch_size {cfg.minibatch_size}",
    )
    positive = (
        "iterations",
        "batch_size",
        "minibatch_size",
        "epochs",
        "max_new_tokens",
        "look_every",
        "look_prompts",
        "ptx_per_episode",
        "ptx_window",
    )
    require(cfg.batch_size % world() == 0, f"--batch_size {cfg.batch_size} must be a multiple of {world()} processes")
    for field in positive:
        require(getattr(cfg, field) >= 1, f"--{field} {getattr(cfg, field)}: must be at least 1")
    require(cfg.kl_coef >= 0 and cfg.ptx_coef >= 0, "--kl_coef and --ptx_coef must not be negative")
    require(
        0 <= cfg.lam <= 1 and 0 <= cfg.discount <= 1 and 0 <= cfg.ema < 1,
        "--lam, --discount and --ema are shares between 0 and 1",
    )
    require(
        min(cfg.warmup_iterations, cfg.value_only_iterations) >= 0 and cfg.value_only_iterations < cfg.iterations,
        "--warmup_iterations must not be negative, --value_only_iterations from 0 to less than --iterations",
    )
    require(min(cfg.learning_rate, cfg.value_learning_rate) > 0, "--learning_rate, --value_learning_rate: positive")
    require(cfg.clip_ratio > 0 and cfg.clip_value >= 0, "--clip_ratio must be positive, --clip_value not negative")


def distinct_2(tokens, mask):
    """Share of different pairs of neighbouring response tokens among all such pairs of the batch."""
    both = (mask[:, 1:] * mask[:, :-1]).bool()
    pairs = torch.stack([tokens[:, :-1][both], tokens[:, 1:][both]], dim=1)
    return len(pairs.unique(dim=0)) / max(len(pairs), 1)


def line(r, cfg, log):
    """One aligned line per iteration; every column is explained in the README."""
    if r["iteration"] % 20 == 0:
        print(
            "iter   score    kl  pol.loss val.loss ratio1  clip   aKL  entr  expl.v  len no-eot dist2   ptx       lr  roll+upd s  tok/s roll upd   left"
        )
    ptx = f"{r['ptx_loss']:5.3f}" if "ptx_loss" in r else "    -"
    print(
        f"{r['iteration']:4} {r['score']:+7.3f} {r['kl']:5.2f} {r['policy_loss']:+9.4f} {r['value_loss']:8.3f} {r['first_ratio']:6.4f} "
        f"{r['clip_fraction']:5.3f} {r['approx_kl']:5.3f} {r['entropy']:5.2f} {r['explained_variance']:+7.2f} {r['length']:4.1f} "
        f"{r['without_eot']:6.3f} {r['distinct_2']:5.3f} {ptx} {r['learning_rate']:8.1e}  {r['seconds_rollout']:4.2f}+{r['seconds_update']:4.2f}  "
        f"{r['tokens_per_second_rollout']:6,.0f} {r['tokens_per_second_update']:6,.0f}  {log.left(r['iteration'] + 1, cfg.iterations)}",
        flush=True,
    )


@torch.no_grad()
def look(policy, reference, reward_model, prompts, encoding, cfg, iteration, looks, draw):
    """Answer validation prompts, keep the answers with score and KL (evaluate.py judges them), print two."""
    ids = [encoding.encode_ordinary(p) for p in prompts]
    sampler = for_sampling(policy, cfg)
    tokens, lengths, mask = generate(sampler, ids, cfg.max_new_tokens, encoding.eot_token, 1.0, draw)
    scores = reward_model.score(tokens, lengths).tolist()
    kl = ((token_logprobs(policy, tokens, mask) - token_logprobs(reference, tokens, mask)) * mask).sum(1).tolist()
    for i, prompt in enumerate(prompts):
        row = tokens[i, len(ids[i]) : lengths[i]].tolist()
        text = encoding.decode(row[:-1] if row[-1] == encoding.eot_token else row)
        looks.write(iteration=iteration, prompt=prompt, completion=text, score=scores[i], kl=kl[i])
        if i in (iteration % len(prompts), (iteration + 1) % len(prompts)):
            print(f"       {prompt.strip()!r} -> {text!r}  score {scores[i]:+.2f}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
