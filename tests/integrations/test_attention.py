"""The engines behind packed attention, on the CPU, against SDPA's segments.

What runs here: all index tensors and masks, FlexAttention itself (uncompiled, both ways), and the
variable-length engine around a plain kernel. What needs a GPU: flash-attn's and torch's
variable-length kernels, and FlexAttention's compiled one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from comal_kernels.attention import Layout, Options
from comal_kernels.attention.flex import BLOCK, block_mask, compiled, flex
from comal_kernels.attention.layout import Engine
from comal_kernels.attention.sdpa import sdpa
from comal_kernels.attention.varlen import (
    Bounds,
    flash,
    flash_3,
    flash_4,
    is_installed,
    torch_varlen,
    varlen,
)
from comal_kernels.integrations.transformers import attention as interface
from comal_kernels.integrations.transformers import choose_engine
from comal_kernels.packing import PromptResponse, pack
from plain import plain_kernel
from tiny import tiny_config

CPU = torch.device("cpu")


ENGINES: dict[str, Engine] = {
    "varlen": varlen(plain_kernel),
    "flex": flex(torch_flex.flex_attention),
}


def layout_of(groups: list[tuple[int, list[int]]]) -> Layout:
    """Prompts of some length with responses of others."""
    sequences = [
        PromptResponse([number] * prompt, [5] * response)
        for number, (prompt, responses) in enumerate(groups)
        for response in responses
    ]
    return pack(sequences, CPU).layout


def dense(layout: Layout, window: int | None) -> Tensor:
    """(T, T) bool: who sees whom, by the definition."""
    length = layout.segments[-1].stop
    seen = torch.zeros(length, length, dtype=torch.bool)
    for start, stop, prefix in layout.segments:
        keys = [*range(*prefix), *range(start, stop)]
        for q in range(start, stop):
            mine = keys[: keys.index(q) + 1]
            seen[q, mine[-window:] if window else mine] = True
    return seen


def outcome(engine: Engine, layout: Layout, options: Options) -> list[Tensor]:
    """Output and gradients for random queries, keys and values of 4 and 2 heads."""
    length = layout.segments[-1].stop
    g = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, length, 8, generator=g, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    out = engine(*inputs, Layout(layout.segments, CPU), options)
    upstream = torch.randn(out.shape, generator=g, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def wanted(layout: Layout, options: Options) -> list[Tensor]:
    """By one dense masked softmax."""

    def engine(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        logits = q @ k.mT * options.scale
        if options.softcap is not None:
            logits = options.softcap * torch.tanh(logits / options.softcap)
        logits = logits.masked_fill(~dense(layout, options.window), -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2)

    return outcome(engine, layout, options)


LENGTHS = st.integers(1, 9)
GROUPS = st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, min_size=1, max_size=4)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.sampled_from([None, 1, 4]), st.sampled_from([None, 0.7]))
def test_segments_and_variable_lengths(
    groups: list[tuple[int, list[int]]], window: int | None, softcap: float | None
) -> None:
    layout, options = layout_of(groups), Options(0.5, softcap, window)
    expected = wanted(layout, options)
    for engine in (sdpa, ENGINES["varlen"]):
        for found, right in zip(outcome(engine, layout, options), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, 0.7)])
def test_flex_attention(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own operator, forward and backward, over more than one block.

    It refuses gradients on a CPU though its unfused form has them: that check is taken off.
    """
    torch.compiler.reset()  # else another scale than before is symbolic, and fails
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    layout = layout_of([(70, [60, 30, 1]), (1, [2]), (40, [90, 50])])
    options = Options(0.5, softcap, window)
    found = outcome(ENGINES["flex"], layout, options)
    for mine, right in zip(found, wanted(layout, options), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.lists(st.integers(1, 300), min_size=1, max_size=3))),
    st.tuples(st.integers(1, 300), st.lists(st.integers(1, 300), min_size=1, max_size=3)),
    st.sampled_from([None, 1, 100]),
)
def test_block_mask(
    groups: list[tuple[int, list[int]]], last: tuple[int, list[int]], window: int | None
) -> None:
    """Element by element, and the blocks that torch finds from the dense mask."""
    layout = layout_of([*groups[:2], last])
    length = layout.segments[-1].stop
    mask = block_mask(layout, window)
    q, k = torch.arange(length)[:, None], torch.arange(length)
    assert torch.equal(mask.mask_mod(0, 0, q, k), dense(layout, window))
    found = torch_flex.create_block_mask(mask.mask_mod, 1, 1, length, length, "cpu", BLOCK)
    for name in ("kv", "full_kv", "q", "full_q"):
        count, other = getattr(mask, f"{name}_num_blocks"), getattr(found, f"{name}_num_blocks")
        assert torch.equal(count, other)
        mine, right = getattr(mask, f"{name}_indices"), getattr(found, f"{name}_indices")
        for block, n in enumerate(count[0, 0].tolist()):
            assert torch.equal(mine[0, 0, block, :n], right[0, 0, block, :n])


def test_made_once_a_pass() -> None:
    layout, options = layout_of([(5, [4, 3]), (2, [6, 2, 2])]), Options(0.5, None, 4)
    for engine in (sdpa, *ENGINES.values()):
        x = torch.randn(1, 2, layout.segments[-1].stop, 8)
        with torch.no_grad():
            engine(x, x, x, layout, options)
            made = dict(layout._made)
            engine(x, x, x, layout, options)
        assert made.keys() == layout._made.keys()
        assert all(layout._made[key] is value for key, value in made.items())


@pytest.mark.parametrize("window", [None, 4])
def test_torchs_kernel_takes_what_it_is_given(window: int | None) -> None:
    """Its shapes and arguments, both ways, on tensors without data: it runs on CUDA alone."""
    meta = torch.device("meta")
    layout = Layout(layout_of([(5, [4, 3]), (2, [6, 2, 2])]).segments, meta)
    q, k, v = (
        torch.empty(1, heads, layout.segments[-1].stop, 8, device=meta, requires_grad=True)
        for heads in (4, 2, 2)
    )
    options = Options(0.5, None, window)
    out = varlen(torch_varlen)(q, k, v, layout, options)
    assert out.shape == q.transpose(1, 2).shape
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]
    for refused, words in (
        (options._replace(softcap=1.0), "torch_varlen has no attention soft-capping"),
        (options._replace(dropout=0.1), "only flash_attention_2 and sdpa have dropout"),
    ):
        with pytest.raises(ValueError, match=words):
            varlen(torch_varlen)(q, k, v, layout, refused)


def flash_3_function(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor:
    """The signature of FlashAttention 3, its arguments read as its documentation says."""
    assert causal and softmax_scale is not None and window_size[1] == 0 and not deterministic
    window = None if window_size[0] == -1 else window_size[0] + 1
    bounds = Bounds(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return plain_kernel(q, k, v, bounds, Options(softmax_scale, softcap or None, window))


def flash_4_function(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The signature of FlashAttention 4, its arguments read as its documentation says."""
    assert qv is None and cu_seqlens_q is not None and cu_seqlens_k is not None
    assert max_seqlen_q is not None and max_seqlen_k is not None and softmax_scale is not None
    left = -1 if window_size[0] is None else window_size[0]
    found = flash_3_function(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=(left, 0 if window_size[1] is None else window_size[1]),
        softcap=softcap,
        deterministic=deterministic,
    )
    return found, torch.empty(0)


FUNCTIONS = {
    "flash_attention_3": ("flash_attn_interface", flash_3_function, flash_3),
    "flash_attention_4": ("flash_attn.cute", flash_4_function, flash_4),
    "flash_attention_2": ("flash_attn", flash_3_function, flash),
}


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *engines: str) -> None:
    """Let these releases of FlashAttention be the only ones that can be imported."""
    for engine, (module, function, _) in FUNCTIONS.items():
        found = ModuleType(module)
        if engine in engines:
            found.flash_attn_varlen_func = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, found)
    is_installed.cache_clear()


@pytest.fixture(autouse=True)
def installed_anew() -> Iterator[None]:
    """Let no test's packages outlive it."""
    yield
    is_installed.cache_clear()


@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 0.7), (1, 0.7)])
def test_arguments_of_flash_attention(
    name: str, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain kernel behind the packages' signatures: theirs have not run on a device."""
    pretend_installed(monkeypatch, name)
    layout, options = layout_of([(5, [4, 3]), (2, [6, 2, 2])]), Options(0.5, softcap, window)
    engine = varlen(FUNCTIONS[name][2])
    for found, right in zip(outcome(engine, layout, options), wanted(layout, options), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="only flash_attention_2 and sdpa have dropout"):
        outcome(engine, layout, options._replace(dropout=0.1))


def test_old_releases_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 2 carries an early `flash_attn.cute` that knows no longest sequence."""

    def early(q: Tensor, cu_seqlens_q: Tensor, softcap: float, pack_gqa: bool) -> None: ...

    pretend_installed(monkeypatch, "flash_attention_2", "flash_attention_4")
    assert is_installed("flash_attention_4")
    sys.modules["flash_attn.cute"].flash_attn_varlen_func = early  # type: ignore[attr-defined]
    is_installed.cache_clear()
    assert not is_installed("flash_attention_4")
    assert is_installed("flash_attention_2")


def test_shared_keys_add_up_in_float32() -> None:
    """Many small gradients on one key: a sum in bfloat16 would stop at 256."""
    layout = layout_of([(1, [2] * 1001)])  # 1000 segments of one query behind one key
    key = torch.zeros(1, 1, layout.segments[-1].stop, 8, dtype=torch.bfloat16, requires_grad=True)

    def kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
        return k[bounds.cu_k[1:] - 2].float()  # of each segment the prompt's only key

    out = varlen(kernel)(key, key, key, layout, Options(1.0))
    (gradient,) = torch.autograd.grad(out.sum(), key)
    assert gradient[0, 0, 0, 0] == 1000  # the bfloat16 nearest to 1001


def model_like(device: str, dtype: torch.dtype, **config: Any) -> Any:
    found = tiny_config(**{"head_dim": 64} | config)
    return SimpleNamespace(device=torch.device(device), dtype=dtype, config=found)


NAMES = {
    "3": "flash_attention_3",
    "4": "flash_attention_4",
    "2": "flash_attention_2",
    "v": "torch_varlen",
    "x": "flex_attention",
}


@pytest.mark.parametrize(
    ("capability", "packages", "engines"),  # of a llama, a soft-capped one, one in float32
    [
        ((9, 0), "342", "33x"),
        ((9, 0), "42", "44x"),
        ((9, 0), "2", "22x"),
        ((10, 0), "342", "44x"),
        ((8, 0), "342", "22x"),
        ((12, 0), "34", "vxx"),
        ((7, 5), "342", "vxx"),
        ((9, 0), "", "vxx"),
    ],
)
def test_the_engine_of_a_gpu(
    capability: tuple[int, int], packages: str, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to choose one."""
    pretend_installed(monkeypatch, *(NAMES[p] for p in packages))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    models = (
        model_like("cuda", torch.bfloat16),
        model_like("cuda", torch.bfloat16, attn_logit_softcapping=50.0),
        model_like("cuda", torch.float32),
    )
    assert is_installed("torch_varlen")
    assert [choose_engine("auto", model) for model in models] == [NAMES[e] for e in engines]


def test_heads_that_flash_attention_has_no_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, *(NAMES[p] for p in "342"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for width, engine in ((128, "3"), (256, "3"), (260, "v"), (100, "2")):
        model = model_like("cuda", torch.bfloat16, head_dim=width)
        assert choose_engine("auto", model) == NAMES[engine], width
    wide = model_like("cuda", torch.bfloat16, head_dim=256)
    with pytest.raises(ValueError, match="flash_attention_4 has no gradients for heads of 256"):
        choose_engine("flash_attention_4", wide)
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_engine("auto", wide) == "flash_attention_2"
        with pytest.raises(ValueError, match="3 has no deterministic gradients for heads of 256"):
            choose_engine("flash_attention_3", wide)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_engine_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "flash_attention_4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    llama, single = model_like("cuda", torch.bfloat16), model_like("cuda", torch.float32)
    gemma = model_like("cuda", torch.bfloat16, attn_logit_softcapping=50.0)
    assert choose_engine("auto", model_like("cpu", torch.float32)) == "sdpa"
    narrow = model_like("cuda", torch.float32, head_dim=8)
    assert choose_engine("auto", narrow) == "sdpa"
    for requested, model, words in (
        ("flash_attention_2", llama, "flash_attention_2 needs the package flash-attn$"),
        ("flash_attention_3", llama, "flash_attention_3 needs the package flash-attn-3$"),
        ("flash_attention_3", single, "flash_attention_3 computes in bfloat16 or float16"),
        (
            "flash_attention_4",
            llama,
            r"flash_attention_4 does not run on this GPU \(compute capability 8\.6\)",
        ),
        (
            "torch_varlen",
            single,
            "torch_varlen computes in bfloat16 or float16, the model in float",
        ),
        ("torch_varlen", gemma, "torch_varlen has no attention soft-capping"),
        ("flex_attention", model_like("cpu", torch.bfloat16), "flex_attention needs CUDA"),
        (
            "flex_attention",
            narrow,
            "flex_attention needs heads of 16 numbers, and the model's have 8",
        ),
    ):
        with pytest.raises(ValueError, match=f"^attn_implementation: {words}"):
            choose_engine(requested, model)


ON_GPU = {
    "flash_attention_3": varlen(flash_3),
    "flash_attention_4": varlen(flash_4),
    "flash_attention_2": varlen(flash),
    "torch_varlen": varlen(torch_varlen),
    "flex_attention": flex(compiled),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize(
    "options", [Options(0.125), Options(0.125, window=50), Options(0.125, softcap=5.0)]
)
def test_engines_of_a_gpu(name: str, options: Options) -> None:
    """In bfloat16, against float64: no further off than twice SDPA's segments in bfloat16."""
    model = model_like("cuda", torch.bfloat16, attn_logit_softcapping=options.softcap)
    why = interface._why_not(name, model)
    if why:
        pytest.skip(f"{name} {why}")
    segments = layout_of([(200, [70, 130, 1]), (1, [40]), (64, [64, 300])]).segments
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, segments[-1].stop, 64, generator=g) for heads in (4, 2, 2)]
    upstream = torch.randn(1, segments[-1].stop, 4, 64, generator=g)

    def outcome_in(engine: Engine, dtype: torch.dtype) -> list[Tensor]:
        low = [x.to("cuda", torch.bfloat16).to(dtype).requires_grad_() for x in inputs]
        out = engine(*low, Layout(segments, torch.device("cuda")), options)
        return [out, *torch.autograd.grad(out, low, upstream.to("cuda", torch.bfloat16).to(dtype))]

    exact = outcome_in(sdpa, torch.float64)
    found = outcome_in(ON_GPU[name], torch.bfloat16)
    plain = outcome_in(sdpa, torch.bfloat16)
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm()
