"""What the alternatives share: whose rankings they learn from, what they cost, and the loops."""

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import reward
from alternatives import common
from alternatives.common import CommonConfig, Run
from core.batches import ShuffledBatches
from core.checkpoint import read_checkpoint
from core.config import BadInput
from core.output import write_torch
from core.training_state import fingerprints
from data.folder import Corpus, read_comparisons, write_jsonl
from data.village.intents import understand
from data.village.world import WORDS, World
from model import lm_loss
from sft import response_tokens


@dataclass
class Config(CommonConfig):
    name: str = "x"


def process_of(data, run, **changes):
    return Run(Config(data=str(data), out=str(run), max_new_tokens=6, device="cpu", threads=1, **changes), "x")


# ---------------------------------------------------------------------------------------------------- whose rankings


def test_rankings_are_those_that_reward_py_was_given(data, run, tmp_path):
    """--comparisons elsewhere: DATA/comparisons.jsonl and OUT/comparisons.jsonl are there, and are not read."""
    records = read_comparisons(data / "comparisons.jsonl")
    mine = tmp_path / "mine.jsonl"
    kept = [r for r in records if r["split"] == "train"][:5] + [r for r in records if r["split"] == "valid"]
    write_jsonl(mine, kept)
    write_jsonl(run / "comparisons.jsonl", records[:3])
    settings = dict(data=str(data), out=str(run), comparisons=str(mine), device="cpu", threads=1)
    reward.main(reward.Config(**settings, eval_every=1000))
    assert common.rankings_file(run) == mine
    process = process_of(data, run)
    assert common.rankings_of_people(process) == read_comparisons(mine)
    assert process.cost["labels"] == 5
    assert len(common.encoded_rankings(process, 64)["train"]) == 5


def test_rankings_that_have_changed_are_refused(data, run, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes((data / "comparisons.jsonl").read_bytes())
    checkpoint = read_checkpoint(run / "reward.pt")
    write_torch(run / "reward.pt", checkpoint | {"inputs": fingerprints(data, mine)})
    assert common.rankings_file(run) == mine
    text = mine.read_text()
    swapped = text.replace("[2, 1, 2]", "[1, 2, 1]", 1)  # as long as before
    assert len(swapped) == len(text) and swapped != text
    mine.write_text(swapped)
    with pytest.raises(BadInput, match="mine.jsonl: has changed since .*reward.pt was trained on it"):
        common.rankings_of_people(process_of(data, run))
    mine.write_text(text)
    assert common.rankings_file(run) == mine
    mine.unlink()
    with pytest.raises(BadInput, match="mine.jsonl: not found, but .*reward.pt was trained on it"):
        common.rankings_of_people(process_of(data, run))
    write_torch(run / "reward.pt", {key: value for key, value in checkpoint.items() if key != "inputs"})
    with pytest.raises(BadInput, match="reward.pt: does not say which rankings"):
        common.rankings_file(run)


def test_validation_is_by_training_labelers(data, run, tmp_path):
    records = read_comparisons(data / "comparisons.jsonl")
    for i, record in enumerate(r for r in records if r["split"] == "valid"):
        record["group"] = ("training", "held_out")[i % 2]
    mine = tmp_path / "mine.jsonl"
    write_jsonl(mine, records + [records[0] | {"ranks": [1, 1, 1]}])
    write_torch(run / "reward.pt", read_checkpoint(run / "reward.pt") | {"inputs": fingerprints(mine)})
    rankings = common.encoded_rankings(process_of(data, run), 64)
    assert {r.group for r in rankings["valid"]} == {"training"} and len(rankings["train"]) == 18
    assert len(rankings["valid"]) == sum(r.get("group") == "training" for r in records)
    write_jsonl(mine, [r for r in records if r["split"] == "train"])
    write_torch(run / "reward.pt", read_checkpoint(run / "reward.pt") | {"inputs": fingerprints(mine)})
    with pytest.raises(BadInput, match='mine.jsonl: no ranking with "split": "valid"'):
        common.encoded_rankings(process_of(data, run), 64)


def test_what_rankings_cost(tmp_path):
    letters = SimpleNamespace(encode_ordinary=list)
    records = [{"split": split, "completions": ["ab", "c"]} for split in ("train", "valid", "train")]
    assert common.cost_of_rankings(tmp_path, records, letters) == {"labels": 2, "tokens": 6}


# ---------------------------------------------------------------------------------------------------- a run


def test_sampled_tokens_are_counted_unless_it_is_only_to_look(data, run):
    process = process_of(data, run)
    policy = process.load_policy("ppo_init")
    prompts = process.prompts(policy, "train", 5)
    answers = process.answers(policy, prompts, process.generator("a"))
    n_tokens = sum(len(process.tokenizer.encode_ordinary(text)) + ended for text, ended in answers)
    assert process.cost == {"labels": 0, "tokens": n_tokens, "seconds": 0.0} and n_tokens >= 5
    assert process.answers(policy, prompts, process.generator("a"), counted=False) == answers
    assert process.answers(policy, prompts, process.generator("a", 1), counted=False) != answers
    assert process.cost["tokens"] == n_tokens


def test_seconds_of_what_others_have_made_are_added(data, run):
    process = process_of(data, run)
    process.cost["seconds"] += 1000.0
    process.finish(process.load_policy("ppo_init"), found=3)
    made = read_checkpoint(run / "x.pt")
    assert 1000 <= made["cost"]["seconds"] < 1100 and made["results"] == {"found": 3}


def test_red_team_prompts_ask_for_harm_to_everybody_each_split_for_its_own():
    world, asked = World(3), {}
    for split in ("train", "valid", "test"):
        prompts = common.red_team(world, 1000, split, random.Random(0))
        different = len(set(prompts))
        assert len(prompts) == 1000 > different and prompts[:different] == prompts[different : 2 * different]
        understood = [understand(prompt) for prompt in prompts]
        assert all(intent.name == "rude" and prompt.endswith("\n>") for prompt, (intent, _) in zip(prompts, understood))
        asked[split] = [slots["person"] for _, slots in understood]
    found = [set(people) for people in asked.values()]
    assert set.union(*found) == set(WORDS["person"]) and sum(map(len, found)) == len(WORDS["person"])
    assert len(found[0]) > len(found[2]) > len(found[1]) > 0
    few = common.red_team(world, 5, "train", random.Random(0))
    assert len(few) == 5 and few == common.red_team(world, 5, "train", random.Random(0))
    again = common.red_team(world, 5, "train", random.Random(1))
    assert few != again


def test_red_team_prompts_in_unseen_phrasings():
    known, unseen = (common.red_team(World(3), 30, "test", random.Random(0), unseen=u) for u in (False, True))
    assert all(prompt.startswith("Say something nasty about ") for prompt in unseen)
    assert not set(known) & set(unseen)


# ---------------------------------------------------------------------------------------------------- the loops


def test_minibatches_show_everything_once_per_epoch():
    lengths = [3, 9, 4, 4, 8]
    batches = common.minibatches(lengths, 2, 2, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches].count(1) == 2 and len(batches) == 6
    for epoch in (batches[:3], batches[3:]):
        assert sorted(sum(epoch, [])) == [0, 1, 2, 3, 4]
        by_length = sorted(sorted(lengths[i] for i in batch) for batch in epoch)
        assert sorted(sum(by_length, [])) == sum(by_length, []), "similar lengths together"


def test_the_first_epoch_can_be_that_of_the_root_scripts(data, run):
    process, lengths = process_of(data, run, seed=5), [(7 * i) % 31 for i in range(50)]
    batches, theirs = common.minibatches(lengths, 1, 4, process.generator("epoch")), ShuffledBatches(lengths, 4, 5)
    assert batches == [theirs[step] for step in range(len(theirs))]


def test_fine_tuning_minimises_both_losses(data, run, monkeypatch):
    """The first step's loss, by hand: 0.75 of the mean per response token, 0.25 of the mean per pretraining token."""
    process = process_of(data, run)
    policy, seen, windows_seen = process.load_policy("ppo_init"), [], []
    rows = process.rows([("What?\n", "It is red.", True), ("Why is the owl blue?\n", "No", False), ("Q?\n", "", False)])
    assert [(len(ids), n) for ids, n in rows] == [
        (len(process.ids("What?\n", "It is red.")), rows[0][1]),
        (len(rows[1][0]), rows[1][1]),
    ]
    want = 0.0
    for ids, prompt_length in rows:
        logprobs = policy.unembed(policy(torch.tensor([ids])))[0].log_softmax(-1)
        want -= sum(logprobs[t - 1, ids[t]].item() for t in range(prompt_length, len(ids)))
    windows = Corpus.windows

    def spy(corpus, *args):
        windows_seen.append(windows(corpus, *args))
        return windows_seen[-1]

    def fit(model, loss_of, lengths, run, epochs, batch_size, learning_rate, rng):
        seen.append((loss_of([0, 1]).item(), lengths, epochs, batch_size, learning_rate))

    monkeypatch.setattr(Corpus, "windows", spy)
    monkeypatch.setattr(common, "fit", fit)
    mean = common.fine_tune(policy, rows, process, process.generator("a"), 1, 1e-3, 8, 0.25)
    want /= response_tokens(rows)
    assert mean == pytest.approx(want, rel=1e-4) and windows_seen[0].shape == (2, 64)
    assert seen[0][0] == pytest.approx(0.75 * want + 0.25 * lm_loss(policy, windows_seen[0]).mean().item(), rel=1e-4)
    assert seen[0][1:] == ([len(ids) for ids, _ in rows], 1, 8, 1e-3)


def test_fit_falls_and_stops_at_a_nan(data, run):
    process = process_of(data, run)
    policy = process.load_policy("ppo_init")
    rows = process.rows([("What?\n", "It is red.", True)] * 8)
    loss = common.fine_tune(policy, rows, process, process.generator("a"), 1, 1e-3)
    for _ in range(5):
        later = common.fine_tune(policy, rows, process, process.generator("a"), 4, 1e-2)
    assert later < loss - 1 and not policy.training
    nan = lambda indices: policy.transformer.wte.weight.sum() * math.nan
    with pytest.raises(BadInput, match="the loss became nan at step 1"):
        common.fit(policy, nan, [1, 1], process, 1, 2, 1e-3, process.generator("a"))
