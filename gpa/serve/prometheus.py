"""What a server counts, for Prometheus: requests, who waits, first sounds, seconds of sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from gpa.engine.scheduler import Engine

if TYPE_CHECKING:
    from gpa.serve.service import Service

TIMES = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds
TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of `text`


class Measures:
    """The numbers of one application; a second one in the process has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own, by = self.registry, ("route", "method", "status")
        self.requests = Counter("gpa_requests", "Requests that ended, refused ones too", by, registry=own)
        self.seconds = self._times("gpa_request_seconds", "From request to end")
        self.first = self._times("gpa_first_audio_seconds", "From request to first sound")
        self.audio = Counter("gpa_audio_seconds", "Sound received or made", ("direction",), registry=own)
        self.encode_failures = Counter("gpa_encode_failures", "Bodies that failed to encode", registry=own)
        self.in_flight: Callable[[], int] = int
        for direction in ("in", "out"):
            self.audio.labels(direction)

    def watch(self, in_flight: Callable[[], int]) -> None:
        """How many requests are on their way, as `in_flight` says."""
        self.in_flight = in_flight
        self._gauge("gpa_requests_in_flight", "Requests on their way", in_flight)

    def serve(self, service: Service) -> None:
        """What the worker and its engine do, once there are any."""
        worker, engine = service.worker, service.worker.engine
        self._gauge("gpa_jobs", "Texts, recordings and conversions on their way", lambda: len(worker.jobs))
        self._gauge("gpa_worker_steps", "Steps of the engine so far", lambda: worker.steps)
        if isinstance(engine, Engine):
            self._gauge("gpa_queue", "Requests of the engine that have no row yet", lambda: engine.waiting)
            self._gauge("gpa_slots_busy", "Rows that are decoded together", lambda: engine.cache.used)
            self._gauge("gpa_slots", "Rows there can be", lambda: engine.rows)

    def _times(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, ("route",), registry=self.registry, buckets=TIMES)

    def _gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self.registry)
