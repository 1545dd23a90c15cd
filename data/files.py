"""Your own files -> a data folder, as every other script reads it (data/folder.py says what is in one).

    python data/files.py --out out/mine --corpus text.txt --demonstrations dolly.jsonl.gz --comparisons ranked.jsonl

    corpus          plain text, documents separated by a line <|endoftext|>, or, in a file without such a line, by blank
                    lines; or .jsonl with {"text"}
    demonstrations  {"prompt", "completion"}, or {"instruction", "input", "output"} as in Alpaca (Dolly's own names,
                    "context" and "response", too)
    comparisons     {"prompt", "completions", "ranks"}, 1 = best, or {"prompt", "chosen", "rejected"}
    prompts         {"prompt"} or {"instruction", "input"}, with "user" where you know who asked. Without such a file
                    the prompts of demonstrations and comparisons are used.

One JSON object per line (demonstrations and prompts: or one JSON array); .gz is read as it is; several files: a,b,c.
Prompt and completion are joined as they stand, so a space or a newline between them has to be in one of the two.

A record that says "split" keeps it. The others get theirs from a hash of the user, or of the prompt where no user is
known: a prompt is in the same split in every file and in every run, and so is a user. Prompts then go through the
paper's construction steps (data/construct.py).

Everything is read and checked before anything is written.
"""

import hashlib
import json
import math
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import BadInput, command_line, require
from core.output import output_folder, whole_file
from data.bpe import END_OF_TEXT, build_tokenizer, gpt2_tokenizer_spec, tokenizer_spec_from, train_bpe
from data.construct import PREFIX, construct, filter_pii, key_of, tables
from data.folder import (
    SPLITS,
    read_comparisons,
    read_jsonl,
    read_lines,
    split_of,
    text_of,
    write_corpus,
    write_jsonl,
)


@dataclass
class Config:
    out: str = "out/mine"  # the data folder to write
    corpus: str = ""  # text to pretrain on; several files: a,b
    demonstrations: str = ""  # what to imitate; several files: a,b
    comparisons: str = ""  # ranked completions; several files: a,b; may be left out
    prompts: str = ""  # what users ask; several files: a,b; default: the prompts of the other two
    vocab_size: int = 4096  # of a tokenizer trained on the corpus, unless one of the next two is given   GPT-2: 50257
    gpt2: bool = False  # GPT-2's tokenizer by name (downloaded once)
    gpt2_files: str = ""  # GPT-2's tokenizer from a folder with encoder.json and vocab.bpe
    bpe_megabytes: int = 20  # train the tokenizer on the first so many MB of the corpus
    valid: float = 0.1  # share of users or prompts
    test: float = 0.1  # share of users or prompts
    corpus_valid: float = 0.02  # share of documents, but at least one


# ---------------------------------------------------------------------------------------------------- reading


def instruction_prompt(instruction, given):
    """How an instruction and what it is about become one prompt; the completion then starts with a space."""
    return "\n\n".join(part for part in (instruction, given, "Answer:") if part)


def named(paths):
    return [path.strip() for path in paths.split(",") if path.strip()]


def read_records(path, splits=True):
    """Yield ('file:line', record) of JSON Lines, or of a JSON array of objects. splits: check that "split" is one of ours."""
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    array = first.lstrip().startswith("[")
    for where, record in read_array(path) if array else read_jsonl(path):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can spell it, UTF-8 cannot
            raise BadInput(f'{where}: half a character (an escape like "\\ud83d" alone); remove it') from None
        user = record.get("user")
        require(user is None or (isinstance(user, str) and user.strip()), f'{where}: "user" must be text, or left out')
        if splits and "split" in record:
            split_of(record, where)
        yield where, record


def read_array(path):
    """Yield ('file:line', record) of one JSON array: record by record, so that the line is known."""
    text = "".join(line for _, line in read_lines(path))
    decode, between = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*")
    end, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = between.match(text, end).end()
        line += text.count("\n", end, start)
        if text[start : start + 1] == "]":
            return
        try:
            record, end = decode(text, start)
        except json.JSONDecodeError as problem:
            where = f"{path}:{problem.lineno}"
            raise BadInput(f"{where}: not JSON ({problem.msg} at column {problem.colno}); is it whole?") from None
        require(isinstance(record, dict), f"{path}:{line}: expected an object like {{...}} in the array")
        yield f"{path}:{line}", record
        line += text.count("\n", start, end)


def from_instruction(record, where, ask):
    """{"instruction", "input", "output"} -> {"prompt", "completion"}; other records stay as they are."""
    if "instruction" not in record or "prompt" in record:
        return record
    names = {"context": "input", "response": "output", "category": "use_case"}  # Dolly's -> Alpaca's and ours
    record = {names.get(key, key): value for key, value in record.items()}
    given = record.get("input") or ""
    require(isinstance(given, str), f'{where}: "input" must be text, "" where there is none')
    result = {"prompt": ask(text_of(record, "instruction", where).strip(), given.strip())}
    if "output" in record:
        result["completion"] = " " + text_of(record, "output", where).strip()
    return result | {key: value for key, value in record.items() if key not in ("instruction", "input", "output")}


def demonstrations_from(paths, ask=instruction_prompt):
    """All demonstrations of the files, each once. ask(instruction, input) -> prompt."""
    records, seen, repeated, glued = [], set(), 0, 0
    for path in named(paths):
        for where, record in read_records(path):
            record = from_instruction(record, where, ask)
            pair = prompt, completion = text_of(record, "prompt", where), text_of(record, "completion", where)
            repeated += pair in seen
            if pair not in seen:
                seen.add(pair)
                glued += not prompt[-1].isspace() and not completion[0].isspace()
                records.append(record | {"labeler": record.get("labeler", "unknown")})
    print(f"read {len(records) + repeated:,} demonstrations; dropped {repeated:,} that repeat another")
    if glued:
        print(f"note: in {glued:,} of them no space or newline stands between prompt and completion")
    return records


def comparisons_from(paths):
    """All rankings of the files, in the K-way form."""
    records = []
    for path in named(paths):
        read = read_comparisons(path)  # checks every record, and fills in "split": "train" where none is said
        for (where, said), record in zip(read_records(path), read):
            for rank in record["ranks"]:
                require(math.isfinite(rank), f"{where}: rank {rank} is not a number (1 = best)")
            if "split" not in said:
                del record["split"]
            records.append(record | {"labeler": record.get("labeler", "unknown")})
    if records:
        print(f"read {len(records):,} rankings, {sum(map(pairs_of, records)):,} pairs that are not ties")
    return records


def pairs_of(ranking):
    """How many pairs of a ranking are not ties."""
    return sum(a < b for a in ranking["ranks"] for b in ranking["ranks"])


def prompts_from(paths, ask=instruction_prompt):
    records = []
    for path in named(paths):
        for where, record in read_records(path):
            record = from_instruction(record, where, ask)
            text_of(record, "prompt", where)
            records.append(record)
    require(records or not named(paths), f"{paths}: no prompt in it")
    if records:
        print(f"read {len(records):,} prompts")
    return records


# ---------------------------------------------------------------------------------------------------- the corpus


def documents(paths):
    """Yield ('file:line', text) of every document, one after the other: a corpus may be larger than memory."""
    for path in named(paths):
        if Path(path.removesuffix(".gz")).suffix == ".jsonl":
            for where, record in read_jsonl(path):
                require(isinstance(record.get("text"), str), f'{where}: key "text" with text in it is missing')
                yield where, record["text"].strip()
            continue
        marked = any(line.strip() == END_OF_TEXT for _, line in read_lines(path))
        lines, first = [], 1
        for number, line in read_lines(path):
            if line.strip() == (END_OF_TEXT if marked else ""):
                if lines:
                    yield f"{path}:{first}", "".join(lines).strip()
                lines, first = [], number + 1
            else:
                lines.append(line)
        if lines:
            yield f"{path}:{first}", "".join(lines).strip()


def fraction(text):
    """A number in [0, 1] that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def scan_corpus(paths, share):
    """Read all of it once, to check it. Returns the limit: a document is for validation if its fraction is below it."""
    kept, empty, lowest, highest = 0, 0, 1.0, 0.0
    for where, text in documents(paths):
        if not text:
            empty += 1
            continue
        try:
            x = fraction(text)
        except UnicodeEncodeError:
            raise BadInput(f'{where}: half a character (an escape like "\\ud83d" alone); remove it') from None
        kept, lowest, highest = kept + 1, min(lowest, x), max(highest, x)
    limit = max(share, lowest)
    require(kept, f"{paths}: no document in it")
    fix = f"separate documents by a line {END_OF_TEXT}, or give more text"
    require(highest > limit, f"{paths}: {kept} document(s) cannot be split into training and validation; {fix}")
    print(f"read {kept:,} documents; dropped {empty:,} empty ones")
    return limit


def corpus_split(paths, limit, split):
    for _, text in documents(paths):
        if text and (fraction(text) <= limit) == (split == "valid"):
            yield text


def beginning(texts, megabytes):
    """The first so many MB of texts, in whole texts."""
    left = megabytes * 1_000_000
    for text in texts:
        if left <= 0:
            return
        yield text
        left -= len(text.encode())


def make_tokenizer(cfg, limit):
    if cfg.gpt2 or cfg.gpt2_files:
        return gpt2_tokenizer_spec(cfg.gpt2_files)
    texts = beginning(corpus_split(cfg.corpus, limit, "train"), cfg.bpe_megabytes)
    return tokenizer_spec_from(train_bpe(texts, cfg.vocab_size), "files")


# ---------------------------------------------------------------------------------------------------- splits


def assign_splits(sets, valid, test):
    """Give every record a split. -> the same sets of records, without those that would leak from split to split.

    What a record says goes first, then what is known of its user, then of its prompt; a hash decides the rest. A record
    whose prompt is in one split already and whose user is in another can be in neither, and is dropped.
    """
    home, dropped = {}, set()  # home: a prompt's key or a user -> split
    records = [record for some in sets.values() for record in some]
    for record in sorted(records, key=lambda r: ("split" not in r, r.get("user") is None)):
        prompt, user = ("prompt", key_of(record["prompt"])), ("user", record.get("user"))
        names = [prompt] if user[1] is None else [user, prompt]
        split = record.get("split") or home.get(names[0])
        if split is None:
            x = fraction(names[0][1])
            split = "test" if x < test else "valid" if x < test + valid else "train"
        if any(home.get(name, split) != split for name in names):
            dropped.add(id(record))
            continue
        record["split"] = split
        home.update((name, split) for name in names)
    if dropped:
        print(f"dropped {len(dropped):,} records whose prompt or user is in another split already")
    return {name: [r for r in some if id(r) not in dropped] for name, some in sets.items()}


def make_prompts(prompts):
    """The paper's construction steps -> (records of prompts.jsonl, table of the steps)."""
    for record in prompts:
        if record.get("user") is None:  # each is a user of its own, so the cap per user leaves it alone
            record["user"] = "unknown-" + hashlib.sha256(key_of(record["prompt"]).encode()).hexdigest()[:12]
        record.setdefault("use_case", "unknown")
    kept, steps = construct(prompts)
    if steps[0][1] < len(prompts) / 2:
        print(f"note: of prompts that share their first {PREFIX} characters one is kept, here fewer than half of all;")
        print("      dialogues repeat their beginning, but a header in front of every prompt should be taken out")
    return kept, [("raw prompts", len(prompts), 0), *steps]


# ---------------------------------------------------------------------------------------------------- the data folder


def build(cfg, demonstrations, comparisons, prompts):
    """Records -> a data folder. Checks everything, then writes. Without prompts, those of the other two are used."""
    sets = assign_splits(
        {"prompts": prompts, "demonstrations": demonstrations, "comparisons": comparisons}, cfg.valid, cfg.test
    )
    demonstrations, comparisons = map(filter_pii, (sets["demonstrations"], sets["comparisons"]))
    keys = ("prompt", "user", "split", "use_case")
    borrowed = {r["prompt"]: {key: r[key] for key in keys if key in r} for r in demonstrations + comparisons}
    prompts, steps = make_prompts(sets["prompts"] if prompts else list(borrowed.values()))
    needed = [("demonstrations", demonstrations, SPLITS[:2]), ("prompts", prompts, SPLITS)]
    needed += [("comparisons", comparisons, SPLITS[:2])] if comparisons else []
    for name, records, splits in needed:
        found = Counter(record["split"] for record in records)
        for split in splits:
            fix = f'give more of them, or say "split": "{split}" in some, or change --valid and --test'
            require(found[split], f'no {name} for "{split}" among {len(records)}; {fix}')
    if not named(cfg.corpus):
        print("note: no --corpus, so the training demonstrations stand in for it; PPO-ptx is meant to have real text")
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "demonstrations.jsonl"
            shown = (r["prompt"] + r["completion"] for r in demonstrations if r["split"] == "train")
            write_jsonl(own, ({"text": text} for text in shown))
            return write_folder(replace(cfg, corpus=str(own)), demonstrations, comparisons, prompts, steps)
    write_folder(cfg, demonstrations, comparisons, prompts, steps)


def write_folder(cfg, demonstrations, comparisons, prompts, steps):
    """Everything but the corpus has been checked: check that, make the tokenizer, write all of it."""
    limit = scan_corpus(cfg.corpus, cfg.corpus_valid)
    tokenizer = make_tokenizer(cfg, limit)
    encoding = build_tokenizer(tokenizer)

    # Everything is there: write it. The tokenizer comes last: without it a folder is unfinished, and says so.
    out = output_folder(cfg.out)
    (out / "tokenizer.json").unlink(missing_ok=True)
    tokens = {}
    for split in ("train", "valid"):
        tokens[split] = write_corpus(out / f"corpus.{split}.bin", corpus_split(cfg.corpus, limit, split), encoding)
    write_jsonl(out / "prompts.jsonl", prompts)
    write_jsonl(out / "demonstrations.jsonl", demonstrations)
    if comparisons:
        write_jsonl(out / "comparisons.jsonl", comparisons)
    else:
        (out / "comparisons.jsonl").unlink(missing_ok=True)  # of an earlier run: reward.py would train on it
    text = summary(encoding, steps, demonstrations, comparisons, prompts)
    with whole_file(out / "construction.txt") as file:
        file.write(text + "\n")
    with whole_file(out / "tokenizer.json") as file:
        json.dump(tokenizer, file)

    example = demonstrations[0]
    print(text)
    print(
        f"\ncorpus: {tokens['train']:,} training and {tokens['valid']:,} validation tokens, {encoding.n_vocab:,} kinds"
    )
    print(
        "a demonstration, completion after |:\n  "
        + f"{example['prompt']}|{example['completion']}".replace("\n", "\n  ")
    )
    if not comparisons:
        print(f"note: no comparisons, so reward.py will need {out}/comparisons.jsonl, ranked by somebody")
    print(f"wrote {out}/; next: python pretrain.py --data {out}")


def summary(encoding, steps, demonstrations, comparisons, prompts):
    """The tables of data/construct.py for these records, as text."""
    counts, lengths = {}, {}
    for name, records in (("SFT", demonstrations), ("RM", comparisons), ("RL", prompts)):
        for split in SPLITS:
            some = [record for record in records if record["split"] == split]
            customer = sum(r.get("source", "customer" if name == "RL" else "labeler") == "customer" for r in some)
            if some:
                counts[name, split] = {"labeler": len(some) - customer, "customer": customer}
            if len(some) > 1:  # one is too few for quartiles
                lengths[f"{name} {split}"] = [len(encoding.encode_ordinary(record["prompt"])) for record in some]
    return tables(steps, counts, prompts, lengths)


def check_options(cfg, needs_corpus=True):
    """What can be wrong with the options that all scripts like this one share."""
    require(named(cfg.corpus) or not needs_corpus, "--corpus: give text to pretrain on, e.g. --corpus text.txt")
    require(not (cfg.gpt2 and cfg.gpt2_files), "--gpt2 and --gpt2_files: choose one")
    require(cfg.vocab_size > 257, f"--vocab_size {cfg.vocab_size}: needs more than the 256 bytes and end-of-text")
    require(cfg.bpe_megabytes >= 1, f"--bpe_megabytes {cfg.bpe_megabytes}: must be positive")
    shares = f"--valid {cfg.valid} --test {cfg.test}"
    require(min(cfg.valid, cfg.test) > 0 and cfg.valid + cfg.test < 1, f"{shares}: positive, less than 1 together")
    require(0 <= cfg.corpus_valid < 1, f"--corpus_valid {cfg.corpus_valid}: a share from 0 up to, not including, 1")
    village = Path(cfg.out) / "village.json"
    require(
        not village.exists(), f"{cfg.out}: holds the village, whose files would mix with yours; choose another --out"
    )


def main(cfg):
    check_options(cfg)
    require(named(cfg.demonstrations), "--demonstrations: give what to imitate, e.g. --demonstrations dolly.jsonl")
    build(cfg, demonstrations_from(cfg.demonstrations), comparisons_from(cfg.comparisons), prompts_from(cfg.prompts))


if __name__ == "__main__":
    command_line(Config, main, __doc__)
