"""Networks of the kinds that are exported, each with inputs of any size to try it on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.bag import Bag, BagConfig
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.encoder import Encoder, EncoderConfig
from luban.models.mlp import Mlp, MlpConfig
from luban.models.recurrent import Recurrent, RecurrentConfig
from luban.models.resnet import ResNet, ResNetConfig

VOCABULARY = 20


class Lstm(nn.Module):
    """nn.LSTM in two directions; of each row the state at its last token, and all states."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 6)
        self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.lstm(self.tokens(ids))  # (batch, length, 10)
        last = mask.sum(1) - 1  # (batch,)
        at_end = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        return at_end, states.masked_fill(~mask[..., None].expand_as(states), 0.0)


class GruStep(nn.Module):
    """One step of a decoder that attends to a memory: logits, and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 6)
        self.cell = nn.GRUCell(6, 8)
        self.output = nn.Linear(16, VOCABULARY)

    def forward(
        self, last_ids: Tensor, hidden: Tensor, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self.cell(self.tokens(last_ids), hidden)  # (batch, 8)
        scores = torch.einsum("bw,blw->bl", hidden, memory).masked_fill(~mask, -torch.inf)
        context = torch.einsum("bl,blw->bw", scores.softmax(-1), memory)
        return self.output(torch.cat((hidden, context), dim=-1)), hidden


@dataclass(frozen=True)
class Case:
    """A network: how to build it, its inputs for (batch, length), outputs, and axes that may change."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Tensor]]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]


def text(batch: int, length: int) -> dict[str, Tensor]:
    """Rows of tokens and padding, the last one full."""
    lengths = torch.randint(1, length + 1, (batch,))
    lengths[-1] = length
    return {
        "ids": torch.randint(0, VOCABULARY, (batch, length)),
        "mask": torch.arange(length) < lengths[:, None],
    }


def packed(batch: int, length: int) -> dict[str, Tensor]:
    """Rows of two documents each."""
    return {
        "ids": torch.randint(0, VOCABULARY, (batch, length)),
        "segments": (torch.arange(length) >= length // 2).long().expand(batch, -1),
    }


def attending(batch: int, length: int) -> dict[str, Tensor]:
    read = text(batch, length)
    return {
        "last_ids": read["ids"][:, 0].clone(),
        "hidden": torch.randn(batch, 8),
        "memory": torch.randn(batch, length, 8),
        "mask": read["mask"],
    }


def numbers(batch: int, length: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 4)}


def pictures(batch: int, length: int) -> dict[str, Tensor]:
    return {"images": torch.randn(batch, 3, 16, 16)}


def randomised(module: nn.Module) -> nn.Module:
    """Fill every weight and every running statistic, so that no part of the network is at a neutral value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module


_BOTH = {0: "batch", 1: "length"}
_TEXT = {"ids": _BOTH, "mask": _BOTH}
CASES = {
    "mlp": Case(lambda: Mlp(MlpConfig(4, 3, (8,), "gelu")), numbers, ("logits",), {"x": {0: "batch"}}),
    "resnet": Case(
        lambda: ResNet(ResNetConfig(3, stem_width=4, widths=(4, 8), depths=(1, 1))),
        pictures,
        ("logits",),
        {"images": {0: "batch"}},
    ),
    "bag": Case(lambda: Bag(BagConfig(VOCABULARY, 3, 8, bigram_buckets=30)), text, ("logits",), _TEXT),
    "lstm": Case(Lstm, text, ("last", "states"), _TEXT),
    "gru": Case(
        lambda: Recurrent(
            RecurrentConfig(VOCABULARY, 3, 6, 5, cell="gru", bidirectional=False, per_token=True)
        ),
        text,
        ("logits",),
        _TEXT,
    ),
    "encoder": Case(
        lambda: Encoder(EncoderConfig(VOCABULARY, 3, layers=1, width=8, heads=2, max_length=16)),
        text,
        ("logits",),
        _TEXT,
    ),
    "decoder": Case(
        lambda: Decoder(DecoderConfig(VOCABULARY, layers=1, width=16, heads=4, kv_heads=2, max_length=16)),
        packed,
        ("logits",),
        {"ids": _BOTH, "segments": _BOTH},
    ),
    "gru step": Case(
        GruStep,
        attending,
        ("logits", "next"),
        {"last_ids": {0: "batch"}, "hidden": {0: "batch"}, "memory": _BOTH, "mask": _BOTH},
    ),
}


class Branching(nn.Module):
    """Does one thing to up to three rows and another to more."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.shape[0] <= 3 else -x
