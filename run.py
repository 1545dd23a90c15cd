"""The whole paper in one command: pretrain → SFT → reward model → PPO and PPO-ptx → evaluation.

    python run.py                          # the village: offline, about 9 minutes on 2 CPU cores → out/run/report.md
    python run.py --seed 1 --out out/seed1 # another world, other people, other weights
    python run.py --quick                  # the same steps in a quarter of a minute; the numbers mean nothing

Only calls the scripts' main(Config(...)) in order. A stage that has run with the same settings, code and inputs is
skipped, so an interrupted run goes on where it stopped, and an edited script redoes what depends on it.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import evaluate
import ppo
import pretrain
import reward
import sft
from data import village
from data.download import sha256
from data.folder import read_comparisons
from machine import FREE
from plumbing import BadInput, command_line, output_folder, require, whole_file

HERE = Path(__file__).resolve().parent


@dataclass
class Config:
    out: str = ""  # run folder: checkpoints, logs, the report; default: out/run, or out/quick with --quick
    data: str = ""  # data folder; default: the village, made in OUT/data
    seed: int = 0  # of everything
    quick: bool = False  # tiny settings, to see every step work
    ptx_coef: float = 0.5  # γ of PPO-ptx, times the mean loss per token
    steps: int = 0  # of pretraining; 0 = the script's default
    block_size: int = 0  # context in tokens; 0 = the script's default. Longer texts than the village's need more
    max_new_tokens: int = 0  # longest response; 0 = the scripts' default
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 0  # CPU threads; 0 = all cores


QUICK = {  # settings under which every step works in seconds
    "data": {"web_pages": 1200, "users": 6, "demonstrations": 96, "task_items": 8},
    "pretrain": {"steps": 10, "n_layer": 2, "n_embd": 64},
    "sft": {"epochs": 2},
    "reward": {"prompts": 32, "valid_prompts": 8},
    "choose_sft": {"choose_prompts": 8},
    "ppo": {"iterations": 3, "batch_size": 16, "look_prompts": 8},
    "ppo_ptx": {"iterations": 3, "batch_size": 16, "look_prompts": 8},
    "evaluate": {"prompts": 16, "best_of": 2, "best_of_prompts": 8, "shots": 1},
}


def stages(cfg):
    """[(name, module, its Config, files it writes, stages it builds on, seconds it takes on 2 CPU cores)]."""
    out, data = cfg.out, cfg.data or f"{cfg.out}/data"
    world = ["corpus.train.bin", "corpus.valid.bin", "prompts.jsonl", "demonstrations.jsonl", "prefixes.jsonl"]
    world += ["tasks.jsonl", "village.json", "tokenizer.json"]
    shape = {k: getattr(cfg, k) for k in ("steps", "block_size") if getattr(cfg, k)}
    # App. C.3: the start of PPO. Its dropout is not in the paper; chosen like all else of it, by both validation losses
    init = {"name": "ppo_init", "epochs": 2, "pretrain_mix": 0.1, "dropout": 0.0, "learning_rate": 1e-3}
    choose = {"epochs": 0, "reward_model": f"{out}/reward.pt"}  # App. C.1: the epoch the reward model likes best
    epochs = [f"{out}/sft.epoch-{n + 1}.pt" for n in range(QUICK["sft"]["epochs"] if cfg.quick else sft.Config.epochs)]
    models = ["pretrain", "ppo_init", "reward", "choose_sft", "ppo", "ppo_ptx"]
    plan = [
        ("data", village, {}, [f"{data}/{file}" for file in world], [], 11),
        ("pretrain", pretrain, shape, [f"{out}/base.pt"], ["data"], 205),
        ("sft", sft, {}, [f"{out}/sft.pt", *epochs], ["pretrain"], 40),
        ("ppo_init", sft, init, [f"{out}/ppo_init.pt"], ["pretrain"], 33),
        ("reward", reward, {}, [f"{out}/reward.pt"], ["pretrain", "ppo_init"], 88),
        ("choose_sft", sft, choose, [f"{out}/sft_best.pt"], ["sft", "reward"], 2),
        ("ppo", ppo, {}, [f"{out}/ppo.pt", f"{out}/ppo.samples.jsonl"], ["ppo_init", "reward"], 50),
        (
            *("ppo_ptx", ppo, {"ptx_coef": cfg.ptx_coef}),
            *([f"{out}/ppo_ptx.pt", f"{out}/ppo_ptx.samples.jsonl"], ["ppo_init", "reward"], 90),
        ),
        ("evaluate", evaluate, {}, [f"{out}/report.json", f"{out}/report.md"], models, 42),
    ]
    if cfg.data:
        plan = plan[1:]
    result = []
    for name, module, settings, *rest in plan:
        shared = {"seed": cfg.seed, "out": data if name == "data" else out}
        if name != "data":
            shared |= {"data": data, "device": cfg.device, "threads": cfg.threads}
        if name not in ("data", "pretrain") and (cfg.max_new_tokens or cfg.quick):
            shared["max_new_tokens"] = cfg.max_new_tokens or 24
        settings = shared | settings | (QUICK.get(name, {}) if cfg.quick else {})
        result.append((name, module, module.Config(**settings), *rest))
    return result


def digest(path):
    """A short fingerprint of a file."""
    return sha256(path)[:16]


def fingerprint(name, module, config, needs, done, cfg):
    """Changes when the settings, the code, or anything the stage builds on changes."""
    code = [digest(HERE / f) for f in ("model.py", "machine.py", "plumbing.py", "data/folder.py", "data/bpe.py")]
    code.append(digest(module.__file__))
    if name in ("data", "reward", "evaluate"):
        code += [digest(HERE / "data" / f) for f in ("village.py", "web.py", "labelers.py", "construct.py", "judge.py")]
    inputs = [done[n]["outputs"] for n in dict.fromkeys(["data", *needs]) if n in done and n != name]
    if cfg.data:  # the user's own files
        inputs += [digest(p) for p in sorted(Path(cfg.data).iterdir()) if p.is_file()]
    settings = {k: v for k, v in asdict(config).items() if k not in FREE}
    return hashlib.sha256(json.dumps([settings, code, inputs], sort_keys=True).encode()).hexdigest()[:16]


def main(cfg):
    require("WORLD_SIZE" not in os.environ, "run.py is one process; start the scripts themselves with torchrun")
    require(
        not cfg.data or Path(cfg.data).is_dir(),
        f"{cfg.data}: no such data folder; make one with data/files.py or data/village.py",
    )
    if cfg.data and not (Path(cfg.data) / "village.json").exists():
        ranked = Path(cfg.data) / "comparisons.jsonl"
        require(
            ranked.exists(), f"{ranked}: not found; without simulated labelers, somebody has to have ranked answers"
        )
        splits = {r["split"] for r in read_comparisons(ranked)}
        require(len(splits) > 1, f'{ranked}: all rankings are "{splits.pop()}"; say "split": "valid" in some of them')
    cfg = replace(cfg, out=cfg.out or ("out/quick" if cfg.quick else "out/run"))
    out, begin = output_folder(cfg.out), time.time()
    record = out / "stages.json"  # what has been done: {stage: {"fingerprint", "outputs", "seconds"}}
    try:
        done = json.loads(record.read_text()) if record.exists() else {}
    except ValueError:
        raise BadInput(f"{record}: damaged; delete it to start over") from None
    plan = stages(cfg)
    spent = expected = 0.0  # of the stages that really ran, to correct the guess for this machine
    for i, (name, module, config, outputs, needs, guess) in enumerate(plan):
        paths = [Path(p) for p in outputs]
        mark = fingerprint(name, module, config, needs, done, cfg)
        left = sum(g for *_, g in plan[i:]) * (spent / expected if expected > 60 else 0.15 if cfg.quick else 1)
        if name in done and done[name]["fingerprint"] == mark and all(p.exists() for p in paths):
            if done[name]["outputs"] == [digest(p) for p in paths]:
                print(
                    f"=== {i + 1}/{len(plan)} {name}: already there, unchanged ({done[name]['seconds']:.0f} s) ===",
                    flush=True,
                )
                continue
        print(f"\n=== {i + 1}/{len(plan)} {name} · about {left / 60:.1f} minutes left ===", flush=True)
        start = time.time()
        module.main(config)
        seconds = time.time() - start
        spent, expected = spent + seconds, expected + guess
        done[name] = {"fingerprint": mark, "outputs": [digest(p) for p in paths], "seconds": round(seconds, 1)}
        with whole_file(record) as file:
            json.dump(done, file, indent=1)
    minutes = "  ".join(f"{name} {done[name]['seconds'] / 60:.1f}" for name, *_ in plan)
    total = sum(done[name]["seconds"] for name, *_ in plan)
    print(f"\nminutes: {minutes}  total {total / 60:.1f} (this call: {(time.time() - begin) / 60:.1f})")
    print(f"the report: {out}/report.md")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
