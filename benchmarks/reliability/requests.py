"""Requests that no client would send, made at random: the same seed makes the same bytes.

Each kind has a generator of its own. `by_h11` says which requests another parser finds in a stream.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable, Sequence
from functools import partial

import h11

from benchmarks.reliability.files import mutated

KINDS = ("framing", "headers", "paths and queries", "JSON", "multipart", "V2 binary")
BODY = json.dumps({"inputs": "good"}).encode()
TASKS = ("sst2", "mrpc", "mnli", "stsb", "topics")
# JSON as it is written, so that what no encoder writes can be sent too.
SCALARS = (
    *("null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e308", "1e999", "-1e999"),
    *("9" * 30, "9" * 5000, "NaN", "Infinity", "01", "+1", "0x10", "1.", ".5", "tru", "undefined"),
    *('""', '" "', '"good"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u202e"', '"\\x"'),
    *('"[SEP] [MASK]"', '"{text} {mask}"', "'good'", '"good', '"sst2"', '"__proto__"', '"none"'),
    f'"{"a" * 5000}"', f'"{"good " * 2000}"', f'"{chr(0x1F600) * 300}"', "[" * 60 + "]" * 60,
    "[" * 3000, '{"a":' * 500, "[[]]", "{}", "[]", "[null]", '["a","b"]', '[["a"],["b","c"]]',
)  # fmt: skip
KEYS = (
    *("inputs", "text", "text_pair", "parameters", "truncate", "options", "top_k", "window"),
    *("function_to_apply", "raw_scores", "stride", "aggregation", "name", "shape", "datatype"),
    *("data", "outputs", "id", "binary_data", "binary_data_size", "classification", "version"),
    *("", "\\u0000", "\\ud800", "__class__", "a" * 300),
)


def lengthy(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(body: bytes, size: int = 7) -> bytes:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"


def framing(seed: int) -> bytes:
    """A request made at random of parts that servers have read in different ways, with another one
    hidden in its body: `GET /hidden-<seed>`."""
    chance = random.Random(seed)
    hidden = b"GET /hidden-%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % seed
    names = [b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Host", b"Expect"]
    names += [b"content-length", b"Trailer", b"TE", b"X"]
    values = [b"%d" % len(hidden), b"0", b"3", b"chunked", b"upgrade", b"h2c", b"websocket"]
    values += [b"close", b"keep-alive", b"100-continue", b"localhost", b"-1", b"gzip", b"identity"]
    values += [b"chunked, identity", b"upgrade, close", b"0" * 400 + b"3", b"\xff", b"1e3", b""]
    ends = [b"\r\n"] * 24 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\0", b"\r\r\n"]
    colons = [b": "] * 16 + [b":", b":\t", b" : ", b":  "]
    method = chance.choice([b"GET", b"POST", b"POST", b"POST", b"DELETE", b"OPTIONS"])
    path = chance.choice([b"/predict?task=sst2", b"/health", b"/adapters", b"*", b"/nowhere"])
    version = chance.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1"])
    lines = b"%b %b %b\r\nHost: localhost\r\n" % (method, path, version)
    for _ in range(chance.randrange(5)):
        name, value = chance.choice(names), chance.choice(values)
        lines += name + chance.choice(colons) + value + chance.choice(ends)
    body = chance.choice([hidden, chunked(hidden).partition(b"\r\n\r\n")[2], BODY])
    framed = chance.choice([b"\r\n" + body, lengthy(body), chunked(body)])
    if chance.random() < 0.3:
        at = chance.randrange(len(framed))
        framed = framed[:at] + bytes([chance.randrange(256)]) + framed[at + 1 :]
    return lines + framed


def head(seed: int) -> bytes:
    """A valid body under headers that are strange: their number, their length, their values."""
    chance = random.Random(seed)
    names = [b"X-Request-ID", b"Authorization", b"Cookie", b"Accept", b"Accept-Encoding", b"Range"]
    names += [b"Content-Type", b"Content-Encoding", b"User-Agent", b"Origin", b"Referer", b"Host"]
    names += [b"X-Forwarded-For", b"X-Forwarded-Proto", b"Forwarded", b"traceparent", b"If-Match"]
    names += [b"Expect", b"Sec-Fetch-Site", b"Inference-Header-Content-Length", b"\xff", b"X" * 999]
    values = [b"", b" ", b"*/*", b"application/json; charset=undefined", b"text/plain", b"gzip"]
    values += [b"multipart/form-data; boundary=", b"Bearer ", b"Bearer \xe4", b"Basic OjpAOg=="]
    values += [
        b"bytes=0-,-1",
        b"for=unknown;proto=javascript",
        b"a" * 4000,
        b"\x01\x02",
        b"\xff\xfe",
    ]
    values += [
        b"[",
        b"[::1",
        b"localhost:99999",
        b"http://evil/",
        b"-1",
        b"9" * 40,
        b"q=;,;",
        b"=?",
    ]
    values += [
        b"application/openmetrics-text; version=9.9.9",
        b"00-" + b"0" * 32 + b"-" + b"0" * 16,
    ]
    lines = [
        b"%b: %b" % (chance.choice(names), chance.choice(values))
        for _ in range(chance.randrange(6))
    ]
    if chance.random() < 0.1:
        lines += [
            b"X-%d: %b" % (i, b"y" * chance.randrange(900)) for i in range(chance.randrange(130))
        ]
    if chance.random() < 0.1:
        lines.append(bytes(chance.randrange(256) for _ in range(chance.randrange(200))))
    host = [] if chance.random() < 0.05 else [b"Host: localhost"]
    method, path = chance.choice([(b"POST", b"/predict?task=sst2"), (b"POST", b"/predict/"), *GETS])
    start = b"%b %b HTTP/1.1" % (method, path)
    return b"\r\n".join([start, *host, *lines, lengthy(BODY if method == b"POST" else b"")])


GETS = [
    (b"GET", path)
    for path in (
        *(b"/health", b"/ready", b"/metrics", b"/adapters", b"/adapters/sst2", b"/storage", b"/v2"),
        *(b"/v2/models/sst2", b"/v2/health/ready", b"/docs", b"/", b"/nowhere"),
    )
]


def target(seed: int) -> bytes:
    """Any method on any path, with parts and a query that no page would link to."""
    chance = random.Random(seed)
    parts = [
        b"sst2",
        b"none",
        b"..",
        b"%2e%2e",
        b"%00",
        b"%ff%fe",
        b"a%2fb",
        b"%",
        b"%zz",
        b"\xc3\xa4",
    ]
    parts += [
        b"a" * 70,
        b"SST2",
        b"sst2%0d%0aX:y",
        b"1",
        b"0" * 64,
        b"f" * 12,
        b"%F0%9F%98%80",
        b"",
    ]
    routes = [b"/adapters/%b", b"/adapters/%b/versions/%b", b"/adapters/%b/versions/%b/file"]
    routes += [b"/v2/models/%b", b"/v2/models/%b/versions/%b/infer", b"/v2/models/%b/infer"]
    routes += [b"/v2/repository/models/%b/load", b"/static/%b", b"/%b", b"//%b", b"/predict/%b"]
    route = chance.choice(routes)
    path = route % tuple(chance.choice(parts) for _ in range(route.count(b"%b")))
    names = [
        b"task",
        b"version",
        b"truncate",
        b"limit",
        b"offset",
        b"search",
        b"details",
        b"name[]",
    ]
    query = [
        b"%b=%b" % (chance.choice(names), chance.choice(parts)) for _ in range(chance.randrange(5))
    ]
    if chance.random() < 0.05:
        query += [b"task=%d" % i for i in range(chance.randrange(2000))]
    methods = [
        b"GET",
        b"GET",
        b"POST",
        b"PUT",
        b"PATCH",
        b"HEAD",
        b"OPTIONS",
        b"TRACE",
        b"M-SEARCH",
    ]
    method = chance.choice(methods if b"sst2" in path else [*methods, b"DELETE"])
    address = path + (b"?" + b"&".join(query) if query else b"")
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\n%b" % (method, address, lengthy(BODY))


def text(seed: int) -> bytes:
    """JSON for each route that reads it: wrong types, wrong numbers, broken texts, too deep."""
    chance = random.Random(seed)
    path = chance.choice(
        [f"/predict?task={task}" for task in TASKS]
        + ["/predict?task=sst2&task=topics", "/predict?task=sst2&truncate=true"]
        + ["/v2/models/sst2/infer", "/v2/models/mrpc/infer", "/v2/repository/index"]
        + ["/adapters/sst2/activate"]
    )
    if path.startswith("/predict"):
        fields = {"inputs": _text(chance), "parameters": _object(chance, 1), "truncate": "true"}
        fields |= {"options": _object(chance, 1)} if chance.random() < 0.3 else {}
    elif path.endswith("/infer"):
        fields = {"inputs": f"[{_tensor(chance)}]", "outputs": f"[{_object(chance, 1)}]"}
    else:
        fields = {"version": _value(chance, 2), "ready": _value(chance, 1)}
    kept = [name for name in fields if name == "inputs" or chance.random() < 0.4]
    for name in kept:
        if chance.random() < 0.4:
            fields[name] = _value(chance, 3)
    body = "{" + ",".join(f'"{name}":{fields[name]}' for name in kept) + "}"
    return _posted(path.encode(), _damaged(body.encode("utf-8", "replace"), chance))


def form(seed: int, valid: Sequence[bytes]) -> bytes:
    """An upload whose form is broken, or whose file is one of `valid`, damaged."""
    chance = random.Random(seed)
    boundary = chance.choice([b"b", b"-" * 70, b"b b", b"\xff", b"b" * 300])
    file = (
        mutated(chance.choice(valid), chance)
        if chance.random() < 0.5
        else bytes(chance.randrange(99))
    )
    names = [
        b'name="file"; filename="a"',
        b'name="file"',
        b'name="activate"',
        b'name="x"',
        b"name=",
    ]
    names += [b'name="file"; filename="../../a"', b"name*=utf-8''file", b'name="\xff"', b""]
    types = [b"", b"\r\nContent-Type: text/plain; charset=undefined", b"\r\nContent-Type: \xff"]
    types += [b"\r\nContent-Transfer-Encoding: base64", b"\r\n" + b"X: y\r\n" * 50 + b"X: y"]
    parts = []
    for number in range(chance.choice([0, 1, 1, 1, 2, 5, 40])):
        name = names[0] if number == 0 and chance.random() < 0.6 else chance.choice(names)
        content = file if number == 0 else chance.choice([b"true", b"false", b"", b"True", b"\xff"])
        disposition = b"Content-Disposition: form-data; %b%b" % (name, chance.choice(types))
        parts.append(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, disposition, content))
    end = chance.choice([b"--%b--\r\n" % boundary] * 4 + [b"", b"--%b" % boundary, b"--%b--x"])
    kinds = [b"multipart/form-data; boundary=%b" % boundary] * 6
    kinds += [b"multipart/form-data", b"multipart/form-data; boundary=other", b"multipart/mixed"]
    kinds += [b'multipart/form-data; boundary="%b"; charset=undefined' % boundary]
    body = b"".join(parts) + end
    if chance.random() < 0.2:
        body = _damaged(body, chance)
    return _posted(b"/adapters", body, b"Content-Type: %b\r\n" % chance.choice(kinds))


def binary(seed: int) -> bytes:
    """A V2 request by the binary tensor data extension, whose sizes do not agree."""
    chance = random.Random(seed)
    texts = [
        chance.choice([b"good", b"", b"\xff", b"a" * 300, b"\0"])
        for _ in range(chance.randrange(4))
    ]
    data = b"".join(struct.pack("<I", len(each)) + each for each in texts)
    if chance.random() < 0.4:
        data = _damaged(
            data + struct.pack("<I", chance.choice([0, 5, 1 << 31, (1 << 32) - 1])), chance
        )
    wrong = [0, -1, 1, len(data) - 1, len(data) + 1, 1 << 31, 1 << 63, 1 << 70]
    size = chance.choice([len(data)] * 6 + wrong)
    shape = chance.choice([len(texts)] * 6 + [0, -1, 1 << 40])
    tensor = f'"name":"text","shape":[{shape}],"datatype":"BYTES"'
    tensor += f',"parameters":{{"binary_data_size":{size}}}'
    if chance.random() < 0.1:
        tensor += f',"data":{_value(chance, 2)}'
    header = f'{{"inputs":[{{{tensor}}}],"parameters":{{"binary_data_output":true}}}}'.encode()
    if chance.random() < 0.1:
        header = _damaged(header, chance)
    length = chance.choice(
        [len(header)] * 8 + [0, -1, len(header) - 1, len(header) + len(data) + 1]
    )
    told = chance.choice([b"%d" % length] * 9 + [b"", b"x", b"1e3", b"9" * 30, b"+1", b" 1"])
    more = b"Inference-Header-Content-Length: %b\r\n" % told
    task = chance.choice([b"sst2", b"sst2", b"topics", b"mrpc", b"none"])
    return _posted(b"/v2/models/%b/infer" % task, header + data, more)


def kinds(valid: Sequence[bytes]) -> dict[str, Callable[[int], bytes]]:
    """A generator for each of KINDS; `valid` are adapter files."""
    forms = partial(form, valid=valid)
    return dict(zip(KINDS, (framing, head, target, text, forms, binary), strict=True))


def by_h11(stream: bytes) -> list[str]:
    """The targets of the requests that another parser, h11, finds in it; it declines upgrades."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(stream)
    connection.receive_data(b"")
    targets = []
    with contextlib.suppress(h11.RemoteProtocolError):
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                targets.append(event.target.decode("latin-1"))
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                if connection.their_state is h11.DONE:
                    connection.start_next_cycle()
            elif not isinstance(event, h11.Data):
                break
    return targets


def _posted(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b%b" % (path, more, lengthy(body))


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Often as it was; else with some bytes changed, cut out or doubled."""
    if chance.random() < 0.6 or not data:
        return data
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(damaged) + 1)
        damaged[at : at + chance.randrange(6)] = chance.randbytes(chance.randrange(6))
    return bytes(damaged)


def _value(chance: random.Random, depth: int) -> str:
    if depth == 0 or chance.random() < 0.5:
        return chance.choice(SCALARS)
    if chance.random() < 0.5:
        return "[" + ",".join(_value(chance, depth - 1) for _ in range(chance.randrange(4))) + "]"
    return _object(chance, depth)


def _object(chance: random.Random, depth: int) -> str:
    names = [chance.choice(KEYS) for _ in range(chance.randrange(4))]
    return "{" + ",".join(f'"{name}":{_value(chance, depth - 1)}' for name in names) + "}"


def _text(chance: random.Random) -> str:
    pair = '{"text":"good","text_pair":"bad"}'
    return chance.choice(['"good"', pair, '["good","bad"]', f"[{pair}]", _value(chance, 2)])


def _tensor(chance: random.Random) -> str:
    fields = {"name": '"text"', "shape": "[1]", "datatype": '"BYTES"', "data": '["good"]'}
    for name in fields:
        if chance.random() < 0.2:
            fields[name] = _value(chance, 2)
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
