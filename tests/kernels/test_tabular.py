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
    found = minimise(game, {**game.arguments(loss), "loss": loss})
    assert (found - game.closed_form(loss)).abs().max() <= 1e-6


def minimise(game: Game, arguments: dict[str, object]) -> Tensor:
    """Return the policy (n,) of least loss over softmax tables, by L-BFGS."""
    theta = torch.zeros(game.n, 1, dtype=DOUBLE, requires_grad=True)
    states, index = torch.ones(game.n, 1, dtype=DOUBLE), torch.arange(game.n + 1)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = prox_loss(states, theta, index[:-1], index, **arguments).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return theta.detach()[:, 0].softmax(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["ipo", "inpo", "rebel"])
def test_win_rates_as_targets_do_not_depend_on_the_pairs(loss, seed) -> None:
    """A few pairs that connect the responses, weighted at random, have the minimiser of them all.

    The pair's own label has it under the law π_t × π_t alone, as rewards per response and as
    margins per pair alike.
    """
    game = Game(seed + 20)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.arange(1, game.n)
    rejected = torch.tensor([int(torch.randint(0, i, (), generator=g)) for i in range(1, game.n)])
    pairs = {
        "chosen": chosen,
        "rejected": rejected,
        "pair_weight": torch.rand(game.n - 1, generator=g, dtype=DOUBLE) + 0.1,
    }
    kept = {"ref_logp", "last_logp", "eta", "tau_eta_ratio"}
    cached = {k: v for k, v in game.arguments(loss).items() if k in kept} | {"loss": loss}
    targets = {"reward_margin": game.win[chosen] - game.win[rejected]}
    targets |= {"reward": game.win} if loss == "rebel" else {}
    game.reward = game.win
    wanted = game.closed_form(loss)
    for name, value in targets.items():
        found = minimise(game, {**cached, **pairs, name: value})
        assert (found - wanted).abs().max() <= 1e-6, name
    if loss != "rebel":
        labels = {"preference": game.p[chosen, rejected]}
        assert (minimise(game, {**cached, **pairs, **labels}) - wanted).abs().max() > 1e-3


def test_a_pair_has_one_target() -> None:
    game = Game(1)
    states, index = torch.ones(game.n, 1, dtype=DOUBLE), torch.arange(game.n + 1)
    head = (states, states, index[:-1], index)
    a, b = game.pairs.t()
    margin = game.win[a] - game.win[b]
    inpo, rebel, sppo = (
        game.arguments(loss) | {"loss": loss} for loss in ("inpo", "rebel", "sppo")
    )
    with pytest.raises(ValueError, match="reward_margin: given, and preference too"):
        prox_loss(*head, **inpo, reward_margin=margin)
    with pytest.raises(ValueError, match="reward_margin: given, and reward too"):
        prox_loss(*head, **rebel, reward_margin=margin)
    with pytest.raises(ValueError, match="reward_margin: given, but sppo does not use it"):
        prox_loss(*head, **sppo, reward_margin=margin[: game.n])
    with pytest.raises(ValueError, match=r"reward_margin: shape"):
        prox_loss(*head, **{**rebel, "reward": None}, reward_margin=margin[1:])


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
