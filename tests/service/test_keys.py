"""The keys file, its hashes, the check of keys and their limits, without a server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.keys import keys as checking
from service.keys.file import InvalidKeys, block, parse, read
from service.keys.hashes import BadHash, check_hash, hashed, matches
from service.keys.key import Key
from service.keys.keys import MAX_WAITING_OF_ADDRESS, Keys
from service.keys.limits import Limits
from service.refusals import KeyLimited, KeyUnchecked
from tests.service.conftest import until
from tests.service.keys_files import key, write, write_text


class Clock:
    """Seconds that go on only where a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


HASH = hashed("secret")
WHOLE = f'[keys.a]\nhash = "{HASH}"\nscopes = ["predict"]\ntasks = ["sst2"]\n'


def test_a_hash_is_of_one_secret() -> None:
    """A hash matches its own secret alone, and two hashes of one secret differ."""
    assert matches("secret", HASH)
    assert not matches("Secret", HASH)
    assert hashed("secret") != HASH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scrypt",
        HASH.replace("scrypt", "argon2"),
        HASH.replace("16384", "16383"),
        HASH.replace("16384", "1048576"),  # a gigabyte of memory
        HASH.replace("16384$8", "65536$1"),  # not in scrypt
        HASH.replace("$1$", "$0$", 1),
        HASH[:-4],
        HASH.replace("=", "!"),
    ],
    # not by their texts: a hash has a random part, and every process must name a test alike
    ids=["empty", "name", "kind", "cost", "memory", "block", "parallel", "cut", "base64"],
)
def test_what_is_no_hash(text: str) -> None:
    """A hash that is cut, of another kind, or that would take much memory is refused."""
    with pytest.raises(BadHash):
        check_hash(text)


def test_a_key_is_read_as_it_is_printed() -> None:
    """What `keys new` prints is read as the same key."""
    made = key("team-a", ("predict", "write"), ("sst2*", "mrpc"), 2.5, 100)
    assert parse(block(made)) == {"team-a": made}


@pytest.mark.parametrize(
    ("tasks", "seen", "hidden"),
    [
        (["sst2"], ["sst2"], ["sst", "sst22", "SST2", "sst2\n"]),
        (["team-?", "x*"], ["team-a", "x", "xyz"], ["team-", "team-ab", "ax", "x" * 65, "x*"]),
        (["*"], ["a", "0_-"], ["", "A", "a b", "../x", "_a"]),
    ],
)
def test_patterns(tasks: list[str], seen: list[str], hidden: list[str]) -> None:
    """`*` is any characters, `?` is one, and what is no task's name fits no pattern."""
    found = key("a", tasks=tasks)
    assert [found.sees(task) for task in seen] == [True] * len(seen)
    assert [found.sees(task) for task in hidden] == [False] * len(hidden)


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("", 1, "it has no key"),
        ("# all gone\n", 1, "it has no key"),
        ("[keys]\n", 1, "it has no key"),
        (f"{WHOLE}[keys.b\n", 5, "it is not TOML"),
        (f'{WHOLE}tasks = ["mrpc"]\n', 5, "it is not TOML"),  # twice
        (f"{WHOLE}x = [\n", 5, "it is not TOML"),
        (f"{WHOLE}[other]\n", 5, "it has 'other'"),
        ("[keys]\na = 1\n", 2, "keys.a is 1"),
        (WHOLE.replace("keys.a", 'keys."A"'), 1, "the name is 'A'"),
        (f"{WHOLE}limit = 1\n", 5, "'limit' is unknown"),
        (WHOLE.replace("hash", "#"), 1, "hash is missing"),
        (WHOLE.replace("scopes", "#"), 1, "scopes is missing"),
        (WHOLE.replace("tasks", "#"), 1, "tasks is missing"),
        (WHOLE.replace("scrypt", "sha256"), 2, "the hash is none"),
        (WHOLE.replace(f'"{HASH}"', "12"), 2, "the hash is none"),
        (WHOLE.replace("predict", "read"), 3, "the scope 'read' is unknown"),
        (WHOLE.replace('["predict"]', "[]"), 3, "scopes is []"),
        (WHOLE.replace('["predict"]', '"predict"'), 3, "scopes is 'predict'"),
        (WHOLE.replace('["sst2"]', "[]"), 4, "tasks is []"),
        (WHOLE.replace('["sst2"]', "[1]"), 4, "tasks is [1]"),
        (WHOLE.replace("sst2", "sst2/x"), 4, "the pattern 'sst2/x' fits no task"),
        (f"{WHOLE}requests_per_second = 0\n", 5, "requests_per_second is 0"),
        (f"{WHOLE}requests_per_second = true\n", 5, "requests_per_second is True"),
        (f"{WHOLE}\nrows_per_second = nan\n", 6, "rows_per_second is nan"),
        (f"{WHOLE}rows_per_second = '9'\n", 5, "rows_per_second is '9'"),
        (f"{WHOLE}rows_per_second = 1{'0' * 400}\n", 5, "rows_per_second is 1"),
        (f"{WHOLE}rows_per_second = 1{'0' * 5000}\n", 1, "it is not TOML that can be read"),
        (f"x = {'[' * 5000}{']' * 5000}\n", 1, "it is not TOML that can be read"),
    ],
)
def test_each_fault_of_a_keys_file(text: str, line: int, fault: str) -> None:
    """A fault is refused in one sentence with its line, what was found and what was expected, and
    without the hash."""
    with pytest.raises(InvalidKeys) as raised:
        parse(text)
    sentence = str(raised.value)
    assert sentence.startswith(f"line {line}: "), sentence
    assert fault in sentence
    assert "expected" in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert HASH.rpartition("$")[2] not in sentence


def test_a_keys_file_is_a_file_of_few_readers(tmp_path: Path) -> None:
    """A keys file that every user may read, a folder, a pipe, bytes that are no text and no file at
    all are refused; a link to a file is followed, as Kubernetes mounts a Secret."""
    path = write(tmp_path / "keys.toml", key("a"))
    for mode in (0o604, 0o602, 0o644, 0o777):
        path.chmod(mode)
        with pytest.raises(InvalidKeys, match=rf"has mode 0{mode:o}.*expected mode 0600"):
            read(path)
    path.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert set(read(link)) == {"a"}
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in (".", "pipe"):
        with pytest.raises(InvalidKeys, match=r"no regular file|cannot be read"):
            read(tmp_path / name)
    with pytest.raises(InvalidKeys, match="cannot be read: No such file"):
        read(tmp_path / "none.toml")
    path.write_bytes(b"# 1\n# \xff\n")
    with pytest.raises(InvalidKeys, match="line 2: it is not UTF-8"):
        read(path)


def _take(limits: Limits, of: Key, what: str, number: int) -> None:
    if what == "requests":
        limits.take_request(of)
    else:
        limits.take_rows(of, number)


@settings(deadline=None)
@given(
    rate=st.floats(0.01, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300)), min_size=1, max_size=30),
)
def test_retry_after_is_exact(rate: float, steps: list[tuple[float, int]]) -> None:
    """Of requests and rows: a client that waits for as long as Retry-After says is answered; a
    second earlier it would be refused; and over a long time no more than the limit is let
    through."""
    for what in ("requests", "rows"):
        clock = Clock()
        limits, started, taken, largest = Limits(clock), clock.now, 0, 0
        found = key("a", requests=rate if what == "requests" else None, rows=rate)

        take = partial(_take, limits, found, what)
        for pause, rows in steps:
            number = 1 if what == "requests" else rows
            clock.now += pause
            try:
                take(number)
            except KeyLimited as error:
                asked = clock.now
                if error.retry_after > 1:
                    clock.now = asked + error.retry_after - 1.001
                    with pytest.raises(KeyLimited):
                        take(number)
                clock.now = asked + error.retry_after
                take(number)
            taken, largest = taken + number, max(largest, number)
        assert taken <= max(rate, 1) + (clock.now - started) * rate + largest + 0.01


def test_a_refusal_for_rows_waits_for_requests_too() -> None:
    """Retry-After of a request with too many rows is when its request would be let through too."""
    clock = Clock()
    limits, found = Limits(clock), key("a", requests=0.1, rows=10)
    limits.take_request(found)
    limits.take_rows(found, 10)
    clock.now += 10
    limits.take_request(found)
    limits.take_rows(found, 5)
    with pytest.raises(KeyLimited) as raised:
        limits.take_rows(found, 8)
    assert raised.value.retry_after == 10
    clock.now += 10
    limits.take_request(found)
    limits.take_rows(found, 8)


def test_a_right_key_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was checked, right or wrong, is not hashed again; an unknown name never is; and
    many requests with one new key wait for one hash."""
    hashes: list[str] = []

    def counting(secret: str, text: str) -> bool:
        hashes.append(secret)
        return matches(secret, text)

    monkeypatch.setattr(checking, "matches", counting)
    keys = Keys(write(tmp_path / "keys.toml", key("a"), key("b")))

    async def ask() -> None:
        several = await asyncio.gather(*(keys.of("a.secret", "1.2.3.4") for _ in range(50)))
        assert {found.name for found in several if found is not None} == {"a"}
        assert await keys.of("a.secret", "5.6.7.8") == keys_of(tmp_path)["a"]
        for _ in range(3):
            assert await keys.of("a.wrong", "1.2.3.4") is None
            assert await keys.of("c.secret", "1.2.3.4") is None
            assert await keys.of("asecret", "1.2.3.4") is None
            assert await keys.of(f"a.{'x' * 600}", "1.2.3.4") is None

    asyncio.run(ask())
    keys.stop()
    assert hashes == ["secret", "wrong"]


def keys_of(folder: Path) -> dict[str, object]:
    return dict(read(folder / "keys.toml"))


def test_few_keys_wait_for_their_hash(tmp_path: Path) -> None:
    """Of one address few keys wait; the rest are refused, and a key that is known does not wait."""
    keys = Keys(write(tmp_path / "keys.toml", key("a")))

    async def ask() -> None:
        assert await keys.of("a.secret", "1.2.3.4") is not None
        wrong = [
            asyncio.create_task(keys.of(f"a.{number}", "1.2.3.4"))
            for number in range(4 * MAX_WAITING_OF_ADDRESS)
        ]
        await asyncio.sleep(0)  # they begin
        assert await keys.of("a.secret", "1.2.3.4") is not None
        answers = await asyncio.gather(*wrong, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, KeyUnchecked)]
        assert len(refused) == 3 * MAX_WAITING_OF_ADDRESS
        assert answers.count(None) == MAX_WAITING_OF_ADDRESS

    asyncio.run(ask())
    keys.stop()


def test_a_key_that_left_the_file_is_wrong(tmp_path: Path) -> None:
    """A changed file is read again: a key that is no longer there, or has another hash, is wrong
    from then on, though it was known; a file that is damaged or gone changes nothing."""
    path = write(tmp_path / "keys.toml", key("a"), key("b"))
    keys = Keys(path)
    keys.start()

    def is_key(token: str) -> bool:
        return asyncio.run(keys.of(token, "1.2.3.4")) is not None

    assert is_key("a.secret")
    assert is_key("b.secret")
    other = block(key("b")).replace(key("b").hash, hashed("another"))
    write_text(path, other)
    until(lambda: not is_key("a.secret"))
    assert not is_key("b.secret")
    assert is_key("b.another")
    write_text(path, "[keys.b")
    until(lambda: not keys.valid)
    assert is_key("b.another")
    write(path, key("a"))
    until(lambda: keys.valid)
    assert is_key("a.secret")
    path.unlink()
    until(lambda: not keys.valid)
    assert is_key("a.secret")
    keys.stop()


def test_a_front_end_begins_without_the_keys_of_a_damaged_file(tmp_path: Path) -> None:
    """A process that can do without keys starts with a damaged file, and has its keys once it is
    mended."""
    path = tmp_path / "keys.toml"
    write_text(path, "[keys.b")
    keys = Keys(path, required=False)
    assert not keys.valid
    keys.start()
    assert asyncio.run(keys.of("a.secret", "1.2.3.4")) is None
    write(path, key("a"))
    until(lambda: keys.valid)
    assert asyncio.run(keys.of("a.secret", "1.2.3.4")) is not None
    keys.stop()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "keys", "new", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_makes_a_key() -> None:
    """`keys new` shows a key once, on stderr, and prints its table on stdout, which holds no
    secret."""
    done = command("--name", "team-a", "--scope", "predict", "--tasks", "sst2*")
    assert done.returncode == 0, done.stderr
    made = done.stderr.strip().rpartition(": ")[2]
    name, _, secret = made.partition(".")
    assert name == "team-a"
    assert len(secret) == 43  # 256 bits in base64
    assert secret not in done.stdout
    found = parse(done.stdout)["team-a"]
    assert (found.scopes, found.tasks) == ({"predict"}, ("sst2*",))
    assert matches(secret, found.hash)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--name", "Team A", "--scope", "predict", "--tasks", "*"), "the name is 'Team A'"),
        (("--name", "a", "--scope", "predict"), "tasks is missing"),
        (("--name", "a", "--scope", "admin", "--tasks", "*"), "the scope 'admin' is unknown"),
        (
            ("--name", "a", "--scope", "write", "--tasks", "*", "--rows-per-second", "-1"),
            "rows_per_second is -1.0",
        ),
    ],
)
def test_the_command_refuses_what_no_file_may_have(arguments: tuple[str, ...], fault: str) -> None:
    """`keys new` ends with exit code 2 and one sentence, and prints no key."""
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert fault in line
