"""What readers copy from the pages: Python that runs, YAML that loads, commands that parse."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from blocks import fenced, python_blocks
from comal_fast import cli
from comal_fast.config import load_config
from tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("kernels/*.md")])
RUN_ELSEWHERE = {  # page → blocks of Python that another test runs
    "README.md": 4,  # three plugins, TRL
    "docs/trl.md": 4,
    "kernels/README.md": 4,
}


def test_no_python_is_left_out() -> None:
    here = {"README.md": 1, "docs/lora.md": 1}
    found = {str(p.relative_to(ROOT)): len(blocks) for p in PAGES if (blocks := python_blocks(p))}
    assert found == {p: RUN_ELSEWHERE.get(p, 0) + here.get(p, 0) for p in found}


def test_the_losses_alone() -> None:
    (block,) = (b for b in python_blocks(ROOT / "README.md") if b.startswith("from comal_kernels "))
    hidden = torch.randn(12, 8, requires_grad=True)
    names = {
        "hidden": hidden,
        "head": nn.Linear(8, 30, bias=False),
        "target": torch.randint(0, 30, (12,)),
        "cu_seqlens": torch.tensor([0, 3, 7, 9, 12]),
        "chosen": torch.tensor([0, 2]),
        "rejected": torch.tensor([1, 3]),
        "ref_logp": torch.randn(4),
        "last_logp": torch.randn(4),
    }
    exec(compile(block, "README.md", "exec"), names)
    assert isinstance(hidden.grad, Tensor) and bool(hidden.grad.any())


def test_an_adapter_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    (block,) = python_blocks(ROOT / "docs" / "lora.md")
    (where,) = re.findall(r'"(.*/model)"', block)
    monkeypatch.chdir(tmp_path)
    base = tiny_model()
    base.save_pretrained("base")
    base.name_or_path = "base"
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        where
    )
    byte_tokenizer().save_pretrained(where)
    names: dict[str, object] = {}
    exec(compile(block, "docs/lora.md", "exec"), names)
    assert isinstance(names["model"], peft.PeftModel)


YAML = [(p, b) for p in PAGES for b in fenced(p, "yaml")]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[p.stem for p, _ in YAML])
def test_yaml_loads(page: Path, text: str, tmp_path: Path) -> None:
    config = {"model": {"name_or_path": "m"}, "data": {"prompts": "p.jsonl"}, "output_dir": "o"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config | yaml.safe_load(text)))
    load_config(file)


COMMANDS = [
    (page, line)
    for page in PAGES
    for block in [*fenced(page, ""), *fenced(page, "bash")]
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(\w+=\S+ )*comal-fast ", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_commands_parse(page: Path, line: str) -> None:
    """And the configurations they name are there."""
    words = shlex.split(line, comments=True)
    words = words[words.index("comal-fast") + 1 :]
    if cut := [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "…")]:
        words = words[: cut[0]]
    args = cli.parse(words)
    assert isinstance(args, argparse.Namespace)
    for word in words:
        if word.startswith("configs/"):
            braces = re.search(r"{(.*)}", word)
            for name in braces[1].split(",") if braces else [""]:
                file = ROOT / re.sub(r"{.*}", name, word)
                assert file.exists(), f"{page.name}: {file.name}"
