"""What the alternatives share: where things are, what a method costs, and three loops.

Every method here starts from what run.py made (base.pt, ppo_init.pt, reward.pt and the rankings it was trained on),
writes policies that evaluate.py and compare.py know, and says what it used: rankings by people, sampled tokens,
seconds. They run in one process.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ppo
from core.batches import batches_by_length, generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint, save_checkpoint
from core.config import Device, PositiveFloat, PositiveInt, Seed, require
from core.device import configure_model, sampling_copy, set_up
from core.distributed import world_size
from core.log import JsonLines, Log
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.output import output_folder, write_torch
from core.text import encode_answer, pad_responses, respond
from core.training_state import fingerprints
from data.folder import Corpus, load_tokenizer, read_comparisons, read_jsonl, read_prompts, with_room
from data.village.grammar import PROMPT_END
from data.village.intents import find_intent
from data.village.users import draw_prompt_of
from model import ScalarModel, lm_loss
from reward import encode_rankings
from sft import response_tokens, sft_loss


@dataclass
class CommonConfig(Device):
    """Settings that every method has."""

    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder: its checkpoints are read, NAME.pt and NAME.jsonl are written there
    max_new_tokens: PositiveInt = 40  # longest response
    max_grad_norm: PositiveFloat = 1.0  # gradients are clipped to it
    seed: Seed = 0  # of sampling and data order


class Run:
    """One run of a method: its device, tokenizer and records, and what it has cost so far."""

    def __init__(self, cfg, name):
        self.cfg, self.name, self.device, self.began = cfg, name, set_up(cfg), time.time()
        require(world_size() == 1, "the alternatives run in one process: start them with python, not with torchrun")
        self.tokenizer_spec, self.tokenizer = load_tokenizer(cfg.data)
        self.out = output_folder(cfg.out)
        self.records = JsonLines(self.out / f"{name}.jsonl")
        self.records.clear()
        # Rankings or pairs by people; sampled tokens, those of ranked answers too; seconds of what others have made.
        self.cost = {"labels": 0, "tokens": 0, "seconds": 0.0}

    def log(self, steps, columns):
        """A table of metrics, every row on the screen, that writes to the same file as `records`."""
        return Log(self.records.path, steps, columns, every=0)

    def generator(self, purpose, step=0):
        """A stream of random numbers of its own for every purpose and step."""
        return generator(self.cfg.seed, purpose, step)

    def load_policy(self, name):
        """A policy of the run folder, ready to be used or trained."""
        return load_policy(self.out / f"{name}.pt", self.cfg, self.device, self.tokenizer_spec, sharded=False)

    def load_scalar_model(self, name):
        """A reward model of the run folder, ready to be used or trained."""
        return load_scalar_model(self.out / f"{name}.pt", self.cfg, self.device, self.tokenizer_spec, sharded=False)

    def new_scalar_model(self, policy):
        """A scalar model with a copy of the policy's body."""
        return configure_model(ScalarModel.from_gpt(policy), self.cfg, sharded=False)

    def new_reward_model(self, policy):
        """What a reward model starts from: OUT/reward_init.pt, as reward.pt did, or else the policy's body."""
        if (self.out / "reward_init.pt").exists():
            return self.load_scalar_model("reward_init")
        return self.new_scalar_model(policy)

    def prompts(self, model, split, limit=None):
        """Prompts (str) of a split that leave room for a response."""
        room = model.config.block_size - self.cfg.max_new_tokens
        records = with_room(read_prompts(self.cfg.data, split), self.tokenizer, room)
        return [record["prompt"] for record in records[:limit]]

    def answers(self, model, prompts, rng, temperature=1.0, stop="", counted=True):
        """Sample [(text, ended)], one per prompt. counted: their tokens are part of what the method costs."""
        sampler, length = sampling_copy(model, self.cfg), self.cfg.max_new_tokens
        answers = respond(sampler, self.tokenizer, prompts, length, temperature, rng, stop=stop)
        if counted:
            self.cost["tokens"] += sum(len(self.tokenizer.encode_ordinary(text)) + ended for text, ended in answers)
        return answers

    def ids(self, prompt, text, ended=True):
        """Ids of a prompt and an answer to it, in one list."""
        prompt_ids, answer_ids = encode_answer(self.tokenizer, prompt, text, ended)
        return prompt_ids + answer_ids

    def rows(self, answers):
        """[(prompt, text, ended)] -> [(ids of both, length of the prompt)], the rows that `fine_tune` learns from."""
        encoded = [encode_answer(self.tokenizer, *answer) for answer in answers]
        return [(prompt + answer, len(prompt)) for prompt, answer in encoded if answer]

    def cost_so_far(self):
        """{"labels", "tokens", "seconds"} up to now."""
        return self.cost | {"seconds": self.cost["seconds"] + time.time() - self.began}

    def save(self, name, model, **more):
        """Write OUT/NAME.pt."""
        save_checkpoint(self.out / f"{name}.pt", model, self.tokenizer_spec, self.cfg, 0, **more)

    def finish(self, model, **results):
        """Write the method's own policy with what it cost and what it found."""
        cost = self.cost_so_far()
        self.save(self.name, model, cost=cost, results=results)
        self.records.write(cost=cost, **results)
        print(
            f"wrote {self.out}/{self.name}.pt: {cost['labels']:,} human labels, {cost['tokens']:,} sampled tokens, "
            f"{cost['seconds']:.0f} s; next: python alternatives/compare.py"
        )


# ---------------------------------------------------------------------------------------------------- people's rankings


def rankings_file(out):
    """The file of rankings that OUT/reward.pt was trained on. Refuses one that is gone or has changed since (BadInput).

    A method compared with PPO has to learn from what PPO's reward model has learned from, and nothing else.
    """
    reward_model = Path(out) / "reward.pt"
    inputs = read_checkpoint(reward_model).get("inputs")
    again = "train it again: python reward.py"
    require(inputs, f"{reward_model}: does not say which rankings it was trained on; {again}")
    recorded = inputs[-1]  # reward.py names the rankings last
    path = Path(recorded[0])
    require(path.is_file(), f"{path}: not found, but {reward_model} was trained on it; put it back, or {again}")
    unchanged = fingerprints(path) == [recorded]
    require(unchanged, f"{path}: has changed since {reward_model} was trained on it; put the old one back, or {again}")
    return path


def rankings_of_people(run, counted=True):
    """All rankings that reward.pt was trained and validated on. -> records of comparisons.jsonl

    counted: the training ones, and their answers, are part of what the method costs.
    """
    records = read_comparisons(rankings_file(run.out))
    if counted:
        for kind, number in cost_of_rankings(run.out, records, run.tokenizer).items():
            run.cost[kind] += number
    return records


def cost_of_rankings(out, records, tokenizer):
    """How many rankings people made for training; how many tokens their answers have, and those that the first round's
    PPO sampled to become who writes the second round's. -> {"labels", "tokens"}"""
    training = [record for record in records if record["split"] == "train"]
    tokens = sum(len(tokenizer.encode_ordinary(text)) for record in training for text in record["completions"])
    if (out / "round1" / "ppo.pt").exists():
        tokens += sampled_by_ppo(out / "round1", "ppo")
    return {"labels": len(training), "tokens": tokens}


def encoded_rankings(run, block_size, counted=True):
    """The same as reward.py's Rankings. -> {"train": […], "valid": […]}

    Validation is by the labelers that people's rankings for training come from, not by the held-out ones.
    """
    path, by_split = rankings_file(run.out), {"train": [], "valid": []}
    for record in rankings_of_people(run, counted):
        by_held_out = record["split"] == "valid" and record.get("group", "training") != "training"
        if record["split"] in by_split and not by_held_out:
            by_split[record["split"]].append(record)
    rankings = {split: encode_rankings(records, run.tokenizer, block_size) for split, records in by_split.items()}
    for split, encoded in rankings.items():
        require(encoded, f'{path}: no ranking with "split": "{split}" has two answers that differ, fit and do not tie')
    return rankings


def longest_rows(rankings):
    """Tokens of the longest answer of each ranking, prompt included, to put similar ones into a batch."""
    return [max(map(len, ranking.rows)) for ranking in rankings]


def red_team(world, count, split, rng, unseen=False):
    """Prompts (str) of a split that ask for something unkind about somebody; repeated once all are used."""
    prompts = set()
    for valley in world.valleys:
        for _ in range(60):
            prompt, _ = draw_prompt_of(find_intent("rude"), world, valley, rng, split, unseen)
            prompts.add(prompt + PROMPT_END)
    prompts = sorted(prompts)
    rng.shuffle(prompts)
    return [prompts[i % len(prompts)] for i in range(count)]


# ---------------------------------------------------------------------------------------------------- the loops


def minibatches(lengths, epochs, batch_size, rng):
    """`epochs` passes in random batches of similar length. -> one list of indices per step"""
    return [batch for _ in range(epochs) for batch in batches_by_length(lengths, batch_size, rng)]


def fit(model, loss_of, lengths, run, epochs, batch_size, learning_rate, rng):
    """Minimise loss_of(indices of a batch), in place: AdamW, cosine to a tenth. -> the losses (float), step by step

    lengths: of the examples, in tokens; rng: of their order.
    """
    optimizer, losses = adamw(model.requires_grad_(True), learning_rate), []
    batches = minibatches(lengths, epochs, batch_size, rng)
    for step, batch in enumerate(batches):
        model.train()
        loss = loss_of(batch)
        loss.backward()
        losses.append(loss.item())
        require_finite(losses[-1], "the loss", step + 1)
        optimizer_step(optimizer, model, cosine_to_tenth(step, len(batches), learning_rate), run.cfg.max_grad_norm)
    model.eval()
    return losses


def require_finite(value, name, step):
    """Stop at a NaN or an infinity (BadInput): never train on in silence."""
    require(math.isfinite(value), f"{name} became {value} at step {step}; try a smaller --learning_rate")


def fine_tune(model, rows, run, rng, epochs, learning_rate, batch_size=32, pretrain_mix=0.1):
    """Supervised fine-tuning on answers, in place, as PPO's start was made: sft.py's loss, a tenth on pretraining text.

    rows: [(ids, length of the prompt)]. -> mean loss per token of the answers
    """
    corpus, window, total = Corpus(run.cfg.data, "train"), min(128, model.config.block_size - 1), 0.0
    n_windows = max(1, round(pretrain_mix * batch_size))

    def loss_of(indices):
        nonlocal total
        batch = [rows[i] for i in indices]
        losses = sft_loss(model, *pad_responses(batch, run.device))  # (B, T)
        windows = corpus.windows(n_windows, window + 1, rng).to(run.device)
        total += losses.sum().item()
        loss = losses.sum() / response_tokens(batch)
        return (1 - pretrain_mix) * loss + pretrain_mix * lm_loss(model, windows).mean()

    fit(model, loss_of, [len(ids) for ids, _ in rows], run, epochs, batch_size, learning_rate, rng)
    return total / max(epochs * response_tokens(rows), 1)


def ppo_from(run, name, init, reward_model, iterations, results=None, **settings):
    """ppo.py from OUT/INIT.pt against OUT/REWARD_MODEL.pt, in fewer iterations than usual.

    Writes OUT/NAME.pt, with all costs. Warm-up and average are as much shorter as the run (ours).
    """
    usual = ppo.Config()
    share = min(1, iterations / usual.iterations)
    inherited = ("data", "out", "seed", "max_new_tokens", "max_grad_norm", "device", "threads", "dtype")
    shortened = {
        "warmup_iterations": round(usual.warmup_iterations * share),
        "ema": usual.ema ** (1 / share),
        "value_only_iterations": min(usual.value_only_iterations, iterations - 1),
    }
    cfg = ppo.Config(
        **{key: getattr(run.cfg, key) for key in inherited}
        | {"name": name, "init": str(run.out / f"{init}.pt"), "reward_model": str(run.out / f"{reward_model}.pt")}
        | {"iterations": iterations}
        | shortened
        | settings
    )
    ppo.main(cfg)
    path = run.out / f"{name}.pt"
    run.cost["tokens"] += sampled_by_ppo(run.out, name)
    write_torch(path, read_checkpoint(path) | {"cost": run.cost_so_far(), "results": results or {}})


def sampled_by_ppo(out, name):
    """How many tokens ppo.py sampled while it learned OUT/NAME.pt, by its log."""
    batch_size = read_checkpoint(out / f"{name}.pt")["config"]["batch_size"]
    return round(batch_size * sum(record["length"] for _, record in read_jsonl(out / f"{name}.jsonl")))
