"""Settings: every choice of an operator, from the environment (`ADAMIX_…`); docs/settings.md lists
them."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.bucket.objects import check_address, is_bucket
from adapters.errors import AdaMixError, StoreError
from adapters.spec import first_problem
from service.loopback import is_loopback

MIN_KEY_CHARACTERS = 8
HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-fA-F]*:[0-9a-fA-F:.]+")


class InvalidSettings(AdaMixError):
    """A setting that the service cannot run with."""


class Settings(BaseSettings):
    """What `create_app` wires the service from. Sizes are in bytes, rows or tokens, as their names
    say."""

    model_config = SettingsConfigDict(
        env_prefix="ADAMIX_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    backbone: str = Field("embedded", description="`embedded`, a folder, or a Hugging Face id")
    store: str = Field(
        "var/store",
        description=(
            "folder of the adapters; or a bucket that several replicas share: `s3://BUCKET/PREFIX`,"
            " `gs://…` or `az://…`. Credentials are the cloud's own variables. Install the package"
            " extra `bucket` first"
        ),
    )
    cache: Path = Field(
        Path("var/cache"),
        description="folder of local copies, where the store is a bucket. One for each replica",
    )
    cache_bytes: int = Field(
        16 << 30,
        ge=0,
        description="bytes of local copies. The least recently used are deleted first",
    )
    store_poll_seconds: float = Field(
        0.4, gt=0, le=60, description="time between two looks at the bucket for changes"
    )
    store_lease_seconds: float = Field(
        1,
        gt=0,
        le=60,
        description=(
            "time between a write to a bucket and its answer. A replica that looked at the bucket"
            " longer ago than this looks again before it answers. All replicas need the same value"
        ),
    )
    store_timeout_seconds: float = Field(
        5, gt=0, le=300, description="longest time of one access to the bucket, with repetitions"
    )
    wait_seconds: float = Field(
        2,
        gt=0,
        le=60,
        description=(
            "longest wait of a request for the bucket: for a look at it, or for the generation in"
            " `X-Adamix-Generation`"
        ),
    )
    seed: Path = Field(
        Path("store"),
        description=(
            "the adapters in this folder are copied into a new store, once. The value `none` means:"
            " start with no adapters"
        ),
    )
    read_only: bool = Field(
        False,
        description="serve the store as it is at the start, while another process writes to it",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`: the GPU if there is one"
    )
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32",
        description="number format of the backbone on the device. `int8` works on CPUs only",
    )
    kernels: Literal["auto", "native", "torch"] = Field(
        "auto",
        description=(
            "what computes on a CPU in `float32` and `int8`: this package's native kernels, or"
            " torch's operators. `auto`: the native ones, if they were built and are not slower on"
            " this machine"
        ),
    )
    host: str = Field(
        "127.0.0.1",
        description=(
            "address or name to listen on. `::` is IPv6 and IPv4. If it is not a loopback address,"
            " writes need the admin key"
        ),
    )
    port: int = Field(8000, ge=0, le=65535, description="`0`: any free port. The log says which")
    allowed_hosts: str = Field(
        "",
        description=(
            "host names, with commas between them, that a service on loopback answers to besides"
            " `localhost`"
        ),
    )
    root_path: str = Field(
        "",
        pattern=r"^((/[A-Za-z0-9._~-]+)+/?|/)?$",
        description="path under which a proxy offers the service, such as `/ml`",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description=(
            "number of processes that speak HTTP. With 2 or more, the engine runs in one further"
            " process"
        ),
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of the engine. Default: one per core"
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens in one forward pass. Default: 1024 on a CPU, 16384 on a GPU",
    )
    max_queue_rows: int = Field(
        2048,
        ge=1,
        description="rows that may wait. A request with more rows than free places gets 429",
    )
    max_wait_seconds: float = Field(
        0.2,
        gt=0,
        description=(
            "longest expected wait for the device, and longest expected time of a batch. A request"
            " that would wait longer gets 429"
        ),
    )
    max_inputs: int = Field(
        256,
        ge=1,
        description=(
            "rows in one request: inputs × tasks. Each window of a long text counts as an input"
        ),
    )
    max_body_bytes: int = Field(
        2 << 20, ge=1024, description="largest body of a `/predict` or `infer` request"
    )
    max_upload_bytes: int = Field(64 << 20, ge=1024, description="largest uploaded adapter")
    slots: int = Field(256, ge=1, description="adapters on the device at once")
    host_cache_bytes: int | None = Field(
        None,
        ge=0,
        description=(
            "bytes of adapters in memory. Default: a quarter of the machine's or container's"
            " memory, at most 4 GiB"
        ),
    )
    keep_alive_seconds: float = Field(
        75, gt=0, description="longest time between two requests on a connection"
    )
    header_seconds: float = Field(
        10, gt=0, description="longest time for a request's line and headers"
    )
    body_seconds: float = Field(
        30,
        gt=0,
        description=(
            "longest time for a request's body; each 16 KiB that came adds a second. Also the"
            " longest time in which a client may read nothing of its answer"
        ),
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description=(
            "connections of each process that speaks HTTP. Default: what the limit of open files"
            " leaves, at most 16384"
        ),
    )
    max_arriving_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description=(
            "bytes of unfinished bodies in each process that speaks HTTP. If there are more, the"
            " request whose body began first is refused with 503"
        ),
    )
    max_unread_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description=(
            "bytes of answers that clients have not read yet, in each process. If there are more,"
            " the connection whose answer began first is closed"
        ),
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description=(
            "addresses and networks, with commas between them. The service trusts"
            " `X-Forwarded-For` and `X-Forwarded-Proto` from these. `*` means every address"
        ),
    )
    drain_seconds: int = Field(
        30, ge=0, description="longest time that SIGTERM waits for requests under way"
    )
    auto_truncate: bool = Field(
        False,
        description="cut texts that are too long, unless the request has `truncate: false`",
    )
    api_key: SecretStr | None = Field(
        None,
        description=(
            "if set, predictions and reads need this key as a bearer token. Reads also take the"
            " admin key"
        ),
    )
    admin_key: SecretStr | None = Field(
        None,
        description=(
            "if set, writes need this key as a bearer token. If the service does not listen on"
            " loopback and no key is set, it makes one at its first start; but if the store is a"
            " bucket, it refuses to start"
        ),
    )
    keys_file: Path | None = Field(
        None,
        description=(
            "a TOML file of keys with scopes, tasks and limits ([keys](keys.md)). If set, every"
            " prediction, read and write needs a key. It is read again when it changes"
        ),
    )
    open_metrics: bool | None = Field(
        None,
        description=(
            "`/metrics` needs no key, even if `ADAMIX_API_KEY` is set. Default: true; but false if"
            " `ADAMIX_KEYS_FILE` is set, since metrics name every task"
        ),
    )
    audit_log: str | None = Field(
        None,
        description=(
            "a file to which each write is appended as a line of JSON ([audit log]"
            "(keys.md#audit-log)). The value `-` means stdout"
        ),
    )
    tracing: bool = Field(
        False,
        description=(
            "send spans to OpenTelemetry. Its own `OTEL_…` variables configure this. Install the"
            " package extra `tracing` first"
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="with the value `debug`, requests to the health paths are logged too",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, JSON elsewhere"
    )

    @model_validator(mode="before")
    @classmethod
    def _unspoilt(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: _unspoilt(name, value) for name, value in values.items()}

    @field_validator("store", mode="before")
    @classmethod
    def _address(cls, store: object) -> object:
        """A folder may be given as a path, and begin with `~`."""
        if isinstance(store, str) and "://" in store:
            try:
                check_address(store)
            except StoreError as error:
                raise ValueError(f"STORE is not usable: {error}") from None
            if not is_bucket(store):
                raise ValueError(
                    f"STORE is {store!r}; expected a folder, or a bucket as s3://BUCKET/PREFIX,"
                    " gs://… or az://…"
                )
            return store
        try:
            return str(Path(store).expanduser()) if isinstance(store, str | Path) else store
        except RuntimeError:
            raise ValueError(
                f"STORE is {store!r}, and no home is known for it; expected a path"
            ) from None

    @field_validator("seed", "cache", "keys_file")
    @classmethod
    def _at_home(cls, folder: Path | None, info: ValidationInfo) -> Path | None:
        """A folder that begins with `~`, which no shell has replaced in a file of variables."""
        try:
            return None if folder is None else folder.expanduser()
        except RuntimeError:
            raise ValueError(
                f"{str(info.field_name).upper()} is {str(folder)!r}, and no home is known for it;"
                " expected a path"
            ) from None

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, listed: str) -> str:
        names = [name.strip() for name in listed.split(",") if name.strip()]
        for name in names:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"ALLOWED_HOSTS is {listed!r}, and {name!r} is no host's name; expected names"
                    " as a URL has them between // and the port, with commas between"
                )
        return listed

    @field_validator("host")
    @classmethod
    def _bare(cls, host: str) -> str:
        """An IPv6 address without its brackets, which belong to URLs."""
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, listed: str) -> str:
        proxies = [proxy.strip() for proxy in listed.split(",") if proxy.strip()]
        for proxy in proxies:
            if proxy != "*":
                try:
                    ip_network(proxy)
                except ValueError as error:
                    raise ValueError(
                        f"TRUSTED_PROXIES is {listed!r}: {error}; expected addresses and networks,"
                        " with commas between, or *"
                    ) from None
        return "*" if "*" in proxies else ",".join(proxies)

    @property
    def hosts(self) -> list[str] | None:
        """The names that `allowed_hosts` lists, where the service listens on loopback; None where
        it does not."""
        if not is_loopback(self.host):
            return None
        names = (name.strip().lower() for name in self.allowed_hosts.split(","))
        return [name for name in names if name]

    @field_validator("api_key", "admin_key")
    @classmethod
    def _usable_key(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """The message says what is wrong with a key, and does not show it."""
        if key is None:
            return None
        name = str(info.field_name).upper()
        text = key.get_secret_value()
        if len(text) < MIN_KEY_CHARACTERS:
            raise ValueError(
                f"{name} has {len(text)} characters; expected at least {MIN_KEY_CHARACTERS}, as"
                " openssl rand -hex 32 makes"
            )
        if not re.fullmatch("[!-~]+", text):
            raise ValueError(
                f"{name} holds white space, a control character or one that is not ASCII; expected"
                " only characters that a header can carry"
            )
        return key

    @field_validator("root_path")
    @classmethod
    def _without_last_slash(cls, path: str) -> str:
        return path.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_inputs > self.max_queue_rows:
            raise ValueError(
                f"MAX_INPUTS is {self.max_inputs}; expected at most MAX_QUEUE_ROWS, which is"
                f" {self.max_queue_rows}"
            )
        if self.store_poll_seconds >= self.store_lease_seconds:
            raise ValueError(
                f"STORE_POLL_SECONDS is {self.store_poll_seconds:g}; expected less than"
                f" STORE_LEASE_SECONDS, which is {self.store_lease_seconds:g}"
            )
        if is_bucket(self.store) and self.admin_key is None and self.hosts is None:
            raise ValueError(
                f"ADMIN_KEY is not set, but ADAMIX_STORE is {self.store!r} and the service does not"
                " listen on loopback; expected the same key for every replica: none can be kept"
                " beside a bucket"
            )
        if self.tracing and self.workers > 1:
            raise ValueError(
                f"TRACING is true, but ADAMIX_WORKERS is {self.workers}; expected 1 worker where it"
                " is true"
            )
        return self


# What Docker's links and Kubernetes' service links put into NAME_PORT for each Service called NAME.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
LINKED = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
SECRET = {"api_key", "admin_key"}


def _unspoilt(name: str, value: object) -> object:
    """The value without white space at its ends, which a secret made of a file has. Raises
    ValueError for what an orchestrator gave in place of a value; a key is not shown."""
    if not isinstance(value, str):
        return value
    stripped = value.strip()
    variable, found = name.upper(), "" if name in SECRET else f" {stripped!r},"
    if not stripped:
        raise ValueError(f"{variable} is white space alone; expected a value, or no such variable")
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        raise ValueError(
            f"{variable} is{found} in quotation marks; expected it without them, which Docker's"
            " --env-file and YAML's own quotation marks keep"
        )
    if SERVICE_LINK.fullmatch(stripped) and name not in SECRET:
        service = f"adamix_{name}".removesuffix("_port").replace("_", "-")
        raise ValueError(
            f"{variable} is{found} which Kubernetes tells every pod beside a Service called"
            f" {service}; expected a value of your own: set ADAMIX_{variable} in the pod, or"
            " enableServiceLinks to false"
        )
    return stripped


def unknown_variables() -> list[str]:
    """The variables ADAMIX_… of the environment that are no setting: misspelt, say. Those that
    Kubernetes sets beside a Service called `adamix`, and compose.yaml's own, are left out."""
    known = {*Settings.model_fields, "publish", "memory_limit"}
    return sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith("ADAMIX_")
        and name[len("ADAMIX_") :].lower() not in known
        and not (LINKED.search(name.upper()) or SERVICE_LINK.fullmatch(value))
    )


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment, `overrides` first. Raises InvalidSettings with one
    sentence."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        name, _, rest = first_problem(error).partition(" ")
        raise InvalidSettings(f"setting ADAMIX_{name.upper()} {rest}") from None
