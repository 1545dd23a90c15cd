"""The network: GPT-2's Transformer, the same with one number per token (rewards, values), log-probs, and sampling.

Layout of tokens everywhere: right-padded rows [prompt, response, padding]. A causal network never looks to the right,
so padding needs no attention mask and may hold any id. Which tokens count is said by a float `mask` that is made where
tokens are made, and carried along.

Logits at position t predict token t+1. Everything that is "about token t" (its log-prob, the value of the state before
it) is therefore computed at position t-1 and stored at t: see `token_logprobs` and `token_values`.

This file needs nothing but PyTorch. core/ holds what makes it fast (core/sampling.py: the same `generate` with a cache)
and saves it (core/checkpoint.py).

Shapes: B batch   T tokens   C channels   H heads   V vocabulary   P prompt tokens   N chosen tokens
References: Radford et al. 2019 (GPT-2), Brown et al. 2020 (GPT-3 sizes), Ouyang et al. 2022 (InstructGPT).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 2
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
        self.n_head, self.layer = cfg.n_head, layer
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)  # queries, keys and values in one matrix, GPT-2's names
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)

    def forward(self, x, cache=None):
        """x: (B, T, C) -> (B, T, C). A cache (core/sampling.py) keeps keys and values while sampling."""
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        q, k, v = (z.unflatten(2, (self.n_head, -1)).transpose(1, 2) for z in (q, k, v))  # (B, H, T, C/H)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, C/H)
        else:
            y = cache.attend(self.layer, q, k, v)
        return self.c_proj(y.transpose(1, 2).flatten(2))


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

    def forward(self, tokens, cache=None, positions=None):
        """tokens: (B, T) ids -> hidden states (B, T, C). positions: (B, T), default 0…T-1."""
        if positions is None:
            T = tokens.size(1)
            assert T <= self.config.block_size, f"{T} tokens do not fit the context of {self.config.block_size}"
            positions = torch.arange(T, device=tokens.device)
        x = self.dropout(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x, cache)
        return self.ln_f(x)


def init_weights(module, cfg):
    """GPT-2's initialisation: N(0, 0.02), and residual projections scaled by 1/sqrt(number of residual additions).

    0.02 suits GPT-2's width of 768; for other widths matrices get 0.02·sqrt(768/C), so that activations start alike
    (ours).
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
    """A language model: policy, reference, baselines. forward() gives hidden states; logits = unembed(hidden)."""

    kind = "policy"

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg
        self.transformer = Transformer(cfg)
        init_weights(self, cfg)

    def forward(self, tokens, cache=None, positions=None):
        """(B, T) -> hidden states (B, T, C). Turn into logits with `unembed`, and only where they are needed."""
        return self.transformer(tokens, cache, positions)

    def unembed(self, hidden):
        """(..., C) -> logits (..., V). The unembedding is the token embedding transposed ("tied"), as in GPT-2."""
        return F.linear(hidden, self.transformer.wte.weight)


class ScalarModel(nn.Module):
    """The same network with the unembedding replaced by a projection to one number (App. C).

    The reward model reads it at the last response token; the value model reads it at every token. The bias of the head
    is the reward model's normalisation, too (demonstrations score 0 on average, §3.5): differences do not depend on it.
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

    @classmethod
    def from_gpt(cls, gpt, dropout=0.0):
        """A scalar model whose body is a copy of `gpt`'s."""
        model = cls(replace(gpt.config, dropout=dropout))
        model.transformer.load_state_dict(gpt.transformer.state_dict())
        return model.to(gpt.transformer.wte.weight.device)

    def forward(self, tokens):
        """(B, T) ids -> one scalar per position (B, T)."""
        return self.head(self.transformer(tokens).float()).squeeze(-1)

    def score(self, tokens, lengths):
        """Score of each row, read at its last real token. tokens: (B, T), lengths: (B,) -> (B,)."""
        rows = torch.arange(len(tokens), device=tokens.device)
        last_hidden = self.transformer(tokens)[rows, lengths - 1]  # (B, C)
        return self.head(last_hidden.float()).squeeze(-1)


# ---------------------------------------------------------------------------------------------------- tokens and masks


def pad(rows, device="cpu", value=0):
    """Lists of ids of unequal length -> right-padded tokens (B, T) and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max((len(row) for row in rows), default=1)
    tokens = torch.full((len(rows), longest), value)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.as_tensor(row)
    return tokens.to(device), lengths.to(device)


def response_mask(prompt_lengths, lengths, T):
    """1.0 on the response tokens of right-padded rows, end-of-text included. (B,), (B,) -> (B, T) float."""
    t = torch.arange(T, device=lengths.device)
    return ((t >= prompt_lengths[:, None]) & (t < lengths[:, None])).float()


def masked_mean(x, mask):
    """Mean of x over the places where mask is 1 (all rows together). (B, T), (B, T) -> scalar."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------- log-probs and values

MAX_LOGITS = 2**26  # most logits that are held at a time


def target_logprobs(model, hidden, targets):
    """log p(target) by each hidden state. hidden: (N, C), targets: (N,) -> (N,).

    With GPT-2's vocabulary the logits of a batch are the largest thing in training, so they are made chunk by chunk,
    and once more in the backward pass.
    """

    def one_chunk(hidden, targets):
        return -F.cross_entropy(model.unembed(hidden).float(), targets, reduction="none")

    n = max(1, MAX_LOGITS // model.config.vocab_size)
    if len(hidden) <= n:
        return one_chunk(hidden, targets)
    chunks = zip(hidden.split(n), targets.split(n))
    return torch.cat([recompute_in_backward(one_chunk, h, t, use_reentrant=False) for h, t in chunks])


def token_logprobs(model, tokens, mask):
    """log π(token t | tokens before t) where mask[t] = 1, and 0 elsewhere. tokens, mask: (B, T) -> (B, T).

    The hidden state at position t-1 predicts token t, and only where it is asked for is it unembedded.
    """
    assert mask[:, 0].sum() == 0, "the first token of a row has nothing before it that could predict it"
    row, t = mask.nonzero(as_tuple=True)  # (N,) each: where the chosen tokens are
    hidden = model(tokens[:, :-1])  # (B, T-1, C): state t predicts token t+1
    logprobs = torch.zeros_like(mask)
    logprobs[row, t] = target_logprobs(model, hidden[row, t - 1], tokens[row, t])
    return logprobs


def token_values(value_model, tokens, mask):
    """V of the state before token t was chosen, where mask[t] = 1, and 0 elsewhere. tokens, mask: (B, T) -> (B, T)."""
    V = value_model(tokens[:, :-1])  # (B, T-1): token t+1 is chosen in state t
    return F.pad(V, (1, 0)) * mask


def lm_loss(model, tokens):
    """Next-token loss of every token but the first: -log p(token t | tokens before t). (B, T) -> (B, T-1) nats."""
    hidden = model(tokens[:, :-1])  # (B, T-1, C)
    logprobs = target_logprobs(model, hidden.flatten(0, 1), tokens[:, 1:].flatten())
    return -logprobs.view(len(tokens), tokens.size(1) - 1)


# ---------------------------------------------------------------------------------------------------- sampling


def sample_token(logits, temperature, u):
    """One token per row: the most likely at temperature 0, else sampled by inverting the cumulative distribution.

    logits: (B, V), u: (B,) uniform in [0, 1) -> (B,) ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = F.softmax(logits.float() / temperature, dim=-1).cumsum(-1)
    u = u[:, None] * cumulative[:, -1:]  # rounding may leave the last entry a hair below 1
    return torch.searchsorted(cumulative, u, right=True).squeeze(-1).clamp(max=logits.size(-1) - 1)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, eot, temperature=1.0, uniforms=None):
    """Continue every prompt, token by token, until end-of-text or `max_new_tokens`.

    prompts: list of B lists of ids, of any lengths. uniforms: (max_new_tokens, B) random numbers in [0, 1), one for
    each token. Returns tokens (B, T), right-padded rows [prompt, response]; lengths (B,); mask (B, T), 1.0 on the
    sampled tokens, end-of-text included.

    This is what sampling means. The scripts use core/sampling.py, which gives the same text with much less work.
    """
    device = model.transformer.wte.weight.device
    tokens, prompt_lengths = pad(prompts, device, value=eot)  # (B, P), (B,)
    tokens = F.pad(tokens, (0, max_new_tokens), value=eot)
    if uniforms is None:
        uniforms = torch.rand(max_new_tokens, len(prompts)).to(device)
    rows, lengths = torch.arange(len(prompts), device=device), prompt_lengths.clone()
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)  # rows that have not ended
    for step in range(max_new_tokens):
        hidden = model(tokens[:, : lengths.max()])  # (B, T, C)
        logits = model.unembed(hidden[rows, lengths - 1])  # (B, V): at each row's last token
        new = sample_token(logits, temperature, uniforms[step])
        tokens[alive, lengths[alive]] = new[alive]
        lengths = lengths + alive
        alive = alive & (new != eot)
        if not alive.any():
            break
    T = int(lengths.max())
    return tokens[:, :T], lengths, response_mask(prompt_lengths, lengths, T)
