"""Tokenise a template, which stands around the texts of an input and holds one mask.

Template and texts are tokenised apart, as in LM-BFF (Gao et al. 2021). So no text can change, move
or cut off the template's tokens, even if it holds a mask token itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from adapters.errors import InvalidPrompt
from adapters.spec import MASK, TEXTS, shown


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template as the tokens of one tokeniser.

    `chunks` are its tokens, the row's special ones included. Text `order[i]` of an input follows
    chunk `i`. `spaces[j]` is the white space before text `j`, which is tokenised with that text.
    The mask is token `place` of chunk `masked`.
    """

    chunks: tuple[list[int], ...]
    order: tuple[int, ...]
    spaces: tuple[str, ...]
    masked: int
    place: int

    @property
    def length(self) -> int:
        """The number of tokens of a row that do not come from the texts."""
        return sum(map(len, self.chunks))

    def spaced(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of an input with the white space that is tokenised with them."""
        return [space + text for space, text in zip(self.spaces, texts, strict=True)]

    def fill(self, texts: Sequence[list[int]]) -> tuple[list[int], int]:
        """Return the token ids of a row with these texts, and the position of the mask."""
        ids: list[int] = []
        mask = 0
        for i, chunk in enumerate(self.chunks):
            if i == self.masked:
                mask = len(ids) + self.place
            ids += chunk
            if i < len(self.order):
                ids += texts[self.order[i]]
        return ids, mask


def fitted(template: str, tokenizer: Tokenizer, mask_token: str | None, max_length: int) -> Prompt:
    """Tokenise a template that is valid in an `AdapterSpec`. Raises InvalidPrompt if it cannot be
    used with this backbone."""
    mask = tokenizer.token_to_id(mask_token) if mask_token is not None else None
    if mask is None or mask_token is None:
        raise InvalidPrompt(
            f"the template is {shown(template)}, but the backbone's tokeniser has no mask token"
            " for it"
        )
    literals, texts = split(template)
    strings = [literal.rstrip().replace(MASK, mask_token) for literal in literals]
    chunks = [
        encoding.ids for encoding in tokenizer.encode_batch_fast(strings, add_special_tokens=False)
    ]
    found = sum(chunk.count(mask) for chunk in chunks)
    if found != 1:
        raise InvalidPrompt(
            f"the template {shown(template)} has {found} tokens {mask_token!r}; expected only"
            f" {MASK} to be one"
        )
    masked = next(i for i, chunk in enumerate(chunks) if mask in chunk)
    place = chunks[masked].index(mask)

    whole = tokenizer.encode(strings[masked]).ids
    before = whole.index(mask) - place
    chunks[-1] = chunks[-1] + whole[before + len(chunks[masked]) :]
    chunks[0] = whole[:before] + chunks[0]
    order = tuple(TEXTS.index(text) for text in texts)
    spaces = [literal[len(literal.rstrip()) :] for literal in literals]
    result = Prompt(
        chunks=tuple(chunks),
        order=order,
        spaces=tuple(spaces[order.index(text)] for text in range(len(order))),
        masked=masked,
        place=place + before if masked == 0 else place,
    )
    if result.length + len(order) > max_length:
        raise InvalidPrompt(
            f"the template {shown(template)} takes {result.length} of the {max_length} tokens of a"
            f" row; expected room for {'a text' if len(order) == 1 else 'two texts'}"
        )
    return result


def split(template: str) -> tuple[list[str], list[str]]:
    """Return the parts around the texts, one more than there are texts, and the texts'
    placeholders in their order."""
    parts = re.split(f"({'|'.join(map(re.escape, TEXTS))})", template)
    return parts[::2], parts[1::2]
