"""Your own files -> a data folder, as every other script reads it (data/folder.py says what is in one).

    python data/files.py --out out/mine --corpus text.txt --demonstrations dolly.jsonl.gz --comparisons ranked.jsonl

    corpus          plain text, documents separated by a line <|endoftext|>, or, in a file without such a line, by blank
                    lines; or .jsonl with {"text"}
    demonstrations  {"prompt", "completion"}, or {"instruction", "input", "output"} as in Alpaca (Dolly's own names,
                    "context" and "response", too)
    comparisons     {"prompt", "completions", "ranks"}, 1 = best, or {"prompt", "chosen", "rejected"}
    prompts         {"prompt"} or {"instruction", "input"}, with "user" where you know who asked. Without such a file
                    the prompts of demonstrations and comparisons are used.

One JSON object per line, or one JSON array of them (not for the corpus); .gz is read as it is; several files: a,b,c.
Prompt and completion are joined as they stand, so a space or a newline between them has to be in one of the two.

A record that says "split" keeps it. The others get theirs from a hash of the user, or of the prompt where no user is
known: a prompt is in the same split in every file and in every run, and so is a user. Prompts then go through the
paper's construction steps (data/construct.py).

Everything is read and checked before anything is written.
"""

import hashlib
import json
import re
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import BadInput, Fraction, PositiveInt, check, command_line, require
from core.output import output_folder, whole_file
from data.bpe import END_OF_TEXT, build_tokenizer, gpt2_tokenizer_spec, tokenizer_spec_from, train_bpe
from data.construct import PREFIX, construct, filter_pii, hash_fraction, hashed_split, key_of, tables
from data.folder import (
    SPLITS,
    as_ranking,
    check_record,
    check_texts,
    json_problem,
    read_jsonl,
    read_lines,
    split_of,
    text_of,
    write_corpus,
    write_jsonl,
)


@dataclass
class FolderOptions:
    """Settings of every script that makes a data folder of records: tokenizer and splits."""

    vocab_size: PositiveInt = 4096  # of a tokenizer trained on the corpus, unless one of the next two is given
    gpt2: bool = False  # GPT-2's tokenizer, 50257 tokens, by name (downloaded once)
    gpt2_files: str = ""  # GPT-2's tokenizer from a folder: encoder.json and vocab.bpe, or vocab.json and merges.txt
    bpe_megabytes: PositiveInt = 20  # train the tokenizer on the first so many MB of the corpus
    valid: Fraction = 0.1  # share of users, or of prompts where no user is known, for validation
    test: Fraction = 0.1  # the same for the test split
    corpus_valid: Fraction = 0.02  # share of the corpus' documents for validation, but at least one


@dataclass
class Config(FolderOptions):
    out: str = "out/mine"  # the data folder to write
    corpus: str = ""  # text to pretrain on; several files: a,b
    demonstrations: str = ""  # what to imitate; several files: a,b
    comparisons: str = ""  # ranked completions; several files: a,b; may be left out
    prompts: str = ""  # what users ask; several files: a,b; default: the prompts of the other two


def check_options(cfg, needs_corpus=True):
    """Refuse what can be wrong with the options that all scripts like this one share."""
    check(cfg)
    require(paths_in(cfg.corpus) or not needs_corpus, "--corpus: give text to pretrain on, e.g. --corpus text.txt")
    require(not (cfg.gpt2 and cfg.gpt2_files), "--gpt2 and --gpt2_files: choose one")
    require(cfg.vocab_size > 257, f"--vocab_size {cfg.vocab_size}: needs more than the 256 bytes and end-of-text")
    shares = f"--valid {cfg.valid} --test {cfg.test}"
    require(min(cfg.valid, cfg.test) > 0 and cfg.valid + cfg.test < 1, f"{shares}: positive, less than 1 together")
    is_village = (Path(cfg.out) / "village.json").exists()
    require(not is_village, f"{cfg.out}: holds the village, whose files would mix with yours; choose another --out")


# ---------------------------------------------------------------------------------------------------- reading


def paths_in(option):
    """The paths in an option that may name several files, as "a,b"."""
    return [path.strip() for path in option.split(",") if path.strip()]


def read_records(path, limit=0):
    """Yield ('file:line', record) of JSON Lines, or of a JSON array of objects. limit: at most so many, 0 = all."""
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    is_array = first.lstrip().startswith("[")
    records = read_array(path) if is_array else read_jsonl(path)
    return islice(records, limit) if limit > 0 else records


def read_array(path):
    """Yield ('file:line', record) of one JSON array: record by record, so that the line is known."""
    text = "".join(line for _, line in read_lines(path))
    line_ends = [match.start() for match in re.finditer("\n", text)]
    blanks = re.compile(r"\s*")

    def place(position):
        return f"{path}:{bisect_left(line_ends, position) + 1}"

    def next_character(position):
        """-> where the next character that is not blank stands, and which one it is ("" at the end)."""
        position = blanks.match(text, position).end()
        return position, text[position : position + 1]

    position, character = next_character(text.index("[") + 1)
    while character != "]":
        try:
            record, end = json.JSONDecoder().raw_decode(text, position)
        except (ValueError, RecursionError) as problem:
            line = getattr(problem, "lineno", bisect_left(line_ends, position) + 1)
            raise BadInput(f"{path}:{line}: not JSON ({json_problem(problem)}); is it whole?") from None
        check_record(record, place(position))
        yield place(position), record
        position, character = next_character(end)
        if character == ",":
            position, character = next_character(position + 1)
            require(character != "]", f"{place(position)}: not JSON (a comma before the closing bracket); remove it")
        else:
            expected = "a comma or the closing bracket is missing before this"
            require(character == "]", f"{place(position)}: not JSON ({expected}); is it whole?")
    position, character = next_character(position + 1)
    require(character == "", f"{place(position)}: not JSON (something follows the closing bracket); remove it")


def instruction_prompt(instruction, given):
    """How an instruction and what it is about become one prompt; the completion then starts with a space."""
    return "\n\n".join(part for part in (instruction, given, "Answer:") if part)


def from_instruction(record, where, prompt_of):
    """{"instruction", "input", "output"} -> {"prompt", "completion"}; other records stay as they are."""
    if "instruction" not in record or "prompt" in record:
        return record
    names = {"context": "input", "response": "output", "category": "use_case"}  # Dolly's -> Alpaca's and ours
    record = {names.get(key, key): value for key, value in record.items()}
    given = record.get("input") or ""
    require(isinstance(given, str), f'{where}: "input" must be text, "" where there is none')
    result = {"prompt": prompt_of(text_of(record, "instruction", where).strip(), given.strip())}
    if "output" in record:
        result["completion"] = " " + text_of(record, "output", where).strip()
    return result | {key: value for key, value in record.items() if key not in ("instruction", "input", "output")}


def check_keys(record, where):
    """Refuse a split that is none of ours, and a user, labeler, … that is not text."""
    check_texts(record, where)
    if "split" in record:
        split_of(record, where)


def labeler_of(record):
    """Who wrote or ranked it, as far as the record says."""
    labeler = record.get("labeler")
    return "unknown" if labeler is None else labeler


def demonstrations_from(paths, prompt_of=instruction_prompt):
    """All demonstrations of the files, each once. prompt_of(instruction, input) -> prompt."""
    records, seen, repeated, glued = [], set(), 0, 0
    for path in paths_in(paths):
        for where, record in read_records(path):
            record = from_instruction(record, where, prompt_of)
            check_keys(record, where)
            prompt, completion = text_of(record, "prompt", where), text_of(record, "completion", where)
            if (prompt, completion) in seen:
                repeated += 1
                continue
            seen.add((prompt, completion))
            glued += not prompt[-1].isspace() and not completion[0].isspace()
            records.append(record | {"labeler": labeler_of(record)})
    print(f"read {len(records) + repeated:,} demonstrations; dropped {repeated:,} that repeat another")
    if glued:
        print(f"note: in {glued:,} of them no space or newline stands between prompt and completion")
    return records


def comparisons_from(paths):
    """All rankings of the files, in the K-way form."""
    records = []
    for path in paths_in(paths):
        before = len(records)
        for where, record in read_records(path):
            check_keys(record, where)
            records.append(as_ranking(record, where) | {"labeler": labeler_of(record)})
        require(len(records) > before, f"{path}: no comparisons in it")
    if records:
        print(f"read {len(records):,} rankings, {sum(map(count_pairs, records)):,} pairs that are not ties")
    return records


def count_pairs(ranking):
    """How many pairs of a ranking are not ties."""
    return sum(a < b for a in ranking["ranks"] for b in ranking["ranks"])


def prompts_from(paths, prompt_of=instruction_prompt):
    """All prompts of the files, as records. prompt_of(instruction, input) -> prompt."""
    records = []
    for path in paths_in(paths):
        for where, record in read_records(path):
            record = from_instruction(record, where, prompt_of)
            check_keys(record, where)
            text_of(record, "prompt", where)
            records.append(record)
    require(records or not paths_in(paths), f"{paths}: no prompt in it")
    if records:
        print(f"read {len(records):,} prompts")
    return records


# ---------------------------------------------------------------------------------------------------- the corpus


def documents(paths):
    """Yield ('file:line', text) of every document, one after the other: a corpus may be larger than memory."""
    for path in paths_in(paths):
        is_jsonl = Path(path.removesuffix(".gz")).suffix == ".jsonl"
        yield from json_documents(path) if is_jsonl else text_documents(path)


def json_documents(path):
    """The documents of JSON Lines with {"text"}."""
    for where, record in read_jsonl(path):
        require(isinstance(record.get("text"), str), f'{where}: key "text" with text in it is missing')
        yield where, record["text"].strip()


def text_documents(path):
    """The documents of plain text: between lines <|endoftext|> if there is one, else between blank lines."""
    marked = any(line.strip() == END_OF_TEXT for _, line in read_lines(path))
    separator = END_OF_TEXT if marked else ""
    lines, first = [], 1
    for number, line in read_lines(path):
        if line.strip() != separator:
            lines.append(line)
            continue
        if lines:
            yield f"{path}:{first}", "".join(lines).strip()
        lines, first = [], number + 1
    if lines:
        yield f"{path}:{first}", "".join(lines).strip()


def scan_corpus(paths, share):
    """Read all of it once, to check it. Returns the limit: a document is for validation up to this hash_fraction."""
    kept, empty, lowest, highest = 0, 0, 1.0, 0.0
    for _, text in documents(paths):
        if not text:
            empty += 1
            continue
        x = hash_fraction(text)
        kept, lowest, highest = kept + 1, min(lowest, x), max(highest, x)
    limit = max(share, lowest)
    require(kept, f"{paths}: no document in it")
    fix = f"separate documents by a line {END_OF_TEXT}, give more text, or a smaller --corpus_valid"
    require(highest > limit, f"{paths}: {kept} document(s) cannot be split into training and validation; {fix}")
    print(f"read {kept:,} documents; dropped {empty:,} empty ones")
    return limit


def corpus_split(paths, limit, split):
    """Yield the documents (str) of "train" or "valid". limit: see `scan_corpus`."""
    for _, text in documents(paths):
        if text:
            held_out = hash_fraction(text) <= limit
            if held_out == (split == "valid"):
                yield text


def beginning(texts, megabytes):
    """The first so many MB of texts, in whole texts."""
    left = megabytes * 1_000_000
    for text in texts:
        if left <= 0:
            return
        yield text
        left -= len(text.encode())


def make_tokenizer_spec(cfg, limit):
    """GPT-2's tokenizer where the options ask for it, else one trained on the beginning of the training documents."""
    if cfg.gpt2 or cfg.gpt2_files:
        return gpt2_tokenizer_spec(cfg.gpt2_files)
    texts = beginning(corpus_split(cfg.corpus, limit, "train"), cfg.bpe_megabytes)
    return tokenizer_spec_from(train_bpe(texts, cfg.vocab_size), "files")


# ---------------------------------------------------------------------------------------------------- splits


def assign_splits(sets, valid, test):
    """Give every record a split. -> the same sets of records, without those that would leak from split to split.

    sets: {name: records}. What a record says goes first, then what is known of its user, then of its prompt; a hash
    decides the rest. A record whose prompt is in one split already and whose user is in another can be in neither, and
    is dropped.
    """
    known, dropped = {}, set()  # known: a prompt's key or a user -> split; dropped: id() of records
    all_records = [record for records in sets.values() for record in records]
    for record in sorted(all_records, key=lambda r: ("split" not in r, r.get("user") is None)):
        names = [("prompt", key_of(record["prompt"]))]
        if record.get("user") is not None:
            names.insert(0, ("user", record["user"]))
        _, name = names[0]
        split = record.get("split") or known.get(names[0]) or hashed_split(name, valid, test)
        if any(known.get(name, split) != split for name in names):
            dropped.add(id(record))
            continue
        record["split"] = split
        known.update((name, split) for name in names)
    if dropped:
        print(f"dropped {len(dropped):,} records whose prompt or user is in another split already")
    return {name: [record for record in records if id(record) not in dropped] for name, records in sets.items()}


def make_prompts(prompts):
    """The paper's construction steps -> (records of prompts.jsonl, table of the steps)."""
    for record in prompts:
        if record.get("user") is None:  # each is a user of its own, so the cap per user leaves it alone
            record["user"] = "unknown-" + hashlib.sha256(key_of(record["prompt"]).encode()).hexdigest()[:12]
        if record.get("use_case") is None:
            record["use_case"] = "unknown"
    kept, steps = construct(prompts)
    _, left_of_deduplication, _ = steps[0]
    if left_of_deduplication < len(prompts) / 2:
        print(f"note: of prompts that share their first {PREFIX} characters one is kept, here fewer than half of all;")
        print("      dialogues repeat their beginning, but a header in front of every prompt should be taken out")
    return kept, [("raw prompts", len(prompts), 0), *steps]


# ---------------------------------------------------------------------------------------------------- the data folder


def build(cfg, demonstrations, comparisons, prompts):
    """Records -> a data folder. Checks everything, then writes. Without prompts, those of the other two are used."""
    sets = {"prompts": prompts, "demonstrations": demonstrations, "comparisons": comparisons}
    sets = assign_splits(sets, cfg.valid, cfg.test)
    demonstrations, comparisons = filter_pii(sets["demonstrations"]), filter_pii(sets["comparisons"])
    asked = sets["prompts"] if prompts else prompts_of(demonstrations + comparisons)
    prompts, steps = make_prompts(asked)
    check_split_sizes("demonstrations", demonstrations, ("train", "valid"))
    check_split_sizes("prompts", prompts, SPLITS)
    if comparisons:
        check_split_sizes("comparisons", comparisons, ("train", "valid"))
    if paths_in(cfg.corpus):
        write_folder(cfg, demonstrations, comparisons, prompts, steps)
        return
    print("note: no --corpus, so the training demonstrations stand in for it; PPO-ptx is meant to have real text")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "demonstrations.jsonl"
        texts = [r["prompt"] + r["completion"] for r in demonstrations if r["split"] == "train"]
        write_jsonl(own, ({"text": text} for text in texts))
        write_folder(replace(cfg, corpus=str(own)), demonstrations, comparisons, prompts, steps)


def prompts_of(records):
    """The prompts of demonstrations and rankings, each once, with what is known about them."""
    keys = ("prompt", "user", "split", "use_case")
    by_prompt = {record["prompt"]: {key: record[key] for key in keys if key in record} for record in records}
    return list(by_prompt.values())


def check_split_sizes(name, records, splits):
    """Refuse a set of records in which one of the splits is empty."""
    found = Counter(record["split"] for record in records)
    for split in splits:
        fix = f'give more of them, or say "split": "{split}" in some, or change --valid and --test'
        require(found[split] > 0, f'no {name} for "{split}" among {len(records)}; {fix}')


def write_folder(cfg, demonstrations, comparisons, prompts, steps):
    """Everything but the corpus has been checked: check that, make the tokenizer, write all of it."""
    limit = scan_corpus(cfg.corpus, cfg.corpus_valid)
    tokenizer_spec = make_tokenizer_spec(cfg, limit)
    tokenizer = build_tokenizer(tokenizer_spec)

    # Everything is there: write it. The tokenizer comes last: without it a folder is unfinished, and says so.
    out = output_folder(cfg.out)
    (out / "tokenizer.json").unlink(missing_ok=True)
    tokens = {}
    for split in ("train", "valid"):
        tokens[split] = write_corpus(out / f"corpus.{split}.bin", corpus_split(cfg.corpus, limit, split), tokenizer)
    write_jsonl(out / "prompts.jsonl", prompts)
    write_jsonl(out / "demonstrations.jsonl", demonstrations)
    if comparisons:
        write_jsonl(out / "comparisons.jsonl", comparisons)
    else:
        (out / "comparisons.jsonl").unlink(missing_ok=True)  # of an earlier run: reward.py would train on it
    text = summary(tokenizer, steps, demonstrations, comparisons, prompts)
    with whole_file(out / "construction.txt") as file:
        file.write(text + "\n")
    with whole_file(out / "tokenizer.json") as file:
        json.dump(tokenizer_spec, file)

    print(text)
    print(f"\ncorpus: {tokens['train']:,} training and {tokens['valid']:,} validation tokens,", end=" ")
    print(f"{tokenizer.n_vocab:,} kinds")
    example = f"{demonstrations[0]['prompt']}|{demonstrations[0]['completion']}"
    print("a demonstration, completion after |:\n  " + example.replace("\n", "\n  "))
    if not comparisons:
        print(f"note: no comparisons, so reward.py will need {out}/comparisons.jsonl, ranked by somebody")
    print(f"wrote {out}/; next: python pretrain.py --data {out}")


def summary(tokenizer, steps, demonstrations, comparisons, prompts):
    """The tables of data/construct.py for these records, as text."""
    counts, lengths = {}, {}
    for name, records, usual_source in (
        ("SFT", demonstrations, "labeler"),
        ("RM", comparisons, "labeler"),
        ("RL", prompts, "customer"),
    ):
        for split in SPLITS:
            of_split = [record for record in records if record["split"] == split]
            customer = sum(record.get("source", usual_source) == "customer" for record in of_split)
            if of_split:
                counts[name, split] = {"labeler": len(of_split) - customer, "customer": customer}
            if len(of_split) > 1:  # one is too few for quartiles
                lengths[f"{name} {split}"] = [len(tokenizer.encode_ordinary(r["prompt"])) for r in of_split]
    return tables(steps, counts, prompts, lengths)


def main(cfg):
    check_options(cfg)
    require(paths_in(cfg.demonstrations), "--demonstrations: give what to imitate, e.g. --demonstrations dolly.jsonl")
    demonstrations = demonstrations_from(cfg.demonstrations)
    build(cfg, demonstrations, comparisons_from(cfg.comparisons), prompts_from(cfg.prompts))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
