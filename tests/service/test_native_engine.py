"""The engine on the native kernels and on torch's operators: the same logits, and with the native
kernels each row's its own to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.spec import LoraSite
from adapters.text import encode
from service.engine.attention import by_groups
from service.engine.engine import Engine
from service.engine.native.library import Library
from service.engine.row import Row
from service.engine.slots import Slots
from tests.service.conftest import threads
from tests.service.test_encoder import rows_of
from tests.tiny import FAMILIES, FURTHER, random_adapter, tiny_backbone

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.int8]
WORDS = ["good", "bad", "film", "plot", "the", "awful", "very", "red", "xylophone", "42", "!"]
LENGTHS = [2, 64, 5, 5, 17, 33, 1, 48, 49, 9, 31]


@pytest.fixture(scope="module")
def backbone_of(
    tmp_path_factory: pytest.TempPathFactory, embedded: Backbone
) -> Callable[[str], Backbone]:
    """A backbone by its family, of three layers, each built once."""

    @cache
    def build(family: str) -> Backbone:
        if family == "embedded":
            return embedded
        folder = tiny_backbone(tmp_path_factory.mktemp("backbone"), family, layers=3)
        return backbones.load(str(folder))

    return build


def engine_of(
    backbone: Backbone, native: Library | None, dtype: torch.dtype = torch.float32
) -> Engine:
    return Engine(backbone, Slots(16, CPU, torch.float32), CPU, dtype, native=native)


@cache
def adapters_of(backbone: Backbone) -> list[Adapter]:
    """Both kinds, on all layers and on upper ones, with every pooling and head, and a prompt."""
    everywhere: dict[LoraSite, int] = dict.fromkeys(backbone.family.places, 5)
    options = [
        {"pooling": "mean", "bottleneck": 1},
        {"pooling": "cls", "bottleneck": 48, "dense": True},
        {"pooling": "mean", "first_layer": 2},
        {"pooling": "cls", "normed": True, "ranks": everywhere, "scale": 0.5},
        {"pooling": "mean", "ranks": {"query": 16, "value": 1}, "first_layer": 1},
        {"template": "{text} It was {mask}."},
    ]
    if backbone.has_pooler:
        options.append({"pooling": "pooler", "bottleneck": 5})
    return [
        parse(random_adapter(backbone, f"task-{i}", ["a", "b", "c"], seed=i, **each)[2])
        for i, each in enumerate(options)
    ]


@cache
def batch_of(backbone: Backbone) -> list[Row]:
    """Rows of all adapters, two of each, of any lengths; one text is for several of them."""
    rng = random.Random(0)
    plain = [adapter for adapter in adapters_of(backbone) if adapter.spec.template is None]
    tokens = rows_of(backbone, LENGTHS)
    rows = [Row(plain[i % len(plain)], row.ids, row.types) for i, row in enumerate(tokens)]
    rows += [Row(adapter, tokens[4].ids, tokens[4].types) for adapter in plain]
    for adapter in adapters_of(backbone):
        if adapter.spec.template is not None:
            prompt = backbone.prompt(adapter.spec.template, adapter.spec.max_length)
            text = " ".join(rng.choices(WORDS, k=7))
            (row,) = encode(backbone.tokenizer, [(text,)], adapter.spec.max_length, prompt)
            rows.append(Row(adapter, row.ids, row.types, row.mask))
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER, "embedded"])
def test_both_routes(family: str, backbone_of: Callable[[str], Backbone], library: Library) -> None:
    """Every kind of adapter, pooling and head on every family has the same logits on both."""
    backbone = backbone_of(family)
    rows = batch_of(backbone)
    native, other = (
        torch.tensor(engine_of(backbone, route).run(rows)) for route in (library, None)
    )
    torch.testing.assert_close(native, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert", "embedded"])
def test_a_row_is_its_own(
    family: str,
    dtype: torch.dtype,
    number: int,
    backbone_of: Callable[[str], Backbone],
    library: Library,
) -> None:
    """A row's logits are to the bit the same alone, in a batch of all, in another order, and with
    one thread and with two."""
    if dtype == torch.int8 and not library.has_int8:
        pytest.skip(f"no int8 for this processor ({library.kind})")
    backbone = backbone_of(family)
    engine, rows = engine_of(backbone, library, dtype), batch_of(backbone)
    assert engine.encoder.attention is not by_groups
    together = engine.run(rows)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    with threads(number):
        shuffled = engine.run([rows[i] for i in order])
        assert [shuffled[order.index(i)] for i in range(len(rows))] == together
        assert [engine.run([row])[0] for row in rows] == together


@cache
def _shared(backbone: Backbone, dtype: torch.dtype, library: Library) -> Engine:
    return engine_of(backbone, library, dtype)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 64)), min_size=1, max_size=30),
    dtype=st.sampled_from(DTYPES),
    number=st.integers(1, 2),
)
def test_batch_mates_do_not_matter(
    batch: list[tuple[int, int]],
    dtype: torch.dtype,
    number: int,
    backbone_of: Callable[[str], Backbone],
    library: Library,
) -> None:
    """In any batch a row's logits are to the bit what it has alone."""
    if dtype == torch.int8 and not library.has_int8:
        dtype = torch.float32
    backbone = backbone_of("bert")
    engine, adapters = _shared(backbone, dtype, library), adapters_of(backbone)
    tokens = rows_of(backbone, [length for _, length in batch])
    rows = [
        Row(adapters[which], row.ids, row.types)
        for (which, _), row in zip(batch, tokens, strict=True)
    ]
    with threads(number):
        together = engine.run(rows)
    assert together == [engine.run([row])[0] for row in rows]


def test_more_rows_than_a_piece(backbone_of: Callable[[str], Backbone], library: Library) -> None:
    """A batch of more tokens than the linear layers take at once has the logits of its rows alone,
    with LoRA in the feed-forward for some of them too."""
    backbone = backbone_of("bert")
    adapters, tokens = adapters_of(backbone), rows_of(backbone, [64] * 30)
    engine = engine_of(backbone, library)
    rows = [Row(adapters[i % 4], row.ids, row.types) for i, row in enumerate(tokens)]
    assert len(engine.encoder.pack([(row.ids, row.types) for row in rows]).blocks) > 1
    assert engine.run(rows) == [engine.run([row])[0] for row in rows]


def test_the_same_memory(embedded: Backbone, library: Library) -> None:
    """The native layout of the weights takes no more than a hundredth above torch's, in float32."""
    native, other = (engine_of(embedded, route).encoder.bytes for route in (library, None))
    assert other <= native <= 1.01 * other
