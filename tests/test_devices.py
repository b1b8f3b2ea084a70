"""One resolver of device names for simulation and training."""

import pytest
import torch

from giou_repro import devices


def test_auto_is_a_device_that_is_there():
    assert devices.resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named_with_the_remedy(name):
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used here \(.*\); use auto, cpu, cuda or cuda:1"):
        devices.resolve(name)
