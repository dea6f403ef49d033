"""Text → ids for the server: in one call a request, off the event loop when there is much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

from adapters.prompt import fitted
from adapters.text import TextInput, Tokens, encode

INLINE_CHARACTERS = 4096  # about a millisecond of work: a thread's hand-over costs a tenth of that
THREADS = 2  # so that a flood of long texts waits here, and takes neither all cores nor all memory


class InputTooLong(Exception):
    """An input that has more tokens than its adapter takes, where the client did not ask for truncation."""


class RequestTokenizer:
    """The backbone's tokeniser, shared by all requests."""

    def __init__(self, tokenizer: Tokenizer, mask_token: str | None) -> None:
        self._tokenizer, self._mask_token = tokenizer, mask_token
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizer")

    async def encode(
        self, texts: Sequence[TextInput], max_length: int, template: str | None, *, truncate: bool
    ) -> list[Tokens]:
        """Tokenise a request's rows. Raises InputTooLong, or InvalidPrompt for a template that this backbone cannot use."""
        prompt = None if template is None else fitted(template, self._tokenizer, self._mask_token, max_length)
        if sum(len(part) for text in texts for part in text) <= INLINE_CHARACTERS:
            rows = encode(self._tokenizer, texts, max_length, prompt)
        else:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._threads, encode, self._tokenizer, texts, max_length, prompt)
        if not truncate:
            for i, row in enumerate(rows):
                if row.full_length > max_length:
                    raise InputTooLong(
                        f"input {i} has {row.full_length} tokens{'' if row.exact else ' or more'}; "
                        f"expected at most {max_length} "
                        '(or "truncate": true in the request; for V2 in its parameters)'
                    )
        return rows
