"""The convolutional network against the same written out in loops, in float64."""

import pytest
import torch

from luban.errors import InputError
from luban.models.text_cnn import TextCnn, TextCnnConfig

TEXT = [3, 7, 7, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_cnn_slides_every_filter_over_every_window(length: int) -> None:
    torch.manual_seed(0)
    model = (
        TextCnn(TextCnnConfig(vocab_size=9, outputs=2, width=4, filters=3, windows=(2, 3))).double().eval()
    )
    for layer in model.filters:
        torch.nn.init.normal_(layer.bias)
    words = [model.tokens.weight[token] for token in TEXT[:length]]
    found = []
    for window, layer in zip((2, 3), model.filters, strict=True):
        around = [torch.zeros(4, dtype=torch.float64)] * (window - 1)
        row = torch.stack([*around, *words, *around])  # (length + 2 window - 2, width)
        fits = [
            layer.bias + torch.einsum("fwk,kw->f", layer.weight, row[start : start + window])
            for start in range(length + window - 1)
        ]
        found.append(torch.stack(fits).relu().amax(0))
    expected = model.output(torch.cat(found))
    mask = torch.tensor([[True] * length + [False] * (5 - length)])
    torch.testing.assert_close(model(torch.tensor([TEXT]), mask)[0], expected)


def test_no_windows() -> None:
    with pytest.raises(InputError, match="windows"):
        TextCnnConfig(vocab_size=5, outputs=2, windows=())
