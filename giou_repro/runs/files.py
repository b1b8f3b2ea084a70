"""Files that are whole or not there, and locks."""

import errno
import fcntl
import os
from pathlib import Path

UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write bytes or text to `path` by way of a hidden file beside it, which an error removes."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or its text in a notebook, is that the disk is full."""
    return any(f"[Errno {number}]" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def describe(error: BaseException, folder: str | Path) -> str:
    """The text of an error that came while `folder` was written to, with the remedy where there is one."""
    if is_full(error):
        remedy = "free space and run the same command again"
        return f"no space left on the disk of {folder}; what was complete is kept; {remedy}"
    if isinstance(error, OSError) and error.filename and error.errno in UNUSABLE:
        return f"{error.filename} cannot be used ({error.strerror}); results go elsewhere by --results FOLDER"
    return f"{type(error).__name__}: {error}"


def lock(path: str | Path, wait: bool = False) -> int | None:
    """The descriptor of a file, locked, or None where another process has locked it.

    The system unlocks it when the process ends, however it ends. On file systems without locks (some network ones, by
    their mount options) raises OSError.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by programs that this process starts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            return None
        remedy = "put the results on a file system with locks (flock)"
        raise OSError(error.errno, f"{path} cannot be locked ({error.strerror}); {remedy}") from None
    return file
