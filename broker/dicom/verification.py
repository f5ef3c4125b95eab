"""C-ECHO (PS3.4 A): open to every known node."""

from collections.abc import Iterable

from broker.dicom.service import C_ECHO_RQ, Offer, Request, Response

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNCOMPRESSED = (EXPLICIT_LE, IMPLICIT_LE)


class EchoService:
    right = ""

    def handle(self, request: Request) -> Iterable[Response]:
        yield Response(0x0000)


def offers() -> Iterable[tuple[str, Offer]]:
    yield VERIFICATION, Offer(EchoService(), UNCOMPRESSED, frozenset({C_ECHO_RQ}))
