"""Untrained networks of two layers, a batch with garbage in its padding, prompts: what many tests start from."""

from dataclasses import replace

import torch

from model import GPT, GPTConfig, response_mask

CFG = GPTConfig(2, 2, 16, 64, 300)


def make(kind=GPT, seed=0, spread=1.0, **changes):
    """An untrained model in eval mode; spread > 1 makes its predictions less alike."""
    torch.manual_seed(seed)
    model = kind(replace(CFG, **changes)).eval()
    model.transformer.wte.weight.data *= spread
    return model


def shaken(model, seed=1):
    """The same model with noise on every parameter, so that no bias is 0 and no gain is 1."""
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def batch(seed=2, V=300):
    """Three right-padded rows [prompt, response, padding] with random ids in the padding."""
    torch.manual_seed(seed)
    tokens = torch.randint(V, (3, 9))
    prompt_lengths, lengths = torch.tensor([1, 4, 2]), torch.tensor([9, 6, 3])
    return tokens, prompt_lengths, lengths, response_mask(prompt_lengths, lengths, 9)


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9, 3], [1, 1], [4, 4, 4], [7], [2, 8]]


def uniforms(n, B, seed=5):
    """Random numbers for n tokens of B rows."""
    return torch.rand(n, B, generator=torch.Generator().manual_seed(seed))
