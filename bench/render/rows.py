"""Tables of README and docs, rendered from the records, so that no figure is typed by hand."""

from __future__ import annotations

from bench.record import Record

Rows = tuple[list[str], list[list[str]]]  # columns, rows of text


def spread(seconds: Record, unit: str) -> str:
    """Median and quartiles in `unit`, s or ms."""
    q25, median, q75 = (seconds[k] * (1e3 if unit == "ms" else 1) for k in ("q25", "median", "q75"))
    digits = 2 if median < 100 else 1
    return f"{median:.{digits}f} ({q25:.{digits}f} – {q75:.{digits}f})"


def full_name(row: Record) -> str:
    """Name, fastest variant, what is special about it."""
    marks = []
    if row.get("objective", "dpo") != "dpo":
        marks.append(row["objective"])
    if not row.get("exact", True):
        marks.append("inexact")
    if not row.get("bounded", True) and row["name"] != "floor":
        marks.append("holds all logits")
    name = row["name"] if row["name"] != "floor" else "floor: the plain products"
    name += f", {row['variant']}" if row.get("variant") else ""
    return f"{name} [{'; '.join(marks)}]" if marks else name


def head_rows(result: Record, tokens: int) -> Rows:
    """Fastest first."""
    timed = [r for r in result["rows"] if r.get("tokens") == tokens and "seconds" in r]
    timed.sort(key=lambda r: r["seconds"]["median"])
    unit = "s" if timed[-1]["seconds"]["median"] > 1 else "ms"
    rows = [
        [
            full_name(r),
            spread(r["seconds"], unit),
            f"{r['ratio_to_floor']:.2f}",
            f"{max(r['errors'].values()):.0e}" if "errors" in r else "",
        ]
        for r in timed
    ]
    return ["contender", f"{unit}, median (quartiles)", "× floor", "largest error"], rows


def step_rows(result: Record) -> Rows:
    """Fastest first."""
    timed = sorted(
        (r for r in result["rows"] if "seconds" in r), key=lambda r: r["seconds"]["median"]
    )
    rows = [
        [
            r["name"],
            spread(r["seconds"], "s"),
            f"{r['tokens_per_second']:.0f}",
            gib(r["peak"]),
            f"{r['first']['loss']:.5f}",
            f"{r['first']['grad_norm']:.4g}",
        ]
        for r in timed
    ]
    columns = ["trainer", "s a step, median (quartiles)", "tokens/s", "peak GiB"]
    return [*columns, "first loss", "gradient norm"], rows


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def memory_rows(result: Record) -> Rows:
    """A column a number of tokens; the leanest variant of each contender."""
    measured = [r for r in result["rows"] if "extra_bytes" in r]
    sizes = list(dict.fromkeys(r["tokens"] for r in measured))
    leanest: dict[str, Record] = {}
    for r in sorted(measured, key=lambda r: (-r["tokens"], r["extra_bytes"])):
        leanest.setdefault(r["name"], r)
    rows = []
    for best in sorted(leanest.values(), key=lambda r: r["extra_bytes"]):
        same = {
            r["tokens"]: r["extra_bytes"]
            for r in measured
            if (r["name"], r["variant"]) == (best["name"], best["variant"])
        }
        rows.append([full_name(best), *(mib(same[n]) if n in same else "" for n in sizes)])
    return ["contender", *(f"MiB at {n} tokens" for n in sizes)], rows


def peak_rows(result: Record) -> Rows:
    """Predicted against measured peaks of training steps."""
    rows = [
        [
            f"{r['model']}, {r['name']}",
            f"{r['recomputed']}",
            f"{r['passes']} × {r['tokens']}",
            r["moment"],
            mib(r["predicted"]),
            mib(r["measured"]),
            f"{r['predicted'] / r['measured'] - 1:+.1%}",
        ]
        for r in result["rows"]
    ]
    columns = ["model, mode", "layers recomputed", "passes × tokens", "peak at"]
    return [*columns, "predicted MiB", "measured MiB", "error"], rows


def scaling_rows(result: Record) -> Rows:
    """A row a contender: time and memory at each size, and the exponents."""
    timed = [r for r in result["rows"] if "seconds" in r]
    sizes = list(dict.fromkeys(r["tokens"] for r in timed))
    unit, scale = ("s", 1.0) if max(r["seconds"]["median"] for r in timed) > 1 else ("ms", 1e3)
    rows = []
    for name in dict.fromkeys(r["name"] for r in timed):
        mine = {r["tokens"]: r for r in timed if r["name"] == name}
        cells = []
        for n in sizes:
            extra = mine.get(n, {}).get("extra_bytes")
            time = f"{mine[n]['seconds']['median'] * scale:.2f}" if n in mine else "–"
            cells.append(time + (f" · {mib(extra)}" if extra is not None else ""))
        fit = result["fits"].get(name, {})
        rows.append(
            [name, *cells, *(f"{fit[k]:.2f}" if k in fit else "" for k in ("time", "memory"))]
        )
    columns = [f"{n} tokens: {unit} · extra MiB" for n in sizes]
    return ["contender", *columns, "exponent of time", "of memory"], rows


def mib(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.0f}"


def breakdown_rows(result: Record) -> Rows:
    """Kinds of work by their share; last, what is ours outside products and attention."""
    kinds = result["breakdown"]
    total = sum(kinds.values())
    rows = [[kind, f"{s:.3f}", f"{s / total:.1%}"] for kind, s in kinds.items()]
    mine = sum(s for kind, s in kinds.items() if kind.startswith("ours"))
    rows.append(["ours outside products and attention", f"{mine:.3f}", f"{mine / total:.1%}"])
    return ["what", "s", "share"], rows


def kernel_rows(result: Record) -> Rows:
    """Operators with their achieved rates."""
    rows = [
        [
            r["name"],
            " ".join("×".join(map(str, s)) for s in r["shapes"][:3]),
            str(r["calls"]),
            f"{r['seconds'] * 1e3:.1f}",
            f"{r['bytes'] / 2**20:,.0f}",
            f"{r['bytes_per_second'] / 1e9:,.1f}",
            f"{r['flops_per_second'] / 1e9:,.0f}" if r["flops"] else "",
        ]
        for r in result["rows"]
    ]
    return ["operator", "shapes", "calls", "ms", "least MiB", "GB/s", "GFLOP/s"], rows


def model_rows(result: Record) -> Rows:
    """Parts of a step: counted, and predicted."""
    rows = [
        [
            r["name"],
            f"{r['flops'] / 1e12:.2f}",
            f"{r['bytes'] / 1e9:.1f}",
            f"{r['seconds']:.3f}",
            r["bound"],
        ]
        for r in result["rows"]
    ]
    rows.append(["step", "", "", f"{result['seconds']:.3f}", ""])
    return ["part", "TFLOP", "GB", "s", "bound by"], rows


def model_memory_rows(result: Record) -> Rows:
    """What holds memory at the peak."""
    rows = [[name, gib(size)] for name, size in result["memory"].items()]
    return ["what", "GiB"], [*rows, ["peak", gib(result["peak"])]]
