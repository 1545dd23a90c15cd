"""Step 0: train a GPT on the corpus by next-token prediction. What is it before anyone asks it anything?

    python pretrain.py           # -> base.pt; about 2 minutes on 2 CPU cores

Minimises -log p(token | tokens before it), averaged over all tokens of random examples of the corpus. Every example
begins where a document does, as every prompt will begin at position 0; most are short, every fourth step they fill the
context, as few-shot prompts do. An untrained model starts at ln(vocabulary): 7.2 for the village's 1,360 tokens, 10.8
for GPT-2's.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from core.batches import generator
from core.checkpoint import load_policy, save_checkpoint
from core.config import Fraction, PositiveFloat, PositiveInt, Seed, Training, command_line, require
from core.device import configure_model, sampling_copy, set_up
from core.distributed import all_reduce_sum, micro_batches
from core.log import Log
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.output import output_folder
from core.sampling import generate
from core.training_state import TrainingState
from data.folder import Corpus, load_tokenizer
from model import GPT, SIZES, lm_loss


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder (data/folder.py)
    out: str = "out/run"  # run folder
    name: str = "base"  # writes OUT/NAME.pt; the log is OUT/pretrain.jsonl for base, OUT/NAME.jsonl for others
    init: str = ""  # go on from this policy, on other pages, instead of from random weights
    size: Literal[tuple(SIZES)] = "village"  # shape of the model: village, gpt2, gpt2-medium, …, gpt3-175b
    n_layer: int = 0  # replaces the size's, if not 0
    n_head: int = 0  # replaces the size's, if not 0
    n_embd: int = 0  # replaces the size's, if not 0
    block_size: int = 0  # context in tokens; replaces the size's, if not 0
    dropout: Fraction = 0.0  # while pretraining
    steps: PositiveInt = 4000  # optimizer steps
    batch_size: PositiveInt = 5  # examples per step that fill the context, or as many tokens in shorter ones
    window: int = 40  # tokens of a short example, at most the context; 0 = all fill the context
    long_every: PositiveInt = 4  # every so many steps the examples fill the context
    anywhere: bool = False  # examples begin at any token instead of where a document does
    learning_rate: PositiveFloat = 3e-3  # peak                               GPT-3 1.3B: 2e-4
    warmup: int = 50  # steps from 0 to the peak, then cosine to a tenth
    weight_decay: float = 0.1  # on matrices, as GPT-3
    max_grad_norm: PositiveFloat = 1.0  # as GPT-3
    eval_every: PositiveInt = 600  # steps between validation losses
    seed: Seed = 0  # of weights and data order


def learning_rate(step, cfg):
    """Linear from 0 to the peak, then cosine to a tenth of it."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    return cosine_to_tenth(step - cfg.warmup, cfg.steps - cfg.warmup, cfg.learning_rate)


@torch.no_grad()
def corpus_loss(model, corpus, window=0, batches=8, batch_size=16):
    """Mean next-token loss on a fixed sample of a corpus split, in nats per token.

    window: tokens that are predicted per example; 0 = 128, or as many as the context has room for.
    """
    model.eval()
    window = window or min(128, model.config.block_size - 1)
    windows = corpus.fixed_windows(window + 1, batches * batch_size).to(model.transformer.wte.weight.device)
    total = sum(lm_loss(model, batch).sum().item() for batch in windows.split(batch_size))
    return total / windows[:, 1:].numel()


def main(cfg):
    device = set_up(cfg)
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    train, valid = Corpus(cfg.data, "train", cfg.anywhere), Corpus(cfg.data, "valid")
    model_config = shape_of_model(cfg, tokenizer.n_vocab)
    if cfg.init:
        model = load_policy(cfg.init, cfg, device, tokenizer_spec, cfg.dropout)
        model_config = model.config
    else:
        model = configure_model(GPT(model_config).to(device), cfg)
    context = model_config.block_size
    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)

    out = output_folder(cfg.out)
    overwrites = cfg.init and Path(cfg.init).resolve() == (out / f"{cfg.name}.pt").resolve()
    require(not overwrites, f"--init {cfg.init}: would be overwritten; give the new model another --name")
    log_name = "pretrain" if cfg.name == "base" else cfg.name
    log = Log(out / f"{log_name}.jsonl", cfg.steps, "loss valid_loss learning_rate grad_norm")
    inputs = [cfg.data, cfg.init] if cfg.init else [cfg.data]
    state = TrainingState(out, cfg.name, cfg, inputs, model=model, optimizer=optimizer, log=log)
    if state.already_finished():
        return
    first_step = state.resume()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {len(train.ids):,} training tokens; ", end="")
    print(f"an untrained model's loss is ln {tokenizer.n_vocab:,} = {math.log(tokenizer.n_vocab):.2f}")

    for step in range(first_step, cfg.steps):
        model.train()
        short = cfg.window and (step + 1) % cfg.long_every
        window = min(cfg.window, context) if short else context
        count = cfg.batch_size * context // window
        windows = train.windows(count, window + 1, generator(cfg.seed, "pretraining", step)).to(device)
        n_tokens, metrics = windows[:, 1:].numel(), {"loss": 0.0}
        for micro_batch in micro_batches(windows, cfg):
            loss = lm_loss(model, micro_batch).sum() / n_tokens
            loss.backward()
            metrics["loss"] += loss.detach()
        metrics = all_reduce_sum(metrics)
        metrics["learning_rate"] = learning_rate(step, cfg)
        metrics["grad_norm"] = optimizer_step(optimizer, model, metrics["learning_rate"], cfg.max_grad_norm)
        if (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
            metrics["valid_loss"] = corpus_loss(model, valid, context, batches=4)
        log(step + 1, **metrics)
        state.save_if_due(step + 1)

    print_sample(model, tokenizer, train, cfg)
    save_checkpoint(out / f"{cfg.name}.pt", model, tokenizer_spec, cfg, cfg.steps, inputs=state.inputs)
    state.finish()
    print(f"wrote {out}/{cfg.name}.pt; next: python sft.py --data {cfg.data} --out {cfg.out}")


def shape_of_model(cfg, vocab_size):
    """The GPTConfig that --size, --n_layer, --n_head, --n_embd and --block_size ask for."""
    names = ("n_layer", "n_head", "n_embd", "block_size")
    changed = {name: getattr(cfg, name) for name in names if getattr(cfg, name)}
    require(not (cfg.init and changed), "--init brings its own shape: leave out --" + ", --".join(names))
    shape = replace(SIZES[cfg.size], **changed, vocab_size=vocab_size, dropout=cfg.dropout)
    require(shape.block_size >= 2, f"--block_size {shape.block_size}: at least 2, a token and the one that it predicts")
    require(shape.n_embd % shape.n_head == 0, f"--n_embd {shape.n_embd}: must be a multiple of --n_head {shape.n_head}")
    return shape


def print_sample(model, tokenizer, corpus, cfg, prompt_tokens=6):
    """Let the model go on from the first words of the corpus."""
    beginning = corpus.ids[: min(prompt_tokens, model.config.block_size - 1)].tolist()
    n = min(60, model.config.block_size - len(beginning))
    rng = generator(cfg.seed, "sample")
    tokens, lengths, _ = generate(sampling_copy(model, cfg), [beginning], n, tokenizer.eot_token, generator=rng)
    text = tokenizer.decode(tokens[0, : lengths[0]].tolist())
    print("a page it makes up:\n  " + text.replace("\n", "\n  "))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
