"""Does a small aligned model beat a large one that is only pretrained (Fig. 1)? All steps at several sizes.

    python ablations/sizes.py                    # after run.py; -> OUT/sizes.md, sizes.json, with matplotlib sizes.png
    python ablations/sizes.py --sizes 50k,0.2M,0.6M,1.7M,5M,26M      # larger ones too, on a GPU

Every size is pretrained on the same web, fine-tuned, and improved by PPO and PPO-ptx, in OUT/sizes/NAME. One size is
run.py's own, its models are taken as they are. The reward model and the start of the value model are the run's
reward.pt for all, as the paper's are 6B for policies of every size. All answers meet those of the largest SFT model;
and the smallest PPO-ptx meets the largest GPT head to head, as in the paper's first claim. The larger GPT has to be the
better language model for that to mean anything, so the corpus loss and the public tasks stand beside it.

What has been made with these settings is not made again; a run that was interrupted goes on where it was.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ppo
import pretrain
import sft
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, settings_of
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import results_folder
from core.report import colours, interval, new_figure, percent, percent_of, save_results, table
from core.text import respond
from data.folder import Corpus, load_tokenizer, read_jsonl, read_prompts, with_room
from data.village.world import read_world
from evaluate import (
    NAMES,
    choose_prefix,
    gold_report,
    load_judge_and_labelers,
    read_prefixes,
    task_scores,
    test_records,
    win_rates,
)
from pretrain import corpus_loss


class Size(NamedTuple):
    """A shape, how long it is pretrained, and its learning rate in SFT, 0 = by `rate_for`."""

    n_layer: int
    n_head: int
    n_embd: int
    pretrain_steps: int
    sft_rate: float = 0


SIZES = {  # by their number of parameters; SFT's rates: of four the one of lowest validation loss, seed 0
    "50k": Size(2, 2, 24, 4000, 3.7e-3),
    "0.2M": Size(2, 4, 64, 4000, 2.3e-3),
    "0.6M": Size(2, 4, 128, 4000),  # run.py's own
    "1.7M": Size(3, 6, 192, 4000),
    "5M": Size(6, 8, 256, 6000),  # these two for a GPU
    "26M": Size(8, 8, 512, 8000),
}
FROM_RUN = "0.6M"
KINDS = ("gpt", "gpt_prompted", "sft", "ppo", "ppo_ptx")
FILES = {"gpt": "base.pt", "sft": "sft_best.pt", "ppo": "ppo.pt", "ppo_ptx": "ppo_ptx.pt"}
QUICK = {"steps": 10, "epochs": 1, "iterations": 3, "batch_size": 16, "minibatch_size": 16, "sample_prompts": 8}


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village
    out: str = "out/run"  # run folder of run.py: its own models and reward.pt
    sizes: str = "50k,0.2M,0.6M,1.7M"  # which, a,b; also 5M, 26M
    prompts: PositiveInt = 430  # test prompts
    unseen_prompts: int = 0  # in phrasings that no training prompt has; none here
    labelers: PositiveInt = 3  # of each group, per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    save_every: int = 200  # steps between training states, from which an interrupted run goes on
    quick: bool = False  # tiny settings, to see every step work
    seed: Seed = 0  # of everything


def sizes_of(text):
    """ "50k,1.7M" -> their names, in order of size. BadInput for one that SIZES has not."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        require(name in SIZES, f"--sizes {name}: choose from {', '.join(SIZES)}")
    require(len(set(wanted)) > 1, f"--sizes {text}: at least two, a,b; choose from {', '.join(SIZES)}")
    return [name for name in SIZES if name in wanted]


def rate_for(size, rate):
    """The learning rate of a width, from the one that is right at run.py's: narrow models bear, and need, larger ones.

    By the square root of the width (ours), between the constant rate and the 1/width of Yang et al. 2022.
    """
    return float(f"{rate * (SIZES[FROM_RUN].n_embd / size.n_embd) ** 0.5:.2g}")


def folder_of(cfg, name):
    """Where the models of a size are."""
    return Path(cfg.out) if name == FROM_RUN and not cfg.quick else results_folder(cfg) / "sizes" / name


# ---------------------------------------------------------------------------------------------------- training


def train(cfg, name):
    """Pretrain, fine-tune twice, PPO and PPO-ptx, with what run.py's stages have for settings. -> {script: seconds}"""
    size, out, seconds = SIZES[name], folder_of(cfg, name), {}
    shared = {key: getattr(cfg, key) for key in ("data", "seed", "device", "threads", "dtype")}
    shared |= {"out": str(out), "save_every": cfg.save_every, "resume": True}
    reward_model = {"reward_model": f"{cfg.out}/reward.pt", "max_new_tokens": cfg.max_new_tokens}
    shape = {key: getattr(size, key) for key in ("n_layer", "n_head", "n_embd")}
    improve = reward_model | {"save_every": max(1, cfg.save_every // 10)}

    def as_in_run(file, script, rate=0, **changed):
        """A script and its settings: those of the run's own model, and what differs."""
        settings = settings_of(Path(cfg.out) / file, script.Config) | shared | changed
        return script, settings | {"learning_rate": rate or rate_for(size, settings["learning_rate"])}

    plan = {
        "base": as_in_run("base.pt", pretrain, **shape, steps=size.pretrain_steps),
        "sft": as_in_run("sft.pt", sft, size.sft_rate, **reward_model, init=f"{out}/base.pt"),
        "ppo_init": as_in_run("ppo_init.pt", sft, init=f"{out}/base.pt"),
        "ppo": as_in_run("ppo.pt", ppo, **improve, init=f"{out}/ppo_init.pt"),
        "ppo_ptx": as_in_run("ppo_ptx.pt", ppo, **improve, init=f"{out}/ppo_init.pt"),
    }
    for stage, (script, settings) in plan.items():
        if cfg.quick:
            known = script.Config.__dataclass_fields__
            tiny = {key: value for key, value in QUICK.items() if key in known}
            settings = settings | tiny | ({"value_only_iterations": 2} if script is ppo else {})
        print(f"\n=== {name}: {stage} ===", flush=True)
        start = time.time()
        script.main(script.Config(**settings))
        seconds[stage] = time.time() - start
    return seconds


# ---------------------------------------------------------------------------------------------------- evaluation


def measure(cfg, names, device):
    """All models of all sizes answer the test prompts. -> {"sizes": {name: …}, "head_to_head": …}"""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    judge, groups = load_judge_and_labelers(cfg)
    reward_model = load_scalar_model(Path(cfg.out) / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    prefixes, corpus = read_prefixes(cfg), Corpus(cfg.data, "valid")
    block_size = reward_model.config.block_size
    room = block_size - cfg.max_new_tokens - max(len(tokenizer.encode_ordinary(prefix)) for prefix in prefixes)
    records, _ = test_records(cfg, tokenizer, room)
    prompts = [record["prompt"] for record in records]
    valid = [record["prompt"] for record in with_room(read_prompts(cfg.data, "valid"), tokenizer, room)][:64]
    items = [item for _, item in read_jsonl(Path(cfg.data) / "tasks.jsonl")]
    temperatures = {"sampled": 1.0, "greedy": 0.0}

    def answer(model, purpose, prefix="", stop=""):
        """-> {"sampled": answers, "greedy": answers}, each (text, ended)"""
        asked, found = [prefix + prompt for prompt in prompts], {}
        for how, temperature in temperatures.items():
            numbers, sampler = generator(cfg.seed, purpose), sampling_copy(model, cfg)
            found[how] = respond(sampler, tokenizer, asked, cfg.max_new_tokens, temperature, numbers, stop=stop)
        return found

    def compare(answers, opponents):
        return {
            how: win_rates(groups, cfg.labelers, prompts, answers[how], opponents[how], cfg.seed)
            for how in temperatures
        }

    found, answers_of = {"n_prompts": len(prompts), "sizes": {}}, {}
    largest, smallest = names[-1], names[0]
    for name in reversed(names):
        folder, measured = folder_of(cfg, name), {}
        for kind, file in FILES.items():
            model = load_policy(folder / file, cfg, device, tokenizer_spec, sharded=False)
            answers_of[name, kind] = answer(model, "answers")
            loss = corpus_loss(model, corpus)
            measured[kind] = {"corpus_loss": loss, "tasks": task_scores(model, tokenizer, items)}
            if kind == "gpt":
                parameters = sum(p.numel() for p in model.parameters())
                prefix, _ = choose_prefix(model, reward_model, tokenizer, prefixes, valid, cfg)
                answers_of[name, "gpt_prompted"] = answer(model, "answers", prefix, stop="\n\n")
                measured["gpt_prompted"] = dict(measured["gpt"])  # the same weights
            if kind == "sft" and name == largest:
                opponents = answer(model, "opponents")
        for kind in KINDS:
            gold = gold_report(judge, records, [text for text, _ in answers_of[name, kind]["sampled"]])
            kept = ("helpful", "truthful_and_informative", "likert", "likert_error", "flags", "flag_counts")
            measured[kind] |= {key: gold[key] for key in kept}
            measured[kind]["win_rate"] = compare(answers_of[name, kind], opponents)
        found["sizes"][name] = {"parameters": parameters, "models": {kind: measured[kind] for kind in KINDS}}
    found["sizes"] = {name: found["sizes"][name] for name in names}
    found["head_to_head"] = {
        kind: compare(answers_of[smallest, "ppo_ptx"], answers_of[largest, kind]) for kind in ("gpt", "gpt_prompted")
    }
    return found


# ---------------------------------------------------------------------------------------------------- what was found


def preferred_text(rate):
    """What a win rate's interval says. -> "is preferred to", "loses to", or "does not differ significantly from" """
    if rate["low"] <= 0.5 <= rate["high"]:
        return "does not differ significantly from"
    return "is preferred to" if rate["low"] > 0.5 else "loses to"


def sentences(found):
    """What the sizes show about the paper's first claim, in sentences."""
    names = list(found["sizes"])
    smallest, largest = names[0], names[-1]
    factor = found["sizes"][largest]["parameters"] / found["sizes"][smallest]["parameters"]
    said = []
    for kind, rates in found["head_to_head"].items():
        for how, when in (("sampled", "At T = 1"), ("greedy", "Greedy")):
            rate = rates[how]["held_out"]
            said.append(
                f"{when} the smallest PPO-ptx ({smallest}) {preferred_text(rate)} the largest {NAMES[kind]} "
                f"({largest}, {factor:.0f} times the parameters): {interval(rate)} % of {rate['n']} prompts, "
                "held-out labelers."
            )
    losses = [size["models"]["gpt"]["corpus_loss"] for size in found["sizes"].values()]
    order = "falls with every size" if losses == sorted(losses, reverse=True) else "does not fall with every size"
    said.append(f"GPT's corpus loss {order}: {', '.join(f'{loss:.2f}' for loss in losses)}.")
    return said


def page(found):
    """Sentences and table, as markdown."""
    rows = []
    for name, size in found["sizes"].items():
        for kind, model in size["models"].items():
            tasks = model["tasks"].values()
            rates = [interval(model["win_rate"][how][group]) for how in model["win_rate"] for group in groups_of(model)]
            gold = [f"{model[key]:.2f}" for key in ("helpful", "truthful_and_informative", "corpus_loss")]
            rows.append([f"{name} {NAMES[kind]}", f"{size['parameters']:,}", *rates, *gold])
            rows[-1].append(percent(sum(tasks) / len(tasks)))
    groups = [group.replace("_", "-") for group in groups_of(model)]
    head = [f"% preferred to SFT of {list(found['sizes'])[-1]}", "parameters"]
    head += [f"{how}, {group}" for how in ("T = 1", "greedy") for group in groups]
    text = "\n".join(f"- {sentence}" for sentence in sentences(found))
    text += f"\n\n{table([*head, 'helpful', 'truthful + informative', 'corpus loss', 'tasks'], rows)}\n"
    text += f"\nThe judge's Likert mark and the flags of Table 3, at T = 1, % of n answers\n\n{flags_table(found)}\n"
    return f"{found['n_prompts']} test prompts, 95 % intervals.\n\n{text}"


def flags_table(found):
    """Likert and flags of all models of all sizes, as markdown (Table 3, Fig. 4)."""
    rows, counts = [], {}
    for name, size in found["sizes"].items():
        for kind, model in size["models"].items():
            counts = model["flag_counts"]
            flags = [percent_of(share, counts[flag]) for flag, share in model["flags"].items()]
            rows.append([f"{name} {NAMES[kind]}", f"{model['likert']:.2f} ± {model['likert_error']:.2f}", *flags])
    return table(["", "Likert", *(f"{flag} (n = {n})" for flag, n in counts.items())], rows)


def groups_of(model):
    """The groups of labelers that were asked."""
    return list(model["win_rate"]["sampled"])


def sizes_figure(found):
    """Held-out labelers' win rates against the largest SFT by size, a line per kind of model. -> Figure or None"""
    if (figure := new_figure(4)) is None:
        return None
    parameters = [size["parameters"] for size in found["sizes"].values()]
    panels = {"sampled": "T = 1", "greedy": "greedy"}
    for axes, (how, title) in zip(figure.subplots(1, 2, sharey=True), panels.items()):
        for kind, colour in zip(KINDS, colours(len(KINDS))):
            rates = [size["models"][kind]["win_rate"][how]["held_out"] for size in found["sizes"].values()]
            means, errors = zip(*((100 * rate["mean"], 100 * (rate["high"] - rate["mean"])) for rate in rates))
            axes.errorbar(parameters, means, errors, marker="o", capsize=2, color=colour, label=NAMES[kind])
        axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xticks(parameters, list(found["sizes"]))
        axes.minorticks_off()
        axes.set(xlabel="parameters", title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"% preferred to SFT of {list(found['sizes'])[-1]}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
    return figure


def main(cfg):
    names, device, out = sizes_of(cfg.sizes), set_up(cfg), Path(cfg.out)
    own = FILES.values() if FROM_RUN in names and not cfg.quick else ()
    for file in ("reward.pt", *own):
        require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
    read_world(cfg.data)  # BadInput if it is not the village's
    seconds = {name: train(cfg, name) for name in names if folder_of(cfg, name) != out}
    start = time.time()
    found = measure(cfg, names, device)
    seconds["evaluation"] = time.time() - start
    settings = {"config": vars(cfg), "seconds": seconds}
    save_results(results_folder(cfg), "sizes", settings | found, page(found), sizes_figure(found))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
