"""A decoder by kernels is the decoder: losses, gradients and draws; and where kernels do not serve, torch does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from luban.kernels import Library
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.fused import kernels_for, using
from luban.models.loss import cross_entropy_sum

SHAPE: dict[str, Any] = {
    "vocab_size": 31,
    "layers": 2,
    "width": 64,
    "heads": 2,
    "mlp_width": 88,
    "max_length": 48,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"layout": "qwen3", "qk_norm": True},
    "llama": {"layout": "llama", "tied": False},
    "grouped": {"layout": "qwen3", "qk_norm": True, "heads": 4, "head_dim": 32, "kv_heads": 2},
    "qwen2, which has biases": {"layout": "qwen2", "qkv_bias": True},
    "a window that reaches": {"layout": "mistral", "sliding_window": 5},
    "heads too small": {"layout": "llama", "heads": 4},
    "an odd width": {"layout": "llama", "width": 72, "heads": 3, "head_dim": 32},
    "a narrow gate": {"layout": "llama", "mlp_width": 8},
    "dropout": {"layout": "qwen3", "qk_norm": True, "dropout": 0.3},
}


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{**SHAPE, **changes}))
    with torch.no_grad():  # norms that scale, biases that add
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def trained(
    model: nn.Module, library: Library | None, dtype: torch.dtype = torch.float32, **reading: Any
) -> list[Tensor]:
    """Return the loss and every gradient of a step."""
    ids = torch.randint(31, (3, 41), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with using(library), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.hidden(ids[:, :-1], **reading)
        loss, count = cross_entropy_sum(hidden, model.output_weight, ids[:, 1:])
    (loss / count).backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_torch(name: str, library: Library) -> None:
    model = decoder(**CONFIGS[name])
    expected, found = trained(model, None), trained(model, library)
    assert len(expected) == len(found) == 1 + len(list(model.parameters()))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["qwen3", "llama", "grouped"])
def test_in_bfloat16_gradients_are_as_near_the_exact_ones_as_torchs(name: str, library: Library) -> None:
    model = decoder(**CONFIGS[name])
    exact, theirs, ours = (
        torch.cat([x.flatten().double() for x in trained(model, *how)[1:]])
        for how in ((None,), (None, torch.bfloat16), (library, torch.bfloat16))
    )
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_length_of_several_blocks(
    dtype: torch.dtype, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries in three blocks, whose probabilities are kept or computed again."""
    monkeypatch.setattr("luban.models.attention_products.QUERIES", 16)
    model = decoder(**CONFIGS["grouped"])
    expected, kept = trained(model, None, dtype), trained(model, library, dtype)
    monkeypatch.setattr("luban.models.attention_products.KEPT_BYTES", 0)
    again = trained(model, library, dtype)
    for one, other, third in zip(expected, kept, again, strict=True):
        assert torch.equal(other, third)
        assert (other - one).norm() <= (1e-5 if dtype == torch.float32 else 0.05) * one.norm()


def test_frozen_matrices_get_no_gradient_and_cost_no_product(library: Library) -> None:
    model = decoder(**CONFIGS["qwen3"])
    first = model.model.layers[0]
    frozen = (
        first.self_attn.q_proj,
        first.self_attn.k_proj,
        first.self_attn.v_proj,
        first.mlp.gate_proj,
        first.mlp.up_proj,
    )
    whole = Products.counted(lambda: trained(model, library))
    for module in frozen:
        module.weight.requires_grad_(False)
    less = Products.counted(lambda: trained(model, library))
    assert whole - less == 2  # one for three matrices that lie side by side, one for two
    assert len(trained(model, library)) == 1 + len(list(model.parameters())) - len(frozen)


class Products(TorchDispatchMode):
    """Counts torch's operations, and of them the products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.all += 1
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))

    @classmethod
    def counted(cls, call: Callable[[], object], *, everything: bool = False) -> int:
        with cls() as counting:
            call()
        return counting.all if everything else counting.products


def test_a_step_asks_for_far_fewer_operations(library: Library) -> None:
    model = decoder(**CONFIGS["qwen3"])
    with_torch = Products.counted(lambda: trained(model, None, torch.bfloat16), everything=True)
    with_kernels = Products.counted(lambda: trained(model, library, torch.bfloat16), everything=True)
    assert with_kernels < 0.7 * with_torch


class Scaled(nn.Linear):
    """A layer that somebody put in the place of a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def test_a_layer_in_the_place_of_a_matrix_is_left_to_itself(library: Library) -> None:
    model = decoder(**CONFIGS["qwen3"])
    for block in model.model.layers:
        for owner, name in ((block.self_attn, "v_proj"), (block.mlp, "gate_proj")):
            matrix = getattr(owner, name)
            other = Scaled(matrix.in_features, matrix.out_features, bias=False)
            other.weight = matrix.weight
            setattr(owner, name, other)
    for one, other in zip(trained(model, None), trained(model, library), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-6)


def test_packed_documents_go_by_torch(library: Library) -> None:
    model = decoder(**CONFIGS["qwen3"])
    reading = {
        "segments": torch.tensor([[0] * 25 + [1] * 15] * 3),
        "positions": torch.tensor([[*range(25), *range(15)]] * 3),
    }
    expected, found = trained(model, None, **reading), trained(model, library, **reading)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-6)


def test_what_does_not_train_is_torchs_to_the_last_bit(library: Library) -> None:
    model, ids = decoder(**CONFIGS["qwen3"]), torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids)
        with using(library):
            assert torch.equal(model(ids), expected)


def test_a_library_is_used_within_its_block_alone(library: Library) -> None:
    x = torch.ones(2, 32, requires_grad=True)
    assert kernels_for(x) is None
    with pytest.raises(ZeroDivisionError), using(library):
        assert kernels_for(x) is library and kernels_for(x.detach()) is None
        with using(None):
            assert kernels_for(x) is None
        assert kernels_for(x) is library
        raise ZeroDivisionError
    assert kernels_for(x) is None


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("qwen3", True),
        ("grouped", True),
        ("qwen2, which has biases", False),
        ("a window that reaches", False),
        ("heads too small", False),
        ("an odd width", False),
    ],
)
def test_a_decoder_says_whether_all_of_its_blocks_take_kernels(name: str, takes: bool) -> None:
    assert decoder(**CONFIGS[name]).takes_kernels is takes
