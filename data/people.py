"""What people write on the page (page.py): rankings, demonstrations, judgements. It is on disk before they are told.

    python data/people.py --people out/run/people,out/monday/people --out out/class                     # several as one
    python data/people.py --people out/run/people --data out/run/data --out out/class-data     # a data folder with them

A folder of people holds, one record per line, appended as it comes:

    comparisons.jsonl       rankings: records of data/folder.py with ratings, flags, notes, labels of the instruction
    demonstrations.jsonl    {"prompt", "completion", "labeler", "group", "split"}
    judgements.jsonl        {"prompt", "models": [2], "completions": [2], "preferred": 1, 2 or 0 = tie, "labeler",
                             "group"}
    skipped.jsonl           {"task", "labeler"}: what somebody did not want to rank
    undone.jsonl            {"id"} of what was taken back; its record is then removed from the file above

reward.py reads such a comparisons.jsonl as it is (--comparisons), and evaluate.py reports the judgements. With --data,
the joined folder is also a data folder: that one's files, its demonstrations and people's, and people's rankings.

Every record has an "id" that the page made, so that a submission which is sent twice is kept once; and where it is
about a task, the "task", which a person does once. Several threads and several servers may write to the same folder:
each locks it, and reads first what the others have appended. A line that was cut short by a crash was acknowledged to
nobody: it is removed, with a word.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import BadInput, command_line, require
from core.output import output_folder
from core.ranking_metrics import agreement_in
from data.folder import as_ranking, read_jsonl, text_of, write_jsonl

try:
    import fcntl
except ImportError:  # Windows: one server per folder
    fcntl = None

KINDS = ("comparisons", "demonstrations", "judgements", "skipped")
GROUPS = ("training", "held_out")


# The labelers' page, from the paper's Table 3 and its labeling instructions (§3.4, Fig. 12).
LABELS = (
    "contains personal information",
    "intent unclear",
    "has an explicit constraint",
    "closed domain",
    "asks for sexual content",
    "asks for violent content",
    "encourages violence",
    "denigrates a protected class",
    "asks for advice",
    "asks for opinion",
    "asks for moral judgement",
)
FLAGS = (
    "fails the task",
    "inappropriate for customer assistant",
    "hallucination",  # asked for closed-domain prompts
    "satisfies the constraint",  # asked where there is one
    "sexual content",
    "violent content",
    "encourages violence",
    "denigrates",
    "harmful advice",
    "expresses opinion",
    "expresses moral judgement",
)
USE_CASES = (
    "generation",
    "open qa",
    "brainstorming",
    "chat",
    "rewrite",
    "summarization",
    "classification",
    "other",
    "closed qa",
    "extract",
)


@dataclass
class Config:
    people: str = "out/run/people"  # folders that page.py wrote; several: a,b
    out: str = "out/class"  # the folder to write
    data: str = ""  # a data folder to put people's demonstrations and rankings into: OUT becomes one like it


# --------------------------------------------------------------------------------------------------- a folder of people


class PeopleFolder:
    """The records of one folder: {kind: {id: record}}, and adding to them."""

    def __init__(self, folder):
        self.folder, self.mutex = Path(folder), threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records = {kind: {} for kind in KINDS}
        self.undone = set()
        self.read_until = Counter()  # bytes of each file that have been read
        with self.alone():
            pass

    def path(self, kind):
        return self.folder / f"{kind}.jsonl"

    @contextmanager
    def alone(self):
        """No other thread and no other server writes meanwhile, and what they have written is read."""
        with self.mutex, open(self.folder / ".lock", "a") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process is killed
            self.catch_up()
            yield

    def catch_up(self):
        """Read what has been appended since, and remove what has been taken back. Only while alone."""
        taken_back = {record["id"] for record in self.new_records("undone")}
        if taken_back:  # whoever took it back may have rewritten the file, so read it again
            self.undone |= taken_back
            self.read_until = Counter({"undone": self.read_until["undone"]})
            self.records = {kind: {} for kind in KINDS}
        for kind in KINDS:
            for record in self.new_records(kind):
                self.records[kind][record.get("id") or f"{kind} {len(self.records[kind])}"] = record
            if self.undone & self.records[kind].keys():
                kept = {id: record for id, record in self.records[kind].items() if id not in self.undone}
                write_jsonl(self.path(kind), kept.values())
                self.records[kind], self.read_until[kind] = kept, self.path(kind).stat().st_size

    def new_records(self, kind):
        """The records of a file that have not been read yet. Repairs its end if a process died while writing it."""
        path = self.path(kind)
        size = path.stat().st_size if path.exists() else 0
        if size == self.read_until[kind]:
            return []
        require(size > self.read_until[kind], f"{path}: has become shorter; stop page.py before you edit its files")
        with open(path, "rb") as file:
            file.seek(self.read_until[kind])
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        if len(complete) < len(new):
            print(
                f"{path}: the last line was cut short when its server died, and is removed: "
                f"{new[len(complete) :]!r:.80}"
            )
            os.truncate(path, self.read_until[kind] + len(complete))
        try:
            records = [json.loads(line) for line in complete.splitlines() if line.strip()]
            require(all(isinstance(record, dict) for record in records), f"{path}: a line that is no object; remove it")
        except ValueError:
            raise BadInput(f"{path}: a line that is not JSON; remove it") from None
        self.read_until[kind] += len(complete)
        return records

    def append(self, kind, record):
        """Add one line; it is on the disk when this returns, or nothing of it is. Only while alone."""
        path, line = self.path(kind), (json.dumps(record, ensure_ascii=False) + "\n").encode()
        new = not path.exists()
        with open(path, "ab", buffering=0) as file:
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, self.read_until[kind])
                raise
        if new:
            sync_folder(self.folder)
        self.catch_up()

    def add(self, kind, record):
        """Keep a record. -> it, or the one that has its id already: the same submission, sent again

        Refuses (BadInput) a second record of the same person on the same task, and a labeler of the other group.
        """
        with self.alone():
            for others in self.records.values():
                if record["id"] in others:
                    return others[record["id"]]
            require(record["id"] not in self.undone, "this has been taken back")
            group = self.group_of(record["labeler"])
            require(group in (None, record["group"]), other_group(record["labeler"], group))
            done = self.done_by(record["labeler"])
            require(
                "task" not in record or record["task"] not in done, f"{record['labeler']} has done this one already"
            )
            self.append(kind, record)
            return record

    def undo(self, id, labeler):
        """Take a record back. -> (kind, record). Refuses what is not there or not this labeler's (BadInput)."""
        with self.alone():
            for kind in KINDS:
                record = self.records[kind].get(id)
                if record and record["labeler"] == labeler:
                    self.append("undone", {"id": id})
                    return kind, record
        raise BadInput("there is nothing of yours to take back")

    # The rest reads; call it while alone.

    def of(self, kind, labeler=None):
        """Records of a kind, of one labeler or of all."""
        return [r for r in self.records[kind].values() if labeler is None or r.get("labeler") == labeler]

    def group_of(self, labeler):
        """The group that a labeler's records say; None for somebody new."""
        return next((r.get("group") for kind in KINDS for r in self.of(kind, labeler)), None)

    def done_by(self, labeler):
        """Tasks that a labeler has done or skipped."""
        return {record.get("task") for kind in KINDS for record in self.of(kind, labeler)}


def other_group(labeler, group):
    return f"{labeler} has worked as a {group} labeler; held-out labelers are other people, take another name"


def sync_folder(folder):
    """The entry of a new file has to be on the disk, too."""
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


# ---------------------------------------------------------------------------------------------------- who ranks what

VALID_EVERY = 5  # of a training labeler's tasks one in so many is a validation prompt


def task_id(*parts):
    """A name for a task: what is shown."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:20]


def next_task(tasks, people, labeler, group, taken=()):
    """Which of the tasks {id: {"split", …}} a person ranks next. -> id; None when nothing is left

    Held-out labelers rank validation prompts alone, so that nothing is ever trained on what they say. Of a training
    labeler's tasks every fifth is a validation prompt, and people are given the same ones, two of a group each, so that
    their agreement is known. Training prompts go to one person each while there are enough (§5.3). taken: tasks on the
    pages of others.
    """
    done = people.done_by(labeler)
    ranked = Counter((record.get("task"), record.get("group")) for record in people.of("comparisons"))
    open_tasks = {id: task for id, task in tasks.items() if id not in done}

    def own_order(id):
        return hashlib.sha256(f"{labeler} {id}".encode()).digest()

    def validation():
        def order(id):
            by_own_group = ranked[id, group]
            wanted = 0 if by_own_group == 1 else 1 if by_own_group == 0 else 2
            by_others = sum(ranked[id, other] for other in GROUPS if other != group)
            return wanted, by_others == 0, id

        return sorted((id for id, task in open_tasks.items() if task["split"] == "valid"), key=order)

    def training():
        def order(id):
            return id in taken, sum(ranked[id, other] for other in GROUPS), own_order(id)

        return sorted((id for id, task in open_tasks.items() if task["split"] == "train"), key=order)

    if group == "held_out":
        choices = validation()
    else:
        count = len(people.of("comparisons", labeler)) + len(people.of("skipped", labeler))
        first, second = (validation, training) if count % VALID_EVERY == VALID_EVERY - 1 else (training, validation)
        choices = first() or second()
    return choices[0] if choices else None


def dense(ranks):
    """Ranks without gaps: [2, 5, 5] -> [1, 2, 2]."""
    different = sorted(set(ranks))
    return [1 + different.index(rank) for rank in ranks]


# ---------------------------------------------------------------------------------------------------- several as one


def join(folders):
    """The records of several folders. -> {kind: [record]}. What is in two of them (a copy) comes once."""
    joined, group_of = {kind: {} for kind in KINDS}, {}
    undone = {r.get("id") for folder in folders for r in lines_of(folder, "undone")}
    for folder in folders:
        require(Path(folder).is_dir(), f"{folder}: no such folder; pass those that page.py wrote, as a,b")
        for kind in KINDS:
            for record in lines_of(folder, kind):
                labeler, group = record.get("labeler"), record.get("group", "training")
                before = group_of.setdefault(labeler, group)
                require(before == group, f"{folder}/{kind}.jsonl: {other_group(labeler, before)}")
                if record.get("id") not in undone:
                    joined[kind].setdefault(record.get("id") or json.dumps(record, sort_keys=True), record)
    return {kind: list(records.values()) for kind, records in joined.items()}


def lines_of(folder, kind):
    """The records of a file, if it is there, without a last line that was cut short."""
    path = Path(folder) / f"{kind}.jsonl"
    if not path.exists():
        return []
    if not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        PeopleFolder(folder)  # repairs it
    return [as_ranking(record, where) if kind == "comparisons" else record for where, record in read_jsonl(path)]


def read_judgements(path):
    """The judgements in a file. Refuses a wrong one with file, line and key (BadInput)."""
    records = []
    for where, record in read_jsonl(path):
        for key in ("models", "completions"):
            value = record.get(key)
            fits = isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
            require(fits, f'{where}: "{key}" must list 2 texts')
        require(record.get("preferred") in (0, 1, 2), f'{where}: "preferred" must be 1, 2, or 0 for a tie')
        require(record.get("group") in GROUPS, f'{where}: "group" must be one of {", ".join(GROUPS)}')
        text_of(record, "prompt", where)
        records.append(record)
    return records


def make_data_folder(source, out, records):
    """A data folder like `source`, with people's demonstrations beside its own, and with people's rankings."""
    require(
        (Path(source) / "tokenizer.json").is_file(), f"{source}: no data folder; --data takes one, e.g. out/run/data"
    )
    require(Path(source).resolve() != Path(out).resolve(), f"--out {out}: is the folder it is made from; take another")
    for path in sorted(Path(source).iterdir()):
        if path.is_file() and path.name not in ("demonstrations.jsonl", "comparisons.jsonl"):
            shutil.copyfile(path, Path(out) / path.name)
    own = [record for _, record in read_jsonl(Path(source) / "demonstrations.jsonl")]
    write_jsonl(Path(out) / "demonstrations.jsonl", own + records["demonstrations"])
    print(f"{len(own):,} demonstrations of {source} and {len(records['demonstrations']):,} by people")


def print_people(records):
    """Who wrote how much, and how far they agree."""
    counts = defaultdict(Counter)
    for kind in KINDS:
        for record in records[kind]:
            counts[record.get("labeler"), record.get("group", "training")][kind] += 1
    for (labeler, group), count in sorted(counts.items(), key=str):
        print(f"  {labeler} ({group}): " + ", ".join(f"{n} {kind}" for kind, n in count.items()))
    for group in GROUPS:
        share = agreement_in([{"split": "train"} | r for r in records["comparisons"]], group)
        if share is not None:
            print(f"two {group} labelers agree on {100 * share:.1f} % of the pairs that both put in an order")


def main(cfg):
    folders = [name.strip() for name in cfg.people.split(",") if name.strip()]
    records = join(folders)
    require(any(records.values()), f"--people {cfg.people}: nobody has written anything there")
    same = Path(cfg.out).resolve() in [Path(folder).resolve() for folder in folders]
    require(not same, f"--out {cfg.out}: is one of --people; take another folder")
    out = output_folder(cfg.out)
    if cfg.data:
        make_data_folder(cfg.data, out, records)
    for kind in KINDS:
        path = out / f"{kind}.jsonl"
        if records[kind] and not (cfg.data and kind in ("demonstrations", "skipped")):
            write_jsonl(path, records[kind])
            print(f"{len(records[kind]):,} {kind} -> {path}")
    print_people(records)
    data = cfg.out if cfg.data else "out/run/data"
    print(f"next: python reward.py --data {data} --comparisons {cfg.out}/comparisons.jsonl --name reward_people")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
