"""The verb `comal-fast export pairs`: a run's judged pairs as a file of TRL's preference format."""

from __future__ import annotations

import argparse
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Write the pairs that a run trains on, one a row: prompt, chosen and rejected as lists of role and
content, probability (P(chosen ≻ rejected) by the oracle) and iteration. The file is one for
data.pairs, and for TRL's trainers."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def register(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add `export pairs`."""
    pairs = verbs.add_parser(
        "pairs",
        help="judged pairs in TRL's preference format",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pairs.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    pairs.add_argument("file", metavar="FILE", help=f"ends in {', '.join(SUFFIXES)}")
    pairs.add_argument("--iteration", type=int, metavar="T", help="of this one (default: all)")
    pairs.add_argument("--force", action="store_true", help="write over a file that is there")
    pairs.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute it; returns 0, or raises InputError before anything is written."""
    from comal_fast.errors import InputError
    from comal_fast.store.directory import check_run
    from comal_fast.store.files import check_target, write_all
    from comal_fast.system.terminal import console

    if not args.file.endswith(SUFFIXES):
        raise InputError(f"{args.file}: its name must end in {', '.join(SUFFIXES)}")
    check_target(args.file, "FILE")
    if Path(args.file).exists() and not args.force:
        raise InputError(f"{args.file}: it is there already; give --force to write over it")
    directory = check_run(args.run_dir)
    paired = {t: f for t, f in directory.iterations().items() if f.pairs.exists()}
    if args.iteration is not None:
        if args.iteration not in paired:
            known = ", ".join(map(str, paired)) or "none"
            raise InputError(
                f"--iteration: {args.run_dir} has no pairs of {args.iteration}; there are {known}"
            )
        paired = {args.iteration: paired[args.iteration]}
    rows = [row for t, folder in paired.items() for row in _rows(t, folder)]
    if not rows:
        raise InputError(f"{args.run_dir}: no pairs there; run `comal-fast pair` first")
    write_all({args.file: _encode(rows, args.file)})
    console.print(f"wrote {len(rows)} pairs to {args.file}", style="dim", soft_wrap=True)
    return 0


def _rows(iteration: int, folder: Any) -> Iterator[dict[str, Any]]:
    """The pairs of one iteration; a prox that trains on single responses has none."""
    from comal_fast.data.conversation import opened
    from comal_fast.oracles import conversations

    samples, pairs = folder.samples.read(), folder.pairs.read()
    messages, responses = conversations(samples), samples["response"].to_pylist()
    for pair in pairs.to_pylist():
        if pair["rejected"] is None:
            continue
        prompt, _ = opened(messages[pair["chosen"]])
        sides = {
            side: [{"role": "assistant", "content": responses[pair[side]]}]
            for side in ("chosen", "rejected")
        }
        if sides["chosen"] == sides["rejected"]:  # tokens that differ, and spell the same text
            continue
        yield {
            "prompt": [message.to_dict() for message in prompt],
            **sides,
            "probability": pair["preference"],
            "iteration": iteration,
        }


def _encode(rows: list[dict[str, Any]], name: str) -> bytes:
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream)
        return stream.getvalue()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return gzip.compress(text, mtime=0) if name.endswith(".gz") else text
