"""Pictures as stored come to the network as torchvision's recipe says: divided by 255, less the mean, by the spread."""

import pytest
import torch
from torch import nn

from luban.models.normalised import Normalised

MEAN, SPREAD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_each_channel_is_scaled_by_its_own_mean_and_spread(kind: torch.dtype) -> None:
    pictures = torch.randint(256, (2, 5, 4, 3), generator=torch.Generator().manual_seed(0)).to(kind)
    expected = pictures.permute(0, 3, 1, 2).double() / 255
    for channel in range(3):
        expected[:, channel] = (expected[:, channel] - MEAN[channel]) / SPREAD[channel]
    model = Normalised(nn.Identity(), MEAN, SPREAD)
    torch.testing.assert_close(model(pictures), expected.float())
    torch.testing.assert_close(model.prepared(pictures), expected.float())


def test_statistics_of_the_pictures_themselves_leave_mean_zero_and_spread_one() -> None:
    pictures = torch.randint(
        256, (16, 8, 8, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    scaled = pictures.double() / 255
    model = Normalised(nn.Identity(), scaled.mean((0, 1, 2)).tolist(), scaled.std((0, 1, 2)).tolist())
    out = model(pictures)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)


def test_the_scale_is_kept_with_the_weights() -> None:
    model = Normalised(nn.Conv2d(3, 2, 1), MEAN, SPREAD)
    other = Normalised(nn.Conv2d(3, 2, 1), [0.0] * 3, [1.0] * 3)
    other.load_state_dict(model.state_dict())
    picture = torch.full((1, 2, 2, 3), 200, dtype=torch.uint8)
    assert torch.equal(other(picture), model(picture))


def test_the_network_sees_channels_last_in_memory() -> None:
    prepared = Normalised(nn.Identity(), MEAN, SPREAD).prepared(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    assert prepared.is_contiguous(memory_format=torch.channels_last)
