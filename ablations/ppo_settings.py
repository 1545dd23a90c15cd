"""Which settings of PPO matter? One of them is varied, everything else stays as it is (App. E.6, E.7, E.8, E.11).

    python ablations/ppo_settings.py --vary kl_coef            # after run.py: β, each without and with pretraining mix
    python ablations/ppo_settings.py --vary ptx_coef           # γ, the weight of the pretraining loss
    python ablations/ppo_settings.py --vary ptx_per_episode    # pretraining examples per episode
    python ablations/ppo_settings.py --vary batch_size         # episodes per iteration, as many episodes in all
    python ablations/ppo_settings.py --vary minibatch_size     # episodes per update
    python ablations/ppo_settings.py --vary iterations         # training for longer
    python ablations/ppo_settings.py --vary init               # what PPO starts from and is held to

-> OUT/ablations/VARY/results.md, results.json, with matplotlib results.png. The policies lie in OUT/ablations/policies,
because several sweeps need the same ones; what has been trained with these settings is not trained again.

Runs are short: 32 iterations, ppo.py has 60. Each is made with every one of --seeds, which draw prompts, samples and
minibatches, and its answers too. Unless β or γ is varied, all are PPO-ptx. What else has to follow, follows: the
average of the weights always spans the same share of a run, and where iterations are larger, fewer of them wait for the
value model and warm up.

All measures are on validation prompts: settings are chosen by them, and the test prompts are left for evaluate.py. (The
public tasks have no validation items; these are evaluate.py's.) The page says what the paper found and whether it shows
here. A difference is significant if its 95 % interval, over prompts or task items, leaves out 0, and it has the same
sign under every seed. Corpus loss and KL have no interval: for them only the seeds decide.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ppo
import sft
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, settings_of
from core.config import Device, PositiveFloat, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder
from core.paper_claims import TAXED
from core.ranking_metrics import mean_and_error
from core.report import colours, new_figure, save_results, table
from core.text import kl_of_answers, respond, score_answers
from data.folder import Corpus, load_tokenizer, read_jsonl, read_prompts, with_room
from data.village.world import read_world
from evaluate import load_judge_and_labelers, task_scores, win_rates
from pretrain import corpus_loss


@dataclass
class Config(Device):
    vary: Literal["kl_coef", "ptx_coef", "ptx_per_episode", "batch_size", "minibatch_size", "iterations", "init"] = (
        "kl_coef"  # the setting of ppo.py that is varied
    )
    data: str = "out/run/data"  # data folder, of the village
    out: str = "out/run"  # run folder of run.py: base.pt, ppo_init.pt, reward.pt
    seeds: str = "0,1"  # of PPO, a,b: every variant is trained with each
    iterations: PositiveInt = 32  # of PPO, a multiple of 4; ppo.py has 60
    ptx_coef: PositiveFloat = 0.2  # γ of PPO-ptx
    prompts: PositiveInt = 300  # validation prompts that are answered; fewer if the data has fewer
    labelers: PositiveInt = 3  # held-out labelers per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    quick: bool = False  # tiny settings, to see every step work
    seed: Seed = 0  # of the opponents' answers and of the choice of labelers


QUICK = {"iterations": 4, "value_only_iterations": 1, "batch_size": 16, "minibatch_size": 4, "sample_prompts": 8}
KL_COEFS = {0.0, 0.02, ppo.Config.kl_coef, 0.5, 2.0, 100 * ppo.Config.kl_coef}  # paper: up to 100 times its default
PTX_COEFS = {0.0, 0.05, 0.5, 2.0}  # and --ptx_coef
INITS = {  # checkpoints; the SFT models differ in how much of the loss is pretraining loss
    "base": "from GPT",
    "ppo_init_mix_0": "from SFT, no pretraining mix",
    "ppo_init": "from SFT, a little mix (PPO's start)",
    "ppo_init_mix_0.5": "from SFT, half of it mix",
}
TITLES = {
    "kl_coef": "β = {:g}",
    "ptx_coef": "γ = {:g}",
    "ptx_per_episode": "{} examples per episode",
    "batch_size": "{} episodes per iteration",
    "minibatch_size": "minibatches of {}",
    "iterations": "{} iterations",
}


# ---------------------------------------------------------------------------------------------------- what is trained


def default_settings(cfg):
    """The settings of PPO-ptx around which one is varied."""
    names = ("kl_coef", "ptx_per_episode", "batch_size", "minibatch_size", "warmup_iterations", "value_only_iterations")
    settings = {name: getattr(ppo.Config, name) for name in (*names, "sample_prompts")}
    settings |= {"init": "ppo_init", "iterations": cfg.iterations, "ptx_coef": cfg.ptx_coef}
    return settings | (QUICK if cfg.quick else {})


def variants(cfg):
    """What a sweep trains: for each variant the settings that vary, the default's among them. -> [{name: value}]"""
    default, vary = default_settings(cfg), cfg.vary
    if vary == "kl_coef":
        return [{"kl_coef": kl, "ptx_coef": ptx} for ptx in (0.0, cfg.ptx_coef) for kl in sorted(KL_COEFS)]
    factors = {"ptx_per_episode": (0.5, 1, 4), "minibatch_size": (0.25, 0.5, 1, 2), "iterations": (0.5, 1, 2, 4)}
    factors["batch_size"] = (0.25, 0.5, 1, 2, 4)
    if vary in factors:
        return [{vary: int(default[vary] * factor)} for factor in factors[vary]]
    return [{vary: value} for value in (sorted(PTX_COEFS | {cfg.ptx_coef}) if vary == "ptx_coef" else INITS)]


def title_of(settings):
    """{"kl_coef": 0.5, "ptx_coef": 0} -> "β = 0.5, γ = 0" """
    return ", ".join(INITS[value] if key == "init" else TITLES[key].format(value) for key, value in settings.items())


def name_of(cfg, settings, seed):
    """The name of a policy's files: the seed, and what differs from this script's defaults, so flags are in it, too."""
    defaults, own = default_settings(Config(quick=cfg.quick)), default_settings(cfg) | settings
    return "_".join([*(f"{key}_{value}" for key, value in own.items() if value != defaults[key]), f"seed_{seed}"])


def ppo_config(cfg, settings, seed):
    """The ppo.Config of a variant, and of whatever has to follow from what is varied."""
    default = default_settings(cfg)
    chosen = default | settings
    for key in ("iterations", "warmup_iterations", "value_only_iterations"):  # counted in episodes
        chosen[key] = chosen[key] * default["batch_size"] // chosen["batch_size"]
    learning = chosen["iterations"] - chosen["value_only_iterations"]
    updates = learning * chosen["batch_size"] / chosen["minibatch_size"]
    default_updates = (ppo.Config.iterations - ppo.Config.value_only_iterations) * ppo.Config.batch_size
    default_updates /= ppo.Config.minibatch_size
    chosen["ema"] = round(ppo.Config.ema ** (default_updates / updates), 4)  # as little is left of the initial weights
    chosen |= {name: getattr(cfg, name) for name in ("data", "max_new_tokens", "device", "threads", "dtype")}
    chosen |= {"out": str(policies_folder(cfg)), "name": name_of(cfg, settings, seed), "seed": seed}
    chosen |= {"init": str(checkpoint_of(cfg, chosen["init"])), "reward_model": f"{cfg.out}/reward.pt"}
    return ppo.Config(**chosen, save_every=8, resume=True)


def results_folder(cfg):
    """Where all sweeps write; with --quick somewhere else, so that nothing is written over."""
    return Path(cfg.out) / "ablations" / ("quick" if cfg.quick else "")


def policies_folder(cfg):
    return results_folder(cfg) / "policies"


def checkpoint_of(cfg, init):
    """Where one of INITS lies: run.py has made two of them."""
    return (policies_folder(cfg) if "mix" in init else Path(cfg.out)) / f"{init}.pt"


def train_init(cfg, init):
    """SFT like the run's ppo_init.pt, which remembers its settings, but with another share of pretraining loss."""
    settings = settings_of(Path(cfg.out) / "ppo_init.pt", sft.Config)
    settings |= {name: getattr(cfg, name) for name in ("data", "device", "threads", "dtype")}
    settings |= {"init": f"{cfg.out}/base.pt", "out": str(policies_folder(cfg)), "name": init}
    settings |= {"pretrain_mix": float(init.rsplit("_", 1)[1]), "save_every": 50, "resume": True}
    sft.main(sft.Config(**settings | ({"epochs": 1} if cfg.quick else {})))


def seeds_of(text):
    """ "0,1" -> [0, 1], BadInput for anything else."""
    parts = [part.strip() for part in text.split(",")]
    right = all(part.isdecimal() and int(part) < 2**63 for part in parts) and len(set(parts)) == len(parts)
    require(right, f"--seeds {text}: must be different whole numbers, a,b")
    return [int(part) for part in parts]


# ---------------------------------------------------------------------------------------------------- measuring


def over_prompts(values):
    """One number per prompt or task item -> {"mean", "error" (half the 95 % interval), "values"}"""
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error, "values": [round(value, 4) for value in values]}


def measure(cfg, seeds, device):
    """All policies answer the validation prompts. -> {"n_prompts", "default", "references": {name: …}, "policies": […]}

    A policy is {"title", "settings", "measured": [{measure: {"mean", "error"}}, one per seed]}.
    """
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    judge, groups = load_judge_and_labelers(cfg)
    held_out, corpus = {"held_out": groups["held_out"]}, Corpus(cfg.data, "valid")
    items = [item for _, item in read_jsonl(Path(cfg.data) / "tasks.jsonl")]
    items = [item for item in items if item["split"] == "test" and item["task"] in TAXED]
    items = [item | {"task": str(i)} for i, item in enumerate(items)]  # each its own task: the answer to each is known

    def load(path):
        return load_policy(path, cfg, device, tokenizer_spec, sharded=False)

    reward_model = load_scalar_model(Path(cfg.out) / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    room = reward_model.config.block_size - cfg.max_new_tokens
    records = with_room(read_prompts(cfg.data, "valid"), tokenizer, room)[: 8 if cfg.quick else cfg.prompts]
    prompts = [record["prompt"] for record in records]

    def answer(model, seed, purpose, temperature):
        sampler, rng = sampling_copy(model, cfg), generator(seed, purpose)
        return respond(sampler, tokenizer, prompts, cfg.max_new_tokens, temperature, rng)

    start = load(checkpoint_of(cfg, "ppo_init"))
    opponents = {"win_rate": answer(start, cfg.seed, "opponents", 1.0), "win_rate_greedy": answer(start, 0, "", 0.0)}

    def measured(path, seed, reference=None):
        model = load(path)
        answers = {"win_rate": answer(model, seed, "answers", 1.0), "win_rate_greedy": answer(model, 0, "", 0.0)}
        scores = score_answers(reward_model, tokenizer, prompts, answers["win_rate"])
        gold = [judge(prompt, text)["likert"] for prompt, (text, _) in zip(prompts, answers["win_rate"])]
        found = {"score": over_prompts(scores), "likert": over_prompts(gold)}
        for how, others in opponents.items():
            rate = win_rates(held_out, cfg.labelers, prompts, answers[how], others, cfg.seed)["held_out"]
            found[how] = {"mean": rate["mean"], "error": rate["high"] - rate["mean"]}
        found["tasks"] = over_prompts([float(right) for right in task_scores(model, tokenizer, items).values()])
        found["corpus_loss"] = {"mean": corpus_loss(model, corpus), "error": 0.0}
        if reference is not None:
            kl = kl_of_answers(model, reference, tokenizer, prompts, answers["win_rate"])
            log = [record for _, record in read_jsonl(path.with_suffix(".jsonl"))]
            seconds = sum(record["seconds_rollout"] + record["seconds_update"] for record in log)
            found |= {"kl": {"mean": kl, "error": 0.0}, "seconds": {"mean": seconds, "error": 0.0}}
        return found

    references, policies = {}, []
    for name, init in (("GPT", "base"), ("PPO's start", "ppo_init")):
        path = checkpoint_of(cfg, init)
        references[name] = {"title": name, "measured": [measured(path, seed) for seed in seeds]}
    default = default_settings(cfg)
    for settings in variants(cfg):
        reference = load(checkpoint_of(cfg, (default | settings)["init"]))
        paths = {seed: policies_folder(cfg) / f"{name_of(cfg, settings, seed)}.pt" for seed in seeds}
        numbers = [measured(path, seed, reference) for seed, path in paths.items()]
        policies.append({"title": title_of(settings), "settings": settings, "measured": numbers})
    default_title = next(title_of(s) for s in variants(cfg) if (default | s) == default)
    return {"n_prompts": len(prompts), "default": default_title, "references": references, "policies": policies}


# ---------------------------------------------------------------------------------------------------- comparing

MEASURES = {  # {measure: (name, digits, times)}
    "score": ("reward-model score", 2, 1),
    "likert": ("judge's Likert", 2, 1),
    "win_rate": ("% preferred to PPO's start, T = 1", 1, 100),
    "win_rate_greedy": ("% preferred, both greedy", 1, 100),
    "tasks": ("% right, four public tasks", 1, 100),
    "corpus_loss": ("corpus loss", 3, 1),
    "kl": ("KL to its start", 2, 1),
    "seconds": ("seconds", 0, 1),
}
WITH_INTERVAL = ("score", "likert", "win_rate", "win_rate_greedy", "tasks")
WORDS = {1: "higher", -1: "lower", 0: "not significant"}


def over_seeds(policy, key):
    """Means over the seeds of mean and error: all answer the same prompts, so more seeds need not narrow it."""
    numbers = [measured[key] for measured in policy["measured"]]
    return fmean(x["mean"] for x in numbers), fmean(x["error"] for x in numbers)


def difference(one, other, key):
    """How much more of a measure `one` has than `other`. -> mean, 95 % error, 1 or -1 if significant, else 0

    Prompt by prompt where there is a number for each; else as if the two were independent, which is the wider interval.
    """
    pairs = [(a[key], b[key]) for a, b in zip(one["measured"], other["measured"], strict=True)]
    by_seed = [a["mean"] - b["mean"] for a, b in pairs]
    mean = fmean(by_seed)
    if "values" in pairs[0][0]:
        by_prompt = zip(*([x - y for x, y in zip(a["values"], b["values"], strict=True)] for a, b in pairs))
        _, error = mean_and_error([fmean(column) for column in by_prompt])
    else:
        error = math.hypot(over_seeds(one, key)[1], over_seeds(other, key)[1])
    sign = (mean > error) - (mean < -error)
    return mean, error, sign if all(x * sign > 0 for x in by_seed) else 0


def more(one, other, key):
    """Has `one` significantly more of it than `other`?"""
    return difference(one, other, key)[2] > 0


def amount(policy, key):
    """A measure as text."""
    _, digits, times = MEASURES[key]
    return f"{times * over_seeds(policy, key)[0]:.{digits}f}"


def change(one, other, key):
    """The difference of two as text, "-0.42 ± 0.10"; of a measure without an interval "-0.042"."""
    _, digits, times = MEASURES[key]
    mean, error, _ = difference(one, other, key)
    interval = f" ± {times * error:.{digits}f}" if key in WITH_INTERVAL else ""
    return f"{round(times * mean, digits) + 0.0:+.{digits}f}{interval}"  # + 0.0: no "-0.00"


def compared(one, other, key):
    """Two policies by one measure, in words."""
    words, name = WORDS[difference(one, other, key)[2]], MEASURES[key][0]
    amounts = [f"{amount(policy, key)} ({policy['title']})" for policy in (one, other)]
    return f"{name} {amounts[0]} against {amounts[1]}, {words}: {change(one, other, key)}"


def against(policies, default, key):
    """All policies against the default by one measure, in words."""
    others, parts = [policy for policy in policies if policy is not default], []
    for sign, words in WORDS.items():
        members = [
            f"{p['title']} ({change(p, default, key)})" for p in others if difference(p, default, key)[2] == sign
        ]
        parts.append(f"{words}: {', '.join(members) or 'none'}")
    return f"{MEASURES[key][0]} {amount(default, key)} ({default['title']}); {'; '.join(parts)}"


# ------------------------------------------------------------------------------------------------- the paper's findings


class Finding(NamedTuple):
    """What the paper found, whether it shows here, and the numbers that say so."""

    paper: str
    shows: bool
    numbers: str
    no_difference: bool = False  # it says that there is none, of which no significant difference is no proof


def default_of(found):
    """The policy with the default settings."""
    return next(policy for policy in found["policies"] if policy["title"] == found["default"])


def findings(found):
    """The paper's findings about the setting that was varied, each held against the numbers. -> [Finding]"""
    return FINDINGS[found["vary"]](found)


def kl_coef_findings(found):
    default, gpt = default_of(found), found["references"]["GPT"]
    all_without_ptx = [policy for policy in found["policies"] if policy["settings"]["ptx_coef"] == 0]
    loosest, *_, strictest = [policy for policy in found["policies"] if policy["settings"]["ptx_coef"] != 0]
    without_ptx = next(
        policy for policy in all_without_ptx if policy["settings"]["kl_coef"] == default["settings"]["kl_coef"]
    )
    strict = all_without_ptx[-1]
    return [
        Finding(
            "Without ptx PPO falls below GPT on the public tasks (§4.2).",
            more(gpt, without_ptx, "tasks"),
            f"{compared(without_ptx, gpt, 'tasks')}; {compared(without_ptx, gpt, 'corpus_loss')}",
        ),
        Finding(
            "Even the largest β leaves it there (App. E.6).",
            more(gpt, strict, "tasks"),
            f"{compared(strict, gpt, 'tasks')}; {compared(strict, gpt, 'corpus_loss')}",
        ),
        Finding(
            "It costs reward (App. E.6).", more(without_ptx, strict, "score"), compared(strict, without_ptx, "score")
        ),
        Finding(
            "Ptx brings it back to GPT (§4.2).",
            more(default, without_ptx, "tasks") and not more(gpt, default, "tasks"),
            f"{compared(default, without_ptx, 'tasks')}; {compared(default, gpt, 'tasks')}",
        ),
        Finding(
            "With ptx, no KL term at all is worse than the default's (App. E.7).",
            more(default, loosest, "likert"),
            compared(loosest, default, "likert"),
        ),
        Finding(
            "So is the largest β (App. E.7).",
            more(default, strictest, "likert"),
            compared(strictest, default, "likert"),
        ),
    ]


def ptx_coef_findings(found):
    policies, default, gpt = found["policies"], default_of(found), found["references"]["GPT"]
    none, *mixed = policies
    below = [more(gpt, policy, "tasks") for policy in policies]
    enough = next((p["title"] for i, p in enumerate(policies) if not any(below[i:])), "no γ that was tried")
    return [
        Finding(
            "What PPO loses of the public tasks, a large enough γ gives back (App. E.6).",
            below[0] and not below[-1],
            f"not significantly lower than GPT's from {enough} on; {compared(none, gpt, 'tasks')}; "
            f"{compared(mixed[-1], gpt, 'tasks')}",
        ),
        Finding(
            "The reward falls as γ grows (App. E.6).",
            more(none, mixed[-1], "score"),
            compared(mixed[-1], none, "score"),
        ),
        Finding(
            "How good the answers are hardly depends on γ, as long as it is not 0 (App. E.6).",
            not any(difference(policy, default, "likert")[2] for policy in mixed),
            against(mixed, default, "likert"),
            no_difference=True,
        ),
    ]


def ptx_per_episode_findings(found):
    fewest, *_, most = found["policies"]
    default, start = default_of(found), found["references"]["PPO's start"]
    cost = over_seeds(most, "seconds")[0] / over_seeds(default, "seconds")[0]
    return [
        Finding(
            "With half as many the pretraining loss rises while PPO trains (App. E.11).",
            more(fewest, start, "corpus_loss"),
            f"{compared(fewest, start, 'corpus_loss')}; {compared(default, start, 'corpus_loss')}",
        ),
        Finding(
            "Four times as many make better answers (App. E.11).",
            more(most, default, "likert"),
            compared(most, default, "likert"),
        ),
        Finding(
            "They cost more than twice the time (App. E.11: several times).", cost > 2, f"{cost:.1f} times the seconds"
        ),
    ]


def iterations_findings(found):
    shortest, *_, twice, four_times = found["policies"]
    gpt = found["references"]["GPT"]
    return [
        Finding(
            "Training longer than twice the default brings nothing more (App. E.6, E.11).",
            not more(four_times, twice, "likert"),
            f"{compared(four_times, twice, 'likert')}; {compared(four_times, twice, 'score')}",
            no_difference=True,
        ),
        Finding(
            "PPO-ptx begins above GPT on the public tasks (App. E.6).",
            more(shortest, gpt, "tasks"),
            compared(shortest, gpt, "tasks"),
        ),
        Finding(
            "It ends a little below (App. E.6).", more(gpt, four_times, "tasks"), compared(four_times, gpt, "tasks")
        ),
    ]


def default_is_best(paper):
    """For a setting of which the paper found the default best: is no other better, and one worse? -> a function"""

    def found_best(found):
        default, policies = default_of(found), found["policies"]
        signs = [difference(policy, default, "likert")[2] for policy in policies]
        return [Finding(paper, 1 not in signs and -1 in signs, against(policies, default, "likert"))]

    return found_best


def init_findings(found):
    default = default_of(found)
    fine_tuned = [policy for policy in found["policies"] if policy["settings"]["init"] != "base"]  # the paper's three
    others = [policy for policy in fine_tuned if policy is not default]
    return [
        Finding(
            "Of 0, 10 and 50 % pretraining mix in PPO's start only 10 % stands out (App. C.3, E.8).",
            all(more(default, policy, "likert") for policy in others),
            against(fine_tuned, default, "likert"),
        )
    ]


FINDINGS = {
    "kl_coef": kl_coef_findings,
    "ptx_coef": ptx_coef_findings,
    "ptx_per_episode": ptx_per_episode_findings,
    "batch_size": default_is_best(
        "Of 64 to 1,024 episodes per iteration none beats the default, some lose to it (App. E.11; theirs: 512)."
    ),
    "minibatch_size": default_is_best(
        "Of 8, 16, 32 and 64 episodes per update none beats 32, some lose to it (App. E.11)."
    ),
    "iterations": iterations_findings,
    "init": init_findings,
}


# ---------------------------------------------------------------------------------------------------- the page


def page(found):
    """What the paper found, what shows here, and every number, as markdown."""
    policies, default = found["policies"], default_of(found)
    seeds = len(default["measured"])
    lines = [f"# PPO with another {found['vary']}", ""]
    if found["quick"]:
        lines += ["--quick: the numbers mean nothing.", ""]
    lines += [
        f"{found['n_prompts']} validation prompts; the test prompts are left for the final evaluation. The default has "
        f"{found['iterations']} iterations (ppo.py: {ppo.Config.iterations}), every variant {seeds} "
        f"seed{'s' if seeds > 1 else ''}. ±: half a 95 % interval.",
        "",
    ]
    for finding in findings(found):
        shows = "Nothing speaks against it here" if finding.no_difference else "It shows here"
        lines.append(f"- {finding.paper} {shows if finding.shows else 'It does not show here'}: {finding.numbers}.")
    shown = [policy for policy in policies if policy is not default]
    keys = (*WITH_INTERVAL, "corpus_loss")
    rows = [
        [p["title"], *(change(p, default, k) + " *" * abs(difference(p, default, k)[2]) for k in keys)] for p in shown
    ]
    lines += ["", table([f"minus {default['title']}; *: significant", *(MEASURES[key][0] for key in keys)], rows), ""]
    rows = [[p["title"], *(cell(p, key) for key in MEASURES)] for p in (*found["references"].values(), *policies)]
    head = "mean (each seed) ± over prompts" if seeds > 1 else "mean ± over prompts"
    return "\n".join([*lines, table([head, *(name for name, _, _ in MEASURES.values())], rows), ""])


def cell(policy, key):
    """Mean, each seed's, and error; "-" where a policy has no such measure."""
    if key not in policy["measured"][0]:
        return "-"
    _, digits, times = MEASURES[key]
    each = [f"{times * measured[key]['mean']:.{digits}f}" for measured in policy["measured"]]
    seeds = f" ({', '.join(each)})" if len(set(each)) > 1 else ""
    interval = f" ± {times * over_seeds(policy, key)[1]:.{digits}f}" if key in WITH_INTERVAL else ""
    return f"{amount(policy, key)}{seeds}{interval}"


def settings_figure(found):
    """Score, Likert, tasks and corpus loss by setting; PPO-ptx, PPO if it is there. -> matplotlib's Figure or None"""
    if (figure := new_figure(6)) is None:
        return None
    vary, lines = found["vary"], {}
    for policy in found["policies"]:
        name = title_of({"ptx_coef": policy["settings"]["ptx_coef"]}) if vary == "kl_coef" else ""
        lines.setdefault(name, []).append(policy)
    for axes, key in zip(figure.subplots(2, 2).flat, ("score", "likert", "tasks", "corpus_loss")):
        name, _, times = MEASURES[key]
        for (label, policies), colour in zip(lines.items(), colours(len(lines))):
            means, errors = zip(*(over_seeds(policy, key) for policy in policies))
            means, errors = ([times * x for x in column] for column in (means, errors))
            style = {"linestyle": "" if vary == "init" else "-", "marker": "o", "capsize": 2}
            axes.errorbar(range(len(means)), means, errors, color=colour, label=label, **style)
        for (title, policy), style in zip(found["references"].items(), (":", "--")):
            if key in ("tasks", "corpus_loss") or title != "GPT":  # GPT's answers are far below all others
                axes.axhline(times * over_seeds(policy, key)[0], color="grey", linestyle=style, label=title)
        values = [policy["settings"][vary] for policy in policies]
        axes.set_xticks(range(len(values)), [str(value) for value in values], rotation=20 if vary == "init" else 0)
        axes.set(xlabel=vary, title=name)
        axes.grid(alpha=0.3)
    labels = dict(zip(*reversed(figure.axes[-1].get_legend_handles_labels())))
    labels.pop("", None)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4)
    return figure


def main(cfg):
    device, seeds, run_folder = set_up(cfg), seeds_of(cfg.seeds), Path(cfg.out)
    right = cfg.iterations % 4 == 0 and cfg.iterations >= 12
    require(right, f"--iterations {cfg.iterations}: must be a multiple of 4, at least 12, so that it can be divided")
    for file in ("base.pt", "ppo_init.pt", "reward.pt"):
        fix = f"make it first with: python run.py --out {cfg.out}"
        require((run_folder / file).exists(), f"{run_folder / file}: not found; {fix}")
    read_world(cfg.data)  # BadInput if it is not the village's
    out = output_folder(results_folder(cfg) / cfg.vary)
    if cfg.vary == "init":
        for init in (init for init in INITS if "mix" in init):
            print(f"\n=== {INITS[init]} ===", flush=True)
            train_init(cfg, init)
    for settings in variants(cfg):
        for seed in seeds:
            print(f"\n=== {title_of(settings)}, seed {seed} ===", flush=True)
            ppo.main(ppo_config(cfg, settings, seed))
    found = {"vary": cfg.vary, "config": vars(cfg), "quick": cfg.quick}
    found |= {"iterations": default_settings(cfg)["iterations"], **measure(cfg, seeds, device)}
    as_dicts = {"findings": [finding._asdict() for finding in findings(found)]}
    save_results(out, "results", found | as_dicts, page(found), settings_figure(found))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
