"""The download and disk size of an installation, without downloading most of it.

    python bench/install.py . '.[eval]' torch==2.13.0+cpu

prints one line per requirement, with everything that it installs on this machine: packages, the
sum of their wheels, and the sum of the files in them, in MB of 10^6 bytes. Byte code, which pip
adds, is not included (a fifth more for the CPU build). pip names the wheels (`--dry-run --report`);
the size of their files comes from the archive directory at the end of each wheel.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


class Remote(io.RawIOBase):
    """A file at an address; only the requested ranges are downloaded."""

    def __init__(self, url: str):
        self.url, self.place = url, 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            self.size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        end = min(self.size, self.place + len(buffer))
        if end <= self.place:
            return 0
        wanted = {"Range": f"bytes={self.place}-{end - 1}"}
        with urllib.request.urlopen(urllib.request.Request(self.url, headers=wanted)) as answer:
            data = answer.read()
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def sizes(url: str) -> tuple[int, int]:
    """Bytes of a wheel, and of the files in it. A source archive counts with its own size (there
    are few, and they are small); a directory, which is not downloaded, counts as 0."""
    path = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if path is not None and path.is_dir():
        return 0, 0
    file = path.open("rb") if path is not None else io.BufferedReader(Remote(url), 1 << 16)
    with file:
        size = file.seek(0, io.SEEK_END)
        if not url.endswith(".whl"):
            return size, size
        with zipfile.ZipFile(file) as wheel:
            return size, sum(each.file_size for each in wheel.infolist())


def wheels(requirement: str) -> list[str]:
    """Addresses of everything that pip would install into an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run(
        [*command, "--report", "-", requirement], stdout=subprocess.PIPE, check=True
    )
    return [each["download_info"]["url"] for each in json.loads(done.stdout)["install"]]


def main(requirements: list[str]) -> None:
    print("| install | packages | download, MB | unpacked, MB |\n|---|---|---|---|")
    for requirement in requirements or ["."]:
        found = [sizes(url) for url in wheels(requirement)]
        download, unpacked = (sum(column) / 1e6 for column in zip(*found, strict=True))
        print(f"| {requirement} | {len(found)} | {download:.0f} | {unpacked:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
