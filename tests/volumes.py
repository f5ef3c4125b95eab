"""A volume that is really full: no pretending."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_volume(folder: Path, megabytes: int) -> Iterator[Path]:
    """A folder in which no more than that fits. Where mounting is not allowed, no single file may grow beyond it."""
    folder.mkdir(parents=True, exist_ok=True)
    if _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)):
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 1024 * 1024, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _mount(*arguments: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    return False
