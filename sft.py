r"""Step 1: how does it imitate? Supervised fine-tuning on demonstrations (paper §3.5, App. C.1), and PPO's start (C.3).

    python sft.py                                                                # -> sft.pt
    python sft.py --name ppo_init --epochs 2 --pretrain_mix 0.1 --dropout 0 --learning_rate 1e-3
                                                                                 # -> ppo_init.pt
    python sft.py --epochs 0 --reward_model out/run/reward.pt                    # -> sft_best.pt

Two models come of it, as in the paper: the SFT baseline, trained longer, and the model that PPO starts from, trained
for two epochs at a higher rate, with some pretraining loss so that it forgets less. (The paper gives no dropout for that
one, and chooses it by its loss on demonstrations and on pretraining text: without dropout both are lower, .50 and .91
against .61 and 1.02 in the village.)

Minimises -log p(completion, end-of-text | prompt), averaged over the response tokens of a batch. The prompt carries no
loss (the paper is silent; ours). The loss starts near the pretrained model's on such text, not at ln(vocabulary).

The paper keeps the checkpoint whose answers to validation prompts the reward model scores highest, not the one of lowest
validation loss: that overfits after an epoch while people still like the later ones better. Every epoch is kept, so
this choice can be made once there is a reward model (third command).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from data.folder import Corpus, load_folder_tokenizer, read_demonstrations, read_prompts, with_room
from machine import (
    Training,
    add_up,
    drop_states,
    finished,
    for_sampling,
    load_state,
    portions,
    prepare,
    read_from,
    save_state,
    set_up,
    world,
)
from model import (
    encode_answer,
    load_checkpoint,
    masked_mean,
    pad,
    respond,
    response_mask,
    save_checkpoint,
    score_answers,
    token_logprobs,
)
from plumbing import (
    MetricsLog,
    adamw,
    batches_by_length,
    check_finite,
    command_line,
    cosine_to_tenth,
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
    init: str = ""  # checkpoint to start from, or gpt2, gpt2-medium, …; default: OUT/base.pt
    name: str = "sft"  # writes OUT/NAME.pt, OUT/NAME.jsonl, and NAME.epoch-N.pt per epoch
    epochs: int = 3  # passes over the demonstrations; 0 = only choose by --reward_model          paper: 16
    batch_size: int = 32  # demonstrations per step                                               paper: 32 (175B: 8)
    learning_rate: float = 4e-4  # peak, cosine to a tenth, no warm-up                            paper: 9.65e-6 (1.3B)
    dropout: float = 0.2  # residual dropout                                                      paper: 0.2
    weight_decay: float = 0.0  # the paper is silent
    max_grad_norm: float = 1.0  # the paper is silent
    pretrain_mix: float = 0.0  # share of the loss that is pretraining loss       paper: 0 for SFT, 0.1 for PPO's start
    reward_model: str = ""  # choose among the epochs by this model's score on validation prompts
    choose_prompts: int = 128  # validation prompts for that choice
    max_new_tokens: int = 40  # longest sampled response
    seed: int = 0  # of data order and dropout


def encode_demonstrations(records, encoding, block_size):
    """-> [(ids of prompt + completion + end-of-text, length of the prompt)]; drops and counts what does not fit."""
    rows = []
    for record in records:
        prompt, answer = encode_answer(encoding, record["prompt"], record["completion"])
        if len(prompt + answer) <= block_size:
            rows.append((prompt + answer, len(prompt)))
    if len(rows) < len(records):
        print(
            f"dropped {len(records) - len(rows)} of {len(records)} demonstrations longer than the context of {block_size} tokens"
        )
    require(rows, f"no demonstration fits into the context of {block_size} tokens")
    return rows


def response_tokens(rows):
    return sum(len(ids) - n for ids, n in rows)


def sft_loss(model, rows, device, count=None):
    """Mean of -log p over the response tokens of a batch. rows: [(ids, prompt length)] -> scalar.

    count: the response tokens of the whole minibatch, where the rows are a part of it.
    """
    tokens, lengths = pad([ids for ids, _ in rows], device)  # (B, T), (B,)
    prompt_lengths = torch.tensor([n for _, n in rows], device=device)
    mask = response_mask(prompt_lengths, lengths, tokens.size(1))  # (B, T)
    return -masked_mean(token_logprobs(model, tokens, mask), mask, count and torch.tensor(count, device=device))


@torch.no_grad()
def demonstration_loss(model, rows, device, batch_size=64):
    """The same loss on held-out demonstrations, every token counted once."""
    model.eval()
    count = response_tokens(rows)
    parts = (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
    return sum(sft_loss(model, part, device, count).item() for part in parts)


@torch.no_grad()
def mean_reward(model, reward_model, encoding, prompts, cfg):
    """Mean reward-model score of one T = 1 sample per prompt; the same random stream for every model."""
    answers = respond(for_sampling(model, cfg), encoding, prompts, cfg.max_new_tokens, generator=generator(cfg.seed))
    scores = [s for s in score_answers(reward_model, encoding, prompts, answers) if not math.isnan(s)]
    return sum(scores) / max(len(scores), 1)


def choose_by_reward(cfg, out, tokenizer, encoding, device):
    """Paper App. C.1: of all epochs, the one with the highest reward-model score on validation prompts -> NAME_best.pt."""
    reward_model, _, _ = load_checkpoint(cfg.reward_model, "scalar", device, tokenizer=tokenizer)
    prepare(reward_model, cfg, shard=False)
    paths = sorted(out.glob(f"{cfg.name}.epoch-*.pt"), key=lambda p: int(p.stem.rsplit("-", 1)[1]))
    require(paths, f"{out}/{cfg.name}.epoch-*.pt: none found; train first, e.g. with --epochs 3")
    prompts = read_prompts(cfg.data, "valid")
    best = None
    for path in paths:
        model, _, checkpoint = load_checkpoint(path, "policy", device, tokenizer=tokenizer)
        prepare(model, cfg, shard=False)
        prompts = with_room(prompts, encoding, model.config.block_size - cfg.max_new_tokens)
        asked = [r["prompt"] for r in prompts[: cfg.choose_prompts]]
        score = mean_reward(model, reward_model, encoding, asked, cfg)
        print(
            f"{path.name}: reward {score:+.3f} on {min(len(prompts), cfg.choose_prompts)} validation prompts, loss {checkpoint['valid_loss']:.3f}"
        )
        if best is None or score > best[0]:
            best = score, path, model, checkpoint
    score, path, model, checkpoint = best
    save_checkpoint(
        out / f"{cfg.name}_best.pt",
        model,
        tokenizer,
        checkpoint["config"],
        checkpoint["step"],
        valid_loss=checkpoint["valid_loss"],
        reward=score,
    )
    print(f"wrote {out}/{cfg.name}_best.pt, from {path.name}")


def main(cfg):
    device = set_up(cfg)
    require(cfg.epochs >= 0 and cfg.batch_size >= 1, "--epochs must not be negative, --batch_size at least 1")
    require(
        min(cfg.max_new_tokens, cfg.choose_prompts) >= 1, "--max_new_tokens and --choose_prompts must be at least 1"
    )
    require(cfg.epochs or cfg.reward_model, "--epochs 0 only chooses among kept epochs: pass --reward_model too")
    require(0 <= cfg.pretrain_mix < 1, f"--pretrain_mix {cfg.pretrain_mix}: a share from 0 up to, not including, 1")
    require(0 <= cfg.dropout < 1, f"--dropout {cfg.dropout}: a share from 0 up to, not including, 1")
    tokenizer, encoding = load_folder_tokenizer(cfg.data)
    out = output_folder(cfg.out)
    if cfg.epochs:
        train(cfg, out, tokenizer, encoding, device)
    if cfg.reward_model:
        choose_by_reward(cfg, out, tokenizer, encoding, device)


def train(cfg, out, tokenizer, encoding, device):
    if finished(out, cfg.name, cfg):
        return
    model, _, _ = load_checkpoint(cfg.init or out / "base.pt", "policy", device, cfg.dropout, tokenizer)
    block_size = model.config.block_size
    rows = encode_demonstrations(read_demonstrations(cfg.data, "train"), encoding, block_size)
    valid = encode_demonstrations(read_demonstrations(cfg.data, "valid"), encoding, block_size)
    corpus, valid_corpus = Corpus(cfg.data, "train"), Corpus(cfg.data, "valid")
    prepare(model, cfg)
    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)
    order = generator(cfg.seed)
    steps_per_epoch = -(-len(rows) // cfg.batch_size)
    steps = cfg.epochs * steps_per_epoch
    window = min(128, block_size)  # tokens of a pretraining example and of the corpus loss
    log = MetricsLog(out / f"{cfg.name}.jsonl", cfg.resume)
    epoch = {"number": 0, "todo": None, "loss": 0.0, "tokens": 0}  # todo: batches still to come
    everything = {"model": model, "optimizer": optimizer, "order": order, "log": log, "epoch": epoch}
    everything["read_from"] = read_from(cfg.data)
    step = load_state(out, cfg.name, cfg, **everything)
    if step == 0:
        for old in (*Path(out).glob(f"{cfg.name}.epoch-*.pt"), Path(out) / f"{cfg.name}_best.pt"):
            old.unlink(missing_ok=True)
    ids, n = rows[0]
    print(
        f"{len(rows)} demonstrations, {steps} steps; the first, with its loss on what stands after |:\n  "
        + encoding.decode(ids[:n]).replace("\n", "\n  ")
        + "|"
        + encoding.decode(ids[n:])
    )
    print(f"before step {step}: loss {demonstration_loss(model, valid, device):.3f} on validation demonstrations")

    while epoch["number"] < cfg.epochs:
        if epoch["todo"] is None:
            epoch |= {"todo": batches_by_length([len(ids) for ids, _ in rows], cfg.batch_size, order)}
        while epoch["todo"]:
            model.train()
            batch = [rows[i] for i in epoch["todo"].pop()]
            count = response_tokens(batch)
            for part, weight in portions(batch, cfg):
                loss = sft_loss(model, part, device, count)
                (weight * (1 - cfg.pretrain_mix) * loss).backward()
                epoch["loss"] += loss.item() * count * (weight > 0)
            epoch["tokens"] += count
            if cfg.pretrain_mix:  # "10 % pretraining data" (C.3) as 10 % of the loss, on a tenth of the examples: ours
                windows = corpus.windows(max(1, round(cfg.pretrain_mix * cfg.batch_size)), window, order).to(device)
                for part, weight in portions(windows, cfg):
                    share = len(part) / len(windows)
                    (weight * share * cfg.pretrain_mix * lm_loss(model, part)).backward()
            lr = cosine_to_tenth(step, steps, cfg.learning_rate)
            norm = optimizer_step(optimizer, model, lr, cfg.max_grad_norm)
            check_finite(norm, "the gradient", f"step {step}", "try a smaller --learning_rate")
            step += 1
            if cfg.save_every and step % cfg.save_every == 0:
                epoch["loss"] = add_up({"loss": epoch["loss"]})["loss"] / world()
                save_state(out, cfg.name, step, cfg, **everything)
        epoch["number"] += 1
        loss = float(add_up({"loss": epoch["loss"]})["loss"]) / epoch["tokens"]
        epoch |= {"todo": None, "loss": 0.0, "tokens": 0}
        valid_loss = demonstration_loss(model, valid, device)
        check_finite(valid_loss, "the validation loss", f"epoch {epoch['number']}", "try a smaller --learning_rate")
        forgotten = corpus_loss(model, valid_corpus, window, batches=4)
        n, lr = epoch["number"], cosine_to_tenth(step - 1, steps, cfg.learning_rate)
        log.write(epoch=n, step=step, loss=loss, valid_loss=valid_loss, corpus_loss=forgotten, lr=lr)
        print(
            f"epoch {n}/{cfg.epochs}  loss {loss:.3f}  valid {valid_loss:.3f}  corpus {forgotten:.3f}  "
            f"lr {lr:.1e}  left {log.left(n, cfg.epochs)}",
            flush=True,
        )
        for path in (out / f"{cfg.name}.epoch-{n}.pt", out / f"{cfg.name}.pt")[: 1 + (n == cfg.epochs)]:
            save_checkpoint(path, model, tokenizer, cfg, step, valid_loss=valid_loss)
    prompts = [r["prompt"] for r in read_prompts(cfg.data, "valid")[:3]]
    room = block_size - cfg.max_new_tokens
    prompts = [p for p in prompts if len(encoding.encode_ordinary(p)) <= room]
    for prompt, (text, _) in zip(
        prompts,
        respond(for_sampling(model, cfg), encoding, prompts, cfg.max_new_tokens, generator=generator(cfg.seed)),
    ):
        print(f"  {prompt.strip()!r} -> {text!r}")
    drop_states(out, cfg.name)
    then = (
        "reward.py"
        if cfg.pretrain_mix
        else "sft.py --name ppo_init --epochs 2 --pretrain_mix 0.1 --dropout 0 --learning_rate 1e-3"
    )
    print(f"wrote {out}/{cfg.name}.pt; next: python {then} --data {cfg.data} --out {cfg.out}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
