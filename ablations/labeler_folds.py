"""Does a reward model know what labelers like whom it has never learned from? Cross-validation over labelers (§4.1).

    python ablations/labeler_folds.py      # after run.py; -> OUT/labeler_folds.md, labeler_folds.json

The training labelers are split into five groups. Five reward models are trained, each on the rankings of four groups,
from reward_init.pt and with its exams again among the rankings, as run.py trains its own; on fewer rankings, for time.
Each is tested on new prompts, by the rankings of the people of its four groups and of the fifth.

Of run.py's rankings of validation prompts only a few are by people of any one group, so every training labeler ranks
those answers here. Over all folds each of them is left out once and learned from in every other fold: people who are
hard to predict weigh the same on both sides. The last row is another population, with another taste
(data/village/labelers.py).

The paper: 72.4 ± 0.4 % on rankings of the groups that were learned from, 69.6 ± 0.9 % on those of the one left out.
"""

import math
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reward
from core.checkpoint import load_scalar_model
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import set_up
from core.output import results_folder
from core.ranking_metrics import agreement, mean_and_error, share_right
from core.report import save_results, table
from data.folder import load_tokenizer, read_comparisons, write_jsonl
from data.village.labelers import load_labelers
from reward import encode_rankings, score_differences

KINDS = {  # {whose rankings: how the table says it}
    "in": "labelers it learned from",
    "out": "labelers left out",
    "held_out": "another population",
}
QUICK = {"rankings": 24, "replayed": 8}


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village: its labelers rank
    out: str = "out/run"  # run folder with comparisons.jsonl and reward_init.pt
    folds: PositiveInt = 5  # groups of training labelers, each left out once                 paper: 5
    rankings: PositiveInt = 6000  # to train each model on, at most; run.py's reward model has more than twice as many
    replayed: PositiveInt = 1300  # exams among them; run.py: 3000
    save_every: int = 200  # steps between training states, from which an interrupted run goes on
    quick: bool = False  # tiny settings, to see every step work
    seed: Seed = 0  # of groups and data order


# ---------------------------------------------------------------------------------------------------- who ranks


def groups_of(people, folds, seed):
    """Split people at random into as many groups of equal size (or one more). -> list of lists. BadInput if too few."""
    require(2 <= folds <= len(people), f"--folds {folds}: must be from 2 to {len(people)}, the number of labelers")
    shuffled = random.Random(f"groups {seed}").sample(people, len(people))
    return [shuffled[first::folds] for first in range(folds)]


def validation_rankings(people, records):
    """Everybody ranks the stored answers to validation prompts, but for prompts that were trained on too.

    records: of comparisons.jsonl -> {labeler: records like them}
    """
    trained_on = {record["prompt"] for record in records if record["split"] == "train"}
    answers = {(r["prompt"], *r["completions"]): r for r in records if r["split"] == "valid"}
    answers = [record for record in answers.values() if record["prompt"] not in trained_on]
    require(answers, "comparisons.jsonl: every validation prompt is a training prompt too, so there is no new one")
    return {
        person.name: [
            {key: record[key] for key in ("prompt", "completions", "ended", "split") if key in record}
            | {"ranks": person.rank(record["prompt"], record["completions"]), "group": person.group}
            for record in answers
        ]
        for person in people
    }


def agreement_of(ranked):
    """How often any two of these people put two answers in the same order, where both put them in one.

    ranked: {labeler: records}, of the same answers in the same order -> mean over prompts, 95 % error
    """
    by_prompt = defaultdict(lambda: [0, 0])
    for records in zip(*ranked.values(), strict=True):
        counts = by_prompt[records[0]["prompt"]]
        for i in range(len(records)):
            for j in range(i):
                same, both = agreement(records[i]["ranks"], records[j]["ranks"])
                counts[0] += same
                counts[1] += both
    return mean_and_error([same / both for same, both in by_prompt.values() if both])


# ---------------------------------------------------------------------------------------------------- training


def train(cfg, name, records, **settings):
    """reward.py on these records, from reward_init.pt and with exams replayed, or with other settings.

    records: training rankings, and what validation rankings its log shall show. -> OUT/reward_models/NAME.pt
    """
    out, exams = Path(cfg.out), Path(cfg.data) / "exams.jsonl"
    folder = results_folder(cfg) / "reward_models"
    path = folder / f"{name}.comparisons.jsonl"
    write_jsonl(path, records)
    shared = {key: getattr(cfg, key) for key in ("data", "seed", "device", "threads", "dtype", "save_every")}
    shared |= {"out": str(folder), "comparisons": str(path), "name": name, "resume": True, "eval_every": 500}
    shared |= {"reward_model": str(out / "reward_init.pt"), "replay": str(exams), "replayed": cfg.replayed}
    print(f"\n=== {name} ===", flush=True)
    reward.main(reward.Config(**(shared | settings)))
    return folder / f"{name}.pt"


def shares_right(model, rankings):
    """Of the pairs that are not ties, how many the model orders as the labelers do.

    -> {prompt: share}, all labelers' rankings of a prompt together
    """
    by_prompt = defaultdict(list)
    for ranking, pairs in zip(rankings, score_differences(model, rankings), strict=True):
        by_prompt[ranking.prompt] += pairs
    return {prompt: share_right(pairs) for prompt, pairs in by_prompt.items()}


# ---------------------------------------------------------------------------------------------------- what was found


def summary(folds):
    """Mean and standard error over folds of every kind, and how much worse on labelers left out, prompt by prompt.

    folds: [{kind: {prompt: share right}}] -> {"in": (mean, standard error), …, "difference": (mean, 95 % error)}
    """
    found = {}
    for kind in KINDS:
        means = [fmean(fold[kind].values()) for fold in folds]
        found[kind] = fmean(means), stdev(means) / math.sqrt(len(means))
    differences = defaultdict(list)
    for fold in folds:
        for prompt in fold["in"].keys() & fold["out"].keys():
            differences[prompt].append(fold["in"][prompt] - fold["out"][prompt])
    found["difference"] = mean_and_error([fmean(some) for some in differences.values()])
    return found


def sentence(found):
    """What the difference between the two kinds of labelers says."""
    mean, error = found["difference"]
    said = (
        "It is worse at"
        if mean > error
        else "It is better at"
        if mean < -error
        else "It is not significantly different at"
    )
    return (
        f"{said} predicting labelers left out: {100 * mean:+.1f} ± {100 * error:.1f} points between the two, 95 % over "
        f"{found['prompts']} prompts. (Paper: +2.8, of 72.4 ± 0.4 and 69.6 ± 0.9 %.)"
    )


def page(found):
    """Table and sentence, as markdown."""
    folds = [f"fold {i + 1}" for i in range(len(found["folds"]))]
    rows = []
    for kind, title in KINDS.items():
        mean, error = found[kind]
        shares = [f"{100 * fold[kind]:.1f}" for fold in found["folds"]]
        rows.append([title, *shares, f"{100 * mean:.1f} ± {100 * error:.1f}"])
    people = {"training": "two of the training labelers agree", "held_out": "two of the other population agree"}
    lines = [f"{title}: {100 * found['agreement'][key][0]:.1f} %" for key, title in people.items()]
    head = ["% of pairs ordered alike", *folds, "mean ± standard error"]
    return "\n".join([table(head, rows), "", sentence(found), *lines, ""])


def main(cfg):
    device, out = set_up(cfg), Path(cfg.out)
    if cfg.quick:
        vars(cfg).update(QUICK)
    people = {group: load_labelers(cfg.data, group) for group in ("training", "held_out")}
    groups = groups_of(people["training"], cfg.folds, cfg.seed)
    for file in ("comparisons.jsonl", "reward_init.pt"):
        require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    records = read_comparisons(out / "comparisons.jsonl")
    train_records = [record for record in records if record["split"] == "train"]
    random.Random(f"rankings {cfg.seed}").shuffle(train_records)
    stored = [record for record in records if record["split"] == "valid"]
    ranked = {group: validation_rankings(some, records) for group, some in people.items()}
    block_size = load_scalar_model(out / "reward_init.pt", cfg, device, tokenizer_spec, sharded=False).config.block_size
    encoded = {}  # {labeler: Rankings}
    for name, some in (ranked["training"] | ranked["held_out"]).items():
        encoded[name] = encode_rankings(some, tokenizer, block_size)

    folds = []
    for number, left_out in enumerate(groups, 1):
        names = {person.name for person in left_out}
        learned = [r for r in train_records if r.get("labeler") not in names and r.get("labeler") in ranked["training"]]
        require(learned, f"{out / 'comparisons.jsonl'}: no ranking by the village's labelers (data/collect.py)")
        path = train(cfg, f"fold_{number}", learned[: cfg.rankings] + stored)
        model = load_scalar_model(path, cfg, device, tokenizer_spec, sharded=False)
        tested = {"in": ranked["training"].keys() - names, "out": names, "held_out": ranked["held_out"]}
        folds.append(
            {kind: shares_right(model, [r for name in some for r in encoded[name]]) for kind, some in tested.items()}
        )

    found = summary(folds) | {"prompts": len(folds[0]["in"])}
    found["folds"] = [
        {"left_out": sorted(person.name for person in group)} | {kind: fmean(fold[kind].values()) for kind in KINDS}
        for group, fold in zip(groups, folds)
    ]
    found["agreement"] = {group: agreement_of(some) for group, some in ranked.items()}
    save_results(results_folder(cfg), "labeler_folds", {"config": vars(cfg), **found}, page(found))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
