"""What the tests of the alternatives share."""

import pytest

from core.checkpoint import read_checkpoint
from core.output import write_torch
from core.training_state import fingerprints


@pytest.fixture
def run(run, data):
    """The run folder, whose reward.pt says that it was trained on the data folder's rankings, as reward.py's does."""
    inputs = fingerprints(data, run / "ppo_init.pt", data / "comparisons.jsonl")
    write_torch(run / "reward.pt", read_checkpoint(run / "reward.pt") | {"inputs": inputs})
    return run
