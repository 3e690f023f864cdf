"""Artifact locations in a SQLite store, brought to where they lie now.

MLflow writes absolute locations. A project that was moved, renamed or copied takes its database and its artifacts
along, and the locations in the database still name the place before.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlparse

from components.errors import InputError

# MLflow 3.17: tables and columns that hold locations
_LOCATIONS = (
    ("runs", "artifact_uri"),
    ("experiments", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("logged_models", "artifact_location"),
)
_SCHEME = "file://"


def refuse_no_database(path: Path) -> None:
    """Raises InputError of what cannot be a SQLite store, which MLflow would try again for minutes; one that is not
    there yet can be."""
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise InputError(f"tracking.uri: {path}: {found}; expected the file of a SQLite database, there or to be made")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                raise InputError(f"tracking.uri: {path}: holds no SQLite database")


def repair(database: Path, artifacts: Path) -> None:
    """Makes locations below the folder that `artifacts` was before name the same files below `artifacts`. What lies at
    its former place alone, as after another `tracking.artifacts`, stays. Does nothing where there is no such store."""
    refuse_no_database(database)
    if not database.is_file():
        return
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)
    try:
        moves = _moves(connection, artifacts)
    finally:
        connection.close()
    if not moves:
        return
    with sqlite3.connect(database, timeout=60, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for table, column, old, new in moves:
            writer.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))
        writer.execute("COMMIT")
    writer.close()


def _moves(connection: sqlite3.Connection, artifacts: Path) -> list[tuple[str, str, str, str]]:
    """What to replace: table, column, the former location and the present one."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    known = {
        (table, column): [value for (value,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}") if value]
        for table, column in _LOCATIONS
        if table in tables
    }
    former = [_path(value) for value in known.get(("experiments", "artifact_location"), [])]
    roots = {path for path in former if path is not None and path.name == artifacts.name and path != artifacts}
    moves = []
    for (table, column), values in known.items():
        for value in values:
            path = _path(value)
            root = next((root for root in roots if path is not None and path.is_relative_to(root)), None)
            if root is None:
                continue
            present = artifacts / path.relative_to(root)
            if present.exists() or not path.exists():
                moves.append((table, column, value, _like(value, present)))
    return moves


def _path(location: str) -> Path | None:
    """The absolute path of a local location; None of any other."""
    if location.startswith(_SCHEME):
        return Path(unquote(urlparse(location).path))
    return Path(location) if location.startswith("/") else None


def _like(former: str, path: Path) -> str:
    return path.as_uri() if former.startswith(_SCHEME) else str(path)
