"""Modality Performed Procedure Step (PS3.4 F): translates, decides nothing."""

import hashlib
from collections.abc import Iterable

from sqlalchemy.exc import SQLAlchemyError

from broker import clock, db, log
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.service import N_CREATE_RQ, N_GET_RQ, N_SET_RQ, Offer, Request, Response
from broker.dicom.verification import UNCOMPRESSED
from broker.errors import DatabaseAway, InvalidValue, Unreadable, WrongState
from broker.mpps import service

MPPS, MPPS_RETRIEVE = "1.2.840.10008.3.1.2.3.3", "1.2.840.10008.3.1.2.3.4"
SUCCESS, UNSUPPORTED_ATTRIBUTES, IGNORED_ATTRIBUTES = 0x0000, 0x0001, 0x0107
PROCESSING_FAILURE = 0x0110
NO_LONGER_UPDATED = 0xA710  # Error ID, PS3.4 F.7.2.2.3


class MppsService:
    right = "mpps"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def handle(self, request: Request) -> Iterable[Response]:
        verb = {N_CREATE_RQ: self._create, N_SET_RQ: self._set, N_GET_RQ: self._get}[request.command.field]
        try:
            return (verb(request),)
        except SQLAlchemyError as error:
            if not db.is_away(error):
                raise
            log.get().error("mpps.database", ae=request.peer.ae_title, kind=type(error).__name__)
            raise DatabaseAway("") from None  # 0213 (conformance.md 2.4)

    def _create(self, request: Request) -> Response:
        given = request.command.sop_instance
        uid = db.run(
            service.start, given, self._read(request), source_ae=request.peer.ae_title, strict=self._strict(request),
            settings=self.settings, now=clock.now(),
        )  # fmt: skip
        if not given:
            log.get().info("mpps.uid_assigned", ae=request.peer.ae_title, mpps=uid)
        return Response(SUCCESS, sop_instance=uid)

    def _set(self, request: Request) -> Response:
        try:
            ignored = db.run(
                service.update, request.command.sop_instance, self._read(request), source_ae=request.peer.ae_title,
                digest=hashlib.sha256(request.dataset).hexdigest(), strict=self._strict(request),
                settings=self.settings, now=clock.now(),
            )  # fmt: skip
        except WrongState as error:
            return Response(PROCESSING_FAILURE, comment=error.text, error_id=NO_LONGER_UPDATED)
        return Response(IGNORED_ATTRIBUTES if ignored else SUCCESS, attributes=ignored)

    def _get(self, request: Request) -> Response:
        found, has_unsupported = db.read(
            service.get, request.command.sop_instance, request.command.attributes, settings=self.settings
        )
        data = tree.write(found, request.transfer_syntax, (service.UNICODE,))
        if not data.isascii():
            declared = found | {tree.CHARSET: ("CS", service.UNICODE)}
            data = tree.write(declared, request.transfer_syntax, (service.UNICODE,))
        return Response(UNSUPPORTED_ATTRIBUTES if has_unsupported else SUCCESS, data)

    def _read(self, request: Request) -> tree.Tree:
        """The data set as Unicode; InvalidValue where its text is not in the character set that it declares."""
        try:
            return service.read(request.dataset, request.transfer_syntax, self.settings)
        except Unreadable as error:
            if error.place != "(0008,0005)":
                raise
            raise InvalidValue(error.place, error.text, tags=(tree.CHARSET,)) from None

    def _strict(self, request: Request) -> bool:
        node = request.peer.node
        return self.settings.mpps.strict if node is None or node.mpps_strict is None else node.mpps_strict


def offers(settings: Settings) -> Iterable[tuple[str, Offer]]:
    service_ = MppsService(settings)
    yield MPPS, Offer(service_, UNCOMPRESSED, frozenset({N_CREATE_RQ, N_SET_RQ}))
    yield MPPS_RETRIEVE, Offer(service_, UNCOMPRESSED, frozenset({N_GET_RQ}))
