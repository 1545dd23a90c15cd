"""tools/public_benchmarks.py: what it reads off a model is derived again from whole forward passes, token by token."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from runs import command

from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import BadInput
from core.gpt2 import export
from data.benchmarks import prompts_of, read_benchmark
from evaluate import task_scores
from model import GPT, GPTConfig, pad
from tools import public_benchmarks as tool
from tools.public_benchmarks import Config, choice_logprobs, score_samples

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "blue", "green", "brown"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer_spec, tokenizer):
    """Two untrained models with room for a prompt, whose predictions differ, and one with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, block_size) in enumerate({"one": 700, "two": 700, "short": 64}.items()):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(2, 2, 16, block_size, tokenizer.n_vocab))
        model.transformer.wte.weight.data *= 10
        save_checkpoint(folder / f"{name}.pt", model, tokenizer_spec, {}, step=0)
    return folder


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small file of each benchmark, in the official layout. -> {task: path}"""
    folder, found = tmp_path_factory.mktemp("files"), {}

    def put(task, name, content):
        (folder / name).write_text(content, encoding="utf-8")
        found[task] = str(folder / name)

    def lines(records):
        return "".join(json.dumps(record) + "\n" for record in records)

    def asked(colour, known):
        answers = [{"text": colour, "answer_start": 0}] if known else []
        return {"question": f"Which cat is {colour}?", "answers": answers, "is_impossible": not known, "id": colour}

    passages = [{"context": f"A {c} cat.", "qas": [asked(c, True), asked("grey", False)]} for c in COLOURS]
    put(
        "squadv2", "dev-v2.0.json", json.dumps({"version": "v2.0", "data": [{"title": "Cats", "paragraphs": passages}]})
    )
    turns = {
        c: [
            {"question": f"Is it {q}?", "answers": [{"text": q}, {"text": c}], "orig_answer": {"text": c}} for q in "ab"
        ]
        for c in COLOURS
    }
    articles = [
        {"title": c, "section_title": "S", "paragraphs": [{"context": f"{c} cat", "qas": turns[c]}]} for c in COLOURS
    ]
    put("quac", "val_v0.2.json", json.dumps({"data": articles}))
    answer = {"number": "", "spans": ["red", "cat"], "date": {}}
    pair = {"question": "Who?", "answer": answer}
    put("drop", "drop_dataset_dev.json", json.dumps({c: {"passage": f"{c} cat", "qa_pairs": [pair]} for c in COLOURS}))
    endings = [f"is {c}." for c in COLOURS]
    record = {"activity_label": "Sitting", "endings": endings}
    put("hellaswag", "h.jsonl", lines(record | {"ctx": f"The {c} cat", "label": i} for i, c in enumerate(COLOURS)))
    labels = ("entailment", "not_entailment")
    rte = [
        {"premise": f"A {c} cat sat.", "hypothesis": f"It is {c}.", "label": labels[i % 2]}
        for i, c in enumerate(COLOURS)
    ]
    put("rte", "rte.jsonl", lines(rte))
    put("sst", "sst.tsv", "sentence\tlabel\n" + "".join(f"a {c} cat\t{i % 2}\n" for i, c in enumerate(COLOURS)))
    target = {"span1_text": "cat", "span2_text": "it", "span2_index": 3}
    put(
        "wsc", "wsc.jsonl", lines({"text": f"A {c} cat it is.", "target": target, "label": c != "red"} for c in COLOURS)
    )
    pairs = [("A red cat sat.", "A blue cat sat."), ("The owl is old.", "The owl is a fox."), ("Bees.", "Hens.")]
    found["crows_pairs"] = write_csv(folder / "crows.csv", ["", "sent_more", "sent_less"], [("0", *p) for p in pairs])
    sentences = [
        (f"cook.guest.{i}.{g}.txt\tThe cook saw {w} cat {i}.")
        for i in "01"
        for g, w in (("male", "his"), ("female", "her"))
    ]
    put("winogender", "all_sentences.tsv", "sentid\tsentence\n" + "\n".join(sentences) + "\n")
    toxic = [
        {"prompt": {"text": f"The {c} cat", "toxicity": 0.2 * i}, "continuation": {"toxicity": 0.25}}
        for i, c in enumerate(COLOURS)
    ]
    put("real_toxicity", "prompts.jsonl", lines(toxic))
    rows = [("A", "B", f"Is a cat {c}?", "No", "No; Never", "Yes; Always", "u") for c in COLOURS]
    header = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    found["truthfulqa"] = write_csv(folder / "TruthfulQA.csv", header, rows)
    return found


def logprobs_of(model, tokenizer, prompt, choice):
    """log p of a choice and its number of tokens, from one forward pass per token over everything before it."""
    ids, total = tokenizer.encode_ordinary(prompt) or [tokenizer.eot_token], 0.0
    for token in tokenizer.encode_ordinary(choice):
        with torch.no_grad():
            logits = model.unembed(model(torch.tensor([ids])))[0, -1].double()
        total += logits[token].item() - math.log(sum(math.exp(x) for x in logits.tolist()))
        ids.append(token)
    return total, len(tokenizer.encode_ordinary(choice))


def test_logprobs_of_choices_token_by_token(models):
    model, tokenizer, _ = load_checkpoint(models / "one.pt", "policy")
    items = [
        {"prompt": "The cat is", "choices": [" red.", " a brown owl on a roof."]},
        {"prompt": "", "choices": ["A red cat sat.", "A blue cat sat.", "Hens."]},
        {"prompt": "Answer:\n\n", "choices": ["Yes", "No"]},
    ]
    for batch_size in (1, 3):
        for item, values in zip(items, choice_logprobs(model, tokenizer, items, batch_size)):
            for choice, value in zip(item["choices"], values):
                assert value == pytest.approx(logprobs_of(model, tokenizer, item["prompt"], choice), rel=1e-4)


def results_of(out):
    rows = json.loads((out / "benchmarks.json").read_text())["results"]
    return {(row["model"], row["task"], row["prompt"], row["metric"]): row for row in rows}


def test_all_of_it_on_untrained_models(models, files, tmp_path, capsys):
    both = f"{models}/one.pt,{models}/two.pt"
    tool.main(Config(model=both, **files, shots=2, batch_size=3, out=str(tmp_path), device="cpu", threads=1))
    printed, found = capsys.readouterr().out, results_of(tmp_path)
    assert "the web's own continuations of these prompts: toxicity 0.250" in printed and "dropped" not in printed
    kinds = {key[1:] for key in found}
    assert kinds == {(task, kind, metric) for task, kind, metric in tool.PAPER if task in files} | {
        ("truthfulqa", kind, metric)
        for kind in ("QA prompt", "QA + instruction", "instruction prompt")
        for metric in ("MC1", "MC2")
    }
    assert len(found) == 2 * len(kinds)

    # choices: from one forward pass per token
    seen = set()
    for name in ("one", "two"):
        model, tokenizer, _ = load_checkpoint(models / f"{name}.pt", "policy")
        for task in ("hellaswag", "rte", "sst"):
            items, _ = read_benchmark(task, files[task])
            for kind, some in prompts_of(task, items, None, 2, 0).items():
                right = []
                for item in some:
                    values = [logprobs_of(model, tokenizer, item["prompt"], choice) for choice in item["choices"]]
                    means = [total / count for total, count in values]
                    right.append(means[item["answer"]] == max(means))
                row = found[name, task, kind, "accuracy"]
                assert row["mean"] == pytest.approx(sum(right) / len(right)) and row["n"] == len(some)
                as_tasks = [item | {"context": item["prompt"], "split": "test"} for item in some]
                assert task_scores(model, tokenizer, as_tasks) == {task: pytest.approx(row["mean"])}
                seen |= set(right)
        items, _ = read_benchmark("crows_pairs", files["crows_pairs"])
        entropies = []
        for item in items:
            p, q = (math.exp(logprobs_of(model, tokenizer, "", choice)[0]) for choice in item["choices"])
            entropies.append(-sum(x / (p + q) * math.log2(x / (p + q)) for x in (p, q) if x))
        row = found[name, "crows_pairs", "basic", "entropy"]
        assert row["mean"] == pytest.approx(sum(entropies) / 3, rel=1e-3) and 0 < row["mean"] < 1
    assert seen == {True, False}

    # texts: from the samples that were written, by the scorer of the released ones
    for task in ("squadv2", "quac", "drop"):
        scores = score_samples(tmp_path / f"{task}_samples.csv")
        for (name, kind), metrics in scores.items():
            if task != "drop":
                row = found[name, task, {"zeroshot": "zero-shot", "fewshot": "few-shot"}[kind], "F1"]
                assert metrics["F1"] == {key: row[key] for key in ("mean", "low", "high", "n")}
        assert set(scores) == {(name, kind) for name in ("one", "two") for kind in ("zeroshot", "fewshot")}
    with open(tmp_path / "wsc_samples.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model_type"] == "one" and row["prompt_type"] == "zeroshot"]
    assert len(rows) == 4 and all("\n" not in row["sample"] for row in rows)
    said_yes = [row["sample"] != "" and (row["sample"] in "cat" or "cat" in row["sample"]) for row in rows]
    right = [yes == ("red" not in row["context"]) for yes, row in zip(said_yes, rows)]
    assert found["one", "wsc", "zero-shot", "accuracy"]["mean"] == pytest.approx(sum(right) / 4)

    table = (tmp_path / "benchmarks.md").read_text()
    order = [
        table.index(name)
        for name in ("Winogender, basic", "Winogender, resp", "CrowS", "TruthfulQA", "HellaSwag", "DROP")
    ]
    assert order == sorted(order) and "| HellaSwag, few-shot | accuracy | 2 |" in table
    assert "| data set, prompt | metric | items | one | two | GPT 175B | PPO-ptx 175B |" in table
    assert "| 64.3 | 59.9 |" in table and table in printed


def test_an_answer_ends_with_its_line(models, monkeypatch):
    model, tokenizer, _ = load_checkpoint(models / "one.pt", "policy")

    def writes_two_lines(model, prompts, max_new_tokens, eot, temperature, generator=None):
        assert temperature == 0 and max_new_tokens == 30
        rows = [prompt + tokenizer.encode_ordinary(" A red cat \nQ: Who else?") for prompt in prompts]
        return *pad(rows, value=eot), None

    monkeypatch.setattr("core.text.generate", writes_two_lines)
    items = [{"prompt": "Q: Who?\n\nA:", "references": ["red cat"]}, {"prompt": "Q:", "references": ["owl"]}]
    values, texts = tool.ask(model, tokenizer, "squadv2", items, Config(device="cpu"))
    assert texts == ["A red cat", "A red cat"] and values == {"F1": [100, 0]}


def test_samples_await_a_judge(models, files, tmp_path, capsys):
    asked = {task: files[task] for task in ("real_toxicity", "truthfulqa")}
    tool.main(Config(model=f"{models}/one.pt", **asked, limit=2, out=str(tmp_path), device="cpu", threads=1))
    assert "let a judge fill toxicity in" in capsys.readouterr().out
    for task, columns in (("real_toxicity", ["toxicity"]), ("truthfulqa", ["true", "info"])):
        path = tmp_path / f"{task}_samples.csv"
        with pytest.raises(BadInput, match=rf"{task}_samples.csv:2: {columns[0]} is ''; let a judge fill"):
            score_samples(path)
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len(rows) == 1 + 3 * 2
        for i, row in enumerate(rows[1:]):
            for column in columns:
                row[rows[0].index(column)] = str(0.1 * i)
        scores = score_samples(write_csv(path, rows[0], rows[1:]))
        kinds = [kind for _, kind in scores]
        if task == "real_toxicity":
            assert kinds == ["basic prompt", "respectful prompt", "biased prompt"]
            assert [values["toxicity"]["mean"] for values in scores.values()] == pytest.approx([0.05, 0.25, 0.45])
        else:
            assert kinds == ["QA prompt", "QA + instruction", "instruction prompt"]
            assert [values["true + informative"]["mean"] for values in scores.values()] == [0, 0, 0.5]


def test_what_just_fits_is_asked(models):
    _, tokenizer, _ = load_checkpoint(models / "one.pt", "policy")
    prompt, choices = "The red cat is", [" red.", " on a brown roof."]
    n, longest = (len(tokenizer.encode_ordinary(text)) for text in (prompt, choices[1]))
    for item, new_tokens, needed in (
        ({"prompt": prompt}, 5, n + 5),
        ({"prompt": prompt, "choices": choices}, 0, n + longest),
        ({"prompt": prompt, "choices": choices}, longest + 1, n + longest + 1),
        ({"prompt": "", "choices": choices}, 0, 1 + longest),
    ):
        assert tool.those_that_fit([item], tokenizer, needed, new_tokens) == [item]
        assert tool.those_that_fit([item], tokenizer, needed - 1, new_tokens) == []


def test_what_does_not_fit_is_dropped_and_counted(models, files, tmp_path, capsys):
    cfg = {"shots": 1, "out": str(tmp_path), "device": "cpu", "threads": 1}
    asked = {task: files[task] for task in ("crows_pairs", "squadv2")}
    tool.main(Config(model=f"{models}/one.pt,{models}/short.pt", **asked, **cfg))
    assert (
        "short: SQuADv2, zero-shot: dropped 8 of 8 items that are too long for the context of 64"
        in capsys.readouterr().out
    )
    found, table = results_of(tmp_path), (tmp_path / "benchmarks.md").read_text()
    assert ("short", "squadv2", "zero-shot", "F1") not in found and found["one", "squadv2", "few-shot", "F1"]["n"] == 6
    assert "| SQuADv2, zero-shot | F1 | 8/0 | " in table
    with pytest.raises(BadInput, match="short.pt: no question fits into its context of 64; use"):
        tool.main(Config(model=f"{models}/short.pt", squadv2=files["squadv2"], **cfg))


def test_gpt2s_layout_gives_the_same(models, files, tmp_path):
    model, tokenizer, _ = load_checkpoint(models / "one.pt", "policy")
    export(model, tokenizer, tmp_path / "exported")
    paths = f"{models}/one.pt,{tmp_path}/exported"
    asked = {task: files[task] for task in ("sst", "squadv2", "winogender")}
    tool.main(Config(model=paths, **asked, out=str(tmp_path / "out"), device="cpu", threads=1))
    found = results_of(tmp_path / "out")
    assert len(found) == 2 * 5
    for (name, *key), row in found.items():
        if name == "one":
            other = str(tmp_path / "exported")
            assert found[(other, *key)] == row | {"model": other}


def test_translation_and_summary(models, tmp_path):
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    pytest.importorskip("rouge_score", reason="rouge-score is not installed")
    for name, line in (("a.fr", "Le chat {} dort."), ("a.en", "The {} cat is asleep.")):
        (tmp_path / name).write_text("".join(line.format(c) + "\n" for c in COLOURS), encoding="utf-8")
    news = write_csv(
        tmp_path / "news.csv", ["id", "article", "highlights"], [(c, f"The {c} cat sat.", "It sat.") for c in COLOURS]
    )
    cfg = {"model": f"{models}/one.pt", "fr_to_en": f"{tmp_path}/a.fr,{tmp_path}/a.en", "cnn_dm": news, "shots": 1}
    tool.main(Config(**cfg, out=str(tmp_path / "out"), device="cpu", threads=1))
    found, scores = results_of(tmp_path / "out"), score_samples(tmp_path / "out" / "fr_to_en_samples.csv")
    assert found["one", "fr_to_en", "few-shot", "BLEU"]["mean"] == scores["one", "fewshot"]["BLEU"]["mean"]
    assert 0 <= found["one", "cnn_dm", "plain", "ROUGE-L"]["mean"] <= 1


def test_a_missing_package_is_named_before_any_model_is_asked(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(BadInput, match="pip install sacrebleu"):
        tool.main(Config(model=f"{models}/one.pt", fr_to_en="a,b", out=str(tmp_path / "out"), device="cpu"))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- released samples

RIGHT = "the red roof|roof"
READING = [  # the layout of OpenAI's squadv2_samples.csv and drop_samples.csv
    ("gpt-xl", "zeroshot", "Title: A\n\nBackground: B\n\nQ: Where?\n\nA:", RIGHT, "A red roof"),
    ("gpt-xl", "zeroshot", "Title: A\n\nBackground: B\n\nQ: Who?\n\nA:", "Not in background.", "fox"),
    ("gpt-xl", "fewshot", "Title: A\n\nBackground: B\n\nQ: Where?\n\nA:", RIGHT, "old roof"),
    ("gpt-xl", "fewshot", "Title: A\n\nBackground: B\n\nQ: Who?\n\nA:", "Not in background.", "Not in background."),
]


def numbered(rows):
    return [(i, *row) for i, row in enumerate(rows)]


def test_released_reading_by_hand(tmp_path):
    header = ["", "model_type", "prompt_type", "context", "ref_text", "sample"]
    scores = score_samples(write_csv(tmp_path / "squadv2_samples.csv", header, numbered(READING)))
    assert scores["gpt-xl", "zeroshot"]["F1"]["mean"] == pytest.approx(50)  # 1 and 0
    assert scores["gpt-xl", "fewshot"]["F1"]["mean"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    rows = [("ppo-ptx-6b", "fewshot", "c", "7761", "$7,761"), ("ppo-ptx-6b", "fewshot", "c", "7761", "about 8,000")]
    scores = score_samples(write_csv(tmp_path / "drop_samples.csv", header, numbered(rows)))
    assert scores["ppo-ptx-6b", "fewshot"]["F1"]["mean"] == pytest.approx(50)
    path = write_csv(tmp_path / "samples.csv", header, numbered(rows))
    with pytest.raises(BadInput, match="samples.csv: which task is it"):
        score_samples(path)


def test_released_toxicity_and_truth_by_hand(tmp_path, capsys):
    header = ["", "model_type", "prompt_type", "context", "sample", "toxicity"]
    rows = [
        ("gpt-175b", "biased prompt", "The cat", "sat.", 0.2),
        ("gpt-175b", "biased prompt", "The owl", "ate.", 0.5),
    ]
    rows.append(("sft-175b", "biased prompt", "The cat", "sat.", 0.25))
    path = write_csv(tmp_path / "real_toxicity_samples.csv", header, numbered(rows))
    tool.main(Config(samples=path, out=str(tmp_path / "out"), device="cpu"))
    table = (tmp_path / "out" / "real_toxicity_samples.scores.md").read_text()
    assert (
        "| gpt-175b | 0.350 ± 0.294 |" in table and "| sft-175b | 0.250" in table and table in capsys.readouterr().out
    )
    header = ["", "model_type", "prompt_type", "adversarial", "question", "answer", "true", "info"]
    judged = [(0.99, 0.98), (0.8, 0.1), (3e-07, 1.0), (0.5, 0.5)]
    rows = [("gpt-xl", "QA prompt", True, "Why?", "So.", *pair) for pair in judged]
    scores = score_samples(write_csv(tmp_path / "truthful_qa_samples.csv", header, numbered(rows)))[
        "gpt-xl", "QA prompt"
    ]
    assert scores["true"]["mean"] == 0.75 and scores["true + informative"]["mean"] == 0.5


WRONG = {
    "no model": ("squadv2.csv", ["", "context"], [("0", "x")], r"squadv2.csv:1: no column \['model_type'\]"),
    "no reference": ("squadv2.csv", ["model_type", "sample"], [("a", "x")], r"squadv2.csv:1: no column \['ref_text'\]"),
    "no samples": ("drop.csv", ["model_type", "ref_text", "sample"], [], "drop.csv: no samples in it"),
    "too toxic": (
        "t.csv",
        ["model_type", "toxicity"],
        [("a", "0.1"), ("a", "7")],
        r"t.csv:3: toxicity is '7'; a number",
    ),
    "truth in words": ("t.csv", ["model_type", "true", "info"], [("a", "yes", "0.1")], r"t.csv:2: true is 'yes'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_samples_say_where(tmp_path, name):
    file, header, rows, message = WRONG[name]
    with pytest.raises(BadInput, match=message):
        score_samples(write_csv(tmp_path / file, header, rows))


def test_the_command_line_reports_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "rte.jsonl").write_text('{"premise": "a"}\n')
    words = ["--model", "gpt.pt", "--rte", "rte.jsonl"]
    monkeypatch.chdir(tmp_path)
    code, _, errors = command("tools/public_benchmarks.py", words, monkeypatch, capsys)
    assert code == 2 and len(errors.splitlines()) == 1 and 'rte.jsonl:1: key "hypothesis" is missing' in errors
    for settings, message in (
        ({}, "--model: give what to ask"),
        ({"model": "gpt.pt"}, "give at least one benchmark's file"),
        ({"rte": "rte.jsonl", "samples": "a.csv"}, "--model: give the model"),
    ):
        with pytest.raises(BadInput, match=message):
            tool.main(Config(**settings, out=str(tmp_path / "out"), device="cpu"))
    assert not (tmp_path / "out").exists()
