"""Files written whole or not at all, and the folder for what can be computed again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deformer_core.errors import InputError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which becomes `path` if the block ends well and vanishes otherwise.

    Missing parent folders are made.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix, which some writers go by
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path} ({reason}): choose another folder or free space") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cache_folder() -> Path:
    """Where computed files are kept: $DEFORMER_CACHE, or ~/.cache/deformer. Everything in it may be deleted."""
    return Path(os.environ.get("DEFORMER_CACHE") or Path.home() / ".cache" / "deformer")
