"""Operation-level BPDA: run a defense's own code, and give each operation that hides the gradient a gradient.

A defense runs unchanged, while PyTorch's override protocol (`torch.overrides.TorchFunctionMode`) shows every operation
to `watch.Watch`. Forward values stay the same to the last bit. Only gradients change:

- `tampering`: what cuts the graph, such as ``detach``, ``no_grad`` and hooks, is ignored.
- `functions`: a custom `torch.autograd.Function` is differentiated through its own ``forward``.
- `surrogates`: an operation without a useful gradient, such as ``round``, gets a natural one.
- `choices`: the same for what returns an index, such as ``argmax`` and ``topk``.
- `carriers`: integers cannot have a gradient, so a float beside them carries it.
- `lookups`: what is read or written at such an integer.
- `fills`: constants that cover a tensor wherever a comparison says so.
- `exits`: what leaves PyTorch, for NumPy or Pillow, is linked to what comes back.

`search` finds out which operations hide the gradient, and where they are in the code of the user.
"""
