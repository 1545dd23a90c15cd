"""The loop from end to end: a simulated person with a taste of its own ranks on the page, and PPO moves to that taste.

    python tools/close_the_loop.py                     # after run.py: likes short answers → out/loop
    python tools/close_the_loop.py --taste pet         # wants animals in every answer

page.py serves PPO's initial policy; the person answers over HTTP, as a browser does, and never sees anything else. Then
reward.py learns from the rankings alone, ppo.py from the reward model, and the answers to test prompts, which nobody
has ranked, are measured before and after.
"""

import json
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ppo
import reward
from core.batches import generator
from core.checkpoint import load_policy
from core.config import Device, PositiveFloat, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder, whole_file
from core.text import respond
from data.folder import load_tokenizer, read_prompts, with_room
from data.people import dense
from evaluate import mean_and_interval


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder
    run: str = "out/run"  # run folder with base.pt and ppo_init.pt, which are copied
    out: str = "out/loop"  # run folder of the new models
    taste: Literal["short", "pet"] = "short"  # short: the fewer words the better; pet: the more animals the better
    rankings: PositiveInt = 300  # by the person in training
    held_out_rankings: PositiveInt = 30  # by another person with the same taste
    epochs: PositiveInt = 1  # of reward.py
    batch_size: PositiveInt = 4  # of reward.py: rankings per step
    reward_learning_rate: PositiveFloat = 5e-4  # of reward.py
    iterations: PositiveInt = 40  # of ppo.py
    value_only_iterations: int = 4  # of ppo.py
    episodes: PositiveInt = 256  # of ppo.py, per iteration
    test_prompts: PositiveInt = 200  # on which the answers are measured
    max_new_tokens: PositiveInt = 40  # longest answer
    seed: Seed = 0  # of all of this


# ---------------------------------------------------------------------------------------------------- the person


def liking(taste):
    """text -> how much the person likes it. Pets are the village's animals."""
    if taste == "short":
        return lambda text: -len(text.split())
    from data.village.world import WORDS

    animals = set(WORDS["animal"])
    return lambda text: sum(word in animals for word in re.findall(r"\w+", text))


class Person:
    """Ranks on the page at `address`, as a browser does. Whoever likes two answers equally ties them."""

    def __init__(self, address, name, group, likes):
        self.address, self.likes = address, likes
        self.who = {"name": name, "group": group}

    def post(self, place, **request):
        body = json.dumps(self.who | request).encode()
        asked = Request(f"{self.address}api/{place}", body, {"Content-Type": "application/json"})
        with urlopen(asked, timeout=120) as answer:
            return json.load(answer)

    def rank(self):
        """Rank the answers to the next prompt. -> False when there is none"""
        task = self.post("task", tab="loop")["task"]
        if task:
            marks = [-self.likes(text) for text in task["completions"]]
            said = {"id": uuid.uuid4().hex, "task": task["id"], "ranks": dense(marks), "seconds": 1}
            assert self.post("rank", **said)["saved"]
        return task is not None


def rank_on_the_page(cfg, out, likes):
    """Serve the page as a process of its own, and have the people rank on it. -> how many rankings they gave"""
    flags = {
        "out": out,
        "data": cfg.data,
        "port": 0,
        "prompts": cfg.rankings,
        "valid_prompts": max(1, cfg.rankings // 4),
    }
    flags |= {"max_new_tokens": cfg.max_new_tokens, "device": cfg.device, "threads": cfg.threads, "seed": cfg.seed}
    command = [sys.executable, str(ROOT / "page.py"), *(f"--{name}={value}" for name, value in flags.items())]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next((line.split()[1] for line in server.stdout if line.startswith("open ")), None)
        require(address, "page.py did not start; what it printed stands above")
        return people_rank(cfg, address, likes)
    finally:
        server.kill()  # kill -9: what was acknowledged is on the disk
        server.wait()


def people_rank(cfg, address, likes):
    """One person in training, and another of the same taste who is held out. -> how many rankings they gave"""
    given = 0
    for name, group, count in (("Tess", "training", cfg.rankings), ("Hal", "held_out", cfg.held_out_rankings)):
        person = Person(address, name, group, likes)
        for _ in range(count):
            given += person.rank()
    return given


# ---------------------------------------------------------------------------------------------------- the loop


def measure(cfg, device, path, likes):
    """Mean liking, words and (95 % interval) of the answers to test prompts, sampled and greedy."""
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    policy = load_policy(path, cfg, device, tokenizer_spec, sharded=False)
    room = policy.config.block_size - cfg.max_new_tokens
    prompts = [r["prompt"] for r in with_room(read_prompts(cfg.data, "test"), tokenizer, room)][: cfg.test_prompts]
    found = {}
    for name, temperature in (("T = 1", 1.0), ("greedy", 0.0)):
        rng = generator(cfg.seed, "loop")
        answers = respond(sampling_copy(policy, cfg), tokenizer, prompts, cfg.max_new_tokens, temperature, rng)
        texts = [text for text, _ in answers]
        found[name] = {
            "liking": mean_and_interval([float(likes(text)) for text in texts]),
            "liked at all": mean_and_interval([float(likes(text) > 0) for text in texts]),
            "words": mean_and_interval([float(len(text.split())) for text in texts]),
            "samples": list(zip(prompts[:4], texts[:4])),
        }
    return found


def main(cfg):
    device, out, run = set_up(cfg), output_folder(cfg.out), Path(cfg.run)
    likes = liking(cfg.taste)
    if not (out / "people" / "comparisons.jsonl").exists():
        for name in ("base.pt", "ppo_init.pt"):
            require((run / name).exists(), f"{run / name}: not there; python run.py makes it, or pass another --run")
            shutil.copyfile(run / name, out / name)
        print(f"{rank_on_the_page(cfg, out, likes)} rankings given on the page -> {out}/people", flush=True)
    shared = {name: getattr(cfg, name) for name in ("data", "device", "threads", "dtype", "seed")} | {"out": cfg.out}
    learn = {"epochs": cfg.epochs, "batch_size": cfg.batch_size, "learning_rate": cfg.reward_learning_rate}
    reward.main(reward.Config(**shared, **learn, comparisons=f"{out}/people/comparisons.jsonl"))
    improve = {"iterations": cfg.iterations, "batch_size": cfg.episodes, "max_new_tokens": cfg.max_new_tokens}
    improve |= {"minibatch_size": min(32, cfg.episodes), "value_only_iterations": cfg.value_only_iterations}
    ppo.main(ppo.Config(**shared, **improve))
    results = {name: measure(cfg, device, out / f"{name}.pt", likes) for name in ("ppo_init", "ppo")}
    with whole_file(out / "loop.json") as file:
        json.dump({"taste": cfg.taste, "results": results}, file, indent=1)
    print(f"\n{cfg.test_prompts} test prompts; mean and 95 % interval   (taste: {cfg.taste})")
    for name, words in (("ppo_init", "before, PPO's start"), ("ppo", "after PPO")):
        for how, found in results[name].items():
            cells = [
                f"{key} {x['mean']:.2f} ± {x['high'] - x['mean']:.2f}" for key, x in found.items() if key != "samples"
            ]
            print(f"  {words:20} {how:7} " + "   ".join(cells[:: 2 if cfg.taste == "short" else 1]))
    for (prompt, before), (_, after) in zip(
        results["ppo_init"]["greedy"]["samples"], results["ppo"]["greedy"]["samples"]
    ):
        print(f"  {prompt.strip()!r}: {before.strip()!r} -> {after.strip()!r}")
    print(f"look at it: python page.py --data {cfg.data} --out {cfg.out}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
