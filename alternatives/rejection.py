"""Rejection sampling in rounds, then PPO: how Llama 2 was made (Touvron et al. 2023, §3.2).

    python alternatives/rejection.py                     # -> rejection.pt, and after PPO on top rejection_ppo.pt
    python alternatives/rejection.py --no-pool           # without the picks of earlier rounds, as the paper did before V4
    python alternatives/rejection.py --ranked 0          # nobody is asked again: the reward model stays as it is

PPO tries one answer per prompt and moves after each batch; this tries K and moves once per round. Round v = 1…5:

  1. sample   K answers to each of some training prompts from the newest policy V_{v-1}; V₀ is PPO's start
  2. rank     people rank the K answers of some of these prompts; the reward model learns from the new rankings and
              as many old ones, so that it knows the texts that it has to judge next
  3. select   the newest reward model scores all samples; the best of each prompt goes to the pool, where the best of
              all earlier rounds are (scored again by it; a prompt that has come before keeps the better answer)
  4. tune     V_v = the BASE model, fine-tuned on the demonstrations and the pool

At the end PPO goes on from V₅ against the newest reward model; V₅ is its reference. (Up to V4 Llama 2 was made without
PPO.) The pool is what the authors changed after V3, which had forgotten e.g. how to rhyme.

How much can be won? The best of N samples rises with N while their mean, of course, does not: the gap is what a round
can teach, and should shrink as the policy learns. rejection.png shows it (the paper draws the median for the mean).

Ours, where the paper is silent or does otherwise: K; other prompts in every round; one reward model, not two; rankings
of K answers, not pairs with a strength, so no margin; the reward model is not trained anew on all of the data but a
little further; the temperature is the same in all rounds; demonstrations beside the picks, and a tenth of pretraining
loss. That every version starts from the base model the paper says in passing only, where it speaks of temperatures.
"""

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.labelers import load_labelers

from alternatives.common import Inputs, Run, encoded_rankings, fine_tune, fit, longest, ppo_from, tell_apart
from data.folder import read_demonstrations
from model import save_checkpoint, score_answers
from plumbing import command_line, require, whole_file
from reward import accuracy, batch_loss, normalise, outcomes_of
from sft import encode_demonstrations, mean_reward


@dataclass
class Config(Inputs):
    rounds: int = 5  # V1, V2, …                                                              paper: 5
    prompts: int = 400  # training prompts per round, others each time                        paper: silent
    samples: int = 8  # K: answers per prompt                                   paper: its figures go from 1 to 100
    temperature: float = 1.0  # of those answers                   paper: tuned each round, 1.2 to 1.3 after some RLHF
    pool: bool = True  # learn from the best of all rounds; --no-pool: of the newest             paper: since V4
    epochs: int = 2  # passes over demonstrations and picks                                   paper: 2
    batch_size: int = 32  # answers per step                                                  paper: 64
    learning_rate: float = 1e-3  # peak, cosine to a tenth                                    paper: 2e-5
    ranked: int = 160  # prompts per round whose answers people rank; 0 = none          paper: 1.4 million pairs in all
    reward_batch_size: int = 16  # rankings per step of the reward model                      paper: 512 pairs
    reward_learning_rate: float = 1e-4  # of the reward model, peak, cosine to a tenth        paper: 1e-5 (70B: 5e-6)
    valid_prompts: int = 300  # validation prompts that every round is looked at with
    ppo_iterations: int = 10  # of PPO at the end; 0 = none                                   paper: 200 to 400
    name: str = "rejection"  # writes OUT/NAME.pt, NAME_reward.pt, NAME_ppo.pt, NAME.png


# ---------------------------------------------------------------------------------------------------- the mathematics


def best_of(candidates, scores):
    """The answer with the highest score of every prompt, the first of equals. [(prompt, text, ended)], [float] -> [(…)]"""
    best = {}
    for item, score in zip(candidates, scores):
        if not math.isnan(score) and (item[0] not in best or score > best[item[0]][1]):
            best[item[0]] = item, score
    return [item for item, _ in best.values()]


def max_of_n(scores, n):
    """Mean of the highest over all ways to draw n of the K scores: in rising order, the i-th (from 0) is the highest of
    C(i, n-1) of the C(K, n) draws."""
    ways = math.comb(len(scores), n)
    return sum(math.comb(i, n - 1) * s for i, s in enumerate(sorted(scores))) / ways


def curve(scores, K):
    """Means over prompts of the best of 1, 2, …, K answers. scores: K per prompt, one prompt after the other -> [K floats]"""
    groups = [scores[i : i + K] for i in range(0, len(scores), K)]
    groups = [some for some in groups if not any(map(math.isnan, some))]
    return [sum(max_of_n(some, n) for some in groups) / max(len(groups), 1) for n in range(1, K + 1)]


# ---------------------------------------------------------------------------------------------------- rankings


def ask(labelers, prompts, answers, rng):
    """A labeler picked at random ranks all answers to a prompt. answers: one list of (text, ended) per prompt -> records"""
    records = []
    for prompt, some in zip(prompts, answers):
        some = {text: ended for text, ended in some if text.strip()}  # equal texts are shown once, empty ones never
        if len(some) < 2:
            continue
        completions, labeler = rng.sample(list(some), len(some)), rng.choice(labelers)
        record = {"prompt": prompt, "completions": completions, "ranks": labeler.rank(prompt, completions)}
        records.append(record | {"ended": [some[text] for text in completions]})
    return records


def train_further(reward_model, rankings, run):
    """One pass over the rankings with reward.py's loss, in place; then demonstrations score 0 on average again."""

    def loss_of(some):
        return batch_loss(reward_model, [rankings[i] for i in some], run.device)

    fit(reward_model, loss_of, longest(rankings), run, 1, run.cfg.reward_batch_size, run.cfg.reward_learning_rate)
    normalise(reward_model, run.cfg, run.encoding, run.device)


# ---------------------------------------------------------------------------------------------------- the rounds


def check(cfg):
    for name in ("rounds", "prompts", "samples", "epochs", "batch_size", "reward_batch_size", "valid_prompts"):
        require(getattr(cfg, name) >= 1, f"--{name} {getattr(cfg, name)}: must be at least 1")
    require(min(cfg.learning_rate, cfg.reward_learning_rate) > 0, "--learning_rate, --reward_learning_rate: positive")
    require(cfg.temperature > 0, f"--temperature {cfg.temperature}: must be positive, or all answers are the same")
    require(0 <= cfg.ranked <= cfg.prompts, f"--ranked {cfg.ranked}: from 0 to --prompts {cfg.prompts}")
    require(cfg.ppo_iterations >= 0, f"--ppo_iterations {cfg.ppo_iterations}: must not be negative")


def main(cfg):
    check(cfg)
    run, rng, K = Run(cfg, cfg.name), random.Random(cfg.seed), cfg.samples
    labelers = load_labelers(cfg.data, "training") if cfg.ranked else []
    policy, reward_model, first = run.load("ppo_init"), run.load("reward", "scalar"), run.load("reward", "scalar")
    block_size = policy.config.block_size
    prompts, valid = run.prompts(policy, "train"), run.prompts(policy, "valid", cfg.valid_prompts)
    demonstrations = encode_demonstrations(read_demonstrations(cfg.data, "train"), run.encoding, block_size)
    old, valid_rankings = encoded_rankings(run, block_size).values()
    rm_accuracy = accuracy(outcomes_of(reward_model, valid_rankings))[0]
    start = mean_reward(policy, reward_model, run.encoding, valid, cfg)
    print(f"V0: validation reward {start:+.3f}, reward model right on {100 * rm_accuracy:.1f} % of validation pairs")
    pool, curves = [], []

    for version in range(1, cfg.rounds + 1):
        asked = [prompts[i % len(prompts)] for i in range((version - 1) * cfg.prompts, version * cfg.prompts)]
        asked = list(dict.fromkeys(asked))
        copies = [prompt for prompt in asked for _ in range(K)]
        answers = run.answers(policy, copies, cfg.temperature)
        record = {"rm_accuracy_before": rm_accuracy, "rm_accuracy_new": None}
        if cfg.ranked:
            shown = rng.sample(range(len(asked)), min(cfg.ranked, len(asked)))
            new = ask(labelers, [asked[i] for i in shown], [answers[K * i : K * i + K] for i in shown], rng)
            run.cost["labels"] += len(new)
            new = tell_apart(new, run, block_size)
            record["rm_accuracy_new"] = accuracy(outcomes_of(reward_model, new))[0] if new else None
            train_further(reward_model, new + rng.sample(old, min(len(new), len(old))), run)
            old, rm_accuracy = old + new, accuracy(outcomes_of(reward_model, valid_rankings))[0]
        fresh = [(prompt, *answer) for prompt, answer in zip(copies, answers)]
        candidates = fresh + (pool if cfg.pool else [])
        scores = score_answers(reward_model, run.encoding, [p for p, *_ in candidates], [a for _, *a in candidates])
        pool = best_of(candidates, scores)
        curves.append(curve(scores[: len(fresh)], K))
        policy = run.load("base")
        loss = fine_tune(policy, demonstrations + run.rows(pool), run, cfg.epochs, cfg.learning_rate, cfg.batch_size)
        for name, judge in (("valid_reward", reward_model), ("valid_reward_first", first)):
            record[name] = mean_reward(policy, judge, run.encoding, valid, cfg)
        record |= {"rm_accuracy": rm_accuracy, "loss": loss, "picks": len(pool), "labels": run.cost["labels"]}
        run.log.write(round=version, mean=curves[-1][0], best_of_n=curves[-1], **record)
        line(version, curves[-1], record)
    run.finish(policy, **record)
    save_checkpoint(run.out / f"{cfg.name}_reward.pt", reward_model, run.tokenizer, cfg, 0)
    figure(curves, run.out / f"{cfg.name}.png")
    if cfg.ppo_iterations:
        ppo_from(run, f"{cfg.name}_ppo", cfg.name, f"{cfg.name}_reward", cfg.ppo_iterations)


def line(version, best, r):
    """A row of the table: the round's samples, the policy that came of them, and how often the reward model is right."""
    cells = {"round": f"V{version}"} | {f"best of {n}": best[n - 1] for n in (1, 2, 4, 8, 16, 32, 64) if n <= len(best)}
    cells |= {"picks": r["picks"], "loss": r["loss"], "validation": r["valid_reward"]}
    cells |= {"(by reward.pt)": r["valid_reward_first"], "RM on new": r["rm_accuracy_new"] or "-"}
    cells |= {"on valid": r["rm_accuracy_before"], "then": r["rm_accuracy"], "labels": r["labels"]}
    if version == 1:
        print("  ".join(f"{name:>6}" for name in cells))
    cells = {name: f"{cell:.3f}" if isinstance(cell, float) else cell for name, cell in cells.items()}
    print("  ".join(f"{cell:>{max(6, len(name))}}" for name, cell in cells.items()), flush=True)


def figure(curves, path):
    """Best and mean reward against N, one colour per round, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("matplotlib is not installed: no figure (pip install matplotlib)")
    drawing = Figure(figsize=(7, 4), layout="tight")
    axis = drawing.subplots()
    for i, best in enumerate(curves):
        (line,) = axis.plot(range(1, len(best) + 1), best, "o-", markersize=3, label=f"samples of V{i}")
        axis.axhline(best[0], linestyle="--", linewidth=1, color=line.get_color())
    axis.set(xlabel="N samples per prompt", ylabel="reward, by each round's own reward model")
    axis.set_title("Best of N (solid) and mean (dashed)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    with whole_file(path, "wb") as file:
        drawing.savefig(file, format="png", dpi=130)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
