"""Airbench's network: what the paper counts and says, and each layer against another way to compute it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from luban.errors import InputError
from luban.models.airbench import WHITENING_EPS, Airbench, AirbenchConfig, ShiftNorm

SMALL = AirbenchConfig(classes=5, widths=(8, 12, 16))


def test_the_default_costs_what_the_paper_counts() -> None:
    """0.36 PFLOP: 9.9 epochs of 50,000 pictures, forward and twice that backward."""
    with torch.device("meta"):
        model = Airbench(AirbenchConfig(classes=10))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 32, 32))
    assert round(counter.get_total_flops() / 1e6) == 236
    assert round(3 * counter.get_total_flops() * 9.9 * 50_000 / 1e15, 2) == 0.35


def test_whitened_patches_are_uncorrelated_and_of_variance_one() -> None:
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(300, 3, 12, 12), 3, stride=1)  # neighbours alike, as in pictures
    images = images / images.std()
    model = Airbench(SMALL)
    model.whiten(images)
    patches = F.conv2d(images, model.whitening).movedim(1, 3).reshape(-1, 24).double()
    covariance = patches.T @ patches / len(patches)
    values = torch.from_numpy(np.linalg.eigvalsh(_patch_covariance(images)))[:12].flip(0)
    # Each direction has variance one, less what the epsilon takes; its negative is as far on the other side.
    expected = torch.diag(values / (values + WHITENING_EPS))
    both = torch.cat([torch.cat([expected, -expected], 1), torch.cat([-expected, expected], 1)])
    torch.testing.assert_close(covariance, both, atol=1e-4, rtol=0)


def _patch_covariance(images: torch.Tensor) -> np.ndarray:
    rows = F.unfold(images.double(), 2).transpose(1, 2).reshape(-1, 12).numpy()
    return rows.T @ rows / len(rows)


def test_unwhitened_the_first_layer_gives_each_pixel_and_its_negative() -> None:
    images = torch.randn(2, 3, 6, 6)
    model = Airbench(SMALL)
    out = F.conv2d(images, model.whitening)
    torch.testing.assert_close(out[:, :12], F.unfold(images, 2).view(2, 12, 5, 5))
    torch.testing.assert_close(out[:, 12:], -out[:, :12])


@pytest.mark.parametrize(
    "images", [torch.zeros(4, 1, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(4, 3, 1, 8)]
)
def test_whitening_refuses_other_shapes(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="pictures must be"):
        Airbench(SMALL).whiten(images)


def test_whitening_refuses_numbers_that_are_none() -> None:
    with pytest.raises(InputError, match="finite"):
        Airbench(SMALL).whiten(torch.full((4, 3, 8, 8), torch.nan))


def test_convolutions_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    group = Airbench(SMALL).groups[1]
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(group.convolutions[0](x)[:, :8], x)
    y = torch.randn(2, 12, 6, 6)
    torch.testing.assert_close(group.convolutions[1](y), y)


def test_the_shift_norm_is_batch_norm_with_scale_one() -> None:
    torch.manual_seed(0)
    ours, theirs = ShiftNorm(4, 1e-12, 0.4).double(), nn.BatchNorm2d(4, 1e-12, 0.4).double()
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict() | {"weight": torch.ones(4)})
    results = []
    for norm in (ours, theirs):
        x = torch.linspace(-3, 3, 2 * 4 * 9, dtype=torch.float64).sin().view(2, 4, 3, 3).requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        results.append((y, x.grad, norm.bias.grad, norm.running_mean, norm.running_var, norm.eval()(x)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_the_network_is_what_the_paper_writes(convolutions: int) -> None:
    """The forward pass again, from the names of the weights, in the words of the paper's appendix."""
    torch.manual_seed(0)
    config = AirbenchConfig(classes=5, widths=(8, 12, 16), convolutions=convolutions)
    model = Airbench(config).double().eval()
    for module in model.modules():
        if isinstance(module, ShiftNorm):
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    state = model.state_dict()
    x = images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    firsts: list[torch.Tensor] = []  # what the residual connection of each group starts from
    x = F.gelu(F.conv2d(x, state["whitening"], state["whitening_bias"]))
    assert x.shape[2:] == (31, 31)
    for group in range(3):
        for number in range(convolutions):
            x = F.conv2d(x, state[f"groups.{group}.convolutions.{number}.weight"], padding=1)
            if number == 0:
                x = nn.MaxPool2d(2)(x)
            norm = {
                n: state[f"groups.{group}.norms.{number}.{n}"]
                for n in ("running_mean", "running_var", "bias")
            }
            x = (x - norm["running_mean"][:, None, None]) / norm["running_var"].sqrt()[:, None, None]
            x = x + norm["bias"][:, None, None]
            if number == 2:
                x = x + firsts[group]
            x = F.gelu(x)
            if number == 0:
                firsts.append(x)
    logits = nn.MaxPool2d(3)(x).flatten(1) @ state["classifier.weight"].T / 9
    torch.testing.assert_close(model(images), logits)


def test_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Airbench(SMALL)
    images = torch.randn(4, 3, 32, 32)
    plain = model(images)
    model.load_state_dict(model.state_dict())
    again = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-4)


def test_a_configuration_comes_back_from_json_and_is_checked() -> None:
    assert AirbenchConfig(classes=5, widths=[8, 12, 16]) == SMALL  # type: ignore[arg-type]
    with pytest.raises(InputError, match="three numbers"):
        AirbenchConfig(classes=5, widths=(8, 12))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        AirbenchConfig(classes=0)
