"""FLOPs and bytes of known operations."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from modeling_yan.evaluation.roofline import count_work


def test_work_is_counted():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_work(lambda: a @ b) == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (15 + 35 + 21)}
    layer = torch.nn.Linear(5, 7)
    with torch.no_grad():
        assert count_work(lambda: layer(a)) == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (7 + 15 + 35 + 21)}


def test_attention_and_its_gradient_are_counted():
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    out = scaled_dot_product_attention(q, k, v)
    work = count_work(lambda: scaled_dot_product_attention(q, k, v))
    assert work["flops"] == 2 * 2 * 3 * 5 * 7 * (8 + 8)
    assert count_work(lambda: out.sum().backward())["flops"] == 2.5 * work["flops"]
