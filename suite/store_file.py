"""The file of a result store: its version, and how it is opened, to be read or to be written to.

Nothing here knows what is in its tables.
"""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

VERSION = 3
APPLICATION = 0x62667231  # "bfr1": tells our files from other SQLite files
_TRIES = 200  # ten seconds


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=60)


def set_write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; SQLite does not wait its timeout here while another process is doing the same."""
    for left in reversed(range(_TRIES)):
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(0.05)


def open_to_read(path: Path) -> sqlite3.Connection:
    """Without leave to write, yet such that closing clears away the log's files, which `mode=ro` leaves lying about.

    A directory that cannot be written to holds no write-ahead log to be read either.
    """
    if not os.access(path.parent, os.W_OK):
        return _connect(path, "immutable=1")
    connection = _connect(path, "mode=rw")
    connection.execute("pragma query_only = on")
    return connection


def _check(path: Path) -> bool:
    """Read, without touching anything, what the file says it is; False for a store that was begun and never made."""
    logged = path.with_name(f"{path.name}-wal").exists()
    with closing(_connect(path, "mode=ro" if logged else "immutable=1")) as connection:
        try:
            application = connection.execute("pragma application_id").fetchone()[0]
            version = connection.execute("pragma user_version").fetchone()[0]
            tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is not a bitfrontier store: {error}") from error
    begun = (application, version, tables) == (0, 0, 0)
    if application != APPLICATION and not begun:
        raise ValueError(f"{path} is not a bitfrontier store: it is another program's SQLite file")
    if version != VERSION and not begun:
        raise ValueError(f"{path} has store version {version}, this bitfrontier reads version {VERSION}")
    return not begun


def holds_store(path: Path) -> bool:
    """Whether there is a store at `path`; a file that a killed run left before its first record is none.

    Raises `ValueError` for a file that is something else, or a store of another version.
    """
    try:
        return path.is_file() and path.stat().st_size > 0 and _check(path)
    except sqlite3.Error as error:
        raise ValueError(f"cannot open a store at {path}: {error}") from error
