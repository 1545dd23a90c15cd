"""Step 1: supervised fine-tuning on demonstrations (§3.5, App. C.1), also of the model that PPO starts from (App. C.3).

    python sft.py                                                                # -> sft.pt
    python sft.py --name ppo_init --epochs 2 --pretrain_mix 0.1 --dropout 0 --learning_rate 1e-3
                                                                                 # -> ppo_init.pt
    python sft.py --epochs 0 --reward_model out/run/reward.pt                    # -> sft_best.pt

Two models come of it, as in the paper: the SFT baseline (paper: 16 epochs; here 2), and the model that PPO starts from
(2 epochs, with some pretraining loss so that it forgets less). The paper gives no dropout for the second, and chooses
it by its losses on demonstrations and on pretraining text; here both are lower without dropout and at a higher rate.

Minimises -log p(completion, end-of-text | prompt), averaged over the response tokens of a batch. The prompt carries no
loss (the paper is silent; ours). The loss starts near the pretrained model's on such text, not at ln(vocabulary).

The paper keeps the checkpoint whose answers to validation prompts the reward model scores highest, not the one of
lowest validation loss: that overfits after an epoch while people still like the later ones better. Every epoch is kept,
so this choice can be made once there is a reward model (third command).
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from core.batches import ShuffledBatches, generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint, save_checkpoint
from core.config import Fraction, PositiveFloat, PositiveInt, Seed, Training, command_line, require
from core.device import sampling_copy, set_up
from core.distributed import all_reduce_sum, micro_batches
from core.log import Log
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.output import output_folder
from core.text import encode_answer, mean_score, pad_responses, respond
from core.training_state import TrainingState
from core.watch import print_answers, print_demonstration
from data.folder import Corpus, load_tokenizer, read_demonstrations, read_prompts, with_room
from model import lm_loss, token_logprobs
from pretrain import corpus_loss


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder
    init: str = ""  # checkpoint to start from, or gpt2, gpt2-medium, …; default: OUT/base.pt
    name: str = "sft"  # writes OUT/NAME.pt, OUT/NAME.jsonl, and NAME.epoch-N.pt per epoch
    epochs: int = 2  # passes over the demonstrations; 0 = only choose by --reward_model          paper: 16
    batch_size: PositiveInt = 32  # demonstrations per step                                       paper: 32 (175B: 8)
    learning_rate: PositiveFloat = 4e-4  # peak, cosine to a tenth     paper, 1.3B: 9.65e-6, and 5e-6 for PPO's start
    dropout: Fraction = 0.2  # residual dropout                                                   paper: 0.2
    weight_decay: float = 0.0  # the paper is silent
    max_grad_norm: PositiveFloat = 1.0  # the paper is silent
    pretrain_mix: Fraction = 0.0  # share of the loss that is pretraining loss    paper: 0 for SFT, 0.1 for PPO's start
    reward_model: str = ""  # choose among the epochs by this model's score on validation prompts
    choose_prompts: PositiveInt = 128  # validation prompts for that choice
    max_new_tokens: PositiveInt = 40  # longest sampled response
    seed: Seed = 0  # of data order and dropout


# ---------------------------------------------------------------------------------------------------- the objective


def sft_loss(model, tokens, mask):
    """-log p of every response token, 0 elsewhere. tokens, mask: (B, T) -> (B, T)."""
    return -token_logprobs(model, tokens, mask)


def response_tokens(rows):
    """How many tokens of these rows carry loss. rows: [(ids of prompt and response, length of the prompt)]"""
    return sum(len(ids) - prompt_length for ids, prompt_length in rows)


@torch.no_grad()
def demonstration_loss(model, rows, device, batch_size=64):
    """Mean loss per response token of held-out demonstrations."""
    model.eval()
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    total = sum(sft_loss(model, *pad_responses(batch, device)).sum().item() for batch in batches)
    return total / response_tokens(rows)


def encode_demonstrations(records, tokenizer, block_size):
    """-> [(ids of prompt + completion + end-of-text, length of the prompt)]; drops and counts what does not fit."""
    rows = []
    for record in records:
        prompt, response = encode_answer(tokenizer, record["prompt"], record["completion"])
        if len(prompt + response) <= block_size:
            rows.append((prompt + response, len(prompt)))
    if len(rows) < len(records):
        dropped = len(records) - len(rows)
        print(f"dropped {dropped} of {len(records)} demonstrations longer than the context of {block_size} tokens")
    require(rows, f"no demonstration fits into the context of {block_size} tokens")
    return rows


# ---------------------------------------------------------------------------------------------------- training


def main(cfg):
    require(cfg.epochs or cfg.reward_model, "--epochs 0 only chooses among kept epochs: pass --reward_model too")
    device, out = set_up(cfg), output_folder(cfg.out)
    if cfg.epochs:
        train(cfg, device, out)
    if cfg.reward_model:
        choose_by_reward(cfg, device, out)


def train(cfg, device, out):
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    init = cfg.init or out / "base.pt"
    model = load_policy(init, cfg, device, tokenizer_spec, cfg.dropout)
    block_size = model.config.block_size
    rows = encode_demonstrations(read_demonstrations(cfg.data, "train"), tokenizer, block_size)
    valid = encode_demonstrations(read_demonstrations(cfg.data, "valid"), tokenizer, block_size)
    corpus, valid_corpus = Corpus(cfg.data, "train"), Corpus(cfg.data, "valid")
    window = min(128, block_size - 1)  # tokens of a pretraining example
    n_windows = max(1, round(cfg.pretrain_mix * cfg.batch_size))

    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)
    batches = ShuffledBatches([len(ids) for ids, _ in rows], cfg.batch_size, cfg.seed)
    steps = cfg.epochs * len(batches)
    log = Log(
        out / f"{cfg.name}.jsonl", steps, "epoch loss pretrain_loss valid_loss corpus_loss learning_rate grad_norm"
    )
    state = TrainingState(out, cfg.name, cfg, [cfg.data, init], model=model, optimizer=optimizer, log=log)
    if state.already_finished():
        return
    first_step = state.resume()
    if first_step == 0:
        remove_checkpoints(out, cfg.name)
    print_demonstration(rows, tokenizer)
    loss = demonstration_loss(model, valid, device)
    print(f"{len(rows)} demonstrations, {steps} steps; before step {first_step + 1} the validation loss is {loss:.3f}")

    for step in range(first_step, steps):
        model.train()
        batch, metrics = [rows[i] for i in batches[step]], defaultdict(float)
        n_tokens = response_tokens(batch)
        for micro_batch in micro_batches(batch, cfg):
            loss = sft_loss(model, *pad_responses(micro_batch, device)).sum() / n_tokens
            ((1 - cfg.pretrain_mix) * loss).backward()
            metrics["loss"] += loss.detach()
        if cfg.pretrain_mix:  # "10 % pretraining data" (C.3) as 10 % of the loss, on a tenth of the examples: ours
            windows = corpus.windows(n_windows, window + 1, generator(cfg.seed, "pretraining", step)).to(device)
            n_tokens = windows[:, 1:].numel()
            for micro_batch in micro_batches(windows, cfg):
                loss = lm_loss(model, micro_batch).sum() / n_tokens
                (cfg.pretrain_mix * loss).backward()
                metrics["pretrain_loss"] += loss.detach()
        metrics = all_reduce_sum(metrics)
        metrics["learning_rate"] = cosine_to_tenth(step, steps, cfg.learning_rate)
        metrics["grad_norm"] = optimizer_step(optimizer, model, metrics["learning_rate"], cfg.max_grad_norm)
        if (step + 1) % len(batches) == 0:
            metrics["epoch"] = epoch = (step + 1) // len(batches)
            metrics["valid_loss"] = demonstration_loss(model, valid, device)
            metrics["corpus_loss"] = corpus_loss(model, valid_corpus, window, batches=4)
            path = out / f"{cfg.name}.epoch-{epoch}.pt"
            save_checkpoint(path, model, tokenizer_spec, cfg, step + 1, valid_loss=metrics["valid_loss"])
        log(step + 1, **metrics)
        state.save_if_due(step + 1)

    print_answers(model, tokenizer, cfg)
    results = {"valid_loss": demonstration_loss(model, valid, device), "inputs": state.inputs}
    save_checkpoint(out / f"{cfg.name}.pt", model, tokenizer_spec, cfg, steps, **results)
    state.finish()
    print(f"wrote {out}/{cfg.name}.pt; next: python {next_command(cfg)} --data {cfg.data} --out {cfg.out}")


def choose_by_reward(cfg, device, out):
    """Of all epochs keep the one of highest reward-model score on validation prompts -> NAME_best.pt (App. C.1)."""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    reward_model = load_scalar_model(cfg.reward_model, cfg, device, tokenizer_spec, sharded=False)
    paths = sorted(out.glob(f"{cfg.name}.epoch-*.pt"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    require(paths, f"{out}/{cfg.name}.epoch-*.pt: none found; train first, e.g. with --epochs 3")
    scores = []
    for path in paths:
        model = load_policy(path, cfg, device, tokenizer_spec, sharded=False)
        room = model.config.block_size - cfg.max_new_tokens
        prompts = with_room(read_prompts(cfg.data, "valid"), tokenizer, room)[: cfg.choose_prompts]
        scores.append(mean_sample_score(model, reward_model, tokenizer, [r["prompt"] for r in prompts], cfg))
        print(f"{path.name}: mean score {scores[-1]:+.3f} on {len(prompts)} validation prompts", end=", ")
        print(f"loss {read_checkpoint(path)['valid_loss']:.3f}")
    best = paths[scores.index(max(scores))]
    model, chosen = load_policy(best, cfg, device, tokenizer_spec, sharded=False), read_checkpoint(best)
    results = {"valid_loss": chosen["valid_loss"], "score": max(scores)}
    save_checkpoint(out / f"{cfg.name}_best.pt", model, tokenizer_spec, chosen["config"], chosen["step"], **results)
    print(f"wrote {out}/{cfg.name}_best.pt, from {best.name}")


def mean_sample_score(model, reward_model, tokenizer, prompts, cfg):
    """Mean reward-model score of one T = 1 sample per prompt; the same random numbers for every model."""
    sampler, rng = sampling_copy(model, cfg), generator(cfg.seed, "choose")
    answers = respond(sampler, tokenizer, prompts, cfg.max_new_tokens, generator=rng)
    return mean_score(reward_model, tokenizer, prompts, answers)


# ---------------------------------------------------------------------------------------------------- looking at it


def remove_checkpoints(out, name):
    """Delete the epochs of an earlier run of this name: they would be mistaken for this one's."""
    for old in (*Path(out).glob(f"{name}.epoch-*.pt"), Path(out) / f"{name}_best.pt"):
        old.unlink(missing_ok=True)


def next_command(cfg):
    """What comes after this model in the paper."""
    if cfg.pretrain_mix:
        return "reward.py"
    return "sft.py --name ppo_init --epochs 2 --pretrain_mix 0.1 --dropout 0 --learning_rate 1e-3"


if __name__ == "__main__":
    command_line(Config, main, __doc__)
