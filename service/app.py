"""create_app(settings): the ASGI application, built once. Its lifespan starts the service and stops
it in order."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import torch
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CollectorRegistry

from adapters import backbone as backbones
from adapters.adapter_store import AdapterStore
from adapters.bucket.objects import connect, is_bucket
from adapters.bucket.store import BucketStore
from adapters.errors import AdaMixError, StoreError, for_operators
from adapters.file import Adapter, load
from adapters.regular import is_folder
from adapters.spec import BackboneRef
from adapters.store import Store
from service.audit import AuditLog, Write
from service.batcher import Batcher
from service.engine import quantized
from service.engine.engine import Engine
from service.engine.memory import within_memory
from service.engine.native.choice import Choice, Kernels, choose
from service.engine.native.library import NativeError
from service.engine.slots import Slots
from service.http import answers, openapi
from service.http.auth import Guard, kept_admin_key
from service.http.downloads import DownloadRoom
from service.http.generations import Generations
from service.http.lists import Lists
from service.http.middleware import PROBES, BodyLimit, OurHosts, PlainPaths, RequestContext
from service.http.routes import adapters, docs, health, page, predict, storage, traffic
from service.http.uploads import UploadRoom
from service.http.v2 import routes as v2
from service.keys.keys import Keys
from service.loader import Loader
from service.refusals import DeviceOutOfMemory
from service.replication import Replication
from service.service import ServedBackbone, Service
from service.settings import InvalidSettings, Settings
from service.telemetry.memory import memory_bytes
from service.telemetry.metrics import Metrics, StateCollector
from service.telemetry.traffic import TrafficCollector
from service.tokenizer import RequestTokenizer

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

MOST_CACHE_BYTES = 4 << 30  # unless the setting says more
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 16384

log = structlog.get_logger("service")


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Raises an AdaMixError if it cannot serve: no backbone, no store, no
    device."""
    keys = None if settings.keys_file is None else Keys(settings.keys_file)
    guard = _guard(settings, keys)
    # In a thread that ends, so that its OpenMP workers end with it. libgomp counts the workers of
    # every thread; once they are more than the cores, it lets them sleep instead of spin, and the
    # engine's would be woken three hundred times a batch.
    with ThreadPoolExecutor(1) as apart:
        service = apart.submit(build_service, settings, keys).result()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = _App(
        title="adamix-serve",
        version=version("adamix-serve"),
        summary="One frozen backbone, one AdaMix adapter per task, many tasks in one batch.",
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=_operation_id,
        lifespan=lifespan,
        openapi_url=None,  # its document would be made on the event loop
        docs_url=None,  # both would load their scripts from the internet
        redoc_url=None,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        telemetry=_telemetry(service.tracing),
    )
    app.state.service = app.state.predictor = service
    app.state.guard, app.state.root_path = guard, settings.root_path
    app.state.uploads = UploadRoom(settings.max_upload_bytes)
    app.state.downloads, app.state.lists = DownloadRoom(), Lists()
    app.router.redirect_slashes = False  # PlainPaths takes a last slash away
    answers.install(app)
    # Not by include_router: that would match every request twice.
    app.router.routes.extend(predict.router.routes)
    for routes in (v2, adapters, traffic, storage, health, page, docs):
        app.include_router(routes.router)
    if service.replication is not None:
        app.add_middleware(Generations, replication=service.replication, guard=guard)
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
    )
    app.add_middleware(PlainPaths, root_path=settings.root_path)
    app.add_middleware(OurHosts, guard=guard)
    if settings.workers == 1:  # else the front ends do this before they relay a request
        app.add_middleware(RequestContext)
    return app


class _App(FastAPI):
    """FastAPI with our additions to its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.finished(super().openapi())
        return self.openapi_schema

    @cached_property
    def document(self) -> bytes:
        """The OpenAPI document. To make it takes half a second."""
        return orjson.dumps(self.openapi())


def _operation_id(route: APIRoute) -> str:
    """What generated clients call the operation: its function's name; V2's, of which some come
    twice, say so."""
    if not route.path.startswith("/v2"):
        return route.name
    return f"v2_{route.name}_of_version" if "{version}" in route.path else f"v2_{route.name}"


def build_service(settings: Settings, keys: Keys | None = None) -> Service:
    """Every part of the service, from the settings."""
    tracing = _tracing(settings)
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    device = _device(settings.device)
    dtype = _dtype(settings.dtype)
    native = _native(settings.kernels, device, dtype)
    backbone = backbones.load(settings.backbone)
    metrics = Metrics(CollectorRegistry())
    audit_log = (
        None
        if settings.audit_log is None
        else AuditLog(settings.audit_log, metrics.audit_failures.inc)
    )
    store, replication = _store(
        settings, backbone.reference, metrics, lambda adapter: service.check_fits(adapter)
    )
    slots = Slots(
        settings.slots,
        device,
        torch.float32 if dtype == torch.int8 else dtype,
        loaded=metrics.loaded,
        evicted=metrics.evictions.inc,
        failed=metrics.load_failures.inc,
    )
    engine = Engine(backbone, slots, device, dtype, native=native.library, recorded=_recorded)
    default_tokens = GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
    service = Service(
        backbone=ServedBackbone(
            backbone.reference,
            backbone.encoder_config.intermediate_size,
            backbone.max_length,
            backbone.has_pooler,
            backbone.mask_token is not None,
            settings.dtype,
            engine.encoder.bytes,
        ),
        store=store,
        loader=Loader(store, slots),
        slots=slots,
        tokenizer=RequestTokenizer(
            backbone.tokenizer, backbone.mask_token, settings.max_wait_seconds
        ),
        batcher=Batcher(
            partial(within_memory, engine.run),
            max_tokens=settings.max_batch_tokens or default_tokens,
            max_queue_rows=settings.max_queue_rows,
            max_adapters=settings.slots,
            max_wait=settings.max_wait_seconds,
            max_drain=settings.drain_seconds or math.inf,
            observe=metrics.batch,
            failed=lambda error, rows: _failed(service, error, rows),
        ),
        metrics=metrics,
        max_inputs=settings.max_inputs,
        auto_truncate=settings.auto_truncate,
        device=str(device),
        tracing=tracing,
        replication=replication,
        audit_log=audit_log,
        keys=keys,
    )
    metrics.registry.register(StateCollector(service.state))
    metrics.registry.register(TrafficCollector(service.rollouts.all))
    _seed(service, settings)
    if device.type == "cpu":
        # not before: a start that is refused says why in one sentence
        chosen = "torch" if native.library is None else f"native ({native.library.kind})"
        log.info("kernels chosen", kernels=chosen, reason=native.reason)
    return service


def _store(
    settings: Settings, backbone: BackboneRef, metrics: Metrics, check: Callable[[Adapter], None]
) -> tuple[AdapterStore, Replication | None]:
    """The store; and what follows it, where it is in a bucket."""
    cache = settings.host_cache_bytes
    cache_bytes = min(memory_bytes() // 4, MOST_CACHE_BYTES) if cache is None else cache
    if not is_bucket(settings.store):
        folder = Path(settings.store)
        return Store(folder, cache_bytes, read_only=settings.read_only, check=check), None
    store = BucketStore(
        connect(settings.store, settings.store_timeout_seconds),
        settings.cache,
        backbone=backbone,
        cache_bytes=cache_bytes,
        copies_bytes=settings.cache_bytes,
        timeout=settings.store_timeout_seconds,
        read_only=settings.read_only,
        check=check,
        deleted=metrics.forget,
        fetched=metrics.fetch.observe,
        failed=metrics.store_errors.inc,
        told=_log_bucket,
    )
    return store, Replication(
        store,
        poll_seconds=settings.store_poll_seconds,
        lease_seconds=settings.store_lease_seconds,
        wait_seconds=settings.wait_seconds,
    )


def _log_bucket(error: StoreError | None) -> None:
    if error is None:
        log.info("the store's bucket can be read again")
    else:
        log.warning("the store's bucket cannot be read", error=for_operators(error))


def _recorded(done: int, of: int) -> None:
    log.info("CUDA graphs recorded", done=done, of=of)


def _failed(service: Service, error: Exception, rows: int) -> None:
    """A batch failed; its parts are run next, and the requests that fail again are answered with
    the error."""
    if isinstance(error, DeviceOutOfMemory):
        service.metrics.out_of_memory.inc()
        log.warning(
            "the device lacked memory for a batch; those that follow are smaller",
            max_batch_tokens=service.batcher.max_tokens,
        )
    else:
        log.warning("a batch failed; its rows are run in parts", rows=rows, error=repr(error))


def _tracing(settings: Settings) -> Tracing | None:
    if not settings.tracing:
        return None
    try:
        from service.telemetry.tracing import Tracing

        return Tracing()
    except ModuleNotFoundError:
        raise InvalidSettings(
            "setting ADAMIX_TRACING is true, but OpenTelemetry's SDK is not installed; "
            "expected pip install 'adamix-serve[tracing]'"
        ) from None
    except ValueError as error:
        raise InvalidSettings(
            "setting ADAMIX_TRACING is true, but one of OpenTelemetry's own has a wrong value:"
            f" {error}; expected OTEL_… variables as its documentation lists them"
        ) from None


def _telemetry(tracing: Tracing | None) -> TelemetryConfig:
    """What FastAPI itself tells OpenTelemetry: one span a request where tracing is on, and nothing
    but that."""
    return {
        "tracing": tracing is not None,
        "tracer_provider": tracing.provider if tracing is not None else None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in PROBES,
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings(
            "setting ADAMIX_DEVICE is 'cuda', but this machine has no GPU that torch can use;"
            " expected cpu"
        )
    if name == "cuda" and importlib.util.find_spec("triton") is None:
        raise InvalidSettings(
            "setting ADAMIX_DEVICE is 'cuda', but Triton is not installed; expected torch's own"
            " CUDA build, which brings it"
        )
    return torch.device(name)


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _native(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Choice:
    """The kernels that compute on a CPU."""
    try:
        choice = choose(kernels, device, dtype)
    except NativeError as error:
        raise InvalidSettings(
            f"setting ADAMIX_KERNELS is 'native', but {error}. `auto` would take torch's operators"
        ) from None
    lacking = quantized.lacking(device) if choice.library is None else None
    if dtype == torch.int8 and lacking is not None:
        wanted = "another dtype"
        if kernels != "torch" and device.type == "cpu":
            wanted = f"native kernels ({choice.reason}), or another dtype"
        raise InvalidSettings(f"setting ADAMIX_DTYPE is 'int8', but {lacking}, or {wanted}")
    return choice


def _guard(settings: Settings, keys: Keys | None) -> Guard:
    """On loopback anyone may write unless the operator set a key. Elsewhere writes need a key; one
    is made if there is none."""
    admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
    hosts = settings.hosts
    if admin_key is None and hosts is None:
        admin_key = _kept_admin_key(settings)
    return Guard(
        admin_key,
        settings.api_key.get_secret_value() if settings.api_key else None,
        hosts=None if hosts is None else frozenset(hosts),
        open_metrics=keys is None if settings.open_metrics is None else settings.open_metrics,
        keys=keys,
    )


def _kept_admin_key(settings: Settings) -> str:
    """The log names the key's file and not the key: logs are kept, and sent elsewhere. A new key is
    shown to an operator at a terminal."""
    try:
        key, path, new = kept_admin_key(Path(settings.store))
    except OSError as error:
        raise InvalidSettings(
            f"setting ADAMIX_ADMIN_KEY is not set, and a key cannot be kept beside the store"
            f" {settings.store}: {error.strerror}; expected the setting, or a folder to write to"
        ) from None
    if new:
        log.warning("made an admin key", kept_in=str(path))
        if sys.stderr.isatty():
            sys.stderr.write(f"The admin key, shown this once: {key}\n")
    else:
        log.info("admin key read", kept_in=str(path))
    return key


def _seed(service: Service, settings: Settings) -> None:
    """Give a new store the shipped adapters that fit the backbone, once: deleted ones stay so."""
    store = service.store
    for problem in store.problems:
        log.warning("the store has a fault", reason=problem)
    if store.why_read_only is not None:
        log.warning("the store is read-only: it is served as it is now", reason=store.why_read_only)
        return
    if store.seeded:
        return
    given = "seed" in settings.model_fields_set and str(settings.seed) != "none"
    if given and not is_folder(settings.seed):
        log.warning("ADAMIX_SEED is no folder: no adapters are copied", seed=str(settings.seed))
    if not len(store) and is_folder(settings.seed):
        for file in sorted(settings.seed.glob("*.safetensors")):
            try:
                adapter = load(file)
                store.put(adapter)
                write = Write("seed", adapter.spec.task)
                write.about(adapter.digest)
                service.audit(write)
            except (AdaMixError, OSError) as error:
                log.warning("shipped adapter left out", file=str(file), reason=str(error))
    if len(store):
        try:
            store.mark_seeded()
        except StoreError as error:
            log.warning("deleted shipped adapters may come back", reason=str(error))
