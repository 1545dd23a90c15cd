"""Rejection sampling in rounds, then PPO: how Llama 2 was made (Touvron et al. 2023, §3.2).

    python alternatives/rejection.py                     # -> rejection.pt, and after PPO on top rejection_ppo.pt
    python alternatives/rejection.py --no-pool           # without the picks of earlier rounds, as the paper till V3
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

from alternatives.common import CommonConfig, Run, encoded_rankings, fine_tune, fit, longest_rows, ppo_from
from core.config import PositiveFloat, PositiveInt, command_line, require
from core.output import whole_file
from core.ranking_metrics import accuracy
from core.text import score_answers
from data.folder import read_demonstrations
from data.village.labelers import load_labelers
from reward import encode_rankings, normalise, ranking_losses, score_differences
from sft import encode_demonstrations, mean_sample_score


@dataclass
class Config(CommonConfig):
    rounds: PositiveInt = 5  # V1, V2, …                                                              paper: 5
    prompts: PositiveInt = 400  # training prompts per round, others each time                        paper: silent
    samples: PositiveInt = 8  # K: answers per prompt  paper: its figures go from 1 to 100
    temperature: PositiveFloat = 1.0  # of those answers           paper: tuned each round, 1.2 to 1.3 after some RLHF
    pool: bool = True  # learn from the best of all rounds; --no-pool: of the newest                  paper: since V4
    epochs: PositiveInt = 2  # passes over demonstrations and picks                                   paper: 2
    batch_size: PositiveInt = 32  # answers per step                                                  paper: 64
    learning_rate: PositiveFloat = 1e-3  # peak, cosine to a tenth                                    paper: 2e-5
    ranked: int = 160  # prompts per round whose answers people rank; 0 = none          paper: 1.4 million pairs in all
    reward_batch_size: PositiveInt = 16  # rankings per step of the reward model                      paper: 512 pairs
    reward_learning_rate: PositiveFloat = 1e-4  # of the reward model, peak, cosine to a tenth  paper: 1e-5 (70B: 5e-6)
    valid_prompts: PositiveInt = 300  # validation prompts that every round is measured on
    ppo_iterations: int = 10  # of PPO at the end; 0 = none                                           paper: 200 to 400
    name: str = "rejection"  # writes OUT/NAME.pt, NAME_reward.pt, NAME_ppo.pt, NAME.png


# ---------------------------------------------------------------------------------------------------- the mathematics


def best_of(candidates, scores):
    """The answer with the highest score of every prompt, the first of equals; what has no score (nan) is never picked.

    candidates: [(prompt, text, ended)], scores: [float] -> [(prompt, text, ended)]
    """
    best = {}  # prompt -> index of its best answer so far
    for i, (prompt, _, _) in enumerate(candidates):
        if not math.isnan(scores[i]) and (prompt not in best or scores[i] > scores[best[prompt]]):
            best[prompt] = i
    return [candidates[i] for i in best.values()]


def max_of_n(scores, n):
    """Mean of the highest over all ways to draw n of the K scores: in rising order, the i-th (from 0) is the highest of
    C(i, n-1) of the C(K, n) draws."""
    ways = math.comb(len(scores), n)
    return sum(math.comb(i, n - 1) * score for i, score in enumerate(sorted(scores))) / ways


def best_of_n_curve(scores, K):
    """Means over prompts of the best of 1, 2, …, K answers -> [K floats]

    scores: K per prompt, one prompt after the other. Prompts with an answer beyond the context (nan) are left out.
    """
    by_prompt = [scores[i : i + K] for i in range(0, len(scores), K)]
    by_prompt = [own for own in by_prompt if not any(map(math.isnan, own))]
    return [sum(max_of_n(own, n) for own in by_prompt) / max(len(by_prompt), 1) for n in range(1, K + 1)]


# ---------------------------------------------------------------------------------------------------- rankings


def collect_rankings(labelers, prompts, answers, rng):
    """A random labeler ranks all answers to a prompt. answers: one list of (text, ended) per prompt -> records"""
    records = []
    for prompt, own_answers in zip(prompts, answers):
        ended = {text: end for text, end in own_answers if text.strip()}  # equal texts are shown once, empty ones never
        if len(ended) < 2:
            continue
        completions, labeler = rng.sample(list(ended), len(ended)), rng.choice(labelers)
        record = {"prompt": prompt, "completions": completions, "ranks": labeler.rank(prompt, completions)}
        records.append(record | {"ended": [ended[text] for text in completions]})
    return records


def train_further(reward_model, rankings, run, rng):
    """One pass over the rankings with reward.py's loss, in place; then demonstrations score 0 on average again."""
    cfg = run.cfg

    def loss_of(indices):
        return ranking_losses(reward_model, [rankings[i] for i in indices]).mean()

    lengths = longest_rows(rankings)
    fit(reward_model, loss_of, lengths, run, 1, cfg.reward_batch_size, cfg.reward_learning_rate, rng)
    normalise(reward_model, cfg, run.tokenizer)


# ---------------------------------------------------------------------------------------------------- the rounds


def main(cfg):
    require(cfg.ranked <= cfg.prompts, f"--ranked {cfg.ranked}: must not exceed --prompts {cfg.prompts}")
    run, rng, K = Run(cfg, cfg.name), random.Random(cfg.seed), cfg.samples
    labelers = load_labelers(cfg.data, "training") if cfg.ranked else []
    policy = run.load_policy("ppo_init")
    block_size = policy.config.block_size
    reward_model, first_reward_model = run.load_scalar_model("reward"), run.load_scalar_model("reward")
    prompts, valid_prompts = run.prompts(policy, "train"), run.prompts(policy, "valid", cfg.valid_prompts)
    demonstrations = encode_demonstrations(read_demonstrations(cfg.data, "train"), run.tokenizer, block_size)
    old_rankings, valid_rankings = encoded_rankings(run, block_size).values()
    rm_accuracy = accuracy(score_differences(reward_model, valid_rankings))[0]
    start = mean_sample_score(policy, reward_model, run.tokenizer, valid_prompts, cfg)
    print(f"V0: validation reward {start:+.3f}, reward model right on {100 * rm_accuracy:.1f} % of validation pairs")
    best_of_columns = [f"best_of_{n}" for n in (1, 2, 4, 8, 16, 32, 64) if n <= K]
    log = run.log(cfg.rounds, " ".join([*best_of_columns, *COLUMNS]))
    pool, curves = [], []

    for version in range(1, cfg.rounds + 1):
        # 1. sample
        first = (version - 1) * cfg.prompts
        asked = [prompts[i % len(prompts)] for i in range(first, first + cfg.prompts)]
        asked = list(dict.fromkeys(asked))
        copies = [prompt for prompt in asked for _ in range(K)]
        answers = run.answers(policy, copies, run.generator("samples", version), cfg.temperature)
        # 2. rank
        metrics = {"rm_accuracy_before": rm_accuracy, "rm_accuracy_new": None}
        if cfg.ranked:
            shown = rng.sample(range(len(asked)), min(cfg.ranked, len(asked)))
            own_answers = [answers[K * i : K * i + K] for i in shown]
            records = collect_rankings(labelers, [asked[i] for i in shown], own_answers, rng)
            run.cost["labels"] += len(records)
            new_rankings = encode_rankings(records, run.tokenizer, block_size)
            if new_rankings:
                metrics["rm_accuracy_new"] = accuracy(score_differences(reward_model, new_rankings))[0]
                drawn = rng.sample(old_rankings, min(len(new_rankings), len(old_rankings)))
                train_further(reward_model, new_rankings + drawn, run, run.generator("reward model", version))
            old_rankings = old_rankings + new_rankings
            rm_accuracy = accuracy(score_differences(reward_model, valid_rankings))[0]
        # 3. select
        candidates = [(prompt, *answer) for prompt, answer in zip(copies, answers)]
        if cfg.pool:
            candidates += pool
        texts = [(text, ended) for _, text, ended in candidates]
        scores = score_answers(reward_model, run.tokenizer, [prompt for prompt, _, _ in candidates], texts)
        pool = best_of(candidates, scores)
        curves.append(best_of_n_curve(scores[: len(copies)], K))
        # 4. tune
        policy, rng_tune = run.load_policy("base"), run.generator("tune", version)
        rows = demonstrations + run.rows(pool)
        loss = fine_tune(policy, rows, run, rng_tune, cfg.epochs, cfg.learning_rate, cfg.batch_size)
        for name, judge in (("valid_reward", reward_model), ("valid_reward_first", first_reward_model)):
            metrics[name] = mean_sample_score(policy, judge, run.tokenizer, valid_prompts, cfg)
        metrics |= {"rm_accuracy": rm_accuracy, "loss": loss, "picks": len(pool), "labels": run.cost["labels"]}
        metrics |= {column: curves[-1][int(column.rsplit("_", 1)[1]) - 1] for column in best_of_columns}
        log(version, **metrics, best_of_n=curves[-1])
    run.finish(policy, **metrics)
    run.save(f"{cfg.name}_reward", reward_model)
    draw_figure(curves, run.out / f"{cfg.name}.png")
    if cfg.ppo_iterations:
        ppo_from(run, f"{cfg.name}_ppo", cfg.name, f"{cfg.name}_reward", cfg.ppo_iterations)


# The picks and the loss on them; validation reward by the newest reward model and by reward.pt; how often the reward
# model is right: on the round's new rankings before it learned from them, on validation pairs before and after.
COLUMNS = ["picks", "loss", "valid_reward", "valid_reward_first", "rm_accuracy_new", "rm_accuracy_before"]
COLUMNS += ["rm_accuracy", "labels"]


def draw_figure(curves, path):
    """Best and mean reward against N, one colour per round, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no figure (pip install matplotlib)")
        return
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    for version, curve in enumerate(curves):
        (line,) = axes.plot(range(1, len(curve) + 1), curve, "o-", markersize=3, label=f"samples of V{version}")
        axes.axhline(curve[0], linestyle="--", linewidth=1, color=line.get_color())
    axes.set(xlabel="N samples per prompt", ylabel="reward, by each round's own reward model")
    axes.set_title("Best of N (solid) and mean (dashed)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
