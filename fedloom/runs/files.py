"""Files of a run: there whole or not at all, and a user error that names them where the system says no."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".tmp-"
"""What names of unfinished files and folders begin with."""

GO_ON = "go on with --resume"

_FIRST = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or make room",
    errno.EROFS: "make the disk writable, or copy the folder to one that is",
    errno.EACCES: "make the folder and its files writable for this user",
    errno.EPERM: "make the folder and its files writable for this user",
}


class CannotWrite(UserError):
    """The system refuses to write a file: a full disk, a quota, a folder that may only be read."""


@contextmanager
def writing(path: Path, then: str = GO_ON) -> Iterator[None]:
    """Within, whatever keeps a file from being written is told with its name, the reason and what to do.

    Args:
        path: The file, or the folder that it is written into.
        then: What to do once the reason is gone.

    Raises:
        CannotWrite: The system refuses.
    """
    try:
        yield
    except OSError as error:
        at = Path(os.fsdecode(error.filename or path))
        raise _refused(at if path in at.parents else path, error.errno, str(error), then) from error
    except Exception as error:
        number = _number_of_safetensors(error)
        if number is None:
            raise
        raise _refused(path, number, "", then) from error


def _refused(path: Path, number: int | None, message: str, then: str) -> CannotWrite:
    reason = os.strerror(number) if number else message
    first = _FIRST.get(number or 0)
    what_to_do = f"{first}, then {then}" if first else then
    # The name that the file will have, not the one that it has until it is whole.
    name = Path(*(part.removeprefix(TEMPORARY) for part in path.parts))
    return CannotWrite(f"{name} cannot be written ({reason}); {what_to_do}")


def _number_of_safetensors(error: Exception) -> int | None:
    """The system's number of an error of writing that safetensors has put into words."""
    loaded = sys.modules.get("safetensors")
    found = re.search(r"\(os error (\d+)\)", str(error))
    if loaded is None or not isinstance(error, loaded.SafetensorError) or found is None:
        return None
    return int(found[1])


def write_atomically(path: Path, content: str | bytes, *, private: bool = False, then: str = GO_ON) -> None:
    """Replace `path` by a file with this content; a reader sees the old content or the new one.

    Args:
        path: The file.
        content: Its new content; text becomes UTF-8.
        private: Whether only this user may read it, as befits what tells of persons.
        then: What to do once the file can be written.

    Raises:
        CannotWrite: The system refuses; the old content stands.
    """
    # A name of its own, so that two who write the same file never write into each other's.
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
    with writing(path, then):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, and force them to the disk; each must own its memory.

    Raises:
        CannotWrite: The system refuses.
    """
    from safetensors.torch import save_file

    with writing(path):
        save_file(dict(tensors), path, metadata)
        sync(path)


def replace_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; the file is there whole, or as it was before.

    Raises:
        CannotWrite: The system refuses.
    """
    temporary = path.with_suffix(".tmp")
    # Tensors may be views of one buffer, which safetensors refuses.
    copies = {name: t.detach().cpu().clone() for name, t in tensors.items()}
    with writing(path):
        try:
            save_tensors(temporary, copies, metadata)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                remove(temporary)
            raise
        sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and `folder` itself, to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Force one file's content, or one folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(path: Path, example: str) -> None:
    """Make sure that a file may be made, or replaced: only an ordinary file is ever replaced.

    Not a folder, a device or a pipe; and not a link, which may lead out of the folder that the user sees.

    Args:
        path: Where the option `output` wants it.
        example: A name for such a file, for the message.

    Raises:
        UserError: There is something else.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"output: cannot look at {path} ({error.strerror}); choose another place") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"output: {path} is a folder; name a file in it, such as {path / example}")
    if stat.S_ISLNK(mode):
        raise UserError(f"output: {path} is a link to {os.readlink(path)}; name that file, or another one")
    if not stat.S_ISREG(mode):
        raise UserError(f"output: {path} is no ordinary file and is not replaced; choose another name")
