"""Step 2: train a reward model on rankings of answers (§3.5, App. C.2).

    python reward.py                                                             # -> reward.pt
    python reward.py --comparisons out/run/data/exams.jsonl --name reward_init --batch_size 16 --learning_rate 8e-4
    python reward.py --reward_model out/run/reward_init.pt --replay out/run/data/exams.jsonl      # as run.py does it

The rankings, K = 4…9 answers per prompt, ordered best to worst by a labeler, ties allowed, are those of the data folder
or, where it has none, those that data/collect.py wrote to the run folder; it is called if that has not happened yet.

Minimises  loss(θ) = -1/C(K,2) · E[ log σ( r_θ(x, y_w) - r_θ(x, y_l) ) ]                                     (Eq. 1)
over all pairs of a prompt at once: all C(K,2) comparisons of a prompt are one batch element, which costs K forward
passes and not C(K,2), and gives every answer one gradient per epoch. Taken apart and shuffled (--shuffle_pairs), every
answer is seen K-1 times per epoch: the paper's model then overfitted within one. The body of the model is that of PPO's
initial policy. The paper's was a 6B GPT-3 that had been fine-tuned on public question answering (App. C.2). In the
village that is what exams.jsonl is for: multiple-choice questions as rankings, learned first with the same loss, and
some of them again (--replay) among the labelers' rankings, so that what is true is not forgotten over what is liked.
(In the paper GPT-3 and SFT as starts gave similar results; here the start decides whether truth is learned.)

A model without an opinion has loss ln 2 = 0.693 and accuracy 50 %; a fresh head is near that. At the end a bias is
added so that the labelers' demonstrations score 0 on average; differences, and so all preferences, stay as they are.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from core.batches import ShuffledBatches
from core.checkpoint import load_policy, load_scalar_model, save_checkpoint
from core.config import PositiveFloat, PositiveInt, Seed, Training, command_line, require
from core.device import configure_model, set_up
from core.distributed import all_reduce_sum, first_process_only, micro_batches
from core.log import Log
from core.optim import adamw, cosine_to_tenth, optimizer_step
from core.output import output_folder
from core.ranking_metrics import accuracy, differences, print_report, report
from core.text import encode_answer, score_answers, score_rows
from core.training_state import TrainingState
from data import collect
from data.folder import load_tokenizer, read_comparisons, read_demonstrations
from model import ScalarModel, pad


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder; its comparisons.jsonl is used where there is one
    out: str = "out/run"  # run folder; otherwise its comparisons.jsonl
    comparisons: str = ""  # these rankings instead
    init: str = ""  # policy whose body the reward model starts from; default: OUT/ppo_init.pt
    reward_model: str = ""  # reward model to go on with, instead
    replay: str = ""  # rankings that it knows already, mixed among the others so that it does not forget them
    replayed: PositiveInt = 3000  # how many of them
    name: str = "reward"  # writes OUT/NAME.pt and OUT/NAME.jsonl
    epochs: PositiveInt = 1  # passes over the rankings                                      paper: 1; more overfits
    batch_size: PositiveInt = 4  # prompts per step                                          paper: 64
    learning_rate: PositiveFloat = 5e-4  # peak, cosine to a tenth                           paper: 9e-6 (6B)
    weight_decay: float = 0.0  # the paper is silent
    max_grad_norm: PositiveFloat = 1.0  # the paper is silent
    shuffle_pairs: bool = False  # train on shuffled single pairs instead, to see them overfit
    eval_every: PositiveInt = 600  # steps between validation accuracies
    seed: Seed = 0  # of data order


# ---------------------------------------------------------------------------------------------------- the objective


def preferred_pairs(ranks):
    """1 where the answer of the row is ranked above the answer of the column; ties are in neither. (K,) -> (K, K)."""
    return (ranks[:, None] < ranks[None, :]).float()


def pairwise_loss(scores, ranks):
    """Eq. 1 for one prompt: mean over its pairs of -log σ(r_w - r_l). scores, ranks (1 = best): (K,) -> scalar.

    Ties are dropped (C.2), so the mean is over the pairs that are left, where the paper writes 1/C(K,2) (ours). Every
    prompt weighs the same whatever its K, and one whose answers all tie adds nothing.
    """
    difference = scores[:, None] - scores[None, :]  # (K, K)
    preferred = preferred_pairs(ranks)
    return (-F.logsigmoid(difference) * preferred).sum() / preferred.sum().clamp(min=1)


def ranking_losses(model, rankings):
    """Eq. 1 of each ranking; all answers of all prompts go through the model in ONE forward pass. -> (rankings,)"""
    device = model.transformer.wte.weight.device
    ranks = torch.tensor([rank for ranking in rankings for rank in ranking.ranks], device=device)  # (Σ K,)
    scores = model.score(*pad([row for ranking in rankings for row in ranking.rows], device))  # (Σ K,)
    sizes = [len(ranking.rows) for ranking in rankings]
    losses = [pairwise_loss(*of_one) for of_one in zip(scores.split(sizes), ranks.split(sizes))]
    return torch.stack(losses) if losses else scores  # a process may have no ranking in this micro-batch


# ---------------------------------------------------------------------------------------------------- rankings


class Ranking(NamedTuple):
    """Answers to one prompt, as one labeler ranked them."""

    rows: list  # ids of prompt + answer, one list per answer
    ranks: list  # 1 = best, equal = tie
    ratings: list  # 1…7, or [] where nobody rated
    prompt: str
    group: str  # the population that the labeler is from


def encode_ranking(record, tokenizer, block_size):
    """A record of comparisons.jsonl -> Ranking.

    An answer that was cut off gets no end-of-text. Answers that are too long, or the same as another after encoding,
    are left out.
    """
    rows, ranks, ratings = [], [], []
    ended = record.get("ended") or [True] * len(record["ranks"])
    for i, text in enumerate(record["completions"]):
        row = sum(encode_answer(tokenizer, record["prompt"], text, ended[i]), [])
        if len(row) <= block_size and row not in rows:
            rows.append(row)
            ranks.append(record["ranks"][i])
            if "ratings" in record:
                ratings.append(record["ratings"][i])
    return Ranking(rows, ranks, ratings, record["prompt"], record.get("group", "training"))


def encode_rankings(records, tokenizer, block_size):
    """Records -> Rankings, of those from which something can be learned: at least two answers fit and do not tie."""
    rankings = [encode_ranking(record, tokenizer, block_size) for record in records]
    return [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]


def single_pairs(rankings):
    """--shuffle_pairs: every pair that is not a tie as a ranking of its own, so that each answer comes K-1 times."""
    pairs = []
    for ranking in rankings:
        for i in range(len(ranking.rows)):
            for j in range(i):
                if ranking.ranks[i] != ranking.ranks[j]:
                    rows, ranks = [ranking.rows[i], ranking.rows[j]], [ranking.ranks[i], ranking.ranks[j]]
                    pairs.append(Ranking(rows, ranks, [], ranking.prompt, ranking.group))
    return pairs


def comparisons_file(cfg, out):
    """The rankings to train on; if there are none yet, labelers are asked for them (data/collect.py)."""
    given, collected = Path(cfg.data) / "comparisons.jsonl", out / "comparisons.jsonl"
    if given.exists() and collected.exists():
        print(f"{given} is used; {collected}, which was collected here, is not (--comparisons {collected} takes it)")
    for path in (given, collected):
        if path.exists():
            return path
    shared = {name: getattr(cfg, name) for name in ("data", "out", "seed", "device", "threads", "dtype")}
    first_process_only(lambda: collect.main(collect.Config(**shared, supervised=cfg.init)))
    return out / "comparisons.jsonl"


# ---------------------------------------------------------------------------------------------------- training


def main(cfg):
    device, out = set_up(cfg), output_folder(cfg.out)
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    init = cfg.reward_model or cfg.init or out / "ppo_init.pt"
    path = Path(cfg.comparisons) if cfg.comparisons else comparisons_file(cfg, out)
    records = read_comparisons(path)
    if cfg.reward_model:
        model = load_scalar_model(init, cfg, device, tokenizer_spec)
    else:
        supervised = load_policy(init, cfg, device, tokenizer_spec, sharded=False)
        # The new head's own seed: the first process may have collected, and drawn numbers, meanwhile.
        torch.manual_seed(cfg.seed)
        model = configure_model(ScalarModel.from_gpt(supervised), cfg)  # the supervised model without its unembedding
        del supervised
    block_size = model.config.block_size
    train = encode_rankings([r for r in records if r["split"] == "train"], tokenizer, block_size)
    valid = encode_rankings([r for r in records if r["split"] == "valid"], tokenizer, block_size)
    require(train, f"{path}: no ranking of the training split has two answers that differ, fit and do not tie")
    require(valid, f"{path}: no ranking of the validation split is left to measure accuracy on")

    replay = [r for r in read_comparisons(cfg.replay) if r["split"] == "train"] if cfg.replay else []
    rankings = train + encode_rankings(replay[: cfg.replayed], tokenizer, block_size)
    batch_size = cfg.batch_size
    if cfg.shuffle_pairs:  # as many comparisons per step
        batch_size = max(1, round(cfg.batch_size * len(single_pairs(rankings)) / len(rankings)))
        rankings = single_pairs(rankings)
    batches = ShuffledBatches([max(map(len, r.rows)) for r in rankings], batch_size, cfg.seed)
    steps = cfg.epochs * len(batches)
    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)
    groups = by_group(valid)
    columns = ["loss", "train_accuracy", *(f"accuracy_{group}" for group in groups), "learning_rate", "grad_norm"]
    log = Log(out / f"{cfg.name}.jsonl", steps, " ".join(columns))
    inputs = [cfg.data, init, cfg.replay, path] if cfg.replay else [cfg.data, init, path]
    state = TrainingState(out, cfg.name, cfg, inputs, model=model, optimizer=optimizer, log=log)
    if state.already_finished():
        return
    first_step = state.resume()
    replayed = f" (and {min(len(replay), cfg.replayed):,} of {cfg.replay})" if replay else ""
    print(f"{len(records):,} rankings from {path}, {len(train):,} of them to train on{replayed}, {steps} steps")
    if first_step == 0:
        print_untrained(model, train)

    for step in range(first_step, steps):
        model.train()
        batch, metrics = [rankings[i] for i in batches[step]], {"loss": 0.0}
        for micro_batch in micro_batches(batch, cfg):
            loss = ranking_losses(model, micro_batch).sum() / len(batch)
            loss.backward()
            metrics["loss"] += loss.detach()
        metrics = all_reduce_sum(metrics)
        metrics["learning_rate"] = cosine_to_tenth(step, steps, cfg.learning_rate)
        metrics["grad_norm"] = optimizer_step(optimizer, model, metrics["learning_rate"], cfg.max_grad_norm)
        if (step + 1) % cfg.eval_every == 0 or step + 1 == steps:
            metrics["train_accuracy"] = accuracy(score_differences(model, train[:150]))[0]
            for group, some in groups.items():
                metrics[f"accuracy_{group}"] = accuracy(score_differences(model, some[:200]))[0]
        log(step + 1, **metrics)
        state.save_if_due(step + 1)

    normalise(model, cfg, tokenizer)
    seen = accuracy(score_differences(model, train[:200]))
    results = report(seen, {group: (some, score_differences(model, some)) for group, some in groups.items()}, records)
    print_report(results)
    save_checkpoint(out / f"{cfg.name}.pt", model, tokenizer_spec, cfg, steps, results=results, inputs=state.inputs)
    state.finish()
    print(f"wrote {out}/{cfg.name}.pt; next: python ppo.py --data {cfg.data} --out {cfg.out}")


@torch.no_grad()
def normalise(model, cfg, tokenizer):
    """Shift the scores so that the labelers' training demonstrations score 0 on average (§3.5). No scaling."""
    demonstrations = read_demonstrations(cfg.data, "train")
    answers = [(record["completion"], True) for record in demonstrations]
    scores = score_answers(model, tokenizer, [record["prompt"] for record in demonstrations], answers)
    scores = [score for score in scores if not math.isnan(score)]  # of those that fit the context
    require(scores, "no demonstration fits into the context, so there is nothing to normalise the scores with")
    bias = model.state_dict()[
        "head.bias"
    ]  # of several processes: the shard itself, where model.head.bias may be a copy
    bias -= sum(scores) / len(scores)
    spread = torch.tensor(scores).std(correction=0).item()
    print(f"demonstrations scored {sum(scores) / len(scores):+.3f} on average (spread {spread:.2f}); now they score 0")


def score_differences(model, rankings):
    """r_w - r_l of every pair of every ranking: a list of lists. What several labelers ranked is scored once."""
    model.eval()
    rows = list(dict.fromkeys(tuple(row) for ranking in rankings for row in ranking.rows))
    score = dict(zip(rows, score_rows(model, rows)))
    finite = all(math.isfinite(value) for value in score.values())
    require(finite, "scores are not finite any more; try a smaller --learning_rate")
    return [differences([score[tuple(row)] for row in ranking.rows], ranking.ranks) for ranking in rankings]


def by_group(rankings):
    """{population of labelers: their rankings}"""
    groups = defaultdict(list)
    for ranking in rankings:
        groups[ranking.group].append(ranking)
    return dict(groups)


@torch.no_grad()
def print_untrained(model, rankings):
    model.eval()
    loss = ranking_losses(model, rankings[:16]).mean().item()
    share = accuracy(score_differences(model, rankings[:100]))[0]
    print(f"before training: loss {loss:.3f} (ln 2 = 0.693 without an opinion), accuracy {100 * share:.1f} %")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
