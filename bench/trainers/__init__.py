"""The trainers that `bench step` compares, a file each."""

from __future__ import annotations

from dataclasses import dataclass

from bench.trainers import authors, ours, trl
from bench.trainers.base import Mode, Recompute, Train

OURS, TRL, AUTHORS = "comal_fast", "TRL DPOTrainer", "padded loop, full log-softmax"
PLUGGED = "TRL with ProxTrainer"
UNSHARED = "comal_fast, prompts repeated"
BEFORE = "comal_fast, stock layers, everything recomputed"
STOCK = "comal_fast, without Liger's kernels"
RECOMPUTED = "comal_fast, everything recomputed"
APART = "comal_fast, residual and norm apart"
LEAN = "comal_fast, 8-bit AdamW in backward"
KEPT = "comal_fast, 8-bit AdamW in backward, as little recomputed as fits"
LEANEST = "comal_fast, the same, moments on the host, 24 GiB"
LORA = "comal_fast, LoRA of rank 16"


@dataclass(frozen=True)
class Contestant:
    """A trainer with what is tried of it on a GPU.

    Attributes:
        name: As tables show it.
        train: Takes its steps.
        family: Contestants of one family take their turns in one process on a GPU.
        liger: Which settings of Liger's kernels are tried.
        recompute: Which settings of recomputation are tried.
        passes: How many pairs of a pass are tried; empty: all of a step, halved until they fit.
        fuse_residual: As in `Mode`.
        lever: It is a row of `bench levers`, in the order of CONTESTANTS.
        other_norm: Its gradient norm is not comparable with the plain loop's.
        spoils: The model is another one afterwards.
    """

    name: str
    train: Train
    family: str = "ours"
    liger: tuple[bool, ...] = (True,)
    recompute: tuple[Recompute, ...] = ("auto",)
    passes: tuple[int, ...] = ()
    fuse_residual: bool = True
    lever: bool = False
    other_norm: bool = False
    spoils: bool = False

    def modes(self, pairs: int, cuda: bool) -> list[Mode]:
        """Return what is tried: on a CPU, which has no Liger and memory to spare, one mode."""
        if not cuda:
            recompute: Recompute = "all" if self.recompute == ("all",) else "none"
            return [Mode(pairs, recompute, liger=False)]
        sizes = sorted({min(size, pairs) for size in self.passes or (pairs,)})
        return [
            Mode(size, recompute, liger, self.fuse_residual)
            for liger in self.liger
            for recompute in self.recompute
            for size in sizes
        ]


_BOTH: tuple[bool, ...] = (False, True)
_EACH: tuple[Recompute, ...] = ("all", "none")
# what `--peers` calls them, in the order of their turns: those without Liger's kernels come first,
# since a model that has them keeps them
CONTESTANTS: dict[str, Contestant] = {
    "before": Contestant(BEFORE, ours.train, liger=(False,), recompute=("all",), lever=True),
    "stock": Contestant(STOCK, ours.train, liger=(False,)),
    "recomputed": Contestant(RECOMPUTED, ours.train, recompute=("all",), lever=True),
    "apart": Contestant(APART, ours.train, fuse_residual=False, lever=True),
    "comal": Contestant(OURS, ours.train, lever=True),
    "unshared": Contestant(UNSHARED, ours.train_unshared),
    "lean": Contestant(LEAN, ours.train_lean, recompute=("all",), lever=True),
    "kept": Contestant(KEPT, ours.train_lean, lever=True),
    "leanest": Contestant(LEANEST, ours.train_leanest, recompute=("all",)),
    "lora": Contestant(LORA, ours.train_lora, other_norm=True, spoils=True),
    "trl": Contestant(TRL, trl.train, "trl", _BOTH, _EACH, (4, 8, 16)),
    "plug-in": Contestant(PLUGGED, trl.train_prox, "trl", _BOTH, _EACH, (4, 8, 16)),
    "authors": Contestant(AUTHORS, authors.train, "authors", (False,), _EACH, (1, 2)),
}
