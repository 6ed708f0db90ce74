"""`comal-fast plan`: which mode fits a GPU, what it costs, and the options that give it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import yaml
from rich.table import Table

from comal_fast.config import Config, load_config
from comal_fast.config.schema import ModelConfig
from comal_fast.config.sizes import gib, parse_bytes
from comal_fast.errors import InputError
from comal_fast.plan.machines import MACHINES, Machine, nearest
from comal_fast.system.terminal import console, only_json


def register(verbs: Any) -> None:
    """Add `plan`."""
    verb = verbs.add_parser(
        "plan",
    )
    verb.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file; or give --model")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    verb.add_argument("--model", help="a name or folder, planned with the default options")
    verb.add_argument("--gpu-memory", metavar="SIZE", help="such as 80GiB; default: of --gpu")
    verb.add_argument("--gpu", choices=tuple(MACHINES), help="default: by its memory")
    verb.add_argument("--nodes", type=int, metavar="N", help="training on 1, 2, 4 … N nodes")
    verb.add_argument("--gpus-per-node", type=int, metavar="G",
        help="with --nodes or --hours; default: 8")  # fmt: skip
    verb.add_argument("--hours", action="store_true",
        help="also: hours of the whole run, on one GPU and on a node of them")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print every figure as JSON instead")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 0, or 2 where no mode fits."""
    with only_json(args.json):
        found, status = _plan(args)
    if args.json:
        print(json.dumps(found, indent=2))
    return status


def _plan(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """(what is printed as JSON, exit status)."""
    config = _config(args)
    memory, machine = _device(args)
    if args.gpus_per_node is not None and args.gpus_per_node < 1:
        raise InputError(f"--gpus-per-node: {args.gpus_per_node}; expected 1 or more")
    if args.nodes is not None:
        if args.hours:
            raise InputError("--hours: of one node; leave out --nodes")
        return _several(args, config, memory, machine)
    if args.gpus_per_node is not None and not args.hours:
        raise InputError("--gpus-per-node: goes with --nodes or --hours, which are missing")
    from comal_fast.plan import search
    from comal_fast.plan.as_json import plan_json
    from comal_fast.plan.shapes import read_shape

    shape, work = read_shape(config.model), search.Workload.of(config)
    fits = search.search(shape, work, machine, memory)
    best = search.choose(fits, memory)
    shown = list(fits)
    if args.config:
        mode = search.configured(config, shape, memory)
        shown.insert(0, search.assess(shape, mode, work, machine))
    name = config.model.name_or_path
    console.print(f"{name} on {gib(memory)} GiB ({machine.name}: {machine.source})")
    console.print(_modes(shown, best, work, memory), _notes(work), soft_wrap=True)
    if best is None:
        leanest = min(fits, key=lambda fit: fit.bytes)
        print(
            f"comal-fast: error: {name}: no mode fits {gib(memory)} GiB; the "
            f"nearest, {leanest.mode.name}, needs {gib(leanest.bytes / (1 - search.HEADROOM))} GiB",
            file=sys.stderr,
        )
        return plan_json(name, machine, memory, shown, None, []), 2
    console.print(_phases(best), _seconds(best))
    if best.host:
        console.print(f"host memory: {gib(best.host)} GiB, pinned")
    found = []
    if args.hours:
        from comal_fast.plan.whole import whole

        counts = (1, args.gpus_per_node or 8)
        found = [whole(config, shape, best, machine, memory, gpus) for gpus in counts]
        console.print(_hours(found))
        console.print(
            "Of the mode below; reward models counted as large as the policy, other judges not at "
            "all; sampling\nat the rate of the memory, as a good engine comes near it. Estimates.",
            soft_wrap=True,
        )
    console.print(f"[bold]{best.mode.name}[/]:\n{_yaml(best, shape.layers, work)}")
    return plan_json(name, machine, memory, shown, best, found), 0


def _several(
    args: argparse.Namespace, config: Config, memory: float, machine: Machine
) -> tuple[dict[str, Any], int]:
    """Print what training on several nodes would be; exit status 2 where no mode fits."""
    from comal_fast.plan import several
    from comal_fast.plan.as_json import several_json
    from comal_fast.plan.modes import LADDER
    from comal_fast.plan.search import Workload
    from comal_fast.plan.shapes import read_shape

    per_node = 8 if args.gpus_per_node is None else args.gpus_per_node
    for name, number in (("--nodes", args.nodes), ("--gpus-per-node", per_node)):
        if number < 1:
            raise InputError(f"{name}: {number}; expected 1 or more")
    shape, work = read_shape(config.model), Workload.of(config)
    counts = [2**i for i in range(args.nodes.bit_length()) if 2**i < args.nodes] + [args.nodes]
    found = [
        plan
        for nodes in counts
        for mode in LADDER
        if (plan := several.plan(shape, mode, work, machine, memory, per_node, nodes))
    ]
    name = config.model.name_or_path
    if not found:
        print(
            f"comal-fast: error: {name}: no mode trains on {args.nodes} × {per_node} GPUs of "
            f"{gib(memory)} GiB",
            file=sys.stderr,
        )
        return several_json(name, machine, memory, found), 2
    table = Table(
        title=f"{name}: training on nodes of {per_node} × {machine.name}, {gib(memory)} GiB each"
    )
    columns = "nodes", "mode", "recompute", "tokens", "most", "GiB", "GB in", "GB a card"
    for column in (*columns, "s", "exposed", "hidden from", "tokens/s"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for plan in found:
        table.add_row(
            f"{plan.nodes}",
            plan.mode.name,
            f"{plan.mode.recomputed}",
            f"{plan.tokens:,}",
            f"{plan.most:,}",
            gib(plan.bytes),
            f"{plan.traffic.inside / 1e9:.0f}",
            f"{plan.traffic.between / 1e9:.1f}",
            f"{plan.seconds:.2f}",
            f"{plan.exposed:.2f}",
            f"{plan.hidden_from:,.0f}",
            f"{plan.rate:,.0f}",
            end_section=plan is [p for p in found if p.nodes == plan.nodes][-1],
        )
    console.print(table, _several_notes(machine), soft_wrap=True)
    return several_json(name, machine, memory, found), 0


def _several_notes(machine: Machine) -> str:
    return (
        "A step of one packed pass a GPU. tokens: of the fastest pass that fits; most: of the "
        "largest; GB in: what a GPU takes in\nover the links inside its node "
        f"({machine.link / 1e9:.0f} GB/s); GB a card: over its network card "
        f"({machine.network / 1e9:.0f} GB/s); exposed: seconds of that beside which nothing is\n"
        "computed; hidden from: tokens of a pass from which its computation takes as long. "
        f"Counted bytes, rates of a {machine.source}:\nestimates, not measured. Sampling and "
        "log-probs, where every GPU holds the whole model unless vLLM shares it out, are not in it."
    )


def _config(args: argparse.Namespace) -> Config:
    if args.config and "=" in args.config and args.model:
        args.overrides, args.config = [args.config, *args.overrides], None
    if bool(args.config) == bool(args.model):
        raise InputError("plan: give either a CONFIG or --model NAME")
    if args.config:
        return load_config(args.config, args.overrides)
    if args.overrides:
        raise InputError("plan: key.path=value belongs to a CONFIG, not to --model")
    return Config(model=ModelConfig(name_or_path=args.model, dtype="bfloat16"))


def _device(args: argparse.Namespace) -> tuple[float, Machine]:
    if args.gpu_memory:
        memory = float(parse_bytes(args.gpu_memory, "--gpu-memory"))
        return memory, MACHINES[args.gpu or nearest(memory)]
    if args.gpu:
        return MACHINES[args.gpu].memory, MACHINES[args.gpu]
    import torch

    if not torch.cuda.is_available():
        raise InputError("--gpu-memory: missing, and there is no GPU here; write such as 80GiB")
    memory = float(torch.cuda.get_device_properties(0).total_memory)
    return memory, MACHINES[nearest(memory)]


def _modes(fits: list[Any], best: Any, work: Any, memory: float) -> Table:
    from comal_fast.plan.modes import CONFIGURED
    from comal_fast.plan.search import usable

    table = Table(title="Modes, each at its fastest that fits", title_justify="left")
    for name in ("mode", "recompute", "pairs", "tokens", "GiB", "s", "tokens/s", "fits"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for fit in fits:
        own = fit.mode.name == CONFIGURED
        ok = fit.fits(memory if own else usable(memory))
        table.add_row(
            fit.mode.name,
            f"{fit.mode.recomputed}" + (" to host" if fit.mode.offload_activations else ""),
            f"{fit.work.pairs}",
            f"{fit.work.budget}",
            gib(fit.bytes),
            f"{fit.seconds:.2f}",
            f"{fit.rate:,.0f}",
            "[green]yes[/]" if ok else "[red]no[/]",
            style="bold" if fit is best else "",
        )
    return table


def _notes(work: Any) -> str:
    from comal_fast.plan.memory import HEADROOM
    from comal_fast.plan.search import TYPICAL_PROMPT, TYPICAL_RESPONSE

    prompt, response = min(TYPICAL_PROMPT, work.prompt), min(TYPICAL_RESPONSE, work.new)
    return (
        "recompute: layers that do; pairs: of a step; tokens: of a packed pass. Peaks are for the "
        f"longest sequences\nallowed, with {HEADROOM:.0%} of the memory left free; times for "
        f"prompts of {prompt} and responses of {response} tokens.\nAll are estimates.\n"
    )


def _hours(found: Any) -> Table:
    table = Table(title="Hours of the whole run", title_justify="left")
    table.add_column("phase")
    for each in found:
        table.add_column(f"{each.gpus} GPU{'s' * (each.gpus > 1)}", justify="right")

    def row(name: str, values: list[float | None]) -> None:
        table.add_row(name, *("fits not" if v is None else f"{v:,.1f}" for v in values))

    for name in found[0].hours:
        row(name, [each.hours[name] for each in found])
    table.add_section()
    row("in all", [each.total for each in found])
    return table


def _phases(best: Any) -> Table:
    table = Table(title="Memory at the peak of each phase", title_justify="left")
    for name in ("phase", "at", "what", "GiB"):
        table.add_column(name, justify="right" if name == "GiB" else "left")
    for phase, peak in best.phases.items():
        rows = [(part, gib(size)) for part, size in peak.parts.items() if size >= 2**26]
        where: tuple[str, str] = (phase, peak.moment)
        for part, size in rows:
            table.add_row(*where, part, size)
            where = ("", "")
        table.add_row(*where, "in all", gib(peak.bytes), style="bold", end_section=True)
    return table


def _seconds(best: Any) -> Table:
    title = f"Time of a step of {best.work.pairs} pairs, {best.tokens:,} tokens"
    table = Table(title=title, title_justify="left")
    for name in ("part", "s", "bound by"):
        table.add_column(name, justify="right" if name == "s" else "left")
    for row in best.rows:
        table.add_row(row["name"], f"{row['seconds']:.3f}", row["bound"])
    table.add_row("step", f"{best.seconds:.3f}", "", style="bold")
    return table


def _yaml(best: Any, layers: int, work: Any) -> str:
    from comal_fast.plan.modes import options
    from comal_fast.plan.search import changes

    tree: dict[str, dict[str, Any]] = {}
    for name, value in (options(best.mode, layers) | changes(best, work)).items():
        group, key = name.split(".")
        tree.setdefault(group, {})[key] = value
    return yaml.safe_dump(tree, sort_keys=False)
