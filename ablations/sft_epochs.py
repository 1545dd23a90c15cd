"""Which epoch of SFT is the best one, that of the lowest validation loss or a later one (§3.5, App. C.1)?

    python ablations/sft_epochs.py      # after run.py; -> OUT/sft_epochs.md, .json, with matplotlib sft_epochs.png

sft.py for 12 epochs, from base.pt. After every epoch: the loss on validation demonstrations; and of its answers to
validation prompts, at T = 1 and greedy, the reward model's score, the judge's Likert, and how often held-out labelers
prefer them to answers of the first epoch. At the end two epochs meet on test prompts, by which neither was chosen: that
of the lowest validation loss, and that which the reward model likes best, as the paper chooses.

The paper trains 16 epochs. Its validation loss rises after the first, but the reward model's score and people's
preference keep improving.
"""

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sft
from ablations.sizes import preferred_text
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import results_folder
from core.ranking_metrics import mean_and_error
from core.report import interval, new_figure, save_results, table
from core.text import respond, score_answers
from data.folder import load_tokenizer, read_prompts, with_room
from data.village.judge import Judge
from data.village.labelers import load_labelers
from evaluate import win_rate

TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}
QUICK = {"epochs": 2, "prompts": 8, "labelers": 1, "max_new_tokens": 16}


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village
    out: str = "out/run"  # run folder with base.pt and reward.pt
    epochs: PositiveInt = 12  # of SFT, at least 2                                                  paper: 16
    prompts: PositiveInt = 430  # validation prompts, and test prompts
    labelers: PositiveInt = 3  # held-out labelers per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    save_every: int = 200  # steps between training states, from which an interrupted run goes on
    quick: bool = False  # tiny settings, to see every step work
    seed: Seed = 0  # of everything


def prompts_of(cfg, split, tokenizer, room):
    """Prompts of a split, drawn at random. -> [str]"""
    records = with_room(read_prompts(cfg.data, split), tokenizer, room)
    return [r["prompt"] for r in random.Random(f"{split} {cfg.seed}").sample(records, min(cfg.prompts, len(records)))]


# ---------------------------------------------------------------------------------------------------- measuring


def measure(prompts, answers, opponents, score, judge, labelers, cfg):
    """Score, Likert and win rate of an epoch's answers.

    answers, opponents: (text, ended) per prompt; score: of all answers, as score_answers gives them
    -> {"score", "likert": a number per prompt, "win_rate": interval}
    """
    texts, others = ([text for text, _ in some] for some in (answers, opponents))
    return {
        "score": score(prompts, answers),
        "likert": [judge(prompt, text)["likert"] for prompt, text in zip(prompts, texts)],
        "win_rate": win_rate(labelers, cfg.labelers, prompts, texts, others, cfg.seed),
    }


def along_epochs(epochs):
    """Means over prompts, and the 95 % error of how far each has moved since the first epoch, prompt by prompt.

    epochs: [{"valid_loss", "sampled": what `measure` found, "greedy": …}] -> the same with (mean, error) for the lists
    """
    found = []
    for epoch in epochs:
        row = {"valid_loss": epoch["valid_loss"]}
        for how in TEMPERATURES:
            row[how] = {"win_rate": epoch[how]["win_rate"]}
            for key in ("score", "likert"):
                pairs = zip(epoch[how][key], epochs[0][how][key])
                pairs = [pair for pair in pairs if not math.isnan(sum(pair))]  # nan: longer than the context
                mean, _ = mean_and_error([now for now, _ in pairs])
                _, error = mean_and_error([now - first for now, first in pairs])
                row[how][key] = mean, error
        found.append(row)
    return found


def chosen(epochs):
    """The epochs, counted from 1, of lowest validation loss and of highest mean score at T = 1. Equal: the first."""
    numbers = range(len(epochs))
    by_loss = min(numbers, key=lambda i: epochs[i]["valid_loss"])
    by_score = max(numbers, key=lambda i: epochs[i]["sampled"]["score"][0])
    return {"validation loss": by_loss + 1, "reward model": by_score + 1}


# ---------------------------------------------------------------------------------------------------- what was found


def sentences(epochs, duel):
    """What they show. duel: {"sampled", "greedy": win rate of the reward model's choice}, {} for one and the same."""
    by_loss, by_score = chosen(epochs).values()
    losses = [epoch["valid_loss"] for epoch in epochs]
    last = "the last" if by_loss == len(losses) else f"and {losses[-1]:.3f} after epoch {len(losses)}"
    said = [
        f"The validation loss is lowest after epoch {by_loss}, {losses[by_loss - 1]:.3f}, {last}; the reward model "
        f"likes the answers of epoch {by_score} best."
    ]
    for how, rate in duel.items():
        when = "At T = 1" if how == "sampled" else "Greedy"
        said.append(
            f"{when} the reward model's choice {preferred_text(rate)} the one of the lowest validation loss: "
            f"{interval(rate)} % of {rate['n']} test prompts."
        )
    said.append("The paper: validation loss overfits after 1 epoch, score and preference improve over all 16 (§3.5).")
    return said


def page(epochs, duel):
    """Table and sentences, as markdown."""
    head = ["epoch", "validation loss"]
    for when in ("T = 1", "greedy"):
        head += [f"score, {when}", "Likert", "win % vs epoch 1"]
    rows = []
    for number, epoch in enumerate(epochs, 1):
        row = [number, f"{epoch['valid_loss']:.3f}"]
        for how in TEMPERATURES:
            row += [f"{mean:.2f} ± {error:.2f}" for mean, error in (epoch[how]["score"], epoch[how]["likert"])]
            row.append(interval(epoch[how]["win_rate"]))
        rows.append(row)
    return "\n".join([table(head, rows), "", *(f"- {said}" for said in sentences(epochs, duel)), ""])


def epochs_figure(epochs):
    """Validation loss, score, Likert and win rate along epochs, sampled and greedy. -> matplotlib's Figure or None"""
    if (figure := new_figure(6)) is None:
        return None
    loss, score, likert, wins = figure.subplots(2, 2).flat
    numbers = range(1, len(epochs) + 1)
    loss.plot(numbers, [epoch["valid_loss"] for epoch in epochs], marker="o", color="black")
    for how, label in {"sampled": "T = 1", "greedy": "greedy"}.items():
        for axes, key in ((score, "score"), (likert, "likert")):
            axes.errorbar(numbers, *zip(*(epoch[how][key] for epoch in epochs)), marker="o", capsize=2, label=label)
        rates = [epoch[how]["win_rate"] for epoch in epochs]
        errors = [100 * (rate["high"] - rate["mean"]) for rate in rates]
        wins.errorbar(numbers, [100 * rate["mean"] for rate in rates], errors, marker="o", capsize=2, label=label)
    titles = ("validation loss", "reward-model score", "the judge's Likert, 1-7", "% preferred to epoch 1")
    for axes, title in zip((loss, score, likert, wins), titles):
        axes.set(title=title, xlabel="epoch of SFT", xticks=numbers)
        axes.grid(alpha=0.3)
    figure.legend(*score.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(cfg):
    device, out = set_up(cfg), Path(cfg.out)
    if cfg.quick:
        vars(cfg).update(QUICK)
    require(cfg.epochs > 1, f"--epochs {cfg.epochs}: must be 2 or more, to compare them")
    for file in ("base.pt", "reward.pt"):
        require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    judge, labelers = Judge(cfg.data), load_labelers(cfg.data, "held_out")
    folder = results_folder(cfg) / "sft_epochs"
    shared = {key: getattr(cfg, key) for key in ("data", "epochs", "seed", "device", "threads", "dtype", "save_every")}
    sft.main(sft.Config(**shared, out=str(folder), init=str(out / "base.pt"), resume=True))

    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    reward_model = load_scalar_model(out / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    room = reward_model.config.block_size - cfg.max_new_tokens
    valid, test = (prompts_of(cfg, split, tokenizer, room) for split in ("valid", "test"))

    def answer(number, prompts, purpose):
        """An epoch's answers -> {"sampled": [(text, ended)], "greedy": …}; the same random numbers for every epoch."""
        model = load_policy(folder / f"sft.epoch-{number}.pt", cfg, device, tokenizer_spec, sharded=False)
        sampler = sampling_copy(model, cfg)
        return {
            how: respond(sampler, tokenizer, prompts, cfg.max_new_tokens, temperature, generator(cfg.seed, purpose))
            for how, temperature in TEMPERATURES.items()
        }

    def score(prompts, answers):
        return score_answers(reward_model, tokenizer, prompts, answers)

    opponents, epochs = answer(1, valid, "opponents"), []
    for number in range(1, cfg.epochs + 1):
        answers = answer(number, valid, "answers")
        epoch = {"valid_loss": read_checkpoint(folder / f"sft.epoch-{number}.pt")["valid_loss"]}
        for how in TEMPERATURES:
            epoch[how] = measure(valid, answers[how], opponents[how], score, judge, labelers, cfg)
        epochs.append(epoch)
        print(f"epoch {number}: validation loss {epoch['valid_loss']:.3f}", flush=True)
    epochs, duel = along_epochs(epochs), {}
    by_loss, by_score = chosen(epochs).values()
    if by_loss != by_score:
        ours, theirs = answer(by_score, test, "answers"), answer(by_loss, test, "opponents")
        for how in TEMPERATURES:
            texts, others = ([text for text, _ in some[how]] for some in (ours, theirs))
            duel[how] = win_rate(labelers, cfg.labelers, test, texts, others, cfg.seed)

    found = {"config": vars(cfg), "chosen": chosen(epochs), "epochs": epochs, "duel": duel}
    save_results(results_folder(cfg), "sft_epochs", found, page(epochs, duel), epochs_figure(epochs))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
