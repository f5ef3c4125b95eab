"""Reports on an order: all versions, and each as it was received."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response
from sqlalchemy import func
from sqlmodel import Session, col, select

from broker import clock, db
from broker.errors import UnknownKey
from broker.model.orders import ImagingOrder, Report
from broker.web.auth import needs
from broker.web.fields import Number

router = APIRouter(prefix="/api/v1/orders/{order_id}/reports", dependencies=[Depends(needs("ehr", "ris", "qc"))])
PDF, TEXT = "application/pdf", "text/plain; charset=utf-8"
FORMS = {"pdf": PDF, "text": TEXT}
# A report is shown to people by their browser; it runs nothing there and is never taken for something else.
HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Cache-Control": "no-store"}
VERSION = Path(ge=1, le=1_000_000)


@router.get("")
def listing(order_id: Number) -> dict[str, Any]:
    """The versions in the order in which they came: `version` 1 is the first."""
    return {"items": db.read(_listing, order_id)}


@router.get("/{version}")
def one(order_id: Number, version: Annotated[int, VERSION], form: Literal["pdf", "text"] | None = None) -> Response:
    """Its PDF, else its text. form: which of the two, where it has both."""
    report = db.read(_version, order_id, version)
    wanted = form or ("pdf" if report.document else "text")
    if wanted == "pdf" and not report.document:
        raise UnknownKey("form", "this version has no PDF")
    return Response(
        report.document if wanted == "pdf" else report.text.encode(), media_type=FORMS[wanted], headers=HEADERS
    )


def _listing(session: Session, order_id: int) -> list[dict[str, Any]]:
    """Without loading the documents."""
    if session.get(ImagingOrder, order_id) is None:
        raise UnknownKey("order", "no order has this id")
    about = (Report.status, Report.number, Report.issuer, Report.title, Report.issued_at, Report.superseded)
    sizes = func.length(Report.text), func.length(Report.document)
    query = select(*about, *sizes).where(Report.order_pk == order_id).order_by(col(Report.pk))  # type: ignore[call-overload]
    return [
        {
            "version": n, "status": status, "number": number, "issuer": issuer, "title": title,
            "issued_at": clock.iso(issued_at) if issued_at else None, "superseded": superseded,
            "text": bool(text), "document_bytes": size,
        }
        for n, (status, number, issuer, title, issued_at, superseded, text, size) in enumerate(session.exec(query), 1)
    ]  # fmt: skip


def _version(session: Session, order_id: int, version: int) -> Report:
    query = select(Report).where(Report.order_pk == order_id).order_by(col(Report.pk))
    report = session.exec(query.offset(version - 1).limit(1)).first()
    if report is None:
        raise UnknownKey("report", "the order has no such version")
    return report
