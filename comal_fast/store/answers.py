"""What oracles said, kept in one SQLite file, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from comal_fast.errors import InputError
from comal_fast.system.terminal import console

_APPLICATION, _VERSION = 0x434F4D41, 2  # who made the file, and how it is laid out
_PATIENCE = 120  # seconds to wait while another run writes
_AT_ONCE = 500  # keys of one query
_SUM = 8  # bytes of checksum behind an answer


class Answers:
    """Vectors of float64 by a key of bytes, in a file that processes of one machine can share.

    The file is opened, and made, when it is first needed. What `write` was given is there whenever
    the process may be killed after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def read(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Those of the keys that have an answer. Raises InputError for a file that is no cache."""
        found: dict[bytes, np.ndarray] = {}
        damaged = 0
        with self._open() as connection:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value FROM answers WHERE key IN ({marks})"
                for key, value in connection.execute(query, some):
                    answer, sum_ = value[:-_SUM], value[-_SUM:]
                    if sum_ == _checksum(key, answer):
                        found[key] = np.frombuffer(answer, dtype="<f8")
                    else:
                        damaged += 1
        if damaged:
            console.print(
                f"  [yellow]![/] {self.path}: {damaged} answers are damaged, and asked for again",
                soft_wrap=True,
            )
        return found

    def write(self, found: Mapping[bytes, np.ndarray]) -> None:
        """Keep the answers, all or none of them. Raises InputError where that can't be."""
        answers = {k: np.asarray(v, dtype="<f8").tobytes() for k, v in found.items()}
        rows = [(k, answer + _checksum(k, answer)) for k, answer in answers.items()]
        with self._open() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def take(self, name: str, most: int) -> bool:
        """Add one request to what was spent, unless it is `most` already; whether it was added."""
        self.spend(name, 0, 0)
        with self._open() as connection:
            query = "UPDATE spent SET requests = requests + 1 WHERE name = ? AND requests < ?"
            return connection.execute(query, [name, most]).rowcount == 1

    def spend(self, name: str, requests: int, tokens: int) -> tuple[int, int]:
        """Add to what was spent; returns the (requests, tokens) of all by now."""
        with self._open() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "requests = requests + excluded.requests, tokens = tokens + excluded.tokens",
                [name, requests, tokens],
            )
            query = "SELECT requests, tokens FROM spent WHERE name = ?"
            requests, tokens = connection.execute(query, [name]).fetchone()
        return requests, tokens

    def close(self) -> None:
        """Let go of the file; it is opened again where it must."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            yield self._connection
        except (sqlite3.DatabaseError, OSError) as error:
            self.close()
            foreign = type(error) is sqlite3.DatabaseError
            advice = (
                "name a file of this program's, or a new one"
                if foreign
                else ("name another file that can be written, or keep nothing by oracle.cache=null")
            )
            raise InputError(f"oracle.cache {self.path}: {error}; {advice}") from None

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")  # two runs may find no file at once
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute(
                    "CREATE TABLE answers (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
                )
                connection.execute(
                    "CREATE TABLE spent (name TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER)"
                )
            connection.execute("COMMIT")
            (made_by,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if (made_by, version) == (_APPLICATION, 1):
                version = _upgrade(connection)
            if (made_by, version) != (_APPLICATION, _VERSION):
                raise sqlite3.DatabaseError("another program's database, or another version's")
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection


def _checksum(key: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(key + answer, digest_size=_SUM).digest()


def _upgrade(connection: sqlite3.Connection) -> int:
    """Add the checksums that the first layout had not; returns the version that it is now."""
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute("SELECT key, value FROM answers").fetchall()
    summed = [(value + _checksum(key, value), key) for key, value in rows]
    connection.executemany("UPDATE answers SET value = ? WHERE key = ?", summed)
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")
    return _VERSION


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let readers and a writer go on beside each other; the file remembers it.

    Unlike other statements this one does not wait where another process is at work in the file.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)
