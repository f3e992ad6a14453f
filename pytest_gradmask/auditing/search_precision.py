"""In which precision queries are answered that only guide the search of an attack.

Square and zero-order PGD spend nearly all of their queries on comparing points. A processor with matrix units for
bfloat16 answers these in a fraction of the time. `docs/benchmarks.md` has what this saves, and what it loses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.execution.precision import Precision, guiding, searching_in
from pytest_gradmask.threat import PerturbationSet, ThreatModel

#: So many images are asked in both precisions, and as many random points around them.
_IMAGES = 16
#: The largest difference of logits between both, as a share of the lead of the first class over the second. Medians.
_MOST = 0.05


def search_precision(oracle: Oracle, images: Tensor, *, threat: PerturbationSet, seed: int) -> Precision:
    """``bfloat16`` where that is fast and changes the answers of a deterministic defense little, else ``own``.

    Args:
        oracle: asks the defense. What it counts belongs to no attack.
        images: N x ..., of the audit.
        threat: random points are drawn from it.
        seed: of the random points.
    """
    if not (fast_bfloat16(images.device) and oracle.dtype is torch.float32 and isinstance(threat, ThreatModel)):
        return "own"
    few = images[:_IMAGES]
    points = torch.cat([few, threat.random_start(few, torch.Generator().manual_seed(seed))])
    try:
        with torch.no_grad():
            own = oracle(points)
            with searching_in("bfloat16"), guiding():
                rough = oracle(points)
    except Exception:  # code of the defense may refuse autocast; what raises at other times is reported elsewhere
        return "own"
    first, second = own.topk(2, dim=1).values.unbind(1)
    nearly_same = (rough - own).abs().amax(1).median() <= _MOST * (first - second).median()  # False for NaN
    return "bfloat16" if nearly_same else "own"


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is known to be faster there: on a CPU with matrix units. On GPUs, autocast can be slower."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # PyTorch has no public name for it
    return device.type == "cpu" and supported is not None and bool(supported())
