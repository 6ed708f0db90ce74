"""Each prox operator's step is the minimiser of its loss, and COMAL with it meets the figures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import logsigmoid

from comal_fast.game import (
    OPERATORS,
    PAPER_START,
    Step,
    comal,
    duality_gap,
    inpo,
    is_falling,
    kl_divergence,
    nash_policy,
    paper_game,
    prox_step,
)
from comal_fast.game.families import bradley_terry_game, random_game
from comal_fast.game.operators import bradley_terry_scores
from comal_kernels import prox_loss

EXACT = ("dpo", "dro", "inpo", "ipo", "rebel", "sppo")
GAME = paper_game()


class Problem:
    """One inner step of a random game: the Step, and its numbers as float64 tensors."""

    def __init__(self, seed: int, n: int = 5) -> None:
        rng = np.random.default_rng(seed)
        matrix = random_game(n, seed).matrix
        last, ref = np.log(rng.dirichlet(np.ones(n), size=2))
        self.eta = rng.uniform(0.3, 1.3)
        self.tau = self.eta * rng.uniform(0.05, 1)
        gain = matrix @ np.exp(last) - 0.5
        self.step = Step(last, ref, gain, matrix - 0.5, self.eta, self.tau)
        self.p, self.last, self.ref = map(torch.tensor, (matrix, last, ref))
        self.weight = self.last.exp()
        self.win = self.p @ self.weight
        self.reward = self.win - self.tau * (self.last - self.ref)
        self.mixture = (1 - self.tau / self.eta) * self.last + self.tau / self.eta * self.ref

    def loss(self, name: str, theta: Tensor) -> Tensor:
        """The population value of the loss, written down from the table of definitions."""
        eta = self.eta
        logp = theta.log_softmax(-1)
        h, delta = logp[:, None] - logp, lambda v: v[:, None] - v
        pairs, labels = self.weight[:, None] * self.weight, 2 * self.p - 1
        if name == "dpo":
            beta, q = eta, delta(self.reward).sigmoid()
            margin = beta * (h - delta(self.last))
            return (pairs * -(q * logsigmoid(margin) + (1 - q) * logsigmoid(-margin))).sum()
        if name == "dpo-raw":
            beta, q = 4 * eta, self.p
            margin = beta * (h - delta(self.mixture))
            return (pairs * -(q * logsigmoid(margin) + (1 - q) * logsigmoid(-margin))).sum()
        if name == "ipo":
            reference = self.mixture.log_softmax(-1)
            return (pairs * (h - delta(reference) - labels / (2 * eta)) ** 2).sum()
        if name == "inpo":
            ratio = self.tau / eta
            anchor = ratio * delta(self.ref) + (1 - ratio) * delta(self.last)
            return (pairs * (h - anchor - labels / (2 * eta)) ** 2).sum()
        if name == "sppo":
            log_z = torch.logsumexp(self.last + (self.reward - 0.5) / eta, 0)
            residual = logp - self.last - (self.reward - 0.5) / eta + log_z
            return (self.weight * residual**2).sum()
        if name == "dro":
            residual = self.reward - eta * (logp - self.last)
            value = (self.weight * residual).sum()  # the V that minimises the loss
            return 0.5 * (self.weight * (residual - value) ** 2).sum()
        assert name == "rebel"
        return (pairs * (eta * (h - delta(self.last)) - delta(self.reward)) ** 2).sum()


def minimiser(loss, n: int) -> np.ndarray:
    """argmin over softmax tables as a policy (n,): a trust region's from the uniform one, polished.

    The last logit is held at 0, as a common shift of all changes nothing.
    """

    def value(free: Tensor) -> Tensor:
        return loss(torch.cat([free, torch.zeros(1, dtype=torch.float64)]))

    def numpy(function):
        return lambda x: function(value)(torch.tensor(x)).numpy()

    gradient, hessian = numpy(torch.func.grad), numpy(torch.func.hessian)
    x = minimize(
        lambda x: value(torch.tensor(x)).item(),
        np.zeros(n - 1),
        jac=gradient,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-8},
    ).x
    for _ in range(4):
        x = x - np.linalg.solve(hessian(x), gradient(x))
    return torch.softmax(torch.tensor([*x, 0.0], dtype=torch.float64), -1).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_step_is_the_minimiser_of_the_loss(name, seed):
    problem = Problem(seed)
    step = np.exp(prox_step(name, problem.step))
    found = minimiser(lambda theta: problem.loss(name, theta), 5)
    np.testing.assert_allclose(step, found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EXACT)
def test_exact_operators_take_the_step_of_inpo(name, seed):
    problem = Problem(seed, n=7)
    found = minimiser(lambda theta: problem.loss(name, theta), 7)
    np.testing.assert_allclose(found, np.exp(prox_step("inpo", problem.step)), rtol=0, atol=1e-9)
    assert OPERATORS[name].exact


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_gradient_of_the_training_loss_vanishes_there(name):
    """prox_loss itself, fed what the operator's definition says, is stationary at the step."""
    problem = Problem(11)
    n, eta = 5, problem.eta
    a, b = (~torch.eye(n, dtype=torch.bool)).nonzero().t()
    pairs = {"chosen": a, "rejected": b, "pair_weight": problem.weight[a] * problem.weight[b]}
    single = {"chosen": torch.arange(n), "pair_weight": problem.weight}
    reward, labels = problem.reward, {"preference": problem.p[a, b]}
    arguments = {
        "dpo": {
            **pairs,
            "preference": (reward[a] - reward[b]).sigmoid(),
            "ref_logp": problem.last,
            "beta": eta,
        },
        "dpo-raw": {**pairs, **labels, "ref_logp": problem.mixture, "beta": 4 * eta},
        "ipo": {**pairs, **labels, "ref_logp": problem.mixture, "eta": eta},
        "inpo": {
            **pairs,
            **labels,
            "ref_logp": problem.ref,
            "last_logp": problem.last,
            "eta": eta,
            "tau_eta_ratio": problem.tau / eta,
        },
        "sppo": {
            **single,
            "last_logp": problem.last,
            "preference": problem.win,  # must be a probability: the rest of r goes into log Z(y)
            "eta": eta,
            "log_z": torch.logsumexp(problem.last + (reward - 0.5) / eta, 0)
            + (problem.win - reward) / eta,
        },
        "dro": {
            **single,
            "ref_logp": problem.last,
            "reward": reward,
            "group": torch.zeros(n, dtype=torch.int64),
            "tau": eta,
        },
        "rebel": {**pairs, "last_logp": problem.last, "reward": reward, "eta": eta},
    }[name]
    theta = torch.tensor(prox_step(name, problem.step))[:, None].requires_grad_()
    states, cu = torch.ones(n, 1, dtype=torch.float64), torch.arange(n + 1)
    out = prox_loss(states, theta, cu[:-1], cu, loss=name.removesuffix("-raw"), **arguments)
    gradient = torch.autograd.grad(out.loss, theta)[0]
    elsewhere = torch.func.grad(lambda t: problem.loss(name, t))(
        torch.zeros(n, dtype=torch.float64)
    )
    assert gradient.abs().max() <= 1e-12 * elsewhere.abs().max()


@pytest.mark.parametrize("name", EXACT)
def test_figures_of_the_paper_game(name):
    trajectory = comal(GAME.matrix, PAPER_START, prox=name)
    gap = duality_gap(GAME.matrix, trajectory.policies)
    np.testing.assert_allclose(
        gap[[0, 10, 20, 30, 40]], [0.28, 1.1e-4, 6.7e-8, 4.6e-11, 1.2e-14], rtol=0.06
    )
    kl = kl_divergence(nash_policy(GAME.matrix), trajectory.log_policies)
    assert (np.diff(kl) < 0).all()
    np.testing.assert_allclose(
        trajectory.policies, comal(GAME.matrix, PAPER_START).policies, rtol=0, atol=1e-13
    )


def test_dpo_on_the_oracles_own_labels():
    """Not the prox step, but 0 at the Nash policy: here it converges there too."""
    assert not OPERATORS["dpo-raw"].exact
    trajectory = comal(GAME.matrix, PAPER_START, prox="dpo-raw")
    gap = duality_gap(GAME.matrix, trajectory.policies)
    np.testing.assert_allclose(gap[[20, 40]], [5.6e-8, 1.1e-14], rtol=0.05)
    exact = comal(GAME.matrix, PAPER_START).policies
    assert np.abs(trajectory.policies - exact)[1:4].max() > 1e-3
    assert is_falling(kl_divergence(nash_policy(GAME.matrix), trajectory.log_policies))
    # the regularised game that it solves is another one: τ log π/π_ref = s(π)/4 at its fixed point
    fixed = comal(GAME.matrix, PAPER_START, prox="dpo-raw", outer=1, inner=3000)
    policy, start = fixed.policies[-1], np.array(PAPER_START)
    scores = bradley_terry_scores(GAME.matrix - 0.5, policy, GAME.matrix @ policy - 0.5)
    tilted = start * np.exp(scores / 0.4)
    np.testing.assert_allclose(policy, tilted / tilted.sum(), atol=1e-12)
    regularised_nash = inpo(GAME.matrix, PAPER_START, outer=1, inner=3000).policies[-1]
    assert 5e-4 < np.abs(policy - regularised_nash).max() < 2e-3


def test_dpo_on_the_oracles_own_labels_may_move_away_from_the_nash():
    """The monotone KL is a theorem about the prox step; with another step it fails."""
    matrix, start = [[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]], (0.85, 0.01, 0.14)
    options = {"eta": 1.0, "tau": 0.1, "outer": 10, "inner": 2000}
    nash = nash_policy(matrix)
    kl = {
        name: kl_divergence(nash, comal(matrix, start, prox=name, **options).log_policies)
        for name in ("dpo", "dpo-raw")
    }
    assert is_falling(kl["dpo"])
    assert kl["dpo-raw"].max() > kl["dpo-raw"][0] + 0.05


def test_bradley_terry_scores_recover_the_rewards():
    matrix = bradley_terry_game(8, 3).matrix
    reward = np.random.default_rng(3).normal(size=8)
    weights = np.random.default_rng(4).dirichlet(np.ones(8))
    scores = bradley_terry_scores(matrix - 0.5, weights, matrix @ weights - 0.5)
    np.testing.assert_allclose(scores, reward - weights @ reward, atol=1e-11)


def test_no_minimiser_is_said():
    with pytest.raises(ValueError, match=r"dpo-raw: its loss has no minimiser"):
        comal([[0.5, 1.0], [0.0, 0.5]], prox="dpo-raw", outer=1)
    comal([[0.5, 1.0], [0.0, 0.5]], prox="dpo", outer=1)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), seeds, st.sampled_from(EXACT))
def test_comal_never_moves_away_from_the_nash(n, seed, name):
    matrix = random_game(n, seed).matrix
    start = np.random.default_rng(seed).dirichlet(np.ones(n))
    trajectory = comal(matrix, start, prox=name, outer=6)
    assert is_falling(kl_divergence(nash_policy(matrix), trajectory.log_policies))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 8), seeds, st.sampled_from(EXACT))
def test_zeros_of_the_start_stay_zeros(n, seed, name):
    start = np.random.default_rng(seed).dirichlet(np.ones(n))
    start[seed % n] = 0
    start /= start.sum()
    policies = comal(random_game(n, seed).matrix, start, prox=name, outer=2, inner=5).policies
    assert not np.isnan(policies).any() and (policies[:, seed % n] == 0).all()
