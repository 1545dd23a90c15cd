"""All steps in one command: pretrain → SFT → rankings → reward model → PPO, once more from rankings on → evaluation.

    python run.py                          # the village: offline, minutes on 2 CPU cores → out/run/report.md
    python run.py --seed 1 --out out/seed1 # another world, other people, other weights
    python run.py --quick                  # the same steps in a quarter of a minute; the numbers mean nothing

Only calls the scripts' main(Config(...)) in order. Steps 2 and 3 come twice (§3.1): labelers first rank answers of
PPO's initial policy, then those of the policy that PPO makes of these rankings; the second reward model learns from
both. The first round lies in OUT/round1. A stage that has run with the same settings, code and inputs is skipped; one
that was killed goes on from its last saved state; an edited script redoes what depends on it.
"""

import ast
import hashlib
import json
import os
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import evaluate
import ppo
import pretrain
import reward
import sft
from core.config import BadInput, Seed, check, command_line, require
from core.output import output_folder, whole_file
from core.training_state import MAY_DIFFER, drop_states
from data import collect
from data.download import sha256
from data.folder import read_comparisons
from data.village import make

ROOT = Path(__file__).resolve().parent
ROUND_1 = {"collect_1", "reward_1", "ppo_1"}

# Seconds that stages take on 2 CPU cores, and steps between the training states of those that have some
SECONDS = {"data": 15, "pretrain": 101, "sft": 29, "ppo_init": 35, "collect_1": 17, "reward_init": 17, "reward_1": 47}
SECONDS |= {"ppo_1": 48, "collect": 18, "reward": 75, "choose_sft": 1, "ppo": 52, "ppo_ptx": 101, "evaluate": 26}
SAVE_EVERY = {"pretrain": 200} | dict.fromkeys(("sft", "ppo_init", "reward_init", "reward_1", "reward"), 50)
SAVE_EVERY |= dict.fromkeys(("ppo_1", "ppo", "ppo_ptx"), 5)

QUICK = {  # settings of the stages with --quick
    "data": {"web_pages": 1200, "users": 6, "demonstrations": 96, "exams": 80, "task_items": 8},
    "pretrain": {"steps": 10, "n_layer": 2, "n_embd": 64},
    "sft": {"epochs": 2},
    "ppo_init": {"epochs": 2},
    "choose_sft": {"choose_prompts": 8},
    "evaluate": {"prompts": 16, "best_of": 2, "best_of_prompts": 8, "shots": 1, "quick": True},
}
QUICK |= dict.fromkeys(("collect_1", "collect"), {"prompts": 32, "valid_prompts": 8})
QUICK_PPO = {"iterations": 3, "batch_size": 16, "minibatch_size": 16, "value_only_iterations": 2, "sample_prompts": 8}
QUICK |= dict.fromkeys(("ppo_1", "ppo", "ppo_ptx"), QUICK_PPO)


@dataclass
class Config:
    out: str = ""  # run folder: checkpoints, logs, the report; default: out/run, or out/quick with --quick
    data: str = ""  # data folder; default: the village, made in OUT/data
    seed: Seed = 0  # of everything
    quick: bool = False  # tiny settings, to see every step work
    ptx_coef: float = 0.2  # γ of PPO-ptx, times the mean loss per token
    steps: int = 0  # of pretraining; 0 = the script's default
    block_size: int = 0  # context in tokens; 0 = the script's default. Longer texts than the village's need more
    max_new_tokens: int = 0  # longest response; 0 = the scripts' default
    device: str = "auto"  # auto, cpu, cuda
    threads: int = 0  # CPU threads; 0 = all cores, at most 8


@dataclass
class Stage:
    name: str
    script: ModuleType
    settings: dict  # of its Config, beside those that all stages share
    outputs: list  # files it writes, in the run folder or the data folder
    needs: list  # stages it builds on


# ---------------------------------------------------------------------------------------------------- the stages


def stages(cfg):
    """What is run, in order."""
    out = cfg.out
    shape = {name: getattr(cfg, name) for name in ("steps", "block_size") if getattr(cfg, name)}
    # App. C.3: the start of PPO. Its dropout is not in the paper; chosen like all else of it, by both validation losses
    init = {"name": "ppo_init", "epochs": 2, "pretrain_mix": 0.1, "dropout": 0.0, "learning_rate": 1e-3}
    choose = {"epochs": 0, "reward_model": f"{out}/reward.pt"}  # App. C.1: the epoch the reward model likes best
    # App. C.2: before it sees a labeler's ranking, the reward model learns from public question answering
    exams = Path(cfg.data or f"{out}/data") / "exams.jsonl"
    exams_only = {"name": "reward_init", "comparisons": str(exams), "batch_size": 16, "learning_rate": 8e-4}
    after_exams = {"reward_model": f"{out}/reward_init.pt", "replay": str(exams)}
    if cfg.data and not exams.exists():
        after_exams = {"init": f"{out}/ppo_init.pt"}
    # §3.1: steps 2 and 3 once more, on the answers of the newest policy
    round1 = {"out": f"{out}/round1"}
    first_ppo = round1 | {"init": f"{out}/ppo_init.pt", "name": "ppo"}
    init_answers = round1 | {"supervised": f"{out}/ppo_init.pt", "base": f"{out}/base.pt"}
    ppo_answers = {"supervised": f"{out}/round1/ppo.pt", "earlier": f"{out}/round1/comparisons.jsonl"}
    ppo_answers |= {"seed": cfg.seed + 1}  # other prompts first
    ptx = {"ptx_coef": cfg.ptx_coef}
    files = ["corpus.train.bin", "corpus.valid.bin", "prompts.jsonl", "demonstrations.jsonl", "prefixes.jsonl"]
    files += ["tasks.jsonl", "exams.jsonl", "village.json", "tokenizer.json"]
    world = [f"data/{file}" for file in files]
    epochs = [f"sft.epoch-{n + 1}.pt" for n in range(2 if cfg.quick else sft.Config.epochs)]
    evaluated = ["pretrain", "ppo_init", "ppo_1", "reward", "choose_sft", "ppo", "ppo_ptx"]

    plan = [  # name, script, settings, what it writes, what it builds on
        Stage("data", make, {}, world, []),
        Stage("pretrain", pretrain, shape, ["base.pt"], ["data"]),
        Stage("sft", sft, {}, ["sft.pt", *epochs], ["pretrain"]),
        Stage("ppo_init", sft, init, ["ppo_init.pt"], ["pretrain"]),
        Stage("collect_1", collect, init_answers, ["round1/comparisons.jsonl"], ["pretrain", "ppo_init"]),
        Stage("reward_init", reward, exams_only, ["reward_init.pt"], ["ppo_init"]),
        Stage("reward_1", reward, round1 | after_exams, ["round1/reward.pt"], ["reward_init", "collect_1"]),
        Stage("ppo_1", ppo, first_ppo, ["round1/ppo.pt"], ["ppo_init", "reward_1"]),
        Stage("collect", collect, ppo_answers, ["comparisons.jsonl"], ["pretrain", "collect_1", "ppo_1"]),
        Stage("reward", reward, after_exams, ["reward.pt"], ["reward_init", "collect"]),
        Stage("choose_sft", sft, choose, ["sft_best.pt"], ["sft", "reward"]),
        Stage("ppo", ppo, {}, ["ppo.pt", "ppo.samples.jsonl"], ["ppo_init", "reward"]),
        Stage("ppo_ptx", ppo, ptx, ["ppo_ptx.pt", "ppo_ptx.samples.jsonl"], ["ppo_init", "reward"]),
        Stage("evaluate", evaluate, {}, ["report.json", "report.md"], evaluated),
    ]
    if cfg.data:  # the user's own; where they come with rankings, nobody is asked
        ranked = (Path(cfg.data) / "comparisons.jsonl").exists()
        left_out = {"data", *(ROUND_1 | {"collect"} if ranked else ()), *(() if exams.exists() else ["reward_init"])}
        plan = [stage for stage in plan if stage.name not in left_out]
    return plan


def config_of(stage, cfg, resume):
    """The Config of a stage's script."""
    data = cfg.data or f"{cfg.out}/data"
    settings = {"seed": cfg.seed, "out": cfg.out, "data": data, "device": cfg.device, "threads": cfg.threads}
    if stage.name == "data":
        settings = {"seed": cfg.seed, "out": data}
    if hasattr(stage.script.Config, "max_new_tokens") and (cfg.max_new_tokens or cfg.quick):
        settings["max_new_tokens"] = cfg.max_new_tokens or 24
    if stage.name in SAVE_EVERY:
        settings |= {"save_every": 1 if cfg.quick else SAVE_EVERY[stage.name], "resume": resume}
    settings |= stage.settings
    if cfg.quick:
        settings |= QUICK.get(stage.name, {})
    return stage.script.Config(**settings)


# ------------------------------------------------------------------------------------------------ what is there already


@cache
def imports_of(path):
    """The files of the project that this file imports itself, in order."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    paths = [ROOT / f"{name.replace('.', '/')}{end}" for name in names for end in (".py", "/__init__.py")]
    return [file for file in paths if file.exists()]


def source_files(path, found=None):
    """This file and all files of the project that it imports, directly or not."""
    found = set() if found is None else found
    found.add(path)
    for file in imports_of(path):
        if file not in found:
            source_files(file, found)
    return found


def fingerprint(stage, cfg, done):
    """Changes when the settings, the code, or anything the stage builds on changes."""
    settings = {key: v for key, v in asdict(config_of(stage, cfg, False)).items() if key not in MAY_DIFFER}
    code = [sha256(path) for path in sorted(source_files(Path(stage.script.__file__)))]
    inputs = [done[name].get("outputs") for name in ("data", *stage.needs) if name in done and name != stage.name]
    if cfg.data:
        inputs += [sha256(path) for path in sorted(Path(cfg.data).iterdir()) if path.is_file()]
    return hashlib.sha256(json.dumps([settings, code, inputs], sort_keys=True).encode()).hexdigest()[:16]


def digests(paths):
    return [sha256(path)[:16] for path in paths]


def made_by_hand(stage, paths, done):
    """Rankings that somebody put into the run folder are used as they are, and never overwritten."""
    if stage.name != "collect" or not paths[0].exists():
        return False
    return done.get("collect", {}).get("outputs") != digests(paths)


# ---------------------------------------------------------------------------------------------------- running


def main(cfg):
    check(cfg)
    require("WORLD_SIZE" not in os.environ, "run.py is one process; start the scripts themselves with torchrun")
    cfg = replace(cfg, out=cfg.out or ("out/quick" if cfg.quick else "out/run"))
    if cfg.data:
        check_own_data(cfg)
    out, begin = output_folder(cfg.out), time.time()
    record = out / "stages.json"  # {stage: {"fingerprint", and once it is done "outputs", "seconds"}}
    try:
        done = json.loads(record.read_text()) if record.exists() else {}
    except ValueError:
        raise BadInput(f"{record}: damaged; delete it to start over") from None

    plan = stages(cfg)
    by_hand = [s for s in plan if s.name == "collect" and made_by_hand(s, [out / s.outputs[0]], done)]
    plan = [stage for stage in plan if not (by_hand and stage.name in ROUND_1)]
    took = expected = 0.0  # seconds of the stages that really ran, to correct the guess for this machine
    for number, stage in enumerate(plan, 1):
        mark, before = fingerprint(stage, cfg, done), done.get(stage.name, {})
        paths = [out / path for path in stage.outputs]
        if stage.name == "data":
            paths = [Path(f"{cfg.out}/{path}") for path in stage.outputs]
        title = f"{number}/{len(plan)} {stage.name}"
        if made_by_hand(stage, paths, done):
            print(f"=== {title}: {paths[0]} was not made here, so it is used as it is ===", flush=True)
            done[stage.name] = {"fingerprint": mark, "outputs": digests(paths), "seconds": 0.0}
            write_record(record, done)
            continue
        unchanged = before.get("fingerprint") == mark
        if unchanged and "outputs" in before and all(p.exists() for p in paths) and before["outputs"] == digests(paths):
            print(f"=== {title}: already there, unchanged ({before['seconds']:.0f} s) ===", flush=True)
            continue
        interrupted = unchanged and "outputs" not in before  # it goes on where it was
        if not interrupted:
            remove_outputs(stage, cfg, paths, before)
        done[stage.name] = {"fingerprint": mark}
        write_record(record, done)
        pace = took / expected if expected > 60 else 0.03 if cfg.quick else 1
        left = pace * sum(SECONDS[later.name] for later in plan[number - 1 :])
        print(f"=== {title} · about {left / 60:.1f} minutes left ===", flush=True)
        start = time.time()
        with hidden_output(out / "quick.log", cfg.quick and stage.name != "evaluate"):
            stage.script.main(config_of(stage, cfg, resume=interrupted))
        seconds = time.time() - start
        took, expected = took + seconds, expected + SECONDS[stage.name]
        done[stage.name] |= {"outputs": digests(paths), "seconds": round(seconds, 1)}
        write_record(record, done)
    minutes = "  ".join(f"{stage.name} {done[stage.name]['seconds'] / 60:.1f}" for stage in plan)
    total = sum(done[stage.name]["seconds"] for stage in plan)
    print(f"\nminutes: {minutes}  total {total / 60:.1f} (this call: {(time.time() - begin) / 60:.1f})")


def check_own_data(cfg):
    """Refuse a data folder that the later stages could do nothing with."""
    folder = Path(cfg.data)
    require(folder.is_dir(), f"{folder}: no such data folder; make one with data/files.py or data/village/make.py")
    ranked = folder / "comparisons.jsonl"
    if not ranked.exists():
        simulated = (folder / "village.json").exists() or (Path(cfg.out) / "comparisons.jsonl").exists()
        fix = "without simulated labelers, somebody has to rank answers first (data/collect.py --labeler terminal)"
        require(simulated, f"{ranked}: not found; {fix}")
        return
    splits = {record["split"] for record in read_comparisons(ranked)}
    require(len(splits) > 1, f'{ranked}: all rankings are "{splits.pop()}"; say "split": "valid" in some of them')


def remove_outputs(stage, cfg, paths, before):
    """What an earlier version of this stage left would stand in the way of the new one."""
    made = config_of(stage, cfg, False)
    if stage.name in SAVE_EVERY:
        drop_states(made.out, made.name or stage.name)
    if stage.script is collect and before:
        for path in (*paths, Path(made.out) / "comparisons.partial.jsonl", Path(made.out) / "answers.jsonl"):
            path.unlink(missing_ok=True)


@contextmanager
def hidden_output(path, hidden):
    """With --quick, what the scripts print means nothing: it goes into a file."""
    if not hidden:
        yield
        return
    with open(path, "a", encoding="utf-8") as file, redirect_stdout(file):
        yield


def write_record(path, done):
    with whole_file(path) as file:
        json.dump(done, file, indent=1)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
