"""Everything that has to be measured on a GPU, in one go: does it compute what a CPU does, and how fast?

    python tools/gpu_check.py                                   # on a GPU, within 10 minutes → out/gpu/gpu.md, gpu.json
    python tools/gpu_check.py --only parity,gpt2                # some of the parts
    python tools/gpu_check.py --device cpu --small              # all parts with tiny sizes, to see that they work

Each part is a process of its own with a limit in seconds, so that one that fails or hangs costs the others nothing;
what was measured is written after each. Parts for which no time is left are named. Rates stand beside their roofline,
as in tools/benchmark.py, whose functions are called here; what should be reached is in TARGETS.
"""

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import model as plain
import ppo
from core.batches import generator
from core.config import Device, PositiveFloat, Seed, command_line, require
from core.device import choose_device, configure_model, set_up
from core.optim import adamw, optimizer_step
from core.output import output_folder, whole_file
from core.sampling import generate
from core.text import pad_responses
from core.training_state import saved_states
from model import GPT, SIZES, ScalarModel, lm_loss, response_mask, token_logprobs
from reward import Ranking, ranking_losses
from sft import response_tokens, sft_loss
from tools import benchmark


@dataclass
class Config(Device):
    out: str = "out/gpu"  # folder of the results
    minutes: PositiveFloat = 9.5  # for all parts together
    only: str = ""  # names of parts, a,b; default: all
    small: bool = False  # tiny sizes
    part: str = ""  # run this part in this process, as the script does for each of them
    seed: Seed = 0  # of weights and tokens


# ---------------------------------------------------------------------------------------------------- what is measured

PARTS = {  # name -> seconds that it may take; the most important come first
    "parity": 60,
    "tests": 120,
    "gpt2": 90,
    "run": 150,
    "gpt2-xl": 150,
    "gpt2 --capture": 60,
    "resume": 60,
    "chain": 150,
    "profile": 60,
    "gpt2 --compile": 120,
    "gpt2 --versus transformers": 60,
    "gpt2 --versus trl": 60,
}

TARGETS = [  # part, beginning of the row, what of the row, at least or at most
    ("gpt2", "sampling", "share", ">=", 0.60),
    ("gpt2", "training", "share", ">=", 0.35),
    ("gpt2-xl", "sampling", "share", ">=", 0.60),
    ("gpt2-xl", "training", "share", ">=", 0.50),
    ("gpt2", "PPO", "share", ">=", 0.40),
    ("gpt2-xl", "PPO", "share", ">=", 0.40),
    ("gpt2", "  peak memory", "excess", "<=", 1.2),
    ("gpt2-xl", "  peak memory", "excess", "<=", 1.2),
    ("run", "run.py", "seconds", "<=", 90),
]


class Table(list):
    """Rows {what, measured, bound, note}, and with a limit also whether it is kept."""

    def row(self, what, measured, bound="", note="", kept=None):
        self.append({"what": what, "measured": measured, "bound": bound, "note": note, "kept": kept})

    def at_most(self, what, value, limit):
        self.row(what, f"{value:.2g}", f"{limit:.2g}", "", bool(value <= limit))


def judged(part, row):
    """The row with `kept`: is its target reached? None where there is none."""
    for name, beginning, kind, sign, limit in TARGETS:
        if name == part and row["what"].startswith(beginning):
            if kind == "share":
                value = float(row["note"].rstrip("%")) / 100
            elif kind == "seconds":
                value = float(row["measured"].split()[0])
            else:
                value = float(row["measured"].split()[0]) / float(row["bound"].split()[0])
            kept = value >= limit if sign == ">=" else value <= limit
            return row | {"kept": kept, "note": f"{row['note']} (target {sign} {limit})".strip()}
    return row


# ---------------------------------------------------------------------------------------------------- the same numbers

SHAPE = replace(SIZES["village"], vocab_size=500)


def made(kind, device, seed):
    """The same weights on every device, with noise, so that no bias is 0 and no gain is 1."""
    torch.manual_seed(seed)
    model = kind(SHAPE).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.to(device)


def computed(device):
    """-> {what: tensor} of one forward pass, and sampled text."""
    policy, scalar, rng = made(GPT, device, 0), made(ScalarModel, device, 1), generator(0)
    tokens = torch.randint(500, (8, 64), generator=rng).to(device)
    mask = response_mask(torch.full((8,), 20), torch.arange(30, 62, 4), 64).to(device)
    prompts = [torch.randint(499, (n,), generator=rng).tolist() for n in range(3, 35, 2)]
    uniforms = torch.rand(40, 16, generator=rng).to(device)
    with torch.no_grad():
        found = {"logits": policy.unembed(policy(tokens)), "log-probs": token_logprobs(policy, tokens, mask)}
        found["scores"] = scalar.score(tokens, mask.sum(1).long() + 20)
    for name, sample in (("plain sampling", plain.generate), ("sampling", generate)):
        found[name] = sample(policy, prompts, 40, 499, uniforms=uniforms)[0]
    return {name: value.cpu() for name, value in found.items()}


def stepped(model, loss):
    """-> loss, {name: weight} after one step"""
    loss.backward()
    optimizer_step(adamw(model, 1e-4), model, 1e-4, 1.0)
    return loss.item(), {name: weight.cpu() for name, weight in model.state_dict().items()}


def updates(device):
    """One update of each stage -> {stage: (loss, weights)}"""
    rng = generator(1)
    windows = torch.randint(500, (8, 33), generator=rng).to(device)
    rows = [(torch.randint(500, (n,), generator=rng).tolist(), n // 2) for n in range(6, 22)]
    rankings = [Ranking([ids for ids, _ in rows[i : i + 4]], [1, 2, 2, 3], [], "", "") for i in range(0, 16, 4)]
    policy, scalar = made(GPT, device, 0), made(ScalarModel, device, 1)
    found = {"pretrain": stepped(policy, lm_loss(policy, windows).mean())}
    policy = made(GPT, device, 0)
    found["sft"] = stepped(policy, sft_loss(policy, *pad_responses(rows, device)).sum() / response_tokens(rows))
    found["reward"] = stepped(scalar, ranking_losses(scalar, rankings).mean())

    cfg = ppo.Config(batch_size=16, minibatch_size=16, max_new_tokens=24, ptx_coef=0.5, dtype="float32")
    models = [made(kind, device, seed) for seed, kind in enumerate((GPT, GPT, ScalarModel, ScalarModel))]
    policy, _, _, value_model = models
    episodes = ppo.rollout(policy, [ids[:n] for ids, n in rows], 499, cfg, rng)
    episodes |= ppo.score_responses(episodes, *models, cfg)
    mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
    rewards = ppo.shaped_rewards(episodes["scores"], logprobs, ref_logprobs, mask, cfg.kl_coef)
    advantages, returns = ppo.advantages_and_returns(rewards, episodes["values"], mask, cfg)
    windows = torch.randint(500, (16, cfg.ptx_per_episode, cfg.ptx_window + 1), generator=rng)
    episodes |= {"advantages": advantages, "returns": returns, "pretraining": windows.to(device)}
    average = {name: weight.clone() for name, weight in policy.state_dict().items()}
    of_policy = ppo.update_policy(policy, adamw(policy, 1e-4), average, episodes, 1e-4, cfg)
    of_values = ppo.update_values(value_model, adamw(value_model, 1e-4), episodes, cfg)
    for name, model, loss in (
        ("ppo, policy", policy, of_policy["ptx_loss"]),
        ("ppo, values", value_model, of_values["value_loss"]),
    ):
        found[name] = loss, {key: weight.cpu() for key, weight in model.state_dict().items()}
    return found


def parity(cfg, device, table):
    """The CPU's numbers beside this device's, in float32: they differ by the order of additions."""
    torch.set_float32_matmul_precision("highest")
    ours, theirs = computed("cpu"), computed(device)
    for name in ("logits", "log-probs", "scores"):
        table.at_most(f"{name}: largest difference", (ours[name] - theirs[name]).abs().max().item(), 1e-3)
    for name in ("plain sampling", "sampling"):
        T = min(ours[name].size(1), theirs[name].size(1))
        table.at_most(
            f"{name}: share of other tokens", (ours[name][:, :T] != theirs[name][:, :T]).float().mean().item(), 0.05
        )
    ours, theirs = updates("cpu"), updates(device)
    for stage, (loss, weights) in ours.items():
        table.at_most(f"{stage}: difference of the loss", abs(loss - theirs[stage][0]), 1e-3)
        moved = max((weights[name] - theirs[stage][1][name]).abs().max().item() for name in weights)
        table.at_most(f"{stage}: largest difference of a weight after a step", moved, 2.1e-4)  # Adam moves it by 1e-4


# ---------------------------------------------------------------------------------------------------- scripts


def script(*words, **more):
    """Run a script of the project as a user would. -> its output; raises where it fails"""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, **more)
    require(done.returncode == 0, f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def tests(cfg, device, table):
    """tests/test_cuda.py"""
    table.row("tests/test_cuda.py", script("-m", "pytest", "-q", "tests/test_cuda.py").strip().splitlines()[-1])


def whole_run(cfg, device, table):
    """python run.py, and what comes out"""
    out, start = Path(cfg.out) / "run", time.time()
    script("run.py", "--out", str(out), "--device", cfg.device, "--threads", str(cfg.threads), *["--quick"] * cfg.small)
    table.row("run.py", f"{time.time() - start:.1f} s")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for result in report["models"].values():
        for group, rate in result.get("win_rate", {}).items():
            table.row(f"  {result['name']}, {group} labelers", f"{100 * rate['mean']:.1f} %")


def resume(cfg, device, table):
    """ppo.py, killed after a saved state and resumed, beside the same uninterrupted. Needs the part "run"."""
    out = Path(cfg.out) / "run"
    require((out / "reward.pt").exists(), f"{out}/reward.pt: not there; run the part run first")
    flags = [
        "--data",
        f"{out}/data",
        "--out",
        str(out),
        "--device",
        cfg.device,
        "--iterations",
        "8",
        "--sample_every",
        "100",
    ]
    if cfg.small:
        flags += ["--batch_size", "16", "--minibatch_size", "16"]
    script("ppo.py", *flags, "--name", "uninterrupted")
    flags += ["--name", "interrupted", "--save_every", "1"]
    process = subprocess.Popen([sys.executable, "ppo.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and max(saved_states(out, "interrupted"), default=0) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    table.row("killed after iteration", str(max(saved_states(out, "interrupted"), default=0)))
    script("ppo.py", *flags, "--resume")
    one, other = (
        torch.load(out / f"{name}.pt", weights_only=True)["model"] for name in ("uninterrupted", "interrupted")
    )
    table.at_most("largest difference of a weight", max((one[n] - other[n]).abs().max().item() for n in one), 1e-2)


def chain(cfg, device, table):
    """All scripts at GPT-2's size, a few steps each from random weights, on the data of the part "run"."""
    run, out = Path(cfg.out) / "run", Path(cfg.out) / "chain"
    require((run / "comparisons.jsonl").exists(), f"{run}/comparisons.jsonl: not there; run the part run first")
    size = ["--size", "village" if cfg.small else "gpt2", "--block_size", "160", "--steps", "20"]
    ppo_sizes = ["--iterations", "2", "--value_only_iterations", "1", "--batch_size", "64", "--sample_prompts", "8"]
    for name, *flags in (
        ("pretrain.py", *size),
        ("sft.py", "--name", "ppo_init", "--epochs", "1", "--batch_size", "128", "--pretrain_mix", "0.1"),
        ("reward.py", "--comparisons", str(run / "comparisons.jsonl"), "--batch_size", "32"),
        ("ppo.py", "--ptx_coef", "0.5", *ppo_sizes),
    ):
        start, where = time.time(), ["--data", f"{run}/data", "--out", str(out), "--device", cfg.device]
        script(name, *where, "--threads", str(cfg.threads), *flags)
        table.row(name, f"{time.time() - start:.1f} s")


# ---------------------------------------------------------------------------------------------------- speed


def benchmark_config(cfg, part):
    """Of a part like "gpt2 --capture": 512 episodes of 128 + 128 tokens, minibatches of 64."""
    size, *flags = part.split()
    more = {"capture": "--capture" in flags, "compile": "--compile" in flags, "device": cfg.device, "dtype": cfg.dtype}
    more["threads"] = cfg.threads
    more |= {"versus": flags[1] if "--versus" in flags else "", "seed": cfg.seed, "without_cache": cfg.small}
    if cfg.small:
        sizes = dict(
            batch_size=8, minibatch_size=4, prompt_tokens=8, new_tokens=8, mean_length=4, ptx_window=8, repeat=1
        )
        return benchmark.Config(size="village", **sizes, **more)
    sizes = dict(batch_size=512, minibatch_size=64, prompt_tokens=128, new_tokens=128, mean_length=64, ptx_window=32)
    if size == "gpt2-xl":
        more |= {"micro_batch_size": 16, "repeat": 1}
    return benchmark.Config(size=size, **sizes, **more)


def speed(cfg, part, table):
    """tools/benchmark.py, its rows kept."""
    printed = benchmark.row

    def kept(what, measured, roofline="", note=""):
        printed(what, measured, roofline, note)
        if what:
            table.row(what, measured, roofline, note)

    benchmark.row = kept
    benchmark.main(benchmark_config(cfg, part))


def profile(cfg, device, table):
    """Where the time of a PPO iteration goes: the functions that took longest → OUT/profile.txt"""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    settings = replace(benchmark_config(cfg, "gpt2"), repeat=1)
    shape = SIZES[settings.size]
    policy, reward_model = (configure_model(kind(shape).to(device), settings) for kind in (GPT, ScalarModel))
    prompts = [[i % 97] * settings.prompt_tokens for i in range(settings.batch_size)]
    iteration, _ = benchmark.ppo_iteration(policy, reward_model, prompts, settings, device)
    iteration()
    with torch.profiler.profile(activities=activities) as traced:
        iteration()
    events, by = traced.key_averages(), "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    with whole_file(Path(cfg.out) / "profile.txt") as file:
        file.write(events.table(sort_by=by, row_limit=40))
    for event in sorted(events, key=lambda event: -getattr(event, by))[:5]:
        table.row(f"  {event.key[:44]}", f"{getattr(event, by) / 1e3:,.0f} ms", "", f"{event.count} calls")


# ---------------------------------------------------------------------------------------------------- all of it


def one_part(cfg):
    """Run one part in this process -> OUT/PART.json"""
    device, table = set_up(cfg), Table()
    scripts = {"parity": parity, "tests": tests, "run": whole_run, "resume": resume, "chain": chain, "profile": profile}
    try:
        if cfg.part in scripts:
            scripts[cfg.part](cfg, device, table)
        else:
            speed(cfg, cfg.part, table)
    finally:  # what was measured before a failure is kept
        with whole_file(part_file(cfg, cfg.part)) as file:
            json.dump([judged(cfg.part, row) for row in table], file)


def part_file(cfg, part):
    return Path(cfg.out) / f"part-{part.replace(' ', '')}.json"


def main(cfg):
    if cfg.part:
        return one_part(cfg)
    output_folder(cfg.out)
    chosen = cfg.only.split(",") if cfg.only else list(PARTS)
    unknown = [part for part in chosen if part not in PARTS]
    require(not unknown, f"--only {cfg.only}: choose from {', '.join(PARTS)}")
    device = choose_device(cfg)  # refuses one that is not there before anything is started
    results = {"device": benchmark.device_name(device), "torch": torch.__version__, "parts": {}}
    end = time.time() + 60 * cfg.minutes
    for part in chosen:
        start, limit = time.time(), min(PARTS[part], end - time.time())
        part_file(cfg, part).unlink(missing_ok=True)
        missing = part.startswith("gpt2 --versus") and not importlib.util.find_spec(part.split()[-1])
        problem = "not installed" if missing else "no time left" if limit < 5 else ""
        if not problem:
            print(f"=== {part}", flush=True)
            problem = run_part(cfg, part, limit)
            problem = problem and f"failed: {problem}"
        rows = json.loads(part_file(cfg, part).read_text()) if part_file(cfg, part).exists() else []
        results["parts"][part] = {"seconds": round(time.time() - start, 1), "problem": problem, "rows": rows}
        with whole_file(Path(cfg.out) / "gpu.json") as file:
            json.dump(results, file, indent=1)
        with whole_file(Path(cfg.out) / "gpu.md") as file:
            file.write(markdown(results))
    print(markdown(results))
    print(f"wrote {cfg.out}/gpu.md, gpu.json")


def run_part(cfg, part, limit):
    """-> "" where it went well, else in words what happened"""
    flags = ["--out", cfg.out, "--device", cfg.device, "--dtype", cfg.dtype, "--seed", str(cfg.seed)]
    flags += ["--threads", str(cfg.threads)]
    command = [sys.executable, __file__, "--part", part, *flags, *["--small"] * cfg.small]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not ready within {limit:.0f} s"
    return "" if done.returncode == 0 else " ".join(done.stderr.split())[-300:]


def markdown(results):
    """A table of all rows."""
    lines = [f"{results['device']}, torch {results['torch']}", "", "| | measured | bound | |", "|---|---:|---:|---|"]
    for part, result in results["parts"].items():
        lines.append(f"| **{part}**, {result['seconds']} s | | | {result['problem'].replace('|', '/')} |")
        for row in result["rows"]:
            kept = {True: " ✓", False: " ✗", None: ""}[row["kept"]]
            lines.append(f"| {row['what']} | {row['measured']} | {row['bound']} | {row['note']}{kept} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command_line(Config, main, __doc__)
