"""What Triton would compile for packs of varying length: launches are noted, none is made.

variants_driver.py OUT.json    by kernel and its constants: how many specialisations were asked for
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
import cuda_standin

cuda_standin.load()

import torch  # noqa: E402

LENGTHS = 50
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "cap": {"softcap": 5.0},
    "raw": {"dtype": torch.float16},  # logits that are held as they are
}


def note_launches() -> dict[str, set[str]]:
    """From here a launch only says what its kernel is specialised for."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime import jit

    backend = make_backend(GPUTarget("cuda", 90, 32))
    seen: dict[str, set[str]] = defaultdict(set)
    binders: dict[Any, Any] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if self not in binders:
            made = jit.create_function_from_signature(self.signature, self.params, backend)
            binders[self] = made
        _, specialised, options = binders[self](*args, **kwargs)
        constant = [p.is_constexpr for p in self.params]
        pairs = list(zip(specialised, constant, strict=True))
        fixed = [str(x if known else x[0]) for x, known in pairs]  # constants and dtypes
        varying = [str(x[1]) for x, known in pairs if not known]
        name = f"{self.__name__} {' '.join(fixed)} {sorted(options.items())}"
        seen[name].add(" ".join(varying))

    jit.JITFunction.run = run
    return seen


def step(rng: random.Random, weight: Any, head: dict[str, Any]) -> None:
    """A prox loss with its gradients, and log-probs without, over responses of random lengths."""
    from comal_kernels import linear_logprob, prox_loss

    lengths = [rng.randint(1, 300) for _ in range(2 * rng.randint(1, 4))]
    cu = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    states = torch.randn(sum(lengths), weight.shape[1], dtype=weight.dtype).to("cuda")
    states.requires_grad_()
    target = torch.randint(0, weight.shape[0], (sum(lengths),))
    pairs = torch.arange(len(lengths)).view(2, -1)
    zero = torch.zeros(len(lengths), device="cuda")
    output = prox_loss(
        states, weight, target, cu, loss="inpo", chosen=pairs[0], rejected=pairs[1],
        ref_logp=zero, last_logp=zero, eta=0.1, tau_eta_ratio=0.3, loss_scale=1.0,
        backend="triton", **head,
    )  # fmt: skip
    output.loss.backward()
    with torch.no_grad():
        linear_logprob(states, weight, target, cu_seqlens=cu, backend="triton", **head)
    found = linear_logprob(
        states, weight, target, backend="triton", outputs=("logp", "entropy", "topk"), k=4, **head
    )
    (found.logp.sum() + found.entropy.sum() + found.topk.sum()).backward()


def main() -> int:
    cuda_standin.start()
    seen = note_launches()
    found: dict[str, dict[str, int]] = {}
    for name, options in HEADS.items():
        rng = random.Random(0)
        torch.manual_seed(0)
        head = dict(options)
        dtype = head.pop("dtype", torch.bfloat16)
        weight = torch.randn(512, 64, dtype=dtype).to("cuda").requires_grad_()
        if head.pop("bias", False):
            head["bias"] = torch.zeros(512, dtype=torch.bfloat16, device="cuda")
        seen.clear()
        for _ in range(LENGTHS):
            step(rng, weight, head)
        found[name] = {kernel: len(variants) for kernel, variants in seen.items()}
    Path(sys.argv[1]).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    os._exit(main())  # threads of the device that is not there outlive the interpreter
