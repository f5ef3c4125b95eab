"""MLLP: 0B message 1C 0D over TCP (conformance.md 5.6). asyncio for framing and deadlines only."""

import asyncio
from collections import Counter
from collections.abc import Callable

from broker import log
from broker.config import Settings
from broker.errors import ConfigError

START, END = b"\x0b", b"\x1c\x0d"
CHUNK_BYTES = 64 * 1024


class MllpServer:
    """handle(message, peer address) runs in a thread and gives the answer; None = close without one."""

    def __init__(self, settings: Settings, handle: Callable[[bytes, str], bytes | None]) -> None:
        self.settings, self.limits, self._handle = settings, settings.limits, handle
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        host, port = self.settings.hl7.host, self.settings.hl7.port
        try:
            self._server = await asyncio.start_server(self._on_connection, host, port, limit=CHUNK_BYTES)
        except OSError as error:
            raise ConfigError("hl7.port", f"cannot listen on {host}:{port}: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Messages that are being processed are answered first."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername")[0])
        limits = self.limits
        if (
            self._open.total() >= limits.mllp_connections_max
            or self._open[peer] >= limits.mllp_connections_per_address_max
        ):
            log.get().warning("hl7.full", peer=peer)
            writer.close()
            return
        self._open[peer] += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer, peer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._open[peer] -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        buffer = bytearray()
        while (frame := await self._frame(reader, buffer, peer)) is not None:
            # Shielded: what is being applied is answered, whatever happens to the connection.
            answer = await asyncio.shield(asyncio.to_thread(self._handle, frame, peer))
            if answer is None:
                return
            writer.write(START + answer + END)
            await asyncio.wait_for(writer.drain(), self.limits.mllp_frame_seconds_max)

    async def _frame(self, reader: asyncio.StreamReader, buffer: bytearray, peer: str) -> bytes | None:
        """The next message; None when the peer closed, sent half a frame too slowly, or too much."""
        while True:
            start = buffer.find(START)
            del buffer[: start if start >= 0 else len(buffer)]  # junk before a frame
            if buffer:
                break
            chunk = await asyncio.wait_for(reader.read(CHUNK_BYTES), self.limits.mllp_idle_seconds_max)
            if not chunk:
                return None
            buffer += chunk
        searched = 0
        async with asyncio.timeout(self.limits.mllp_frame_seconds_max):
            while (end := buffer.find(END, max(0, searched - 1))) < 0:
                searched = len(buffer)
                if searched > self.limits.mllp_frame_bytes_max:
                    log.get().warning("hl7.frame_too_long", peer=peer, bytes=searched)
                    return None
                chunk = await reader.read(CHUNK_BYTES)
                if not chunk:
                    return None
                buffer += chunk
        frame = bytes(buffer[1:end])
        del buffer[: end + len(END)]
        return frame
