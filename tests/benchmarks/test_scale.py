"""The simulation of many replicas: its queue beside the real batcher, exact small cases, and that
no request is lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.scale import plots
from benchmarks.scale.__main__ import app, simulated
from benchmarks.scale.batches import Queue
from benchmarks.scale.cluster import (
    FAILED,
    FETCHED,
    LOADED,
    READ,
    REFUSED,
    Cluster,
    Requests,
    Sizes,
)
from benchmarks.scale.costs import Costs
from benchmarks.scale.popularity import che, recent, zipf
from benchmarks.scale.routing import Random
from benchmarks.scale.scenarios import polling
from benchmarks.scale.setup import POLICIES, Setup
from service.refusals import QueueFull
from tests.service.device import Clock, Device, Text, in_loop, submitted

COSTS = Costs(
    batch=0.01, token=0.001, row=0.002, adapter=0.003, load=0.004, disk=0.1, bucket=0.5, poll=0.01,
    commit=0.02,
)  # fmt: skip
SMALL = Setup(
    replace(COSTS, batch=0.002, token=0.0001, row=0, adapter=0, disk=0.001, bucket=0.01),
    [10, 20, 30],
    tasks=300,
    replicas=6,
    sizes=Sizes(slots=8, memory=60, disk=200),
    bucket_seconds=0.0,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.integers(1, 12)),
            st.sampled_from([0.25, 1.0, 8.0]),
        ),
        max_size=60,
    )
)
def test_the_queue_is_the_batcher_s(steps: list[tuple[str, int] | float]) -> None:
    """Whatever comes, and however long batches take, the simulated queue forms the batches that the
    real batcher forms, and refuses what it refuses. A number is the seconds after which a batch
    ends."""

    @in_loop
    async def side_by_side() -> None:
        limits = {"max_adapters": 3, "max_tokens": 20, "max_wait": 2.0}
        queue = Queue(max_rows=12, **limits)
        clock, device = Clock(), Device()
        running: tuple[list[int], int] | None = None
        texts: list[Text] = []
        requests = []

        def begin() -> None:
            nonlocal running
            formed, adapters, tokens = queue.form(clock.now)
            running = formed, tokens
            assert {ord(texts[number].task) for number in formed} == set(adapters)

        async with clock.serving(device, max_queue_rows=12, **limits) as batcher:
            for step in steps:
                if isinstance(step, float):
                    if running is None:
                        continue
                    clock.now += step
                    device.end()
                    formed, tokens = running
                    queue.ended(clock.now, len(formed), tokens, step)
                    running = None
                    if queue.rows:
                        begin()
                else:
                    task, tokens = step
                    text = Text(task, tokens)
                    request = await submitted(batcher, [text])
                    requests.append(request)
                    if not queue.has_room(ord(task), tokens):
                        with pytest.raises(QueueFull):
                            await request
                        continue
                    assert not request.done()
                    queue.put(len(texts), ord(task), tokens)
                    texts.append(text)
                    if running is not None:
                        continue
                    begin()
                if running is not None:
                    assert await device.begins() == [texts[number] for number in running[0]]

    side_by_side()


def test_lone_requests_take_what_was_measured() -> None:
    """A request whose adapter is nowhere waits for the bucket and for a slot; the next one for
    nothing; one whose adapter lost its slot for that alone; one whose adapter left memory for the
    disk, too."""
    cluster = Cluster(3, COSTS, Random([0], 0), sizes=Sizes(slots=1, memory=2, disk=3))
    tasks = np.array([0, 0, 1, 0, 2, 1])
    size = len(tasks)
    outcomes = cluster.run(
        Requests(10.0 * np.arange(size), tasks, np.full(size, 5), np.zeros(size, int))
    )
    batch = 0.01 + 5 * 0.001 + 0.002 + 0.003
    cold = [0.5 + 0.004, 0, 0.5 + 0.004, 0.004, 0.5 + 0.004, 0.1 + 0.004]
    assert outcomes.latencies == pytest.approx([batch + more for more in cold])
    fetched, read = LOADED | READ | FETCHED, LOADED | READ
    assert outcomes.flags.tolist() == [fetched, 0, fetched, LOADED, fetched, read]


def test_a_file_is_read_once_for_all_who_wait() -> None:
    """Requests for one adapter that come while it is fetched make one batch, and one of them is a
    miss."""
    cluster = Cluster(1, COSTS, Random([0], 0), sizes=Sizes(1, 1, 1))
    times = np.array([0.0, 0.1, 0.2])
    tokens = np.full(3, 5)
    outcomes = cluster.run(Requests(times, np.zeros(3, int), tokens, np.zeros(3, int)))
    # The first begins a batch at once; the others, for which it did not wait, follow together.
    first = 0.5 + 0.01 + 5 * 0.001 + 0.002 + 0.003 + 0.004
    second = first + 0.01 + 10 * 0.001 + 2 * 0.002 + 0.003
    assert (outcomes.latencies + times).tolist() == pytest.approx([first, second, second])
    assert [flag & READ > 0 for flag in outcomes.flags] == [True, False, False]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("how", ["refuse", "silent", "both"])
def test_no_request_is_lost(name: str, how: str) -> None:
    """Each request is answered, refused or failed, whatever replicas do meanwhile, also under three
    times the load; in the end no Envoy counts one as under way."""
    setup = replace(SMALL, load=3.0)
    cluster = setup.cluster(name)
    requests = setup.arrivals(4000)
    middle = float(requests.times[1500])
    if how != "silent":
        cluster.at(middle, cluster.refuse_connections, 1)
    if how != "refuse":
        cluster.at(middle, cluster.fall_silent, 2, 1.0, how == "both")
    outcomes = cluster.run(requests)
    answered = ~np.isnan(outcomes.latencies)
    turned_away = outcomes.flags & (REFUSED | FAILED) > 0
    assert (answered ^ turned_away).all()
    assert answered.sum() > 1000
    for counts in cluster.counts:
        assert counts.total == counts.retries == 0
        assert not any(counts.active)


def test_a_silent_replica_s_requests_fail_or_are_sent_again() -> None:
    """What a replica that fell silent has gets an error where Envoys wait for the route's time, and
    a late answer where they send it again after a try's."""
    setup = replace(SMALL, load=0.3)
    lost = {}
    for again in (False, True):
        cluster = setup.cluster("bounded 1.5")
        cluster.at(0.5, cluster.fall_silent, 0, 2.0, again)
        outcomes = cluster.run(setup.arrivals(1500))
        lost[again] = int((outcomes.flags & FAILED > 0).sum())
        assert again == (np.nanmax(outcomes.latencies) > 2.0)
    assert lost[True] == 0 < lost[False]


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_che_s_formula_agrees_with_a_simulated_cache(exponent: float) -> None:
    """The device's hits under independent requests, from the simulation, are within 0.01 of Che's
    formula; and the caches begin as they are after a long time: early hits are as late ones."""
    setup = replace(SMALL, tasks=2000, sizes=Sizes(64, 400, 1000), exponent=exponent, load=0.1)
    outcomes = setup.cluster("random").run(setup.arrivals(40_000))
    misses = outcomes.flags & LOADED > 0
    expected = che(setup.popularity, 64)
    assert 1 - misses.mean() == pytest.approx(expected, abs=0.01)
    assert 1 - misses[:6000].mean() == pytest.approx(expected, abs=0.04)
    memory = 1 - (outcomes.flags & READ > 0).mean()
    assert memory == pytest.approx(che(setup.popularity, 400), abs=0.01)


def test_che_s_formula_at_its_ends() -> None:
    """A cache for all hits always; equal popularity hits by the share that has room."""
    assert che(zipf(10, 1.0), 10) == 1.0
    assert che(np.full(1000, 0.5), 250) == pytest.approx(0.25)


def test_recent_items() -> None:
    """What was asked for last is there, each item once, and popular ones more often."""
    chance = np.random.default_rng(0)
    rates = zipf(100, 1.0)
    rates[50:] = 0
    found = [recent(rates, chance, 10).tolist() for _ in range(200)]
    assert all(len(set(items)) == 10 and max(items) < 50 for items in found)
    counts = Counter(item for items in found for item in items)
    assert counts[0] > counts[10] > counts[45]


def test_polls() -> None:
    """A hundred replicas look as often as the setting and the bucket say; the log's own pace keeps
    their polls within the lease."""
    found = polling(COSTS, 0.0, [100], poll=0.4, lease=1.0)
    assert found["reads_per_second"] == {"100": pytest.approx(100 / 0.41, abs=0.1)}
    assert found["most_changes_per_second"] == pytest.approx(1 / 0.03, abs=0.1)
    assert found["within_lease"]
    slow = polling(replace(COSTS, poll=1.0), 0.0, [1], poll=0.4, lease=1.0)
    assert not slow["within_lease"]


def test_every_scenario(tmp_path: Path) -> None:
    """All scenarios run, with a slow small cluster, and are drawn: each figure is a share, or a
    time; hash alone has the hottest replica; and one more replica moves few tasks."""
    setup = replace(
        SMALL,
        costs=replace(COSTS, batch=0.02, token=0.004, load=0.001, disk=0.001, bucket=0.01),
        replicas=10,
    )
    found = simulated(setup, 600)
    plots.draw(found, tmp_path)
    assert (tmp_path / "scale-policies.svg").read_text().startswith("<?xml")
    assert (tmp_path / "scale-changes.svg").exists()
    at_one = {row["policy"]: row for row in found["policies"] if row["exponent"] == 1.0}
    assert set(at_one) == set(POLICIES)
    for row in found["policies"]:
        shares = ("device_hit_rate", "memory_hit_rate", "fetched_from_bucket", "refused")
        assert all(0 <= row[name] <= 1 for name in shares)
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert max(at_one, key=lambda name: at_one[name]["hottest_load"]) == "hash"
    assert at_one["hash"]["device_hit_rate"] > at_one["random"]["device_hit_rate"] + 0.1
    one_more = found["scale_out"][1]
    assert one_more["least"] == pytest.approx(1 / 11, abs=1e-4)
    assert 0.05 < one_more["tasks_moved"] < 0.2
    refused, silent, again, _ = found["zone"]
    assert silent["until_noticed"]["failed"] > 0 == again["until_noticed"]["failed"]
    assert refused["until_noticed"]["sent_again"] > 0.1
    for run in (*found["scale_out"], *found["rolling"], *found["zone"], *found["bursts"]):
        lengths = {len(values) for values in run["seconds"].values()}
        assert len(lengths) == 1
        assert lengths.pop() > 20


def test_a_measurement(bert_folder: Path, tmp_path: Path) -> None:
    """Batches and files are timed, and the simulation takes what was written."""
    costs, out = tmp_path / "costs.json", tmp_path / "scale.json"
    run = CliRunner().invoke
    options = ["--backbone", str(bert_folder), "--repeats", "1", "--files", "3", "--slots", "40"]
    result = run(app, ["measure", *options, "--out", str(costs)])
    assert result.exit_code == 0, result.output
    found = json.loads(costs.read_text())
    assert all(seconds >= 0 for seconds in found["costs_seconds"].values())
    assert found["costs_seconds"]["bucket"] > found["costs_seconds"]["disk"] > 0
    assert {batch["loads"] for batch in found["batches"]} >= {0, 32}
    result = run(app, ["--costs", str(bert_folder / "config.json"), "--out", str(out)])
    assert result.exit_code == 2
    assert "expected a file that python -m benchmarks.scale measure wrote" in result.output


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("forked")
def test_three_real_replicas(tmp_path: Path) -> None:
    """Real replicas behind the real Envoy answer as the simulation says: tasks are at home where
    our table has them, and device hits are close."""
    out = tmp_path / "scale.json"
    options = ["--tasks", "40", "--slots", "4", "--requests", "200", "--rates", "20"]
    result = CliRunner().invoke(app, ["validate", *options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (rate,) = json.loads(out.read_text())["validation"]["rates"]
    right, often = map(int, rate["tasks_mostly_at_home"].split(" of "))
    assert right >= 0.9 * often > 10
    measured, simulated = rate["measured"], rate["simulated"]
    assert measured["device_hit_rate"] == pytest.approx(simulated["device_hit_rate"], abs=0.1)
