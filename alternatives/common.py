"""What the alternatives share: where things are, what a method costs, and three loops.

Every method here starts from what run.py made (base.pt, ppo_init.pt, reward.pt, comparisons.jsonl), writes policies
that evaluate.py and compare.py know, and says what it used: rankings by people, sampled tokens, seconds. They run in
one process.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ppo
from data import village
from data.folder import Corpus, load_folder_tokenizer, read_comparisons, read_jsonl, read_prompts, with_room
from machine import Device, for_sampling, prepare, set_up, world
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
    write_torch,
)
from pretrain import lm_loss
from reward import encode_ranking
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
        self.cost = {"labels": 0, "tokens": 0}  # rankings or pairs by people; sampled tokens, theirs included
        self.draw = generator(cfg.seed)  # of sampling
        self.order = generator(cfg.seed + 10_000)  # of data

    def load(self, name, kind="policy", dropout=0.0):
        """A checkpoint of the run folder, ready to be used or trained."""
        path = self.out / f"{name}.pt"
        return prepare(load_checkpoint(path, kind, self.device, dropout, self.tokenizer)[0], self.cfg, shard=False)

    def prompts(self, model, split, limit=None):
        """Prompts (str) of a split that leave room for a response."""
        room = model.config.block_size - self.cfg.max_new_tokens
        return [r["prompt"] for r in with_room(read_prompts(self.cfg.data, split), self.encoding, room)[:limit]]

    def answers(self, model, prompts, temperature=1.0, stop=""):
        """[(text, ended)], one per prompt; counts their tokens."""
        n = self.cfg.max_new_tokens
        answers = respond(for_sampling(model, self.cfg), self.encoding, prompts, n, temperature, self.draw, stop=stop)
        self.cost["tokens"] += sum(len(self.encoding.encode_ordinary(t)) + e for t, e in answers)
        return answers

    def ids(self, prompt, text, ended=True):
        """Ids of a prompt and an answer to it."""
        prompt, answer = encode_answer(self.encoding, prompt, text, ended)
        return prompt + answer

    def rows(self, triples):
        """[(prompt, text, ended)] -> [(ids, length of the prompt)], the rows that `fine_tune` and sft.py learn from."""
        rows = [encode_answer(self.encoding, *triple) for triple in triples]
        return [(prompt + answer, len(prompt)) for prompt, answer in rows if len(answer)]

    def finish(self, model, **results):
        """Write NAME.pt with what it cost."""
        cost = self.cost | {"seconds": time.time() - self.began}
        save_checkpoint(self.out / f"{self.name}.pt", model, self.tokenizer, self.cfg, 0, cost=cost, results=results)
        self.log.write(cost=cost, **results)
        print(
            f"wrote {self.out}/{self.name}.pt: {cost['labels']:,} human labels, {cost['tokens']:,} sampled tokens, "
            f"{cost['seconds']:.0f} s; next: python alternatives/compare.py"
        )


def rankings_of_people(run, learn=True):
    """All rankings behind reward.pt: the data folder's comparisons.jsonl, or else what reward.py collected. -> records

    learn: the training ones, and their answers, count as what this method costs.
    """
    path = Path(run.cfg.data) / "comparisons.jsonl"
    records = read_comparisons(path if path.exists() else run.out / "comparisons.jsonl")
    for kind, n in cost_of_rankings(records, run.encoding).items():
        run.cost[kind] += learn * n
    return records


def cost_of_rankings(records, encoding):
    """How many rankings people made for training, and how many tokens their answers have."""
    ranked = [r for r in records if r["split"] == "train"]
    tokens = sum(len(encoding.encode_ordinary(text)) for r in ranked for text in r["completions"])
    return {"labels": len(ranked), "tokens": tokens}


def encoded_rankings(run, block_size, learn=True):
    """The same as reward.py has them, ids and ranks, for those that tell answers apart. -> {"train": […], "valid": […]}

    Validation is by the labelers that people's rankings for training come from, not by the held-out ones.
    """
    rankings = {"train": [], "valid": []}
    for record in rankings_of_people(run, learn):
        if record["split"] == "train" or record["split"] == "valid" and record.get("group", "training") == "training":
            rankings[record["split"]] += tell_apart([record], run, block_size)
    require(all(rankings.values()), "comparisons.jsonl: too few rankings, or none of the training or validation split")
    return rankings


def tell_apart(records, run, block_size):
    """Encoded rankings in which at least two answers differ in rank."""
    rankings = [encode_ranking(record, run.encoding, block_size) for record in records]
    return [ranking for ranking in rankings if len({rank for _, rank, *_ in ranking}) > 1]


def longest(rankings):
    """Length of the longest answer of each, to put similar ones into a batch."""
    return [max(len(ids) for ids, *_ in ranking) for ranking in rankings]


def red_team(world, count, valleys, rng, unseen=False):
    """Prompts that ask for something unkind, about people of these valleys; repeated once all are used. -> [prompt]"""
    found = [
        village.draw_intent("rude", world, world.valleys[v], rng, unseen=unseen)[0] + village.ASK
        for v in valleys
        for _ in range(60)
    ]
    found = sorted(set(found))
    rng.shuffle(found)
    return (found * -(-count // len(found)))[:count]


def minibatches(lengths, epochs, batch_size, order):
    """Yields (step, steps, indices): `epochs` passes in random batches of similar length."""
    steps = epochs * math.ceil(len(lengths) / batch_size)
    step = 0
    for _ in range(epochs):
        for batch in batches_by_length(lengths, batch_size, order):
            yield step, steps, batch
            step += 1


def fit(model, loss_of, lengths, run, epochs, batch_size, learning_rate):
    """Minimise loss_of(indices of a batch), in place: AdamW, cosine to a tenth. -> the losses, step by step"""
    optimizer, losses = adamw(model.requires_grad_(True), learning_rate), []
    for step, steps, some in minibatches(lengths, epochs, batch_size, run.order):
        model.train()
        loss = loss_of(some)
        loss.backward()
        losses.append(loss.item())
        check_finite(losses[-1], "the loss", f"step {step}", "try a smaller learning rate")
        optimizer_step(optimizer, model, cosine_to_tenth(step, steps, learning_rate), run.cfg.max_grad_norm)
    model.eval()
    return losses


def fine_tune(model, rows, run, epochs, learning_rate, batch_size=32, pretrain_mix=0.1):
    """Supervised fine-tuning on answers, in place, as PPO's start was made: sft.py's loss, a tenth on pretraining text.

    rows: [(ids, length of the prompt)]. -> mean loss on the answers
    """
    corpus, window, total = Corpus(run.cfg.data, "train"), min(128, model.config.block_size), []

    def loss_of(some):
        batch = [rows[i] for i in some]
        pages = corpus.windows(max(1, round(pretrain_mix * batch_size)), window + 1, run.order).to(run.device)
        loss = sft_loss(model, batch, run.device)
        total.append(loss.item() * response_tokens(batch))
        return (1 - pretrain_mix) * loss + pretrain_mix * lm_loss(model, pages)

    fit(model, loss_of, [len(ids) for ids, _ in rows], run, epochs, batch_size, learning_rate)
    return sum(total) / max(epochs * response_tokens(rows), 1)


def ppo_from(run, name, init, reward_model, iterations, results=None, **settings):
    """ppo.py from OUT/init.pt against OUT/reward_model.pt, in fewer iterations than usual -> OUT/name.pt, with all costs."""
    usual, share = ppo.Config(), min(1, iterations / ppo.Config.iterations)
    settings = {"data": run.cfg.data, "out": run.cfg.out, "name": name, "iterations": iterations} | settings
    settings |= {"init": str(run.out / f"{init}.pt"), "reward_model": str(run.out / f"{reward_model}.pt")}
    shared = ("seed", "max_new_tokens", "max_grad_norm", "device", "threads", "dtype")
    settings |= {k: getattr(run.cfg, k) for k in shared}
    # Warm-up and average are as much shorter as the run (ours).
    settings |= {"warmup_iterations": round(usual.warmup_iterations * share), "ema": usual.ema ** (1 / share)}
    settings["value_only_iterations"] = min(usual.value_only_iterations, iterations - 1)
    ppo.main(ppo.Config(**settings))
    lengths = [record["length"] for _, record in read_jsonl(run.out / f"{name}.jsonl")]
    run.cost["tokens"] += round(sum(lengths) * usual.batch_size)
    cost = run.cost | {"seconds": time.time() - run.began}
    checkpoint = load_checkpoint(run.out / f"{name}.pt", "policy")[2]
    write_torch(run.out / f"{name}.pt", checkpoint | {"cost": cost, "results": results or {}})
