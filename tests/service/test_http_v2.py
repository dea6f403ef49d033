"""The Open Inference Protocol V2: Triton's own client, KServe's JSON, and what nobody should
send."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from adapters.store import Store
from tests.service.conftest import TASKS, Server
from tests.service.test_http_operations import value

FIRST = ["it is a good film", "the plot was awful", "naïve 电影"]
SECOND = ["somebody eats", "red or blue", "it was not very good"]
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def tritons(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def columns(task: str) -> dict[str, list[str]]:
    return {"text": FIRST, "text_pair": SECOND} if TASKS[task].get("text_pair") else {"text": FIRST}


def arrays(task: str, *, binary: bool = True) -> list[triton.InferInput]:
    """Input tensors as a user of Triton makes them."""
    tensors = []
    for name, texts in columns(task).items():
        tensor = triton.InferInput(name, [len(texts)], "BYTES")
        tensors.append(
            tensor.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=binary)
        )
    return tensors


def tensor(name: str = "text", data: Any = ("good", "bad"), **changes: Any) -> dict[str, Any]:
    """An input tensor of KServe's JSON; a change to None leaves the key out."""
    data = list(data) if isinstance(data, tuple) else data
    entry = {
        "name": name,
        "shape": [len(data)] if isinstance(data, list) else [1],
        "datatype": "BYTES",
        "data": data,
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def infer(client: httpx2.Client, task: str, *inputs: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v2/models/{task}/infer", json={"inputs": inputs, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def raw_scores(client: httpx2.Client, task: str, function: str = "none") -> list[list[float]]:
    """What /predict answers for the same texts, in the order of the labels."""
    inputs = [list(texts) for texts in zip(*columns(task).values(), strict=True)]
    body = {"inputs": inputs, "parameters": {"function_to_apply": function}}
    rows = client.post(f"/predict?task={task}", json=body).json()
    scores = [{entry["label"]: entry["score"] for entry in row} for row in rows]
    return [[row[label] for label in TASKS[task]["labels"]] for row in scores]


def test_triton_finds_a_live_and_ready_server(tritons: triton.InferenceServerClient) -> None:
    """Triton's client finds the server live and ready, and reads its name and extensions."""
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    metadata = tritons.get_server_metadata()
    assert metadata["name"] == "adamix-serve"
    assert {"binary_tensor_data", "classification", "model_repository"} <= set(
        metadata["extensions"]
    )


def test_kserves_health_says_so_in_its_body(client: httpx2.Client) -> None:
    """Live and ready are answered in KServe's JSON as well as by the status."""
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/sst2/ready").json() == {"name": "sst2", "ready": True}


@pytest.mark.parametrize("task", TASKS)
def test_metadata_says_what_a_task_takes_and_answers(
    task: str, tritons: triton.InferenceServerClient, server: Server
) -> None:
    """A model's metadata have its versions, its tensors and, among the parameters, its labels in
    the logits' order."""
    version = Store(server.store, read_only=True).find(task).short
    metadata = tritons.get_model_metadata(task)
    assert metadata == tritons.get_model_metadata(task, version)
    assert (metadata["name"], metadata["versions"]) == (task, [version])
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"]} == dict.fromkeys(
        columns(task), ("BYTES", [-1])
    )
    labels = TASKS[task]["labels"]
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["outputs"]} == {
        "label": ("BYTES", [-1]),
        "score": ("FP32", [-1]),
        "logits": ("FP32", [-1, len(labels)]),
    }
    assert metadata["parameters"]["labels"] == labels


def test_a_model_is_ready_or_it_is_said_why_not(
    tritons: triton.InferenceServerClient, server: Server
) -> None:
    """A stored version is ready, and no other; the metadata of an unknown task name the closest."""
    assert tritons.is_model_ready("sst2")
    assert tritons.is_model_ready("sst2", Store(server.store, read_only=True).find("sst2").digest)
    assert not tritons.is_model_ready("sst")
    assert not tritons.is_model_ready("sst2", "beef")
    with pytest.raises(InferenceServerException, match="'sst2'") as refused:
        tritons.get_model_metadata("sst")
    assert refused.value.status() == "404"


def test_the_index_lists_every_version(
    tritons: triton.InferenceServerClient, client: httpx2.Client, server: Server
) -> None:
    """The repository index has every version of every task, each ready, with and without a body."""
    store = Store(server.store, read_only=True)
    wanted = [
        {"name": task, "version": store.find(task).short, "state": "READY", "reason": ""}
        for task in sorted(TASKS)
    ]
    assert tritons.get_model_repository_index() == wanted
    assert client.post("/v2/repository/index", json={"ready": True}).json() == wanted
    refused = client.post("/v2/repository/index", json={"ready": "yes"})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "InvalidRequest")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_triton_infers_what_predict_answers(
    task: str, binary: bool, tritons: triton.InferenceServerClient, client: httpx2.Client
) -> None:
    """Through Triton's client, binary or JSON, logits, scores and labels are those of /predict, for
    every kind of task."""
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("logits", "label", "score")
    ]
    result = tritons.infer(task, arrays(task, binary=binary), outputs=outputs, request_id="mine-1")
    assert result.get_response()["id"] == "mine-1"
    assert [output["name"] for output in result.get_response()["outputs"]] == [
        "logits",
        "label",
        "score",
    ]
    assert ("parameters" in result.get_output("logits")) == binary

    labels = TASKS[task]["labels"]
    logits = result.as_numpy("logits")
    assert logits.shape == (3, len(labels))
    assert logits.dtype == np.float32
    assert logits == pytest.approx(np.array(raw_scores(client, task)), abs=1e-5)
    best = logits.argmax(1)
    names = [
        name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("label")
    ]
    assert names == [labels[i] for i in best]
    problem = TASKS[task].get("problem_type", "single_label_classification")
    function = {"regression": "none", "multi_label_classification": "sigmoid"}.get(
        problem, "softmax"
    )
    scores = np.array(raw_scores(client, task, function))[range(3), best]
    assert result.as_numpy("score") == pytest.approx(scores, abs=1e-5)


def test_all_outputs_by_default(
    tritons: triton.InferenceServerClient, client: httpx2.Client
) -> None:
    """Without a list of outputs all three come: to Triton's client, which then asks so, as bytes,
    else as JSON."""
    result = tritons.infer("sst2", arrays("sst2"))
    assert all(
        "binary_data_size" in output["parameters"] for output in result.get_response()["outputs"]
    )
    answer = infer(client, "sst2", tensor(data=FIRST))
    assert [(t["name"], t["datatype"], t["shape"]) for t in answer["outputs"]] == [
        ("label", "BYTES", [3]),
        ("score", "FP32", [3]),
        ("logits", "FP32", [3, 2]),
    ]
    for output in answer["outputs"]:
        assert result.as_numpy(output["name"]).shape == tuple(output["shape"])
        assert len(output["data"]) == math.prod(output["shape"])


def test_only_the_outputs_asked_for(client: httpx2.Client) -> None:
    """Outputs come as asked: those alone, in that order, and one as JSON though the request wants
    bytes by default."""
    answer = infer(client, "sst2", tensor(), outputs=[{"name": "score"}])
    assert [output["name"] for output in answer["outputs"]] == ["score"]
    outputs = [{"name": "logits"}, {"name": "label", "parameters": {"binary_data": False}}]
    body = {"inputs": [tensor()], "outputs": outputs, "parameters": {"binary_data_output": True}}
    mixed = client.post("/v2/models/sst2/infer", json=body)
    head = json.loads(mixed.content[: int(mixed.headers[HEADER])])
    assert [set(output) for output in head["outputs"]] == [
        {"name", "datatype", "shape", "parameters"},
        {"name", "datatype", "shape", "data"},
    ]
    assert len(mixed.content) == int(mixed.headers[HEADER]) + 2 * 2 * 4
    assert mixed.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("binary", [True, False])
def test_classification_answers_the_best_labels(
    binary: bool, tritons: triton.InferenceServerClient, client: httpx2.Client
) -> None:
    """The classification extension answers "value:index:label" of the best k, for scores and for
    logits."""
    labels = TASKS["topics"]["labels"]
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary, class_count=3)
        for name in ("score", "logits")
    ]
    result = tritons.infer("topics", arrays("topics"), outputs=outputs)
    for name, function in (("score", "sigmoid"), ("logits", "none")):
        found = result.as_numpy(name)
        assert found.shape == (3, 3)
        for row, wanted in zip(found, raw_scores(client, "topics", function), strict=True):
            parts = [
                (entry.decode() if isinstance(entry, bytes) else entry).split(":") for entry in row
            ]
            order = sorted(range(5), key=lambda i: -wanted[i])[:3]
            assert [(int(index), label) for _, index, label in parts] == [
                (i, labels[i]) for i in order
            ]
            assert [float(score) for score, _, _ in parts] == pytest.approx(
                [wanted[i] for i in order], abs=1e-5
            )


def test_a_version_is_pinned(
    tritons: triton.InferenceServerClient, client: httpx2.Client, server: Server
) -> None:
    """Triton's model version is ours, whole or as a prefix; the answer says which it was, without
    an id if none was sent."""
    version = Store(server.store, read_only=True).find("sst2")
    for given in (version.short, version.digest, version.digest[:6]):
        response = tritons.infer("sst2", arrays("sst2"), model_version=given).get_response()
        assert (response["model_name"], response["model_version"]) == ("sst2", version.short)
        assert "id" not in response
    answer = client.post(
        f"/v2/models/sst2/versions/{version.short}/infer", json={"inputs": [tensor()]}
    )
    assert answer.headers["X-Adapter-Version"] == f"sst2@{version.short}"
    assert answer.headers["Server-Timing"].startswith("queue;dur=")
    with pytest.raises(InferenceServerException, match="no version 'beef'"):
        tritons.infer("sst2", arrays("sst2"), model_version="beef")


def test_truncate_is_a_parameter_of_the_request(client: httpx2.Client) -> None:
    """A text that is too long is refused, or cut where the request's parameters say so."""
    long = tensor(data=["good " * 500])
    refused = client.post("/v2/models/sst2/infer", json={"inputs": [long]})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "InputTooLong")
    assert infer(client, "sst2", long, parameters={"truncate": True})["outputs"]


def test_what_other_clients_add_is_taken(client: httpx2.Client) -> None:
    """Parameters of MLServer's and Triton's clients, nulls, and the model's name in the body change
    nothing."""
    plain = infer(client, "sst2", tensor())
    dressed = infer(
        client,
        "sst2",
        tensor(parameters={"content_type": "str"}),
        parameters={"content_type": "str", "priority": 1, "timeout": 5, "sequence_id": 3},
        model_name="sst2",
        id=None,
        outputs=[{"name": name, "parameters": None} for name in ("label", "score", "logits")],
    )
    assert [output["name"] for output in dressed["outputs"]] == [
        output["name"] for output in plain["outputs"]
    ]
    assert dressed["outputs"][2]["data"] == pytest.approx(plain["outputs"][2]["data"], abs=1e-5)


def test_infer_is_counted_as_predict_is(client: httpx2.Client) -> None:
    """Infer requests are counted by task and outcome like /predict's, and an unknown task makes no
    series."""

    def count(outcome: str) -> float:
        return value(
            client, "adamix_requests", "adamix_requests_total", task="mnli", outcome=outcome
        )

    ok, invalid = count("ok"), count("invalid")
    infer(client, "mnli", tensor(), tensor("text_pair"))
    assert client.post("/v2/models/mnli/infer", json={"inputs": [tensor()]}).status_code == 422
    assert client.post("/v2/models/nonesuch/infer", json={"inputs": [tensor()]}).status_code == 404
    assert (count("ok"), count("invalid")) == (ok + 1, invalid + 1)
    assert "nonesuch" not in client.get("/metrics").text


def classes(k: Any, name: str = "logits") -> dict[str, Any]:
    return {"inputs": [tensor()], "outputs": [{"name": name, "parameters": {"classification": k}}]}


# the task, what is sent, the status, and words that the message must hold
REFUSED: dict[str, tuple[str, Any, int, list[str]]] = {
    "unknown task": ("sst", {"inputs": [tensor()]}, 404, ["'sst'", "'sst2'"]),
    "unknown version": ("sst2/versions/beef", {"inputs": [tensor()]}, 404, ["'beef'"]),
    "a matrix": ("sst2", {"inputs": [tensor(shape=[2, 1])]}, 422, ["'text'", "[2, 1]", "[n]"]),
    "no dimension": ("sst2", {"inputs": [tensor(shape=[])]}, 422, ["'text'", "[]", "[n]"]),
    "no rows": ("sst2", {"inputs": [tensor(data=[])]}, 422, ["'text'", "[0]", "at least one"]),
    "negative rows": (
        "sst2",
        {"inputs": [tensor(shape=[-1])]},
        422,
        ["inputs.0.shape.0", "-1", "0"],
    ),
    "a broken shape": (
        "sst2",
        {"inputs": [tensor(shape=[2.5])]},
        422,
        ["inputs.0.shape.0", "2.5", "integer"],
    ),
    "a shape that is no list": (
        "sst2",
        {"inputs": [tensor(shape=2)]},
        422,
        ["inputs.0.shape", "2", "list"],
    ),
    "more rows than data": (
        "sst2",
        {"inputs": [tensor(shape=[3])]},
        422,
        ["'text'", "2 elements", "3"],
    ),
    "fewer rows than data": (
        "sst2",
        {"inputs": [tensor(shape=[1])]},
        422,
        ["'text'", "2 elements", "1"],
    ),
    "too many rows": ("sst2", {"inputs": [tensor(data=["a"] * 65)]}, 413, ["65 inputs", "64"]),
    "rows without end": ("sst2", {"inputs": [tensor(shape=[2**62])]}, 413, [str(2**62), "64"]),
    "another datatype": (
        "sst2",
        {"inputs": [tensor(datatype="FP32", data=[1.0])]},
        422,
        ["'FP32'", "'BYTES'"],
    ),
    "data of another type": (
        "sst2",
        {"inputs": [tensor(data=["a", 1])]},
        422,
        ["text[1]", "1", "text"],
    ),
    "data within data": (
        "sst2",
        {"inputs": [tensor(data=[["a"], ["b"]])]},
        422,
        ["text[0]", "['a']"],
    ),
    "data that are no list": (
        "sst2",
        {"inputs": [tensor(data="good")]},
        422,
        ["'text'", "'good'", "list"],
    ),
    "no data": (
        "sst2",
        {"inputs": [tensor(data=None)]},
        422,
        ["'text'", "data", "binary_data_size"],
    ),
    "an empty text": ("sst2", {"inputs": [tensor(data=["a", ""])]}, 422, ["text[1]", "empty"]),
    "a control character": (
        "mrpc",
        {"inputs": [tensor(), tensor("text_pair", ("a", "\0"))]},
        422,
        ["text_pair[1]", "U+0000"],
    ),
    "unknown input": ("sst2", {"inputs": [tensor("texts")]}, 422, ["'sst2'", "'texts'", "'text'"]),
    "a pair for a single text": (
        "sst2",
        {"inputs": [tensor(), tensor("text_pair")]},
        422,
        ["'text_pair'", "'text'"],
    ),
    "one text for a pair": (
        "mrpc",
        {"inputs": [tensor()]},
        422,
        ["'text'", "'text' and 'text_pair'"],
    ),
    "the same input twice": ("mrpc", {"inputs": [tensor(), tensor()]}, 422, ["'text'", "twice"]),
    "pairs that do not pair": (
        "mrpc",
        {"inputs": [tensor(), tensor("text_pair", ("a",))]},
        422,
        ["2 of", "1 of", "as many"],
    ),
    "no inputs": ("sst2", {"id": "x"}, 422, ["inputs", "missing"]),
    "empty inputs": ("sst2", {"inputs": []}, 422, ["inputs", "at least 1"]),
    "an input without a name": (
        "sst2",
        {"inputs": [{"shape": [1], "datatype": "BYTES"}]},
        422,
        ["inputs.0.name", "missing"],
    ),
    "unknown output": (
        "sst2",
        {"inputs": [tensor()], "outputs": [{"name": "probs"}]},
        422,
        ["'probs'", "'score'"],
    ),
    "the same output twice": (
        "sst2",
        {"inputs": [tensor()], "outputs": [{"name": "label"}] * 2},
        422,
        ["'label'", "twice"],
    ),
    "no class": ("sst2", classes(0), 422, ["classification is 0", "greater than or equal to 1"]),
    "a negative class": ("sst2", classes(-1), 422, ["classification is -1", "or equal to 1"]),
    "classes that are no number": (
        "sst2",
        classes("all"),
        422,
        ["classification", "'all'", "integer"],
    ),
    "classes of the label": ("sst2", classes(1, "label"), 422, ["'label'", "'score'"]),
    "a number as id": ("sst2", {"inputs": [tensor()], "id": 7}, 422, ["id", "7", "string"]),
    "a misspelt key": ("sst2", {"inputs": [tensor()], "output": []}, 422, ["output"]),
    "parameters in a list": (
        "sst2",
        {"inputs": [tensor()], "parameters": [1]},
        422,
        ["parameters", "[1]"],
    ),
    "a truncate that is no truth": (
        "sst2",
        {"inputs": [tensor()], "parameters": {"truncate": "no"}},
        422,
        ["truncate", "'no'"],
    ),
    "a negative size": (
        "sst2",
        {"inputs": [tensor(parameters={"binary_data_size": -1})]},
        422,
        ["binary_data_size", "-1"],
    ),
    "a size without the header": (
        "sst2",
        {"inputs": [tensor(data=None, shape=[1], parameters={"binary_data_size": 8})]},
        422,
        ["'text'", "8", HEADER],
    ),
    "shared memory": (
        "sst2",
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": "mine"})]},
        422,
        ["shared_memory_region", "'mine'"],
    ),
    "a list": ("sst2", [tensor()], 422, ["list", "object", "inputs"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_by_name(case: str, client: httpx2.Client) -> None:
    """Each bad request is a 4xx in KServe's form whose sentence names the thing, the value found
    and the value expected."""
    model, body, status, words = REFUSED[case]
    answer = client.post(f"/v2/models/{model}/infer", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    for word in words:
        assert word in answer.json()["error"]


def pack(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


TAIL = pack(b"good", b"bad")  # 15 bytes


def sized(size: int = len(TAIL), **changes: Any) -> bytes:
    """The JSON of a request whose tensor `text` [2] is said to follow in `size` bytes."""
    entry = tensor(shape=[2], **{"data": None, **changes}) | {
        "parameters": {"binary_data_size": size}
    }
    return json.dumps({"inputs": [entry]}).encode()


# the JSON, what follows it, the header (None: the JSON's length), the status, and words that the
# message must hold
LIES: dict[str, tuple[bytes, bytes, str | None, int, list[str]]] = {
    "a size too short": (sized(14), TAIL, None, 422, ["text[1]", "3 bytes", "2"]),
    "a size too long": (sized(16), TAIL, None, 422, ["'text'", "16", "15"]),
    "a size beyond all": (sized(2**62), TAIL, None, 422, ["'text'", str(2**62), "15"]),
    "a size of nothing": (sized(0), b"", None, 422, ["'text'", "text[0]", "2"]),
    "bytes too many": (sized(), TAIL + b"!", None, 422, ["16 bytes", "15"]),
    "bytes for nobody": (
        json.dumps({"inputs": [tensor()]}).encode(),
        b"!!",
        None,
        422,
        ["2 bytes", "0"],
    ),
    "a text less": (sized(8), pack(b"good"), None, 422, ["'text'", "text[1]", "2"]),
    "a text more": (sized(20), TAIL + pack(b"x"), None, 422, ["'text'", "20", "15"]),
    "a text longer than all": (
        sized(8),
        b"\xff\xff\xff\xffgood",
        None,
        422,
        ["text[0]", "4294967295", "4"],
    ),
    "half a length": (sized(10), pack(b"good") + b"\1\0", None, 422, ["'text'", "text[1]", "2"]),
    "not UTF-8": (sized(), pack(b"good", b"b\xffd"), None, 422, ["text[1]", "UTF-8", "byte 1"]),
    "a surrogate's bytes": (
        sized(),
        pack(b"good", b"\xed\xa0\x80"),
        None,
        422,
        ["text[1]", "UTF-8"],
    ),
    "a control character": (sized(), pack(b"good", b"b\0d"), None, 422, ["text[1]", "U+0000"]),
    "data twice": (sized(data=["good", "bad"]), TAIL, None, 422, ["'text'", "both"]),
    "a header too long": (sized(), TAIL, "1000", 400, [HEADER, "'1000'"]),
    "a header too short": (sized(), TAIL, "20", 400, ["JSON"]),
    "a header of nothing": (sized(), TAIL, "0", 400, ["JSON"]),
    "a negative header": (sized(), TAIL, "-1", 400, [HEADER, "'-1'"]),
    "a header that is no number": (sized(), TAIL, "all", 400, [HEADER, "'all'"]),
    "a header of many digits": (sized(), TAIL, "1" * 5000, 400, [HEADER, "'1111"]),
    "an empty header": (sized(), TAIL, "", 400, [HEADER, "''"]),
}


@pytest.mark.parametrize("case", LIES)
def test_binary_bodies_that_lie_are_refused_by_name(case: str, client: httpx2.Client) -> None:
    """Each binary body that is not what its sizes say is a 4xx with a sentence, and the server goes
    on."""
    head, tail, header, status, words = LIES[case]
    headers = {HEADER: str(len(head)) if header is None else header}
    answer = client.post("/v2/models/sst2/infer", content=head + tail, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    for word in words:
        assert word in answer.json()["error"]
    honest = client.post(
        "/v2/models/sst2/infer", content=sized() + TAIL, headers={HEADER: str(len(sized()))}
    )
    assert honest.json()["outputs"][0]["shape"] == [2]


def test_triton_shows_our_sentence(tritons: triton.InferenceServerClient) -> None:
    """Triton's client raises with our sentence and status: an unknown output, a compressed body, a
    model to load."""
    with pytest.raises(InferenceServerException, match="no output 'probs'"):
        tritons.infer("sst2", arrays("sst2"), outputs=[triton.InferRequestedOutput("probs")])
    with pytest.raises(InferenceServerException, match="Content-Encoding is 'gzip'"):
        tritons.infer("sst2", arrays("sst2"), request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match="/docs"):
        tritons.load_model("sst2")
