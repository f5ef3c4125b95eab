"""The web application: routes, limits, errors, the plain status page."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from sqlalchemy import func
from sqlmodel import Session, col, select

from broker import __version__, db
from broker.config import Settings
from broker.model.images import ReconciliationCase
from broker.model.messages import Message
from broker.model.site import UnknownPeer
from broker.model.status import OrderStatus
from broker.web import (
    cases_routes,
    errors,
    fhir_routes,
    lists_routes,
    messages_routes,
    metrics,
    orders_routes,
    patients_routes,
    reports_routes,
    status_routes,
    why_routes,
    worklist_routes,
)
from broker.web.auth import here_or_token, open_to_all
from broker.web.guard import Guard
from broker.web.limits import Bounded
from broker.web.live import Live, in_time
from broker.web.metrics import AGE, STALE, Figure

HERE = Path(__file__).parent


def create_app(
    settings: Settings,
    ports: Mapping[str, int],
    alive: Mapping[str, Callable[[], bool]] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> FastAPI:
    """ports: role -> port, filled while the broker starts; shown on the status page and by /healthz/ready.
    alive: role -> whether its port takes connections, for /healthz/ready. figures: of this process, for /metrics."""
    live = Live(settings.limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.limits.http_threads_max
        async with live.running():
            yield

    app = FastAPI(title="ris-broker", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.live, app.state.settings, app.state.ports = live, settings, ports
    app.state.metrics = metrics.registry(figures or {})
    app.include_router(status_routes.router)
    app.include_router(lists_routes.router)
    app.include_router(worklist_routes.router)
    app.include_router(why_routes.router)
    app.include_router(metrics.router)
    app.include_router(messages_routes.router)
    app.include_router(cases_routes.router)
    app.include_router(patients_routes.router)
    app.include_router(orders_routes.router)
    app.include_router(reports_routes.router)
    app.include_router(fhir_routes.router)
    _plain_routes(app, settings, ports, {} if alive is None else alive, figures or {})
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    errors.install(app)
    app.add_middleware(Guard)
    app.add_middleware(Bounded, limits=settings.limits)
    app.add_middleware(fhir_routes.Outcomes)
    return app


def _plain_routes(
    app: FastAPI,
    settings: Settings,
    ports: Mapping[str, int],
    alive: Mapping[str, Callable[[], bool]],
    figures: Mapping[str, Figure],
) -> None:
    templates = Jinja2Templates(HERE / "templates")
    database = db.Lookout(lambda session: session.exec(select(1)).one())

    @app.get("/healthz/live", dependencies=[Depends(open_to_all)])
    def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/healthz/ready", dependencies=[Depends(open_to_all)])
    async def ready() -> JSONResponse:
        """In time, whatever hangs: it needs no thread of the pool, where others may wait for the database."""
        try:
            await in_time(database.ask(), settings.limits.http_ready_seconds_max)
        except Exception:
            return JSONResponse({"status": "not ready", "database": "away"}, 503)
        dead = sorted(role for role, is_alive in alive.items() if not is_alive())
        if dead:
            return JSONResponse({"status": "not ready", "database": "ok", "dead": dead}, 503)
        return JSONResponse({"status": "ready", "database": "ok", "ports": dict(ports)})

    @app.get("/version", dependencies=[Depends(open_to_all)])
    def version() -> dict[str, str]:
        return {"name": "ris-broker", "version": __version__}

    @app.get("/", dependencies=[Depends(here_or_token)], response_class=HTMLResponse)
    def page(request: Request) -> Any:
        words = WORDS[settings.site.language]
        stale, age = (figures[name].read() if name in figures else None for name in (STALE, AGE))
        return templates.TemplateResponse(
            request,
            "status.html",
            {"w": words, "lang": settings.site.language, "ports": ports, "version": __version__,
             "stale": bool(stale), "minutes": round((age or 0) / 60), **_looked_up(settings.site.timezone)},
        )  # fmt: skip


def _looked_up(timezone: str) -> dict[str, Any]:
    """While the database is away the page still says so."""
    try:
        return {**db.read(_figures, timezone), "away": False}
    except Exception as error:
        if not db.is_away(error):
            raise
        return {"orders": [], "messages": [], "cases": "–", "unknown": "–", "last_message": "–", "away": True}


def _figures(session: Session, timezone: str) -> dict[str, Any]:
    """Counts only: no patient data on this page. Its times are the site's."""
    last = session.exec(select(func.max(Message.received_at))).one()
    return {
        "orders": sorted(session.exec(select(OrderStatus.state, func.count()).group_by(col(OrderStatus.state))).all()),
        "messages": sorted(session.exec(select(Message.state, func.count()).group_by(col(Message.state))).all()),
        "cases": session.exec(
            select(func.count()).select_from(ReconciliationCase).where(ReconciliationCase.state != "RESOLVED")
        ).one(),
        "unknown": session.exec(select(func.count()).select_from(UnknownPeer)).one(),
        "last_message": f"{last.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M:%S}" if last else "–",
    }


WORDS = {
    "ja": {
        "title": "ris-broker の状態", "ports": "待ち受けポート", "orders": "オーダー", "messages": "受信メッセージ",
        "cases": "確認待ち", "unknown": "接続を拒否した装置", "last": "最後の受信", "state": "状態", "count": "件数",
        "none": "まだありません", "away": "データベースに接続できません。復旧するまで受け付けられないものがあります。",
        "stale": "装置には {} 分前のワークリストを表示しています。",
    },
    "en": {
        "title": "ris-broker status", "ports": "Open ports", "orders": "Orders", "messages": "Messages received",
        "cases": "Waiting for a person", "unknown": "Devices refused", "last": "Last message", "state": "State",
        "count": "Count", "none": "none yet",
        "away": "The database is away. Until it is back, some things cannot be taken.",
        "stale": "Devices are shown the worklist of {} minutes ago.",
    },
}  # fmt: skip
