"""Constitutional AI: harmlessness from a few written principles instead of labels (Bai et al. 2022).

    python alternatives/constitutional.py            # -> helpful.pt, cai_sl.pt, cai_reward.pt, cai.pt

Reads as a variation on sft.py, reward.py and ppo.py. The principles are constitution.txt beside this file: edit it.

  0. helpful    a model that does whatever it is asked: fine-tuned on demonstrations that grant unkind requests
  1. critique   on red-team prompts, let it answer; then, `revisions` times: draw a principle, write a critique of the
                answer, write a revision, and go on with that
  2. SL-CAI     fine-tune the PRETRAINED model on all revisions and on the helpful model's answers to usual prompts
  3. label      two answers of SL-CAI to each red-team prompt; a feedback model reads a random principle and both
                answers, and its log-probs of 1 and 2 give the soft label p (both orders averaged); where it writes
                down its thoughts first, p is clamped to [0.4, 0.6], for it is too sure of itself then
  4. PM         one reward model on both: people's rankings for helpfulness, the soft labels for harmlessness
                L = Eq. 1 (people)  -  p log σ(r_a - r_b) - (1-p) log σ(r_b - r_a)
  5. RL-CAI     PPO against it, from SL-CAI, on usual and red-team prompts (ppo.py)

Deviations: critiques, revisions and labels are written by a model that has read how people write them
(data/village/feedback.py), where the paper prompts the helpful model itself with examples: half a million parameters do
not learn from examples in a prompt. The helpful model is fine-tuned, not trained by RLHF, and answers a usual prompt
once (paper: twice). Red-team prompts are the village's, all of its training split: few are different, so they come
several times. Four principles, not sixteen.
"""

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alternatives.common import CommonConfig, Run, encoded_rankings, fine_tune, fit, longest_rows, ppo_from, red_team
from alternatives.labeler import loss_on_pairs, preferences, two_answers
from core.checkpoint import read_checkpoint
from core.config import PositiveFloat, PositiveInt, command_line, require
from core.output import output_folder
from core.ranking_metrics import accuracy
from core.training_state import fingerprints
from data.folder import read_demonstrations, read_jsonl, write_jsonl
from data.village.feedback import unkind_answer, up_to_critique, up_to_revision
from data.village.intents import understand
from data.village.labelers import load_labelers
from reward import ranking_losses, score_differences


@dataclass
class Config(CommonConfig):
    constitution: str = str(Path(__file__).with_name("constitution.txt"))  # the principles
    critic: str = "reader"  # policy of the run folder that writes critiques and revisions, and compares
    red_team: PositiveInt = 400  # prompts to break the model with                              paper: 182831
    revisions: PositiveInt = 2  # of every answer                                               paper: 4
    helpful_prompts: PositiveInt = 1200  # usual prompts that the helpful model answers         paper: 135296
    sl_epochs: PositiveInt = 1  # of supervised fine-tuning                                     paper: 1
    sl_learning_rate: PositiveFloat = 1e-3  # peak, cosine to a tenth        paper: half of pretraining's, constant
    thoughts: bool = True  # the feedback model writes down what it thinks before it decides
    clamp: float = 0.4  # with thoughts, p stays within [clamp, 1 - clamp]                      paper: 0.4
    batch_size: PositiveInt = 16  # people's rankings per step of the PM
    pm_learning_rate: PositiveFloat = 8e-4  # peak, cosine to a tenth
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
    Its seconds are part of what either costs. One made of another base.pt or other demonstrations is made anew.
    """
    path, demonstrations = run.out / "helpful.pt", Path(run.cfg.data) / "demonstrations.jsonl"
    inputs = fingerprints(run.out / "base.pt", demonstrations)
    made = read_checkpoint(path) if path.exists() else {}
    if made.get("inputs") == inputs:
        run.cost["seconds"] += made["cost"]["seconds"]
        return run.load_policy("helpful")
    began, rng = time.time(), random.Random(f"helpful {run.cfg.seed}")
    answers = []
    for record in read_demonstrations(run.cfg.data, "train"):
        intent, _ = understand(record["prompt"])
        if intent.name != "rude":
            answers.append((record["prompt"], record["completion"], True))
    for prompt in red_team(world, len(answers) // 12, "train", rng):
        _, slots = understand(prompt)
        answers.append((prompt, " " + unkind_answer(slots["person"], rng), True))
    model = run.load_policy("base")
    fine_tune(model, run.rows(answers), run, run.generator("helpful"), 2, 1e-3)
    cost = {"labels": 0, "tokens": 0, "seconds": time.time() - began}
    run.save("helpful", model, cost=cost, inputs=inputs)
    return model


def critiques_and_revisions(run, critic, principles, prompts, answers, rng, number):
    """One round of step 1. answers: [text] -> principles, critiques [text], revisions [(text, ended)]"""
    drawn = [rng.choice(principles) for _ in prompts]
    pages = [up_to_critique(x, y, question) for x, y, (question, _, _) in zip(prompts, answers, drawn)]
    critiques = [text for text, _ in run.answers(critic, pages, run.generator("critiques", number), stop="\n")]
    pages = [up_to_revision(a + c, request) for a, c, (_, request, _) in zip(pages, critiques, drawn)]
    return drawn, critiques, run.answers(critic, pages, run.generator("revisions", number), stop="\n")


def supervised(run, helpful, critic, principles, prompts, rng):
    """Steps 1 and 2 -> SL-CAI, and one chain answer → critique → revision → … to look at."""
    cfg = run.cfg
    answers = [text for text, _ in run.answers(helpful, prompts, run.generator("red team"))]
    examples, chain = [], [f"{prompts[0].strip()}{answers[0]}"]  # examples: (prompt, text, ended)
    for number in range(cfg.revisions):
        drawn, critiques, revisions = critiques_and_revisions(run, critic, principles, prompts, answers, rng, number)
        examples += [(prompt, *revision) for prompt, revision in zip(prompts, revisions) if revision[0].strip()]
        answers = [text for text, _ in revisions]
        question, request, _ = drawn[0]
        chain += [f"  {question}{critiques[0]}", f"  {request}{answers[0]}"]
    print("answer → critique → revision, one of them:\n  " + "\n  ".join(chain))
    usual = run.prompts(helpful, "train", cfg.helpful_prompts)
    for prompt, (text, ended) in zip(usual, run.answers(helpful, usual, run.generator("usual"))):
        if text.strip():
            examples.append((prompt, text, ended))
    model, rng = run.load_policy("base"), run.generator("SL-CAI")
    loss = fine_tune(model, run.rows(examples), run, rng, cfg.sl_epochs, cfg.sl_learning_rate)
    print(f"SL-CAI: the pretrained model fine-tuned on {len(examples)} answers, loss {loss:.3f}")
    return model, chain


def ai_feedback(run, model, critic, principles, prompts, rng):
    """Step 3 -> [(ids of prompt + first, ids of prompt + second, p)]."""
    cfg, answered = run.cfg, two_answers(run, model, prompts, run.generator("answers to label"))
    questions = [rng.choice(principles)[2] for _ in answered]
    triples = [(prompt, first[0], second[0]) for prompt, first, second in answered]
    p, _ = preferences(critic, run.tokenizer, triples, questions, cfg.thoughts)
    if cfg.thoughts:
        p = p.clamp(cfg.clamp, 1 - cfg.clamp)
    return [(run.ids(prompt, *a), run.ids(prompt, *b), q) for (prompt, a, b), q in zip(answered, p.tolist())]


def preference_model(run, start, rankings, pairs):
    """Step 4: every batch holds people's rankings and AI-labelled pairs; both losses weigh the same."""
    cfg, model, rng = run.cfg, run.new_reward_model(start), run.generator("preference model")
    n_pairs = max(1, round(len(pairs) * cfg.batch_size / len(rankings)))  # as many as make one pass over them

    def loss_of(indices):
        drawn = torch.randint(len(pairs), (n_pairs,), generator=rng).tolist()
        by_people = ranking_losses(model, [rankings[i] for i in indices]).mean()
        return by_people + loss_on_pairs(model, [pairs[i] for i in drawn], run.device)

    fit(model, loss_of, longest_rows(rankings), run, 1, cfg.batch_size, cfg.pm_learning_rate, rng)
    return model


def main(cfg):
    require(cfg.clamp <= 0.5, f"--clamp {cfg.clamp}: must be a number from 0 to 0.5")
    principles = read_constitution(cfg.constitution)
    run, rng = Run(cfg, cfg.name), random.Random(f"constitutional {cfg.seed}")
    world = load_labelers(cfg.data, "training")[0].world
    critic, helpful = run.load_policy(cfg.critic), helpful_only(run, world)
    attacks = red_team(world, cfg.red_team, "train", rng)
    sl_model, chain = supervised(run, helpful, critic, principles, attacks, rng)
    run.save(f"{cfg.name}_sl", sl_model, cost=run.cost_so_far())

    pairs = ai_feedback(run, sl_model, critic, principles, attacks * 2, rng)
    rankings = encoded_rankings(run, sl_model.config.block_size)
    pm = preference_model(run, sl_model, rankings["train"], pairs)
    share = accuracy(score_differences(pm, rankings["valid"]))[0]
    run.save(f"{cfg.name}_reward", pm)
    print(f"PM: {len(rankings['train'])} rankings by people, {len(pairs)} pairs by the critic", end="; ")
    print(f"it orders {100 * share:.1f} % of people's pairs as they do")

    if cfg.ppo_iterations:  # on a data folder of the same world whose prompts include the attacks
        folder = str(with_attacks(run, attacks))
        results = {"pm_accuracy": share, "chain": chain}
        ppo_from(run, cfg.name, f"{cfg.name}_sl", f"{cfg.name}_reward", cfg.ppo_iterations, results, data=folder)


def with_attacks(run, attacks):
    """A data folder like the run's, with the red-team prompts among the training prompts. Its other files are links."""
    folder = output_folder(run.out / f"{run.cfg.name}_data")
    for file in Path(run.cfg.data).iterdir():
        if file.is_file() and file.name not in ("prompts.jsonl", "comparisons.jsonl"):
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file.resolve())
    records = [record for _, record in read_jsonl(Path(run.cfg.data) / "prompts.jsonl")]
    more = [{"prompt": x, "user": "red team", "split": "train", "use_case": "generation"} for x in attacks]
    write_jsonl(folder / "prompts.jsonl", records + more)
    return folder


if __name__ == "__main__":
    command_line(Config, main, __doc__)
