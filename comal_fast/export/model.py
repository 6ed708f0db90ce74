"""`comal-fast export model`: an iterate as a folder that loads anywhere, with its model card."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comal_fast.context import Context

DESCRIPTION = """\
Write an iterate as a plain transformers folder: weights (an adapter added to what it rests on), the
tokenizer with its chat template, a generation config whose end tokens are the template's, and a
model card with base, data, oracle, settings, results and versions. --adapter writes the adapter
alone. --gguf also converts it, by llama.cpp's convert_hf_to_gguf.py."""
CONVERTER = "convert_hf_to_gguf.py"
_OWN = ("comal.json", "training_args.bin", "README.md")


def register(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add `export model`."""
    parser = verbs.add_parser(
        "model",
        help="a folder for transformers, peft, vLLM, TRL, with a model card",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", type=Path)
    add("output", metavar="FOLDER", type=Path, help="must not exist yet")
    add("--iterate", type=int, metavar="T", help="π_T (default: the run's result)")
    add("--adapter", action="store_true", help="of a LoRA run: the adapter, not merged")
    add("--gguf", metavar="TYPE", choices=("f32", "f16", "bf16", "q8_0"),
        help="also FOLDER/NAME.TYPE.gguf: f32, f16, bf16, q8_0")  # fmt: skip
    add("--converter", metavar="FILE.py", type=Path, help=f"default: {CONVERTER} on the PATH")
    add("--push", metavar="OWNER/NAME", help="also upload it to this repository of the hub")
    add("--private", action="store_true", help="with --push: a repository made for it is private")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute it; returns 0, or raises InputError before anything is written."""
    from comal_fast.config import load_saved
    from comal_fast.errors import InputError
    from comal_fast.store.directory import check_run
    from comal_fast.system.terminal import console

    directory = check_run(args.run_dir)
    config = load_saved(directory.config)
    if args.output.exists():
        raise InputError(f"{args.output}: exists already; give a new folder")
    if args.adapter and config.model.lora is None:
        raise InputError("--adapter: the run trained whole models, without model.lora")
    if args.adapter and args.gguf:
        raise InputError("--gguf: of a whole model; leave out --adapter")
    for option, given, needs in (
        ("--converter", args.converter, "--gguf"),
        ("--private", args.private, "--push"),
    ):
        if given and not getattr(args, needs.removeprefix("--")):
            raise InputError(f"{option}: goes with {needs}, which is missing")
    converter = _converter(args.converter) if args.gguf else None
    iterate = directory.chosen(args.iterate)
    if iterate == 0:
        raise InputError("π_0: the model that the run began with; nothing was trained into it")
    from comal_fast.context import Context  # torch and transformers load from here on

    context = Context(config.model_copy(update={"output_dir": str(args.run_dir)}))
    context.policies.key(iterate)  # says so where there is no such iterate
    with _folder(args.output) as folder:
        write(context, iterate, folder, args.adapter, args.output.name)
        if converter is not None:
            _to_gguf(converter, folder, f"{args.output.name}.{args.gguf}.gguf", args.gguf)
    console.print(f"π_{iterate} of {args.run_dir}: {args.output}", soft_wrap=True)
    if args.push:
        _push(args.output, args.push, args.private)
        console.print(f"pushed to {args.push}", soft_wrap=True)
    return 0


def write(context: Context, iterate: int, folder: Path, adapter: bool, name: str) -> None:
    """Fill `folder` with π_iterate (≥ 1), called `name` in its card."""
    from comal_fast.export.card import card

    config = context.config
    own = context.directory.iteration(iterate).model
    own.verify()
    if config.model.lora and not adapter:
        from comal_fast.merge import merged

        merged(context, iterate).save_pretrained(folder)
    else:
        for file in own.path.iterdir():
            if file.is_file() and file.name not in _OWN:
                shutil.copyfile(file, folder / file.name)
    context.tokenizer.save_pretrained(folder)
    if not adapter:
        _generation_config(context, folder)
    (folder / "README.md").write_text(card(context, iterate, adapter, name), encoding="utf-8")


def _generation_config(context: Context, folder: Path) -> None:
    """The base model's, whose end tokens are those at which the run's own samples ended."""
    from transformers import GenerationConfig

    from comal_fast.model.stored import stop_token_ids

    try:
        settings = GenerationConfig.from_pretrained(folder)
    except OSError:
        settings = GenerationConfig()
    ends = sorted(stop_token_ids(settings, context.tokenizer))
    settings.eos_token_id = ends if len(ends) != 1 else ends[0]
    pad = context.tokenizer.pad_token_id
    settings.pad_token_id = ends[0] if pad is None and ends else pad
    settings.save_pretrained(folder)


@contextmanager
def _folder(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when all is in it."""
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(output)


def _converter(given: Path | None) -> Path:
    from comal_fast.errors import InputError

    found = given or (Path(where) if (where := shutil.which(CONVERTER)) else None)
    if found is None or not found.is_file():
        raise InputError(
            f"--gguf: {given or CONVERTER} is not there; it comes with llama.cpp, whose folder "
            "must be on the PATH, or give its path by --converter"
        )
    return found


def _to_gguf(converter: Path, folder: Path, name: str, kind: str) -> None:
    from comal_fast.errors import InputError

    command = [sys.executable, str(converter), str(folder), "--outtype", kind]
    done = subprocess.run(
        [*command, "--outfile", str(folder / name)], capture_output=True, text=True, check=False
    )
    if done.returncode or not (folder / name).is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise InputError(f"--gguf: {converter.name} failed: {last:.300}")


def _push(folder: Path, name: str, private: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from comal_fast.errors import InputError

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"--push {name}: {why:.300}; {folder} is written") from None
