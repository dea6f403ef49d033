"""Text → ids for the server: off the event loop when there is much of it, and no more of it than a
row can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain

from tokenizers import Tokenizer

from adapters.errors import TooManyWindows
from adapters.long_text import windows
from adapters.prompt import fitted
from adapters.text import CHARACTERS_PER_TOKEN, TextInput, Tokens, encode
from service.fair_threads import FairThreads
from service.refusals import InputTooLong

INLINE_CHARACTERS = 4096  # about a millisecond of work: a thread's hand-over costs a tenth of that
PIECE_CHARACTERS = 1 << 15  # how long others wait for a thread: some tens of milliseconds
# As far as any text is read, if its tokens may not need more: 128 characters for each of 512
# tokens. Only endless words, white space and the like have fewer tokens there than a row holds.
READ_CHARACTERS = 1 << 16
TEMPLATES = 1024  # kept as tokens: making them takes longer than a short text does
THREADS = 2  # so that a flood of long texts waits here, and takes neither all cores nor all memory
SECONDS_PER_CHARACTER = 1e-6  # at first; then what the pieces take


class RequestTokenizer:
    """The backbone's tokeniser, shared by all requests."""

    def __init__(
        self, tokenizer: Tokenizer, mask_token: str | None, max_wait: float = math.inf
    ) -> None:
        """A request that would wait longer than `max_wait` seconds for a thread is refused."""
        self.tokenizer, self.mask_token = tokenizer, mask_token
        self._prompt = lru_cache(TEMPLATES)(
            lambda template, max_length: (
                None if template is None else fitted(template, tokenizer, mask_token, max_length)
            )
        )
        self._threads = FairThreads(
            THREADS, "tokenizer", max_wait=max_wait, seconds_per_cost=SECONDS_PER_CHARACTER
        )

    async def encode(
        self, texts: Sequence[TextInput], max_length: int, template: str | None, *, truncate: bool
    ) -> list[Tokens]:
        """Tokenise a request's rows. Raises InputTooLong, QueueFull, or InvalidPrompt for a
        template that this backbone cannot use."""
        prompt = self._prompt(template, max_length)
        most = _most(max_length)
        if sum(len(part) for text in texts for part in text) <= INLINE_CHARACTERS:
            rows = encode(self.tokenizer, texts, max_length, prompt)
        else:
            pieces = [
                (cost, partial(encode, self.tokenizer, piece, max_length, prompt))
                for cost, piece in _pieces(texts, most)
            ]
            rows = list(chain.from_iterable(await self._threads.run(pieces)))
        if not truncate:
            for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
                longest = max(map(len, text))
                if row.full_length > max_length:
                    exact = row.exact and longest <= most
                    found = f"{row.full_length} tokens{'' if exact else ' or more'}"
                elif longest > most:  # and still it had few tokens
                    found = f"{longest} characters, of which {most} are read"
                else:
                    continue
                raise InputTooLong(
                    f"input {i} has {found}; expected at most {max_length} tokens"
                    " (or truncate=true in the query or the body; for V2 in its parameters)"
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
        """Tokenise a request's texts, each to one row or to its windows. Raises as `windows`,
        QueueFull, and InvalidPrompt."""
        prompt = self._prompt(template, max_length)
        most = _most(limit * max_length)
        heads = [_head(text, most) for text in texts]
        spare = limit - len(texts)  # rows left after one row for each text

        def split(first: int, piece: list[TextInput]) -> list[list[Tokens]]:
            """The windows of the texts from the `first` on. Pieces run one after the other."""
            nonlocal spare
            found = windows(
                self.tokenizer, piece, max_length,
                stride=stride, limit=spare + len(piece), prompt=prompt, first=first,
            )  # fmt: skip
            spare -= sum(map(len, found)) - len(piece)
            return found

        if sum(len(part) for head in heads for part in head) <= INLINE_CHARACTERS:
            rows = split(0, heads)
        else:
            pieces, first = [], 0
            for cost, piece in _pieces(heads, most):
                pieces.append((cost, partial(split, first, piece)))
                first += len(piece)
            rows = list(chain.from_iterable(await self._threads.run(pieces)))
        for i, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if head != text:  # and still it had few tokens: no windows may lose what follows
                raise TooManyWindows(
                    f"input {i} has {max(map(len, text))} characters; expected at most {most} for"
                    f" {limit} windows"
                )
        return rows


def _most(tokens: int) -> int:
    """How many characters of a text are read for so many tokens of it."""
    return max(READ_CHARACTERS, 2 * CHARACTERS_PER_TOKEN * tokens)


def _head(text: TextInput, characters: int) -> TextInput:
    if all(len(part) <= characters for part in text):
        return text
    first, *second = (part[:characters] for part in text)
    return (first, second[0]) if second else (first,)


def _pieces(texts: Sequence[TextInput], most: int) -> Iterator[tuple[int, list[TextInput]]]:
    """The texts, as far as they are read, by turns of a thread; and the characters of each turn."""
    cost, piece = 0, list[TextInput]()
    for text in texts:
        head = _head(text, most)
        characters = sum(map(len, head))
        if piece and cost + characters > PIECE_CHARACTERS:
            yield cost, piece
            cost, piece = 0, []
        piece.append(head)
        cost += characters
    yield cost, piece
