"""MLLP: 0B message 1C 0D over TCP (conformance.md 5.6). asyncio for framing and deadlines only."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from broker import db, log
from broker.config import Settings
from broker.errors import ConfigError
from broker.ris_bridge import journal
from broker.ris_bridge.inbox import Answer
from broker.ris_bridge.turns import TURNS, Turn

START, END = b"\x0b", b"\x1c\x0d"
CHUNK_BYTES = 64 * 1024
NOTE_SECONDS_BETWEEN = 0.1  # one commit notes what was answered meanwhile
STOP_SHARE = 0.9  # of the time to stop: for answers; the rest is for whoever waits until we have stopped


class MllpServer:
    """handle(message, peer address, turn) runs in a thread and gives the answer; None = close without one."""

    def __init__(self, settings: Settings, handle: Callable[[bytes, str, Turn], Answer | None]) -> None:
        self.settings, self.limits, self._handle = settings, settings.limits, handle
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()  # connections, and the one that notes
        self._waiting: set[asyncio.Task[None]] = set()  # connections without a message in work
        self._sent: list[int] = []
        self._noter: asyncio.Task[None] | None = None
        self._stopping = False
        self.port = 0

    async def start(self) -> None:
        host, port = self.settings.hl7.host, self.settings.hl7.port
        try:
            self._server = await asyncio.start_server(self._on_connection, host, port, limit=CHUNK_BYTES)
        except OSError as error:
            raise ConfigError("hl7.port", f"cannot listen on {host}:{port}: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Connections that wait for a message end at once, those with one in work when it is answered."""
        self._stopping = True
        self._server.close()
        for task in self._waiting:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.stop_seconds_max * STOP_SHARE):
                while self._tasks:
                    await asyncio.wait(self._tasks)
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
            await self._serve(reader, writer, peer, task)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._waiting.discard(task)
            self._open[peer] -= 1
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, task: asyncio.Task[None]
    ) -> None:
        writer.transport.set_write_buffer_limits(0)  # drained: all of it is in the socket
        buffer = bytearray()
        while not self._stopping:
            self._waiting.add(task)
            frame = await self._frame(reader, buffer, peer)
            self._waiting.discard(task)
            if frame is None:
                return
            turn = TURNS.draw()
            try:
                answer = await asyncio.to_thread(self._handle, frame, peer, turn)
            finally:
                turn.done()
            if answer is None:
                return
            writer.write(START + answer.raw + END)
            await asyncio.wait_for(writer.drain(), self.limits.mllp_frame_seconds_max)
            self._note_sent(answer.message_pk)

    def _note_sent(self, message_pk: int) -> None:
        self._sent.append(message_pk)
        if self._noter is None or self._noter.done():
            self._noter = asyncio.create_task(self._note())
            self._tasks.add(self._noter)
            self._noter.add_done_callback(self._tasks.discard)

    async def _note(self) -> None:
        """Beside the connections: no message waits for it, and its failure breaks none."""
        while self._sent:
            await asyncio.sleep(0 if self._stopping else NOTE_SECONDS_BETWEEN)
            sent, self._sent = self._sent, []
            try:
                await asyncio.to_thread(db.run, journal.note_sent, sent)
            except Exception:  # the answers are out, which is what counts
                log.get().exception("hl7.note_failed", messages=len(sent))

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
