"""Generation: with a cache as without, in a batch as alone, seeded, and on beyond the model's length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.errors import InputError
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.generation import Rereading, generate, stream
from luban.models.gpt2 import GPT2, GPT2Config
from luban.models.sampling import Sampling, choose, narrow

SHAPE = {"vocab_size": 50, "layers": 2, "width": 32, "heads": 4, "max_length": 24, "init_std": 0.5}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3], list(range(40)), [3, 3]]


def build(name: str) -> Decoder | GPT2:
    torch.manual_seed(1)
    if name == "gpt2":
        return GPT2(GPT2Config(**SHAPE)).double()
    window = 9 if name == "window" else None
    return Decoder(DecoderConfig(**SHAPE, kv_heads=2, sliding_window=window, dropout=0.5)).double()


NAMES = ["llama", "window", "gpt2"]


def without_cache(module: Decoder | GPT2, prompt: list[int], max_tokens: int) -> list[int]:
    """The slow and obvious way: read the whole remembered text for every token."""
    module.eval()
    text, new = list(prompt), []
    for _ in range(max_tokens):
        if len(text) > 24:
            text = text[-12:]
        new.append(int(module(torch.tensor([text]))[0, -1].argmax()))
        text.append(new[-1])
    return new


@pytest.mark.parametrize("name", NAMES)
def test_cached_equals_uncached_beyond_the_models_length(name: str) -> None:
    module = build(name)
    expected = [without_cache(module, prompt, 40) for prompt in PROMPTS]
    assert len({tuple(row) for row in expected}) > 1
    assert generate(module, PROMPTS, max_tokens=40, temperature=0) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_writes_what_each_writes_alone(name: str, temperature: float) -> None:
    module = build(name)
    together = generate(module, PROMPTS, max_tokens=30, temperature=temperature, seed=3)
    for batch in (1, 2):
        alone = generate(module, PROMPTS, max_tokens=30, temperature=temperature, seed=3, batch=batch)
        assert alone == together
    stops = {together[0][4], together[2][9]}
    stopped = generate(module, PROMPTS, max_tokens=30, temperature=temperature, seed=3, stop_ids=stops)
    for row, full in zip(stopped, together, strict=True):
        places = [place for place, token in enumerate(full) if token in stops]
        assert row == full[: places[0] if places else 30]


def test_seed_decides_the_draws() -> None:
    module = build("llama")
    first = generate(module, [[1], [1]], max_tokens=20, seed=1)
    assert first == generate(module, [[1], [1]], max_tokens=20, seed=1)
    assert first != generate(module, [[1], [1]], max_tokens=20, seed=2)
    assert first[0] != first[1]


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(0)
    logits, sampling = torch.randn(1, 12) * 2, Sampling(temperature=0.8, top_k=7, top_p=0.95)
    draws = 20_000
    uniforms = torch.rand(draws, dtype=torch.float64)
    seen = torch.zeros(1, 12, dtype=torch.bool)
    tokens = choose(logits.expand(draws, -1), sampling, seen, uniforms)
    counts = torch.bincount(tokens, minlength=12).double()
    expected = narrow(logits, sampling)[0].double().softmax(0) * draws
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0
    chi_square = ((counts - expected)[likely].square() / expected[likely]).sum()
    assert chi_square < 30  # six degrees of freedom: exceeded once in 25,000


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100))
def test_a_draw_is_never_a_token_that_was_ruled_out(uniform: float, seed: int) -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed)) * 5
    sampling = Sampling(top_k=4, min_p=0.1)
    seen = torch.zeros(1, 30, dtype=torch.bool)
    token = choose(logits, sampling, seen, torch.tensor([uniform], dtype=torch.float64))
    assert narrow(logits, sampling)[0, token].isfinite().all()


def test_the_model_keeps_its_mode() -> None:
    module = build("llama").train()
    generate(module, [[1]], max_tokens=2)
    assert module.training
    module.eval()
    generate(module, [[1]], max_tokens=2)
    assert not module.training


def test_a_reader_ends_a_row() -> None:
    module, ended, rows = build("llama"), set(), {0: 0, 1: 0}
    for row, _ in stream(module, [[1, 2], [3]], 10, Sampling(temperature=0), ended=ended):
        rows[row] += 1
        if row == 1 and rows[1] == 3:
            ended |= {1}
    assert rows == {0: 10, 1: 3}


def test_wrong_input_is_refused() -> None:
    module = build("llama")
    for prompts in ([[1], []], [[50]], [[-1]]):
        with pytest.raises(InputError):
            generate(module, prompts, max_tokens=1)
    for wrong in (
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            generate(module, [[1]], max_tokens=1, **wrong)
    assert generate(module, [[1]], max_tokens=0) == [[]]


def test_a_model_that_reads_anew_writes_what_one_with_a_cache_writes() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=12, layers=2, width=16, heads=2, max_length=10)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        graph = Rereading(lambda ids: model(ids), 12, 10, min_length=3)
        prompts = [[1], [2, 3, 4, 5], [6, 7]]
        for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.3}):
            # Longer than max_length: the oldest part is forgotten, by rows of different lengths.
            wanted = generate(model, prompts, max_tokens=14, **settings)
            assert generate(graph, prompts, max_tokens=14, **settings) == wanted
    with pytest.raises(InputError, match="tokens 0 to 11"):
        generate(graph, [[12]], max_tokens=1)
