"""/adapters as operators use it: upload, list, roll back, download, delete — and what is
refused."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.backbone import Backbone
from adapters.file import serialize
from tests.service.conftest import TASKS, Server
from tests.tiny import random_adapter

FILM = {"inputs": "it is a good film"}


@pytest.fixture
def made(client: httpx2.Client) -> Iterator[Callable[[str], str]]:
    """Names of tasks that a test makes; they are gone after it."""
    names: list[str] = []

    def name(task: str) -> str:
        names.append(task)
        return task

    yield name
    for task in names:
        client.delete(f"/adapters/{task}")


def upload(client: httpx2.Client, data: bytes, **fields: str) -> httpx2.Response:
    return client.post("/adapters", files={"file": ("adapter.safetensors", data)}, data=fields)


def served_version(client: httpx2.Client, task: str) -> str:
    return (
        client.post("/predict", params={"task": task}, json=FILM)
        .headers["X-Adapter-Version"]
        .split("@")[1]
    )


def test_an_upload_is_served_at_once(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes], made: Callable[[str], str]
) -> None:
    """An uploaded adapter answers the next request, without a restart; the same file again is 200
    instead of 201."""
    data = adapter_bytes(made("fresh"))
    first = upload(client, data)
    assert first.status_code == 201, first.text
    assert first.json()["version"] == sha256(data).hexdigest()[:12]
    assert served_version(client, "fresh") == first.json()["version"]
    assert client.get(first.headers["Location"]).content == data
    assert upload(client, data).status_code == 200


def test_versions_roll_forward_and_back(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes], made: Callable[[str], str]
) -> None:
    """A second version replaces the first, activating the first rolls back, and only an inactive
    one can be deleted."""
    made("rolled")
    old, new = (
        upload(client, adapter_bytes("rolled", seed=seed)).json()["version"] for seed in (1, 2)
    )
    assert served_version(client, "rolled") == new
    answer = client.post("/adapters/rolled/activate", json={"version": old[:6]})
    assert answer.json()["version"] == old
    assert [v["active"] for v in answer.json()["versions"]] == [True, False]
    assert served_version(client, "rolled") == old
    refused = client.delete(f"/adapters/rolled/versions/{old}")
    assert (refused.status_code, refused.json()["error_type"]) == (409, "VersionIsActive")
    assert client.delete(f"/adapters/rolled/versions/{new}").status_code == 204
    assert client.post("/adapters/rolled/activate", json={"version": new}).status_code == 404


def test_an_upload_need_not_be_activated(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes], made: Callable[[str], str]
) -> None:
    """With `activate=false` a version is stored, can be pinned, and is not what others get."""
    answer = upload(client, adapter_bytes(made("staged")), activate="false")
    assert answer.status_code == 201
    assert answer.json()["version"] is None
    waiting = client.post("/predict?task=staged", json=FILM)
    assert (waiting.status_code, waiting.json()["error_type"]) == (409, "NoActiveVersion")
    version = answer.json()["versions"][0]["version"]
    assert client.post(f"/predict?task=staged&version={version}", json=FILM).status_code == 200


def test_the_list_tells_what_is_served(client: httpx2.Client, server: Server) -> None:
    """`GET /adapters` has every task with its labels, size, version and tier; one task's page has
    its spec too."""
    client.post("/predict?task=sst2", json=FILM)
    listed = {entry["task"]: entry for entry in client.get("/adapters").json()}
    assert set(listed) == set(TASKS)
    sst2 = listed["sst2"]
    assert sst2["labels"] == ["negative", "positive"]
    assert sst2["tier"] == "device"
    assert sst2["bytes"] == next((server.store / "sst2").glob("*.safetensors")).stat().st_size
    page = client.get("/adapters/sst2").json()
    assert page["spec"]["bottleneck"] == 8
    assert [version["version"] for version in page["versions"]] == [sst2["version"]]
    # 6 layers of two 384×8 projections with biases, and a head of two labels
    assert sst2["parameters"] == 6 * (2 * 384 * 8 + 384 + 8) + 2 * 384 + 2


def test_deleting_a_task_ends_it(
    client: httpx2.Client, server: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """A deleted task is a 404 at once, its files are gone, and its metric series too."""
    upload(client, adapter_bytes("doomed"))
    client.post("/predict?task=doomed", json=FILM)
    assert 'task="doomed"' in client.get("/metrics").text
    assert client.delete("/adapters/doomed").status_code == 204
    assert client.post("/predict?task=doomed", json=FILM).status_code == 404
    assert client.delete("/adapters/doomed").status_code == 404
    assert not (server.store / "doomed").exists()
    assert 'task="doomed"' not in client.get("/metrics").text


def test_deleting_the_last_version_ends_the_task(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """A task that goes with its last version, which was never active, leaves no series either."""
    answer = upload(client, adapter_bytes("unserved"), activate="false")
    version = answer.json()["versions"][0]["version"]
    assert client.post(f"/predict?task=unserved&version={version}", json=FILM).status_code == 200
    assert client.delete(f"/adapters/unserved/versions/{version}").status_code == 204
    assert client.get("/adapters/unserved").status_code == 404
    assert 'task="unserved"' not in client.get("/metrics").text


def test_a_download_is_whole_or_refused_while_its_task_is_deleted(
    client: httpx2.Client, server: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """Downloads and lists that race with uploads and deletions are whole or 404s, never anything
    else."""
    data = adapter_bytes("fleeting")
    path = f"/adapters/fleeting/versions/{sha256(data).hexdigest()[:12]}/file"
    seen: list[tuple[int, bool]] = []

    def read() -> None:
        with server.client() as own:
            for _ in range(150):
                answer = own.get(path)
                seen.append(
                    (answer.status_code, answer.status_code == 404 or answer.content == data)
                )
                seen.append((own.get("/adapters").status_code, True))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        upload(client, data)
        client.delete("/adapters/fleeting")
    assert len(seen) == 3 * 2 * 150
    assert {status for status, _ in seen} <= {200, 404}
    assert all(whole for _, whole in seen)


def test_an_upload_is_acknowledged_though_its_task_is_deleted_at_once(
    server: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """An upload that was stored is answered as such, also when another client deletes its task in
    the same instant."""
    data = adapter_bytes("snatched")
    done = threading.Event()

    def snatch() -> None:
        with server.client() as own:
            while not done.is_set():
                own.delete("/adapters/snatched")

    snatchers = [threading.Thread(target=snatch) for _ in range(4)]
    for snatcher in snatchers:
        snatcher.start()
    with server.client() as client:
        answers = [upload(client, data) for _ in range(100)]
        done.set()
        for snatcher in snatchers:
            snatcher.join()
        client.delete("/adapters/snatched")
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["version"] for answer in answers} == {sha256(data).hexdigest()[:12]}


def edited(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with its header changed."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def with_spec(data: bytes, **changes: Any) -> bytes:
    def edit(header: dict[str, Any]) -> None:
        spec = json.loads(header["__metadata__"]["spec"])
        for path, value in changes.items():
            target = spec
            *parents, last = path.split("__")
            for parent in parents:
                target = target[parent]
            target[last] = value
        header["__metadata__"]["spec"] = json.dumps(spec)

    return edited(data, edit)


def with_tensor(data: bytes, name: str, value: bytes) -> bytes:
    """The file with the first bytes of one tensor overwritten."""
    size = struct.unpack("<Q", data[:8])[0]
    start = 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]
    return data[:start] + value + data[start + len(value) :]


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "empty": (lambda _: b"", ["0 bytes", "safetensors"]),
    "not safetensors": (lambda _: b"PK\x03\x04" + b"\x00" * 500, ["safetensors"]),
    "a pickle": (lambda _: b"\x80\x04\x95" + b"\x01" * 400, ["header", "1048576"]),
    "cut short": (lambda data: data[: len(data) // 2], ["safetensors"]),
    "bytes too many": (lambda data: data + b"\x00", ["safetensors"]),
    "an oversized header": (lambda _: struct.pack("<Q", 50 << 20) + b"{}", ["52428800", "1048576"]),
    "a wrong tensor name": (
        lambda data: edited(data, lambda h: h.update({"down.weights": h.pop("down.weight")})),
        ["'down.weights'", "down.weight"],
    ),
    "a wrong shape": (
        lambda data: edited(data, lambda h: h["up.bias"].update(shape=[384, 6])),
        ["'up.bias'", "[384, 6]", "[6, 384]"],
    ),
    "a wrong dtype": (
        lambda data: edited(data, lambda h: h["up.bias"].update(dtype="I16")),
        ["'up.bias'", "I16", "F16"],
    ),
    "a dtype that is no text": (
        lambda data: edited(data, lambda h: h["up.bias"].update(dtype="\ud800")),
        ["'up.bias'", "F16"],
    ),
    "a shape that is no text": (
        lambda data: edited(data, lambda h: h["up.bias"].update(shape="\ud800")),
        ["'up.bias'", "[6, 384]"],
    ),
    "a tensor with a key too many": (
        lambda data: edited(data, lambda h: h["up.bias"].update(note="hidden")),
        ["'up.bias'", "note", "data_offsets"],
    ),
    "NaN": (lambda data: with_tensor(data, "up.weight", b"\x00\x7e"), ["'up.weight'", "NaN"]),
    "infinity": (
        lambda data: with_tensor(data, "head.out.bias", b"\x00\x7c"),
        ["'head.out.bias'", "infinity"],
    ),
    "another backbone": (
        lambda data: with_spec(data, backbone__fingerprint="0" * 64),
        ["000000000000", "fingerprint", "expected 'embedded'"],
    ),
    "a task that is a path": (lambda data: with_spec(data, task="../evil"), ["task", "../evil"]),
    "a task with a slash": (lambda data: with_spec(data, task="a/b"), ["task", "a/b"]),
    "a max_length beyond the backbone": (
        lambda data: with_spec(data, max_length=1024),
        ["1024", "512"],
    ),
    "pooling at a mask that is nowhere": (
        lambda data: with_spec(data, pooling="mask"),
        ["'mask'", "template"],
    ),
    "logits it does not give": (
        lambda data: with_spec(data, probe__logits=[[9.0, 9.0], [9.0, 9.0]]),
        ["probe", "[9, 9]"],
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_is_stored(
    case: str, client: httpx2.Client, server: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """Each bad file is a 422 that says what is wrong; no file, no task and no series is left
    behind."""
    make, words = HOSTILE[case]
    before = sorted(path.name for path in server.store.rglob("*"))
    answer = upload(client, make(adapter_bytes("hostile")))
    assert answer.status_code == 422, answer.text
    for word in words:
        assert word in answer.json()["error"]
    assert sorted(path.name for path in server.store.rglob("*")) == before
    assert client.post("/predict?task=hostile", json=FILM).status_code == 404
    assert "hostile" not in client.get("/metrics").text
    assert not list(Path(server.store).parent.rglob("*evil*"))


FORMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no file": ({"data": {"activate": "true"}}, 400, "file"),
    "a text as file": ({"data": {"file": "hello"}}, 400, "file"),
    "not a form": (
        {"content": b"abc", "headers": {"Content-Type": "application/octet-stream"}},
        400,
        "multipart",
    ),
    "no boundary": (
        {"content": b"abc", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "boundary",
    ),
    "two files": ({"files": [("file", b"a"), ("other", b"b")]}, 400, "files"),
    "a flood of fields": (
        {"files": {"file": b"a"}, "data": {f"f{i}": "x" for i in range(50)}},
        400,
        "fields",
    ),
    "activate neither": ({"files": {"file": b"a"}, "data": {"activate": "maybe"}}, 422, "maybe"),
    "activate as a file": ({"files": {"activate": b"true"}}, 400, "no file 'file'"),
    "the file as the body": (
        {"content": b"abc", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        400,
        "Content-Type is 'application/x-www-form-urlencoded'; expected multipart/form-data, as"
        " curl -F file=@FILE sends it",
    ),
    "a charset that none is": (
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n--x--\r\n',
            "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"},
        },
        400,
        "form",
    ),
    "compressed": (
        {"files": {"file": b"a"}, "headers": {"Content-Encoding": "gzip"}},
        415,
        "'gzip'",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_that_is_none_is_refused(case: str, client: httpx2.Client) -> None:
    """Each broken upload form is a 4xx that says what was expected."""
    request, status, word = FORMS[case]
    answer = client.post("/adapters", **request)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]


@pytest.mark.parametrize("activate", ["True", "TRUE", "False"])
def test_activate_is_read_as_python_writes_it(
    activate: str,
    client: httpx2.Client,
    adapter_bytes: Callable[..., bytes],
    made: Callable[[str], str],
) -> None:
    """`activate` may be written in capitals, as clients do that format a boolean of Python."""
    answer = upload(client, adapter_bytes(made("capital")), activate=activate)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["version"] is None) == (activate == "False")


def test_a_task_is_shown_without_the_texts_of_its_probe(client: httpx2.Client) -> None:
    """The page of a task has the probe's logits and not its texts, which may be of a customer's
    data."""
    spec = client.get("/adapters/sst2").json()["spec"]
    assert set(spec["probe"]) == {"rows", "logits"}
    assert spec["probe"]["rows"] == len(spec["probe"]["logits"]) > 0


def test_unknown_names_are_explained(client: httpx2.Client) -> None:
    """Unknown tasks and versions are 404s that offer what there is; a body that is no activation is
    a 422."""
    assert "'sst2'" in client.get("/adapters/sst").json()["error"]
    assert "no version 'beef'" in client.get("/adapters/sst2/versions/beef/file").json()["error"]
    assert client.post("/adapters/sst2/activate", json={"version": 5}).status_code == 422
    for body in (b"{", b'{"version": "\xff"}', b"[" * 100_000):
        answer = client.post("/adapters/sst2/activate", content=body)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "MalformedBody")
        assert "expected an object with 'version'" in answer.json()["error"]


def test_a_page_of_another_site_cannot_write(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """Where no key is asked, a browser's request from a foreign page is refused all the same."""
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer = client.post("/adapters", files={"file": adapter_bytes("foreign")}, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (403, "ForeignPage")


def test_an_upload_with_a_misspelt_field_is_refused(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """A field that is neither `file` nor `activate` is refused by name: it would be missed
    silently."""
    answer = upload(client, adapter_bytes("misspelt"), activte="false")
    assert (answer.status_code, answer.json()["error_type"]) == (422, "InvalidRequest")
    assert "'activte'" in answer.json()["error"]
    assert client.get("/adapters/misspelt").status_code == 404


def test_the_list_in_pages(client: httpx2.Client) -> None:
    """`offset` and `limit` cut the list, which is by name; `search` leaves the names that hold it;
    a header counts."""
    everything = client.get("/adapters")
    assert [entry["task"] for entry in everything.json()] == sorted(TASKS)
    assert everything.headers["X-Total-Count"] == str(len(TASKS))
    page = client.get("/adapters?offset=1&limit=2")
    assert (page.json(), page.headers["X-Total-Count"]) == (everything.json()[1:3], str(len(TASKS)))
    found = client.get("/adapters", params={"search": " ST"})
    assert ([entry["task"] for entry in found.json()], found.headers["X-Total-Count"]) == (
        ["sst2", "stsb"],
        "2",
    )
    assert (
        client.get("/adapters?offset=99").json()
        == client.get("/adapters?search=nonesuch").json()
        == []
    )
    for wrong in ("offset=-1", "limit=0", "limit=1001", f"search={'a' * 65}", "details=perhaps"):
        assert client.get(f"/adapters?{wrong}").status_code == 422


def test_of_many_tasks_some_are_named(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes], made: Callable[[str], str]
) -> None:
    """A request that names no task is told how many there are, and at most five of them."""
    upload(client, adapter_bytes(made("one-more")))
    tasks = [entry["task"] for entry in client.get("/adapters").json()]
    sentence = client.post("/predict", json=FILM).json()["error"]
    assert sentence.endswith(f"({len(tasks)} tasks: {', '.join(map(repr, tasks[:5]))}, …)")


def test_the_list_with_details(
    client: httpx2.Client,
    embedded: Backbone,
    adapter_bytes: Callable[..., bytes],
    made: Callable[[str], str],
) -> None:
    """`details` adds each task's requests since the start, the latency of its answers and the
    file's dev scores, as far as they are numbers."""
    scores = {"accuracy": 0.875, "f1": 1, "note": "good", "sure": True, "lists": [1]}
    spec, tensors, _ = random_adapter(embedded, made("scored"), ["no", "yes"])
    spec = spec.model_copy(update={"training": {"dev_scores": scores}})
    assert upload(client, serialize(spec, tensors)).status_code == 201
    upload(client, adapter_bytes(made("unscored")))
    for body in (FILM, FILM, {"inputs": ""}):
        client.post("/predict?task=scored", json=body)
    plain, detailed = (
        client.get(f"/adapters?search=scored{more}").json() for more in ("", "&details=true")
    )
    latency = detailed[0]["latency"]
    assert 0 < latency["p50"] <= latency["p99"] < 60
    added = [
        {"dev_scores": {"accuracy": 0.875, "f1": 1.0}, "requests": 3, "latency": latency},
        {"dev_scores": {}, "requests": 0, "latency": None},
    ]
    assert all(entry.pop("canary") is None for entry in detailed)
    assert detailed == [entry | more for entry, more in zip(plain, added, strict=True)]
    client.delete("/adapters/scored")
    scores = {f"score {i} {'x' * 1000}": i for i in range(900)}
    spec = spec.model_copy(update={"training": {"dev_scores": scores}})
    assert upload(client, serialize(spec, tensors)).status_code == 201
    (again,) = client.get("/adapters?search=scored&details=true").json()[:1]
    assert (again["requests"], again["latency"]) == (0, None)
    assert list(again["dev_scores"].values()) == list(range(32))
    assert all(len(name) == 64 for name in again["dev_scores"])
