"""Checkpoints read without running anything: DCP's index is a pickle, and its plain values are."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from comal_fast.errors import InputError

_INDEX = ".metadata"
_NAMES = {  # module → what an index of tensors and numbers is made of
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(n for n, x in vars(torch).items() if isinstance(x, torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _Names(pickle.Unpickler):
    """A pickle that may name what an index is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """DCP's reader of a folder, whose index runs no code and names files of the folder alone.

    Raises InputError for any other.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = self._folder / _INDEX
        try:
            metadata = _Names(io.BytesIO(index.read_bytes())).load()
            files = {info.relative_path for info in metadata.storage_data.values()}
        except Exception as error:  # a damaged pickle raises anything
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{index}: can't be read ({why}); delete {self._folder}, and this iteration "
                "trains anew"
            ) from None
        for name in files:
            if Path(name).name != name:
                raise InputError(f"{index}: it names {name!r}, outside of {self._folder}")
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        found: Metadata = metadata
        return found


class Planner(DefaultLoadPlanner):
    """DCP's planner, which takes numbers and containers for plain values, and no code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
