"""Each prox loss, minimised over a table of probabilities, gives the closed form of its paper.

The table is a head: one-token responses, hidden state 1, weight (n, 1) = the logits θ, so that
logp of response i is log softmax(θ)ᵢ and prox_loss itself is what is minimised.
"""

import pytest
import torch
from torch import Tensor

from comal_kernels import prox_loss

DOUBLE = torch.float64


class Game:
    """A random preference P (n, n), policies π_ref, π_t, and numbers η, τ."""

    def __init__(self, seed: int, n: int = 5) -> None:
        g = torch.Generator().manual_seed(seed)
        upper = torch.rand(n, n, generator=g, dtype=DOUBLE).triu(1)
        self.n, self.p = n, upper + (1 - upper).triu(1).t() + 0.5 * torch.eye(n, dtype=DOUBLE)
        self.ref, self.last = torch.randn(2, n, generator=g, dtype=DOUBLE).log_softmax(-1)
        self.reward = torch.randn(n, generator=g, dtype=DOUBLE)
        self.eta = 0.3 + torch.rand((), generator=g).item()
        self.tau = self.eta * torch.rand((), generator=g).item()
        self.win = self.p @ self.last.exp()  # P(y ≻ π_t), the sampling policy π_t
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        self.pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        weight = self.last.exp()[self.pairs].prod(1)
        self.weight = weight / weight.sum()

    def arguments(self, loss: str) -> dict[str, object]:
        n, (a, b) = self.n, self.pairs.t()
        pair = {"chosen": a, "rejected": b, "pair_weight": self.weight}
        labelled = {**pair, "preference": self.p[a, b]}
        single = {"chosen": torch.arange(n), "pair_weight": self.last.exp()}
        log_z = torch.logsumexp(self.last + (self.win - 0.5) / self.eta, 0).item()
        return {
            # the pair (a, b) is preferred as Bradley and Terry have it
            "dpo": {
                **pair,
                "preference": (self.reward[a] - self.reward[b]).sigmoid(),
                "ref_logp": self.ref,
                "beta": self.eta,
            },
            "ipo": {**labelled, "ref_logp": self.ref, "eta": self.eta},
            "inpo": {
                **labelled,
                "ref_logp": self.ref,
                "last_logp": self.last,
                "eta": self.eta,
                "tau_eta_ratio": self.tau / self.eta,
            },
            "sppo": {
                **single,
                "last_logp": self.last,
                "preference": self.win,
                "eta": self.eta,
                "log_z": log_z,
            },
            "dro": {
                **single,
                "ref_logp": self.ref,
                "reward": self.reward,
                "group": torch.zeros(n, dtype=torch.int64),
                "tau": self.eta,
            },
            "rebel": {**pair, "last_logp": self.last, "reward": self.reward, "eta": self.eta},
        }[loss]

    def closed_form(self, loss: str) -> Tensor:
        mix = self.tau / self.eta
        logits = {
            "dpo": self.ref + self.reward / self.eta,
            "ipo": self.ref + self.win / self.eta,
            "inpo": mix * self.ref + (1 - mix) * self.last + self.win / self.eta,
            "sppo": self.last + self.win / self.eta,
            "dro": self.ref + self.reward / self.eta,
            "rebel": self.last + self.reward / self.eta,
        }[loss]
        return logits.softmax(-1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loss", ["dpo", "ipo", "inpo", "sppo", "dro", "rebel"])
def test_minimiser_is_the_closed_form(loss, seed) -> None:
    game = Game(seed)
    theta = torch.zeros(game.n, 1, dtype=DOUBLE, requires_grad=True)
    states = torch.ones(game.n, 1, dtype=DOUBLE)
    args = game.arguments(loss)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = prox_loss(
            states,
            theta,
            torch.arange(game.n),
            torch.arange(game.n + 1),
            loss=loss,
            **args,
        )
        out.loss.backward()
        return out.loss

    optimizer.step(closure)
    found = theta.detach()[:, 0].softmax(-1)
    assert (found - game.closed_form(loss)).abs().max() <= 1e-6


def test_hard_labels_average_to_soft_ones() -> None:
    """Square losses: labels drawn from P̂ have the soft label's gradient in expectation."""
    game = Game(7)
    a, b = game.pairs.t()
    p = game.p[a, b]
    states = torch.ones(game.n, 1, dtype=DOUBLE)
    theta = torch.randn(game.n, 1, dtype=DOUBLE, requires_grad=True)

    def gradient(**pairs: Tensor) -> Tensor:
        cu = torch.arange(game.n + 1)
        out = prox_loss(states, theta, cu[:-1], cu, loss="ipo", ref_logp=game.ref, eta=0.5, **pairs)
        return torch.autograd.grad(out.loss, theta)[0]

    soft = gradient(chosen=a, rejected=b, pair_weight=game.weight, preference=p)
    hard = gradient(chosen=a, rejected=b, pair_weight=game.weight * p)
    hard = hard + gradient(chosen=b, rejected=a, pair_weight=game.weight * (1 - p))
    torch.testing.assert_close(soft, hard)
