"""Atomic writing of files: a file appears complete or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes ``content``; an existing file is replaced only when all of it is on the disk.

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
                f"cannot write '{path}' ({len(content)} bytes): {error.strerror or error}. "
                "Choose a folder that can be written and has free space; an existing file was "
                "not changed."
            ) from error
        raise
    _sync_folder(path.parent)


@dataclass(frozen=True)
class Seal:
    """The sha256 of an HDF5 image, kept beside it where readers of HDF5 do not look.

    It stands behind ``mark`` in the ``head`` bytes before the image, HDF5's user block, or at the
    end of the file. Damage is found before a byte is interpreted: the HDF5 library itself runs for
    minutes, or for ever, on some damaged files.
    """

    mark: bytes
    head: int = 0

    def on(self, image: bytes) -> bytes:
        seal = self.mark + hashlib.sha256(image).hexdigest().encode()
        return (seal + b"\n").ljust(self.head, b"\0") + image if self.head else image + seal

    def off(self, data: bytes) -> bytes:
        """The image without its seal, which others' files lack."""
        start, end = self._image(len(data))
        seal = data[:start] if self.head else data[end:]
        return data[start:end] if seal.startswith(self.mark) else data

    def _image(self, size: int) -> tuple[int, int]:
        """Where it begins and ends in a file of ``size`` bytes."""
        return (self.head, size) if self.head else (0, max(size - len(self.mark) - 64, 0))

    def broken(self, path: Path) -> bool:
        """Whether a sealed file's bytes changed.

        Others' files have no seal, nor have ours once h5py has changed them on purpose.
        """
        start, end = self._image(path.stat().st_size)
        with open(path, "rb") as file:
            file.seek(0 if self.head else end)
            seal = file.read(self.head or -1)
            if not seal.startswith(self.mark):
                return False
            file.seek(start)
            digest = hashlib.sha256()
            while block := file.read(min(2**20, max(end - file.tell(), 0))):
                digest.update(block)
        return seal[len(self.mark) :].strip(b"\0\n") != digest.hexdigest().encode()

    def check(self, path: Path) -> None:
        """FormatError for a sealed file whose bytes changed."""
        if self.broken(path):
            raise FormatError(
                f"'{path}' is damaged: its bytes are not those that were written. Copy it again, "
                "or write it again."
            )

    def with_certificate(self, data: bytes, certificate: str) -> bytes:
        """The file's bytes with a text at the root, where no reader looks for the network."""
        import h5py

        image = io.BytesIO(self.off(data))
        with h5py.File(image, "r+") as file:
            file.attrs["certificate"] = certificate
        return self.on(image.getvalue())


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
