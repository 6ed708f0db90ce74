"""An exported folder in other programs: loaded, asked, trained on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.context import Context
from comal_fast.export.card import base_licence
from comal_fast.loop import run_all
from comal_fast.model.adapters import keep_trainable
from tiny import byte_tokenizer, tiny_model

KINDS = {
    "full": [],
    "lora": ["model.lora={r: 4, alpha: 8}", "training.learning_rate=1e-2"],
    "qlora": [
        "model.lora={r: 4, alpha: 8}",
        "training.learning_rate=1e-2",
        "model.quantization=nf4",
        "training.gradient_checkpointing=true",
    ],
}


def ran(tiny_run: Path, kind: str, *options: str) -> Path:
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    brief = ["algorithm.iterations=1", "training.num_train_epochs=1", "training.save_steps=0"]
    config = load_config(tiny_run, [*brief, *KINDS[kind], *options])
    run_all(config)
    return Path(config.output_dir)


def asked(tokenizer: Any, text: str) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )["input_ids"]
    return torch.as_tensor(ids)


def goes_on(model: Any, tokenizer: Any, folder: Path) -> None:
    """A step of TRL's DPOTrainer moves what trains."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    row = {
        "prompt": [{"role": "user", "content": "Say one."}],
        "chosen": [{"role": "assistant", "content": "one"}],
        "rejected": [{"role": "assistant", "content": "two"}],
    }
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder), max_steps=1, per_device_train_batch_size=1, report_to="none",
            use_cpu=True, bf16=False, save_strategy="no", learning_rate=1e-2,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert before and any(not torch.equal(after[n], p) for n, p in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_whole_models(kind: str, tiny_run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, folder = ran(tiny_run, kind), tmp_path / "exported"
    assert main(["export", "model", str(run), str(folder)]) == 0
    assert not list(folder.glob("*adapter*")) and not (folder / "comal.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = Context(load_config(run / "config.yaml"))
    ids = asked(tokenizer, "Say one.")
    policy = context.policies.load(1)
    with torch.inference_mode():
        ours, theirs = (m(ids.to(m.device)).logits for m in (policy, model))
    # 4-bit products round otherwise than those of the weights that they stand for
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-2 if kind == "qlora" else 1e-4)
    said = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert said.shape[1] > ids.shape[1]
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    goes_on(model.train(), tokenizer, tmp_path / "trl")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapters(kind: str, tiny_run: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    run, folder = ran(tiny_run, kind), tmp_path / "adapter"
    assert main(["export", "model", str(run), str(folder), "--adapter"]) == 0
    assert not (folder / "model.safetensors").exists()
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(
        named, dtype=torch.float32, quantization_config=bits if kind == "qlora" else None
    )
    keep_trainable(base)  # bitsandbytes' other layout wants rows of whole blocks of 64
    model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = asked(tokenizer, "Say one.")
    with torch.inference_mode():
        ours = Context(load_config(run / "config.yaml")).policies.load(1)(ids).logits
        torch.testing.assert_close(model(ids).logits, ours, rtol=0, atol=5e-2)
    goes_on(model, tokenizer, tmp_path / "trl")


def test_the_card(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub reads, the measured results with intervals, and nothing of this machine."""
    from huggingface_hub import ModelCard

    run, folder = ran(tiny_run, "full"), tmp_path / "exported"
    assert main(["export", "model", str(run), str(folder)]) == 0
    found = ModelCard.load(folder / "README.md")
    assert found.data.library_name == "transformers" and "inpo" in found.data.tags
    evaluation = json.loads((run / "iterations/0001/evaluation.json").read_text())
    low, high = evaluation["win_rates"]["0"]["ci95"]
    assert f"{evaluation['win_rates']['0']['mean']:.1%} [{low:.1%}, {high:.1%}]" in found.text
    assert "`criteria`" in found.text and "eta: 0.05" in found.text and "torch" in found.text
    assert str(tmp_path) not in found.content and "/" + "tmp" not in found.content
    config = load_config(run / "config.yaml")
    base = Path(config.model.name_or_path)
    assert base_licence(config) is None
    copy = tmp_path / "base"
    copy.mkdir()
    (copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    named = config.model.model_copy(update={"name_or_path": str(copy)})
    assert base_licence(config.model_copy(update={"model": named})) == "apache-2.0"
    assert base.is_dir()


def test_a_model_in_a_package(smollm2: Any) -> None:
    from comal_fast.config import Config

    assert "Apache" in (base_licence(Config(model=smollm2)) or "")


ASKED = """
import json, sys
from vllm import LLM, SamplingParams
for folder in sys.argv[1:]:
    model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64)
    greedy = SamplingParams(max_tokens=5, min_tokens=5, temperature=0)
    said = model.chat([{"role": "user", "content": "Say one."}], greedy, use_tqdm=False)
    print("answered", json.dumps(list(said[0].outputs[0].token_ids)), flush=True)
    del model
"""


@pytest.mark.slow
def test_vllm_reads_it(tiny_run: Path, tmp_path: Path) -> None:
    """It answers with transformers' own tokens: whole models and a merged LoRA."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    python = os.environ.get("COMAL_FAST_VLLM")
    if not python:
        pytest.skip("no vLLM; name a Python that has it in COMAL_FAST_VLLM (`make vllm`)")
    # vLLM's attention on a CPU knows no heads as narrow as the other tests' model has
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    tiny_model(**wide).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folders, expected = [], []
    for kind in ("full", "lora"):
        run = ran(
            tiny_run,
            kind,
            f"model.name_or_path={tmp_path / 'model'}",
            f"output_dir={tmp_path / kind}",
        )
        folders.append(str(tmp_path / f"exported-{kind}"))
        assert main(["export", "model", str(run), folders[-1]]) == 0
        model = AutoModelForCausalLM.from_pretrained(folders[-1], dtype=torch.float32)
        ids = asked(AutoTokenizer.from_pretrained(folders[-1]), "Say one.")
        said = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        expected.append(said[0, ids.shape[1] :].tolist())
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    command = ["nice", "-n", "19", python, "-c", ASKED, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    lines = [x.removeprefix("answered ") for x in done.stdout.splitlines() if x[:8] == "answered"]
    assert [json.loads(line) for line in lines] == expected, done.stderr[-2000:]


CONVERTER = """
import sys
from pathlib import Path
folder, rest = sys.argv[1], sys.argv[2:]
given = dict(zip(rest[::2], rest[1::2]))
assert (Path(folder) / "config.json").is_file()
if given["--outtype"] == "f32":
    sys.exit("ERROR: this model is not supported")
Path(given["--outfile"]).write_text(given["--outtype"])
"""


def test_gguf_and_bad_input(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """llama.cpp's converter is told where and what; what it says is passed on."""
    run, out = ran(tiny_run, "full"), tmp_path / "out"
    converter = tmp_path / "convert.py"
    converter.write_text(CONVERTER)
    export = ["export", "model", str(run), str(out)]
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    capsys.readouterr()
    for more, words in (
        (["--adapter"], "the run trained whole models"),
        (["--iterate", "0"], "π_0: the model that the run began with"),
        (["--iterate", "5"], "run `train` of iteration 5 first"),
        (["--converter", str(converter)], "--converter: goes with --gguf"),
        (["--private"], "--private: goes with --push"),
        (["--gguf", "f16"], "convert_hf_to_gguf.py is not there"),
        (
            ["--gguf", "f32", "--converter", str(converter)],
            "convert.py failed: ERROR: this model is not supported",
        ),
    ):
        assert main([*export, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
        assert not out.exists() and not list(tmp_path.glob(".*"))
    assert main([*export[:3], str(tmp_path / "there")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*export, "--gguf", "q8_0", "--converter", str(converter)]) == 0
    assert (out / "out.q8_0.gguf").read_text() == "q8_0"


def test_a_push_that_fails_keeps_the_folder(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network, or without a token: one line."""
    out = tmp_path / "out"
    run = ran(tiny_run, "full")
    command = ["export", "model", str(run), str(out), "--push", "someone/else/x"]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert "--push someone/else/x" in error and "is written" in error and "\n" not in error
    assert (out / "config.json").is_file()
