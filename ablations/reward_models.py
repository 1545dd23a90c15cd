"""What makes a reward model good: answers per ranking, pairs together or apart, its size, epochs (§3.5, App. C.2).

    python ablations/reward_models.py --vary K          # after run.py; -> OUT/reward_K.md, .json, with matplotlib .png
    python ablations/reward_models.py --vary pairs      # all pairs of a prompt at once, or shuffled single pairs
    python ablations/reward_models.py --vary size       # those that ablations/sizes.py has made, and run.py's own
    python ablations/reward_models.py --vary epochs     # 1, 2 and 4

Every model is trained by reward.py from reward_init.pt, on the same part of run.py's rankings, and tested on new
prompts, whose answers all training labelers rank (ablations/labeler_folds.py). Seen: rankings that it was trained on. A
model that overfits has a lower loss on what it has seen and a higher one on what is new. Differences are paired by
prompt.

K at equal cost: labelers read the same number of answers in all, in rankings of 2, 3, 4 or 6. Rankings of at least the
largest K are cut down to each K, so that prompts and answers are of one kind; every step has the same number of
answers. The exams are not replayed here, so that there is nothing but rankings. A ranking whose answers all tie has
been paid for and teaches nothing. What a ranking costs beside its answers, such as reading the prompt, is left out: a
larger K saves it.
"""

import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reward
from ablations.labeler_folds import train, validation_rankings
from ablations.sizes import FROM_RUN, SIZES, rate_for
from core.checkpoint import load_scalar_model, read_checkpoint, settings_of
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import set_up
from core.output import results_folder
from core.ranking_metrics import mean_and_error, share_right
from core.report import name_groups, new_figure, save_results, table
from data.folder import load_tokenizer, read_comparisons
from data.village.labelers import load_labelers
from reward import encode_rankings, score_differences, single_pairs

ANSWERS_PER_STEP = 24  # with --vary K
DEFAULTS = {"K": "2,3,4,6", "pairs": "together,shuffled", "size": ",".join(SIZES), "epochs": "1,2,4"}
PAPER = {
    "K": "The paper has 4 to 9 answers ranked at once, which gives up to 36 comparisons per prompt (§3.1, §3.5).",
    "pairs": "The paper's model overfitted within one epoch when pairs were shuffled; with all pairs of a prompt in "
    "one batch element it no longer did (§3.5).",
    "size": "The paper uses 6B for policies of all sizes: 175B could reach a lower validation loss, but trained less "
    "stably and costs more (App. C.2).",
    "epochs": "The paper's reward model overfits with more than one epoch (App. C.2).",
}
QUICK = {"rankings": 16, "replayed": 8}


@dataclass
class Config(Device):
    vary: Literal["K", "pairs", "size", "epochs"] = "K"  # what differs between the models
    values: str = ""  # of it, a,b; default: K 2,3,4,6; epochs 1,2,4; all sizes that are there
    data: str = "out/run/data"  # data folder, of the village: its labelers rank
    out: str = "out/run"  # run folder with comparisons.jsonl and reward_init.pt
    rankings: PositiveInt = 4000  # to train on, at most; run.py's reward model has more than three times as many
    replayed: PositiveInt = 900  # exams among them; run.py: 3000
    save_every: int = 200  # steps between training states, from which an interrupted run goes on
    quick: bool = False  # tiny settings, to see every step work
    seed: Seed = 0  # of data order, and of which rankings


class Variant(NamedTuple):
    """One reward model to train."""

    title: str
    name: str  # of its files in OUT/reward_models
    records: list  # rankings to train on
    settings: dict  # of reward.py that differ


# ---------------------------------------------------------------------------------------------------- what differs


def values_of(cfg):
    """--values, or all that are usual: whole numbers for K and epochs, else words. BadInput for anything else."""
    known, chosen = DEFAULTS[cfg.vary].split(","), (cfg.values or DEFAULTS[cfg.vary]).split(",")
    chosen = [value.strip() for value in chosen]
    if cfg.vary in ("K", "epochs"):
        least = 2 if cfg.vary == "K" else 1
        good = all(value.isdecimal() and int(value) >= least for value in chosen)
        require(good, f"--values {cfg.values}: must be whole numbers from {least} on, a,b")
        chosen = sorted(map(int, chosen))
    else:
        for value in chosen:
            require(value in known, f"--values {cfg.values}: choose from {', '.join(known)}")
        chosen = [value for value in known if value in chosen]
    require(len(set(chosen)) == len(chosen) > 1, f"--values {cfg.values}: at least two, all different, a,b")
    return chosen


def cut_down(record, chosen):
    """The ranking of only some of its answers. chosen: their indices."""
    lists = {
        key: [record[key][i] for i in chosen] for key in ("completions", "ranks", "ended", "ratings") if key in record
    }
    return record | lists


def at_equal_cost(records, ks, seed):
    """{K: rankings of K answers each}, for every K about as many answers in all.

    records: rankings; those of at least max(ks) answers are used, as many as give the smallest K one each. The answers
    of a ranking are shuffled once, so its first 2 are among its first 3.
    """
    rng = random.Random(f"K {seed}")
    pool = [record for record in records if len(record["completions"]) >= max(ks)]
    require(len(pool) >= max(ks), f"only {len(pool)} rankings have {max(ks)} answers or more; use a smaller K")
    orders = [rng.sample(range(len(record["completions"])), len(record["completions"])) for record in pool]
    answers = min(ks) * len(pool)
    return {k: [cut_down(record, order[:k]) for record, order in zip(pool[: answers // k], orders)] for k in ks}


def variants(cfg, out, records):
    """What is trained, the model that all others are compared with first. records: training rankings. -> [Variant]"""
    values, some = values_of(cfg), records[: cfg.rankings]
    if cfg.vary == "K":
        large = [record for record in records if len(record["completions"]) >= max(values)][: cfg.rankings]
        found = []
        for k, cut in at_equal_cost(large, values, cfg.seed).items():
            settings = {"batch_size": max(1, round(ANSWERS_PER_STEP / k)), "replay": ""}
            found.append(Variant(f"K = {k}", f"K_{k}", cut, settings))
        return found
    if cfg.vary == "pairs":
        titles = {"together": "pairs together", "shuffled": "pairs shuffled"}
        return [Variant(titles[v], f"pairs_{v}", some, {"shuffle_pairs": v == "shuffled"}) for v in values]
    if cfg.vary == "epochs":
        return [Variant(f"{n} epoch{'s' * (n > 1)}", f"epochs_{n}", some, {"epochs": n}) for n in values]
    found = []
    for size in values:
        start = out / "ppo_init.pt" if size == FROM_RUN else out / "sizes" / size / "ppo_init.pt"
        if start.exists():
            found.append(Variant(size, f"size_{size}", some, {"init": str(start)}))
        else:
            print(f"{size} is left out: {start} is not there; ablations/sizes.py --sizes makes it")
    require(len(found) > 1, f"{out}/sizes: fewer than two sizes; make them with python ablations/sizes.py --out {out}")
    return found


def train_variant(cfg, variant, stored):
    """Train one model; of another size, first on the exams, as run.py does it. stored: validation rankings. -> path"""
    settings = dict(variant.settings)
    if cfg.vary == "size":
        size, exams = SIZES[variant.title], read_comparisons(Path(cfg.data) / "exams.jsonl")
        on_exams = settings_of(Path(cfg.out) / "reward_init.pt", reward.Config)  # run.py's own settings
        settings |= {"learning_rate": rate_for(size, on_exams["learning_rate"]), "batch_size": on_exams["batch_size"]}
        start = train(cfg, f"{variant.name}_init", exams, **settings, replay="", reward_model="")
        settings = {"reward_model": str(start), "learning_rate": rate_for(size, reward.Config.learning_rate)}
    return train(cfg, variant.name, variant.records + stored, **settings)


# ---------------------------------------------------------------------------------------------------- measuring


def losses_and_accuracies(model, rankings):
    """Mean -log σ(r_w - r_l), as in Eq. 1, and the share of pairs in the right order, over all rankings of a prompt.

    -> {prompt: (loss, accuracy)}
    """
    by_prompt = defaultdict(list)
    for ranking, pairs in zip(rankings, score_differences(model, rankings), strict=True):
        by_prompt[ranking.prompt] += pairs
    losses = {prompt: -F.logsigmoid(torch.tensor(pairs)).mean().item() for prompt, pairs in by_prompt.items()}
    return {prompt: (losses[prompt], share_right(pairs)) for prompt, pairs in by_prompt.items()}


def measure(model, seen, new, first=None):
    """Loss and accuracy on rankings seen and new, and by how much they differ from the first model's, prompt by prompt.

    seen, new: Rankings; first: what this has returned for the first model
    """
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    by_prompt = {"seen": losses_and_accuracies(model, seen), "new": losses_and_accuracies(model, new)}
    found["by_prompt"] = by_prompt["new"]
    for i, what in enumerate(("loss", "accuracy")):
        for which, values in by_prompt.items():
            found[f"{what}_{which}"] = mean_and_error([pair[i] for pair in values.values()])
        if first:
            pairs = [(values[i], first["by_prompt"][prompt][i]) for prompt, values in by_prompt["new"].items()]
            found[f"{what}_difference"] = mean_and_error([value - other for value, other in pairs])
    return found


# ---------------------------------------------------------------------------------------------------- what was found


def compared(difference, form, unit=""):
    """A mean and its 95 % error in words. -> "higher by 1.2 ± 0.3", "lower by …" or "not different (+0.1 ± 0.3)" """
    mean, error = difference
    if abs(mean) <= error:
        return f"not different ({mean:+{form}} ± {error:{form}}{unit})"
    return f"{'higher' if mean > 0 else 'lower'} by {abs(mean):{form}} ± {error:{form}}{unit}"


def sentences(vary, models):
    """What the models show, compared with the first. models: {title: what `measure` found} -> [str]"""
    (first_title, first), *others = models.items()
    said = []
    for title, model in others:
        loss = compared(model["loss_difference"], ".3f")
        points = compared([100 * value for value in model["accuracy_difference"]], ".1f", " points")
        line = f"{title}, beside {first_title}: on new rankings the loss is {loss}, the accuracy {points}"
        if vary in ("pairs", "epochs"):
            mean, error = model["loss_difference"]
            overfits = mean > error and model["loss_seen"][0] < first["loss_seen"][0]
            line += f"; so {'it overfits' if overfits else 'no significant overfitting'}"
        said.append(line + ".")
    return [*said, PAPER[vary]]


def page(vary, models):
    """Table and sentences, as markdown."""
    rows = []
    for title, model in models.items():
        cells = [f"{model[key]:,}" for key in ("parameters", "rankings", "answers", "pairs", "steps")]
        cells += [f"{model[key][0]:.3f} ± {model[key][1]:.3f}" for key in ("loss_seen", "loss_new")]
        cells += [f"{100 * model[key][0]:.1f} ± {100 * model[key][1]:.1f}" for key in ("accuracy_seen", "accuracy_new")]
        rows.append([title, *cells])
    head = ["", "parameters", "rankings", "answers", "pairs", "steps", "loss, seen", "new", "accuracy %, seen", "new"]
    return "\n".join([table(head, rows), "", *(f"- {said}" for said in sentences(vary, models)), ""])


def reward_figure(models):
    """Loss and accuracy on rankings seen and new, with 95 % intervals over prompts. -> matplotlib's Figure or None"""
    if (figure := new_figure(4)) is None:
        return None
    for axes, (what, unit) in zip(figure.subplots(1, 2), {"loss": 1, "accuracy": 100}.items()):
        for which, shift in {"seen": -0.08, "new": 0.08}.items():  # beside each other
            means, errors = zip(*(model[f"{what}_{which}"] for model in models.values()))
            places = [i + shift for i in range(len(models))]
            means, errors = ([unit * value for value in some] for some in (means, errors))
            axes.errorbar(places, means, errors, fmt="o", capsize=2, label=which)
        name_groups(axes, list(models))
        axes.grid(axis="y", alpha=0.3)
        axes.set_title("loss (Eq. 1)" if what == "loss" else "pairs in the right order, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(cfg):
    device, out = set_up(cfg), Path(cfg.out)
    if cfg.quick:
        vars(cfg).update(QUICK)
    for file in ("comparisons.jsonl", "reward_init.pt", "ppo_init.pt"):
        require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    people = load_labelers(cfg.data, "training")
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    block_size = load_scalar_model(out / "reward_init.pt", cfg, device, tokenizer_spec, sharded=False).config.block_size
    records = read_comparisons(out / "comparisons.jsonl")
    stored = [record for record in records if record["split"] == "valid"]
    new = sum(validation_rankings(people, records).values(), [])
    new = encode_rankings(new, tokenizer, block_size)
    train_records = [record for record in records if record["split"] == "train"]
    random.Random(f"rankings {cfg.seed}").shuffle(train_records)

    models, first = {}, None
    for variant in variants(cfg, out, train_records):
        path = train_variant(cfg, variant, stored)
        model = load_scalar_model(path, cfg, device, tokenizer_spec, sharded=False)
        learned = encode_rankings(variant.records, tokenizer, block_size)
        found = measure(model, learned[:600], new, first)
        first = first or found
        found |= {"rankings": len(variant.records), "pairs": len(single_pairs(learned))}
        found["steps"] = read_checkpoint(path)["step"]
        found["answers"] = sum(len(record["completions"]) for record in variant.records)
        models[variant.title] = found
    for model in models.values():
        del model["by_prompt"]
    found = {"config": vars(cfg), "models": models}
    save_results(results_folder(cfg), f"reward_{cfg.vary}", found, page(cfg.vary, models), reward_figure(models))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
