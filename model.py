"""What is the network? GPT-2's Transformer, its scalar twin for rewards and values, sampling with a cache, checkpoints.

Everything that would be wrong if two scripts did it differently lives here: the network, the one place that shifts
logits against tokens (`token_logprobs`), the one place that samples (`generate`), and what a checkpoint holds.

Layout of tokens everywhere: right-padded rows [prompt, response, padding]. A causal network never looks to the right,
so padding needs no attention mask and may hold any id. Which tokens count is said by a float `mask` that is made where
tokens are made, and carried along.

Shapes: B batch   T tokens   C channels   H heads   V vocabulary   P prompt tokens   N new tokens   S cached tokens
References: Radford et al. 2019 (GPT-2), Brown et al. 2020 (GPT-3 sizes), Ouyang et al. 2022 (InstructGPT).
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from data.bpe import encoding_from
from machine import wait_for_all, whole_state
from plumbing import BadInput, require, write_torch

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C
    block_size: int = 160  # longest sequence, in tokens
    vocab_size: int = 1360  # V
    dropout: float = 0.0  # on embeddings and on what each block adds ("residual dropout")


SIZES = {
    "village": GPTConfig(),
    "gpt2": GPTConfig(12, 12, 768, 1024, 50257),
    "gpt2-medium": GPTConfig(24, 16, 1024, 1024, 50257),
    "gpt2-large": GPTConfig(36, 20, 1280, 1024, 50257),
    "gpt2-xl": GPTConfig(48, 25, 1600, 1024, 50257),
    "gpt3-1.3b": GPTConfig(24, 16, 2048, 2048, 50257),  # the paper's "XL", heads as in Stiennon et al. 2020, Table 3
    "gpt3-6.7b": GPTConfig(32, 32, 4096, 2048, 50257),  # its "6B", the size of the reward and value models
    "gpt3-175b": GPTConfig(96, 96, 12288, 2048, 50257),
}

# ---------------------------------------------------------------------------------------------------- the Transformer


class Attention(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        require(cfg.n_embd % cfg.n_head == 0, f"n_embd {cfg.n_embd} must be a multiple of n_head {cfg.n_head}")
        self.n_head, self.layer = cfg.n_head, layer
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)  # queries, keys and values in one matrix, GPT-2's names
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)

    def forward(self, x, cache=None):
        """x: (B, T, C) -> (B, T, C). A cache (see KVCache) keeps what prompts are, then shows it to each new token (T = 1)."""
        B, T, C = x.shape
        q, k, v = (
            z.view(B, T, self.n_head, -1).transpose(1, 2) for z in self.c_attn(x).split(C, dim=2)
        )  # (B, H, T, C/H)
        if cache is not None:
            cache.write(self.layer, k, v)
        if cache is not None and cache.slot is not None:
            y = cache.attend(self.layer, q)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_fc = nn.Linear(cfg.n_embd, 4 * cfg.n_embd)
        self.c_proj = nn.Linear(4 * cfg.n_embd, cfg.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(cfg.n_embd), Attention(cfg, layer)
        self.ln_2, self.mlp = nn.LayerNorm(cfg.n_embd), MLP(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x, cache=None):
        x = x + self.dropout(self.attn(self.ln_1(x), cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Tokens in, hidden states out. GPT and ScalarModel are this with a different last step."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)  # token embedding, and transposed, the unembedding
        self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)  # learned positions
        self.dropout = nn.Dropout(cfg.dropout)
        self.h = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layer))
        self.ln_f = nn.LayerNorm(cfg.n_embd)
        self.bfloat16 = self.recompute = False  # see machine.py: precision of the products, memory against time

    def precision(self):
        """Matrix products in bfloat16 where that was asked for; weights, sums and everything else stay float32."""
        return torch.autocast(self.wte.weight.device.type, torch.bfloat16, enabled=self.bfloat16)

    def forward(self, tokens, cache=None, positions=None):
        """tokens: (B, T) ids -> hidden states (B, T, C). positions: (B, T), default 0…T-1."""
        T = tokens.size(1)
        if positions is None:
            if T > self.config.block_size:
                raise BadInput(f"{T} tokens do not fit the context of {self.config.block_size}; shorten them")
            positions = torch.arange(T, device=tokens.device)
        with self.precision():
            x = self.dropout(self.wte(tokens) + self.wpe(positions))
            for block in self.h:
                if self.recompute and torch.is_grad_enabled():
                    x = recompute_in_backward(block, x, use_reentrant=False)
                else:
                    x = block(x, cache)
            return self.ln_f(x)


def init_weights(module, cfg):
    """GPT-2's initialisation: N(0, 0.02), and residual projections scaled by 1/sqrt(number of residual additions).

    0.02 suits GPT-2's width of 768; for other widths matrices get 0.02·sqrt(768/C), so that activations start alike (ours).
    """
    std = 0.02 * math.sqrt(768 / cfg.n_embd)
    for name, parameter in module.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=std / math.sqrt(2 * cfg.n_layer))
        elif "wte" in name or "wpe" in name:
            nn.init.normal_(parameter, std=0.02)
        elif parameter.dim() >= 2:
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class GPT(nn.Module):
    """A language model: the policy, the reference, the baselines."""

    kind = "policy"
    replay = None  # how `generate` repeats a step; see Replay in machine.py

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.transformer = Transformer(cfg)
        init_weights(self, cfg)

    def forward(self, tokens, **kwargs):
        """(B, T) -> hidden states (B, T, C). Turn into logits with `unembed`, and only where they are needed."""
        return self.transformer(tokens, **kwargs)

    def unembed(self, hidden):
        """(..., C) -> logits (..., V). The unembedding is the token embedding transposed ("tied"), as in GPT-2."""
        with self.transformer.precision():
            return F.linear(hidden, self.transformer.wte.weight)


class ScalarModel(nn.Module):
    """The same network with the unembedding replaced by a projection to one number (paper App. C).

    The reward model reads it at the last response token; the value model reads it at every token. `bias` is the
    reward model's normalisation (demonstrations score 0 on average, §3.5); it is part of the checkpoint.
    """

    kind = "scalar"

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.transformer = Transformer(cfg)
        init_weights(self, cfg)
        self.head = nn.Linear(cfg.n_embd, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(cfg.n_embd + 1))  # Stiennon et al. 2020, App. B
        nn.init.zeros_(self.head.bias)
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def from_gpt(cls, gpt, dropout=0.0):
        """A scalar model whose body is a copy of `gpt`'s."""
        model = cls(replace(gpt.config, dropout=dropout))
        model.transformer.load_state_dict(gpt.transformer.state_dict())
        return model.to(gpt.transformer.wte.weight.device)

    def forward(self, tokens):
        """(B, T) ids -> one scalar per position (B, T)."""
        return self.head(self.transformer(tokens).float()).squeeze(-1) + self.bias

    def score(self, tokens, lengths):
        """Score of each row, read at its last real token. tokens: (B, T), lengths: (B,) -> (B,)."""
        last = lengths - 1
        hidden = self.transformer(tokens)[torch.arange(len(tokens), device=tokens.device), last]  # (B, C)
        return self.head(hidden.float()).squeeze(-1) + self.bias


# ---------------------------------------------------------------------------------------------------- bookkeeping of tokens


def pad(rows, device="cpu", value=0):
    """Lists of ids of unequal length -> right-padded tokens (B, T) and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), max(1, int(lengths.max()))), value)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.as_tensor(row)
    return tokens.to(device), lengths.to(device)


def response_mask(prompt_lengths, lengths, T):
    """1.0 on the response tokens of right-padded rows, end-of-text included. (B,), (B,) -> (B, T) float."""
    t = torch.arange(T, device=lengths.device)
    return ((t >= prompt_lengths[:, None]) & (t < lengths[:, None])).float()


def masked_mean(x, mask, count=None):
    """Mean of x over the places where mask is 1 (all rows together). count: divide by this instead, where x is a part."""
    return (x * mask).sum() / (mask.sum() if count is None else count).clamp(min=1)


CHUNK = 2**26  # most logits that are held at a time


def logprobs_of(model, hidden, targets, entropy=False):
    """log p(target) by each hidden state, and the entropy (nats) of that prediction, or zeros if it is not asked for.

    (N, C), (N,) -> (N,), (N,). In chunks, because at GPT-2's vocabulary the logits of a batch are the largest thing in
    training; with gradients, what a chunk needs is computed again in the backward pass.
    """

    def some(hidden, targets):
        logits = model.unembed(hidden).float()  # (n, V)
        logprobs = -F.cross_entropy(logits, targets, reduction="none")
        with torch.no_grad():
            spread = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1) if entropy else logprobs * 0
        return logprobs, spread

    n = max(1, CHUNK // model.config.vocab_size)
    if len(hidden) <= n:
        return some(hidden, targets)
    parts = zip(hidden.split(n), targets.split(n))
    if torch.is_grad_enabled():
        parts = [recompute_in_backward(some, h, t, use_reentrant=False) for h, t in parts]
    else:
        parts = [some(h, t) for h, t in parts]
    return tuple(map(torch.cat, zip(*parts)))


def token_logprobs(model, tokens, mask, entropy=False):
    """log π(token t | tokens before t) wherever mask[t] = 1, and 0 elsewhere. THE place that shifts.

    The hidden state at position t-1 predicts token t, so both are picked by the same mask and only those positions are
    unembedded. tokens, mask: (B, T) -> (B, T). With entropy=True also the entropy (nats) of each of those predictions.
    """
    assert mask[:, 0].sum() == 0, "the first token of a row has nothing before it that could predict it"
    chosen = mask.bool()
    hidden = model(tokens)[:, :-1][chosen[:, 1:]]  # (number of ones in mask, C)
    logprobs, spread = logprobs_of(model, hidden, tokens[chosen], entropy)
    logprobs = torch.zeros_like(mask).masked_scatter(chosen, logprobs)
    return (logprobs, torch.zeros_like(mask).masked_scatter(chosen, spread)) if entropy else logprobs


def values_before(value_model, tokens, mask):
    """V of the state before token t was chosen, wherever mask[t] = 1 (paper §9: read where the token is emitted)."""
    V = value_model(tokens)
    return torch.cat([torch.zeros_like(V[:, :1]), V[:, :-1]], dim=1) * mask


# ---------------------------------------------------------------------------------------------------- sampling


class KVCache:
    """Keys and values of all layers, preallocated: prompts of any length in slots 0…P-1 of their rows, then every row's
    n-th new token in slot P+n. Writing is then one copy for all rows; the slots that a short prompt leaves empty are
    hidden. (A slot says where a token is kept, its position where it stands in the text.)"""

    def __init__(self, cfg, B, S, device, dtype):
        shape = (cfg.n_layer, B, cfg.n_head, S, cfg.n_embd // cfg.n_head)
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.hide = torch.zeros(B, cfg.n_head, 1, S, device=device, dtype=dtype)  # -inf where a slot is empty, else 0
        self.slots = torch.arange(S, device=device)
        self.rows, self.copies = slice(0, B), None  # in use; while prompts are read: how many rows each one gets
        self.slot, self.seen = (
            None,
            S,
        )  # (1,) of the new tokens, None while prompts are read; how many slots they look at

    def write(self, layer, k, v):
        """Keep k, v (b, H, T, C/H) of one layer: of prompts, or of one new token per row."""
        if self.slot is not None:
            self.k[layer, self.rows].index_copy_(2, self.slot, k), self.v[layer, self.rows].index_copy_(2, self.slot, v)
            return
        for kept, new in ((self.k, k), (self.v, v)):
            kept[layer, self.rows, :, : k.size(2)] = new.repeat_interleave(self.copies, 0)

    def attend(self, layer, q):
        """What one new token per row, just written, sees of its row. q: (b, H, 1, C/H) -> (b, H, 1, C/H)."""
        k, v = (z[layer, self.rows, :, : self.seen].flatten(0, 1) for z in (self.k, self.v))  # (b·H, S, C/H)
        hide = self.hide[self.rows, :, :, : self.seen].flatten(0, 1)  # (b·H, 1, S)
        logits = torch.baddbmm(hide, q.flatten(0, 1), k.transpose(1, 2), alpha=q.size(-1) ** -0.5)  # (b·H, 1, S)
        return torch.bmm(logits.softmax(-1).to(v.dtype), v).view_as(q)

    def keep(self, going, n):
        """Use only n rows from now on, among them all that are `going` (b,): those behind move to the place of one that is
        not. -> where each of the n was."""
        moved = n + going[n:].nonzero().squeeze(1)
        rows, gaps = torch.arange(n, device=going.device), (~going[:n]).nonzero().squeeze(1)[: len(moved)]
        rows[gaps] = moved
        for z in (self.k, self.v):
            z[:, gaps, :, : self.seen] = z[:, moved, :, : self.seen]
        self.hide[gaps] = self.hide[moved]
        self.rows = slice(0, n)
        return rows


def read_prompts(model, prompts, max_new_tokens):
    """-> a cache that holds the prompts, with room for new tokens; the hidden state at each one's last token (B, C); and
    which prompt is in which of its rows (B,).

    A prompt that comes several times is read once and gets several rows; prompts of similar length are read together.
    """
    device, cfg = model.transformer.wte.weight.device, model.config
    dtype = torch.bfloat16 if model.transformer.bfloat16 else model.transformer.wte.weight.dtype
    copies = Counter(map(tuple, prompts))
    different = sorted(copies, key=lambda prompt: (len(prompt), prompt))
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    P = len(different[-1])
    make = partial(KVCache, cfg, len(prompts), P + max_new_tokens, device, dtype)
    cache = make() if model.replay is None else model.replay.cache_for(len(prompts), P + max_new_tokens, make)
    cache.slot, hidden, row, size = None, [], 0, max(16, -(-len(different) // 4))
    for start in range(0, len(different), size):
        group = different[start : start + size]
        tokens, lengths = pad(group, device)  # (b, T)
        cache.copies = torch.tensor([copies[prompt] for prompt in group], device=device)
        cache.rows = slice(row, row := row + sum(copies[prompt] for prompt in group))
        last = model(tokens, cache=cache)[torch.arange(len(tokens), device=device), lengths - 1]
        hidden.append(last.repeat_interleave(cache.copies, 0))
    order = torch.tensor(order, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[order]
    cache.hide[: len(prompts)].zero_().masked_fill_((cache.slots >= lengths[:, None])[:, None, None], -torch.inf)
    cache.rows, cache.slot = slice(0, len(prompts)), cache.slots[P - 1 : P]
    return cache, torch.cat(hidden), order


def pick(logits, temperature, u):
    """One token per row: the most likely if temperature is 0, else sampled by inverting the cumulative distribution.

    logits: (B, V), u: (B,) uniform in [0, 1) -> (B,) ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = F.softmax(logits.float() / temperature, dim=-1).cumsum(-1)
    u = u[:, None] * cumulative[:, -1:]  # rounding may leave the last entry a hair below 1
    return torch.searchsorted(cumulative, u, right=True).squeeze(-1).clamp(max=logits.size(-1) - 1)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, eot, temperature=1.0, generator=None, use_cache=True, uniforms=None):
    """Continue every prompt until end-of-text or `max_new_tokens`.

    prompts: list of B lists of ids, of any lengths. uniforms: (max_new_tokens, B) random numbers in [0, 1), by default
    drawn with `generator`; each token is decided by one of them, whatever becomes of the other rows. Returns tokens
    (B, T), right-padded rows [prompt, response]; lengths (B,); and mask (B, T), 1.0 on the tokens that were sampled, end-
    of-text included. Rows that have ended are dropped from the work.

    Two prompts [5 6] and [7 8 9], eot = 0: the first pass reads both, and the hidden states at their last tokens give
    the new ones, which are written behind each: [5 6 4 .] [7 8 9 3]. From then on one token per row is fed, at positions
    2 and 3, then 3 and 4, …; a row that has drawn 0 is no longer `going`, and when a tenth of the `active` rows are not,
    they are cut out. (On a GPU, which would have to be waited for, one looks at every eighth step only.)

    `use_cache=False` recomputes the whole prefix for every token: the plain version, for the test and the stopwatch. It
    gives the same text.
    """
    device, cfg = model.transformer.wte.weight.device, model.config
    tokens, prompt_lengths = pad(prompts, device, value=eot)
    B, P = tokens.shape
    require(int(prompt_lengths.min()) > 0, "an empty prompt cannot be continued")
    require(
        P + max_new_tokens <= cfg.block_size, f"prompt of {P} + {max_new_tokens} new tokens > context {cfg.block_size}"
    )
    was_training = model.training
    model.eval()  # dropout while sampling would make the ratio on the first minibatch differ from 1
    if uniforms is None:
        uniforms = torch.rand(max_new_tokens, B, generator=generator).to(device)
    tokens = F.pad(tokens, (0, max_new_tokens), value=eot)
    active = torch.arange(B, device=device)  # rows still being worked on
    going = torch.ones(B, dtype=torch.bool, device=device)  # which of those have not ended
    if use_cache:
        cache, hidden, active = read_prompts(model, prompts, max_new_tokens)
    end = prompt_lengths[active]  # of those: where the next token goes
    look, unit = 8 if device.type == "cuda" else 1, 64 if model.replay else 1

    def advance(last, positions, slot):
        """One more token of every row, put into `slot` -> logits (b, V) of the next one."""
        cache.slot = slot
        cache.hide.index_fill_(3, slot, 0.0)
        return model.unembed(model(last[:, None], cache=cache, positions=positions[:, None])[:, 0])

    for step in range(max_new_tokens):
        if not use_cache:
            hidden = model(tokens[active, : int(end.max())])[torch.arange(len(active), device=device), end - 1]
        if step == 0 or not use_cache:
            logits = model.unembed(hidden)
        else:
            slot = P + step - 1
            cache.seen = min(-(-(slot + 1) // unit) * unit, len(cache.slots))
            inputs = tokens[active, end - 1], end - 1, cache.slots[slot : slot + 1]
            logits = model.replay((len(active), cache.seen), advance, *inputs) if model.replay else advance(*inputs)
        new = torch.where(going, pick(logits, temperature, uniforms[step, active]), eot)  # (active rows,)
        tokens[active, end] = new
        end, going = end + 1, new != eot
        if (step + 1) % look:
            continue
        left = int(going.sum())
        if left == 0:
            break
        left = 1 << (left - 1).bit_length() if model.replay else left  # few different sizes: each is recorded
        if left < 0.9 * len(active):  # a few that have ended are carried along
            rows = cache.keep(going, left) if use_cache else going.nonzero().squeeze(1)
            active, end, going = active[rows], end[rows], going[rows]
    model.train(was_training)
    response = response_mask(prompt_lengths, prompt_lengths + max_new_tokens, tokens.size(1)) * (tokens != eot)
    lengths = prompt_lengths + (response.sum(1).long() + 1).clamp(max=max_new_tokens)  # the end itself counts
    T = int(lengths.max())
    return tokens[:, :T], lengths, response_mask(prompt_lengths, lengths, T)


def respond(model, encoding, prompts, max_new_tokens, temperature=1.0, generator=None, batch_size=512, stop=""):
    """Answer texts with texts: list of prompts (str) -> list of (completion, ended), in the order of the prompts.

    ended says whether end-of-text came in time. `stop` cuts a completion at its first occurrence and counts as an end:
    a few-shot prompted model starts the next example instead of ending.
    """
    ids = [encoding.encode_ordinary(prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths together: less padding
    answers = [None] * len(ids)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens, lengths, _ = generate(
            model, [ids[i] for i in batch], max_new_tokens, encoding.eot_token, temperature, generator
        )
        for i, row, length in zip(batch, tokens.tolist(), lengths.tolist()):
            response = row[len(ids[i]) : length]
            ended = response[-1] == encoding.eot_token
            text = encoding.decode(response[:-1] if ended else response)
            if stop and stop in text:
                text, ended = text.split(stop)[0], True
            answers[i] = (text, ended)
    return answers


def encode_answer(encoding, prompt, text, ended=True):
    """Ids of a prompt and of an answer to it, encoded apart as they are when sampled; end-of-text if it has ended."""
    return encoding.encode_ordinary(prompt), encoding.encode_ordinary(text) + [encoding.eot_token] * bool(ended)


@torch.no_grad()
def score_rows(reward_model, rows, batch_size=128):
    """Reward-model score of every row of ids -> [float]; nan where a row exceeds the context. Similar lengths together."""
    fits = [i for i, row in enumerate(rows) if len(row) <= reward_model.config.block_size]
    order, scores = sorted(fits, key=lambda i: len(rows[i])), [float("nan")] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        values = reward_model.score(*pad([rows[i] for i in batch], reward_model.bias.device))
        for i, value in zip(batch, values.tolist()):
            scores[i] = value
    return scores


def score_answers(reward_model, encoding, prompts, answers):
    """Reward-model score of each answer (text, ended) to each prompt -> [float]; nan where it exceeds the context."""
    rows = [sum(encode_answer(encoding, p, text, ended), []) for p, (text, ended) in zip(prompts, answers)]
    return score_rows(reward_model, rows)


# ---------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path, model, tokenizer, config, step, **more):
    """One file that another stage can open alone: weights, shape, tokenizer, and how it was made. Whole or not at all."""
    checkpoint = {"kind": model.kind, "model": whole_state(model), "model_config": asdict(model.config)}
    checkpoint |= {"tokenizer": tokenizer, "config": config if isinstance(config, dict) else asdict(config)} | more
    checkpoint["step"] = step
    write_torch(path, checkpoint)
    wait_for_all()  # so that nobody opens it too early


def load_checkpoint(path, kind, device="cpu", dropout=0.0, tokenizer=None):
    """-> (model, encoding, checkpoint dict). Refuses another kind of model or, if one is given, another tokenizer.

    kind: "policy" gives a GPT, "scalar" a ScalarModel. The model comes in eval mode, on `device`. For a policy, path may
    also be GPT-2's: a name like gpt2-xl, or a file or folder in Hugging Face's layout (gpt2.py).
    """
    from gpt2 import is_gpt2, load_gpt2  # it needs this file, so here and not above

    if kind == "policy" and is_gpt2(path):
        return load_gpt2(path, device, dropout, tokenizer)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found, weights = checkpoint["kind"], checkpoint["model"]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint; run the step that writes it, or pass another path") from None
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as problem:
        reason = str(problem).splitlines()[0][:80] if str(problem) else type(problem).__name__
        raise BadInput(
            f"{path}: not a checkpoint of this project ({reason}); pass a .pt file our scripts wrote"
        ) from None
    require(found == kind, f"{path}: holds a {found} model, but a {kind} model is needed here")
    same = tokenizer is None or tokenizer == checkpoint["tokenizer"]
    require(same, f"{path}: was trained with another tokenizer than the data folder's; use the data it was trained on")
    config = GPTConfig(**checkpoint["model_config"] | {"dropout": dropout})
    model = GPT(config) if kind == "policy" else ScalarModel(config)
    model.load_state_dict(weights)
    return model.to(device).eval(), encoding_from(checkpoint["tokenizer"]), checkpoint
