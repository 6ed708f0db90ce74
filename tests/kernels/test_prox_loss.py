"""prox_loss is as close to the float64 reference as plain torch is: losses, options, shapes."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from backends import BACKENDS
from comal_kernels import PROX, Hyper, Prox, linear_logprob, prox_loss, register
from comal_kernels.engines import torch as torch_engine
from comal_kernels.linear_logprob.reference import reference_logprob
from comal_kernels.prox_loss.reference import reference_prox, reference_prox_loss

# lengths: one-token responses (1), an empty one (0), one longer than the 16 rows of a chunk (23)
LENGTHS = [5, 1, 7, 0, 23, 4, 1, 6, 3, 2]
WIDTH, VOCAB = 19, 83  # divide by nothing
ROWS = 16  # of a chunk
# response 2 stands in 7 pairs, which makes one component longer than a chunk; 0–1 and 5–6 are apart
CHOSEN = torch.tensor([0, 2, 2, 2, 4, 2, 8, 2, 5])
REJECTED = torch.tensor([1, 3, 4, 7, 2, 8, 2, 3, 6])  # 9 is in no pair
LISTED = torch.tensor([0, 1, 2, 4, 3, 7, 9])
GROUP = torch.tensor([3, 3, 5, 5, 5, 0, 0, 9, 0, 9])
COUNT = len(LENGTHS)

HYPER: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "ipo": {"eta": 0.2},
    "inpo": {"eta": 0.2, "tau_eta_ratio": 0.3},
    "sppo": {"eta": 0.3},
    "dro": {"tau": 0.4},
    "rebel": {"eta": 0.7},
}


def problem(loss: str, dtype: torch.dtype, device: torch.device, bias: bool = False):
    """Leaves, positional index arguments and keyword arguments of one loss."""
    g = torch.Generator().manual_seed(3)
    total = sum(LENGTHS)
    hidden = torch.randn(total, WIDTH, generator=g).to(device, dtype).requires_grad_()
    weight = (torch.randn(VOCAB, WIDTH, generator=g) / 3).to(device, dtype).requires_grad_()
    leaves = [hidden, weight]
    if bias:
        leaves.append(torch.randn(VOCAB, generator=g).to(device, dtype).requires_grad_())
    target = torch.randint(0, VOCAB, (total,), generator=g)
    target[::6] = -100
    cu = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    row, s = PROX[loss], torch.tensor(LENGTHS)
    kw: dict[str, object] = {"loss": loss, "chosen": CHOSEN if row.pairwise else LISTED}
    kw |= HYPER[loss]
    p = len(CHOSEN) if row.pairwise else len(LISTED)
    if row.pairwise:
        kw["rejected"] = REJECTED
    if "ref" in row.uses:
        kw["ref_logp"] = -4.4 * s + torch.randn(COUNT, generator=g)
    if "last" in row.uses:
        kw["last_logp"] = -4.4 * s + torch.randn(COUNT, generator=g)
    if "reward" in row.uses:
        kw["reward"] = torch.randn(COUNT, generator=g)
    if "preference" in row.uses + row.optional:
        kw["preference"] = torch.rand(p, generator=g)
    if loss == "dro":
        kw["group"] = GROUP
    if loss == "sppo":
        kw["log_z"] = torch.rand(p, generator=g)
    kw["pair_weight"] = torch.rand(p, generator=g)
    return leaves, (target, cu), kw


def outcome(function, leaves, index, factor: float = 1.0, **kw) -> list[Tensor]:
    if function is prox_loss and leaves[0].dtype == torch.float16:
        kw = {"loss_scale": 1.0, **kw}
    named = {"bias": leaves[2]} if len(leaves) == 3 else {}
    out = function(*leaves[:2], *index, **named, **kw)
    loss = out if isinstance(out, Tensor) else out.loss
    return [loss.detach(), *torch.autograd.grad(loss * factor, leaves)]


def everywhere(kw: dict, device: torch.device) -> dict:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kw.items()}


def compare(leaves, index, kw, assert_as_good, **run) -> None:
    """run: options of the chunked path alone (backend, workspace); loss and gradients of each."""
    dtype, device = leaves[0].dtype, leaves[0].device
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    there = tuple(x.to(device) for x in index)
    ours = outcome(prox_loss, leaves, index, factor=1.7, **kw, **run)
    same = everywhere(kw, device)
    plain = outcome(reference_prox_loss, leaves, there, factor=1.7, dtype=compute, **same)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = outcome(reference_prox_loss, wide, there, factor=1.7, **same)
    assert [x.dtype for x in ours] == [compute] + [dtype] * len(leaves)
    assert_as_good(ours, plain, exact)


@pytest.mark.parametrize("loss", list(HYPER))
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_as_good_as_plain_torch(backend, dtype, loss, device, assert_as_good) -> None:
    leaves, index, kw = problem(loss, dtype, device)
    item = 8 if dtype == torch.float64 else 4
    workspace = ROWS * VOCAB * item
    compare(leaves, index, kw, assert_as_good, backend=backend, workspace=workspace)


@pytest.mark.parametrize("loss", ["ipo", "inpo", "rebel"])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_margins_in_place_of_labels(backend, dtype, loss, device, assert_as_good) -> None:
    """The pairs span several chunks, so that each chunk takes its own margins."""
    leaves, index, kw = problem(loss, dtype, device)
    kw.pop("preference", None)
    kw.pop("reward", None)
    generator = torch.Generator().manual_seed(5)
    kw["reward_margin"] = torch.randn(len(CHOSEN), generator=generator)
    workspace = ROWS * VOCAB * (8 if dtype == torch.float64 else 4)
    compare(leaves, index, kw, assert_as_good, backend=backend, workspace=workspace)


OPTIONS: dict[str, dict[str, float]] = {
    "bias": {},
    "softcap": {"softcap": 2.0},
    "all": {"softcap": 3.0, "logit_scale": 0.7, "temperature": 1.3},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_head_options(backend, dtype, options, device, assert_as_good) -> None:
    if backend == "triton" and options != "all" and device.type == "cpu":
        pytest.skip("interpreted: covered by all, and by linear_logprob's tests")
    leaves, index, kw = problem("inpo", dtype, device, bias=options != "softcap")
    item = 8 if dtype == torch.float64 else 4
    kw |= OPTIONS[options]
    workspace = ROWS * VOCAB * item
    compare(leaves, index, kw, assert_as_good, backend=backend, workspace=workspace)


@pytest.mark.parametrize(
    ("backend", "dtype"), [b for b in BACKENDS if "16" not in str(b[1])], indirect=["backend"]
)
def test_tokens_of_vanishing_probability(backend, dtype, device, assert_as_good) -> None:
    """exp(−logp) overflows in some rows and not in others."""
    leaves, index, kw = problem("dpo", dtype, device)
    leaves[0] = (20 * leaves[0]).detach().requires_grad_()
    logp = linear_logprob(*leaves, index[0]).detach()
    assert logp.min() < -90 and (logp > -50).any()
    kw["ref_logp"] = 20 * kw["ref_logp"]
    compare(leaves, index, kw, assert_as_good, backend=backend)


@pytest.mark.parametrize("rows", [1, 2, 7, 40, 10_000])
@pytest.mark.parametrize("loss", ["dpo", "dro"])
def test_any_workspace(rows, loss, device, assert_as_good) -> None:
    """From one row at a time to everything at once: the same result."""
    leaves, index, kw = problem(loss, torch.float32, device)
    workspace = rows * VOCAB * 4
    compare(leaves, index, kw, assert_as_good, backend="torch", workspace=workspace)


@pytest.mark.parametrize("loss", list(HYPER))
def test_gradcheck(loss) -> None:
    leaves, index, kw = problem(loss, torch.float64, torch.device("cpu"), bias=True)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = prox_loss(
            hidden, weight, *index, bias=bias, softcap=4.0, workspace=ROWS * VOCAB * 8, **kw
        )
        return 3.0 * out.loss

    # dro: a constant in the gradient, the baseline moves in the finite difference; they agree, for
    # it sits at its minimum
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_outputs(backend, device) -> None:
    (hidden, weight), (target, cu), kw = problem("dpo", torch.float32, device)
    del kw["pair_weight"]
    args = {"backend": backend, "workspace": ROWS * VOCAB * 4}
    out = prox_loss(hidden, weight, target, cu, **kw, **args)
    logp = reference_logprob(
        hidden.detach(), weight.detach(), target.to(device), cu_seqlens=cu
    ).float()
    torch.testing.assert_close(out.logp, logp)  # also of sequences in no pair
    ref = kw["ref_logp"].to(device)
    assert torch.equal(out.ref_logp, ref)
    shift = logp - ref
    margin = 0.3 * (shift[CHOSEN] - shift[REJECTED])
    torch.testing.assert_close(out.margin, margin)
    torch.testing.assert_close(out.accuracy, (margin > 0).float().mean())
    torch.testing.assert_close(out.per_pair_loss.mean(), out.loss.detach())
    others = (out.logp, out.ref_logp, out.margin, out.accuracy, out.per_pair_loss)
    assert out.loss.requires_grad and not any(x.requires_grad for x in others)


@pytest.mark.parametrize(("loss", "anchor"), [("inpo", "mix"), ("rebel", "last"), ("ipo", "ref")])
def test_margin_is_measured_from_the_anchor(loss, anchor, device) -> None:
    leaves, index, kw = problem(loss, torch.float64, device)
    out = prox_loss(*leaves, *index, **kw)
    ref, last = (kw[k].double() if k in kw else 0 for k in ("ref_logp", "last_logp"))
    base = {"mix": 0.3 * ref + 0.7 * last, "last": last, "ref": ref}[anchor]
    shift = out.logp - base.to(device)
    torch.testing.assert_close(out.margin, shift[CHOSEN] - shift[REJECTED], check_dtype=False)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("bias", [False, True])
def test_live_reference_equals_a_cached_one(backend, bias, device) -> None:
    leaves, index, kw = problem("inpo", torch.float32, device, bias=bias)
    hidden, weight = torch.randn(sum(LENGTHS), 5), torch.randn(VOCAB, 5)  # a narrower model
    hidden, weight = hidden.to(device), weight.to(device)
    head = {"softcap": 5.0, "temperature": 0.8}
    extra = {"bias": leaves[2]} if bias else {}
    ref_extra = {"bias": torch.randn(VOCAB).to(device)} if bias else {}
    cached = linear_logprob(hidden, weight, index[0], cu_seqlens=index[1], **head, **ref_extra)
    kw["ref_logp"] = cached
    run = {**head, **extra, "backend": backend}
    want = prox_loss(*leaves[:2], *index, **kw, **run)
    del kw["ref_logp"]
    live = {"ref_hidden": hidden, "ref_weight": weight}
    if bias:
        live["ref_bias"] = ref_extra["bias"]
    got = prox_loss(*leaves[:2], *index, **kw, **run, **live)
    torch.testing.assert_close(got.ref_logp, cached)
    torch.testing.assert_close(got.loss, want.loss)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("average_log_prob", [False, True])
@pytest.mark.parametrize("rows", [1, 6, 1000])
def test_live_reference_that_shares_the_head(backend, average_log_prob, rows, device) -> None:
    """An adapter's base model: same head, other states; in chunks of a few rows."""
    leaves, index, kw = problem("dpo", torch.float32, device)
    hidden, weight = torch.randn_like(leaves[0]), leaves[1]
    run = {"average_log_prob": average_log_prob, "workspace": 4 * VOCAB * rows, "backend": backend}
    kw["ref_logp"] = linear_logprob(hidden, weight.detach(), index[0], cu_seqlens=index[1])
    want, *want_grads = outcome(prox_loss, leaves, index, **kw, **run)
    kw["ref_logp"] = None
    got, *grads = outcome(
        prox_loss, leaves, index, **kw, **run, ref_hidden=hidden, ref_weight=weight
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, want_grads)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_all_tokens_ignored(backend, device) -> None:
    leaves, (target, cu), kw = problem("ipo", torch.float32, device)
    target = torch.full_like(target, -100)
    loss, *grads = outcome(prox_loss, leaves, (target, cu), backend=backend, **kw)
    assert loss.isfinite() and not any(g.any() for g in grads)


def test_one_token_in_all(device, assert_as_good) -> None:
    """T = 1: one response has it, the other is empty."""
    leaves, _, kw = problem("dpo", torch.float32, device)
    leaves[0] = leaves[0].detach()[:1].requires_grad_()
    kw |= {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    kw |= {"ref_logp": torch.zeros(2), "preference": None, "pair_weight": None}
    compare(leaves, (torch.tensor([4]), torch.tensor([0, 1, 1])), kw, assert_as_good)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_frozen_inputs_cost_nothing(backend, device, monkeypatch) -> None:
    (hidden, weight), index, kw = problem("ipo", torch.float32, device)
    run = {**kw, "backend": backend, "workspace": ROWS * VOCAB * 4}
    want = outcome(prox_loss, [hidden, weight], index, **run)
    head = prox_loss(hidden, weight.detach(), *index, **run).loss
    states = prox_loss(hidden.detach(), weight, *index, **run).loss
    assert torch.equal(torch.autograd.grad(head, hidden)[0], want[1])
    assert torch.equal(torch.autograd.grad(states, weight)[0], want[2])

    def refuse(*args: object) -> None:
        raise AssertionError("gradient work without a need")

    from comal_kernels.engines.torch import TorchEngine
    from comal_kernels.engines.triton.engine import TritonEngine

    for engine in (TorchEngine, TritonEngine):
        monkeypatch.setattr(engine, "backward", refuse)
    with torch.no_grad():
        out = prox_loss(hidden, weight, *index, **run)
    torch.testing.assert_close(out.loss, want[0])
    assert not out.loss.requires_grad
    assert not prox_loss(hidden.detach(), weight.detach(), *index, **run).loss.requires_grad


def test_backward_twice_and_any_factor(device) -> None:
    leaves, index, kw = problem("ipo", torch.float32, device)
    loss = prox_loss(*leaves, *index, **kw).loss
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    scaled = torch.autograd.grad(-2.5 * loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, retain_graph=True)
    for a, b, c in zip(first, again, scaled, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, -2.5 * a)
    loss.backward(retain_graph=True)
    for x in leaves:
        x.grad.zero_()  # as optimizers do: must not reach what the graph still holds
    loss.backward()
    for x, a in zip(leaves, first, strict=True):
        torch.testing.assert_close(x.grad, a)


@pytest.mark.parametrize("factor", [1.0, -2.5])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [b for b in BACKENDS if b[0] == "triton" and b[1] is not torch.float16],
    ids=str,
    indirect=["backend"],
)
def test_the_last_backward_pass_makes_no_second_gradient(backend, dtype, factor, device) -> None:
    """It scales the weight's gradient where it lies; a graph that is kept keeps its own."""
    leaves, index, kw = problem("ipo", dtype, device)
    loss = prox_loss(*leaves, *index, **kw, backend=backend).loss
    upstream = torch.full_like(loss, factor)
    first = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, upstream, retain_graph=True)
    with Made(leaves[1].shape) as made:
        last = torch.autograd.grad(loss, leaves, upstream)
    for a, b, c in zip(first, again, last, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    assert made.places <= {last[1].data_ptr()}


class Made(TorchDispatchMode):
    """Notes where tensors of a shape lie that operators return."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.places = shape, set()  # type: tuple[torch.Size, set[int]]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape == self.shape:
            self.places.add(result.data_ptr())
        return result


def test_accumulated_micro_batches_equal_one(device) -> None:
    """pair_weight makes the parts of a batch add up: gradients, not only losses."""
    leaves, index, kw = problem("dpo", torch.float64, device)
    want = outcome(prox_loss, leaves, index, **kw)
    parts = []
    for at in (slice(0, 4), slice(4, None)):
        names = ("chosen", "rejected", "preference", "pair_weight")
        part = {**kw, **{name: kw[name][at] for name in names}}
        parts.append(outcome(prox_loss, leaves, index, **part))
    for a, b, c in zip(want, *parts, strict=True):
        torch.testing.assert_close(a, b + c)


@pytest.mark.parametrize("loss", ["inpo", "dpo", "dro", "sppo"])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_average_log_prob(backend, dtype, loss, device, assert_as_good) -> None:
    leaves, index, kw = problem(loss, dtype, device)
    kw["average_log_prob"] = True
    compare(leaves, index, kw, assert_as_good, backend=backend, workspace=ROWS * VOCAB * 8)
    with torch.no_grad():
        sums = prox_loss(*leaves, *index, **kw, backend=backend).logp
    want = linear_logprob(*leaves, index[0], cu_seqlens=index[1], backend=backend)
    torch.testing.assert_close(sums, want.detach())


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_a_loss_scale_changes_no_gradient_but_small_float16_ones(backend, dtype, device) -> None:
    """Pairs of likely words, whose gradients of about 1e-8 float16 can't hold unscaled."""
    pairs, scale = 128, 2.0**14
    g = torch.Generator().manual_seed(7)
    hidden = torch.randn(2 * pairs, WIDTH, generator=g).to(device, dtype).requires_grad_()
    weight = (torch.randn(VOCAB, WIDTH, generator=g) * 0.3).to(device, dtype).requires_grad_()
    index = torch.randint(0, VOCAB, (2 * pairs,), generator=g), torch.arange(2 * pairs + 1)
    kw = {"loss": "dpo", "chosen": torch.arange(0, 2 * pairs, 2), "beta": 0.1}
    kw |= {"rejected": torch.arange(1, 2 * pairs, 2), "ref_logp": torch.full((2 * pairs,), -4.4)}
    # the margin is so large that the loss's slope is about 1e-5
    kw["ref_logp"][1::2] += 110.0
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    there = tuple(x.to(device) for x in index)
    exact = outcome(reference_prox_loss, wide, there, factor=scale, **everywhere(kw, device))
    run = {**kw, "backend": backend, "factor": scale}
    scaled = outcome(prox_loss, [hidden, weight], index, loss_scale=scale, **run)
    plain = outcome(prox_loss, [hidden, weight], index, **run)
    slack = 16 * torch.finfo(dtype).eps + 1e-5
    for a, b in zip(scaled[1:], exact[1:], strict=True):
        assert (a - b).abs().max() <= slack * b.abs().max()
    left = outcome(prox_loss, [hidden, weight], index, loss_scale=None, **run)
    off, off_left = (
        (found[1] - exact[1]).abs().max() / exact[1].abs().max() for found in (plain, left)
    )
    assert off > 0.2 if dtype is torch.float16 else off <= slack
    # left to itself it undoes the mean, and no more
    assert off_left < off / 2 if dtype is torch.float16 else off_left <= slack


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "logit_scale": 0.7}])
@pytest.mark.parametrize("dtype", [d for b, d in BACKENDS if b == "torch"], ids=str)
def test_grad_filter_is_off_by_less_than_it_says(dtype, options, monkeypatch) -> None:
    backend, device = "torch", torch.device("cpu")
    monkeypatch.setattr(torch_engine, "CAST_BYTES", 30 * WIDTH * 4)  # the head in three parts
    leaves, index, kw = problem("ipo", dtype, device, bias=True)
    leaves = [(3 * x).detach().requires_grad_() for x in leaves]  # sharp enough
    run = {**kw, **options, "backend": backend, "workspace": ROWS * VOCAB * 8}
    exact = outcome(prox_loss, leaves, index, **run)
    nearly = outcome(prox_loss, leaves, index, grad_filter=1e-30, **run)
    coarse = outcome(prox_loss, leaves, index, grad_filter=0.05, **run)
    slack = 64 * torch.finfo(dtype).eps
    for a, b in zip(exact, nearly, strict=True):
        assert (a - b).abs().max() <= slack * (1 + a.abs().max())
    assert torch.equal(coarse[0], exact[0])
    assert not torch.equal(coarse[1], exact[1]) and not torch.equal(coarse[2], exact[2])
    hidden, weight = (x.detach().double() for x in leaves[:2])
    bias = leaves[2].detach().double()
    logp = reference_logprob(
        hidden, weight, index[0].to(device), bias=bias, cu_seqlens=index[1], **options
    ).requires_grad_()
    same = everywhere(kw, device)
    (coef,) = torch.autograd.grad(reference_prox(logp, **same), logp)
    most = 0.05 * coef.abs().max() * options.get("logit_scale", 1.0)
    bounds = most * weight.abs().sum(0), most * hidden.abs().sum(0)
    for a, b, bound in zip(exact[1:3], coarse[1:3], bounds, strict=True):
        assert ((a - b).double().abs() <= 1.01 * bound + slack * (1 + a.abs().max())).all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_same_bits_every_time(backend, device) -> None:
    leaves, index, kw = problem("inpo", torch.float32, device)
    run = {**kw, "backend": backend, "workspace": ROWS * VOCAB * 4}
    first, second = (outcome(prox_loss, leaves, index, **run) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_user_s_own_loss(backend, device, assert_as_good) -> None:
    """A hinge on the margin, registered in a few lines, runs on every backend."""
    register(
        Prox(
            "hinge",
            phi=lambda u, c: (c["width"] - u).clamp(min=0),
            dphi=lambda u, c: -(u < c["width"]).to(u.dtype),
            anchor=lambda c: c["ref"],
            uses=("ref",),
            hyper={"width": Hyper(1.0, low=0.0)},
        )
    )
    leaves, index, kw = problem("ipo", torch.float32, device)
    for name in ("eta", "preference"):
        del kw[name]
    kw |= {"loss": "hinge", "width": 3.0}
    compare(leaves, index, kw, assert_as_good, backend=backend)


def test_autocast_changes_nothing(device) -> None:
    leaves, index, kw = problem("ipo", torch.float32, device)
    want = outcome(prox_loss, leaves, index, **kw)
    with torch.autocast(device.type, torch.bfloat16):
        got = outcome(prox_loss, leaves, index, **kw)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
