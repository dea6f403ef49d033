"""The queue of a replica and the batches it makes: what `service.batcher.Batcher` does with
requests of one row each, by a simulated clock. A test holds the two side by side."""

from __future__ import annotations

from collections import OrderedDict, deque

from service.batcher import KEPT, ROWS_PER_FREE_PLACE, SMALLEST_LIMIT

MAX_TOKENS = 1024  # of a batch, on a CPU
MAX_QUEUE_ROWS = 2048
MAX_WAIT = 0.2  # seconds
PATIENCE = 0.1  # of the last batch's time


class Queue:
    """Rows by adapter, each (request, tokens). `answered` is the number of the last batch's."""

    __slots__ = (
        "_batch_tokens",
        "_began",
        "_busy_since",
        "_full",
        "_left_behind",
        "_max_adapters",
        "_max_rows",
        "_max_tokens",
        "_max_wait",
        "_pace_seconds",
        "_pace_tokens",
        "_queues",
        "answered",
        "patience_ends",
        "rows",
        "tokens",
    )

    def __init__(
        self,
        max_adapters: int,
        max_tokens: int = MAX_TOKENS,
        max_rows: int = MAX_QUEUE_ROWS,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self._max_adapters, self._max_tokens = max_adapters, max_tokens
        self._max_rows, self._max_wait = max_rows, max_wait
        self._queues: OrderedDict[int, deque[tuple[int, int]]] = OrderedDict()
        self.rows = self.tokens = self.answered = 0
        self.patience_ends = 0.0
        self._pace_tokens = self._pace_seconds = 0.0
        self._full = self._left_behind = False
        self._began = 0.0
        self._busy_since: float | None = None
        self._batch_tokens = max_tokens

    def has_room(self, adapter: int, tokens: int) -> bool:
        """Whether one more row is taken."""
        free = self._max_rows - self.rows
        if free < 1:
            return False
        if not self.rows:
            return True
        if self.tokens + tokens <= self._batch_tokens and 2 * (self.rows + 1) <= self._max_rows:
            return True
        queue = self._queues.get(adapter)
        before = 0 if queue is None else len(queue)
        if before and before + 1 > ROWS_PER_FREE_PLACE * free:
            return False
        tasks = len(self._queues) + (queue is None)
        ahead = self.tokens * min(1.0, before * tasks / self.rows)
        return ahead <= self._batch_tokens or self._seconds(ahead) <= self._max_wait

    def put(self, request: int, adapter: int, tokens: int) -> None:
        queue = self._queues.get(adapter)
        if queue is None:
            queue = self._queues[adapter] = deque()
        queue.append((request, tokens))
        self.rows += 1
        self.tokens += tokens

    def waits_until(self, now: float) -> float:
        """Until when a batch is put off, for the clients of the last one to ask again; `now` if it
        is not."""
        return max(now, self.patience_ends) if 2 * self.rows < self.answered else now

    def form(self, now: float) -> tuple[list[int], list[int], int]:
        """The next batch: its requests, their distinct adapters, and its tokens."""
        self._began = now if self._busy_since is None else self._busy_since
        requests: list[int] = []
        adapters: dict[int, None] = {}
        tokens, limit = 0, self._batch_tokens
        queues, most = self._queues, self._max_adapters
        took = True
        while took:
            took = False
            for adapter in list(queues):
                queue = queues[adapter]
                request, cost = queue[0]
                if requests and (
                    tokens + cost > limit or (adapter not in adapters and len(adapters) >= most)
                ):
                    continue
                queue.popleft()
                if queue:
                    queues.move_to_end(adapter)
                else:
                    del queues[adapter]
                requests.append(request)
                tokens += cost
                adapters[adapter] = None
                took = True
        self.rows -= len(requests)
        self.tokens -= tokens
        self._left_behind = self.rows > 0
        return requests, list(adapters), tokens

    def ended(self, now: float, rows: int, tokens: int, seconds: float) -> None:
        """The batch that was formed last has its answers; its pass took so many seconds."""
        left_behind = self._left_behind
        if left_behind and not self._full:
            self._pace_tokens = self._pace_seconds = 0.0
            self._full = True
        if left_behind or not self._full:
            self._pace_tokens = KEPT * self._pace_tokens + tokens
            self._pace_seconds = KEPT * self._pace_seconds + now - self._began
            limit = self._max_wait * self._pace_tokens / self._pace_seconds
            limit = max(SMALLEST_LIMIT * self._max_tokens, min(self._max_tokens, limit))
            self._batch_tokens = max(1, round(limit))
        self._busy_since = now if left_behind else None
        self.answered, self.patience_ends = rows, now + PATIENCE * seconds

    def _seconds(self, tokens: float) -> float:
        """How long so many tokens take, as far as the pace is known."""
        return tokens * self._pace_seconds / self._pace_tokens if self._pace_tokens else 0.0
