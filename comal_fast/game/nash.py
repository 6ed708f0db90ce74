"""Exact Nash policy by linear programming, distance measures, and cycles of a preference matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comal_fast.errors import InputError
from comal_fast.game.preference import Array, advantage, check_matrix, default_names

GAP_TOLERANCE = 1e-9  # a policy with a larger duality gap is not handed out as a Nash policy
_SERIES_BELOW = 1e-3  # |d| under which d + e^{-d} - 1 is summed as a series, to keep its digits


def nash_policy(matrix: ArrayLike) -> Array:
    """A Nash policy (n,) float64 of max_π min_π' P(π ≻ π'), with a duality gap ≤ 1e-9.

    The linear program min v, (P − ½)p ≤ v, p in the simplex, is solved by HiGHS (a vertex, where
    the Nash is not unique), then polished on its support to machine precision and verified.
    InputError if the matrix is not a preference matrix, or too ill-conditioned for that gap.
    """
    a = advantage(check_matrix(matrix))
    scale = float(np.abs(a).max())
    if scale == 0.0:  # every policy is Nash; an LP vertex would be an arbitrary one
        return np.full(len(a), 1 / len(a))
    a = a / scale  # the tolerances of the LP solver are absolute
    best, best_gap = None, np.inf
    for method in ("highs-ds", "highs-ipm"):
        vertex = _solve_lp(a, method)
        if vertex is None:
            continue
        for policy in (vertex, *_polished(a, vertex)):
            # a polished policy is exact to rounding: prefer it over an LP solution as good
            if (gap := float((a @ policy).max())) <= best_gap:
                best, best_gap = policy, gap
        if 2 * scale * best_gap <= GAP_TOLERANCE / 10:
            break
    if best is None or 2 * scale * best_gap > GAP_TOLERANCE:
        raise InputError(
            f"matrix: the linear program reached a duality gap of {2 * scale * best_gap:.1e} only, "
            f"{GAP_TOLERANCE:g} is needed; its entries are too ill-conditioned"
        )
    return best


def is_unique(matrix: ArrayLike, nash: ArrayLike, tolerance: float = 1e-9) -> bool:
    """Whether `nash` (n,) is the only Nash policy of `matrix` (n, n).

    True iff no response outside the support ties with the Nash, and P − ½ restricted to the support
    has a kernel of one dimension (Goldman & Tucker's strict complementarity).
    """
    a = advantage(check_matrix(matrix))
    a = a / (np.abs(a).max() or 1.0)
    p = np.asarray(nash, dtype=np.float64)
    support = p > tolerance
    ties = a @ p > -tolerance
    if not np.array_equal(support, ties):
        return False
    rank = np.linalg.matrix_rank(a[np.ix_(support, support)], tol=tolerance)
    return bool(rank == support.sum() - 1)


def duality_gap(matrix: ArrayLike, policy: ArrayLike) -> Array:
    """2·(max_y P(y ≻ π) − ½), shape (...) float64 for policies (..., n); 0 iff π is Nash."""
    a = advantage(check_matrix(matrix))
    p = np.asarray(policy, dtype=np.float64)
    if p.ndim == 0 or p.shape[-1] != len(a):
        raise InputError(f"policy: shape {p.shape}, but the last axis must have {len(a)} entries")
    # P − ½ is antisymmetric, so the maximum is ≥ 0 but for rounding
    gap: Array = np.maximum(2 * np.max(p @ a.T, axis=-1), 0.0)
    return gap


def kl_divergence(target: ArrayLike, log_policy: ArrayLike) -> Array:
    """KL(target ‖ π), shape (...), for target (..., n) and log π (..., n), both normalised.

    From log-probabilities, so nothing underflows; inf where π is 0 and the target is not, never
    NaN. Summed as Σ t(d + e^{-d} − 1), d = log t − log π: every term is ≥ 0, so KL far under 1e-16
    keeps its digits.
    """
    t = np.asarray(target, dtype=np.float64)
    log_q = np.asarray(log_policy, dtype=np.float64)
    if t.ndim == 0 or log_q.ndim == 0 or log_q.shape[-1] != t.shape[-1]:
        raise InputError(
            f"log_policy: shape {log_q.shape} does not end with the {t.shape[-1:]} of target"
        )
    support = t > 0
    # outside the support a term is the mass of π there
    d = np.log(np.where(support, t, 1.0)) - np.where(support, log_q, 0.0)
    small = np.abs(d) < _SERIES_BELOW
    s = np.where(small, d, 0.0)
    series = s * s * (0.5 - s * (1 / 6 - s * (1 / 24 - s / 120)))
    inside = np.where(small, series, d + np.expm1(-np.where(small, 0.0, d)))
    result: Array = np.where(support, t * inside, np.exp(log_q)).sum(axis=-1)
    return result


def is_falling(kl: ArrayLike) -> bool:
    """Whether a curve (T,), such as KL(Nash ‖ π_t), never rises, but for rounding."""
    values = np.asarray(kl, dtype=np.float64)
    return bool((values[1:] <= values[:-1] * (1 + 1e-13) + 1e-15).all())


def has_strict_cycle(matrix: ArrayLike, tolerance: float = 1e-9) -> bool:
    """Whether the strict majority graph (i → j iff P(i beats j) > ½) has a directed cycle.

    `matrix` (k, k), any float dtype. An edge needs ½(P[i,j] − P[j,i]) > tolerance, so rounding in
    P + Pᵀ never makes i and j beat each other. InputError if not square, or NaN.
    """
    return len(_cyclic_core(_majority_edges(matrix, tolerance))) > 0


def strict_cycle(
    matrix: ArrayLike, names: Sequence[str] | None = None, tolerance: float = 1e-9
) -> list[str] | None:
    """A cycle of the strict majority graph as names, each beating the next and the last the first.

    None where there is none. Shapes, edges and errors as in `has_strict_cycle`.
    """
    edges = _majority_edges(matrix, tolerance)
    if names is None:
        names = default_names(len(edges))
    if len(names) != len(edges):
        raise InputError(f"names: {len(names)} names for {len(edges)} responses")
    core = _cyclic_core(edges)
    if len(core) == 0:
        return None
    # every node of the core beats another one of it, so a walk must return to its own path
    walk, node = [], int(core[0])
    while node not in walk:
        walk.append(node)
        node = int(core[edges[node, core].argmax()])
    return [names[i] for i in walk[walk.index(node) :]]


def smith_set(matrix: ArrayLike, tolerance: float = 1e-9) -> list[int]:
    """The smallest set of responses that each beat every response outside of it, in order.

    A tie counts as not beaten. `matrix`, edges and errors as in `has_strict_cycle`.
    """
    reach = ~_majority_edges(matrix, tolerance).T
    while not np.array_equal(further := reach @ reach, reach):  # booleans: paths twice as long
        reach = further
    return [int(i) for i in np.flatnonzero(reach.all(axis=1))]


def _majority_edges(matrix: ArrayLike, tolerance: float) -> NDArray[np.bool_]:
    p = np.asarray(matrix, dtype=np.float64)
    if p.ndim != 2 or p.shape[0] != p.shape[1]:
        raise InputError(f"matrix: shape {p.shape}, but it must be square")
    if np.isnan(p).any():
        raise InputError("matrix: has NaN entries")
    edges: NDArray[np.bool_] = advantage(p) > tolerance
    return edges


def _cyclic_core(edges: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Nodes left after removing, again and again, those without an edge in or an edge out."""
    alive = np.arange(len(edges))
    while len(alive):
        sub = edges[np.ix_(alive, alive)]
        keep = sub.any(axis=0) & sub.any(axis=1)
        if keep.all():
            break
        alive = alive[keep]
    return alive


def _solve_lp(a: Array, method: str) -> Array | None:
    """Policy of the LP, (n,), clipped and normalised; None where the solver gives up."""
    from scipy.optimize import linprog  # slow to import, and only this function needs it

    n = len(a)
    answer = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.hstack([a, -np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method=method,
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if answer.x is None:
        return None
    policy: Array = np.clip(np.asarray(answer.x[:n], dtype=np.float64), 0.0, None)
    normalised: Array = policy / policy.sum()
    return normalised


def _polished(a: Array, policy: Array) -> Iterator[Array]:
    """Candidates that solve A[ties, support] p = 0, Σp = 1 exactly, near the LP's policy."""
    margin = a @ policy
    for threshold in (1e-6, 1e-8, 1e-10, 1e-12):
        support = np.flatnonzero(policy > threshold)
        for ties in (support, np.union1d(support, np.flatnonzero(margin > -threshold))):
            system = np.vstack([a[np.ix_(ties, support)], np.ones(len(support))])
            target = np.append(np.zeros(len(ties)), 1.0)
            p = policy[support]
            for _ in range(3):  # the smallest correction; repeats are iterative refinement
                p = p + np.linalg.lstsq(system, target - system @ p, rcond=1e-12)[0]
            if (p >= 0).all() and (total := p.sum()) > 0:
                candidate = np.zeros_like(policy)
                candidate[support] = p / total
                yield candidate
