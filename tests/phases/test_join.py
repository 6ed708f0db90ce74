"""Tables are joined by what they are about, never by the order of their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from comal_fast.config import load_config
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.loop import open_run, run_here
from comal_fast.phases import train
from comal_fast.phases.evaluate import prompt_lengths
from comal_fast.phases.judge import responses_by_prompt
from comal_fast.store.artefacts import Table


def sampled(tiny_run: Path) -> Context:
    options = ["algorithm.prox=sppo", "algorithm.log_z=samples", "oracle.target_words=3", "seed=6"]
    text = tiny_run.read_text().replace("pairing: {strategy: all}\n", "")
    tiny_run.write_text(text)
    with open_run(load_config(tiny_run, options)) as context:
        for phase in ("generate", "judge", "pair", "logps"):
            run_here(context, phase, 1)
    return context


def reversed_in_place(table: Table) -> None:
    """The same rows, last first, under the same key."""
    content, key = table.read(), table.key()
    assert key is not None
    table.write(content.take(list(reversed(range(content.num_rows)))), key)


def test_win_rates_follow_prompt_and_sample(tiny_run: Path) -> None:
    context = sampled(tiny_run)
    before, _ = train.load_items(context, 1)
    reversed_in_place(context.directory.iteration(1).judgments)
    after, _ = train.load_items(context, 1)
    assert np.array_equal(before.per_item["log_z"], after.per_item["log_z"])
    assert len({float(x) for x in before.per_item["log_z"]}) > 3  # they do differ


def test_a_matrix_is_of_the_samples_by_number(tiny_run: Path) -> None:
    folder = sampled(tiny_run).directory.iteration(1)
    straight = responses_by_prompt(folder.samples.read())
    reversed_in_place(folder.samples)
    assert responses_by_prompt(folder.samples.read()) == straight
    assert list(straight) == sorted(straight)  # as prompt_lengths has them
    assert len(prompt_lengths(folder.samples.read())) == len(straight)


def test_an_iterate_is_evaluated_on_the_prompts_of_the_earlier_ones(tiny_run: Path) -> None:
    """Another seed holds out other prompts under the same numbers."""
    with open_run(load_config(tiny_run)) as context:
        for phase in ("generate", "judge", "pair", "logps", "train"):
            run_here(context, phase, 1)
        run_here(context, "evaluate", 0)
        run_here(context, "evaluate", 1)
    initial = context.directory.iteration(0).eval_samples
    table, key = initial.read(), initial.key()
    other = [[*ids, 5] for ids in table["prompt_ids"].to_pylist()]
    column = table.schema.get_field_index("prompt_ids")
    assert key is not None
    field = table.schema.field(column)
    initial.write(table.set_column(column, field, pa.array(other, field.type)), key)
    with (
        open_run(load_config(tiny_run)) as context,
        pytest.raises(InputError, match=r"π_0 was sampled on other held-out prompts .* first"),
    ):
        run_here(context, "evaluate", 1)


def test_every_phase_says_what_it_took(tiny_run: Path) -> None:
    rows = sampled(tiny_run).directory.rows()
    seconds = {row["phase"]: row["perf/seconds"] for row in rows}
    assert seconds.keys() == {"generate", "judge", "pair", "logps"}
    assert all(x > 0 for x in seconds.values()), seconds
