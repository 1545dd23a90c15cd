"""Step 0: what is the model before anyone asks it anything? Next-token prediction on the corpus.

    python pretrain.py           # -> base.pt; about 3 minutes on 2 CPU cores

Minimises -log p(token | tokens before it), averaged over all tokens of random windows of the corpus. An untrained model
starts at ln(vocabulary): 7.2 for the village's 1,360 tokens, 10.8 for GPT-2's 50,257.
"""

import math
import time
from dataclasses import dataclass, replace

import torch

from data.folder import Corpus, load_folder_tokenizer
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
)
from model import GPT, SIZES, generate, load_checkpoint, logprobs_of, save_checkpoint
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


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder (data/folder.py)
    out: str = "out/run"  # run folder
    name: str = "base"  # writes OUT/NAME.pt; the log is OUT/pretrain.jsonl for base, OUT/NAME.jsonl for others
    init: str = ""  # go on from this policy, on other pages, instead of from random weights
    size: str = "village"  # shape of the model: village, gpt2, gpt2-medium, …, gpt3-175b
    n_layer: int = 0  # replaces the size's, if not 0
    n_head: int = 0  # replaces the size's, if not 0
    n_embd: int = 0  # replaces the size's, if not 0
    block_size: int = 0  # context in tokens; replaces the size's, if not 0
    dropout: float = 0.0  # while pretraining
    steps: int = 2400  # optimizer steps
    batch_size: int = 5  # windows per step
    window: int = 0  # tokens per window; 0 = the whole context
    learning_rate: float = 2.5e-3  # peak                                        GPT-3 1.3B: 2e-4
    warmup: int = 50  # steps from 0 to the peak, then cosine to a tenth
    weight_decay: float = 0.1  # on matrices, as GPT-3
    max_grad_norm: float = 1.0  # as GPT-3
    eval_every: int = 600  # steps between validation losses
    seed: int = 0  # of weights and data order


def lm_loss(model, windows):
    """Mean next-token loss (nats) of windows of corpus tokens (B, T+1): all but the last predict all but the first."""
    hidden = model(windows[:, :-1])  # (B, T, C)
    return -logprobs_of(model, hidden.flatten(0, 1), windows[:, 1:].flatten())[0].mean()


@torch.no_grad()
def corpus_loss(model, corpus, window, batches=8, batch_size=16):
    """Loss on a fixed sample of a corpus split, in nats per token."""
    model.eval()
    windows = corpus.consecutive(window + 1, batches * batch_size).to(model.transformer.wte.weight.device)
    losses = [lm_loss(model, part).item() * len(part) for part in windows.split(batch_size)]
    return sum(losses) / len(windows)


def learning_rate(step, cfg):
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    progress = (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1)
    return cfg.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def main(cfg):
    device = set_up(cfg)
    require(cfg.size in SIZES, f"--size {cfg.size}: choose from {', '.join(SIZES)}")
    positive = min(cfg.steps, cfg.batch_size, cfg.eval_every) >= 1 and cfg.window >= 0
    require(positive, "--steps, --batch_size, --eval_every must be positive, --window not negative")
    require(0 <= cfg.dropout < 1, f"--dropout {cfg.dropout}: a share from 0 up to, not including, 1")
    tokenizer, encoding = load_folder_tokenizer(cfg.data)
    train, valid = Corpus(cfg.data, "train"), Corpus(cfg.data, "valid")
    shape = {k: getattr(cfg, k) for k in ("n_layer", "n_head", "n_embd", "block_size") if getattr(cfg, k)}
    model_config = replace(SIZES[cfg.size], **shape, vocab_size=encoding.n_vocab, dropout=cfg.dropout)
    require(
        not (cfg.init and shape), "--init brings its own shape: leave out --n_layer, --n_head, --n_embd, --block_size"
    )
    if cfg.init:
        model = load_checkpoint(cfg.init, "policy", device, cfg.dropout, tokenizer)[0]
        model_config = model.config
    window = cfg.window or model_config.block_size
    require(
        window <= model_config.block_size,
        f"--window {window} is longer than the context of {model_config.block_size}",
    )
    out = output_folder(cfg.out)
    if finished(out, cfg.name, cfg):
        return
    if not cfg.init:
        model = GPT(model_config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    prepare(model, cfg)
    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)
    order = generator(cfg.seed)
    log = MetricsLog(out / ("pretrain.jsonl" if cfg.name == "base" else f"{cfg.name}.jsonl"), cfg.resume)
    everything = {"model": model, "optimizer": optimizer, "order": order, "log": log}
    everything["read_from"] = read_from(cfg.data)
    first = load_state(out, cfg.name, cfg, **everything)
    print(
        f"{parameters / 1e6:.2f}M parameters, {len(train.ids):,} training tokens, untrained loss {math.log(encoding.n_vocab):.2f}"
    )

    start = time.time()
    for step in range(first, cfg.steps):
        model.train()
        windows, loss = train.windows(cfg.batch_size, window + 1, order).to(device), 0.0  # (B, T+1)
        for part, weight in portions(windows, cfg):
            share = lm_loss(model, part) * len(part) / len(windows)
            (weight * share).backward()
            loss += share.detach() * (weight > 0)
        lr = learning_rate(step, cfg)
        norm = optimizer_step(optimizer, model, lr, cfg.max_grad_norm)
        check_finite(norm, "the gradient", f"step {step}", "try a smaller --learning_rate")
        if (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps or step == 0:
            loss = float(add_up({"loss": loss})["loss"])
            check_finite(loss, "the loss", f"step {step}", "try a smaller --learning_rate")
            held_out = corpus_loss(model, valid, window, batches=4)
            check_finite(held_out, "the validation loss", f"step {step}", "try a smaller --learning_rate")
            speed = (step + 1 - first) * cfg.batch_size * window / (time.time() - start)
            log.write(step=step, loss=loss, valid_loss=held_out, lr=lr, grad_norm=norm, tokens_per_second=speed)
            print(
                f"step {step + 1:5}/{cfg.steps}  loss {loss:.3f}  valid {held_out:.3f}  lr {lr:.1e}  "
                f"{speed:,.0f} tokens/s  left {log.left(step + 1, cfg.steps)}",
                flush=True,
            )
        if cfg.save_every and (step + 1) % cfg.save_every == 0:
            save_state(out, cfg.name, step + 1, cfg, **everything)
    beginning = train.ids[:6].tolist()
    tokens, lengths, _ = generate(
        for_sampling(model, cfg),
        [beginning],
        min(60, model_config.block_size - 6),
        encoding.eot_token,
        generator=generator(cfg.seed),
    )
    print("a page it makes up:\n  " + encoding.decode(tokens[0, : lengths[0]].tolist()).replace("\n", "\n  "))
    save_checkpoint(out / f"{cfg.name}.pt", model, tokenizer, cfg, cfg.steps)
    drop_states(out, cfg.name)
    print(f"wrote {out}/{cfg.name}.pt; next: python sft.py --data {cfg.data} --out {cfg.out}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
