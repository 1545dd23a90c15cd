"""What a run writes while it goes: a JSON record per step, and on the screen a table with the time that is left."""

import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path

import torch

from core.config import BadInput, first_process


class JsonLines:
    """A file of one JSON record per line, appended to. Its state is its length, so a resumed run can cut it back."""

    def __init__(self, path):
        self.path = Path(path)

    def clear(self):
        """Start with an empty file."""
        if first_process():
            self.path.write_text("")

    def write(self, **record):
        """Append one record; numbers are rounded to 6 digits behind the point."""
        record = {key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()}
        if first_process():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def state_dict(self):
        return {"bytes": self.path.stat().st_size if self.path.exists() else 0}

    def load_state_dict(self, state):
        """Forget what was written after the state was saved. A file that is gone starts anew."""
        if first_process() and self.path.exists():
            os.truncate(self.path, min(state["bytes"], self.path.stat().st_size))


class Log(JsonLines):
    """Metrics of a training run: log(step, loss=…) appends a record, and prints a row of a table when it is time.

    steps: how many there will be. columns: which metrics the table shows, separated by spaces. every: seconds between
    rows; a row is also printed when a metric comes that the record before did not have (a validation loss, say), and
    for the last step. On a terminal the newest record stands below the table meanwhile.
    """

    def __init__(self, path, steps, columns, every=10.0):
        super().__init__(path)
        self.steps, self.columns, self.every = steps, columns.split(), every
        self.rows, self.printed_at, self.known = 0, -math.inf, set()
        self.recent = deque()  # (step, time) of the records of the last minute: the pace is theirs

    def __call__(self, step, **metrics):
        """Record the metrics of a step. A NaN or an infinity stops the run (BadInput): never train on in silence."""
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor):
                metrics[name] = value = value.item()
            if isinstance(value, float) and not math.isfinite(value):
                raise BadInput(f"{name} became {value} at step {step}; try a smaller --learning_rate")
        self.write(step=step, **metrics)
        now, new = time.time(), set(metrics) - self.known
        self.recent.append((step, now))
        while len(self.recent) > 2 and now - self.recent[0][1] > 60:
            self.recent.popleft()
        self.known = set(metrics)
        if new or step == self.steps or now - self.printed_at >= self.every:
            self.print_row(step, metrics)
            self.printed_at = now
        elif sys.stdout.isatty():
            print(self.row(step, metrics), end="\r", flush=True)

    def print_row(self, step, metrics):
        """Print one row, and above every twentieth the head of the table: one word of a name per line."""
        if self.rows % 20 == 0:
            names = [["step"], *(column.split("_") for column in self.columns), ["left"]]
            height = max(map(len, names))
            for line in range(height):
                words = [([""] * (height - len(name)) + name)[line] for name in names]
                print(self.aligned(words).rstrip())
        self.rows += 1
        print(self.row(step, metrics), flush=True)

    def row(self, step, metrics):
        cells = [number(metrics.get(column)) for column in self.columns]
        return self.aligned([f"{step}/{self.steps}", *cells, self.left(step)])

    def aligned(self, cells):
        """One cell under the other: the step, the columns, the time left."""
        widths = [len(f"{self.steps}/{self.steps}"), *(max(7, *map(len, c.split("_"))) for c in self.columns), 6]
        return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))

    def left(self, step):
        """'m:ss' that remain at the pace of the last minute; '' at the first record, which includes the warm-up."""
        first_step, first_time = self.recent[0]
        if step == first_step:
            return ""
        seconds = round((time.time() - first_time) / (step - first_step) * (self.steps - step))
        return f"{seconds // 60}:{seconds % 60:02d}"


def number(value):
    """A metric in at most seven characters: 0.123, 12.300, 1.2e-5, 1,024; '-' for None."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 0.0005 <= abs(value) < 99.9995:
        return f"{value:.3f}"
    if 99.9995 <= abs(value) < 99_999.5:
        return f"{value:,.0f}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
