"""How far can a reward model be pushed? PPO under several weights β of the KL term (§4.2, App. E.7).

    python ablations/over_optimisation.py   # after run.py; -> OUT/kl_coef.md, kl_coef.json, with matplotlib kl_coef.png

The proxy is what PPO maximises, the reward model's score; the gold score is the judge's Likert, which nothing trains
on. A reward model is right about the answers that it was trained on, and wrong somewhere else. Without the KL term
(β = 0) nothing keeps the policy near the answers it knows, and PPO looks for its errors: the proxy goes on rising while
the gold score falls. The answers to one prompt along the way show what the reward model mistook for good.

The paper found β = 0 and β = 2 both poor, and the best between 0.01 and 0.02 (App. E.7); our scores have another scale.
"""

import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ppo
from core.config import Device, PositiveInt, Seed, command_line, require
from core.output import output_folder
from core.ranking_metrics import mean_and_error
from core.report import colours, new_figure, save_results, shortened, table, thinned
from data.folder import read_jsonl
from data.village.judge import Judge


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder, of the village: its judge gives the gold score
    out: str = "out/run"  # run folder with ppo_init.pt
    reward_model: str = ""  # default: OUT/reward.pt; OUT/round1/reward.pt has never seen an answer by PPO
    kl_coefs: str = "0,0.05,0.15"  # the β to compare, a,b; each trains a policy kl_coef_β.pt
    iterations: PositiveInt = 100  # of PPO
    sample_every: PositiveInt = 9  # iterations between samples on validation prompts
    sample_prompts: PositiveInt = 96  # how many
    seed: Seed = 0  # of PPO, and of the prompt that is shown


def numbers(text):
    """ "0,0.1" -> [0.0, 0.1], BadInput for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    require(
        values and all(0 <= value < 1e6 for value in values), f"--kl_coefs {text}: must be numbers of 0 or more, a,b"
    )
    return values


def name_of(kl_coef):
    return f"kl_coef_{kl_coef:g}"


def curve(samples, judge):
    """Proxy and gold along one training run, and the 95 % error over prompts of how far each has moved from its start.

    samples: records of NAME.samples.jsonl -> [{"iteration", "kl", "score", "gold": (mean, error)}]
    """
    by_iteration = defaultdict(dict)  # {iteration: {prompt: {"kl", "score", "gold"}}}
    for sample in samples:
        gold = judge(sample["prompt"], sample["completion"])["likert"]
        values = {"kl": sample["kl"], "score": sample["score"], "gold": gold}
        by_iteration[sample["iteration"]][sample["prompt"]] = values
    start, points = by_iteration[min(by_iteration)], []
    for iteration, now in sorted(by_iteration.items()):
        point = {"iteration": iteration}
        for key in ("kl", "score", "gold"):
            mean, _ = mean_and_error([values[key] for values in now.values()])
            _, error = mean_and_error([values[key] - start[prompt][key] for prompt, values in now.items()])
            point[key] = mean, error  # prompts differ by more than a policy moves, so each is compared with itself
        points.append(point)
    return points


def sqrt_kl(point):
    """√KL to PPO's start; an estimate from samples may fall below 0."""
    return max(point["kl"][0], 0) ** 0.5


def main(cfg):
    out = output_folder(cfg.out)
    judge, kl_coefs = Judge(cfg.data), numbers(cfg.kl_coefs)
    shared = ("data", "out", "iterations", "sample_every", "sample_prompts", "seed", "device", "threads", "dtype")
    shared = {name: getattr(cfg, name) for name in shared}
    shared["reward_model"] = cfg.reward_model or str(out / "reward.pt")
    curves, answers = {}, {}
    for kl_coef in kl_coefs:
        ppo.main(ppo.Config(**shared, kl_coef=kl_coef, name=name_of(kl_coef), save_every=cfg.iterations, resume=True))
        samples = [record for _, record in read_jsonl(out / f"{name_of(kl_coef)}.samples.jsonl")]
        curves[kl_coef] = curve(samples, judge)
        prompts = sorted({sample["prompt"] for sample in samples})
        prompt = random.Random(cfg.seed).choice(prompts)
        answers[kl_coef] = [sample for sample in samples if sample["prompt"] == prompt]
    save_results(
        out,
        "kl_coef",
        {"config": vars(cfg), "curves": curves, "answers": answers},
        page(curves, answers),
        over_optimisation_figure(curves),
    )


def page(curves, answers):
    """What happened under every β, and four answers to one prompt under the smallest."""
    rows = []
    for kl_coef, points in curves.items():
        for point in thinned(points, 4):
            cells = [f"{mean:.2f} ± {error:.2f}" for mean, error in (point["score"], point["gold"])]
            rows.append([f"β = {kl_coef:g}", point["iteration"] + 1, f"{sqrt_kl(point):.2f}", *cells])
    head = ["", "iteration", "√KL", "proxy: reward model", "gold: judge, 1-7"]
    loosest = min(answers)
    lines = [f"β = {loosest:g}: {shortened(answers[loosest][0]['prompt'], 90)}"]
    for sample in thinned(answers[loosest], 4):
        lines.append(f"  {sample['iteration'] + 1:3}  {sample['score']:+.2f}  {shortened(sample['completion'], 90)}")
    return "\n".join([table(head, rows), "", *lines, ""])


def over_optimisation_figure(curves):
    """Proxy and gold score along training, a line per β, 95 % intervals over prompts. -> matplotlib's Figure or None"""
    if (figure := new_figure(4)) is None:
        return None
    for axes, key in zip(figure.subplots(1, 2), ("score", "gold")):
        for (kl_coef, points), colour in zip(curves.items(), colours(len(curves))):
            steps = [point["iteration"] + 1 for point in points]
            means, errors = zip(*(point[key] for point in points))
            axes.errorbar(steps, means, errors, capsize=2, color=colour, label=f"β = {kl_coef:g}")
        axes.set_xlabel("iteration of PPO")
        axes.grid(alpha=0.3)
    proxy, gold = figure.axes
    proxy.set_title("Proxy: reward-model score")
    gold.set_title("Gold: the judge's Likert, 1-7")
    figure.legend(*proxy.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return figure


if __name__ == "__main__":
    command_line(Config, main, __doc__)
