"""Counts the FLOPs of what is run, and the bytes that it moves at least."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION_ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_grouped_mm", "convolution")


class WorkCounter(TorchDispatchMode):
    """
    Counts what runs inside it.

        with WorkCounter() as counter:
            model(**batch).loss.backward()
        counter.flops, counter.bytes

    `flops` are those of matrix products, convolutions and attention, by torch's own formulas (and of attention on a
    CPU, which torch leaves out). `bytes` are the operands and results of these and of embedding look-ups: the traffic
    that no fusion avoids. Elementwise work, Mamba's scan among it, is not counted.

    Unlike torch's FlopCounterMode it puts no hooks on modules, which would break a forward pass that is partly without
    gradient.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::").split(".")[0]
        packet = function._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif name == ATTENTION_ON_CPU:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif name == f"{ATTENTION_ON_CPU}_backward":
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        if name == "embedding":
            self.bytes += 2 * out.numel() * out.element_size()
        elif name.startswith(PRODUCTS):
            tensors = [x for x in (*args, *(out if isinstance(out, tuple) else (out,))) if torch.is_tensor(x)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out
