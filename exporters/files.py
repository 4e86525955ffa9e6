"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from ..errors import FormatError


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """``content`` at ``path``; what was there before stays until the last byte is on the disk.

    A link stays a link, and the file it leads to keeps its mode. Raises FormatError where the
    folder is missing, cannot be written, or is full.
    """
    path = Path(os.path.realpath(path))
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
        os.chmod(temporary, path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
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


def sealed(image: bytes, seal: bytes) -> bytes:
    """An HDF5 image with its sha256 behind it, where readers of HDF5 do not look."""
    return image + seal + hashlib.sha256(image).hexdigest().encode()


def unsealed(data: bytes, seal: bytes) -> bytes:
    """The image without its seal, which others' files lack."""
    end = len(data) - len(seal) - 64
    return data[:end] if end >= 0 and data[end:].startswith(seal) else data


def check_seal(path: Path, seal: bytes) -> None:
    """FormatError for a sealed file whose bytes changed.

    Others' files have no seal, nor have ours once h5py has changed them on purpose.
    """
    size = path.stat().st_size - len(seal) - 64
    if size < 0:
        return
    with open(path, "rb") as file:
        file.seek(size)
        end = file.read()
        if not end.startswith(seal):
            return
        file.seek(0)
        digest = hashlib.sha256()
        while size > 0:
            block = file.read(min(size, 2**20))
            digest.update(block)
            size -= len(block) or size
    if end[len(seal) :] != digest.hexdigest().encode():
        raise FormatError(
            f"'{path}' is damaged: its bytes are not those that were written. Copy it anew, or "
            "write it again."
        )


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
