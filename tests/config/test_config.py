"""Configuration and its one clear line for everything that can be wrong in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from comal_fast import loop
from comal_fast.config import known_keys, load_config, load_saved, to_dict
from comal_fast.config.generation import VllmConfig
from comal_fast.config.schema import CriteriaConfig, LoraConfig

REPO = Path(__file__).resolve().parents[2]


CONFIGS = sorted(p.relative_to(REPO) for p in (REPO / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_shipped_configs_load(name: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "nf4" in (REPO / name).read_text():
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(REPO)  # paths in them are relative to the working directory
    load_config(name)


def test_a_config_may_rest_on_another(tiny_run: Path) -> None:
    (tiny_run.parent / "more").mkdir()
    above = tiny_run.parent / "more" / "above.yaml"
    above.write_text("base: ../tiny.yaml\nseed: 3\ngeneration: {top_p: 0.5}\n")
    top = tiny_run.parent / "top.yaml"
    top.write_text("base: more/above.yaml\nseed: 4\n")
    config = load_config(top, ["generation.num_generations=4"])
    below = load_config(tiny_run)
    assert (config.seed, config.generation.top_p, config.generation.num_generations) == (4, 0.5, 4)
    assert config.generation.max_new_tokens == below.generation.max_new_tokens
    assert config.data == below.data and config.model == below.model


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("none.yaml", r"none\.yaml: no such file"),
        ("top.yaml", r"top\.yaml rests on top\.yaml itself"),
        ("loop.yaml", r"loop\.yaml: base: top\.yaml rests on loop\.yaml itself"),
        ("[1]", r"base: expected a file name, found list"),
    ],
)
def test_bad_base(tmp_path: Path, base: str, words: str) -> None:
    (tmp_path / "top.yaml").write_text(f"base: {base}\nseed: 4\n")
    (tmp_path / "loop.yaml").write_text("base: top.yaml\n")
    with pytest.raises(ValueError, match=words) as caught:
        load_config(tmp_path / "top.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prox", ["inpo", "ipo", "dpo", "sppo", "dro", "rebel"])
def test_what_a_run_writes_down_is_a_configuration(tiny_run: Path, prox: str) -> None:
    """`comal-fast run RUN_DIR/config.yaml` is the same run."""
    text = tiny_run.read_text().replace("algorithm: {eta: 0.05, ", "algorithm: {")
    tiny_run.write_text(text.replace("pairing: {strategy: all}\n", ""))
    given = [f"algorithm.prox={prox}", "diagnostics.cycling=off", "training.train_batch_size=8"]
    config = load_config(tiny_run, given)
    written = tiny_run.parent / "config.yaml"
    written.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(written) == config == load_saved(written)


def test_what_a_template_is_told(tiny_run: Path) -> None:
    """A day may stand there as YAML reads it; whatever is written down is read again."""
    given = ["data.template_date=2031-01-02", "data.chat_template_kwargs={a: {b: [1, x, null]}}"]
    config = load_config(tiny_run, [*given, "data.chat_template_kwargs.think=off"])
    assert config.data.template_date == "2031-01-02"
    assert config.data.chat_template_kwargs == {"a": {"b": [1, "x", None]}, "think": False}
    written = tiny_run.parent / "config.yaml"
    written.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(written) == config == load_saved(written)


def test_overrides_win(tiny_run: Path) -> None:
    config = load_config(
        tiny_run, ["seed=7", "training.learning_rate=5e-7", "data.prompts=a.jsonl"]
    )
    assert (config.seed, config.training.learning_rate, config.data.prompts) == (7, 5e-7, "a.jsonl")
    assert config.pairing.strategy == "all"  # what the file says stays


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "training.learning_rte=1",
            r"unknown option training\.learning_rte.*training\.learning_rate",
        ),
        ("max_length=10", r"unknown option max_length; the nearest is data\.max_length"),
        ("seed", r"expected key\.path=value"),
        ("seed=x", r"seed: expected int, found str 'x'"),
        ("seed=true", r"seed: expected int"),
        ("algorithm=null", r"^algorithm: expected a group of options, found nothing"),
        ("algorithm=[1]", r"^algorithm: expected a group of options, found list"),
        ("data={1: 2}", r"data\.1: 1 is no name of an option"),
        ("oracle.weights={on: 1}", r"oracle\.weights\.True: True is no name .* quote it"),
        ("plugins=true", r"plugins: expected str, found bool"),
        ("plugins={a: 1}", r"plugins: expected str, found dict"),
        ("plugins=''", r"plugins: empty; give a name"),
        ("plugins=.x", r"plugins: \.x: no such module"),
        ('output_dir="a\\0b"', r"output_dir: 'a\\x00b' holds a NUL"),
        ('data.system_prompt="a \\ud83d"', r"system_prompt: 'a \\ud83d' holds half a surrogate"),
        ('data.chat_template_kwargs={a: ["\\0"]}', r"chat_template_kwargs\.a: .* holds a NUL"),
        ("training.max_grad_norm=.nan", r"max_grad_norm: nan is not a number"),
        ("training.max_grad_norm=-.inf", r"max_grad_norm: -inf is too small"),
        ("oracle.weights.brief=.inf", r"weights\.brief: inf is not a finite number"),
        ("data=3", r"data: expected a group"),
        ("data.template_date=2024-02-30", r"template_date: '2024-02-30' is no day; write 2024-"),
        ("data.template_date=today", r"data\.template_date: 'today' is no day"),
        ("data.chat_template_kwargs=3", r"chat_template_kwargs: expected mapping, found int 3"),
        ("data.chat_template_kwargs.day=2024-07-26", r"chat_template_kwargs.*day.* valid JSON"),
        ("seed.x=3", r"seed: expected int, found dict"),
        ("generation.num_generations=1", r"generation\.num_generations: 1 .* at least 2"),
        ("generation.max_new_tokens=128", r"max_new_tokens: 128 leaves no room"),
        ("data.max_prompt_length=125", r"max_prompt_length: 125 .* exceeds data\.max_length=128"),
        ("generation.top_p=1.5", r"generation\.top_p: 1\.5 is outside \(0, 1\]"),
        ("generation.temperature=0", r"generation\.temperature: 0\.0 is not a positive"),
        ("algorithm.eta=.nan", r"algorithm\.eta: nan is not a positive"),
        (
            "algorithm.prox=ppo",
            r"algorithm\.prox: 'ppo' is not one of inpo, ipo, dpo, sppo, dro, rebel",
        ),
        ("algorithm.beta=0.1", r"algorithm\.beta: prox inpo ignores it"),
        ("algorithm.log_z=zero", r"algorithm\.log_z: prox inpo ignores it"),
        ("algorithm.prox=sppo", r"pairing\.strategy: prox sppo ignores it"),
        ("oracle.game=a.json", r"oracle\.game: oracle criteria ignores it"),
        ("oracle.name=matrix", r"oracle\.game: missing, "),
        ("oracle.weights.wit=1", r"oracle\.weights\.wit: no such criterion"),
        ("oracle.weights={brief: 0}", r"oracle\.weights: all are zero"),
        (
            "model.attn_implementation=flash_attention_2",
            r"flash_attention_2 needs model\.device=cuda",
        ),
        (
            "training.optimizer_in_backward=true",
            r"training\.max_grad_norm: 1 can't be kept .* write max_grad_norm: 0",
        ),
        (
            "training.stochastic_rounding=true",
            r"training\.stochastic_rounding: .* model\.dtype is float32; leave it out",
        ),
        ("training.optimizer_state=4bit", r"optimizer_state: '4bit' is not one of model, float32"),
        ("model.lora=true", r"model\.lora: expected a group of options, found bool"),
        ("model.lora.rank=8", r"unknown option model\.lora\.rank.*model\.lora\.r"),
        ("lora=true", r"unknown option lora; the nearest is model\.lora\.r"),
        ("model.lora.r=0", r"model\.lora\.r: 0 is too small"),
        ("model.lora.alpha=0", r"model\.lora\.alpha: 0 is too small"),
        ("model.lora.dropout=1", r"model\.lora\.dropout: 1\.0 is outside \[0, 1\)"),
        ("model.lora.target_modules=[]", r"target_modules: \[\]; give names of layers"),
        ("model.lora.target_modules=[all-linear, q_proj]", r"or all-linear alone"),
        ("model.lora.target_modules=[{a: 1}]", r"target_modules: expected str, found dict"),
        ("model.quantization=nf4", r"model\.quantization: nf4 .* set model\.lora too"),
        ("model.quantization=int8", r"'int8' is not one of none, nf4"),
    ],
)
def test_bad_option(tiny_run: Path, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_config(tiny_run, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_option_says_what_it_is(tiny_run: Path) -> None:
    text = tiny_run.read_text().replace("oracle: {target_words: 2}", "oracle: {name: matrix}")
    tiny_run.write_text(text)
    with pytest.raises(ValueError, match=r"oracle\.game: missing, .*; give it: JSON file"):
        load_config(tiny_run)


def test_an_option_of_another_prox_names_all_that_are_read(tiny_run: Path) -> None:
    with pytest.raises(ValueError, match=r"it reads .*algorithm\.eta.*pairing\.strategy"):
        load_config(tiny_run, ["algorithm.beta=0.1"])


def test_an_override_to_another_variant_leaves_the_former_ones_options_out(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so; an option that the command line itself gives is refused."""
    config = load_config(tiny_run, ["generation.engine=vllm"])
    assert config.generation == VllmConfig(num_generations=3, max_new_tokens=8)
    said = "generation.engine=vllm has no batch_size; what the file says is left out"
    assert said in capsys.readouterr().out
    load_config(tiny_run, ["generation.engine=transformers"])
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"generation\.batch_size: engine vllm ignores it"):
        load_config(tiny_run, ["generation.engine=vllm", "generation.batch_size=2"])
    with pytest.raises(ValueError, match=r"generation\.engine: 'sglang' is not one of"):
        load_config(tiny_run, ["generation.engine=sglang"])


def test_vllm_holds_a_base_of_four_bits_in_four(tiny_run: Path) -> None:
    pytest.importorskip("bitsandbytes")
    given = ["generation.engine=vllm", "model.lora={}", "model.quantization=nf4"]
    with pytest.raises(ValueError, match=r"vllm\.quantization: .*bitsandbytes holds its weights"):
        load_config(tiny_run, given)
    load_config(tiny_run, [*given, "generation.vllm.quantization=bitsandbytes"])


def test_numbers_and_words_as_they_were_meant(tiny_run: Path) -> None:
    """5e-7 is text in YAML 1.1, inside a mapping too, and what is no date is text."""
    given = ["oracle.weights.brief=1e-1", "oracle.temperatures={varied: 2e-1}"]
    more = ["model.lora.target_modules=[1, 2]", "model.revision=2024-02-30"]
    config = load_config(tiny_run, [*given, *more, "training.max_grad_norm=.inf"])
    assert isinstance(config.oracle, CriteriaConfig) and config.model.lora
    assert config.oracle.weights == {"brief": 0.1}
    assert config.oracle.temperatures == {"varied": 0.2}
    assert config.model.lora.target_modules == ["1", "2"]
    assert config.model.revision == "2024-02-30"
    assert config.training.max_grad_norm == float("inf")


def test_a_date_that_is_none_in_a_file(tiny_run: Path) -> None:
    rest = tiny_run.read_text().strip().split("\n", 1)[1]
    tiny_run.write_text(f"output_dir: 2024-13-45\n{rest}\n")
    with pytest.raises(ValueError, match="not valid YAML: month must be in"):
        load_config(tiny_run)


def test_a_key_that_stands_twice(tiny_run: Path) -> None:
    """The later one would hide the earlier, unseen."""
    tiny_run.write_text(tiny_run.read_text() + "training: {num_train_epochs: 2}\n")
    with pytest.raises(ValueError, match="not valid YAML: training stands twice .* line 12"):
        load_config(tiny_run)


def test_stochastic_rounding_of_weights_alone(tiny_run: Path) -> None:
    options = ["model.dtype=bfloat16", "training.stochastic_rounding=true"]
    with pytest.raises(ValueError, match=r"what trains under model\.lora is float32"):
        load_config(tiny_run, [*options, "training.optimizer_state=8bit", "model.lora={}"])
    with pytest.raises(ValueError, match=r"use optimizer_state=8bit or float32"):
        load_config(tiny_run, options)
    load_config(tiny_run, [*options, "training.optimizer_state=8bit"])


def test_optional_group(tiny_run: Path) -> None:
    def lora(*overrides: str) -> LoraConfig | None:
        return load_config(tiny_run, overrides).model.lora

    assert lora() is None and lora("model.lora.r=4", "model.lora=null") is None
    assert lora("model.lora={}") == LoraConfig()
    # one option of a group that is off switches it on; one name stands for a list of one
    chosen = lora("model.lora=null", "model.lora.r=4", "model.lora.target_modules=q_proj")
    assert chosen == LoraConfig(r=4, target_modules=["q_proj"])
    assert {"model.lora.r", "model.quantization"} <= set(known_keys())
    assert "model.lora" not in known_keys()


@pytest.mark.parametrize(
    ("package", "overrides", "words"),
    [
        ("peft", ["model.lora={}"], r"model\.lora: needs the package peft; .*comal-fast\[lora\]"),
        (
            "bitsandbytes",
            ["model.lora={}", "model.quantization=nf4"],
            r"model\.quantization: needs the package bitsandbytes; .*comal-fast\[qlora\]",
        ),
    ],
)
def test_missing_package(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, package: str, overrides: list[str], words: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as python itself marks what can't be imported
    with pytest.raises(ValueError, match=words):
        load_config(tiny_run, overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("", "expected a mapping of options, found nothing"),
        ("seed: 1", r"model\.name_or_path: missing"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_float16_is_sampled_from_and_not_trained(tiny_run: Path) -> None:
    """Its gradients underflow; a run says so before it samples anything."""
    config = load_config(tiny_run, ["model.dtype=float16"])
    for start in (lambda: loop.run_all(config), lambda: loop.run_phase(config, "train", 1)):
        with pytest.raises(ValueError, match=r"^model\.dtype: float16 .* use bfloat16, or"):
            start()
    assert not Path(config.output_dir).exists()
    loop.run_phase(config, "generate", 1)
    assert (Path(config.output_dir) / "iterations" / "0001" / "samples.parquet").exists()
