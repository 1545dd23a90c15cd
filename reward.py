"""Step 2: how does it learn what people prefer? Collect rankings, train a reward model on them (paper §3.5, App. C.2).

    python reward.py             # -> comparisons.jsonl, reward.pt; about 1.5 minutes on 2 CPU cores

Collect: K = 4…9 answers per prompt, ranked best to worst by a labeler, ties allowed. (A data folder that comes with
comparisons.jsonl, ranked by real people, is used as it is.)

Train: loss(θ) = -1/C(K,2) · E[ log σ( r_θ(x, y_w) - r_θ(x, y_l) ) ]                                         (Eq. 1)
over all pairs of a prompt at once: all C(K,2) comparisons of a prompt are one batch element, which costs K forward
passes and not C(K,2), and gives every answer one gradient per epoch. Taken apart and shuffled (--shuffle_pairs), every
answer is seen K-1 times per epoch: the paper's model then overfitted in one, and ours fits what it has seen better too.

An RM without an opinion has loss ln 2 = 0.693 and accuracy 50 %; a fresh head is near that. At the end a bias is added so
that the labelers' demonstrations score 0 on average; differences, and so all preferences, stay as they are.
"""

import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F

from data.folder import (
    load_folder_tokenizer,
    read_comparisons,
    read_demonstrations,
    read_jsonl,
    read_prompts,
    with_room,
    write_jsonl,
)
from machine import (
    Training,
    add_up,
    drop_states,
    finished,
    first_process_only,
    for_sampling,
    has_state,
    load_state,
    portions,
    prepare,
    read_from,
    save_state,
    set_up,
)
from model import ScalarModel, encode_answer, load_checkpoint, pad, respond, save_checkpoint, score_answers, score_rows
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


@dataclass
class Config(Training):
    data: str = "out/run/data"  # data folder; its comparisons.jsonl is used where there is one
    out: str = "out/run"  # run folder
    supervised: str = ""  # model that writes the answers and whose body the RM starts from; default: OUT/ppo_init.pt
    base: str = ""  # pretrained model, few-shot prompted for one answer of every third prompt; default: OUT/base.pt
    prompts: int = 3200  # rankings to collect on training prompts                             paper: 33207
    valid_prompts: int = 200  # validation prompts, each ranked by two labelers of both groups
    k_min: int = 4  # fewest answers per prompt                                              paper: 4
    k_max: int = 9  # most answers per prompt                                                paper: 9
    max_new_tokens: int = 40  # longest answer
    epochs: int = 1  # passes over the rankings                                              paper: 1; more overfits
    batch_size: int = 16  # prompts per step                                                 paper: 64
    learning_rate: float = 8e-4  # peak, cosine to a tenth                                   paper: 9e-6 (6B)
    weight_decay: float = 0.0  # the paper is silent
    max_grad_norm: float = 1.0  # the paper is silent
    shuffle_pairs: bool = False  # train on shuffled single pairs instead, to see them overfit
    margin: str = "none"  # by how much better an answer is (Llama 2, Table 27): none, small, large
    name: str = "reward"  # writes OUT/NAME.pt and OUT/NAME.jsonl
    eval_every: int = 100  # steps between validation accuracies
    seed: int = 0  # of answers, labelers' turns and data order


# ---------------------------------------------------------------------------------------------------- the mathematics


def pairs_of(ranks, prompt):
    """All pairs of answers to one prompt that do not tie: winner (pairs,), loser (pairs,), and what a pair weighs in a mean
    over prompts of means over their pairs (pairs,).

    ranks: (N,) of the answers of all prompts, 1 = best; prompt: (N,) which prompt an answer belongs to. Ties are dropped, so
    the mean is over the pairs that are left (where the paper writes 1/C(K,2)); a prompt whose answers all tie adds
    nothing. Every prompt weighs the same whatever its K.
    """
    better = (prompt[:, None] == prompt[None, :]) & (ranks[:, None] < ranks[None, :])  # (N, N): row preferred to column
    winner, loser = better.nonzero(as_tuple=True)
    pairs = torch.bincount(prompt[winner], minlength=int(prompt.max()) + 1)  # per prompt
    return winner, loser, 1 / pairs[prompt[winner]] / (pairs > 0).sum().clamp(min=1)


def pairwise_loss(scores, ranks, prompt, margins=None):
    """Eq. 1 for several prompts at once: mean over prompts of the mean over their pairs of -log σ(r_w - r_l - m).

    scores, ranks, prompt: (N,), see `pairs_of`. margins: (N, N), m of the winner in the row and the loser in the column, as
    Llama 2 has it; without, m = 0 and the loss is InstructGPT's.
    """
    winner, loser, weight = pairs_of(ranks, prompt)
    m = 0 if margins is None else margins[winner, loser]
    return (weight * F.softplus(scores[loser] - scores[winner] + m)).sum()  # softplus(-x) = -log σ(x), without overflow


LEVELS = ("negligibly better", "slightly better", "better", "significantly better")  # by 0, 1, 2, 3 or more points of 7
MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (0.0, 1 / 3, 2 / 3, 1.0), "large": (0.0, 1.0, 2.0, 3.0)}


def level(first, second):
    """How much better one of two answers is, from their ratings 1…7 -> index into LEVELS."""
    return min(3, abs(first - second))


def margins_of(ratings, kind):
    """m of every pair: ratings (N,) -> (N, N)."""
    return torch.tensor(MARGINS[kind], device=ratings.device)[(ratings[:, None] - ratings).abs().clamp(max=3)]


def pair_outcomes(scores, ranks):
    """For one prompt: r_w - r_l of every pair that is not a tie, as a list."""
    K = range(len(ranks))
    return [scores[i] - scores[j] for i in K for j in K if ranks[i] < ranks[j]]


def accuracy(outcomes):
    """Share of pairs whose preferred answer scores higher; equal scores count half. Mean over prompts, and its error."""
    by_prompt = [sum((d > 0) + 0.5 * (d == 0) for d in pairs) / len(pairs) for pairs in outcomes if pairs]
    n = len(by_prompt)
    if n == 0:
        return float("nan"), float("nan")
    mean = sum(by_prompt) / n
    return mean, 1.96 * (sum((a - mean) ** 2 for a in by_prompt) / max(n - 1, 1) / n) ** 0.5


def agreement(first, second):
    """Of the pairs that both labelers put in an order, the share they put in the same order. Ranks: (K,) twice."""
    K = range(len(first))
    both = [(first[i] - first[j]) * (second[i] - second[j]) for i in K for j in range(i)]
    same = [x > 0 for x in both if x != 0]
    return sum(same), len(same)


def calibration(outcomes, bins=5):
    """Does a difference of scores mean what it says? [(predicted, observed, pairs)] per bin of σ(|difference|)."""
    table = [[0.0, 0.0, 0] for _ in range(bins)]
    for d in (d for pairs in outcomes for d in pairs):
        p = torch.sigmoid(torch.tensor(abs(d))).item()  # the model's confidence in the answer it likes better
        row = table[min(int((p - 0.5) * 2 * bins), bins - 1)]
        row[0], row[1], row[2] = row[0] + p, row[1] + (d > 0), row[2] + 1
    return [(p / n, right / n, n) for p, right, n in table if n]


# ---------------------------------------------------------------------------------------------------- rankings


def collect(cfg, out, tokenizer, encoding, device):
    """Let the supervised model answer, and labelers rank. Writes OUT/comparisons.jsonl.

    Who writes the K answers of a prompt (the paper does not say; ours): the supervised model at temperature 1, one of
    them at 1.3, and for every third prompt one answer by the few-shot prompted pretrained model. "Supervised" is PPO's
    initial policy, so that the rankings are about the kind of text that PPO starts from. Equal texts are shown once.
    """
    from data.labelers import load_labelers

    supervised, _, _ = load_checkpoint(cfg.supervised or out / "ppo_init.pt", "policy", device, tokenizer=tokenizer)
    base, _, _ = load_checkpoint(cfg.base or out / "base.pt", "policy", device, tokenizer=tokenizer)
    supervised, base = (for_sampling(prepare(model, cfg, shard=False), cfg) for model in (supervised, base))
    groups = {group: load_labelers(cfg.data, group) for group in ("training", "held_out")}
    prefixes = [r["prefix"] for _, r in read_jsonl(Path(cfg.data) / "prefixes.jsonl")]
    rng, draw = random.Random(cfg.seed), generator(cfg.seed)
    room = supervised.config.block_size - cfg.max_new_tokens
    limit = room - max(len(encoding.encode_ordinary(p)) for p in prefixes)
    records = []
    for split, count in (("train", cfg.prompts), ("valid", cfg.valid_prompts)):
        customers = with_room(read_prompts(cfg.data, split), encoding, limit)
        rng.shuffle(customers)
        if split == "valid":
            prompts = [r["prompt"] for r in customers[:count]]
        else:  # a fifth of them the labelers' own, as in Table 6; more than there are: again, with other answers
            own = [r for r in read_demonstrations(cfg.data, split) if r.get("source") == "labeler"]
            own = [r for r in own if len(encoding.encode_ordinary(r["prompt"])) <= limit]
            rng.shuffle(own)
            customers = cycle(customers)
            own = cycle(own) if own else customers
            prompts = [next(customers if i % 5 else own)["prompt"] for i in range(count)]
        K = [rng.randint(cfg.k_min, cfg.k_max) for _ in prompts]
        third = range(0, len(prompts), 3)
        asked = [rng.choice(prefixes) + prompts[i] for i in third]
        few_shot = dict(zip(third, respond(base, encoding, asked, cfg.max_new_tokens, 1.0, draw, stop="\n\n")))
        bold = respond(supervised, encoding, prompts, cfg.max_new_tokens, 1.3, draw)
        many = iter(
            respond(
                supervised,
                encoding,
                [p for i, (p, k) in enumerate(zip(prompts, K)) for _ in range(k - 1 - (i in few_shot))],
                cfg.max_new_tokens,
                1.0,
                draw,
            )
        )
        for i, prompt in enumerate(prompts):
            written = [bold[i]] + ([few_shot[i]] if i in few_shot else [])
            answers = dict(written + [next(many) for _ in range(K[i] - len(written))])  # text -> ended
            answers = {text: ended for text, ended in answers.items() if text.strip()}
            if len(answers) < 2:
                continue
            completions = list(answers)
            rng.shuffle(completions)  # so that the place on the page says nothing about who wrote it
            who = [rng.choice(groups["training"])]
            if split == "valid":
                who = rng.sample(groups["training"], 2) + rng.sample(groups["held_out"], 2)
            for labeler in who:
                record = {"prompt": prompt, "completions": completions, "ranks": labeler.rank(prompt, completions)}
                if hasattr(labeler, "rate"):  # who only ranks gives no margins
                    record["ratings"] = labeler.rate(prompt, completions)
                record |= {"labeler": labeler.name, "group": labeler.group, "split": split}
                records.append(record | {"ended": [answers[c] for c in completions]})
    write_jsonl(out / "comparisons.jsonl", records)
    mean = sum(len(r["completions"]) for r in records) / len(records)
    print(
        f"collected {len(records)} rankings of {cfg.k_min}-{cfg.k_max} answers, {mean:.1f} on average without those that "
        f"are empty or came twice -> {out}/comparisons.jsonl; one of them:"
    )
    for rank, text in sorted(zip(records[0]["ranks"], records[0]["completions"])):
        print(f"  {rank}. {text!r}" if rank > 0 else "")
    return records


def encode_ranking(record, encoding, block_size):
    """One ranking -> list of (ids of prompt + answer, rank), with the rating as a third if there are ratings; end-of-text at
    the end unless the answer was cut off.

    Answers that are too long, or the same as another after encoding, are left out.
    """
    rows, seen = [], set()
    grades = zip(record["ranks"], record["ratings"]) if "ratings" in record else zip(record["ranks"])
    for text, grade, ended in zip(record["completions"], grades, record.get("ended") or [True] * len(record["ranks"])):
        ids = sum(encode_answer(encoding, record["prompt"], text, ended), [])
        if len(ids) <= block_size and tuple(ids) not in seen:
            seen.add(tuple(ids))
            rows.append((ids, *grade))
    return rows


def outcomes_of(model, rankings):
    """r_w - r_l of every pair of every ranking: a list of lists. What several labelers ranked is scored once."""
    model.eval()
    rows = list(dict.fromkeys(tuple(ids) for ranking in rankings for ids, *_ in ranking))
    score = dict(zip(rows, score_rows(model, rows)))
    return [pair_outcomes(*zip(*((score[tuple(ids)], rank) for ids, rank, *_ in ranking))) for ranking in rankings]


def by_level(outcomes, rankings):
    """Outcomes of rankings with ratings, apart by how much better the winner is: {level: one list per ranking}."""
    found = defaultdict(list)
    for pairs, ranking in zip(outcomes, rankings):
        K, here = range(len(ranking)), defaultdict(list)
        graded = [(ranking[i], ranking[j]) for i in K for j in K if ranking[i][1] < ranking[j][1]]  # as pair_outcomes
        for outcome, ((_, _, winner), (_, _, loser)) in zip(pairs, graded, strict=True):
            here[LEVELS[level(winner, loser)]].append(outcome)
        for name, some in here.items():
            found[name].append(some)
    return found


# ---------------------------------------------------------------------------------------------------- training


def pairs_apart(rankings):
    """--shuffle_pairs: every pair that is not a tie as a ranking of its own, so that each answer comes K-1 times."""
    return [[a, b] for ranking in rankings for i, a in enumerate(ranking) for b in ranking[:i] if a[1] != b[1]]


def batch_loss(model, rankings, device, margin="none"):
    """All answers of all prompts of a batch in ONE forward pass: Σ K rows. -> scalar."""
    tokens, lengths = pad([ids for ranking in rankings for ids, *_ in ranking], device)  # (ΣK, T)
    ranks = torch.tensor([rank for ranking in rankings for _, rank, *_ in ranking], device=device)
    margins = None
    if margin != "none":
        margins = margins_of(torch.tensor([a[2] for ranking in rankings for a in ranking], device=device), margin)
    prompt = torch.tensor([i for i, ranking in enumerate(rankings) for _ in ranking], device=device)
    return pairwise_loss(model.score(tokens, lengths), ranks, prompt, margins)


def main(cfg):
    device = set_up(cfg)
    require(
        2 <= cfg.k_min <= cfg.k_max,
        f"--k_min {cfg.k_min} --k_max {cfg.k_max}: a ranking needs 2 <= k_min <= k_max answers",
    )
    require(
        min(cfg.epochs, cfg.batch_size, cfg.prompts, cfg.eval_every) >= 1,
        "--epochs, --batch_size, --prompts, --eval_every must be positive",
    )
    require(cfg.margin in MARGINS, f"--margin {cfg.margin}: choose from {', '.join(MARGINS)}")
    require(min(cfg.max_new_tokens, cfg.valid_prompts) >= 1, "--max_new_tokens and --valid_prompts must be positive")
    tokenizer, encoding = load_folder_tokenizer(cfg.data)
    out = output_folder(cfg.out)
    if finished(out, cfg.name, cfg):
        return
    supervised, _, _ = load_checkpoint(cfg.supervised or out / "ppo_init.pt", "policy", device, tokenizer=tokenizer)
    start = time.time()
    path = Path(cfg.data) / "comparisons.jsonl"
    if not path.exists():
        path = out / "comparisons.jsonl"
        ready = cfg.margin != "none" and path.exists()  # to compare margins on the same rankings
        if not (ready or cfg.resume and path.exists() and has_state(out, cfg.name)):
            first_process_only(lambda: collect(cfg, out, tokenizer, encoding, device))
    records = read_comparisons(path)
    collecting = time.time() - start

    block_size = supervised.config.block_size
    train, validation, asked = [], defaultdict(list), defaultdict(list)  # rankings; prompts of the validation rankings
    for record in records:
        ranking = encode_ranking(record, encoding, block_size)
        if len({rank for _, rank, *_ in ranking}) > 1:  # otherwise all tie, or too few fit: nothing to learn
            if record["split"] == "train":
                train.append(ranking)
            else:
                group = record.get("group", "training")
                validation[group].append(ranking)
                asked[group].append(record["prompt"])
    require(train, "no ranking of the training split has two answers that differ, fit and do not tie")
    require(validation, "no ranking of the validation split is left to measure accuracy on")
    rated = all("ratings" in record for record in records)
    require(cfg.margin == "none" or rated, f'{path}: --margin {cfg.margin} needs "ratings" (1-7) in every ranking')
    print(f"{len(records)} rankings, {len(train)} of them to train on")

    model = prepare(ScalarModel.from_gpt(supervised), cfg)  # the supervised model without its unembedding
    del supervised
    optimizer = adamw(model, cfg.learning_rate, cfg.weight_decay)
    order = generator(cfg.seed)
    rankings, size = train, cfg.batch_size
    if cfg.shuffle_pairs:  # as many comparisons per step
        rankings = pairs_apart(train)
        size = max(1, round(size * len(rankings) / len(train)))
    lengths = [max(len(ids) for ids, *_ in ranking) for ranking in rankings]
    with torch.no_grad():
        loss, right = (
            batch_loss(model, train[: cfg.batch_size], device, cfg.margin).item(),
            accuracy(outcomes_of(model, train[:100]))[0],
        )
    print(f"before training: loss {loss:.3f} (ln 2 = 0.693 without an opinion), accuracy {100 * right:.1f} %")
    steps = cfg.epochs * -(-len(rankings) // size)
    log = MetricsLog(out / f"{cfg.name}.jsonl", cfg.resume)
    epoch = {"number": 0, "todo": None}  # todo: batches still to come
    everything = {"model": model, "optimizer": optimizer, "order": order, "log": log, "epoch": epoch}
    everything["read_from"] = read_from(path)
    step = load_state(out, cfg.name, cfg, **everything)
    print(f"{steps} steps")
    while epoch["number"] < cfg.epochs:
        if epoch["todo"] is None:
            epoch["todo"] = batches_by_length(lengths, size, order)
        while epoch["todo"]:
            model.train()
            batch, loss = [rankings[i] for i in epoch["todo"].pop()], 0.0
            for part, weight in portions(batch, cfg):
                share = batch_loss(model, part, device, cfg.margin) * len(part) / len(batch)
                (weight * share).backward()
                loss += share.detach() * (weight > 0)
            lr = cosine_to_tenth(step, steps, cfg.learning_rate)
            norm = optimizer_step(optimizer, model, lr, cfg.max_grad_norm)
            check_finite(norm, "the gradient", f"step {step}", "try a smaller --learning_rate")
            step += 1
            if step % cfg.eval_every == 0 or step == steps:
                loss = float(add_up({"loss": loss})["loss"])
                seen = {group: accuracy(outcomes_of(model, some[:200]))[0] for group, some in validation.items()}
                on_train = accuracy(outcomes_of(model, train[:150]))[0]
                accuracies = {f"accuracy_{group}": a for group, a in seen.items()}
                log.write(step=step, epoch=epoch["number"], loss=loss, lr=lr, train_accuracy=on_train, **accuracies)
                text = "  ".join(f"{group} {100 * a:.1f} %" for group, a in seen.items())
                print(
                    f"step {step:4}/{steps}  loss {loss:.3f}  accuracy: train {100 * on_train:.1f} %  {text}  "
                    f"left {log.left(step, steps)}",
                    flush=True,
                )
            if cfg.save_every and step % cfg.save_every == 0:
                save_state(out, cfg.name, step, cfg, **everything)
        epoch |= {"number": epoch["number"] + 1, "todo": None}

    check_finite(
        sum(outcome for some in outcomes_of(model, train[:50]) for outcome in some),
        "the scores",
        f"step {step}",
        "try a smaller --learning_rate",
    )
    results = report(model, train, validation, asked, records)
    normalise(model, cfg, encoding, device)
    log.write(step=step, final=results, seconds_collecting=collecting, seconds=time.time() - start)
    save_checkpoint(out / f"{cfg.name}.pt", model, tokenizer, cfg, step, results=results)
    drop_states(out, cfg.name)
    print(f"wrote {out}/{cfg.name}.pt; next: python ppo.py --data {cfg.data} --out {cfg.out}")


def per_prompt(prompts, outcomes):
    """The outcomes of all rankings of a prompt as one list: two labelers' views of it are not independent."""
    merged = defaultdict(list)
    for prompt, some in zip(prompts, outcomes, strict=True):
        merged[prompt] += some
    return list(merged.values())


def report(model, train, validation, asked, records):
    """Accuracy on new prompts beside agreement, a longer-is-better baseline and chance; calibration. -> dict."""
    results = {"trained on": {"accuracy": accuracy(outcomes_of(model, train[:200]))}}
    ranked = defaultdict(lambda: defaultdict(list))  # group -> (prompt, completions) -> ranks
    for record in records:
        if record["split"] != "train":
            ranked[record.get("group", "training")][record["prompt"], tuple(record["completions"])].append(
                record["ranks"]
            )
    for group, rankings in validation.items():
        outcomes = outcomes_of(model, rankings)
        length = [pair_outcomes([len(ids) for ids, *_ in r], [rank for _, rank, *_ in r]) for r in rankings]
        agreed = [agreement(*ranks[:2]) for ranks in ranked[group].values() if len(ranks) >= 2]
        agreed = [same / both for same, both in agreed if both]  # mean over prompts, like the accuracy
        pairs = sum(len(r) * (len(r) - 1) // 2 for r in rankings)
        results[group] = {
            "accuracy": accuracy(per_prompt(asked[group], outcomes)),
            "longer_is_better": accuracy(per_prompt(asked[group], length)),
            "agreement": sum(agreed) / len(agreed) if agreed else None,
            "ties": 1 - sum(map(len, outcomes)) / pairs,
            "pairs": pairs,
            "calibration": calibration(outcomes),
        }
        if all(len(answer) == 3 for ranking in rankings for answer in ranking):
            levels = by_level(outcomes, rankings)
            results[group]["levels"] = {name: accuracy(levels[name]) for name in LEVELS[::-1] if name in levels}
    print("accuracy on pairs that are not ties, mean over prompts (chance: 50 %)")
    for group, r in results.items():
        (mean, error), more = r["accuracy"], ""
        if group != "trained on":
            agree = "" if r["agreement"] is None else f"  two labelers agree {100 * r['agreement']:.1f} %"
            more = f"  longer-is-better {100 * r['longer_is_better'][0]:.1f} %{agree}  ties {100 * r['ties']:.0f} % of {r['pairs']}"
        print(f"  {group:10} {100 * mean:.1f} ± {100 * error:.1f} %{more}")
    for group in validation:
        cells = "  ".join(f"{100 * p:.0f}→{100 * o:.0f}" for p, o, n in results[group]["calibration"])
        print(f"  calibration, {group} (predicted → observed %): {cells}")
        levels = results[group].get("levels", {})
        if levels:
            print(
                f"  {group}: " + "  ".join(f"{name} {100 * a:.1f} ± {100 * e:.1f} %" for name, (a, e) in levels.items())
            )
    return results


@torch.no_grad()
def normalise(model, cfg, encoding, device):
    """Set the bias so that the labelers' training demonstrations score 0 on average (§3.5). No scaling."""
    demonstrations = read_demonstrations(cfg.data, "train")
    answers = [(r["completion"], True) for r in demonstrations]
    scores = [
        s for s in score_answers(model, encoding, [r["prompt"] for r in demonstrations], answers) if not math.isnan(s)
    ]
    require(scores, "no demonstration fits into the context, so there is nothing to normalise the scores with")
    model.bias -= sum(scores) / len(scores)
    spread = torch.tensor(scores).std().item() if len(scores) > 1 else 0.0
    print(f"demonstrations now score 0 on average (spread {spread:.2f}); bias {model.bias.item():+.3f}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
