"""Every check of an argument, before any work; a ValueError says which, what, what instead.

Shapes, dtypes and numbers are checked before the custom ops, where torch.compile traces; what needs
the values of an index tensor, in `*_values`, inside them, where the plan needs the values anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from comal_kernels.execution import BACKENDS, Execution
from comal_kernels.head import Head
from comal_kernels.prox import PROX
from comal_kernels.row import Prox
from comal_kernels.transfer import Ints, to_host

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX = (torch.int64, torch.int32)


def refuse(argument: str, wrong: str, right: str) -> None:
    raise ValueError(f"{argument}: {wrong}; expected {right}")


def tensor(name: str, x: object, shape: tuple[int | None, ...], right: str) -> Tensor:
    """x itself, if it is a tensor of that shape (None: any extent)."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: got {type(x).__name__}; expected a tensor {right}")
    good = x.dim() == len(shape)
    # `in` would not do: torch.compile compares symbolic sizes with != alone
    if not good or any(s is not None and s != n for s, n in zip(shape, x.shape, strict=True)):
        refuse(name, f"shape {tuple(x.shape)}", right)
    return x


def number(name: str, x: object, *, positive: bool = True) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not -math.inf < x < math.inf:
        raise ValueError(f"{name}: got {x!r}; expected a finite number")
    if positive and x <= 0:
        refuse(name, f"{x} is not positive", "a number above 0")
    return float(x)


def head(hidden: Tensor, head: Head, prefix: str = "") -> None:
    """hidden (T, H), weight (V, H) and bias (V,) fit, in one dtype on one device; the cap and the
    factors are above 0. Messages put the prefix before the tensors' names.
    """
    h, w, b = f"{prefix}hidden", f"{prefix}weight", f"{prefix}bias"
    weight, bias = head.weight, head.bias
    tensor(h, hidden, (None, None), "(T, H)")
    tensor(w, weight, (None, hidden.shape[1]), f"(V, H) with H = {hidden.shape[1]} as in {h}")
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        refuse(w, f"shape {tuple(weight.shape)} is empty", "V ≥ 1 and H ≥ 1")
    if hidden.dtype not in FLOATS:
        refuse(h, f"dtype {hidden.dtype}", "float32, bfloat16, float16 or float64")
    others = [(w, weight)]
    if bias is not None:
        others.append((b, tensor(b, bias, (weight.shape[0],), f"(V,) = ({weight.shape[0]},)")))
    for name, x in others:
        if x.dtype != hidden.dtype:
            refuse(name, f"dtype {x.dtype}", f"{hidden.dtype} as {h} has")
        if x.device != hidden.device:
            refuse(name, f"on {x.device}", f"{hidden.device} as {h} is")
    if head.softcap is not None:
        number("softcap", head.softcap)
    number("logit_scale", head.logit_scale)
    number("temperature", head.temperature)


def execution(x: Execution) -> None:
    """The backend is known, the workspace positive, the filter a probability."""
    if x.backend not in BACKENDS:
        raise ValueError(f"backend: {x.backend!r} is unknown; known are {', '.join(BACKENDS)}")
    room = x.workspace
    if room is not None and (isinstance(room, bool) or not isinstance(room, int) or room <= 0):
        refuse("workspace", f"got {room!r}", "a positive number of bytes, or None")
    if x.grad_filter is not None and not 0 < number("grad_filter", x.grad_filter) < 1:
        refuse("grad_filter", f"{x.grad_filter}", "a probability in (0, 1), or None")


def loss_scale(x: float | None, dtype: torch.dtype, pairs: int, weighted: bool) -> float:
    """Return the scale that is asked for, a power of two.

    None: 1, but in float16, where the mean over the pairs makes gradients underflow, the power of
    two next below their number, unless they have weights of their own.
    """
    if x is None:
        mean = dtype == torch.float16 and not weighted
        return float(2 ** (max(1, pairs).bit_length() - 1)) if mean else 1.0
    if math.frexp(number("loss_scale", x))[0] != 0.5:
        refuse("loss_scale", f"{x}", "a power of two, so that no gradient is rounded by it")
    return float(x)


def flag(name: str, x: object) -> None:
    if not isinstance(x, bool):
        refuse(name, f"got {x!r}", "True or False")


def targets(target: Tensor, length: int, ignore_index: int) -> None:  # (T,)
    tensor("target", target, (length,), f"(T,) = ({length},), one per row of hidden")
    if target.dtype != torch.int64:
        refuse("target", f"dtype {target.dtype}", "int64")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        refuse("ignore_index", f"got {ignore_index!r}", "an int")


def rows(hidden: Tensor, target: Tensor, cu_seqlens: Tensor | None, reduction: str | None) -> None:
    """hidden (…, H) has target's leading shape; what is summed over has ends."""
    for name, x in (("hidden", hidden), ("target", target)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: got {type(x).__name__}; expected a tensor")
    if hidden.dim() < 2:
        refuse("hidden", f"shape {tuple(hidden.shape)}", "(T, H), or (B, L, H)")
    if hidden.dim() > 2 and target.shape != hidden.shape[:-1]:
        shape = tuple(hidden.shape[:-1])
        refuse("target", f"shape {tuple(target.shape)}", f"{shape}, one for each row of hidden")
    if cu_seqlens is not None and hidden.dim() > 2:
        refuse("cu_seqlens", f"given with hidden {tuple(hidden.shape)}", "packed hidden (T, H)")
    if reduction not in (None, "none", "sum", "mean"):
        refuse("reduction", f"{reduction!r}", "'none', 'sum', 'mean', or None")
    if reduction in ("sum", "mean") and cu_seqlens is None and hidden.dim() == 2:
        refuse("reduction", f"{reduction!r} of hidden (T, H)", "cu_seqlens, or hidden (B, L, H)")


def outputs(names: object, known: Sequence[str], k: object, reduced: bool) -> None:
    """Known names; what can't be reduced isn't."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        refuse("outputs", f"got {names!r}", f"a sequence of {', '.join(known)}, or None")
    assert isinstance(names, Sequence)
    for name in names:
        if name not in known:
            refuse("outputs", f"{name!r} is unknown", f"some of {', '.join(known)}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        refuse("k", f"got {k!r}", "an int of at least 1")
    if reduced and "topk" in names:
        refuse("outputs", "topk has no sum over a sequence", "reduction='none'")


def target_values(target: Tensor, vocab: int, ignore_index: int) -> Ints:  # (T,)
    host = to_host(target)
    bad = np.flatnonzero((host != ignore_index) & ((host < 0) | (host >= vocab)))
    if len(bad):
        refuse(
            "target",
            f"{host[bad[0]]} at position {bad[0]}",
            f"0 … {vocab - 1} (the rows of weight), or ignore_index = {ignore_index}",
        )
    return host


def sequence_bounds(cu_seqlens: Tensor) -> int:  # (S + 1,) → S
    tensor("cu_seqlens", cu_seqlens, (None,), "(S + 1,)")
    if cu_seqlens.dtype not in INDEX:
        refuse("cu_seqlens", f"dtype {cu_seqlens.dtype}", "int32 or int64")
    if cu_seqlens.shape[0] == 0:
        refuse("cu_seqlens", "empty", "a first element 0")
    return cu_seqlens.shape[0] - 1


def bound_values(cu_seqlens: Tensor, length: int) -> Ints:  # (S + 1,)
    host = to_host(cu_seqlens)
    if host[0] != 0:
        refuse("cu_seqlens", f"starts {host[:1].tolist()}", "a first element 0")
    if host[-1] != length:
        refuse("cu_seqlens", f"ends at {host[-1]}", f"T = {length}, the rows of hidden")
    if (np.diff(host) < 0).any():
        at = int(np.flatnonzero(np.diff(host) < 0)[0])
        refuse("cu_seqlens", f"falls from {host[at]} to {host[at + 1]}", "non-decreasing bounds")
    return host


def pairs(prox: Prox, chosen: Tensor, rejected: Tensor | None) -> None:  # (P,), (P,)
    count = _indices("chosen", chosen, None)
    if prox.pairwise and rejected is None:
        refuse("rejected", f"None, but {prox.name} compares pairs", "(P,) indices of sequences")
    if rejected is not None:
        if not prox.pairwise:
            refuse("rejected", f"given, but {prox.name} is a per-response loss", "None")
        _indices("rejected", rejected, count)


def _indices(name: str, x: Tensor, length: int | None) -> int:  # (P,) → P
    tensor(name, x, (length,), "(P,)" if length is None else f"(P,) = ({length},) as chosen has")
    if x.dtype not in INDEX:
        refuse(name, f"dtype {x.dtype}", "int64")
    if x.shape[0] == 0:
        refuse(name, "no pairs", "at least one index")
    return x.shape[0]


def pair_values(
    chosen: Tensor, rejected: Tensor | None, count: int
) -> tuple[Ints, Ints | None]:  # (P,), (P,)
    first = _index_values("chosen", chosen, count)
    if rejected is None:
        return first, None
    second = _index_values("rejected", rejected, count)
    same = np.flatnonzero(first == second)
    if len(same):
        refuse("rejected", f"pair {same[0]} has sequence {first[same[0]]} twice", "two responses")
    return first, second


def _index_values(name: str, x: Tensor, count: int) -> Ints:  # (P,)
    host = to_host(x)
    bad = np.flatnonzero((host < 0) | (host >= count))
    if len(bad):
        refuse(name, f"{host[bad[0]]} at position {bad[0]}", f"0 … {count - 1} (sequences)")
    return host


def loss_row(name: object) -> Prox:
    if not isinstance(name, str) or name not in PROX:
        raise ValueError(f"loss: {name!r} is unknown; known are {', '.join(PROX)}")
    return PROX[name]


def given(prox: Prox, **terms: tuple[str, bool]) -> None:
    """Each term (argument names, whether given) is there if needed, and absent if unused."""
    for term, (names, there) in terms.items():
        if term in prox.uses and not there:
            refuse(names, f"missing, but {prox.name} needs it", "a value for it")
        if there and term not in prox.uses and term not in prox.optional:
            refuse(names, f"given, but {prox.name} does not use it", "None")


def stands_for_reward(prox: Prox, reward_margin: Tensor | None) -> bool:  # (P,)
    """Return whether the margins take the place of the rewards that the loss needs."""
    return reward_margin is not None and {"reward", "reward_margin"} <= {*prox.uses, *prox.optional}


def one_target(*, reward_margin: Tensor | None, **others: Tensor | None) -> None:
    """Refuse a second target beside the margins (P,) of the pairs."""
    for name, x in others.items():
        if reward_margin is not None and x is not None:
            refuse("reward_margin", f"given, and {name} too", "one of them")


def reference(
    hidden: Tensor,  # (T, H)
    policy: Head,
    ref_logp: Tensor | None,  # (S,)
    ref_hidden: Tensor | None,  # (T, H')
    ref_weight: Tensor | None,  # (V, H')
    ref_bias: Tensor | None,  # (V,)
) -> bool:
    """Whether the reference is live: ref_hidden and its head fit the policy's, without ref_logp."""
    if ref_hidden is None or ref_weight is None:
        for name, x in (("ref_hidden", ref_hidden), ("ref_weight", ref_weight)):
            if x is not None:
                refuse(name, "given alone", "ref_hidden and ref_weight together")
        if ref_bias is not None:
            refuse("ref_bias", "given without ref_hidden", "None")
        return False
    if ref_logp is not None:
        refuse("ref_logp", "given, and ref_hidden too", "one of them")
    head(ref_hidden, policy.over(ref_weight, ref_bias), prefix="ref_")
    both = (("ref_hidden", ref_hidden, hidden), ("ref_weight", ref_weight, policy.weight))
    for name, tensor_, like in both:
        if tensor_.shape[0] != like.shape[0]:
            refuse(name, f"{tensor_.shape[0]} rows", f"{like.shape[0]} as {name[4:]} has")
    if ref_hidden.device != hidden.device:
        refuse("ref_hidden", f"on {ref_hidden.device}", f"{hidden.device} as hidden is")
    if (ref_bias is None) != (policy.bias is None):
        refuse("ref_bias", "only one of bias and ref_bias is given", "both or none")
    return True


def groups(
    prox: Prox, group: Tensor | None, hyper: Mapping[str, object], seq_count: int
) -> None:  # (S,)
    """group is given where, and only where, the loss's baseline has to be solved from it."""
    solved = prox.centred is not None and hyper[prox.centred] is None
    if group is None:
        if solved:
            refuse("group", f"missing, and {prox.centred} is None", f"group or {prox.centred}")
        return
    if not solved:
        why = f"{prox.centred} is given" if prox.centred else f"{prox.name} has no baseline"
        refuse("group", f"given, but {why}", "None")
    tensor("group", group, (seq_count,), f"(S,) = ({seq_count},)")
    if group.dtype not in INDEX:
        refuse("group", f"dtype {group.dtype}", "int64 or int32")


def cached(seq_count: int, **values: Tensor | None) -> dict[str, Tensor | None]:
    """The values by name, detached; each has one number per sequence (S,), or is None."""
    what = "one number per sequence"
    return {k: None if x is None else floats(k, x, seq_count, what) for k, x in values.items()}


def per_pair(pair_count: int, **values: Tensor | None) -> dict[str, Tensor | None]:
    """The same with one number per pair or listed response (P,)."""
    what = "one number per entry of chosen"
    return {k: None if x is None else floats(k, x, pair_count, what) for k, x in values.items()}


def preference_values(preference: Tensor | None) -> None:  # (P,)
    # on a GPU a look would wait
    if preference is None or preference.is_cuda:
        return
    if bool(((preference < 0) | (preference > 1)).any()):
        refuse("preference", "a value outside [0, 1]", "probabilities")


def floats(name: str, x: object, length: int, what: str) -> Tensor:  # (length,)
    result = tensor(name, x, (length,), f"({length},), {what}")
    if not result.dtype.is_floating_point:
        refuse(name, f"dtype {result.dtype}", "a floating dtype")
    return result.detach()


def hyperparameters(
    prox: Prox, values: Mapping[str, object], pair_count: int, seq_count: int
) -> dict[str, float | Tensor | None]:
    """Every hyperparameter of the loss by name, in its range: as given, or else the default."""
    for name in values:
        if name not in prox.hyper:
            known = ", ".join(prox.hyper) or "none"
            raise ValueError(f"{name}: unknown to {prox.name}, whose hyperparameters are: {known}")
    result: dict[str, float | Tensor | None] = {}
    for name, rule in prox.hyper.items():
        value = values.get(name, rule.default)
        if name not in values and rule.required:
            refuse(name, f"missing, but {prox.name} needs it", "a number")
        if value is None and rule.default is None:
            result[name] = None
        elif isinstance(value, Tensor) and rule.per is not None:
            length = pair_count if rule.per == "response" else seq_count
            if value.requires_grad:
                refuse(name, "requires grad, which it would never get", "a detached tensor")
            result[name] = floats(name, value, length, f"one per {rule.per}")
        else:
            x = number(name, value, positive=False)
            if not (rule.low <= x <= rule.high) or (rule.open_low and x == rule.low):
                bracket = "(" if rule.open_low else "["
                refuse(name, f"{x}", f"a number in {bracket}{rule.low:g}, {rule.high:g}]")
            result[name] = x
    return result
