"""Set-up of the loss library's tests: one backend a name, memory full of NaN."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from bfloat16 import install
from comal_kernels import prox
from comal_kernels.engines.triton import tuning

if not torch.cuda.is_available():
    install()  # what the interpreter takes for bfloat16


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that a result which was never written cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_losses() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(prox._ROWS)
    yield
    prox._ROWS.clear()
    prox._ROWS.update(before)


@pytest.fixture
def backend(request, monkeypatch) -> str:
    """The backend of `BACKENDS`, holding raw or softened logits whatever the tables say."""
    name, _, softened = request.param.partition(" ")
    if name == "triton":
        dtypes = {torch.float32, torch.bfloat16} if softened else set()
        monkeypatch.setattr(tuning, "SOFT", dict.fromkeys(tuning.SOFT, dtypes))
        if softened:  # float32 by tensor descriptors, as halves are: what the interpreter can do
            tile = tuning.Tile(64, 64, 16, 8, 3, tma=True)
            for table in tuning.SOFTEN.values():
                monkeypatch.setitem(table, (torch.float32, "wide"), tile)
    return name


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def assert_as_good() -> Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], None]:
    """The error of each result is at most twice that of plain torch, both against float64."""

    def check(ours: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
        for i, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
            assert a.shape == c.shape, (i, a.shape, c.shape)
            if a.numel() == 0:
                continue
            c = c.double()
            error = (a.double() - c).abs().max().item()
            allowed = (b.double() - c).abs().max().item()
            # where plain torch happens to be exact: an ulp or two of the largest entry
            floor = 2 * torch.finfo(a.dtype).eps * c.abs().max().item() + 1e-30
            if a.dtype == torch.float64:
                floor *= 100
            assert error <= 2 * allowed + floor, (i, error, allowed, floor)

    return check
