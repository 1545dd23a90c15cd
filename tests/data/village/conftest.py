"""What the village's tests share: one world, a small data folder of it, and prompts."""

import pytest

from data.village import make
from data.village.users import draw_prompt
from data.village.world import VALLEYS, World


@pytest.fixture(scope="session")
def world():
    return World(0)


@pytest.fixture(scope="session")
def village_folder(tmp_path_factory):
    """A data folder of the same world. Tests read it and do not write into it."""
    path = tmp_path_factory.mktemp("village")
    make.main(make.Config(out=str(path), web_pages=1500, users=6, demonstrations=150, task_items=16))
    return path


@pytest.fixture(scope="session")
def draw_prompts(world):
    """draw_prompts(rng, count, split="train") yields (prompt, intent, slots), some in phrasings of test users only."""

    def draw(rng, count, split="train"):
        for _ in range(count):
            valley = world.valleys[rng.choice(VALLEYS[split])]
            yield draw_prompt(world, valley, rng, unseen=rng.random() < 0.3)

    return draw
