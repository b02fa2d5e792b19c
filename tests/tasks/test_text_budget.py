"""What a budget buys: laws that behave, choices that follow the budget, the machine and the text."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from luban.tasks.base import Machine
from luban.tasks.text_budget import (
    LADDER,
    Offer,
    Shape,
    Text,
    batch_of,
    best,
    expected_loss,
    for_tokens,
    heads_of,
    learning_rate_of,
    length_of,
    offers,
    short_steps_of,
    step_seconds,
)
from luban.text_recipe import LanguageModelRecipe

TEXT = Text(tokens=316_000, vocab_size=2048, ngram=4.4, tokens_per_character=0.33, document_tokens=517.0)
LAPTOP = Machine(peak_flops=134e9, memory_bytes=16 << 30)


def recipe(**train: float) -> LanguageModelRecipe:
    return LanguageModelRecipe.model_validate({"data": {"source": "a.txt"}, "train": train})


@pytest.mark.parametrize(("width", "layers", "batch", "length", "vocab_size", "milliseconds"), [
    (64, 2, 8, 128, 2048, 43.6), (128, 4, 8, 128, 2048, 121.1), (192, 4, 16, 128, 5700, 449.6),
    (256, 5, 8, 256, 2048, 787.2), (384, 6, 8, 128, 5700, 1267.2), (512, 8, 16, 128, 2048, 4692.0),
])  # fmt: skip
def test_the_law_of_speed_gives_back_steps_that_were_measured(
    width: int, layers: int, batch: int, length: int, vocab_size: int, milliseconds: float
) -> None:
    shape = Shape(layers, width, heads_of(width), length, batch)
    assert 1e3 * step_seconds(shape, vocab_size, 134.3e9) == pytest.approx(milliseconds, rel=0.14)


@given(
    rung=st.sampled_from(LADDER),
    tokens=st.integers(50_000, 50_000_000),
    ngram=st.floats(1.0, 7.0),
)
def test_new_text_never_costs_loss_and_learning_by_heart_does(
    rung: tuple[int, int], tokens: int, ngram: float
) -> None:
    layers, width = rung
    endless = replace(TEXT, ngram=ngram, tokens=10**12)
    now = expected_loss(endless, layers=layers, width=width, tokens=tokens)
    assert expected_loss(endless, layers=layers, width=width, tokens=2 * tokens) <= now
    text = replace(TEXT, ngram=ngram)
    larger = replace(text, tokens=2 * text.tokens)
    once = expected_loss(text, layers=layers, width=width, tokens=tokens)
    assert expected_loss(larger, layers=layers, width=width, tokens=tokens) <= once + 1e-9
    thousand_times = expected_loss(text, layers=layers, width=width, tokens=1000 * text.tokens)
    assert thousand_times > expected_loss(text, layers=layers, width=width, tokens=4 * text.tokens)


@given(tokens=st.integers(10_000, 3_000_000), length=st.sampled_from([64, 128, 256, 300, 301, 512]))
def test_a_third_of_the_tokens_is_read_in_halves_where_that_was_measured(tokens: int, length: int) -> None:
    shape = Shape(4, 128, 4, length, 8)
    short = short_steps_of(Offer(shape, 1e-3, tokens, 60.0, 4.0))
    if length < 256 or length % 2 or tokens > 2_000_000:
        assert short == 0
    else:
        assert abs(short * shape.step_tokens / 2 - tokens / 3) <= shape.step_tokens / 4


def test_of_a_budget_of_steps_every_other_is_short() -> None:
    offer = Offer(Shape(4, 128, 4, 256, 8), 1e-3, 100 * 2048, 60.0, 4.0)
    short = short_steps_of(offer, steps=100)
    halves, whole = short * 1024, (100 - short) * 2048
    assert halves == pytest.approx((halves + whole) / 3)


@limits(max_examples=30)
@given(minutes=st.floats(0.5, 600), more=st.floats(1.0, 20.0))
def test_a_larger_budget_or_a_faster_machine_never_buys_less(minutes: float, more: float) -> None:
    little = best(offers(recipe(minutes=minutes), TEXT, LAPTOP))
    much = best(offers(recipe(minutes=minutes * more), TEXT, LAPTOP))
    faster = best(offers(recipe(minutes=minutes), TEXT, replace(LAPTOP, peak_flops=more * LAPTOP.peak_flops)))
    # The smallest within a thousandth is taken, so a plateau may step back by one rung.
    assert much.loss <= little.loss * 1.005
    assert faster.loss <= little.loss * 1.005
    endless = replace(TEXT, tokens=10**12)
    ladder = [width for _, width in LADDER]
    rungs = [
        ladder.index(best(offers(recipe(minutes=m), endless, LAPTOP)).shape.width)
        for m in (minutes, minutes * more)
    ]
    # One rung back is possible where steps double: among shapes within a thousandth the smallest is taken.
    assert rungs[0] <= rungs[1] + 1


def test_a_small_text_is_not_read_for_ever() -> None:
    for offer in offers(recipe(minutes=600), TEXT, LAPTOP):
        assert offer.tokens <= 40 * TEXT.tokens
    chosen = best(offers(recipe(minutes=600), TEXT, LAPTOP))
    assert chosen.seconds < 0.1 * 60 * 600


@given(
    keys=st.fixed_dictionaries({}, optional={
        "layers": st.integers(1, 12), "width": st.sampled_from([64, 128, 320]),
        "kv_heads": st.sampled_from([1, 2, 4]), "heads": st.sampled_from([4, 8]),
    }),
    train=st.fixed_dictionaries({}, optional={
        "batch": st.integers(1, 64), "learning_rate": st.floats(1e-4, 1e-1),
    }),
    length=st.none() | st.integers(2, 512),
)  # fmt: skip
@limits(max_examples=50)
def test_what_the_recipe_names_is_kept(
    keys: dict[str, int], train: dict[str, float], length: int | None
) -> None:
    given_ = LanguageModelRecipe.model_validate(
        {"data": {"source": "a.txt", "length": length}, "model": keys, "train": {"minutes": 3, **train}}
    )
    for offer in offers(given_, TEXT, LAPTOP):
        shape = offer.shape
        for name in keys.keys() - {"kv_heads"}:
            assert getattr(shape, name) == keys[name]
        assert shape.batch == train.get("batch", shape.batch)
        assert offer.learning_rate == train.get("learning_rate", offer.learning_rate)
        assert length in (None, shape.length)
        assert shape.width % shape.heads == 0 == shape.heads % keys.get("kv_heads", 1)


@given(epochs=st.floats(0.05, 40.0))
@limits(max_examples=20)
def test_a_budget_of_epochs_is_that_of_their_tokens(epochs: float) -> None:
    tokens = max(1, round(epochs * TEXT.tokens))
    assert for_tokens(recipe(epochs=epochs), TEXT, LAPTOP) == for_tokens(recipe(tokens=tokens), TEXT, LAPTOP)


def test_heads_that_no_rung_divides_widen_the_rungs() -> None:
    named = LanguageModelRecipe.model_validate(
        {"data": {"source": "a.txt"}, "model": {"heads": 7}, "train": {"minutes": 3}}
    )
    for offer in offers(named, TEXT, LAPTOP):
        assert offer.shape.heads == 7 and offer.shape.width % 14 == 0


def test_memory_leaves_the_largest_out_but_never_all() -> None:
    small = Machine(peak_flops=1e15, memory_bytes=2 << 30)
    widths = [offer.shape.width for offer in offers(recipe(minutes=600), TEXT, small)]
    assert max(widths) < 1024
    none = Machine(peak_flops=1e15, memory_bytes=0)
    assert len(offers(recipe(minutes=600), TEXT, none)) == 1


def test_rules_of_thumb_stay_within_their_bounds() -> None:
    assert [heads_of(width) for width in (48, 96, 192, 256, 384, 512)] == [2, 3, 6, 4, 6, 8]
    assert (
        learning_rate_of("muon", 128, 1024)
        > learning_rate_of("muon", 256, 1024)
        > learning_rate_of("adamw", 256, 1024)
    )
    assert length_of(10**6, TEXT) == 128
    assert length_of(10**6, replace(TEXT, document_tokens=20.0)) == 64
    assert length_of(10**9, TEXT) == 512
    assert batch_of(10**6, 128) == 8
    assert batch_of(2 * 10**9, 512) > 8
