"""Work over the device's rates: how near a computation comes to what the device could do."""

import torch

from modeling_yan.evaluation.roofline import measure_device, roofline_seconds


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic():
    rates = {"flops_per_second": 10.0, "bytes_per_second": 100.0}
    assert roofline_seconds({"flops": 20, "bytes": 100}, rates) == 2.0
    assert roofline_seconds({"flops": 20, "bytes": 500}, rates) == 5.0
    measured = measure_device(torch.device("cpu"), torch.float32, seconds=0.01)
    assert all(rate > 1e8 for rate in measured.values())
