"""Text generation: pieces join to the whole, stop strings cut at the same place however tokens fall."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.errors import InputError
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.generation import generate
from luban.models.sampling import Sampling
from luban.tasks.text_generation import _Writer, generate_text, stream_text

TEXT = "to be or not to be, that is the question. 魯班木工 🙂 "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bpe", iter([TEXT * 5]), vocab_size=290, byte_fallback=True)


@pytest.fixture(scope="module")
def module(tokenizer: Tokenizer) -> Decoder:
    torch.manual_seed(0)
    shape = {"layers": 1, "width": 16, "heads": 2, "max_length": 64, "init_std": 0.5}
    return Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **shape)).double()


def cut(text: str, stop: list[str]) -> str:
    """Read character by character until a stop string is complete."""
    for end in range(len(text) + 1):
        found = [word for word in stop if text[:end].endswith(word)]
        if found:
            return text[: end - max(len(word) for word in found)]
    return text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_the_tokens_decoded(module: Decoder, tokenizer: Tokenizer, temperature: float) -> None:
    prompts = ["to be", "魯", ""]
    texts = generate_text(module, tokenizer, prompts, max_tokens=40, temperature=temperature, seed=5)
    ids = [tokenizer.encode(prompt) or [tokenizer.end_id] for prompt in prompts]
    tokens = generate(
        module, ids, max_tokens=40, temperature=temperature, seed=5, stop_ids={tokenizer.end_id}
    )
    assert texts == [tokenizer.decode(row) for row in tokens]
    assert any(texts)


def test_a_stop_string_ends_its_row_only(module: Decoder, tokenizer: Tokenizer) -> None:
    prompts = ["to be", "question", "or"]
    whole = generate_text(module, tokenizer, prompts, max_tokens=60, seed=1)
    stop = [whole[0][9:12], whole[1][len(whole[1]) // 2 :][:2]]
    stopped = generate_text(module, tokenizer, prompts, max_tokens=60, seed=1, stop=stop)
    assert stopped == [cut(text, stop) for text in whole]
    assert len(stopped[0]) <= 9
    with pytest.raises(InputError, match="empty"):
        generate_text(module, tokenizer, prompts, max_tokens=1, stop=[""])


def test_pieces_come_early_and_join_to_the_text(module: Decoder, tokenizer: Tokenizer) -> None:
    pieces = list(stream_text(module, tokenizer, ["to", "be"], 30, Sampling(), seed=2))
    texts = generate_text(module, tokenizer, ["to", "be"], max_tokens=30, seed=2)
    for row in (0, 1):
        assert "".join(piece for number, piece in pieces if number == row) == texts[row]
    assert len(pieces) > 20


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("ab.🙂", max_size=30),
    stop=st.lists(st.text("ab.🙂", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_where_tokens_fall_does_not_matter(text: str, stop: list[str], data: st.DataObject) -> None:
    class Pieces:
        """A decoder whose tokens are whatever pieces the text was cut into."""

        def __init__(self, *_: object) -> None:
            self.places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))

        def push(self, number: int) -> str:
            bounds = [0, *self.places]
            return text[bounds[number] : bounds[number + 1]]

        def finish(self) -> str:
            return text[self.places[-1] if self.places else 0 :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luban.tasks.text_generation.StreamDecoder", Pieces)
        writer = _Writer(None, stop)  # type: ignore[arg-type]
        joined = (
            "".join(writer.push(number) for number in range(len(writer._decoder.places))) + writer.finish()
        )
    assert joined == cut(text, stop)
