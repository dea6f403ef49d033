"""Rollouts: which version of a divided task answers a request, what each version did, and the end
of a canary whose rule says so.

Everything here runs on the event loop, in the process that has the engine, but `Rollouts.all`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TypeVar

import structlog

from adapters.adapter_store import AdapterStore
from adapters.entry import Entry
from adapters.errors import AdaMixError, StoreError, StoreUnreachable, for_operators
from adapters.lookup import version_of
from adapters.text import Tokens
from adapters.traffic import Left, Split
from service.batcher import Outcome
from service.predictor import Admitted, Logits, Role
from service.refusals import DeviceOutOfMemory, NotFinite
from service.telemetry.latency import Latencies
from service.traffic.seen import Seen, Verdict, judged

RETRY_SECONDS = 1.0  # before the end of a canary is written again
TOLD_SECONDS = 60.0  # between two lines in the log about a canary's failures
MOST_LOADING = 64  # requests whose rows wait for another version's file, to be compared
NO_FAULT = (DeviceOutOfMemory, StoreUnreachable)  # of the version that met it

Done = Callable[[Outcome[Logits] | Exception | None], None]
T = TypeVar("T")

log = structlog.get_logger("service")


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that answers: its digest, its part in a split, and how many places the canary of
    that split takes."""

    digest: str
    role: Role | None = None
    places: int = 0


@dataclass(eq=False)
class Rollout:
    """One split of a task's traffic, and what its versions did since this process knows of it
    (`began`, in seconds since the epoch)."""

    task: str
    split: Split
    began: float = field(default_factory=time.time)
    seen: dict[Role, Seen] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)  # by role: seconds a row
    due: float = 0.0  # how much of a request the shadow is owed
    leaving: bool = False
    untold: int = 0  # failures of the canary since the last line in the log about them
    tell_at: float = 0.0  # when there may be the next one, by the monotonic clock

    def __post_init__(self) -> None:
        for role in ("active", *self.split.roles()):
            self.seen[role] = Seen()  # type: ignore[index]  # mypy takes them for any strings

    def took(self, role: Role, outcomes: Sequence[Outcome[Logits]]) -> None:
        """The device ran these rows of a version. A row's time is its batch's by the rows of that:
        so versions can be compared whose rows are in batches of other sizes."""
        seconds = sum(outcome.batch.seconds / outcome.batch.rows for outcome in outcomes)
        self.latencies.add(role, seconds / len(outcomes))
        self.seen[role].seconds += seconds

    def broken_rule(self) -> str | None:
        """Why the canary must leave, if it must."""
        rule, seen = self.split.rollback, self.seen.get("canary")
        if rule is None or seen is None:
            return None
        if rule.errors is not None and _exceeds(
            seen.errors, seen.requests, rule.errors, rule.after
        ):
            return (
                f"{seen.errors} of {seen.requests} requests could not be answered by it; expected"
                f" at most a share of {rule.errors:g}"
            )
        if rule.disagreement is not None and _exceeds(
            seen.disagreed, seen.compared, rule.disagreement, rule.after
        ):
            return (
                f"{seen.disagreed} of {seen.compared} rows got another label than the active"
                f" version gives; expected at most a share of {rule.disagreement:g}"
            )
        return None


class Rollouts:
    """The rollouts of all divided tasks of a store."""

    def __init__(
        self,
        store: AdapterStore,
        *,
        held: Callable[[str], Admitted | None],
        bring: Callable[[str, str], Awaitable[Admitted]],
        offer: Callable[[Admitted, Tokens, Done], None],
        write: Callable[[Callable[[], bool]], Awaitable[bool]],
        rolled_back: Callable[[str, Left], None],
    ) -> None:
        """`held` gives a version that is in memory, `bring` loads one; `offer` runs a row in spare
        time; `write` runs a job that writes to the store, elsewhere; in such a job `rolled_back` is
        called with the task whose canary was ended by its rule."""
        self._store = store
        self._held, self._bring, self._offer = held, bring, offer
        self._write, self._rolled_back = write, rolled_back
        self._rollouts: dict[str, Rollout] = {}
        self._changing = threading.Lock()  # `all` forgets rollouts in other threads
        self._loading: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def choose(self, task: str, version: str | None, place: int | None = None) -> Choice:
        """The version that answers a request: the one that it names, or else the one that has its
        place, or else the active one. Raises as `Store.find`."""
        entry = self._store.entry(task)
        found = version_of(entry, version)
        if version is not None or entry.split is None:
            return Choice(found.digest)
        rollout, canary = self._of(entry, entry.split), entry.split.canary
        # One that is to leave gets no more requests, also while the store cannot be written.
        places = 0 if canary is None or rollout.leaving else canary.places
        if canary is not None and place is not None and place < places:
            return Choice(canary.digest, "canary", places)
        return Choice(found.digest, "active", places)

    def of(self, task: str) -> Rollout | None:
        """The rollout of a task, if its traffic is divided. Raises UnknownTask."""
        entry = self._store.entry(task)
        return None if entry.split is None else self._of(entry, entry.split)

    def all(self) -> list[Rollout]:
        """Those of all divided tasks of which something is known. May be called in any thread."""
        known = list(self._rollouts.values())
        return [rollout for rollout in known if self._current(rollout)]

    def ran(
        self, rows: Sequence[tuple[Admitted, Tokens]], outcomes: Sequence[Outcome[Logits]]
    ) -> None:
        """The rows of one request were run: count them, and compare some.

        Raises NotFinite if a canary gave logits that are NaN or infinite; then nothing was counted.
        Else raises nothing: the rows are answered, whatever becomes of their comparison.
        """
        try:
            self._ran(rows, outcomes)
        except NotFinite:
            raise
        except Exception:
            log.exception("a request was answered, but not counted or compared in full")

    def _ran(
        self, rows: Sequence[tuple[Admitted, Tokens]], outcomes: Sequence[Outcome[Logits]]
    ) -> None:
        if all(admitted.role is None for admitted, _ in rows):
            return
        groups = [
            (admitted, [(row[1], outcome) for row, outcome in group])
            for admitted, group in groupby(
                zip(rows, outcomes, strict=True), key=lambda pair: pair[0][0]
            )
        ]
        judgements = [
            [judged(outcome.value, admitted.signature) for _, outcome in group]
            for admitted, group in groups
        ]
        for (admitted, _), verdicts in zip(groups, judgements, strict=True):
            if admitted.role == "canary" and None in verdicts:
                raise NotFinite(
                    admitted.digest,
                    f"version {admitted.version} of task {admitted.signature.task!r} gives logits"
                    " that are NaN or infinite; expected finite numbers",
                )
        for (admitted, group), verdicts in zip(groups, judgements, strict=True):
            rollout = self._rollouts.get(admitted.signature.task)
            if rollout is not None and self._plays(rollout, admitted):
                self._answered(rollout, admitted, group, verdicts)

    def failed(self, task: str, digest: str, error: Exception) -> None:
        """A canary could not answer a request, or not be loaded for it; the active version can."""
        rollout = self._rollouts.get(task)
        if rollout is None or rollout.split.roles().get("canary") != digest:
            return
        if not isinstance(error, NO_FAULT):
            rollout.seen["canary"].failed(non_finite=isinstance(error, NotFinite))
        rollout.untold += 1
        if (now := time.monotonic()) >= rollout.tell_at:
            log.warning(
                "a canary failed; the active version answers",
                task=task,
                version=digest[:12],
                error=for_operators(error) or repr(error),
                failures=rollout.untold,
            )
            rollout.untold, rollout.tell_at = 0, now + TOLD_SECONDS
        self._apply_rule(rollout)

    async def close(self) -> None:
        """Compare and end no more."""
        tasks = [*self._loading, *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _of(self, entry: Entry, split: Split) -> Rollout:
        with self._changing:
            rollout = self._rollouts.get(entry.task)
            if rollout is None or rollout.split != split:
                rollout = self._rollouts[entry.task] = Rollout(entry.task, split)
            return rollout

    def _current(self, rollout: Rollout) -> bool:
        """Whether a task's traffic is divided as this rollout has it; one that is not is
        forgotten."""
        task = rollout.task
        with contextlib.suppress(StoreError):  # the task was deleted
            if self._store.entry(task).split == rollout.split:
                return True
        with self._changing:
            if self._rollouts.get(task) is rollout:
                del self._rollouts[task]
        return False

    def _plays(self, rollout: Rollout, admitted: Admitted) -> bool:
        """Whether a version that was admitted has that part in the split still."""
        split = rollout.split
        return admitted.digest == (
            split.active if admitted.role == "active" else split.roles().get("canary")
        )

    def _answered(
        self,
        rollout: Rollout,
        admitted: Admitted,
        group: list[tuple[Tokens, Outcome[Logits]]],
        verdicts: list[Verdict | None],
    ) -> None:
        assert admitted.role is not None  # `_plays` saw to it
        seen, split = rollout.seen[admitted.role], rollout.split
        if None in verdicts:  # the active version's: the request gets an error
            seen.failed(non_finite=True)
            return
        seen.requests += 1
        whole = [verdict for verdict in verdicts if verdict is not None]
        for verdict in whole:
            seen.answered(verdict)
        rollout.took(admitted.role, [outcome for _, outcome in group])
        pairs = [(tokens, verdict) for (tokens, _), verdict in zip(group, whole, strict=True)]
        if admitted.role == "canary":
            self._compare(rollout, "canary", split.active, pairs)
            self._apply_rule(rollout)
        elif split.shadow is not None and _is_due(rollout, split.shadow.percent):
            self._compare(rollout, "shadow", split.shadow.digest, pairs)

    def _compare(
        self,
        rollout: Rollout,
        role: Role,
        other: str,
        pairs: list[tuple[Tokens, Verdict]],
    ) -> None:
        """Let another version run the rows that were answered, in spare time: the active one those
        of a canary, the shadow those of the active one."""
        held = self._held(other)
        if held is not None:
            self._offer_all(rollout, role, held, pairs)
        elif len(self._loading) < MOST_LOADING:
            _start(self._loading, self._load_and_compare(rollout, role, other, pairs))
        else:
            rollout.seen[role].dropped += len(pairs)

    async def _load_and_compare(
        self,
        rollout: Rollout,
        role: Role,
        other: str,
        pairs: list[tuple[Tokens, Verdict]],
    ) -> None:
        try:
            held = await self._bring(rollout.task, other)
            self._offer_all(rollout, role, held, pairs)
        except AdaMixError as error:
            _lost(rollout.seen[role], role, error, len(pairs))
        except Exception as error:  # else only the end of the task would have it
            log.exception("a version could not be compared", task=rollout.task, version=other[:12])
            _lost(rollout.seen[role], role, error, len(pairs))

    def _offer_all(
        self,
        rollout: Rollout,
        role: Role,
        other: Admitted,
        pairs: list[tuple[Tokens, Verdict]],
    ) -> None:
        if role == "shadow":
            rollout.seen[role].requests += 1
        for tokens, verdict in pairs:
            if len(tokens.ids) > other.signature.max_length:
                rollout.seen[role].dropped += 1
            else:
                self._offer(other, tokens, partial(self._compared, rollout, role, other, verdict))

    def _compared(
        self,
        rollout: Rollout,
        role: Role,
        other: Admitted,
        answered: Verdict,
        result: Outcome[Logits] | Exception | None,
    ) -> None:
        """What became of one row that another version was to run."""
        seen = rollout.seen[role]
        if not isinstance(result, Outcome):
            _lost(seen, role, result, 1)
            return
        verdict = judged(result.value, other.signature)
        if role == "canary":
            if verdict is None:
                seen.dropped += 1
            else:
                seen.agreed(answered, verdict)
            self._apply_rule(rollout)
        elif verdict is None:
            seen.errors += 1
            seen.non_finite += 1
        else:
            seen.answered(verdict)
            seen.agreed(verdict, answered)
            rollout.took(role, [result])

    def _apply_rule(self, rollout: Rollout) -> None:
        reason = rollout.broken_rule()
        if reason is not None and not rollout.leaving and self._current(rollout):
            rollout.leaving = True
            _start(self._ending, self._end(rollout, reason))

    async def _end(self, rollout: Rollout, reason: str) -> None:
        """End the canary in the store, for every process and for good."""
        canary = rollout.split.canary
        assert canary is not None  # it broke its rule
        left = Left(canary.digest, reason, time.time())
        told = False

        def ended() -> bool:
            done = self._store.end_canary(rollout.task, rollout.split, left)
            if done:
                self._rolled_back(rollout.task, left)
            return done

        while self._current(rollout):
            try:
                if await self._write(ended):
                    log.warning(
                        "a canary was rolled back by its rule",
                        task=rollout.task,
                        version=canary.digest[:12],
                        reason=reason,
                    )
                return
            except Exception as error:  # of the store, or a fault of ours: the canary must go
                if not told:
                    told = True
                    log.error(
                        "a canary gets no more requests, but its end cannot be written",
                        task=rollout.task,
                        version=canary.digest[:12],
                        error=for_operators(error) or repr(error),
                        exc_info=not isinstance(error, AdaMixError),
                    )
            await asyncio.sleep(RETRY_SECONDS)


def _lost(seen: Seen, role: Role, why: Exception | None, rows: int) -> None:
    """Rows that another version did not run: an error of a shadow, if that is at fault."""
    if role == "shadow" and why is not None and not isinstance(why, NO_FAULT):
        seen.errors += rows
    else:
        seen.dropped += rows


def _start(tasks: set[asyncio.Task[None]], work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _is_due(rollout: Rollout, percent: float) -> bool:
    """Whether the shadow gets this request: of a hundred as many as it is to get, evenly."""
    rollout.due += percent / 100
    if rollout.due < 1:
        return False
    rollout.due -= 1
    return True


def _exceeds(part: int, whole: int, most: float, after: int) -> bool:
    return whole >= after and part > most * whole
