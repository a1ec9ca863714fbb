"""Mixed precision: layers compute in bfloat16, weights and optimiser stay in float32."""

import warnings

import torch


def has_bf16(device: str | torch.device) -> bool:
    """Whether `device` computes in bfloat16 itself: CUDA imitates it on older GPUs, slowly and
    without convolutions in it."""
    if torch.device(device).type != "cuda":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)


def settled(wanted: bool, device: str | torch.device) -> bool:
    """Whether to train in mixed precision: if it is `wanted` and `device` can. Warns if it cannot."""
    if wanted and not has_bf16(device):
        warnings.warn(f"{device} does not compute in bfloat16: training in float32", stacklevel=3)
        return False
    return wanted


def mixed(device: str | torch.device, bf16: bool) -> torch.autocast:
    """The context in which layers compute in bfloat16, or one that changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
