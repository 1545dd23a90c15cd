"""Constitutional AI: harmlessness from a few written principles instead of labels (Bai et al. 2022).

    python alternatives/constitutional.py            # -> helpful.pt, cai_sl.pt, cai_reward.pt, cai.pt

Reads as a variation on sft.py, reward.py and ppo.py. The principles are constitution.txt beside this file: edit it.

  0. helpful    a model that does whatever it is asked: fine-tuned on demonstrations in which unkind requests are granted
  1. critique   on red-team prompts, let it answer; then, `revisions` times: draw a principle, write a critique of the
                answer, write a revision, and go on with that
  2. SL-CAI     fine-tune the PRETRAINED model on all revisions and on the helpful model's answers to usual prompts
  3. label      two answers of SL-CAI to each red-team prompt; a feedback model reads a random principle and both answers,
                and its log-probs of 1 and 2 give the soft label p (both orders averaged); where it writes down its
                thoughts first, p is clamped to [0.4, 0.6], for it is too sure of itself then
  4. PM         one reward model on both: people's rankings for helpfulness, the soft labels for harmlessness
                L = Eq. 1 (people)  -  p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a)
  5. RL-CAI     PPO against it, from SL-CAI, on usual and red-team prompts (ppo.py)

Deviations: critiques, revisions and labels are written by a model that has read how people write them
(data/feedback.py), where the paper prompts the helpful model itself with examples: a million parameters do not learn
from examples in a prompt. The helpful model is fine-tuned, not trained by RLHF, and answers a usual prompt once (paper:
twice). Red-team prompts are the village's, all from its training valleys: few are different, so they come several
times. Four principles, not sixteen.
"""

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from data.feedback import critique_of, revision_of, unkind
from data.labelers import load_labelers

from alternatives.common import Inputs, Run, encoded_rankings, fine_tune, fit, longest, ppo_from, red_team
from alternatives.labeler import loss_on_pairs, preferences, two_answers
from data import village
from data.folder import read_demonstrations, read_jsonl, write_jsonl
from model import ScalarModel, save_checkpoint
from plumbing import command_line, generator, output_folder, require
from reward import accuracy, batch_loss, outcomes_of


@dataclass
class Config(Inputs):
    constitution: str = str(Path(__file__).with_name("constitution.txt"))  # the principles
    critic: str = "reader"  # policy of the run folder that writes critiques and revisions, and compares
    red_team: int = 400  # prompts to break the model with                                      paper: 182831
    revisions: int = 2  # of every answer                                                       paper: 4
    helpful_prompts: int = 1200  # usual prompts that the helpful model answers                 paper: 135296
    sl_epochs: int = 1  # of supervised fine-tuning                                             paper: 1
    sl_learning_rate: float = 1e-3  # peak, cosine to a tenth        paper: half of pretraining's, constant
    thoughts: bool = True  # the feedback model writes down what it thinks before it decides
    clamp: float = 0.4  # with thoughts, p stays within [clamp, 1 - clamp]                      paper: 0.4
    batch_size: int = 16  # people's rankings per step of the PM
    pm_learning_rate: float = 8e-4  # peak, cosine to a tenth
    ppo_iterations: int = 16  # of RL-CAI; 0 = stop after the PM
    name: str = "cai"  # writes OUT/NAME_sl.pt, OUT/NAME_reward.pt, OUT/NAME.pt


def read_constitution(path):
    """-> [(question, request, choice)] of a file of lines `question | request | choice`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        require(False, f"{path}: no such constitution; write one principle per line: question | request | choice")
    principles = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            parts = tuple(part.strip() for part in line.split("|"))
            require(len(parts) == 3 and all(parts), f"{path}:{number}: expected question | request | choice")
            principles.append(parts)
    require(principles, f"{path}: no principle in it; write one per line: question | request | choice")
    return principles


def helpful_only(run, world):
    """Step 0: the pretrained model fine-tuned on demonstrations by people who were told only to help -> OUT/helpful.pt

    llama2.py needs it too; whoever is first makes it, with random numbers of its own, so that both find the same one.
    """
    if (run.out / "helpful.pt").exists():
        return run.load("helpful")
    began, rng = time.time(), random.Random(f"helpful {run.cfg.seed}")
    run.order, kept = generator(run.cfg.seed + 30_000), run.order
    shown = [(r["prompt"], r["completion"], True) for r in read_demonstrations(run.cfg.data, "train")]
    shown = [s for s in shown if village.understand(s[0])[0] != "rude"]
    for prompt in red_team(world, len(shown) // 12, village.VALLEYS["train"], rng):
        person = village.understand(prompt)[1]["person"]
        shown.append((prompt, " " + unkind(person, rng), True))
    model = run.load("base")
    fine_tune(model, run.rows(shown), run, 2, 1e-3)
    run.order, cost = kept, {"labels": 0, "tokens": 0, "seconds": time.time() - began}
    save_checkpoint(run.out / "helpful.pt", model, run.tokenizer, run.cfg, 0, cost=cost)
    return model


def critiques_and_revisions(run, critic, principles, prompts, answers, rng):
    """One round of step 1. answers: [text] -> principles, critiques [text], revisions [(text, ended)], one per prompt."""
    drawn = [rng.choice(principles) for _ in prompts]
    asked = [critique_of(x, y, question) for x, y, (question, _, _) in zip(prompts, answers, drawn)]
    critiques = [text for text, _ in run.answers(critic, asked, stop="\n")]
    asked = [revision_of(a + c, request) for a, c, (_, request, _) in zip(asked, critiques, drawn)]
    return drawn, critiques, run.answers(critic, asked, stop="\n")


def supervised(run, helpful, critic, principles, prompts, rng):
    """Steps 1 and 2 -> SL-CAI, and one chain answer → critique → revision → … to look at."""
    answers = [text for text, _ in run.answers(helpful, prompts)]
    learn, chain = [], [f"{prompts[0].strip()}{answers[0]}"]
    for _ in range(run.cfg.revisions):
        drawn, critiques, revisions = critiques_and_revisions(run, critic, principles, prompts, answers, rng)
        learn += [(x, *y) for x, y in zip(prompts, revisions) if y[0].strip()]
        answers = [text for text, _ in revisions]
        chain += [f"  {drawn[0][0]}{critiques[0]}", f"  {drawn[0][1]}{answers[0]}"]
    print("answer → critique → revision, one of them:\n  " + "\n  ".join(chain))
    usual = run.prompts(helpful, "train", run.cfg.helpful_prompts)
    learn += [(x, text, ended) for x, (text, ended) in zip(usual, run.answers(helpful, usual)) if text.strip()]
    model = run.load("base")
    loss = fine_tune(model, run.rows(learn), run, run.cfg.sl_epochs, run.cfg.sl_learning_rate)
    print(f"SL-CAI: the pretrained model fine-tuned on {len(learn)} answers, loss {loss:.3f}")
    return model, chain


def feedback(run, model, critic, principles, prompts, rng):
    """Step 3 -> [(ids of prompt + first, ids of prompt + second, p)]."""
    drawn = two_answers(run, model, prompts)
    questions = [rng.choice(principles)[2] for _ in drawn]
    triples = [(x, a[0], b[0]) for x, a, b in drawn]
    p, _ = preferences(critic, run.encoding, triples, questions, run.cfg.thoughts)
    if run.cfg.thoughts:
        p = p.clamp(run.cfg.clamp, 1 - run.cfg.clamp)
    return [(run.ids(x, *a), run.ids(x, *b), q) for (x, a, b), q in zip(drawn, p.tolist())]


def preference_model(run, start, rankings, pairs):
    """Step 4: every batch holds people's rankings and AI-labelled pairs; both losses weigh the same."""
    cfg, model = run.cfg, ScalarModel.from_gpt(start)
    size = max(1, round(len(pairs) * cfg.batch_size / len(rankings)))  # as many as make one pass over them

    def loss_of(some):
        drawn = torch.randint(len(pairs), (size,), generator=run.order).tolist()
        by_people = batch_loss(model, [rankings[i] for i in some], run.device)
        return by_people + loss_on_pairs(model, [pairs[i] for i in drawn], run.device)

    fit(model, loss_of, longest(rankings), run, 1, cfg.batch_size, cfg.pm_learning_rate)
    return model


def main(cfg):
    principles = read_constitution(cfg.constitution)
    run, rng = Run(cfg, cfg.name), random.Random(f"constitutional {cfg.seed}")
    positive = min(cfg.red_team, cfg.revisions, cfg.helpful_prompts, cfg.sl_epochs, cfg.batch_size)
    require(positive >= 1, "--red_team, --revisions, --helpful_prompts, --sl_epochs, --batch_size: at least 1")
    require(0 <= cfg.clamp <= 0.5, f"--clamp {cfg.clamp}: from 0 to 0.5")
    world = load_labelers(cfg.data, "training")[0].world
    critic, helpful = run.load(cfg.critic), helpful_only(run, world)
    attacks = red_team(world, cfg.red_team, village.VALLEYS["train"], rng)
    sl, chain = supervised(run, helpful, critic, principles, attacks, rng)
    cost = run.cost | {"seconds": time.time() - run.began}
    save_checkpoint(run.out / f"{cfg.name}_sl.pt", sl, run.tokenizer, cfg, 0, cost=cost)

    pairs = feedback(run, sl, critic, principles, attacks * 2, rng)
    rankings = encoded_rankings(run, sl.config.block_size)
    pm = preference_model(run, sl, rankings["train"], pairs)
    right = accuracy(outcomes_of(pm, rankings["valid"]))[0]
    save_checkpoint(run.out / f"{cfg.name}_reward.pt", pm, run.tokenizer, cfg, 0)
    print(
        f"PM: {len(rankings['train'])} rankings by people, {len(pairs)} pairs by the critic; {100 * right:.1f} % on people's"
    )

    if cfg.ppo_iterations:  # on a data folder of the same world whose prompts include the attacks
        folder = str(with_attacks(run, attacks))
        results = {"pm_accuracy": right, "chain": chain}
        ppo_from(run, cfg.name, f"{cfg.name}_sl", f"{cfg.name}_reward", cfg.ppo_iterations, results, data=folder)


def with_attacks(run, attacks):
    """A data folder like the run's, with the red-team prompts among the training prompts (its other files are links)."""
    folder = output_folder(run.out / f"{run.cfg.name}_data")
    for file in Path(run.cfg.data).iterdir():
        if file.is_file() and file.name not in ("prompts.jsonl", "comparisons.jsonl"):
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file.resolve())
    lines = [line for _, line in read_jsonl(Path(run.cfg.data) / "prompts.jsonl")]
    more = [{"prompt": x, "user": "red team", "split": "train", "use_case": "generation"} for x in attacks]
    write_jsonl(folder / "prompts.jsonl", lines + more)
    return folder


if __name__ == "__main__":
    command_line(Config, main, __doc__)
