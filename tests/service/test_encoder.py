"""The packed encoder and the engine over it, against transformers' own padded forward passes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, parse, serialize
from adapters.spec import Pooling
from adapters.text import TextInput, Tokens, encode
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.kinds.bottleneck import Bottleneck, Bottlenecks
from service.engine.linear import ROUND, blocks
from service.engine.native.library import Library
from service.engine.row import Row
from service.engine.slots import Slots
from tests.tiny import POSITIONS, random_adapter, tiny_backbone

CPU = torch.device("cpu")
Native = Library | Literal["auto"] | None  # None: torch's operators
# hidden states reach 10: of large ones it is the last bits of float32
EXACT = {"rtol": 1e-5, "atol": 1e-5}

# What a tiny backbone's config says otherwise than `tests.tiny` makes it.
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert without pooler": ("bert", {}),
    "bert with relu": ("bert", {"hidden_act": "relu"}),
    "electra": ("electra", {}),
    "electra with small embeddings": ("electra", {"embedding_size": 12}),
    "roberta": ("roberta", {}),
    "roberta with gelu_new": ("roberta", {"hidden_act": "gelu_new"}),
    "xlm-roberta": ("xlm-roberta", {}),
    "camembert": ("camembert", {}),
}
WORDS = ["good", "bad", "film", "plot", "the", "awful", "very", "red", "xylophone", "42", "!", "é"]


@pytest.fixture(scope="module")
def backbone_of(
    tmp_path_factory: pytest.TempPathFactory, embedded: Backbone
) -> Callable[[str], Backbone]:
    """A backbone by its kind, each built once."""

    @cache
    def build(kind: str) -> Backbone:
        if kind == "embedded":
            return embedded
        family, changes = CHANGES[kind]
        folder = tiny_backbone(
            tmp_path_factory.mktemp("backbone"), family, pooler="without pooler" not in kind
        )
        loaded = backbones.load(str(_changed(folder, changes) if changes else folder))
        assert all(getattr(loaded.config, name) == value for name, value in changes.items())
        return loaded

    return build


@pytest.fixture(params=[*CHANGES, "embedded"])
def backbone(request: pytest.FixtureRequest, backbone_of: Callable[[str], Backbone]) -> Backbone:
    return backbone_of(request.param)


def _changed(folder: Path, changes: dict[str, Any]) -> Path:
    """The same backbone with another config, and random weights that fit it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def rows_of(backbone: Backbone, lengths: Sequence[int], seed: int = 0) -> list[Tokens]:
    """Rows of those lengths, of random words' ids, the second half of each of type 1 where there is
    such a type."""
    rng = random.Random(seed)
    first, last = max(10, backbone.config.pad_token_id + 1), backbone.config.vocab_size
    second = 1 if backbone.encoder_config.token_types > 1 else 0
    return [
        Tokens(
            [rng.randrange(first, last) for _ in range(n)],
            [second * (i >= n / 2) for i in range(n)],
            n,
        )
        for n in lengths
    ]


@torch.no_grad()
def padded(backbone: Backbone, rows: Sequence[Tokens]) -> list[Tensor]:
    """transformers' last hidden states of rows padded to one width, without the padding."""
    width = max(len(row.ids) for row in rows)
    pad = backbone.config.pad_token_id
    hidden = backbone.encoder(
        input_ids=torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows]),
        token_type_ids=torch.tensor([row.types + [0] * (width - len(row.ids)) for row in rows]),
        attention_mask=torch.tensor(
            [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]
        ),
    ).last_hidden_state
    return [states[: len(row.ids)] for states, row in zip(hidden, rows, strict=True)]


@torch.inference_mode()
def packed(backbone: Backbone, rows: Sequence[Tokens], native: Native) -> list[Tensor]:
    """The packed encoder's last hidden states, without adapters."""
    encoder = PackedEncoder(backbone, CPU, torch.float32, native=native)
    hidden = encoder.forward(encoder.pack([(row.ids, row.types) for row in rows]))
    return list(hidden.split([len(row.ids) for row in rows]))


def check_hidden(backbone: Backbone, rows: Sequence[Tokens], native: Native = "auto") -> None:
    for found, expected in zip(packed(backbone, rows, native), padded(backbone, rows), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def engine_of(
    backbone: Backbone, dtype: torch.dtype = torch.float32, native: Native = "auto"
) -> Engine:
    return Engine(backbone, Slots(16, CPU, dtype), CPU, dtype, native=native)


def adapters_of(backbone: Backbone) -> list[Adapter]:
    """Tasks with 1, 2, 3 and 5 labels, every pooling, heads with and without a dense layer,
    bottlenecks of all sizes."""
    third: Pooling = "pooler" if backbone.has_pooler else "mean"

    def made(task: str, labels: int, pooling: Pooling, bottleneck: int, **more: Any) -> Adapter:
        names = [f"label {i}" for i in range(labels)]
        return parse(
            random_adapter(backbone, task, names, pooling=pooling, bottleneck=bottleneck, **more)[2]
        )

    return [
        made("value", 1, "mean", 1, problem_type="regression", dtype=torch.float32, seed=1),
        made("two", 2, "cls", 8, dense=True, seed=2),
        made("three", 3, third, 16, dense=True, text_pair=True, dtype=torch.bfloat16, seed=3),
        made("five", 5, "mean", 48, problem_type="multi_label_classification", seed=4),
        made("plain", 2, third, 3, text_pair=True, seed=5),
    ]


@torch.no_grad()
def reference(backbone: Backbone, row: Row) -> Tensor:
    """The reference model's logits of one row."""
    return from_adapter(backbone, row.adapter)(
        collate([Tokens(row.ids, row.types, row.tokens, mask=row.mask)])
    )[0]


def check_logits(backbone: Backbone, rows: Sequence[Row], engine: Engine) -> None:
    for found, row in zip(engine.run(rows), rows, strict=True):
        torch.testing.assert_close(torch.tensor(found), reference(backbone, row), **EXACT)


def mixed(adapters: Sequence[Adapter], rows: Sequence[Tokens]) -> list[Row]:
    """Rows dealt out to the adapters in turn."""
    return [Row(adapters[i % len(adapters)], row.ids, row.types) for i, row in enumerate(rows)]


LENGTHS = {
    "one row": [7],
    "one row of two tokens": [2],
    "one full row": [POSITIONS],
    "rows of one length": [9] * 20,
    "ragged": [2, POSITIONS, 5, 5, 17, 2, 33, 5, POSITIONS, 3, 17],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_hidden_states(backbone: Backbone, lengths: list[int], route: Library | None) -> None:
    """Without adapters the packed encoder's last hidden states are those of transformers on the
    padded batch."""
    check_hidden(backbone, rows_of(backbone, lengths), route)


def test_texts_and_pairs(backbone: Backbone) -> None:
    """Real tokens, of single texts and of pairs with their type ids, give transformers' hidden
    states."""
    texts: list[TextInput] = [
        ("it is a good film",),
        ("the plot was awful", "not very good"),
        ("red",),
        ("a", "b c d"),
    ]
    check_hidden(backbone, encode(backbone.tokenizer, texts, backbone.max_length))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_a_padding_token_within_a_text(kind: str, backbone_of: Callable[[str], Backbone]) -> None:
    """A text that spells the padding token gets the positions that transformers gives it."""
    backbone = backbone_of(kind)
    texts: list[TextInput] = [("good <pad> [PAD] film <pad>",), ("a film",)]
    rows = encode(backbone.tokenizer, texts, backbone.max_length)
    assert backbone.config.pad_token_id in rows[0].ids
    check_hidden(backbone, rows)


def test_the_longest_row_of_the_embedded_backbone(embedded: Backbone) -> None:
    """The embedded backbone takes a row of all its positions beside the shortest one."""
    check_hidden(embedded, rows_of(embedded, [embedded.max_length, 2]))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(2, POSITIONS), min_size=1, max_size=24), seed=st.integers(0, 999)
)
def test_hidden_states_of_any_batch(lengths: list[int], seed: int, bert: Backbone) -> None:
    """Batches of any lengths in any order give transformers' hidden states."""
    check_hidden(bert, rows_of(bert, lengths, seed))


def test_bytes(embedded: Backbone) -> None:
    """The packed encoder takes as many bytes as the backbone's parameters in its dtype, and no
    more."""
    parameters = sum(parameter.numel() for parameter in embedded.encoder.parameters())
    assert PackedEncoder(embedded, CPU, torch.float32).bytes == 4 * parameters
    assert PackedEncoder(embedded, CPU, torch.bfloat16).bytes == 2 * parameters


def test_bytes_of_narrow_layers(backbone: Backbone, route: Library | None) -> None:
    """Laid out for the CPU's kernels, whose blocks are up to 64 wide, no weight is lost."""
    parameters = sum(parameter.numel() for parameter in backbone.encoder.parameters())
    assert PackedEncoder(backbone, CPU, torch.float32, native=route).bytes >= 4 * parameters
    assert PackedEncoder(backbone, CPU, torch.bfloat16).bytes == 2 * parameters


def test_without_onednn(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no oneDNN the encoder gives the same, by torch's own products."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    check_hidden(backbone, rows_of(backbone, LENGTHS["ragged"]), native=None)


def test_blocks() -> None:
    """Any number of rows is cut without a gap into blocks of at most ten different sizes."""
    sizes = set()
    for rows in range(ROUND, 5000, ROUND):
        parts = blocks(rows)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == rows
        sizes |= {part.stop - part.start for part in parts}
    assert len(sizes) <= 10


def test_few_kernels(bert: Backbone, capfd: pytest.CaptureFixture[str]) -> None:
    """Batches of any sizes let oneDNN compile few kernels, since it keeps the memory of each."""
    engine, adapters = engine_of(bert, native=None), adapters_of(bert)
    creation = torch.backends.mkldnn.VERBOSE_ON_CREATION
    with torch.backends.mkldnn.verbose(creation):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        for rows in range(1, 100):
            engine.run(mixed(adapters, rows_of(bert, [3] * rows)))
    compiled = capfd.readouterr().out.count(",create:cache_miss,")
    # at most ten sizes of each of a layer's products, and a few of the adapters' GELU
    assert 0 < compiled <= 10 * 5 + 5


def test_mixed_tasks(backbone: Backbone, route: Library | None) -> None:
    """A batch over tasks with different labels, poolings, heads and bottlenecks gives each row its
    reference logits."""
    adapters = adapters_of(backbone)
    rows = mixed(adapters, rows_of(backbone, LENGTHS["ragged"]))
    engine = engine_of(backbone, native=route)
    assert [len(logits) for logits in engine.run(rows)[:5]] == [1, 2, 3, 5, 2]
    check_logits(backbone, rows, engine)


def test_mixed_texts(backbone: Backbone) -> None:
    """Single texts and pairs of many tasks share a batch, each with its reference logits."""
    rng = random.Random(0)
    rows = []
    for adapter in adapters_of(backbone) * 4:
        text = tuple(
            " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
            for _ in range(2 if adapter.spec.text_pair else 1)
        )
        tokens = encode(backbone.tokenizer, [text], adapter.spec.max_length)[0]
        rows.append(Row(adapter, tokens.ids, tokens.types))
    rng.shuffle(rows)
    check_logits(backbone, rows, engine_of(backbone))


def test_prompts_among_others(backbone: Backbone) -> None:
    """Rows of prompt tasks, their masks anywhere, share a batch with all others, each with its
    reference logits."""
    rng = random.Random(0)
    templates = {
        "late": "{text} It was {mask}.",
        "early": "{mask}: {text}",
        "two": "{text}? {mask}, {text_pair}",
    }
    prompted = [
        parse(
            random_adapter(
                backbone, task, ["a", "b", "c"], template=template, text_pair=task == "two", seed=i
            )[2]
        )
        for i, (task, template) in enumerate(templates.items())
    ]
    rows = mixed(adapters_of(backbone), rows_of(backbone, [9, 5, 17, 2, 9]))
    for adapter in prompted * 4:
        spec = adapter.spec
        text = tuple(
            " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
            for _ in range(2 if spec.text_pair else 1)
        )
        tokens = encode(
            backbone.tokenizer,
            [text],
            spec.max_length,
            backbone.prompt(spec.template, spec.max_length),
        )[0]
        rows.append(Row(adapter, tokens.ids, tokens.types, tokens.mask))
    rng.shuffle(rows)
    check_logits(backbone, rows, engine_of(backbone))


@pytest.mark.parametrize("which", range(5))
def test_a_single_row_of_a_single_task(which: int, backbone: Backbone) -> None:
    """One row of one task by itself gives its reference logits."""
    adapter = adapters_of(backbone)[which]
    check_logits(backbone, mixed([adapter], rows_of(backbone, [11])), engine_of(backbone))


def test_the_formula(bert: Backbone) -> None:
    """Logits are those of the design's formula, written out: y = x + U·gelu(D·x + b_D) + b_U at
    every layer's output."""
    for adapter in adapters_of(bert):
        row = rows_of(bert, [13])[0]
        found = torch.tensor(engine_of(bert).run([Row(adapter, row.ids, row.types)])[0])
        torch.testing.assert_close(found, _by_hand(bert, adapter, row), **EXACT)


@torch.no_grad()
def _by_hand(backbone: Backbone, adapter: Adapter, row: Tokens) -> Tensor:
    t = {name: tensor.float() for name, tensor in adapter.tensors.items()}

    def adapting(i: int) -> Any:
        def adapt(_module: Any, _inputs: Any, x: Tensor) -> Tensor:
            inner = x @ t["down.weight"][i].T + t["down.bias"][i]
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            return x + inner @ t["up.weight"][i].T + t["up.bias"][i]

        return adapt

    layers = backbone.encoder.encoder.layer
    hooks = [
        layer.output.dense.register_forward_hook(adapting(i)) for i, layer in enumerate(layers)
    ]
    output = backbone.encoder(
        input_ids=torch.tensor([row.ids]), token_type_ids=torch.tensor([row.types])
    )
    for hook in hooks:
        hook.remove()
    hidden = output.last_hidden_state[0]
    pooled = {"cls": hidden[0], "mean": hidden.mean(dim=0), "pooler": output.pooler_output[0]}[
        adapter.spec.pooling
    ]
    if "head.dense.weight" in t:
        pooled = torch.tanh(t["head.dense.weight"] @ pooled + t["head.dense.bias"])
    return t["head.out.weight"] @ pooled + t["head.out.bias"]


ROWS = st.tuples(st.integers(0, 4), st.integers(2, POSITIONS), st.integers(0, 99))


@settings(max_examples=30, deadline=None)
@given(batch=st.lists(ROWS, min_size=1, max_size=20), data=st.data())
def test_batch_mates_do_not_matter(
    batch: list[tuple[int, int, int]], data: st.DataObject, backbone_of: Callable[[str], Backbone]
) -> None:
    """A row's logits are the same alone, in any batch, and at any place of it."""
    backbone = backbone_of("roberta")
    engine, adapters = _shared(backbone)
    rows = []
    for which, length, seed in batch:
        tokens = rows_of(backbone, [length], seed)[0]
        rows.append(Row(adapters[which], tokens.ids, tokens.types))
    together = engine.run(rows)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = engine.run([rows[i] for i in order])
    for place, i in enumerate(order):
        alone = torch.tensor(engine.run([rows[i]])[0])
        torch.testing.assert_close(torch.tensor(together[i]), alone, **EXACT)
        torch.testing.assert_close(torch.tensor(shuffled[place]), alone, **EXACT)


@cache
def _shared(backbone: Backbone) -> tuple[Engine, list[Adapter]]:
    return engine_of(backbone), adapters_of(backbone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_batch_mates_say_does_not_matter(dtype: torch.dtype, embedded: Backbone) -> None:
    """A row's logits are the same to the bit whatever the other rows of its batch say, as long as
    these have the same tasks and lengths."""
    adapters = adapters_of(embedded)
    engine = Engine(embedded, Slots(16, CPU, dtype), CPU, dtype)
    lengths = [9, 33, 5, 5, 17, 2, 9, 40]
    row = mixed(adapters, rows_of(embedded, lengths[:1]))[0]
    answers = [
        engine.run([row, *mixed(adapters, rows_of(embedded, lengths[1:], seed))])
        for seed in (1, 2, 3)
    ]
    assert answers[0][0] == answers[1][0] == answers[2][0]
    assert answers[0][1:] != answers[1][1:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_batch_mates_in_half_precision(dtype: torch.dtype, embedded: Backbone) -> None:
    """In half precision other rows, by their number and lengths, change a row's logits by less than
    two steps of the largest."""
    adapters = adapters_of(embedded)
    engine = Engine(embedded, Slots(16, CPU, dtype), CPU, dtype)
    rows = mixed(adapters, rows_of(embedded, [9, 33, 5, 17, 2, 40, 25, 7, 12, 3]))
    together = torch.cat([torch.tensor(logits) for logits in engine.run(rows)])
    alone = torch.cat([torch.tensor(engine.run([row])[0]) for row in rows])
    step = torch.finfo(dtype).eps * max(1.0, alone.abs().max().item())
    torch.testing.assert_close(together, alone, rtol=0.0, atol=2 * step)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bottleneck", [5, 16, 48])
def test_a_bottleneck_s_sums_are_each_row_s_own(threads: int, bottleneck: int) -> None:
    """What a bottleneck adds to a token is to the bit the same for any number of tokens beside it,
    with one thread and with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    d = 384
    shapes = ((1, bottleneck, d), (1, bottleneck), (1, d, bottleneck), (1, d))
    adapter = Bottleneck(*(torch.randn(shape) / shape[-1] ** 0.5 for shape in shapes), 0)
    x = torch.randn(64, d)

    def adapted(tokens: int) -> Tensor:
        y = x[:tokens].clone()
        Bottlenecks([adapter], [slice(0, tokens)], tokens).at(0)["feed_forward"](y, y)
        return y

    try:
        wanted = adapted(64)
        assert [n for n in range(1, 64) if not torch.equal(adapted(n), wanted[:n])] == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_an_adapter_that_overflows(
    dtype: torch.dtype, bert: Backbone, route: Library | None
) -> None:
    """Rows of an adapter whose numbers overflow are not finite, and those of its batch mates are
    what they are without it."""
    huge, *others = adapters_of(bert)
    tensors = {name: torch.full_like(t, 3e38) for name, t in huge.tensors.items()}
    huge = parse(serialize(huge.spec, tensors))
    tokens = rows_of(bert, [5, 5, 3, 9, 2, 3])
    engine = engine_of(bert, dtype, route if dtype == torch.float32 else None)
    rows = mixed([huge, *others], tokens)
    for row, logits in zip(rows, engine.run(rows), strict=True):
        if row.adapter is huge:
            assert not torch.tensor(logits).isfinite().any()
        else:
            alone = torch.tensor(engine.run([row])[0])
            torch.testing.assert_close(torch.tensor(logits), alone, rtol=0.01, atol=0.01)


def test_two_versions_of_a_task(bert: Backbone) -> None:
    """Two versions of one task share a batch, each row with the version it was admitted with."""
    old, new = (parse(random_adapter(bert, "task", ["no", "yes"], seed=seed)[2]) for seed in (1, 2))
    tokens = rows_of(bert, [6])[0]
    rows = [Row(adapter, tokens.ids, tokens.types) for adapter in (old, new, old)]
    first, second, third = engine_of(bert).run(rows)
    assert first != second
    torch.testing.assert_close(torch.tensor(first), torch.tensor(third), **EXACT)
    check_logits(bert, rows, engine_of(bert))


def test_many_rows(bert: Backbone) -> None:
    """Hundreds of rows in one batch are all answered, in the order they were given."""
    adapters = adapters_of(bert)
    rows = mixed(adapters, rows_of(bert, [random.Random(i).randint(2, 40) for i in range(300)]))
    found = engine_of(bert).run(rows)
    assert [len(logits) for logits in found] == [len(row.adapter.spec.labels) for row in rows]
    for i in range(0, 300, 37):
        torch.testing.assert_close(torch.tensor(found[i]), reference(bert, rows[i]), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bert", "electra with small embeddings", "embedded"])
def test_half_precision(
    kind: str, dtype: torch.dtype, backbone_of: Callable[[str], Backbone]
) -> None:
    """In half precision logits are near those in float32, relative to the largest of them."""
    backbone = backbone_of(kind)
    rows = mixed(adapters_of(backbone), rows_of(backbone, LENGTHS["ragged"]))
    exact = [torch.tensor(logits) for logits in engine_of(backbone).run(rows)]
    rough = [torch.tensor(logits) for logits in engine_of(backbone, dtype).run(rows)]
    scale = max(logits.abs().max().item() for logits in exact)
    for found, expected in zip(rough, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.1 * max(1.0, scale))
    assert any(
        not torch.equal(found, expected) for found, expected in zip(rough, exact, strict=True)
    )


def test_the_backbone_is_left_as_it_is(bert: Backbone) -> None:
    """Running batches changes neither the backbone's weights nor an adapter's tensors."""
    adapters = adapters_of(bert)
    watched = [
        *bert.encoder.parameters(),
        *(tensor for adapter in adapters for tensor in adapter.tensors.values()),
    ]
    before = [tensor.clone() for tensor in watched]
    engine_of(bert).run(mixed(adapters, rows_of(bert, LENGTHS["ragged"])))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(watched, before, strict=True))


def allocations(engine: Engine, rows: Sequence[Row]) -> tuple[int, int]:
    """How many tensors a batch allocates, and how many bytes in all; the adapters are on the device
    already."""
    engine.run(rows)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        engine.run(rows)
    allocated = [
        event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0
    ]
    return len(allocated), sum(allocated)


def test_allocations_do_not_grow_with_the_tasks(bert: Backbone) -> None:
    """A batch allocates as much with sixty other tasks on the device as with none, and the same
    each time."""
    adapters = adapters_of(bert)
    rows = mixed(adapters, rows_of(bert, LENGTHS["ragged"]))
    engine = Engine(bert, Slots(100, CPU, torch.float32), CPU, torch.float32)
    before = allocations(engine, rows)
    assert before[0] > 0
    for seed in range(60):
        other = parse(random_adapter(bert, f"other-{seed}", ["no", "yes"], seed=seed)[2])
        engine.run(mixed([other], rows_of(bert, [5])))
    assert allocations(engine, rows) == before == allocations(engine, rows)


def test_a_batch_copies_no_weights(bert: Backbone) -> None:
    """A batch allocates a small part of the bytes of the adapters that it uses."""
    adapters = [
        parse(random_adapter(bert, f"wide-{i}", ["no", "yes"], bottleneck=256, seed=i)[2])
        for i in range(8)
    ]
    engine = engine_of(bert)
    _, allocated = allocations(engine, mixed(adapters, rows_of(bert, [4] * 8)))
    weights = sum(4 * tensor.numel() for adapter in adapters for tensor in adapter.tensors.values())
    assert allocated < weights / 2
