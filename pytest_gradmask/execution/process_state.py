"""The state of the process on which the answers of any defense may depend."""

from __future__ import annotations

import decimal
import locale
from functools import partial
from types import FunctionType

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_gradmask.execution.packages import is_installed_file
from pytest_gradmask.execution.surroundings import NAMESPACES, readable


def process_state() -> tuple[object, ...]:
    """Values to hash: defaults and flags of PyTorch and NumPy, autocast, modes, and hooks of all modules."""
    hooks = vars(torch.nn.modules.module)
    cudnn = torch.backends.cudnn
    devices = ("cpu", "cuda")
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.get_deterministic_debug_mode(),
        readable(torch.get_float32_matmul_precision),
        *(readable(partial(getattr, cudnn, name)) for name in ("enabled", "deterministic", "allow_tf32")),
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices],
        [list(hooks[name].values()) for name in sorted(hooks) if name.startswith("_global") and name.endswith("hooks")],
        [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())],
        [type(mode) for mode in _get_current_dispatch_mode_stack()],
        torch.tensor(1e-40).mul(1).item() == 0,  # whether denormal numbers are flushed to zero
        _replaced(),
        [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "math", "mem_efficient")],
        (decimal.getcontext().prec, decimal.getcontext().rounding),
        locale.setlocale(locale.LC_ALL),
        sorted(np.geterr().items()),
    )


def _replaced() -> list[object]:
    """Functions of PyTorch that code which is not installed has replaced."""
    return [
        (name, value)
        for namespace in NAMESPACES
        for name, value in vars(namespace).items()
        if isinstance(value, FunctionType) and not is_installed_file(value.__code__.co_filename)
    ]
