"""Windows: every token once in each epoch, a pure function of the position, alike for any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.shards import ShardWriter, TokenShards
from luban.data.windows import IGNORED, WindowBatch, Windows, sequential, shuffled
from luban.errors import InputError

END = 0
BEGIN = 5_000


def shards_of(folder: Path, lengths: list[int]) -> TokenShards:
    """Documents of the given lengths; every token that is not an end is different from all others."""
    writer = ShardWriter(folder, "train", vocab_size=6_000, end_id=END, shard_tokens=37)
    first = 1
    for length in lengths:
        writer.add(list(range(first, first + length)), bytes=length, characters=length)
        first += length
    writer.close()
    return TokenShards(folder, "train")


def keys(seed: int) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(6, np.uint64)


def assert_equal(one: WindowBatch, two: WindowBatch) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name))


lengths_of_documents = st.lists(st.integers(0, 40), min_size=1, max_size=12)
attentions = st.sampled_from(["stream", "document"])


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_documents, length=st.integers(1, 50), seed=st.integers(-3, 99), epoch=st.integers(0, 5)
)
def test_every_token_is_a_target_once_in_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int, epoch: int
) -> None:
    shards = shards_of(tmp_path_factory.mktemp("s"), lengths)
    stream = shards.read(0, shards.tokens)
    windows = Windows(shards, length=length, seed=seed)
    assert windows.per_epoch == -(-len(stream) // length)
    batch = windows.batch(epoch * windows.per_epoch, windows.per_epoch)
    counted = batch.targets != IGNORED
    assert sorted(batch.targets[counted].tolist()) == sorted(stream.tolist())
    assert batch.targets_count == counted.sum() == shards.tokens
    # The input is the token before the target; before the first token of all comes the last end token.
    before = dict(zip(stream.tolist(), np.roll(stream, 1).tolist(), strict=True))
    for token, given_token in zip(batch.targets[counted], batch.inputs[counted], strict=True):
        assert token == END or before[int(token)] == given_token
    # Within a row the targets run on, and only one row is ragged.
    assert (batch.inputs[:, 1:][counted[:, 1:]] == batch.targets[:, :-1][counted[:, 1:]]).all()
    assert (counted.sum(axis=1) < length).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_documents,
    length=st.integers(1, 30),
    first=st.integers(0, 100),
    half=st.integers(1, 9),
    attention=attentions,
)
def test_parts_of_a_batch_are_the_batch(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    first: int,
    half: int,
    attention: str,
) -> None:
    shards = shards_of(tmp_path_factory.mktemp("s"), lengths)
    whole = Windows(shards, length=length, seed=7, attention=attention).batch(first, 2 * half)
    ranks = [
        Windows(shards, length=length, seed=7, attention=attention).batch(at, half)
        for at in (first, first + half)
    ]
    for name in ("inputs", "targets", "segments", "positions"):
        parts = [getattr(rank, name) for rank in ranks]
        if getattr(whole, name) is None:
            assert parts == [None, None]
        else:
            np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, name))
    assert whole.targets_count == sum(rank.targets_count for rank in ranks)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_documents,
    half=st.integers(1, 20),
    first=st.integers(0, 60),
    count=st.integers(1, 9),
    attention=attentions,
)
def test_halves_are_the_windows_cut_in_two(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    half: int,
    first: int,
    count: int,
    attention: str,
) -> None:
    windows = Windows(
        shards_of(tmp_path_factory.mktemp("s"), lengths), length=2 * half, seed=7, attention=attention
    )
    halves, whole = windows.halves(first, count), windows.batch(first // 2, count // 2 + 2)
    for name in ("inputs", "targets"):
        cut = getattr(whole, name).reshape(-1, half)[first % 2 :][:count]
        np.testing.assert_array_equal(getattr(halves, name), cut)
    assert halves.targets_count == (halves.targets != IGNORED).sum()
    if attention == "document":  # which counts from the beginning of the half
        np.testing.assert_array_equal(halves.segments[:, 0], 0)
        np.testing.assert_array_equal(halves.positions[:, 0], 0)


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [40] * 20)
    windows = Windows(shards, length=16, seed=1)
    epochs = [windows.batch(e * windows.per_epoch, windows.per_epoch) for e in range(16)]
    # Two epochs can have the same one of 16 phases, but not the same order.
    assert len({epoch.targets.tobytes() for epoch in epochs}) == 16
    assert len({frozenset(map(bytes, epoch.targets)) for epoch in epochs}) > 6
    other_seed = Windows(shards, length=16, seed=2).batch(0, windows.per_epoch)
    assert not np.array_equal(other_seed.targets, epochs[0].targets)
    assert_equal(windows.batch(0, windows.per_epoch), epochs[0])


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_documents, length=st.integers(1, 50), first=st.integers(0, 40))
def test_document_attention_sees_one_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, first: int
) -> None:
    """Within a segment a target depends on its own document and on the end token before it alone."""
    shards = shards_of(tmp_path_factory.mktemp("s"), lengths)
    batch = Windows(shards, length=length, seed=3, attention="document").batch(first, 6)
    owner = {
        int(token): int(shards.document_of(at)) for at, token in enumerate(shards.read(0, shards.tokens))
    }
    for row in range(6):
        for segment in range(batch.segments[row].max() + 1):
            here = batch.segments[row] == segment
            assert batch.positions[row, here].tolist() == list(range(here.sum()))
            inputs = batch.inputs[row, here]
            assert (inputs[1:] != END).all()
            targets = batch.targets[row, here]
            tokens = {*inputs.tolist(), *targets[targets != IGNORED].tolist()} - {END}
            assert len({owner[token] for token in tokens}) <= 1
    assert (batch.segments[:, 0] == 0).all()


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 1000))
def test_shuffled_is_a_permutation(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(size), size, keys(seed))), np.arange(size))


def test_shuffled_looks_random() -> None:
    """Over many keys each place goes everywhere equally often, and neighbours do not stay together."""
    for size in (3, 8, 13, 30):
        trials = 100 * size
        images = np.stack([shuffled(np.arange(size), size, keys(seed)) for seed in range(trials)])
        for place in (0, size // 2, size - 1):
            counts = np.bincount(images[:, place], minlength=size)
            # Chi-square with size - 1 degrees of freedom, six standard deviations.
            chi = ((counts - trials / size) ** 2 / (trials / size)).sum()
            assert chi < (size - 1) + 6 * np.sqrt(2 * (size - 1)) + 6
    size = 10_007
    image = shuffled(np.arange(size), size, keys(5))
    ranks = np.corrcoef(np.arange(size), image)[0, 1]
    neighbours = np.corrcoef(image[:-1], image[1:])[0, 1]
    assert abs(ranks) < 0.05
    assert abs(neighbours) < 0.05
    assert (np.abs(np.diff(image)) == 1).mean() < 0.002


def test_shuffled_needs_no_table() -> None:
    size = 10**13
    places = np.array([0, 1, 2, size - 1])
    images = shuffled(places, size, keys(1))
    assert len(set(images.tolist())) == 4
    assert (images >= 0).all()
    assert (images < size).all()


def test_no_tokens_or_no_length_is_refused(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [])
    with pytest.raises(InputError, match="no tokens"):
        Windows(shards, length=4, seed=0)
    assert list(sequential(shards, 4, 4)) == []
    for length, stride in ((4, 5), (4, 0)):
        with pytest.raises(InputError, match="stride"):
            list(sequential(shards, length, stride))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12),
    length=st.integers(1, 70),
    rows=st.integers(1, 5),
    data=st.data(),
)
def test_sequential_predicts_every_token_once_from_its_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, rows: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    shards = shards_of(tmp_path_factory.mktemp("s"), lengths)
    seen: dict[int, list[int]] = {number: [] for number in range(len(lengths))}
    for batch in sequential(shards, length, stride, rows=rows, begin=BEGIN):
        counted = batch.targets != IGNORED
        assert batch.targets_count == counted.sum()
        assert batch.inputs.shape[1] <= length
        assert batch.inputs.size <= rows * length
        for row, document in enumerate(batch.documents.tolist()):
            first, tokens = shards.documents[document, :2].tolist()
            ids = [BEGIN, *shards.read(first, first + tokens).tolist()]
            at = np.flatnonzero(counted[row])
            assert (np.diff(at) == 1).all()
            place = ids.index(batch.inputs[row, 0])
            end = at[-1] + 1
            assert batch.inputs[row, :end].tolist() == ids[place : place + end]
            assert batch.targets[row, at].tolist() == ids[place + 1 :][at[0] : end]
            # Of the context asked for, each target has as much as there is.
            assert place == 0 or at[0] == length - stride
            seen[document] += (place + at).tolist()
    assert {n: sorted(s) for n, s in seen.items()} == {n: list(range(k + 1)) for n, k in enumerate(lengths)}


def test_sequential_pads_little(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 120, 90).tolist()
    batches = list(sequential(shards_of(tmp_path, lengths), 128, 128, rows=4))
    cells = sum(batch.inputs.size for batch in batches)
    assert sum(batch.targets_count for batch in batches) > 0.75 * cells
