"""The tagger: what it says of a sentence is that of torch and of all taggings counted out, alone or in a batch."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luban.errors import InputError
from luban.models.tagger import UNKNOWN, Tagger, TaggerConfig

WORDS, LETTERS, TAGS, CHARACTERS = 11, 7, 3, 5
NETWORKS = ("lstm", "gru", "transformer")


def tagger(**changes: object) -> Tagger:
    torch.manual_seed(0)
    config = {"words": WORDS, "letters": LETTERS, "tags": TAGS, "width": 8, "heads": 2, "letter_filters": 4}
    model = Tagger(TaggerConfig(**{**config, **changes})).double().eval()  # type: ignore[arg-type]
    if model.crf is not None:
        for parameter in model.crf.parameters():
            torch.nn.init.normal_(parameter)
    return model


def sentences(lengths: list[int], longest: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    words = torch.randint(1, WORDS, (len(lengths), longest), generator=draws)
    letters = torch.randint(1, LETTERS, (len(lengths), longest, CHARACTERS), generator=draws)
    return words * mask, letters * mask[..., None], mask


def taggings(emissions: Tensor) -> Iterator[Tensor]:
    """Yield every tagging of one sentence."""
    for tags in itertools.product(range(TAGS), repeat=len(emissions)):
        yield torch.tensor(tags)


def score(model: Tagger, emissions: Tensor, tags: Tensor) -> Tensor:
    """Return what the field says of one tagging of one sentence, by its definition."""
    crf = model.crf
    assert crf is not None
    found = crf.first[tags[0]] + crf.last[tags[-1]] + emissions[torch.arange(len(tags)), tags].sum()
    return found + crf.transitions[tags[:-1], tags[1:]].sum()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_it_says_of_a_token_by_itself_is_that_of_torch(cell: str) -> None:
    """Words, pairs of neighbours and spelling side by side, read from both ends, and a matrix: written out."""
    model = tagger(network=cell, pairs=50, layers=1)
    words, letters, mask = sentences([4], 4)
    assert model.words is not None and model.pairs is not None
    assert model.letters is not None and isinstance(model.filters, torch.nn.Conv1d)
    inputs = []
    around = [0, *words[0].tolist(), 0]
    for at, word in enumerate(words[0].tolist(), 1):
        before, behind = (
            model.pairs.weight[(116049371 * around[n] + around[n + 1]) % 50] for n in (at - 1, at)
        )
        spelt = torch.stack([model.letters.weight[letter] for letter in letters[0, at - 1].tolist()])
        spelt = torch.cat(
            [torch.zeros_like(spelt[:1]), spelt, torch.zeros_like(spelt[:1])]
        )  # beyond the word
        fits = [
            torch.einsum("fck,kc->f", model.filters.weight, spelt[n : n + 3]) + model.filters.bias
            for n in range(CHARACTERS)
        ]
        inputs.append(torch.cat([model.words.weight[word], before, behind, torch.stack(fits).relu().amax(0)]))
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    theirs = kind(8 * 3 + 4, 8, batch_first=True, bidirectional=True).double()
    copied = {}
    for cells, suffix in ((model.encoder.onward_layers, ""), (model.encoder.backward_layers, "_reverse")):
        copied |= {f"{name}{suffix}": weight for name, weight in cells[0].kernel.named_parameters()}  # type: ignore[union-attr]
    theirs.load_state_dict(copied)
    states, _ = theirs(torch.stack(inputs)[None])
    torch.testing.assert_close(
        model(words, letters, mask), states @ model.output.weight.T + model.output.bias
    )


@pytest.mark.parametrize("pairs", [0, 50])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_sentence_is_read_alike_alone_and_padded_beside_a_longer_one(network: str, pairs: int) -> None:
    model = tagger(network=network, pairs=pairs, layers=2)
    words, letters, mask = sentences([3, 6, 1], 6)
    together = model(words, letters, mask)
    for row, length in enumerate([3, 6, 1]):
        alone = model(*(x[row : row + 1, :length] for x in (words, letters, mask)))
        torch.testing.assert_close(alone[0], together[row, :length])


@pytest.mark.parametrize("pairs", [0, 50])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_learns(network: str, pairs: int) -> None:
    model = tagger(network=network, pairs=pairs)
    words, letters, mask = sentences([3, 6], 6)
    model.loss(model(words, letters, mask), torch.ones(2, 6, dtype=torch.int64), mask).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_each_part_of_a_word_counts() -> None:
    """Its number, its spelling, and with pairs its neighbours."""
    words, letters, mask = sentences([4], 4)
    other, spelled = words.clone(), letters.clone()
    other[0, 1] = words[0, 1] % (WORDS - 1) + 1
    spelled[0, 3, 0] = letters[0, 3, 0] % (LETTERS - 1) + 1
    for changes in ({"letter_filters": 0}, {"pairs": 50}):
        model = tagger(**changes)
        said = model(words, letters, mask)
        assert not torch.allclose(model(other, letters, mask), said)
        assert torch.allclose(model(words, spelled, mask), said) == (model.letters is None)
    plain = tagger(letter_filters=0, pairs=50)
    torch.nn.init.zeros_(plain.words.weight)  # type: ignore[union-attr]
    looked_up: list[Tensor] = []
    plain.pairs.register_forward_hook(lambda *call: looked_up.append(call[2]))  # type: ignore[union-attr]
    plain(words, letters, mask)
    plain(other, letters, mask)
    changed = (looked_up[0] != looked_up[1]).any(-1)[0].tolist()
    assert changed == [
        False,
        True,
        True,
        False,
        False,
    ]  # the pairs (0, 1) and (1, 2) of the five with both ends


def test_words_that_came_once_are_sometimes_unknown_while_training_and_no_others() -> None:
    model = tagger(letter_filters=0, once=3, unknown=0.5)
    read: list[Tensor] = []
    model.words.register_forward_pre_hook(lambda _, given: read.append(given[0]))  # type: ignore[union-attr]
    words = torch.arange(WORDS).repeat(200, 1)
    letters, mask = torch.ones(*words.shape, 4, dtype=torch.int64), torch.ones_like(words, dtype=torch.bool)
    model.train()(words, letters, mask)
    model.eval()(words, letters, mask)
    hidden = (read[0] == UNKNOWN) & (words != UNKNOWN)
    assert hidden.any(0).tolist() == [number >= WORDS - 3 for number in range(WORDS)]
    assert hidden[:, -3:].double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (read[0] == words)[~hidden].all()
    assert (read[1] == words).all()


def test_without_a_field_the_loss_is_torchs_cross_entropy_of_the_tokens_there_are() -> None:
    model = tagger(crf=False)
    words, letters, mask = sentences([2, 5], 5)
    tags = torch.randint(TAGS, mask.shape, generator=torch.Generator().manual_seed(2))
    emissions = model(words, letters, mask)
    theirs = F.cross_entropy(emissions[mask], tags[mask], reduction="sum")
    torch.testing.assert_close(model.loss(emissions, tags, mask).double(), theirs, rtol=1e-5, atol=1e-5)
    said, sure = model.answer(emissions, mask)
    assert said[mask].tolist() == emissions[mask].argmax(-1).tolist()
    torch.testing.assert_close(
        sure[mask].double(), emissions.softmax(-1).amax(-1)[mask], rtol=1e-5, atol=1e-5
    )


def test_with_a_field_loss_and_answer_are_those_of_all_taggings_counted_out() -> None:
    model = tagger()
    words, letters, mask = sentences([4, 2], 4)
    emissions = model(words, letters, mask).detach()
    tags = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0]])
    expected = torch.zeros((), dtype=torch.float64)
    said, sure = model.answer(emissions, mask)
    for row, length in enumerate([4, 2]):
        every = list(taggings(emissions[row, :length]))
        scores = torch.stack([score(model, emissions[row, :length], one) for one in every])
        chances = scores.softmax(0)
        expected -= scores[
            [one.tolist() for one in every].index(tags[row, :length].tolist())
        ] - scores.logsumexp(0)
        best = every[int(scores.argmax())]
        assert said[row, :length].tolist() == best.tolist()
        for place in range(length):
            alike = torch.stack([one[place] == best[place] for one in every])
            assert sure[row, place].item() == pytest.approx(chances[alike].sum().item(), abs=1e-6)
    torch.testing.assert_close(model.loss(emissions, tags, mask).double(), expected, rtol=1e-5, atol=1e-5)


def test_what_the_scheme_forbids_is_never_answered() -> None:
    forbidden = torch.zeros(TAGS, TAGS, dtype=torch.bool)
    forbidden[0, 2] = True  # as I may not follow O
    first = torch.tensor([False, False, True])
    model = Tagger(
        TaggerConfig(WORDS, LETTERS, TAGS, width=8, letter_filters=4),
        forbidden,
        first,
        torch.zeros(3, dtype=torch.bool),
    )
    draws = torch.Generator().manual_seed(3)
    emissions = 5 * torch.randn(50, 6, TAGS, generator=draws)
    tags, _ = model.answer(emissions, torch.ones(50, 6, dtype=torch.bool))
    assert (emissions.argmax(-1)[:, 0] == 2).any()
    assert not (tags[:, 0] == 2).any()
    assert not ((tags[:, :-1] == 0) & (tags[:, 1:] == 2)).any()


def test_a_word_of_padding_letters_says_nothing_of_what_stands_there() -> None:
    model = tagger()
    words, letters, mask = sentences([3], 3)
    letters[0, 1] = 0
    before = model(words, letters, mask)
    model.letters.weight.data[0].fill_(9.0)  # type: ignore[union-attr]
    torch.testing.assert_close(model(words, letters, mask), before)


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="network"):
        TaggerConfig(2, 2, 2, network="cnn")
    with pytest.raises(InputError, match="tags"):
        TaggerConfig(2, 2, 0)
