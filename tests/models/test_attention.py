"""The two forms of attention are one: what a GPU trains with gives the loss and the slopes of what a CPU trains with.

torch's fused kernel has a form for CPUs too, which training there leaves aside; here it takes the place of the
products, so that what runs on a GPU is run, and compiled, where there is none.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from luban.models import attention
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.gpt2 import GPT2, GPT2Config
from luban.models.loss import cross_entropy_sum
from luban.training.compiling import Compiling, regions

ROWS, LENGTH, VOCABULARY = 2, 24, 20


def network(layout: str) -> GPT2 | Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "layers": 2, "width": 32, "heads": 4}
    if layout == "gpt2":
        return GPT2(GPT2Config(**shape, max_length=LENGTH, init_std=0.2))
    return Decoder(DecoderConfig(**shape, layout="qwen3", kv_heads=2, qk_norm=True, init_std=0.2))


def slopes(model: GPT2 | Decoder, segments: bool, dtype: torch.dtype) -> list[Tensor]:
    """The loss of one batch, and its gradient for every parameter."""
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    apart: dict[str, Tensor] = {}
    if segments:  # documents of 5 and 19 tokens, and of 11 and 13
        numbers = (torch.arange(LENGTH) >= torch.tensor([[5], [11]])).long()
        places = torch.arange(LENGTH) - numbers * torch.tensor([[5], [11]])
        apart = {"segments": numbers, "positions": places}
    narrow = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with narrow:
        hidden = model.hidden(ids[:, :-1], **apart)
        loss, count = cross_entropy_sum(hidden, model.output_weight, ids[:, 1:])
    (loss / count).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(list(model.parameters()))
    model.zero_grad()
    return [loss.detach() / count, *found]


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[list[torch.Size]]:
    """Take torch's kernel also for training on a CPU; yields what it is asked for in eager mode."""
    asked: list[torch.Size] = []
    own = torch.nn.functional.scaled_dot_product_attention

    def kernel(queries: Tensor, *others: Any, **options: Any) -> Tensor:
        asked.append(queries.shape)
        return own(queries, *others, **options)

    def products(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the products were asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "by_products", lambda queries: False)
        patch.setattr(attention, "attention_by_products", products)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
        yield asked


def assert_alike(layout: str, segments: bool, dtype: torch.dtype, by_kernel: list[Tensor]) -> None:
    """In float32 they are one; in bfloat16 the kernel is as near the truth as the products are."""
    truth = slopes(network(layout), segments, torch.float32)
    by_products = slopes(network(layout), segments, dtype)
    for one, other, true in zip(by_kernel, by_products, truth, strict=True):
        off, theirs = (float((x - true).norm() / (true.norm() + 1e-6)) for x in (one, other))
        assert off <= (1e-5 if dtype == torch.float32 else max(2 * theirs, 0.01))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("layout", ["gpt2", "qwen3"])
def test_the_kernel_trains_as_the_products_do(layout: str, segments: bool, dtype: torch.dtype) -> None:
    with as_on_a_gpu() as asked:
        by_kernel = slopes(network(layout), segments, dtype)
    assert asked == [(ROWS, 4, LENGTH, 8)] * 2
    assert_alike(layout, segments, dtype, by_kernel)


@pytest.mark.parametrize(
    ("layout", "segments", "dtype"), [("gpt2", True, torch.float32), ("qwen3", True, torch.bfloat16)]
)
def test_it_does_so_where_its_blocks_are_traced(layout: str, segments: bool, dtype: torch.dtype) -> None:
    model = network(layout)
    torch._dynamo.reset()
    with as_on_a_gpu():
        for block in regions(model):
            block.compile(backend="aot_eager", fullgraph=True)
        by_kernel = slopes(model, segments, dtype)
    assert_alike(layout, segments, dtype, by_kernel)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
def test_it_does_so_where_its_blocks_are_compiled() -> None:
    model, told = network("qwen3"), list[str]()
    torch._dynamo.reset()
    with as_on_a_gpu():
        Compiling(model, wanted=True, tell=told.append).prepare(lambda: slopes(model, False, torch.bfloat16))
        by_kernel = slopes(model, False, torch.bfloat16)
    assert told == []
    assert_alike("qwen3", False, torch.bfloat16, by_kernel)
