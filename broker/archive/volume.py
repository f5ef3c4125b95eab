"""The volume that takes received bytes: how much room it has, and whether its last write worked (durability.md 1.7)."""

import errno
import os
import threading
import time
import uuid
from pathlib import Path

from broker import log
from broker.config import Limits
from broker.errors import NoRoom

LOW_LOG_SECONDS = 60
RESERVE_BYTES_MAX, RESERVE_SHARE = 5 * 1024**3, 0.03
PROBE = b"ris-broker probe " * 256
# These tell nothing about the volume: somebody took the file away, or this process has no descriptor left.
NO_FAULT = frozenset({errno.ENOENT, errno.EMFILE, errno.ENFILE})


class Volume:
    """Guards one folder. Below the hard mark, or after a failed write, `admit` refuses; both mend themselves."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._largest = 0  # bytes, of the objects seen since the start
        self._tried_at: float | None = None  # when the volume last failed; None: it works
        self._warned_at = -float(LOW_LOG_SECONDS)
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Raises NoRoom where a new object, or more of one, must not be taken."""
        if self._tried_at is not None:
            self._try_again()
        try:
            total, free = self._space()
        except OSError as error:
            raise self.failed(error) from None
        if free < self._hard_mark(total):
            raise NoRoom("staging", "free space is below the reserve: send again later")
        if free < total * self._limits.staging_free_soft_percent / 100:
            self._warn(free)

    def saw(self, size: int) -> None:
        self._largest = max(self._largest, size)

    def failed(self, error: OSError) -> NoRoom:
        """Mark the volume bad, where it is. A failed fsync is never repeated: the kernel may have dropped the pages and
        would say yes (durability.md 1.1), so only new bytes in a new file can show that the volume works again."""
        log.get().error("staging.failed", errno=error.errno, error=error.strerror)
        if error.errno in NO_FAULT:
            return NoRoom("staging", "a file could not be opened: send again later")
        self._tried_at = time.monotonic()
        return NoRoom("staging", "the volume failed: send again later")

    def probe(self) -> None:
        """Write, fsync, read back. Raises OSError."""
        path = self._folder / f"{uuid.uuid4().hex}.part"
        try:
            with path.open("xb", buffering=0) as file:
                if file.write(PROBE) != len(PROBE):
                    raise OSError("short write")
                os.fsync(file.fileno())
            if path.read_bytes() != PROBE:
                raise OSError("other bytes read than written")
        finally:
            path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return self._space()[1]

    def _try_again(self) -> None:
        with self._lock:
            if self._tried_at is None:
                return
            if time.monotonic() - self._tried_at < self._limits.staging_probe_seconds:
                raise NoRoom("staging", "the volume failed: send again later")
            try:
                self.probe()
            except OSError as error:
                raise self.failed(error) from None
            self._tried_at = None
            log.get().info("staging.works_again")

    def _space(self) -> tuple[int, int]:
        """(bytes of the volume, bytes free for us)."""
        found = os.statvfs(self._folder)
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

    def _hard_mark(self, total: int) -> float:
        if self._limits.staging_free_bytes_min is not None:
            return self._limits.staging_free_bytes_min
        return max(2 * self._largest, min(RESERVE_BYTES_MAX, RESERVE_SHARE * total))

    def _warn(self, free: int) -> None:
        now = time.monotonic()
        if now - self._warned_at >= LOW_LOG_SECONDS:
            self._warned_at = now
            log.get().warning("staging.low", free_bytes=free)
