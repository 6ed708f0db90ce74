"""Every configuration that comes with the project is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from comal_fast.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", FILES, ids=str)
def test_it_loads(name: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "nf4" in (CONFIGS / name).read_text():
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(CONFIGS.parent)
    assert load_config(CONFIGS / name).output_dir.startswith("runs/")


def test_the_papers_oracle() -> None:
    """½ and ½ of two reward models (arXiv 2410.23223v2, eq. 4)."""
    oracle = load_config(CONFIGS / "llama3-8b-1gpu.yaml").oracle.model_dump()
    assert oracle["name"] == "mixture" and oracle["weights"] == [0.5, 0.5]
    models = [member["model"] for member in oracle["members"]]
    assert [m.partition("/")[2][:7] for m in models] == ["Skywork", "ArmoRM-"]
    assert all(member["temperature"] == 1 for member in oracle["members"])
