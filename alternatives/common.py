"""What the alternatives share: where things are, what a method costs, and two small loops.

Every method here starts from what run.py made (base.pt, ppo_init.pt, reward.pt, comparisons.jsonl), writes one policy that
evaluate.py and compare.py know, and says what it used: rankings by people, sampled tokens, seconds. They run in one process.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from data.folder import Corpus, load_folder_tokenizer, read_comparisons, read_prompts, with_room
from machine import Device, prepare, set_up, world
from model import encode_answer, load_checkpoint, respond, save_checkpoint
from plumbing import (
    MetricsLog,
    adamw,
    batches_by_length,
    check_finite,
    cosine_to_tenth,
    generator,
    optimizer_step,
    output_folder,
    require,
)
from pretrain import lm_loss
from sft import response_tokens, sft_loss


@dataclass
class Inputs(Device):
    """Settings that every method has."""

    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder: its checkpoints are read, NAME.pt and NAME.jsonl are written there
    max_new_tokens: int = 40  # longest response
    max_grad_norm: float = 1.0  # gradients are clipped to it
    seed: int = 0  # of sampling and data order


class Run:
    """One run of a method: its device, tokenizer and log, and what it has cost so far."""

    def __init__(self, cfg, name):
        self.cfg, self.name, self.device, self.began = cfg, name, set_up(cfg), time.time()
        require(world() == 1, "the alternatives run in one process: start them with python, not with torchrun")
        require(cfg.max_new_tokens >= 1, f"--max_new_tokens {cfg.max_new_tokens}: must be at least 1")
        self.tokenizer, self.encoding = load_folder_tokenizer(cfg.data)
        self.out = output_folder(cfg.out)
        self.log = MetricsLog(self.out / f"{name}.jsonl")
        self.cost = {"labels": 0, "tokens": 0}  # rankings or pairs that people judged; tokens that were sampled
        self.draw = generator(cfg.seed, self.device)  # of sampling
        self.order = generator(cfg.seed + 10_000)  # of data

    def load(self, name, kind="policy", dropout=0.0):
        """A checkpoint of the run folder, ready to be used or trained."""
        path = self.out / f"{name}.pt"
        return prepare(load_checkpoint(path, kind, self.device, dropout, self.tokenizer)[0], self.cfg, shard=False)

    def prompts(self, model, split, limit=None):
        """Prompts (str) of a split that leave room for a response."""
        room = model.config.block_size - self.cfg.max_new_tokens
        return [r["prompt"] for r in with_room(read_prompts(self.cfg.data, split), self.encoding, room)[:limit]]

    def answers(self, model, prompts, temperature=1.0, stop="", max_new_tokens=None):
        """[(text, ended)], one per prompt; counts what was sampled."""
        n = max_new_tokens or self.cfg.max_new_tokens
        answers = respond(model, self.encoding, prompts, n, temperature, self.draw, stop=stop)
        self.cost["tokens"] += sum(len(self.encoding.encode_ordinary(t)) + e for t, e in answers)
        return answers

    def rows(self, triples):
        """[(prompt, text, ended)] -> [(ids, length of the prompt)], the rows that `fine_tune` and sft.py learn from."""
        rows = [encode_answer(self.encoding, *triple) for triple in triples]
        return [(prompt + answer, len(prompt)) for prompt, answer in rows if len(answer)]

    def finish(self, model, **results):
        """Write NAME.pt with what it cost. -> the cost"""
        cost = self.cost | {"seconds": time.time() - self.began}
        save_checkpoint(self.out / f"{self.name}.pt", model, self.tokenizer, self.cfg, 0, cost=cost, results=results)
        self.log.write(cost=cost, **results)
        print(
            f"wrote {self.out}/{self.name}.pt: {cost['labels']:,} human labels, {cost['tokens']:,} sampled tokens, "
            f"{cost['seconds']:.0f} s; next: python alternatives/compare.py"
        )
        return cost


def rankings_of_people(run):
    """All rankings behind reward.pt: the data folder's comparisons.jsonl, or else what reward.py collected. -> records"""
    path = Path(run.cfg.data) / "comparisons.jsonl"
    return read_comparisons(path if path.exists() else run.out / "comparisons.jsonl")


def minibatches(lengths, epochs, batch_size, order):
    """Yields (step, steps, indices): `epochs` passes in random batches of similar length."""
    steps = epochs * math.ceil(len(lengths) / batch_size)
    step = 0
    for _ in range(epochs):
        for batch in batches_by_length(lengths, batch_size, order):
            yield step, steps, batch
            step += 1


def fine_tune(model, rows, run, epochs, learning_rate, batch_size=32, pretrain_mix=0.1):
    """Supervised fine-tuning on answers, in place, as PPO's start was made: sft.py's loss, a tenth of it on pretraining text.

    rows: [(ids, length of the prompt)]. -> mean loss on the answers
    """
    optimizer, total, corpus = adamw(model, learning_rate), 0.0, Corpus(run.cfg.data, "train")
    window = min(128, model.config.block_size)
    model.requires_grad_(True)
    for step, steps, some in minibatches([len(ids) for ids, _ in rows], epochs, batch_size, run.order):
        model.train()
        batch = [rows[i] for i in some]
        loss = sft_loss(model, batch, run.device)
        ((1 - pretrain_mix) * loss).backward()
        pages = corpus.windows(max(1, round(pretrain_mix * batch_size)), window + 1, run.order).to(run.device)
        (pretrain_mix * lm_loss(model, pages)).backward()
        optimizer_step(optimizer, model, cosine_to_tenth(step, steps, learning_rate), run.cfg.max_grad_norm)
        check_finite(loss.item(), "the loss", f"step {step}", "try a smaller learning rate")
        total += loss.item() * response_tokens(batch)
    model.eval()
    return total / max(epochs * response_tokens(rows), 1)
