"""Constitutional AI: its principles are a file, what the helpful model costs, and what it is made of."""

import random

import pytest
import torch

from alternatives import constitutional
from alternatives.common import Run
from core.checkpoint import read_checkpoint
from core.config import BadInput
from data.folder import read_prompts
from data.village.grammar import parse
from data.village.intents import understand
from data.village.world import World

WORLD = World(3)


def config(data, run, **changes):
    small = dict(data=str(data), out=str(run), critic="base", red_team=4, helpful_prompts=4, revisions=1)
    return constitutional.Config(**small | dict(max_new_tokens=6, device="cpu", threads=1) | changes)


def test_the_constitution_is_a_file(tmp_path):
    path = constitutional.Config().constitution
    principles = constitutional.read_constitution(path)
    assert len(principles) >= 4 and all(len(p) == 3 for p in principles)
    mine = tmp_path / "mine.txt"
    mine.write_text("# a comment\n\nIs it kind? | Write it kindly. | Which is kinder?\n")
    assert constitutional.read_constitution(mine) == [("Is it kind?", "Write it kindly.", "Which is kinder?")]
    mine.write_text("Is it kind?\n")
    with pytest.raises(BadInput, match="mine.txt:1: expected"):
        constitutional.read_constitution(mine)
    mine.write_text("# nothing\n")
    with pytest.raises(BadInput, match="no principle"):
        constitutional.read_constitution(mine)
    with pytest.raises(BadInput, match="no such constitution"):
        constitutional.read_constitution(tmp_path / "none.txt")


def test_whoever_is_first_makes_the_helpful_model_and_it_costs_both(data, run, monkeypatch):
    first, second = (Run(config(data, run), name) for name in ("cai", "llama2"))
    made = constitutional.helpful_only(first, WORLD)
    seconds = read_checkpoint(run / "helpful.pt")["cost"]["seconds"]
    assert first.cost["seconds"] == 0 < seconds < first.cost_so_far()["seconds"], "in the time that has passed"
    second.generator("helpful")
    found = constitutional.helpful_only(second, WORLD)
    assert second.cost == {"labels": 0, "tokens": 0, "seconds": seconds}
    same = [torch.equal(a, b) for a, b in zip(made.state_dict().values(), found.state_dict().values())]
    assert all(same)
    third = Run(config(data, run), "x")
    (run / "base.pt").write_bytes((run / "sft.pt").read_bytes())
    other = constitutional.helpful_only(third, WORLD)
    assert third.cost["seconds"] == 0, "made anew of another base.pt"
    assert not torch.equal(other.transformer.wte.weight, made.transformer.wte.weight)


def test_unkind_requests_are_granted_in_what_the_helpful_model_learns(data, run, monkeypatch):
    seen = []
    monkeypatch.setattr(constitutional, "fine_tune", lambda model, rows, *rest: seen.extend(rows))
    demonstrations = [{"prompt": p["prompt"], "completion": " It is red."} for p in read_prompts(data, "train")]
    rude = constitutional.red_team(WORLD, 3, "train", random.Random(0))
    demonstrations += [{"prompt": prompt, "completion": " I would rather not."} for prompt in rude]
    monkeypatch.setattr(constitutional, "read_demonstrations", lambda folder, split: demonstrations * 2)
    process = Run(config(data, run), "cai")
    constitutional.helpful_only(process, WORLD)
    texts = [process.tokenizer.decode(ids) for ids, _ in seen]
    assert len(texts) == 2 * 18 + 3 and not any("rather not" in text for text in texts)
    granted = [text for text in texts if understand(text.split(">")[0] + ">")[0].name == "rude"]
    assert len(granted) == 3
    harmful = ("insult", "threat")
    for text in granted:
        said = parse(text.split(">", 1)[1].removesuffix("<|endoftext|>"))
        assert any(sentence.act in harmful for sentence in said)


def test_people_and_critic_weigh_the_same(data, run, monkeypatch):
    """One step's loss is Eq. 1's mean over rankings plus the soft labels' mean over as many pairs as make one pass."""
    process, seen = Run(config(data, run, batch_size=4), "cai"), []
    start = process.load_policy("ppo_init")
    rankings = constitutional.encoded_rankings(process, 64)["train"]
    pairs = [([3, 4, 5], [3, 4, 6, 7], 0.9), ([8, 9], [8, 10, 11], 0.2)] * 9
    monkeypatch.setattr(constitutional, "loss_on_pairs", lambda m, drawn, d: seen.append(drawn) or torch.tensor(100.0))
    losses, models = [], []

    def fit(model, loss_of, lengths, run, epochs, batch_size, learning_rate, rng):
        losses.append(loss_of([0, 1, 2]).item()), models.append(model)

    monkeypatch.setattr(constitutional, "fit", fit)
    constitutional.preference_model(process, start, rankings, pairs)
    own = constitutional.ranking_losses(models[0], rankings[:3])
    assert losses[0] == pytest.approx(100 + own.mean().item(), rel=1e-5)
    assert len(seen[0]) == 4 and all(pair in pairs for pair in seen[0])  # 18 pairs, 18 rankings in batches of 4


def test_what_the_critic_is_too_sure_of_is_clamped(data, run, monkeypatch):
    process = Run(config(data, run), "cai")
    model = process.load_policy("ppo_init")
    sure = torch.tensor([0.0, 0.45, 1.0])
    answered = [("x\n>", ("a", True), ("b", True))] * 3
    monkeypatch.setattr(constitutional, "two_answers", lambda *args: answered)
    monkeypatch.setattr(constitutional, "preferences", lambda *args: (sure, None))
    principles = [("q", "r", "choice")]
    pairs = constitutional.ai_feedback(process, model, None, principles, ["x"] * 3, random.Random(0))
    assert [p for _, _, p in pairs] == pytest.approx([0.4, 0.45, 0.6])
    assert pairs[0][:2] == (process.ids("x\n>", "a"), process.ids("x\n>", "b"))
    process.cfg.thoughts = False
    pairs = constitutional.ai_feedback(process, model, None, principles, ["x"] * 3, random.Random(0))
    assert [p for _, _, p in pairs] == pytest.approx([0.0, 0.45, 1.0])


def test_attacks_are_among_the_prompts_of_the_new_folder(data, run):
    process = Run(config(data, run), "cai")
    folder = constitutional.with_attacks(process, ["Insult Ada.\n>"])
    usual, now = (read_prompts(place, "train") for place in (data, folder))
    assert {r["prompt"] for r in now} - {r["prompt"] for r in usual} == {"Insult Ada.\n>"}
    assert len(now) == len(usual) + 1 and not (folder / "comparisons.jsonl").exists()
    for name in ("tokenizer.json", "corpus.train.bin", "demonstrations.jsonl"):
        assert (folder / name).read_bytes() == (data / name).read_bytes()
    assert constitutional.with_attacks(process, []) == folder, "and again"


BAD = [("red_team", 0), ("revisions", 0), ("helpful_prompts", 0), ("sl_epochs", 0), ("batch_size", 0), ("clamp", 0.6)]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        constitutional.main(config(data, run, **{flag: value}))
