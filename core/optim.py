"""The optimizer and its learning rates, as all stages use them."""

import math

import torch

from core.distributed import full_tensor


def adamw(model, learning_rate, weight_decay=0.0):
    """Adam with the paper's β = (0.9, 0.95); ε and weight decay are ours (App. C is silent). Decay only on matrices."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def cosine_to_tenth(step, steps, peak):
    """Learning rate at `step` of `steps`: cosine from `peak` down to a tenth of it, no warm-up (App. C.1, C.2)."""
    progress = min(step / max(steps, 1), 1)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def optimizer_step(optimizer, model, learning_rate, max_grad_norm):
    """Clip the accumulated gradient to `max_grad_norm`, step, clear it. -> the gradient's norm before clipping"""
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return full_tensor(grad_norm).item()
