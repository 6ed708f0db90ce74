"""A model card: what a policy was made from, how, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from comal_fast.config import Config
    from comal_fast.context import Context

PAPER = "[COMAL](https://arxiv.org/abs/2410.23223)"
_UNTOLD = ("output_dir", "cache", "device", "api_key_env", "base_url", "plugins")


def card(context: Context, iterate: int, adapter: bool, name: str) -> str:
    """README.md of π_iterate, as the hub reads it: a front matter, then sections."""
    from comal_fast.model.load import is_hub_name

    config = context.config
    base = public_name(config.model.name_or_path)
    licence = base_licence(config)
    front: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["comal", "preference-optimization", "alignment", config.algorithm.prox],
    }
    if is_hub_name(config.model.name_or_path):
        front["base_model"] = config.model.name_or_path
    if licence:
        front["license"] = licence
    head = yaml.safe_dump(front, sort_keys=True).strip()
    file = f" ({config.model.gguf_file})" if config.model.gguf_file else ""
    lines = [
        f"---\n{head}\n---",
        f"# {name}",
        f"{base}{file}, aligned with preferences by {PAPER}: iterate {iterate} of "
        f"{config.algorithm.iterations}, prox loss `{config.algorithm.prox}`."
        + (" An adapter, to be loaded on the base model." if adapter else ""),
        "## Made from",
        _table(
            ("base model", f"{base}{file}"),
            ("licence of the base model", licence or "not found; see the base model"),
            ("prompts", public_name(config.data.pairs or config.data.prompts)),
            ("preferences", " + ".join(_judges(config)) or "those of the pairs"),
        ),
        "## Measured",
        _results(context, iterate),
        "## Settings",
        f"```yaml\n{yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True)}```",
        "## Versions",
        ", ".join(f"{package} {version}" for package, version in _versions(context).items()),
    ]
    return "\n\n".join(lines) + "\n"


def public_name(value: str | None) -> str:
    """A hub name or package as it is, of a path its end alone."""
    text = str(value)
    return Path(text).name if text.startswith(("/", ".", "~")) or Path(text).exists() else text


def base_licence(config: Config) -> str | None:
    """Of the base model: its own card's, in its folder or on the hub, or the package's."""
    name = config.model.name_or_path
    if name.startswith("package:"):
        return _package_licence(name.removeprefix("package:"))
    from huggingface_hub import ModelCard

    where = Path(name).expanduser() / "README.md"
    try:
        found = ModelCard.load(where if where.is_file() else name)
    except Exception:  # no card, no network, or one that can't be read: it is not known then
        return None
    licence = found.data.get("license")
    return str(licence) if licence else None


def _package_licence(package: str) -> str | None:
    try:
        found = metadata(package.replace("_", "-"))
    except PackageNotFoundError:
        return None
    for field in ("License-Expression", "License"):
        if field in found:
            return str(found[field])
    return None


def settings(config: Config) -> dict[str, Any]:
    """What says how it was trained; nothing of this machine."""
    from comal_fast.config import to_dict

    tree = to_dict(config)
    groups = ("algorithm", "pairing", "generation", "training", "oracle")
    chosen = {name: _told(tree[name]) for name in groups if name in tree}
    lora = tree["model"].get("lora")
    return {"seed": config.seed, **({"lora": _told(lora)} if lora else {}), **chosen}


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _told(v) for k, v in value.items() if k not in _UNTOLD and v is not None}
    if isinstance(value, list):
        return [_told(item) for item in value]
    return public_name(value) if isinstance(value, str) and value.startswith("/") else value


def _judges(config: Config) -> Iterator[str]:
    members = getattr(config.oracle, "members", None) or [config.oracle]
    for member in members:
        model = getattr(member, "model", None) or getattr(member, "game", None)
        if member.name != "none":
            yield f"`{member.name}`" + (f" of {public_name(model)}" if model else "")


def _results(context: Context, iterate: int) -> str:
    folder = context.directory.iteration(iterate)
    rows = []
    if folder.pair_evaluation.exists():
        found = folder.pair_evaluation.read()
        rows.append((f"accuracy on {found['pairs']} held-out pairs", _percent(found["accuracy"])))
    if folder.evaluation.exists():
        found = folder.evaluation.read()
        wins, prompts = found["win_rates"].get("0"), found["n_prompts"]
        if wins:
            against = f"win rate against the initial policy, {prompts} held-out prompts"
            rows.append((against, _percent(wins)))
            rows.append(("the same at equal length", _at_equal_length(wins)))
        kl = found["kl_to_initial"]
        rows.append(("KL to the initial policy, nats", _plain(kl)))
        rows.append(("tokens of a response", f"{found['response_length']['mean']:.1f}"))
    if not rows:
        return "Nothing was measured of this iterate."
    said = "Means with 95 % intervals over prompts, by the preferences above."
    return f"{said}\n\n{_table(*rows)}"


def _at_equal_length(wins: dict[str, Any]) -> str:
    found = wins["length_controlled"]
    return found.get("note") or _percent(found)


def _percent(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:.1%} [{low:.1%}, {high:.1%}]"


def _plain(found: dict[str, Any]) -> str:
    if found["ci95"] is None:
        return f"{found['mean']:.2f}"
    low, high = found["ci95"]
    return f"{found['mean']:.2f} [{low:.2f}, {high:.2f}]"


def _versions(context: Context) -> dict[str, str]:
    from comal_fast.system.machine import versions

    summary = context.directory.read_summary() or {}
    return dict(summary.get("versions") or versions())


def _table(*rows: tuple[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)])
