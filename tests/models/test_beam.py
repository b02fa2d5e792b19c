"""The search against every text there is, on small vocabularies."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from luban.errors import InputError
from luban.models.beam import Written, beam_search, greedy_search, length_penalty
from luban.models.seq2seq import Seq2Seq, Seq2SeqConfig
from luban.models.seq2seq_rnn import RecurrentSeq2Seq, RecurrentSeq2SeqConfig

START, END, VOCAB, LONGEST = 0, 1, 4, 4


class Table:
    """A writer whose next token depends on the source and the whole text so far, by a table of random logits."""

    def __init__(self, seed: int, sharpness: float = 1.5) -> None:
        self.seed, self.sharpness, self.steps, self.rows = seed, sharpness, 0, 0

    def next_log_probs(self, source: int, text: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, source, text)) % 2**31)
        return (torch.randn(VOCAB, generator=generator, dtype=torch.float64) * self.sharpness).log_softmax(0)

    def start(self, source_ids: Tensor, source_mask: Tensor) -> list[tuple[int, tuple[int, ...]]]:
        return [(int(source), ()) for source in source_ids[:, 0]]

    def step(self, state: list, last_ids: Tensor) -> tuple[Tensor, list]:
        self.steps, self.rows = self.steps + 1, self.rows + len(state)
        state = [(source, (*text, int(token))) for (source, text), token in zip(state, last_ids, strict=True)]
        return torch.stack([self.next_log_probs(*row) for row in state]), state

    def reorder(self, state: list, rows: Tensor) -> list:
        return [state[row] for row in rows.tolist()]


def every_text(table: Table, source: int, alpha: float) -> list[Written]:
    """All texts of at most LONGEST tokens, the end included, and those cut there; best first."""
    texts = []
    for length in range(LONGEST + 1):
        for ids in itertools.product([token for token in range(VOCAB) if token != END], repeat=length):
            chosen = ids if length == LONGEST else (*ids, END)
            log_prob = sum(
                float(table.next_log_probs(source, (START, *chosen[:place]))[token])
                for place, token in enumerate(chosen)
            )
            score = log_prob / length_penalty(len(chosen), alpha)
            texts.append(Written(list(ids), log_prob, score, ended=length < LONGEST))
    return sorted(texts, key=lambda text: -text.score)


def sources(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(count)[:, None], torch.ones(count, 1, dtype=torch.bool)


def assert_same(found: Written, expected: Written) -> None:
    assert (found.ids, found.ended) == (expected.ids, expected.ended)
    assert math.isclose(found.log_prob, expected.log_prob, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(found.score, expected.score, rel_tol=1e-9, abs_tol=1e-9)


def by_definition(table: Table, source: int, beam: int, alpha: float) -> list[Written]:
    """The search written out for one source, to the end."""
    going, done = [((START,), 0.0)], []
    for place in range(1, LONGEST + 1):
        longer = [
            ((*text, token), log_prob + float(added))
            for text, log_prob in going
            for token, added in enumerate(table.next_log_probs(source, text))
        ]
        best = sorted(longer, key=lambda row: -row[1])[: beam - len(done)]
        ended = [(text, log_prob) for text, log_prob in best if text[-1] == END]
        done += [Written(list(t[1:-1]), p, p / length_penalty(place, alpha), ended=True) for t, p in ended]
        going = [row for row in best if row not in ended]
    done += [Written(list(t[1:]), p, p / length_penalty(LONGEST, alpha), ended=False) for t, p in going]
    return sorted(done, key=lambda text: -text.score)


HOW = {"start_id": START, "end_id": END, "max_length": LONGEST}


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.6, 1.0]))
def test_a_beam_with_room_for_all_finds_the_best_of_all(seed: int, alpha: float) -> None:
    table = Table(seed)
    found = beam_search(table, *sources(2), **HOW, beam=VOCAB**LONGEST, alpha=alpha, keep=5)
    for source, texts in enumerate(found):
        for text, expected in zip(texts, every_text(table, source, alpha)[:5], strict=True):
            assert_same(text, expected)


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.0, 0.6]), st.booleans())
def test_equals_its_definition(seed: int, beam: int, alpha: float, keeps_all: bool) -> None:
    table, keep = Table(seed), beam if keeps_all else 1
    found = beam_search(table, *sources(3), **HOW, beam=beam, alpha=alpha, keep=keep)
    for source, texts in enumerate(found):
        for text, expected in zip(texts, by_definition(table, source, beam, alpha)[:keep], strict=True):
            assert_same(text, expected)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]))
def test_one_place_is_greedy(seed: int, alpha: float) -> None:
    table = Table(seed)
    wide = beam_search(table, *sources(3), **HOW, beam=1, alpha=alpha)
    for (text,), expected in zip(wide, greedy_search(table, *sources(3), **HOW, alpha=alpha), strict=True):
        assert_same(text, expected)


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    table = Table(3)
    for source, found in enumerate(greedy_search(table, *sources(5), **HOW)):
        text: tuple[int, ...] = (START,)
        while len(text) <= LONGEST and (len(text) == 1 or text[-1] != END):
            text = (*text, int(table.next_log_probs(source, text).argmax()))
        assert found.ids == [token for token in text[1:] if token != END]
        assert found.ended == (text[-1] == END)


@given(
    st.integers(0, 10_000),
    st.integers(2, 4),
    st.integers(1, 2),
    st.lists(st.integers(1, LONGEST), min_size=3, max_size=3),
)
def test_a_source_is_answered_as_if_alone(seed: int, beam: int, keep: int, limits: list[int]) -> None:
    table, (ids, mask) = Table(seed), sources(3)
    frame = {"start_id": START, "end_id": END}
    together = beam_search(table, ids, mask, **frame, max_length=limits, beam=beam, keep=keep)
    straight = greedy_search(table, ids, mask, **frame, max_length=limits)
    for row, limit in enumerate(limits):
        one = (ids[row : row + 1], mask[row : row + 1])
        (alone,) = beam_search(table, *one, **frame, max_length=limit, beam=beam, keep=keep)
        for text, expected in zip(together[row], alone, strict=True):
            assert_same(text, expected)
        (alone_straight,) = greedy_search(table, *one, **frame, max_length=limit)
        assert_same(straight[row], alone_straight)


def test_it_stops_when_nothing_open_can_win() -> None:
    """An end of probability 0.9 at once: what is open has at most 0.1 and no penalty lifts it above."""

    class Short(Table):
        def next_log_probs(self, source: int, text: tuple[int, ...]) -> Tensor:
            return torch.tensor([0.03, 0.9, 0.03, 0.04], dtype=torch.float64).log()

    writer = Short(0)
    ((found,),) = beam_search(writer, *sources(1), **(HOW | {"max_length": 50}), beam=4, alpha=0.0)
    assert (found.ids, found.ended, writer.steps) == ([], True, 1)
    writer = Short(0)
    greedy_search(writer, *sources(6), **HOW)
    assert (writer.steps, writer.rows) == (1, 6)


def test_length_penalty_favours_longer_texts() -> None:
    table = Table(5)
    lengths = [
        sum(len(text.ids) for (text,) in beam_search(table, *sources(20), **HOW, beam=100, alpha=alpha))
        for alpha in (0.0, 1.0, 3.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[2]


@pytest.mark.parametrize("recurrent", [False, True])
def test_log_probs_are_those_of_the_network(recurrent: bool) -> None:
    torch.manual_seed(0)
    if recurrent:
        model = RecurrentSeq2Seq(RecurrentSeq2SeqConfig(9, 7, 8, 8, layers=2)).eval()
    else:
        model = Seq2Seq(Seq2SeqConfig(9, 7, layers=2, width=8, heads=2, max_length=10)).eval()
    source = torch.randint(0, 9, (3, 5))
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    found = beam_search(model, source, mask, start_id=0, end_id=1, max_length=6, beam=3, keep=3)
    for row, texts in enumerate(found):
        assert texts == sorted(texts, key=lambda text: -text.score)
        for text in texts:
            chosen = [*text.ids, 1] if text.ended else text.ids
            logits = model(source[row : row + 1], mask[row : row + 1], torch.tensor([[0, *chosen[:-1]]]))[0]
            log_prob = logits.log_softmax(-1).gather(1, torch.tensor(chosen)[:, None]).sum()
            assert math.isclose(log_prob.item(), text.log_prob, abs_tol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"beam": 0}, {"keep": 3, "beam": 2}, {"alpha": -1.0}, {"max_length": 0}, {"max_length": [0]}]
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(InputError):
        beam_search(Table(0), *sources(1), **(HOW | wrong))
