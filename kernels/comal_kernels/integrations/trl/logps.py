"""Log-probs of a dataset's responses under a fixed policy, kept in files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from comal_kernels.packing.collator import SIDES

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def columns(policy: str) -> list[str]:
    """Names of the two columns of a policy, "ref" or "last"."""
    return [f"{policy}_{side}_logps" for side in SIDES]


def logps_key(dataset: Dataset, model_hash: str, options: tuple[Any, ...]) -> str:
    """What the log-probs depend on: the tokens, the weights, and how sequences are cut."""
    h = hashlib.sha256(repr((model_hash, options)).encode())
    table = dataset.with_format("arrow")[:]
    for name in IDS:
        lists = table[name].combine_chunks()
        for part in (lists.value_lengths(), lists.flatten()):
            h.update(part.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return h.hexdigest()[:16]


def file_of(folder: Path, name: str, key: str) -> Path:
    """Where the log-probs of the dataset called `name` are kept."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{key}.parquet"


def read_logps(path: Path, rows: int) -> np.ndarray | None:
    """(rows, 2) chosen and rejected, or None where there is no such file, or it is damaged."""
    try:
        found = Dataset.from_parquet(str(path), keep_in_memory=True).with_format("numpy")
        values = np.stack([found["chosen_logps"], found["rejected_logps"]], 1)
    except Exception:  # whatever a torn file makes a reader raise: it is computed anew
        return None
    return values if values.shape == (rows, 2) else None


def write_logps(path: Path, values: np.ndarray) -> None:
    """Keep values (rows, 2); the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    Dataset.from_dict({"chosen_logps": values[:, 0], "rejected_logps": values[:, 1]}).to_parquet(
        str(part)
    )
    part.replace(path)


def with_columns(dataset: Dataset, policy: str, values: np.ndarray) -> Dataset:
    """The dataset with the two columns of a policy."""
    given = dict(zip(columns(policy), values.astype(np.float32).T, strict=True))
    return concatenate_datasets([dataset, Dataset.from_dict(given)], axis=1)
