"""The balancer's policies of the simulation: Envoy's table, its bound and its order of hosts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale.routing import (
    TABLE_SIZE,
    TWISTER,
    Counts,
    Maglev,
    TwoChoices,
    hashed,
    mutated,
    order,
    share,
    table,
)

ADDRESSES = tuple(f"10.0.0.{number}:8000" for number in range(100))
HASHES = [hashed(f"task-{number}") for number in range(2000)]


def test_the_hashes_are_envoy_s() -> None:
    """xxHash64 and std::mt19937 give what their definitions say; a retry's hash has nearly all bits
    turned."""
    assert hashed("") == 0xEF46DB3751D8E999  # the reference implementation's self-test
    TWISTER._legacy_seeding(5489)
    assert TWISTER.random_raw(10_000)[-1] == 4_123_659_995  # the C++ standard, [rand.predef]
    assert mutated(0, 1) == 2**64 - 1
    assert mutated(0, 2) == 2**64 - 2


@pytest.mark.parametrize("hosts", [1, 3, 100])
def test_the_table_is_balanced(hosts: int) -> None:
    """Each host has the same number of the table's places, but for one."""
    counts = Counter(table(ADDRESSES[:hosts]))
    assert set(counts) == set(range(hosts))
    assert set(counts.values()) <= {TABLE_SIZE // hosts, TABLE_SIZE // hosts + 1}


def test_the_table_does_not_depend_on_the_order_of_hosts() -> None:
    """Envoys that list the hosts in another order send a task to the same one."""
    turned = ADDRESSES[::-1]
    one = [ADDRESSES[place] for place in table(ADDRESSES)]
    assert one == [turned[place] for place in table(turned)]


def test_a_further_host_moves_little() -> None:
    """A hundred and first host takes its share, and few of the other places change."""
    more = (*ADDRESSES, "10.0.0.100:8000")
    before, after = np.array(table(ADDRESSES)), np.array(table(more))
    moved = before != after
    taken = after == 100
    assert taken.sum() in (TABLE_SIZE // 101, TABLE_SIZE // 101 + 1)
    assert moved[taken].all()
    assert (moved & ~taken).mean() < 0.02


def test_an_order_of_hosts() -> None:
    """A hash asks every host once, in an order of its own; a part of the order is its beginning."""
    first, second = order(HASHES[0], 100), order(HASHES[1], 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert order(HASHES[0], 100, 8) == first[:8]


def test_a_share() -> None:
    """A host may have the mean times the factor, rounded up, and one at least."""
    assert share(0, 150, 1 / 3) == 1
    assert share(199, 150, 1 / 100) == 3
    assert share(200, 150, 1 / 100) == 4  # 201 * 1.5 = 301.5, by hundredths: 3.02


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200),
    st.sampled_from([125, 150, 200, 300]),
)
def test_the_bound_holds(steps: list[tuple[bool, int]], factor: int) -> None:
    """Whatever is asked and answered, no host gets a request while it has more than its share; the
    home gets it as long as it has not."""
    hosts = 5
    policy = Maglev(range(hosts), ADDRESSES[:hosts], HASHES, factor)
    counts = Counts([0] * hosts)
    running: list[int] = []
    for ends, number in steps:
        if ends and running:
            host = running.pop(number % len(running))
            counts.active[host] -= 1
            counts.total -= 1
            continue
        slots = share(counts.total, factor, 1 / hosts)
        host = policy.choose(number, counts)
        assert counts.active[host] <= slots
        if counts.active[policy.homes[number]] <= slots:
            assert host == policy.homes[number]
        counts.active[host] += 1
        counts.total += 1
        running.append(host)


def test_two_choices() -> None:
    """Of two hosts that are drawn, the one with fewer requests is taken: the busiest of many only
    if it is drawn twice."""
    policy = TwoChoices(range(10), seed=1)
    counts = Counts([0] * 9 + [5], total=5)
    chosen = Counter(policy.choose(0, counts) for _ in range(10_000))
    assert chosen[9] == pytest.approx(100, abs=40)
    assert min(chosen[host] for host in range(9)) > 900
