"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import FormatError


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """``content`` at ``path``; what was there before stays until the last byte is on the disk.

    Raises FormatError where the folder is missing, cannot be written, or is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FormatError(f"cannot write '{path}': the folder '{path.parent}' does not exist.")
    if path.is_dir():
        raise FormatError(f"cannot write '{path}': it is a folder; name a file in it.")
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a rename that overtakes its data leaves an empty file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise FormatError(
                f"cannot write '{path}' ({len(content)} bytes): {error.strerror or error}. Choose "
                "a folder that can be written and has room; a file that was there is as it was."
            ) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The rename itself onto the disk, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems cannot; the file itself is whole
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
