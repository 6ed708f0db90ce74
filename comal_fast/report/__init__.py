"""The report of a run: one self-contained HTML page and its pictures."""

from __future__ import annotations

from pathlib import Path

from comal_fast.report.command import register, run

__all__ = ["register", "run", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report/*.png and RUN_DIR/report.html; returns the path of the page.

    InputError where `run_dir` is no run directory or cannot be written to.
    """
    from comal_fast.report.html import write_run  # matplotlib and pyarrow are slow to load
    from comal_fast.report.load import load_run

    return write_run(load_run(Path(run_dir)))
