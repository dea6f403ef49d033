"""Traces: what a collector receives from a real server, over OTLP."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.service.conftest import Server, running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FILM = {"inputs": ["it is a good film", "bad"]}


@dataclass
class Collector:
    """A receiver of OTLP over HTTP; `spans` are those that have come, `services` who sent them."""

    url: str
    arrivals: queue.Queue[Span] = field(default_factory=queue.Queue)
    services: set[str] = field(default_factory=set)

    def trace(self, trace_id: str, spans: int) -> dict[str, Span]:
        """So many spans of one trace, by name, once they have come."""
        found: dict[str, Span] = {}
        while len(found) < spans:
            span = self.arrivals.get(timeout=20)
            if span.trace_id.hex() == trace_id:
                found[span.name] = span
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's own name
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for sender in ExportTraceServiceRequest.FromString(body).resource_spans:
                collector.services.add(values(sender.resource.attributes)["service.name"])
                for scope in sender.scope_spans:
                    for span in scope.spans:
                        collector.arrivals.put(span)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Silence on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield collector
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


@pytest.fixture(scope="module")
def traced(filled_store: Path, collector: Collector) -> Iterator[Server]:
    """A server that sends its spans to the collector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with running(filled_store, read_only=True, tracing=True, max_batch_tokens=16) as server:
            yield server


def values(attributes: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(item) for item in found.values] if kind == "array_value" else found

    return {attribute.key: plain(attribute.value) for attribute in attributes}


def ask(
    server: Server,
    path: str = "/predict?task=sst2",
    body: Any = FILM,
    trace: str = TRACE,
    flags: str = "01",
) -> int:
    with server.client() as client:
        answer: httpx2.Response = client.post(
            path, json=body, headers={"traceparent": f"00-{trace}-{PARENT}-{flags}"}
        )
        return answer.status_code


def test_a_request_is_a_trace_of_its_stages(traced: Server, collector: Collector) -> None:
    """A request is a server span in the caller's trace, with its tokenising, queueing and inference
    below, in this order."""
    assert ask(traced) == 200
    spans = collector.trace(TRACE, 4)
    request = spans["POST /predict"]
    assert (request.parent_span_id.hex(), request.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    attributes = values(request.attributes)
    assert (attributes["http.route"], attributes["http.response.status_code"]) == ("/predict", 200)
    assert attributes["url.query"] == "task=sst2"
    stages = [spans[name] for name in ("tokenize", "queue", "inference")]
    assert {stage.parent_span_id for stage in stages} == {request.span_id}
    for stage in stages:
        found = values(stage.attributes)
        assert (found["adamix.tasks"], found["adamix.rows"]) == (["sst2"], 2)
        assert found["adamix.tokens"] == 10  # 7 and 3, with the first and last token of each
    whole = values(spans["inference"].attributes)
    assert [whole[f"adamix.batch.{what}"] for what in ("rows", "tokens", "tasks")] == [2, 10, 1]
    moments = [request.start_time_unix_nano]
    for stage in stages:
        moments += [stage.start_time_unix_nano, stage.end_time_unix_nano]
    moments.append(request.end_time_unix_nano)
    # two clocks, half a millisecond
    assert all(later - earlier > -5e5 for earlier, later in itertools.pairwise(moments))
    assert collector.services == {"adamix-serve"}


def test_each_batch_of_a_request_is_a_span(traced: Server, collector: Collector) -> None:
    """A request whose rows fill several batches has an inference span of each."""
    trace = "a" * 32
    assert ask(traced, "/v2/models/sst2/infer", _tensor(["a good film"] * 6), trace) == 200
    spans: list[Span] = []
    while [span.kind for span in spans].count(Span.SPAN_KIND_SERVER) == 0:
        span = collector.arrivals.get(timeout=20)
        spans += [span] if span.trace_id.hex() == trace else []
    batches = [values(span.attributes) for span in spans if span.name == "inference"]
    assert [batch["adamix.batch.rows"] for batch in batches] == [3, 3]
    assert "POST /v2/models/{task}/infer" in {span.name for span in spans}


def _tensor(texts: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}


def test_log_lines_carry_the_trace(traced: Server, collector: Collector) -> None:
    """A request's log line names its trace and its span, so that one leads to the other."""
    trace = "b" * 32
    assert ask(traced, trace=trace) == 200
    span = collector.trace(trace, 4)["POST /predict"]
    (line,) = (line for line in traced.lines if line.get("trace_id") == trace)
    assert (line["event"], line["span_id"]) == ("request", span.span_id.hex())


def test_a_refusal_is_a_span_without_stages(traced: Server, collector: Collector) -> None:
    """A refused request leaves its span with the status, and is no error of the server's."""
    trace = "c" * 32
    assert ask(traced, "/predict?task=nothing", trace=trace) == 404
    (span,) = collector.trace(trace, 1).values()
    assert values(span.attributes)["http.response.status_code"] == 404
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_a_caller_that_does_not_sample_is_heeded(traced: Server, collector: Collector) -> None:
    """A request whose caller decided against recording, and a probe, leave no span; the log has the
    caller's trace."""
    unsampled, next_one = "d" * 32, "e" * 32
    assert ask(traced, trace=unsampled, flags="00") == 200
    with traced.client() as client:
        assert client.get("/metrics").status_code == 200
    assert ask(traced, trace=next_one) == 200
    collector.trace(next_one, 4)  # spans are sent in order: the other's would have come
    assert any(line.get("trace_id") == unsampled for line in traced.lines)


def test_spans_are_sent_before_the_end(
    filled_store: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM sends the spans that wait, and names the service as OTEL_SERVICE_NAME says."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    trace = "f" * 32
    with running(filled_store, read_only=True, tracing=True) as server:
        assert ask(server, trace=trace) == 200
        assert server.stop() == 0
    assert len(collector.trace(trace, 4)) == 4
    assert "mine" in collector.services


def test_without_the_setting_there_is_no_trace(server: Server) -> None:
    """A server that was not told to trace logs no trace, whoever asks it."""
    assert ask(server, trace="1" * 32) == 200
    assert not [line for line in server.lines if "trace_id" in line]


def start(before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m service` with tracing on, in an interpreter that did something before."""
    script = f"import sys, runpy; {before}; runpy.run_module('service', run_name='__main__')"
    environment = {**os.environ, "ADAMIX_TRACING": "true", **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_without_the_extra_it_is_one_sentence(tmp_path: Path) -> None:
    """Where OpenTelemetry's SDK is not installed, ADAMIX_TRACING ends the start with one sentence
    and exit code 2."""
    done = start("sys.modules['opentelemetry.sdk'] = None", ADAMIX_STORE=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        "error: setting ADAMIX_TRACING is true, but OpenTelemetry's SDK is not installed; "
        "expected pip install 'adamix-serve[tracing]'\n",
    )


def test_a_wrong_variable_of_opentelemetry_is_one_sentence(tmp_path: Path) -> None:
    """An OTEL_… variable that OpenTelemetry cannot read ends the start with one sentence and exit
    code 2."""
    done = start("pass", OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="soon", ADAMIX_STORE=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: setting ADAMIX_TRACING is true, but one of OpenTelemetry's own has a wrong value: "
    )
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in line
