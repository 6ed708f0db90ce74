"""Tables on the terminal, from the records that are written."""

from __future__ import annotations

from rich.table import Table

from bench.record import Record
from comal_fast.system.terminal import console


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print it; the first column to the left."""
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def head(result: Record) -> None:
    """Fastest first, one table a number of tokens; then who got no time, and why."""
    from bench.render.rows import head_rows

    for tokens in dict.fromkeys(row["tokens"] for row in result["rows"] if "tokens" in row):
        title = f"DPO from hidden states: {tokens} tokens, {shape_text(result)}"
        table(title, *head_rows(result, tokens))
    refused(result)


def step(result: Record) -> None:
    """The trainers, fastest first."""
    from bench.render.rows import step_rows

    shape = result["shape"]
    title = (
        f"One step of {result['model']}: {shape['pairs']} pairs, "
        f"{shape['distinct_tokens']} distinct tokens, {shape['padded_tokens']} padded, "
        f"{shape['dtype']}, {device_text(result)}"
    )
    table(title, *step_rows(result))
    refused(result)


def refused(result: Record) -> None:
    """One line each of those without a time."""
    for row in result["rows"]:
        if row.get("why"):
            variant = f", {row['variant']}" if row.get("variant") else ""
            console.print(f"[yellow]–[/] {row['name']}{variant}: {row['why']}", soft_wrap=True)


def shape_text(result: Record) -> str:
    """Sizes, dtype and device."""
    shape = result["shape"]
    return f"{shape['hidden']} × {shape['vocab']}, {shape['dtype']}, {device_text(result)}"


def device_text(result: Record) -> str:
    """Its name, and the threads of a CPU."""
    device = result["device"]
    return device["name"] + (f", {device['threads']} threads" if "threads" in device else "")


def memory(result: Record) -> None:
    """Extra memory by contender and tokens."""
    from bench.render.rows import memory_rows

    table(f"Memory beyond inputs and gradients: {shape_text(result)}", *memory_rows(result))
    refused(result)


def peak(result: Record) -> None:
    """Predicted and measured peaks."""
    from bench.render.rows import peak_rows

    table(f"Peak memory of a step; {device_text(result)}", *peak_rows(result))


def scaling(result: Record) -> None:
    """Times, memory and the fitted exponents."""
    from bench.render.rows import scaling_rows

    table(f"Against tokens: {shape_text(result)}", *scaling_rows(result))
    refused(result)


def profile(result: Record) -> None:
    """The breakdown, then the longest operators."""
    from bench.render.rows import breakdown_rows, kernel_rows

    table(f"{result['bench']}: where {result['wall']:.3f} s go", *breakdown_rows(result))
    roofs = result["roofs"]
    title = (
        f"longest operators; roofs measured here: {roofs['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"{roofs['bytes_per_second'] / 1e9:,.0f} GB/s"
    )
    table(title, *kernel_rows(result))


def model(result: Record) -> None:
    """The prediction by part, memory, and how far from what was measured."""
    from bench.render.rows import model_memory_rows, model_rows

    machine, label = result["machine"], " (extrapolated)" if result["extrapolated"] else ""
    title = (
        f"Predicted{label}: a step of {result['model']} on {result['shape']['devices']} × "
        f"{machine['name']}, {sum(result['shape']['lengths'])} tokens; rates: {machine['source']}"
    )
    table(title, *model_rows(result))
    table("Predicted memory of a device", *model_memory_rows(result))
    if not result["fits"]:
        console.print(f"[yellow]–[/] does not fit {machine['memory'] / 2**30:.0f} GiB")
    measured = result["measured"]
    if measured is None:
        console.print("– this step was not measured on such a device: no error to report")
        return
    for what, unit, scale in (("seconds", "s", 1.0), ("peak", "GiB", 2.0**30)):
        guess, truth = result[what] / scale, measured[what] / scale
        console.print(
            f"{what}: predicted {guess:.2f} {unit}, measured {truth:.2f} {unit} "
            f"({measured['date']}): error {guess / truth - 1:+.0%}",
            soft_wrap=True,
        )
