"""`comal-fast plan`, and the check before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from comal_fast import loop
from comal_fast.cli import main
from comal_fast.config import Config, load_config
from comal_fast.config.schema import ModelConfig, TrainingConfig
from comal_fast.config.sizes import parse_bytes
from comal_fast.errors import InputError
from comal_fast.plan import modes
from comal_fast.plan.check import check_fits
from comal_fast.plan.machines import MACHINES, nearest
from comal_fast.plan.memory import SHARED, LargestPass, peak, shared, training
from comal_fast.plan.modes import LADDER, Mode, mode_of
from comal_fast.plan.search import (
    Workload,
    assess,
    budgeted_layers,
    choose,
    configured,
    least_recomputed,
    search,
)
from comal_fast.plan.search import usable as usable_of
from comal_fast.plan.shapes import KNOWN, Unplanned, read_shape, short_name

GIB = 2**30
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
WORK = Workload.of(Config(model=ModelConfig(name_or_path=LLAMA, dtype="bfloat16")))


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["plan", *arguments])
    out, error = capsys.readouterr()
    return status, out, error


@pytest.mark.parametrize("gib", [80, 48, 40, 24])
def test_all_parameters_of_an_8b_model_train_in_each(
    gib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = plan(capsys, "--model", LLAMA, "--gpu-memory", f"{gib}GiB")
    assert status == 0 and error == ""
    tree = yaml.safe_load(out[out.rindex("\nmodel:\n") :])
    assert "lora" not in tree["model"] and tree["model"]["dtype"] == "bfloat16"
    training = tree["training"]
    assert training["optimizer_state"] == "8bit" and training["stochastic_rounding"]
    assert ("optimizer_in_backward" in training) == (gib == 24)
    assert ("optimizer_offload" in training) == (gib < 80)
    assert training.get("max_grad_norm") == (0 if gib == 24 else None)


def test_the_chosen_mode_fits_and_gives_up_no_more_than_it_must() -> None:
    shape, machine = KNOWN["llama-3-8b"], MACHINES["h100"]
    for gib in (16, 24, 40, 80, 200):
        fits = search(shape, WORK, machine, gib * GIB)
        best = choose(fits, gib * GIB)
        assert [fit.mode.name for fit in fits] == [mode.name for mode in LADDER]
        assert best is not None and best.bytes <= usable_of(gib * GIB)
        rivals = [f for f in fits if f.fits(usable_of(gib * GIB)) and f.mode.rank is None]
        assert (best.mode.rank is None) == bool(rivals)
        if any(not f.mode.in_backward for f in rivals):
            assert not best.mode.in_backward
            assert best.rate == max(f.rate for f in rivals if not f.mode.in_backward)
    assert best.mode.recomputed == 0


def test_as_few_layers_as_fit_are_recomputed() -> None:
    shape, mode, space = KNOWN["llama-3-8b"], LADDER[1], 62 * GIB
    work = replace(WORK, budget=8192)
    found = least_recomputed(shape, mode, work.batch(), space)
    assert 0 < found.recomputed < shape.layers

    def train(layers: int) -> float:
        again = replace(mode, recomputed=layers)
        return assess(shape, again, work, MACHINES["h100"]).phases["train"].bytes

    assert train(found.recomputed) <= space < train(found.recomputed - 1)


@pytest.mark.parametrize(("name", "gib"), [("llama3-8b-1gpu", 80), ("llama3-8b-24gb", 24)])
def test_shipped_configs_are_what_is_recommended(name: str, gib: int) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    config = load_config(path)
    check_fits(config, gib * GIB)
    asked = Workload.of(load_config(path.with_name("llama3-8b-1gpu.yaml")))
    machine = MACHINES[nearest(gib * GIB)]
    best = choose(search(KNOWN["llama-3-8b"], asked, machine, gib * GIB), gib * GIB)
    assert best is not None
    mode = configured(config, KNOWN["llama-3-8b"], gib * GIB)
    assert replace(mode, name=best.mode.name) == best.mode
    assert Workload.of(config) == best.work


@pytest.mark.parametrize("mode", [m for m in LADDER if m.rank is None], ids=lambda m: m.name)
@pytest.mark.parametrize("layers", [0, 5, 32])
def test_printed_options_give_the_mode(mode: Mode, layers: int, tmp_path: Path) -> None:
    """Through a file, as a person would paste them."""
    wanted = replace(mode, recomputed=layers, offload_activations=layers == 32)
    tree: dict[str, dict[str, object]] = {"model": {"name_or_path": LLAMA}}
    for name, value in modes.options(wanted, 32).items():
        group, key = name.split(".")
        tree.setdefault(group, {})[key] = value
    (tmp_path / "pasted.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "pasted.yaml")
    found = mode_of(config, 32, layers if config.training.activation_memory else None)
    assert replace(found, name=mode.name) == wanted


def test_no_mode_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = plan(capsys, "--model", "Qwen2.5-72B", "--gpu-memory", "24GiB")
    assert status == 2 and error.count("\n") == 1
    assert "no mode fits 24.0 GiB; the nearest, QLoRA, rank 16, needs " in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-memory", "80GiB"], "give either a CONFIG or --model NAME"),
        (["--model", LLAMA, "--gpu-memory", "80"], "--gpu-memory: '80' is no size"),
        (["--model", LLAMA, "seed=1"], "key.path=value belongs to a CONFIG"),
        (["--model", "./nowhere", "--gpu", "h100"], "./nowhere: no such folder"),
        (["none.yaml", "--gpu", "h100"], "none.yaml: no such file"),
    ],
)
def test_bad_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = plan(capsys, *arguments)
    assert status == 2 and words in error and error.count("\n") == 1


def test_a_config_is_planned_as_it_is_too(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = plan(capsys, str(tiny_run), "--gpu", "4090", "training.train_batch_size=3")
    assert status == 0 and "as configured" in out and "RTX 4090" in out


def config(**training: object) -> Config:
    options = {"max_tokens_per_microbatch": 8192, **training}
    return Config(
        model=ModelConfig(name_or_path=LLAMA, dtype="bfloat16"),
        training=TrainingConfig(**options),  # type: ignore[arg-type]
    )


def test_what_does_not_fit_is_refused_with_the_nearest_mode() -> None:
    with pytest.raises(ValueError) as caught:
        check_fits(config(gradient_checkpointing=True), 40 * GIB)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{LLAMA} does not fit: train needs 6" in text  # moments in bfloat16: 62 GiB and more
    assert "weights 15.0, optimizer state 29.9, gradients 15.0" in text
    assert "and the GPU has 40.0 GiB; the nearest mode that fits" in text
    assert "training.optimizer_offload=true" in text


def test_what_fits_passes() -> None:
    check_fits(config(gradient_checkpointing=True), 80 * GIB)
    with pytest.raises(ValueError, match="train needs"):
        check_fits(config(), 80 * GIB)  # no layer recomputed
    check_fits(config(activation_memory="auto"), 80 * GIB)
    check_fits(config(activation_memory="8GiB"), 80 * GIB)
    check_fits(config(), 80 * GIB, ranks=8)


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_run_that_does_not_fit_writes_nothing(
    verb: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a GPU of half a MiB, since none is here."""
    monkeypatch.setattr(loop, "check_device", lambda config, _: check_fits(config, GIB / 2048))
    assert main([verb, str(tiny_run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "does not fit: " in error
    assert not (tiny_run.parent / "run").exists()


def test_generation_counts_too() -> None:
    wide = config(gradient_checkpointing=True)
    large = wide.generation.model_copy(update={"batch_size": 512})
    many = wide.model_copy(update={"generation": large})
    with pytest.raises(ValueError, match="generate, evaluate needs .*generation cache"):
        check_fits(many, 80 * GIB)


def test_models_of_a_folder_of_the_table_and_unknown_ones(
    tiny_folder: Path, tmp_path: Path
) -> None:
    assert read_shape(ModelConfig(name_or_path=str(tiny_folder))).hidden == 32
    for name in (LLAMA, "meta-llama/Llama-3.1-8B", "NousResearch/Meta-Llama-3-8B"):
        assert read_shape(ModelConfig(name_or_path=name)) == KNOWN["llama-3-8b"]
    assert short_name("Qwen/Qwen2.5-7B-Instruct") == "qwen2.5-7b"
    assert short_name("mistralai/Mistral-7B-Instruct-v0.3") == "mistral-7b"
    assert short_name("google/gemma-2-9b-it") == "gemma-2-9b"
    assert short_name("microsoft/Phi-3-mini-4k-instruct") == "phi-3-mini"
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(Unplanned, match="models of type mamba can't be planned"):
        read_shape(ModelConfig(name_or_path=str(tmp_path)))


def test_the_demos_model(smollm2: ModelConfig) -> None:
    assert replace(read_shape(smollm2), rope_theta=1e5) == KNOWN["smollm2-135m"]


def test_a_budget_in_bytes_bounds_what_layers_keep() -> None:
    shape, tokens = KNOWN["llama-3-8b"], 8192
    layers = budgeted_layers(config(activation_memory="12GiB"), shape, tokens)
    assert 0 < layers < 32
    assert budgeted_layers(config(activation_memory="60GiB"), shape, tokens) == 0


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 * GIB), ("0.5 GB", 5 * 10**8)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "x") == size


def test_machines_by_memory() -> None:
    names = {80: "h100", 48: "l40s", 40: "a100-40gb", 24: "4090", 141: "h200"}
    assert {gib: nearest(gib * GIB) for gib in names} == names


def test_each_way_of_saving_memory_saves_some() -> None:
    def bytes_of(mode: Mode) -> float:
        tried = replace(mode, recomputed=32)
        work = replace(WORK, budget=8192, pairs=2 if mode.in_backward else 32)
        return assess(KNOWN["llama-3-8b"], tried, work, MACHINES["h100"]).phases["train"].bytes

    wide, eight, host, fused, fused_host, lora, qlora = map(bytes_of, LADDER)
    assert eight < wide and host < eight and fused < eight and fused_host < min(host, fused)
    assert qlora < lora < host


def test_ranks_share_out_what_is_said_of_each_phase() -> None:
    """Each holds the whole model while it samples: a 70B does not, on 8 × 80 GiB."""
    large = ModelConfig(name_or_path="meta-llama/Meta-Llama-3-70B-Instruct", dtype="bfloat16")
    training = TrainingConfig(gradient_checkpointing=True)
    with pytest.raises(
        InputError,
        match=r"evaluate needs 158\.7 GiB \(weights 131\.4, .*; the nearest mode .* is QLoRA",
    ):
        check_fits(Config(model=large, training=training), 80 * GIB, ranks=8)


def test_each_phase_of_a_plan_says_what_it_shares() -> None:
    """`SHARED`, the phases that are assessed, and the table of docs/distributed.md are one."""
    fit = assess(KNOWN["llama-3-8b"], LADDER[0], WORK, MACHINES["h100"])
    assert set(SHARED) == set(fit.phases)
    text = (Path(__file__).parents[2] / "docs/distributed.md").read_text()
    table = re.search(r"\| phase \| shared out over the ranks \|\n.*?\n\n", text, re.DOTALL)
    assert table is not None
    rows = (line.strip("| ").split(" | ") for line in table[0].splitlines()[2:] if line)
    said = {phase: () if what == "nothing" else tuple(what.split(", ")) for phase, what in rows}
    assert said == SHARED


def test_training_gathers_what_it_needs() -> None:
    shape, mode = KNOWN["llama-3-8b"], LADDER[0]
    one = training(shape, mode, WORK.batch())
    eight = shared("train", one, shape, mode, 8)
    outside = shape.parameters - shape.block_parameters
    for moment, parts in eight.items():
        assert parts["gradients"] == one[moment]["gradients"] / 8
        assert parts["weights gathered"] >= 2 * outside
        assert parts["weights"] == one[moment]["weights"] / 8
    packed = training(shape, LADDER[-1], WORK.batch())
    for moment, parts in shared("train", packed, shape, LADDER[-1], 8).items():
        assert parts["weights"] == packed[moment]["weights"]


def test_the_peak_of_ranks_is_sought_after_sharing() -> None:
    """Alone the gradients' moment is worst; of many, one with activations, which none share."""
    shape = KNOWN["llama-3-70b"]
    mode = replace(LADDER[0], recomputed=shape.layers)
    moments = training(shape, mode, LargestPass(8192, 8192, alone=True))
    many = shared("train", moments, shape, mode, 64)
    before, after = peak(moments), peak(many)
    assert before.moment != after.moment
    assert after.bytes > sum(many[before.moment].values())
    fit = assess(shape, mode, WORK, MACHINES["h100"], 64).phases["train"]
    expected = shared("train", training(shape, mode, WORK.batch()), shape, mode, 64)
    assert fit.bytes == peak(expected).bytes
