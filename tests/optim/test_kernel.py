"""The optimiser's Triton kernel, interpreted: codes, updates, rounding and norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from bfloat16 import install
from comal_fast.optim import AdamW, BackwardStepper, adamw, slices
from comal_fast.optim.adamw_kernel import (
    BLOCK,
    adamw_kernel,
    decode,
    encode,
    round_stochastically,
    update_slice,
)
from comal_fast.optim.moments import Dense, EightBit, _code

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROUP = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and isinstance(adamw_kernel, triton.JITFunction),
        reason="the kernel was loaded before TRITON_INTERPRET=1",
    ),
    # numpy's, where a block's scale is 0 or denormal: the kernel takes neither quotient
    pytest.mark.filterwarnings("ignore:(divide by zero|overflow):RuntimeWarning"),
]
if DEVICE.type == "cpu":
    install()  # what the interpreter takes for bfloat16


@triton.jit
def decode_all(codes, out, SIGNED: tl.constexpr):
    at = tl.program_id(0) * 256 + tl.arange(0, 256)
    tl.store(out + at, decode(tl.load(codes + at), SIGNED))


@triton.jit
def encode_all(x, out, SIGNED: tl.constexpr):
    at = tl.program_id(0) * 256 + tl.arange(0, 256)
    tl.store(out + at, encode(tl.load(x + at), SIGNED))


def decoded(codes: Tensor, signed: bool) -> Tensor:
    out = torch.empty(codes.numel(), device=DEVICE)
    decode_all[(codes.numel() // 256,)](codes.to(DEVICE), out, signed)
    return out.cpu()


def encoded(x: Tensor, signed: bool) -> Tensor:
    out = torch.empty(x.numel(), dtype=torch.uint8, device=DEVICE)
    encode_all[(x.numel() // 256,)](x.to(DEVICE), out, signed)
    return out.cpu()


def library_map(signed: bool) -> Tensor:
    """(256,) float64 values of bitsandbytes' codes, the smallest positive one halved for zero."""
    pytest.importorskip("bitsandbytes")
    return _code(torch.device("cpu"), signed).double()


def spread(count: int, signed: bool, seed: int) -> Tensor:
    """(count,) numbers of all sizes that a code can hold, and the extremes."""
    generator = torch.Generator().manual_seed(seed)
    x = 10 ** (-9 * torch.rand(count, generator=generator))
    x[: count // 2] = torch.rand(count // 2, generator=generator)
    x[:3] = torch.tensor([0.0, 1.0, 1e-30])
    if signed:
        x *= torch.rand(count, generator=generator).sub(0.5).sign()
    return x


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_bitsandbytes(signed: bool) -> None:
    known, codes = library_map(signed), torch.arange(256, dtype=torch.uint8)
    values = decoded(codes, signed)
    assert ((values - known).abs() <= 3e-7 * known.abs()).all()
    assert torch.equal(encoded(known.float(), signed), codes)
    assert torch.equal(encoded(values, signed), codes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("signed", [True, False])
def test_a_number_gets_the_nearest_code(signed: bool, seed: int) -> None:
    """Unless it is so near to a midpoint that float32 does not tell."""
    known, x = library_map(signed), spread(1 << 15, signed, seed)
    chosen = known[encoded(x, signed).long()]
    nearest = (x.double()[:, None] - known).abs().amin(1)
    loss = (x - chosen).abs() - nearest
    assert (loss <= 1e-4 * nearest + 1e-9).all()
    assert (loss > 0).float().mean() < 1e-3


def start(count: int, dtype: torch.dtype, coded: bool, seed: int = 0) -> dict[str, Tensor]:
    """Weights and moments of a parameter before its first step."""
    weights = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    parameter = torch.nn.Parameter(weights)
    moments = EightBit() if coded else Dense(torch.float32)
    return {"weights": weights, **moments.zeros(parameter)}


def gradient_of(count: int, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count,) of sizes that differ a thousandfold within a block."""
    generator = torch.Generator().manual_seed(1000 + step)
    size = torch.rand(count, generator=generator) ** 4
    return (size * torch.randn(count, generator=generator)).to(DEVICE, dtype)


def update(held: dict[str, Tensor], gradient: Tensor, step: int, **options: Any) -> None:
    state = {name: x for name, x in held.items() if name != "weights"}
    update_slice(held["weights"], gradient, state, step=step, group=GROUP, **options)


class Reference:
    """AdamW in float64 with the nearest of the library's codes, or with exact moments."""

    def __init__(self, weights: Tensor, coded: bool) -> None:
        self.weights, self.coded = weights.double().cpu(), coded
        self.moments = [torch.zeros_like(self.weights) for _ in range(2)]
        self.codes = [torch.zeros(0)] * 2

    def update(self, gradient: Tensor, step: int, dtype: torch.dtype = torch.float64) -> None:
        g, (beta1, beta2), rate = gradient.double().cpu(), GROUP["betas"], GROUP["lr"]
        m = beta1 * self.moments[0] + (1 - beta1) * g
        v = beta2 * self.moments[1] + (1 - beta2) * g * g
        denominator = (v / (1 - beta2**step)).sqrt() + GROUP["eps"]
        kept = self.weights * (1 - rate * GROUP["weight_decay"])
        self.weights = (kept - rate * m / (1 - beta1**step) / denominator).to(dtype).double()
        self.moments = [m, v]
        if self.coded:
            for i, (moment, signed) in enumerate(((m, True), (v, False))):
                known = library_map(signed)
                blocks = moment.view(-1, BLOCK)
                scale = blocks.abs().amax(1, keepdim=True)
                midpoints = (known[1:] + known[:-1]) / 2
                self.codes[i] = torch.searchsorted(midpoints, blocks / scale).view(-1)
                self.moments[i] = (known[self.codes[i]].view(-1, BLOCK) * scale).view(-1)


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fifty_steps_rounded_to_nearest(dtype: torch.dtype, coded: bool) -> None:
    """Against float64; the weights of both are rounded to `dtype` in every step.

    Measured, float32 weights: at most 1e-5 of a learning rate apart with float32 moments. With
    codes up to 0.03, where a number at a midpoint went to the other code.
    """
    count = 8 * BLOCK
    held = start(count, dtype, coded)
    reference = Reference(held["weights"], coded)
    for step in range(1, 51):
        gradient = gradient_of(count, step, dtype)
        update(held, gradient, step)
        reference.update(gradient, step, dtype)
    apart = (held["weights"].double().cpu() - reference.weights).abs() / GROUP["lr"]
    if dtype is torch.bfloat16:  # a unit in the last place, where float64 rounds the other way
        assert (apart > 0).float().mean() < 0.02
    else:
        assert apart.max() < (0.3 if coded else 1e-3)
    assert apart.mean() < 2e-3
    if coded:
        for codes, name in zip(reference.codes, ("exp_avg", "exp_avg_sq"), strict=True):
            away = (held[name].cpu().long() - codes).abs()
            assert away.max() <= 1 and (away > 0).float().mean() < 5e-3, name


@pytest.mark.parametrize(("coded", "seed"), [(True, 0), (True, 1), (False, 2)])
def test_fifty_steps_rounded_stochastically(coded: bool, seed: int) -> None:
    """Weights in bfloat16 are on average those that float64 has without any rounding."""
    count = 16 * BLOCK
    held = start(count, torch.bfloat16, coded, seed)
    begin = held["weights"].double().cpu()
    reference = Reference(held["weights"], coded)
    for step in range(1, 51):
        gradient = gradient_of(count, step)
        update(held, gradient, step, seed=1000 * seed + step)
        reference.update(gradient, step)
    error = held["weights"].double().cpu() - reference.weights
    assert error.std() > 1e-3  # there was something to round
    assert error.mean().abs() < 5 * error.std() / math.sqrt(count)
    moved = reference.weights - begin
    slope = (moved * error).mean() / moved.square().mean()  # nor is an update lost in part
    assert slope.abs() < 5 * error.std() / (moved.std() * math.sqrt(count))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_number_is_rounded_up_as_often_as_its_place_says(share: float) -> None:
    count = 64 * BLOCK
    held = start(count, torch.bfloat16, coded=False)
    held["weights"].fill_(1.0)
    group = GROUP | {"weight_decay": -share * 2**-7 / GROUP["lr"]}  # 1 + share of a unit
    state = {name: x for name, x in held.items() if name != "weights"}
    zero = torch.zeros(count, device=DEVICE)
    update_slice(held["weights"], zero, state, step=1, group=group, seed=5)
    values = held["weights"].double().cpu()
    assert set(values.unique().tolist()) <= {1.0, 1 + 2**-7}
    up = (values > 1).double().mean().item()
    assert abs(up - share) <= 5 * math.sqrt(share * (1 - share) / count) + 2**-15
    eighths = (values > 1).double().view(-1, 8).mean(0)  # each word's halves are used alike
    assert (eighths - share).abs().max() <= 5 * math.sqrt(
        share * (1 - share) / (count / 8)
    ) + 2**-15


@triton.jit
def round_all(x, out, seed):
    counter = tl.program_id(0) * 32 + tl.arange(0, 32)[None, :].to(tl.int64)
    at = tl.program_id(0) * 256 + tl.arange(0, 256)[None, :]
    tl.store(out + at, round_stochastically(tl.load(x + at), seed, counter))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -0x1, 0x7F800000, -0x800000])
def test_what_is_no_number_stays_so(bits: int) -> None:
    """NaNs, a GPU's own of all ones too, and both infinities."""
    x = torch.full((1024,), bits, dtype=torch.int32, device=DEVICE).view(torch.float32)
    out = torch.zeros(1024, dtype=torch.bfloat16, device=DEVICE)
    round_all[(4,)](x, out, 3)
    if x[0].isnan():
        assert out.isnan().all()
    else:
        assert torch.equal(out.float(), x)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # 0 / 0 of a block of zeros
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_that_of_bitsandbytes_triton_kernel(seed: int) -> None:
    """From states that training left. Measured: no code differs.

    Its code for CPUs makes the same update, but its codes are up to seven away from the nearest
    where a number is below 2e-5 of the largest of its block.
    """
    kernels = pytest.importorskip("bitsandbytes.backends.triton.kernels_optim")
    count = 32 * BLOCK
    maps = [_code(DEVICE, signed) for signed in (True, False)]
    ours = start(count, torch.float32, True, seed)
    for step in range(1, 6):
        gradient = gradient_of(count, 100 * seed + step)
        theirs, third = ({name: x.clone() for name, x in ours.items()} for _ in range(2))
        update(ours, gradient, step)
        kernels.optimizer_update_8bit_blockwise_impl(
            "adam", gradient, theirs["weights"], theirs["exp_avg"], theirs["exp_avg_sq"],
            *GROUP["betas"], 0.0, 0.0, GROUP["eps"], step, GROUP["lr"], *maps,
            theirs["exp_avg_scale"], theirs["exp_avg_sq_scale"], GROUP["weight_decay"],
        )  # fmt: skip
        assert torch.allclose(ours["weights"], theirs["weights"], rtol=1e-6, atol=1e-7)
        for name in ("exp_avg", "exp_avg_sq"):
            scales = ours[f"{name}_scale"], theirs[f"{name}_scale"]
            assert torch.allclose(*scales, rtol=1e-6)
            away = (ours[name].long() - theirs[name].long()).abs()
            assert away.max() <= 1 and (away > 0).float().mean() < 1e-3, name
        if DEVICE.type == "cpu":
            EightBit().update(third["weights"], gradient, third, step, GROUP)
            assert torch.allclose(ours["weights"], third["weights"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1, 7, 255, 257, 1000, 4097])
def test_odd_sizes(count: int) -> None:
    """Moments in float32: what lies behind the last element is left alone."""
    held = start(count, torch.bfloat16, coded=False)
    padded = {name: torch.cat([x, x.new_full((300,), 7)]) for name, x in held.items()}
    views = {name: x[:count] for name, x in padded.items()}
    squares = torch.full((-(-count // BLOCK) + 9,), 7.0, device=DEVICE)
    reference = Reference(held["weights"], coded=False)
    gradient = gradient_of(count, 1)
    update(views, gradient, 1, squares=squares[:-9])
    reference.update(gradient, 1, torch.bfloat16)
    assert (views["weights"].double().cpu() - reference.weights).abs().max() <= 2**-8
    assert all((x[count:] == 7).all() for x in padded.values()) and (squares[-9:] == 7).all()
    assert squares[:-9].sum().item() == pytest.approx(gradient.double().square().sum().item())


def test_a_block_of_zeros_and_a_denormal_one() -> None:
    held = start(2 * BLOCK, torch.float32, coded=True)
    before = held["weights"].clone()
    gradient = torch.zeros(2 * BLOCK, device=DEVICE)
    gradient[BLOCK:] = 1e-38
    for step in (1, 2, 3):
        update(held, gradient, step)
    assert all(x.isfinite().all() for x in held.values())
    keep = 1 - GROUP["lr"] * GROUP["weight_decay"]
    assert torch.allclose(held["weights"], before * keep**3)


@pytest.mark.parametrize("coded", [True, False])
def test_slices_give_the_same_bits(coded: bool) -> None:
    """As do shards, which begin elsewhere in the parameter."""
    count = 24 * BLOCK
    whole, sliced = (start(count, torch.bfloat16, coded) for _ in range(2))
    for step in (1, 2):
        gradient = gradient_of(count, step)
        squares = torch.zeros(2, 24, device=DEVICE)
        update(whole, gradient, step, seed=step, squares=squares[0])
        for first, end in ((0, 5), (5, 6), (6, 24)):
            part = {
                name: x[first * x.numel() // 24 : end * x.numel() // 24]
                for name, x in sliced.items()
            }
            update(
                part, gradient[first * BLOCK : end * BLOCK], step, seed=step, first=first * BLOCK,
                squares=squares[1, first:end],
            )  # fmt: skip
        assert torch.equal(squares[0], squares[1])
    for name, x in whole.items():
        assert torch.equal(x, sliced[name]), name
    other = start(count, torch.bfloat16, coded)
    update(other, gradient_of(count, 1), 1, seed=1, first=8)
    again = start(count, torch.bfloat16, coded)
    update(again, gradient_of(count, 1), 1, seed=1)
    assert not torch.equal(other["weights"], again["weights"])  # other random numbers


@pytest.mark.parametrize("divisor", [1.0, 3.7])
def test_a_gradient_is_divided_first(divisor: float) -> None:
    count = 4 * BLOCK
    ours, theirs = (start(count, torch.float32, False) for _ in range(2))
    gradient = gradient_of(count, 1)
    squares = torch.zeros(4, device=DEVICE)
    given = torch.tensor(divisor, device=DEVICE)
    update(ours, gradient, 1, divisor=given, squares=squares)
    update(theirs, gradient * (1 / given), 1)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    norm = squares.sum().sqrt().item()  # before that
    assert norm == pytest.approx(gradient.double().norm().item(), rel=1e-6)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser takes the kernel on a CPU too, and slices of moments in host memory."""

    def wanted(parameter: Tensor, moments: Any, rounded: bool) -> bool:
        mixed = moments.working_dtype(parameter) is not parameter.dtype
        return isinstance(moments, EightBit) or rounded or mixed

    monkeypatch.setattr(adamw, "runs_kernel", wanted)
    monkeypatch.setattr(slices, "SLICE", 2048)


def optimizer(seed: int, **options: Any) -> AdamW:
    """Of a matrix in codes and of a vector that is too small for them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (20, 256), (300,)
    weights = [torch.randn(s, generator=generator).to(DEVICE, torch.bfloat16) for s in shapes]
    parameters = [torch.nn.Parameter(w) for w in weights]
    return AdamW(parameters, lr=1e-2, weight_decay=0.01, stochastic_rounding=True, **options)


def run(inner: AdamW, begin: int, end: int) -> list[float]:
    """Steps inside the backward pass; the norms."""
    stepper, norms = BackwardStepper(inner), []
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(step)
        stepper.arm(1e-2, seed=step, last=True)
        for p in stepper.parameters:
            g = torch.randn(p.shape, generator=generator).to(p)
            (p * g).sum().backward()
        norms.append(stepper.step())
    return norms


def parameters(inner: AdamW) -> list[Tensor]:
    return [p.detach() for group in inner.param_groups for p in group["params"]]


@pytest.mark.parametrize("state", ["8bit", "float32"])
def test_moments_in_host_memory_and_a_resumed_state_give_the_same_bits(
    everywhere: None, state: Any
) -> None:
    calm, away = optimizer(0, state=state), optimizer(0, state=state, offload=True)
    assert len(calm._by_kernel) == 2
    norms = run(calm, 0, 4)
    assert run(away, 0, 2) == norms[:2]
    resumed = optimizer(1, state=state)
    for mine, theirs in zip(parameters(resumed), parameters(away), strict=True):
        mine.copy_(theirs)
    resumed.load_state_dict(away.state_dict())
    assert run(resumed, 2, 4) == norms[2:]
    assert run(away, 2, 4) == norms[2:]
    for a, b, c in zip(*map(parameters, (calm, away, resumed)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("state", ["8bit", "float32"])
def test_the_norm_of_bfloat16_gradients(everywhere: None, state: Any) -> None:
    inner = optimizer(0, state=state)
    (norm,) = run(inner, 0, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(p.shape, generator=generator).to(p) for p in parameters(inner)]
    exact = math.sqrt(sum(g.double().square().sum().item() for g in drawn))
    assert norm == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("shape", [(10, 16), (3, 8), (64,), (2, 4, 8)])
def test_a_shard_begins_where_torch_puts_it(shape: tuple[int, ...]) -> None:
    """Ranks that have rows, of one process that stands for each of four in turn."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.testing._internal.distributed.fake_pg import FakeStore

    firsts = []
    for rank in range(4):
        dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", (4,))
            place = [Shard(0)]
            local, offset = compute_local_shape_and_global_offset(shape, mesh, place)
            sharded = DTensor.from_local(
                torch.zeros(local), mesh, place, shape=shape, stride=torch.zeros(shape).stride()
            )
            if sharded.to_local().numel():
                firsts.append(slices.first_element(sharded))
                assert firsts[-1] == offset[0] * math.prod(shape[1:])
        finally:
            dist.destroy_process_group()
    assert firsts[0] == 0 and len(firsts) > 1
    assert slices.first_element(torch.zeros(shape)) == 0
