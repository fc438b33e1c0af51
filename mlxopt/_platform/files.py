"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_ENDING = ".mlxopt-part"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a new file, open for writing, that takes the place of `path` at the end.

    An exception leaves `path` as it was. Mode and owner of the old file are kept; of a symbolic
    link, the file that it points to is replaced. Threads and processes can write to one path at
    once: it is always the whole file of one of them.

    Raises:
        OSError: the file cannot be written, or `path` is a folder or a device.
    """
    target = Path(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError(f"{path} is no regular file; expected the path of one, or of none.")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        _remove_stale(folder)
        part = f".{secrets.token_hex(8)}{_ENDING}"
        with _locked(part, folder) as file:
            try:
                yield file
                file.flush()
                if old is not None:
                    with contextlib.suppress(OSError):  # only root can give a file away
                        os.fchown(file.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                os.fsync(file.fileno())
                if not os.fstat(file.fileno()).st_nlink:
                    # With a folder's descriptor, Python follows the link to the nameless file.
                    os.link(f"/proc/self/fd/{file.fileno()}", part, dst_dir_fd=folder)
                os.replace(part, target.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)
                raise
    finally:
        os.close(folder)


def _locked(part: str, folder: int) -> BinaryIO:
    """Return a new file, locked for as long as it is open; without a name where that is possible.

    The system removes a nameless file when its process is killed.
    """
    mode: Any = 0o666  # less the umask
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a file system that has none
            handle = os.open(".", os.O_TMPFILE | os.O_RDWR, mode, dir_fd=folder)
            _lock(handle)
            return os.fdopen(handle, "wb")
    while True:
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode, dir_fd=folder)
        _lock(handle)
        if os.fstat(handle).st_nlink:
            return os.fdopen(handle, "wb")
        os.close(handle)  # taken for stale before it was locked


def _lock(handle: int) -> None:
    with contextlib.suppress(OSError):  # without locks nothing is taken for stale either
        fcntl.flock(handle, fcntl.LOCK_EX)


def _remove_stale(folder: int) -> None:
    """Remove the parts of killed processes: those that nobody has locked."""
    for name in os.listdir(folder):
        if not name.endswith(_ENDING):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=folder)
            finally:
                os.close(handle)
