"""`/metrics` for Prometheus: what this process knows without asking the database, which may be what is amiss."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from broker.web.auth import open_to_all

STALE, AGE = "worklist_stale", "worklist_snapshot_age_seconds"
router = APIRouter()


@dataclass(frozen=True)
class Figure:
    """read: None = there is none yet. counts: it only grows."""

    text: str
    read: Callable[[], float | None]
    counts: bool = False


class Figures(Collector):
    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        for name, figure in self._figures.items():
            if (value := figure.read()) is not None:
                kind = CounterMetricFamily if figure.counts else GaugeMetricFamily
                yield kind(f"broker_{name}", figure.text, value=value)


def registry(figures: Mapping[str, Figure]) -> CollectorRegistry:
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    made.register(Figures(figures))
    return made


@router.get("/metrics", dependencies=[Depends(open_to_all)])
async def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)
