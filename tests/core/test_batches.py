"""What comes when is a function of the seed and the step, and every example comes once per pass."""

from collections import Counter

import pytest
import torch

from core.batches import ShuffledBatches, batches_by_length, generator, shuffled_rows

LENGTHS = [(7 * i) % 31 + 1 for i in range(203)]


def test_streams_differ_by_seed_purpose_and_step_and_not_by_what_else_is_drawn():
    names = [
        (0, "", 0),
        (1, "", 0),
        (0, "a", 0),
        (0, "a", 1),
        (0, "b", 1),
        (10, "a", 1),
        (1, "0 a", 1),
        (2**63 - 1, "", 0),
    ]
    draws = {name: tuple(torch.rand(3, generator=generator(*name)).tolist()) for name in names}
    assert len(set(draws.values())) == len(names)
    torch.manual_seed(99)
    torch.rand(100)
    for name in reversed(names):
        assert tuple(torch.rand(3, generator=generator(*name)).tolist()) == draws[name]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 203, 500])
def test_batches_by_length_hold_every_index_once(batch_size):
    batches = batches_by_length(LENGTHS, batch_size, generator(0))
    assert Counter(sum(batches, [])) == Counter(range(203))
    assert len(batches) == -(-203 // batch_size)
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


def test_little_of_a_batch_is_padding_and_long_ones_come_at_any_time():
    def padding(batches):
        return sum(max(LENGTHS[i] for i in b) * len(b) - sum(LENGTHS[i] for i in b) for b in batches)

    order = torch.randperm(203, generator=generator(5)).tolist()
    at_random = [order[i : i + 8] for i in range(0, 203, 8)]
    batches = batches_by_length(LENGTHS, 8, generator(0))
    assert padding(batches) < padding(at_random) / 4
    means = [sum(LENGTHS[i] for i in b) / len(b) for b in batches]
    ups = sum(a < b for a, b in zip(means, means[1:]))
    assert 5 < ups < len(means) - 6, "neither from short to long nor the other way"


def test_shuffled_batches_are_a_function_of_seed_and_step():
    batches, steps = ShuffledBatches(LENGTHS, 8, seed=3), list(range(60))
    assert len(batches) == 26
    in_order = [batches[step] for step in steps]
    assert [ShuffledBatches(LENGTHS, 8, seed=3)[step] for step in steps] == in_order, "as a resumed run asks"
    jumping = ShuffledBatches(LENGTHS, 8, seed=3)
    assert [jumping[step] for step in reversed(steps)] == in_order[::-1]
    assert [ShuffledBatches(LENGTHS, 8, seed=4)[step] for step in steps] != in_order


def test_every_epoch_holds_every_index_once_in_another_order():
    batches = ShuffledBatches(LENGTHS, 8, seed=3)
    epochs = [[batches[step] for step in range(26 * e, 26 * (e + 1))] for e in range(3)]
    for epoch in epochs:
        assert Counter(sum(epoch, [])) == Counter(range(203))
    assert epochs[0] != epochs[1] != epochs[2]
    assert {tuple(sorted(b)) for b in epochs[0]} != {tuple(sorted(b)) for b in epochs[1]}


@pytest.mark.parametrize("count, batch_size", [(10, 3), (3, 10), (5, 5), (1, 4)])
def test_shuffled_rows_come_once_per_pass(count, batch_size):
    """Batches do not stop at the end of a pass, so the sequence they make up is looked at."""
    sequence = sum((shuffled_rows(count, batch_size, 0, step) for step in range(3 * count)), [])
    assert len(sequence) == 3 * count * batch_size
    passes = [sequence[i : i + count] for i in range(0, len(sequence), count)]
    assert all(sorted(p) == list(range(count)) for p in passes)
    assert count < 3 or len(set(map(tuple, passes))) > 1
    assert shuffled_rows(count, batch_size, 0, 2) == sequence[2 * batch_size : 3 * batch_size]
    assert count == 1 or sequence != sum((shuffled_rows(count, batch_size, 1, s) for s in range(3 * count)), [])
