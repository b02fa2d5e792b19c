"""A language model of 150,000 words: neither training nor evaluation nor writing on ever holds all logits."""

import contextlib
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luban.data.shards import ShardWriter, TokenShards
from luban.models.generation import generate
from luban.tasks.language_model import LanguageModel
from luban.tasks.text_evaluation import measure
from luban.text_recipe import LanguageModelRecipe
from luban.training.gradients import Gradients
from luban.training.parallel import Alone

VOCABULARY, LENGTH, ROWS = 150_000, 256, 8
ALL_LOGITS = ROWS * LENGTH * VOCABULARY


class Held(TorchDispatchMode):
    """Follows every storage that an operation gives: the largest, in elements, and the most held at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.most, self._now = 0, 0, 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.largest = max(self.largest, size // tensor.element_size())
        if not self._users[place]:
            self._now += size
            self.most = max(self.most, self._now)
        self._users[place] += 1
        weakref.finalize(tensor, self._let_go, place, size)

    def _let_go(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self._now -= size


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("large")
    ids = np.random.default_rng(0).integers(1, VOCABULARY, ROWS * LENGTH - 1)
    for split in ("train", "validation"):
        writer = ShardWriter(folder, split, vocab_size=VOCABULARY, end_id=0)
        writer.add(ids, bytes=len(ids), characters=len(ids))
        writer.close()
    recipe = LanguageModelRecipe.model_validate(
        {
            "task": "language-model",
            "data": {"source": "drawn", "length": LENGTH},
            "model": {"layers": 1, "width": 8, "heads": 1},
            "train": {"steps": 1, "batch": ROWS, "learning_rate": 1e-3},
        }
    )
    data = SimpleNamespace(
        tokenizer=SimpleNamespace(vocab_size=VOCABULARY, end_id=0),
        train=TokenShards(folder, "train"),
        validation=TokenShards(folder, "validation"),
    )
    return LanguageModel(recipe, data)  # type: ignore[arg-type]


def forward(dtype: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_holds_a_part_of_the_logits(learner: LanguageModel, dtype: str) -> None:
    own = Gradients(learner, Alone(), seed=0, forward=lambda: forward(dtype))
    with Held() as held:
        computed = own.add(0, own.batches(0, None))
        own.combine()
    learner.model.zero_grad()
    assert computed.tokens == ROWS * LENGTH
    assert held.largest <= ALL_LOGITS // 4
    assert held.most < 4 * ALL_LOGITS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_holds_a_part_of_the_logits(learner: LanguageModel, dtype: str) -> None:
    with Held() as held, forward(dtype), torch.no_grad():
        measured = measure(learner.model, learner.data.validation, 0, length=LENGTH, stride=LENGTH)
    assert measured.counts()["tokens"] == ROWS * LENGTH - 1
    assert held.largest <= ALL_LOGITS // 4
    assert held.most < 4 * ALL_LOGITS


def test_writing_on_computes_the_logits_of_the_last_token_alone(learner: LanguageModel) -> None:
    prompts = np.random.default_rng(1).integers(1, VOCABULARY, (ROWS, LENGTH)).tolist()
    with Held() as held:
        generate(learner.model, prompts, max_tokens=2, temperature=0.8, top_p=0.95)
    assert held.largest <= max(ROWS * VOCABULARY, learner.model.output_weight.numel())
    assert held.most < ALL_LOGITS


def test_the_measure_sees_a_loss_that_holds_them() -> None:
    """What would be a mistake is noticed: logits kept in parts are all held in the end."""
    states, weight = torch.zeros(64, 2), torch.zeros(1000, 2)
    with Held() as whole:
        states @ weight.T
    with Held() as parts:
        kept = [part @ weight.T for part in states.split(8)]
    assert whole.largest == 64 * 1000 and parts.largest == 8 * 1000
    assert len(kept) == 8 and parts.most >= 4 * 64 * 1000
