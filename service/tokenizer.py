"""Text → ids for the server: in one call a request, off the event loop when there is much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

from tokenizers import Tokenizer

from adapters.long_text import windows
from adapters.prompt import fitted
from adapters.text import TextInput, Tokens, encode
from service.refusals import InputTooLong

T = TypeVar("T")

INLINE_CHARACTERS = 4096  # about a millisecond of work: a thread's hand-over costs a tenth of that
TEMPLATES = 1024  # kept as tokens: making them takes longer than a short text does
THREADS = 2  # so that a flood of long texts waits here, and takes neither all cores nor all memory


class RequestTokenizer:
    """The backbone's tokeniser, shared by all requests."""

    def __init__(self, tokenizer: Tokenizer, mask_token: str | None) -> None:
        self.tokenizer, self.mask_token = tokenizer, mask_token
        self._prompt = lru_cache(TEMPLATES)(
            lambda template, max_length: (
                None if template is None else fitted(template, tokenizer, mask_token, max_length)
            )
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizer")

    async def encode(
        self, texts: Sequence[TextInput], max_length: int, template: str | None, *, truncate: bool
    ) -> list[Tokens]:
        """Tokenise a request's rows. Raises InputTooLong, or InvalidPrompt for a template that this
        backbone cannot use."""
        prompt = self._prompt(template, max_length)
        rows = await self._run(texts, partial(encode, self.tokenizer, texts, max_length, prompt))
        if not truncate:
            for i, row in enumerate(rows):
                if row.full_length > max_length:
                    raise InputTooLong(
                        f"input {i} has {row.full_length} tokens{'' if row.exact else ' or more'}; "
                        f"expected at most {max_length} "
                        '(or "truncate": true in the request; for V2 in its parameters)'
                    )
        return rows

    async def windows(
        self,
        texts: Sequence[TextInput],
        max_length: int,
        template: str | None,
        *,
        stride: int | None,
        limit: int,
    ) -> list[list[Tokens]]:
        """Tokenise a request's texts, each to one row or to its windows. Raises as `windows`, and
        InvalidPrompt."""
        prompt = self._prompt(template, max_length)
        work = partial(
            windows, self.tokenizer, texts, max_length, stride=stride, limit=limit, prompt=prompt
        )
        return await self._run(texts, work)

    async def _run(self, texts: Sequence[TextInput], work: Callable[[], T]) -> T:
        if sum(len(part) for text in texts for part in text) <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
