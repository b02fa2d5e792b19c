"""What the decoders must do whatever their weights: causality, packing, positions, gradients."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luban.errors import InputError
from luban.models.attention import attend, attention_mask
from luban.models.cache import Cache
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.dropout import dropout
from luban.models.gpt2 import GPT2, GPT2Config
from luban.models.norm import RMSNorm
from luban.models.rope import Llama3Scaling, RotaryTables, frequencies, rotate

SHAPE = {"vocab_size": 29, "layers": 2, "width": 32, "heads": 4, "max_length": 48}
CONFIGS: dict[str, DecoderConfig | GPT2Config] = {
    "grouped": DecoderConfig(**SHAPE, kv_heads=2, qk_norm=True),
    "window": DecoderConfig(**SHAPE, sliding_window=5, qkv_bias=True, tied=False),
    "gpt2": GPT2Config(**SHAPE),
}


def build(name: str) -> Decoder | GPT2:
    torch.manual_seed(0)
    config = CONFIGS[name]
    module = GPT2(config) if isinstance(config, GPT2Config) else Decoder(config)
    return module.double().eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 29, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_token_sees_a_later_one(name: str) -> None:
    module, text = build(name), ids(1, 12)
    changed = text.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 29
    before, after = module(text), module(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_read_as_alone(name: str) -> None:
    """Block-diagonal attention: two documents in one row give the logits of each by itself."""
    module, first, second = build(name), ids(2, 9, 1), ids(2, 6, 2)
    segments = torch.tensor([[0] * 9 + [1] * 6] * 2)
    positions = torch.tensor([[*range(9), *range(6)]] * 2)
    packed = module(torch.cat((first, second), 1), segments=segments, positions=positions)
    torch.testing.assert_close(packed, torch.cat((module(first), module(second)), 1))


def test_positions_matter_by_distance_only() -> None:
    module, text = build("grouped"), ids(2, 10)
    shifted = module(text, positions=torch.arange(10) + 30)
    torch.testing.assert_close(shifted, module(text), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(module(text, positions=torch.arange(10) * 2), module(text), atol=1e-3)


def test_a_window_hides_what_lies_before_it() -> None:
    config = replace(CONFIGS["window"], layers=1)
    module, text = Decoder(config).eval(), ids(1, 12)
    changed = text.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 29
    differs = (module(text) != module(changed)).any(-1)[0].tolist()
    assert differs == [6 <= place < 6 + 5 for place in range(12)]


@pytest.mark.parametrize("name", CONFIGS)
def test_cache_gives_the_logits_of_reading_at_once(name: str) -> None:
    module, text = build(name), ids(3, 20)
    cache, pieces = Cache(), []
    for piece in text.split([7, 1, 1, 5, 6], dim=1):
        pieces.append(module(piece, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, 1), module(text))
    assert cache.length == 20


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    module, text = build(name), ids(3, 10)
    starts = torch.tensor([0, 4, 9])
    padded = text.clone()
    for row, start in enumerate(starts.tolist()):
        padded[row, start:] = text[row, : 10 - start]
    cache = Cache(starts)
    logits = torch.cat([module(piece, cache=cache) for piece in padded.split([8, 2], dim=1)], 1)
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(logits[row, start:], module(text[row : row + 1, : 10 - start])[0])


def test_a_text_beyond_max_length_is_refused() -> None:
    for name in CONFIGS:
        module = build(name)
        with pytest.raises(InputError, match="longer than the model reads") as caught:
            module(ids(1, 49))
        assert caught.value.received == 49
        with pytest.raises(InputError):
            module(ids(1, 2), positions=torch.tensor([47, 48]))
        cache = Cache()
        module(ids(1, 48), cache=cache)
        with pytest.raises(InputError):
            module(ids(1, 1), cache=cache)
    with pytest.raises(InputError, match="segments"):
        build("grouped")(ids(1, 3), cache=Cache(), segments=torch.zeros(1, 3))


def test_shapes_that_do_not_fit_are_refused() -> None:
    for changes in ({"heads": 5}, {"kv_heads": 3}, {"head_dim": 7}, {"layers": 0}, {"sliding_window": 0}):
        with pytest.raises(InputError):
            DecoderConfig(**{**SHAPE, **changes})
    with pytest.raises(InputError):
        GPT2Config(**{**SHAPE, "heads": 5})


def test_first_weights() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=500, layers=8, width=64, heads=4, init_std=0.02, qkv_bias=True)
    state = Decoder(config).state_dict()
    layer = "model.layers.3."
    assert math.isclose(state["model.embed_tokens.weight"].std(), 0.02, rel_tol=0.05)
    assert math.isclose(state[layer + "self_attn.q_proj.weight"].std(), 1 / 8, rel_tol=0.05)
    assert math.isclose(state[layer + "self_attn.o_proj.weight"].std(), 1 / 8 / 4, rel_tol=0.05)
    assert not state[layer + "self_attn.q_proj.bias"].any()
    zeroed = Decoder(replace(config, zero_init_projections=True))
    assert not zeroed.state_dict()[layer + "mlp.down_proj.weight"].any()
    # With zero projections the model starts as its embedding, normed.
    embedded = zeroed.model.embed_tokens.weight[ids(1, 5)]
    torch.testing.assert_close(zeroed.hidden(ids(1, 5)), F.rms_norm(embedded, (64,), eps=1e-6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_equals_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 5, 16, dtype=dtype) * 3).requires_grad_()
    norm = RMSNorm(16, 1e-3).to(dtype)
    with torch.no_grad():
        norm.weight += torch.randn(16)
    ours = norm(x)
    theirs = F.rms_norm(x, (16,), norm.weight, 1e-3)
    slope = torch.randn_like(ours)
    tolerance = 3e-2 if dtype == torch.bfloat16 else None
    for actual, expected in zip(
        (ours, *torch.autograd.grad(ours, (x, norm.weight), slope)),
        (theirs, *torch.autograd.grad(theirs, (x, norm.weight), slope)),
        strict=True,
    ):
        assert actual.dtype == expected.dtype == dtype
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_llama3_scaling_keeps_fast_and_stretches_slow_turns() -> None:
    plain = frequencies(64, 10_000.0)
    scaled = frequencies(64, 10_000.0, Llama3Scaling(8.0, 1.0, 4.0, 256))
    wavelengths = 2 * math.pi / plain
    fast, slow = wavelengths < 256 / 4, wavelengths > 256
    assert torch.equal(scaled[fast], plain[fast])
    torch.testing.assert_close(scaled[slow], plain[slow] / 8)
    between = scaled[~fast & ~slow] / plain[~fast & ~slow]
    assert len(between) > 0
    assert (between.diff() < 0).all()
    assert between.min() >= 1 / 8
    assert between.max() <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2000))
def test_rotation_keeps_length_and_sees_distance(query_at: int, key_at: int, shift: int) -> None:
    tables = RotaryTables(8, 10_000, 100.0)
    torch.manual_seed(query_at)
    query, key = torch.randn(2, 1, 1, 1, 8)

    def turned(x: Tensor, position: int) -> Tensor:
        return rotate(x, *tables(1, torch.tensor([position])))

    torch.testing.assert_close(turned(query, query_at).norm(), query.norm())
    score = (turned(query, query_at) * turned(key, key_at)).sum()
    moved = (turned(query, query_at + shift) * turned(key, key_at + shift)).sum()
    torch.testing.assert_close(score, moved, atol=2e-3, rtol=0)


def test_tables_grow_to_the_same_values() -> None:
    small, large = RotaryTables(8, 100_000, 100.0), RotaryTables(8, 100_000, 100.0)
    large(50_000)
    assert small.cosines.shape[0] < 10_000 < large.cosines.shape[0]
    for ours, theirs in zip(small(3000), large(3000), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_equals_its_formula(window: int | None, packed: bool) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]]) if packed else None
    mixed = attend(queries, keys, values, attention_mask(torch.zeros(2, 6), None, segments, window))
    for row in range(2):
        for head in range(4):
            for place in range(6):
                seen = [
                    other
                    for other in range(place + 1)
                    if (window is None or place - other < window)
                    and (segments is None or segments[row, other] == segments[row, place])
                ]
                scores = keys[row, head // 2, seen] @ queries[row, head, place] / math.sqrt(8)
                expected = scores.softmax(0) @ values[row, head // 2, seen]
                torch.testing.assert_close(mixed[row, head, place], expected)


def test_dropout_keeps_the_mean_and_is_off_otherwise() -> None:
    x = torch.ones(100_003)
    torch.manual_seed(5)
    dropped = dropout(x, 0.3, training=True)
    zeroed = (dropped == 0).double().mean()
    assert abs(zeroed - 0.3) < 5 * math.sqrt(0.3 * 0.7 / len(x))
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / 0.7))
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3, training=True), dropped)
    assert dropout(x, 0.3, training=False) is x
    # Neighbours share a draw's 64 bits but not its value.
    pairs = (dropped[:-1] == 0) & (dropped[1:] == 0)
    assert abs(pairs.double().mean() - 0.09) < 5 * math.sqrt(0.09 / len(x)) * 1.3


def test_dropout_changes_training_only() -> None:
    for config in (DecoderConfig(**SHAPE, dropout=0.5), GPT2Config(**SHAPE, dropout=0.5)):
        module = GPT2(config) if isinstance(config, GPT2Config) else Decoder(config)
        module.train()
        assert not torch.equal(module(ids(1, 6)), module(ids(1, 6)))
        module.eval()
        assert torch.equal(module(ids(1, 6)), module(ids(1, 6)))


def test_under_autocast_a_norm_gives_what_the_products_read() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(3, 16, requires_grad=True), RMSNorm(16)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, norm(x).bfloat16(), atol=0, rtol=0)
    assert torch.autograd.grad(out.float().square().sum(), x)[0].dtype == torch.float32
