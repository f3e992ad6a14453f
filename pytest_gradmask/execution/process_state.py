"""The state of the process on which the answers of any defense may depend."""

from __future__ import annotations

import numpy as np
import torch


def process_state() -> tuple[object, ...]:
    """Values to hash: defaults and flags of PyTorch and NumPy, autocast, modes, and hooks of all modules."""
    hooks = vars(torch.nn.modules.module)
    cudnn = torch.backends.cudnn
    devices = ("cpu", "cuda")
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        (cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32, torch.backends.mkldnn.enabled),
        torch.backends.mha.get_fastpath_enabled(),
        [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices],
        [list(hooks[name].values()) for name in sorted(hooks) if name.startswith("_global") and name.endswith("hooks")],
        [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())],
        sorted(np.geterr().items()),
    )
