"""Which data come when: a function of the seed and the step, so that a resumed run needs to remember nothing of it."""

import hashlib
from functools import lru_cache

import torch


def generator(seed, purpose="", step=0):
    """A stream of random numbers of its own for every seed, purpose and step. It is the CPU's on every machine.

    Drawing more for one purpose (a sample on the way, say) can therefore not change another (the order of the data).
    """
    digest = hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class ShuffledBatches:
    """Minibatches of indices of similar lengths: `batches[step]`, for any step; each epoch is another shuffle.

    lengths: of the rows, in tokens; batch_size: rows per step, fewer in the last one of an epoch. len(): steps per
    epoch.
    """

    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = lru_cache(maxsize=1)(self._epoch)

    def __len__(self):
        return -(-len(self.lengths) // self.batch_size)

    def __getitem__(self, step):
        epoch, index = divmod(step, len(self))
        return self.epoch(epoch)[index]

    def _epoch(self, epoch):
        return batches_by_length(self.lengths, self.batch_size, generator(self.seed, "epoch", epoch))


def batches_by_length(lengths, batch_size, rng):
    """Random batches of indices whose rows have similar lengths, so that little of a padded batch is padding.

    Shuffles, sorts within stretches of 16 batches, then shuffles the batches. Every index comes exactly once.
    """
    shuffled = torch.randperm(len(lengths), generator=rng).tolist()
    batches = []
    for i in range(0, len(shuffled), 16 * batch_size):
        stretch = sorted(shuffled[i : i + 16 * batch_size], key=lambda j: lengths[j])
        batches += [stretch[j : j + batch_size] for j in range(0, len(stretch), batch_size)]
    return [batches[j] for j in torch.randperm(len(batches), generator=rng).tolist()]


def shuffled_rows(count, batch_size, seed, step):
    """Indices of the `step`-th batch of an endless sequence of shuffles of range(count): each comes once per pass."""

    @lru_cache
    def shuffle(epoch):
        return torch.randperm(count, generator=generator(seed, "pass", epoch)).tolist()

    positions = range(step * batch_size, (step + 1) * batch_size)
    return [shuffle(position // count)[position % count] for position in positions]
