"""`comal-fast export answers`: a policy's answers in the files of outside yardsticks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comal_fast.context import Context
    from comal_fast.data.answers import Key, Question

DESCRIPTION = """\
Answer the questions of AlpacaEval, Arena-Hard or MT-Bench by a policy of a run, in the file that
these read. --questions is their own file of questions; without it the run's held-out samples are
written, one a prompt. Sampled is as the run samples; NAME=value sets otherwise, such as
generation.max_new_tokens=2048. Given again it goes on where it was stopped."""


def register(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add `export answers`."""
    parser = verbs.add_parser(
        "answers",
        help="answers in the files of AlpacaEval, Arena-Hard, MT-Bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", type=Path)
    add("file", metavar="FILE", help="to write")
    add("overrides", nargs="*", metavar="NAME=value", help="options set here")
    add("--format", required=True, choices=("alpaca_eval", "arena_hard", "mt_bench"))
    add("--questions", metavar="FILE", help="of that format; JSON, JSONL or parquet")
    add("--iterate", type=int, metavar="T", help="π_T; 0 is the initial policy (default: result)")
    add("--name", help="of the system in the file (default: the run's folder and the iterate)")
    add("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute it; returns 0, or raises InputError before anything is written."""
    from comal_fast.config import load_saved
    from comal_fast.config.load import override
    from comal_fast.context import Context
    from comal_fast.data.answers import load_questions, to_file
    from comal_fast.errors import InputError
    from comal_fast.store.directory import check_run
    from comal_fast.store.files import check_target, write_all
    from comal_fast.system.terminal import console

    check_target(args.file, "FILE")
    if Path(args.file).exists() and not args.force:
        raise InputError(f"{args.file}: it is there already; give --force to write over it")
    directory = check_run(args.run_dir)
    if args.questions is None and args.format == "mt_bench":
        raise InputError("--questions: MT-Bench asks in turns; give its question.jsonl")
    if args.questions is None and args.overrides:
        raise InputError(f"{args.overrides[0]}: no effect on held-out samples; give --questions")
    iterate, trained = directory.chosen(args.iterate), [0, *directory.trained()]
    if iterate not in trained:
        known = ", ".join(map(str, trained))
        raise InputError(f"--iterate: {args.run_dir} has no π_{iterate}; there are {known}")
    name = args.name or f"{args.run_dir.resolve().name}-{iterate}"
    if args.questions is None:
        questions, answers = _held_out(directory, iterate, args)
    else:
        questions = load_questions(args.questions, args.format)
        config = override(load_saved(directory.config), [*args.overrides, "data.pairs=null"])
        config = config.model_copy(update={"output_dir": str(args.run_dir)})
        answers = answer(Context(config), iterate, questions, Path(f"{args.file}.parts"))
    write_all({args.file: to_file(args.format, questions, answers, name)})
    _discard(Path(f"{args.file}.parts"))
    console.print(f"wrote {len(questions)} answers of {name} to {args.file}", soft_wrap=True)
    return 0


def answer(
    context: Context, iterate: int, questions: Sequence[Question], parts: Path
) -> dict[Key, list[str]]:
    """An answer a turn by π_iterate, sampled as `generation:` says, those before it in view.

    `parts`: a folder of responses as they come, from which it goes on.
    """
    from comal_fast.config.options import what
    from comal_fast.data.conversation import Message, Messages
    from comal_fast.data.prompts import Prompt
    from comal_fast.data.template import prompt_ids
    from comal_fast.data.tokenize import TokenizedPrompt
    from comal_fast.errors import InputError
    from comal_fast.phases.generate import sample_table
    from comal_fast.store.artefacts import make_key
    from comal_fast.store.shards import Shards

    config = context.config
    system = (Message("system", config.data.system_prompt),) if config.data.system_prompt else ()
    said: dict[Key, Messages] = {q.id: system for q in questions}
    answers: dict[Key, list[str]] = {q.id: [] for q in questions}
    new = config.generation.max_new_tokens
    for turn in range(max(len(q.turns) for q in questions)):
        asked = [q for q in questions if turn < len(q.turns)]
        prompts = []
        for q in asked:
            said[q.id] = (*said[q.id], Message("user", q.turns[turn]))
            ids = prompt_ids(context.tokenizer, Prompt(said[q.id], f"question {q.id!r:.40}"))
            if len(ids) + new > config.data.max_length:
                raise InputError(
                    f"question {q.id!r:.40}: {len(ids)} tokens; with generation.max_new_tokens="
                    f"{new} that exceeds data.max_length={config.data.max_length}; raise it"
                )
            prompts.append(TokenizedPrompt(said[q.id], ids))
        stream = f"answers {turn}"
        key = make_key(
            stream,
            context.policies.key(iterate),
            [p.ids for p in prompts],
            what(config.generation),
            config.seed,
        )
        label = f"answers of π_{iterate}" + (f", turn {turn + 1}" if turn else "")
        table, _ = sample_table(
            context, iterate, prompts, 1, stream, label, Shards(parts / str(turn), key)
        )
        for q, text in zip(asked, table["response"].to_pylist(), strict=True):
            answers[q.id].append(text)
            said[q.id] = (*said[q.id], Message("assistant", text))
    return answers


def _held_out(
    directory: Any, iterate: int, args: argparse.Namespace
) -> tuple[list[Question], dict[Key, list[str]]]:
    """The last user messages of held-out prompts, and the first sample of each."""
    from comal_fast.data.answers import Question, short_id
    from comal_fast.errors import InputError

    samples = directory.iteration(iterate).eval_samples
    if not samples.exists():
        known = ", ".join(map(str, directory.sampled())) or "none"
        raise InputError(
            f"{args.run_dir}: no held-out samples of π_{iterate}, of {known} there are; give "
            "--questions, or another --iterate"
        )
    arena = args.format == "arena_hard"
    questions: dict[Key, Question] = {}
    answers: dict[Key, list[str]] = {}
    for row in samples.read().to_pylist():
        key = short_id(row["prompt"]) if arena else row["prompt"]
        questions.setdefault(key, Question(key, (row["prompt"],), uid=arena))
        answers.setdefault(key, [row["response"]])
    return list(questions.values()), answers


def _discard(parts: Path) -> None:
    import shutil

    if parts.is_dir():
        shutil.rmtree(parts)
