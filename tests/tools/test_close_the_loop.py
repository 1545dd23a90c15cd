"""The loop in miniature: a person who likes short answers ranks over HTTP, and PPO's answers become shorter."""

import threading
from dataclasses import replace

import torch
from runs import without_comparisons

import page
import ppo
import reward
from core.server import Server
from data.folder import read_comparisons, read_jsonl, write_jsonl
from tools import close_the_loop


def test_what_people_like():
    short, pet = close_the_loop.liking("short"), close_the_loop.liking("pet")
    assert short("one two three") == -3 and short("") == 0
    assert pet("The fox saw a fox and an owl.") == 3 and pet("foxes") == 0


def test_from_rankings_on_the_page_to_shorter_answers(data, run, tmp_path):
    folder = without_comparisons(data, tmp_path / "data")
    records = [record for _, record in read_jsonl(data / "prompts.jsonl")]
    (folder / "prompts.jsonl").unlink()
    write_jsonl(folder / "prompts.jsonl", [*records, *(r | {"split": "test"} for r in records)])
    shared = {"data": str(folder), "out": str(run), "device": "cpu", "threads": 1}
    settings = close_the_loop.Config(**shared, rankings=30, held_out_rankings=3, max_new_tokens=16, test_prompts=24)

    def likes(text):
        return -len(text)

    people = tmp_path / "people"
    cfg = page.Config(**shared, people=str(people), prompts=30, valid_prompts=6, max_new_tokens=16)
    server = Server("127.0.0.1", 0, b"", page.Page(cfg, torch.device("cpu")).functions())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        given = close_the_loop.people_rank(settings, f"http://127.0.0.1:{server.server_port}/", likes)
    finally:
        server.shutdown()
        server.server_close()
    kept = read_comparisons(people / "comparisons.jsonl")
    assert given == len(kept) == 33 and {r["labeler"]: r["group"] for r in kept} == {
        "Tess": "training",
        "Hal": "held_out",
    }
    for record in kept:
        marks = [likes(text.strip()) for text in record["completions"]]
        assert all((a > b) == (i < j) for a, i in zip(marks, record["ranks"]) for b, j in zip(marks, record["ranks"]))
    before = close_the_loop.measure(settings, torch.device("cpu"), run / "ppo_init.pt", likes)["T = 1"]["liking"]
    reward.main(reward.Config(**shared, comparisons=str(people / "comparisons.jsonl"), epochs=12, learning_rate=3e-3))
    small = {
        "iterations": 16,
        "value_only_iterations": 2,
        "batch_size": 64,
        "minibatch_size": 8,
        "warmup_iterations": 0,
    }
    small |= {"max_new_tokens": 16, "sample_prompts": 2, "learning_rate": 2e-2, "ema": 0.5, "kl_coef": 0.0}
    ppo.main(replace(ppo.Config(**shared), **small))
    after = close_the_loop.measure(settings, torch.device("cpu"), run / "ppo.pt", likes)["T = 1"]["liking"]
    assert before["high"] < after["low"], "the answers have moved to the taste"
