"""Kills a tiny run at random instants, damages its files at random, and lets it go on each time.

    python tests/faults/harness.py --kills 200 --damages 100 --seed 0

Every time it must end as the undisturbed run did, bit for bit, or stop with the line that says why
not. Runs are forks of this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from resume import comparable, contents

CONFIG = """
output_dir: {folder}/run
model: {{name_or_path: {model}, device: cpu}}
data: {{prompts: {folder}/prompts.jsonl, eval_prompts: 3, prompts_per_iteration: 4,
       max_length: 128}}
generation: {{num_generations: 3, max_new_tokens: 6, batch_size: 6}}
oracle: {{target_words: 2}}
pairing: {{strategy: all}}
algorithm: {{eta: 0.05, iterations: 2, ref_update_interval: 2}}
training: {{learning_rate: 1.0e-3, num_train_epochs: 2, train_batch_size: 3, save_steps: 1,
           max_tokens_per_microbatch: 300}}
evaluation: {{bootstrap: 100, report: false}}
seed: {seed}
"""
PATIENCE = 120  # seconds within which a run must end


@dataclass
class Ran:
    """How a run ended: its exit status (−signal), and what it wrote to stderr and stdout."""

    status: int
    error: str
    output: str


def run(folder: Path, kill_after: float | None = None) -> Ran:
    """`comal-fast run` in a fork, killed after so many seconds if it is still there."""
    log, errors = folder / "log", folder / "errors"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for stream, file in ((1, log), (2, errors)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            from comal_fast.cli import main

            status = main(["run", str(folder / "config.yaml")])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + (PATIENCE if kill_after is None else kill_after)
    while (waited := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            waited = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(waited[1])
    if status == -signal.SIGKILL and kill_after is None:
        raise AssertionError(f"{folder}: still at work after {PATIENCE} s")
    return Ran(status, errors.read_text(), log.read_text())


@dataclass
class Study:
    """A tiny run that nothing disturbed, another with another seed, and what came of the rest."""

    place: Path
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from tiny import byte_tokenizer, tiny_model

        model = self.place / "model"
        if os.fork() == 0:  # it computes
            for each in (tiny_model(), byte_tokenizer()):
                each.save_pretrained(model)
            os._exit(0)
        os.wait()
        self.calm, self.other = self.folder("calm"), self.folder("other", seed=8)
        start = time.monotonic()
        for folder in (self.calm, self.other):
            ran = run(folder)
            assert ran.status == 0, ran.error
        self.seconds = (time.monotonic() - start) / 2
        self.right = contents(self.calm / "run")
        self.rows = _ordered(self.calm / "run")

    def folder(self, name: str, seed: int = 7) -> Path:
        """A folder with a configuration, whose run directory is not there yet."""
        made = self.place / name
        made.mkdir()
        rows = ({"prompt": f"Say {'very ' * (i % 4)}nicely what {i} is."} for i in range(12))
        (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = CONFIG.format(folder=made, model=self.place / "model", seed=seed)
        (made / "config.yaml").write_text(text)
        return made

    def judge(self, what: str, folder: Path, ran: Ran, count: int = 1) -> None:
        """Count how it ended, after so many faults; neither right nor said is a failure."""
        said = ran.error.strip().splitlines()
        if ran.status == 0 and contents(folder / "run") != self.right:
            self.failures.append(f"{what}: ended with other files than the undisturbed run")
        elif ran.status == 0 and _ordered(folder / "run") != self.rows:
            self.failures.append(f"{what}: ended with other metrics")
        elif ran.status == 0:
            self.outcomes["ended bit-identical"] += count
        elif ran.status == 2 and said and said[-1].startswith("comal-fast: error: "):
            self.outcomes["stopped with a line"] += count
        else:
            self.failures.append(f"{what}: status {ran.status}: {' | '.join(said[-4:])}")

    def kill(self, count: int) -> None:
        """That many SIGKILLs, each run gone on with, killed again, till one ends by itself."""
        generator, number = random.Random(f"{self.seed} kills"), 0
        folder, open_kills = self.folder("killed-0"), 0
        while number < count:
            ran = run(folder, generator.uniform(0, self.seconds))
            killed = ran.status == -signal.SIGKILL
            number, open_kills = number + killed, open_kills + killed
            _show(f"kill {number} of {count}")
            if not killed or number == count or open_kills == 12:
                if open_kills:
                    self.judge(f"kill {number}", folder, run(folder) if killed else ran, open_kills)
                shutil.rmtree(folder)
                folder, open_kills = self.folder(f"killed-{time.monotonic_ns()}"), 0

    def damage(self, count: int) -> None:
        """That many files damaged, of runs that had ended or been killed, one at a time."""
        generator = random.Random(f"{self.seed} damages")
        for number in range(count):
            folder = self.folder(f"damaged-{number}")
            if number % 3 == 2:  # with a checkpoint or shards, as it comes
                run(folder, generator.uniform(0.3, 0.9) * self.seconds)
            else:
                shutil.copytree(self.calm / "run", folder / "run")
            files = sorted(f for f in (folder / "run").rglob("*") if f.is_file())
            if not files:
                continue
            kinds = sorted({_kind(f) for f in files})
            kind = generator.choice(kinds)  # or most would be pictures
            file = generator.choice([f for f in files if _kind(f) == kind])
            name, act = generator.choice(list(DAMAGES.items()))
            where = file.relative_to(folder / "run")
            act(file, self.other / "run" / where, generator)
            _show(f"damage {number + 1} of {count}: {name} {where}")
            self.judge(f"{name} {where}", folder, run(folder))
            shutil.rmtree(folder)


def _kind(file: Path) -> str:
    return f"{file.parent.name if file.suffix == '.json' else ''} {file.suffix or file.name}"


def _ordered(run: Path) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in comparable(run))


def _truncate(file: Path, other: Path, generator: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: generator.randrange(max(1, len(content)))])


def _flip(file: Path, other: Path, generator: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(bytes(content))


def _delete(file: Path, other: Path, generator: random.Random) -> None:
    file.unlink()


def _exchange(file: Path, other: Path, generator: random.Random) -> None:
    if other.exists():
        shutil.copyfile(other, file)
    else:
        file.unlink()


DAMAGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "truncated": _truncate,
    "one bit flipped": _flip,
    "deleted": _delete,
    "from another run": _exchange,
}


def _show(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def study(kills: int, damages: int, seed: int) -> Study:
    """Both, in a folder that is gone afterwards."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import comal_fast.loop  # noqa: F401 - what every fork would import

    with tempfile.TemporaryDirectory() as place:
        made = Study(Path(place), seed)
        made.kill(kills)
        made.damage(damages)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    made = study(args.kills, args.damages, args.seed)
    total = args.kills + args.damages
    outcomes = ", ".join(f"{n} {what}" for what, n in sorted(made.outcomes.items()))
    _show("")
    print(
        f"{args.kills} kills and {args.damages} damaged files, seed {args.seed}: {outcomes}, "
        f"{len(made.failures)} neither; {total} in {time.monotonic() - start:.0f} s"
    )
    for failure in made.failures:
        print(f"  {failure}")
    return 1 if made.failures else 0


if __name__ == "__main__":
    sys.exit(main())
