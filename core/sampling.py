"""The same text as model.generate, faster: keys and values are kept, rows that ended are dropped, GPUs replay graphs.

`generate` here and in model.py return the same tokens for the same `uniforms` (tests/core/test_sampling.py pins one to
the other); read that one first. This one draws them with a `generator` if need be, and switches dropout off.
"""

import weakref
from collections import Counter

import torch
import torch.nn.functional as F

from core.config import require
from core.distributed import rows_of_all_sharers
from model import pad, response_mask, sample_token


@torch.no_grad()
def generate(model, prompts, max_new_tokens, eot, temperature=1.0, uniforms=None, generator=None):
    """Continue every prompt until end-of-text or `max_new_tokens`.

    Arguments and results are model.generate's; without `uniforms` they are drawn with `generator`. Each token is
    decided by one of them, whatever becomes of the other rows.

    Two prompts [5 6] and [7 8 9], eot = 0: the prefill reads both, and the hidden states at their last tokens give the
    new ones, which are written behind each: [5 6 4 .] [7 8 9 3]. From then on one token per row is fed, at positions 2
    and 3, then 3 and 4, …; a row that has drawn 0 is no longer `alive`, and when a tenth of the rows are not, they are
    cut out.
    """
    device = model.transformer.wte.weight.device
    if uniforms is None:
        uniforms = torch.rand(max_new_tokens, len(prompts), generator=generator).to(device)
    prompts, uniforms, own = rows_of_all_sharers(model, prompts, uniforms)
    tokens, prompt_lengths = pad(prompts, device, value=eot)  # (B, P), (B,)
    B, P = tokens.shape
    require(min(map(len, prompts)) > 0, "an empty prompt cannot be continued")
    room = model.config.block_size
    require(P + max_new_tokens <= room, f"prompt of {P} + {max_new_tokens} new tokens > context {room}")
    was_training = model.training
    model.eval()  # dropout while sampling would make the ratio on the first minibatch differ from 1
    graphs = _cuda_graphs.get(model)
    check_every = 8 if device.type == "cuda" else 1  # steps between checks who has ended: they wait for a GPU

    tokens = F.pad(tokens, (0, max_new_tokens), value=eot)
    cache, hidden, rows = prefill(model, prompts, max_new_tokens, graphs)  # rows: (b,) which prompt is in which row
    end = prompt_lengths[rows]  # (b,) where the next token goes
    alive = torch.ones(B, dtype=torch.bool, device=device)
    logits = model.unembed(hidden)  # (b, V)
    for step in range(max_new_tokens):
        new = sample_token(logits, temperature, uniforms[step, rows])
        new = torch.where(alive, new, eot)
        tokens[rows, end] = new
        end, alive = end + 1, alive & (new != eot)
        if step + 1 == max_new_tokens:
            break
        if (step + 1) % check_every == 0:
            left = int(alive.sum())
            if left == 0:
                break
            if graphs:
                left = next_power_of_two(left)  # few different sizes: a graph is recorded for each
            if left < 0.9 * len(rows):
                kept = cache.compact(alive, left)
                rows, end, alive = rows[kept], end[kept], alive[kept]
        logits = decode(model, cache, tokens[rows, end - 1], end - 1, slot=P + step, graphs=graphs)
    model.train(was_training)

    response = response_mask(prompt_lengths, prompt_lengths + max_new_tokens, tokens.size(1)) * (tokens != eot)
    lengths = prompt_lengths + (response.sum(1).long() + 1).clamp(max=max_new_tokens)  # the end itself counts
    T = int(lengths[own].max())
    return tokens[own, :T], lengths[own], response_mask(prompt_lengths[own], lengths[own], T)


def next_power_of_two(n):
    return 1 << (n - 1).bit_length()


# ---------------------------------------------------------------------------------------------------- the cache


class KVCache:
    """Keys and values of all layers: prompts in slots 0…P-1 of their rows, then every row's n-th new token in slot P+n.

    Writing a new token is then one copy for all rows; the slots that a short prompt leaves empty are hidden. (A slot
    says where a token is kept, its position where it stands in the text.)
    """

    def __init__(self, cfg, B, S, device, dtype, n_head=0):
        """n_head: how many heads this process has, if not all."""
        n_head = n_head or cfg.n_head
        shape = (cfg.n_layer, B, n_head, S, cfg.n_embd // cfg.n_head)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.attn_bias = torch.zeros(B, n_head, 1, S, device=device, dtype=dtype)  # -inf at empty slots, else 0
        self.slots = torch.arange(S, device=device)
        self.rows = slice(0, B)  # rows in use
        self.slot = None  # (1,) where the new tokens of this step go
        self.used = 0  # slots that may hold something

    def open(self, slot):
        """The next tokens go into this slot. slot: (1,)."""
        self.slot = slot
        self.attn_bias.index_fill_(3, slot, 0.0)

    def attend(self, layer, q, k, v):
        """Keep one new token per row, and let it attend to all its row. q, k, v: (b, H, 1, C/H) -> (b, H, 1, C/H)."""
        self.k[layer, self.rows].index_copy_(2, self.slot, k)
        self.v[layer, self.rows].index_copy_(2, self.slot, v)
        keys = self.k[layer, self.rows, :, : self.used].flatten(0, 1)  # (b·H, S, C/H)
        values = self.v[layer, self.rows, :, : self.used].flatten(0, 1)
        attn_bias = self.attn_bias[self.rows, :, :, : self.used].flatten(0, 1)  # (b·H, 1, S)
        scale = q.size(-1) ** -0.5
        logits = torch.baddbmm(attn_bias, q.flatten(0, 1), keys.transpose(1, 2), alpha=scale)  # (b·H, 1, S)
        return torch.bmm(logits.softmax(-1).to(values.dtype), values).view_as(q)

    def compact(self, alive, n):
        """Use only n rows from now on, among them all alive ones: those behind move to the place of one that is not.

        alive: (b,) bool, at most n of them true. -> where each of the n rows was (n,)
        """
        moved = n + alive[n:].nonzero().squeeze(1)
        free = (~alive[:n]).nonzero().squeeze(1)[: len(moved)]
        for kept in (self.k, self.v):
            kept[:, free, :, : self.used] = kept[:, moved, :, : self.used]
        self.attn_bias[free] = self.attn_bias[moved]
        self.rows = slice(0, n)
        rows = torch.arange(n, device=alive.device)
        rows[free] = moved
        return rows


class PrefillCache:
    """The cache of a pass over prompts: every prompt attends to itself, and is kept in its rows of a KVCache."""

    def __init__(self, cache, rows, copies):
        self.cache, self.rows, self.copies = cache, rows, copies  # copies: (b,) how many rows each prompt gets

    def attend(self, layer, q, k, v):
        """q, k, v: (b, H, T, C/H) -> (b, H, T, C/H)"""
        T, n = k.size(2), self.rows.stop - self.rows.start
        self.cache.k[layer, self.rows, :, :T] = k.repeat_interleave(self.copies, 0, output_size=n)
        self.cache.v[layer, self.rows, :, :T] = v.repeat_interleave(self.copies, 0, output_size=n)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def prefill(model, prompts, max_new_tokens, graphs=None):
    """Read all prompts -> a KVCache with room for new tokens; the hidden state at each one's last token (B, C); and
    which prompt is in which row (B,).

    A prompt that comes several times is read once and gets several rows; prompts of similar length are read together.
    """
    device, B = model.transformer.wte.weight.device, len(prompts)
    copies = Counter(map(tuple, prompts))
    different = sorted(copies, key=lambda prompt: (len(prompt), prompt))
    P = len(different[-1])

    def new_cache():
        dtype = getattr(model, "compute_dtype", model.transformer.wte.weight.dtype)
        return KVCache(model.config, B, P + max_new_tokens, device, dtype, model.transformer.h[0].attn.n_head)

    cache = graphs.cache_for(B, P + max_new_tokens, new_cache) if graphs else new_cache()
    hidden, row, group_size = [], 0, max(16, -(-len(different) // 4))
    for start in range(0, len(different), group_size):
        group = different[start : start + group_size]
        tokens, lengths = pad(group, device)  # (b, T), (b,)
        rows_each = torch.tensor([copies[prompt] for prompt in group], device=device)
        rows = slice(row, row + sum(copies[prompt] for prompt in group))
        states = model(tokens, PrefillCache(cache, rows, rows_each))  # (b, T, C)
        last = states[torch.arange(len(group), device=device), lengths - 1]
        hidden.append(last.repeat_interleave(rows_each, 0, output_size=rows.stop - row))
        row = rows.stop
    order = sorted(range(B), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    order = torch.tensor(order, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[order]
    empty = cache.slots >= lengths[:, None]  # (B, S)
    cache.attn_bias[:B].zero_().masked_fill_(empty[:, None, None], -torch.inf)
    cache.rows, cache.used = slice(0, B), P
    return cache, torch.cat(hidden), order


def decode(model, cache, last, positions, slot, graphs=None):
    """Feed the last token of every row -> logits (b, V) of the next one. last, positions: (b,); slot: where they go."""
    step_slots = 64 if graphs else 1  # a graph is recorded for every number of slots that is looked at
    cache.used = min(-(-(slot + 1) // step_slots) * step_slots, cache.k.size(3))

    def step(last, positions, slot):
        cache.open(slot)
        hidden = model(last[:, None], cache, positions[:, None])  # (b, 1, C)
        return model.unembed(hidden[:, 0])

    inputs = last, positions, cache.slots[slot : slot + 1]
    if graphs is None:
        return step(*inputs)
    return graphs.replay((len(last), cache.used), step, *inputs)


# ---------------------------------------------------------------------------------------------------- CUDA graphs

_cuda_graphs = weakref.WeakKeyDictionary()  # model -> its CudaGraphs


def use_cuda_graphs(model):
    """Record each kind of decoding step of this model once, with all its kernels, and replay it from then on."""
    if model.transformer.wte.weight.device.type == "cuda" and model not in _cuda_graphs:
        _cuda_graphs[model] = CudaGraphs()


class CudaGraphs:
    """Decoding steps as CUDA graphs. A graph reads and writes at fixed addresses, so the sampler's weights and the
    cache have to stay where they are."""

    def __init__(self):
        self.graphs, self.pool, self.cache = {}, None, None

    def cache_for(self, B, S, new_cache):
        """The cache the graphs know, if it has room for B rows and S slots; otherwise a new one, and new graphs."""
        if self.cache is None or self.cache.k.size(1) < B or self.cache.k.size(3) < S:
            self.graphs.clear()
            self.pool = self.cache = None
            self.cache = new_cache()
        return self.cache

    def replay(self, key, work, *inputs):
        """work(*inputs), of tensors that change nothing but their values between calls of one key.

        The result is overwritten by the next call.
        """
        if key not in self.graphs:
            self.graphs[key] = self.record(work, inputs)
        graph, fixed, result = self.graphs[key]
        for place, value in zip(fixed, inputs):
            place.copy_(value)
        graph.replay()
        return result

    def record(self, work, inputs):
        fixed, warm_up = [x.clone() for x in inputs], torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            work(*fixed)  # libraries set themselves up at the first call, which must not be recorded
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work(*fixed)
        self.pool = graph.pool()
        return graph, fixed, result
