"""
The selective scan of Mamba (arXiv 2312.00752, equations 2a and 2b with the simplified discretisation of B), four ways.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t

All ways take and give the same: `u`, `delta` (B, L, G, D), `A` (G, D, N), `B`, `C` (B, L, G, N) -> y (B, L, G, D) in
float32. G groups are independent scans side by side (the two directions of a bidirectional mixer), D channels, N states
each. States are float32 whatever the dtype of the inputs.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.utils import logging

logger = logging.get_logger(__name__)

SCANS = ("auto", "sequential", "chunked", "doubling", "kernel")
# Time steps whose states are held at once. On a CPU a chunk stays in cache; elsewhere it bounds memory, and its
# blocks are scanned side by side, so that 16 + 16 launches do the work of 256.
CPU_CHUNK, CPU_BLOCKS = 32, 1
DEVICE_CHUNK, DEVICE_BLOCKS = 256, 16
# Longest sequence of an exported graph.
EXPORTED_LENGTH = 2048


def sequential_scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """The recurrence as it is written, differentiated by autograd: the reference. Memory grows with L * D * N."""
    u, delta, A, B, C = (tensor.float() for tensor in (u, delta, A, B, C))
    decay = (delta.unsqueeze(-1) * A).exp()
    inputs = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    state, outputs = torch.zeros_like(inputs[:, 0]), []
    # Unbound once: indexing in the loop would give every step a gradient as large as the sequence.
    for decay_t, input_t, C_t in zip(decay.unbind(1), inputs.unbind(1), C.unbind(1)):
        state = decay_t * state + input_t
        outputs.append((state * C_t.unsqueeze(-2)).sum(-1))
    return torch.stack(outputs, 1)


def linear_recurrence_(
    decay: torch.Tensor, inputs: torch.Tensor, state: torch.Tensor, num_blocks: int = 1
) -> torch.Tensor:
    """
    `h_t = decay_t * h_{t-1} + inputs_t` along the first axis, in place: `inputs` (T, ...) becomes h.

    Args:
        state: h before the first step (...).
        num_blocks: blocks scanned side by side, each then given what the blocks before it carry: about
            `T / num_blocks + num_blocks` launches instead of T, for twice the arithmetic. Only products of decays
            (at most 1) occur, never their inverses, so nothing overflows.

    Returns:
        The last h, a view of `inputs`.
    """
    steps = len(inputs) // num_blocks
    if num_blocks == 1 or steps < 2:
        for decay_t, h_t in zip(decay.unbind(0), inputs.unbind(0)):
            h_t.addcmul_(decay_t, state)
            state = h_t
        return state
    even = steps * num_blocks
    h = inputs[:even].unflatten(0, (num_blocks, steps))
    decays = decay[:even].unflatten(0, (num_blocks, steps))
    carried = decays.clone()
    for step in range(1, steps):
        h[:, step].addcmul_(decays[:, step], h[:, step - 1])
        carried[:, step].mul_(carried[:, step - 1])
    for block in range(num_blocks):
        h[block].addcmul_(carried[block], state)
        state = h[block, -1]
    return linear_recurrence_(decay[even:], inputs[even:], state) if even < len(inputs) else state


class ChunkedScan(torch.autograd.Function):
    """
    The scan chunk by chunk. Only the state before each chunk is kept; the backward pass computes the others again, so
    memory grows with L * D * N / chunk. Not differentiable twice.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, chunk_length: int, num_blocks: int):
        ctx.save_for_backward(u, delta, A, B, C)
        ctx.chunk_length, ctx.num_blocks = chunk_length, num_blocks
        with torch.autocast(u.device.type, enabled=False):
            state = torch.zeros(len(u), *A.shape, device=u.device)
            y, ctx.states = [], []
            A = A.float()
            for start in range(0, u.shape[1], chunk_length):
                ctx.states.append(state)
                u_c, delta_c, B_c, C_c = ChunkedScan._chunk(start, chunk_length, u, delta, B, C)
                decay = (delta_c.unsqueeze(-1) * A).exp_()
                h = (delta_c * u_c).unsqueeze(-1) * B_c.unsqueeze(-2)
                # A view would keep the whole chunk alive.
                state = linear_recurrence_(decay, h, state, num_blocks).clone()
                y.append(torch.matmul(h, C_c.unsqueeze(-1)).squeeze(-1))
            return torch.cat(y).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C = ctx.saved_tensors
        dtypes, A = [tensor.dtype for tensor in (u, delta, A, B, C)], A.float()
        grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(tensor) for tensor in (u, delta, B, C))
        grad_A, ahead = torch.zeros_like(A), torch.zeros_like(ctx.states[0])
        with torch.autocast(u.device.type, enabled=False):
            for index in reversed(range(len(ctx.states))):
                start = index * ctx.chunk_length
                u_c, delta_c, B_c, C_c, grad_y_c = ChunkedScan._chunk(start, ctx.chunk_length, u, delta, B, C, grad_y)
                decay = (delta_c.unsqueeze(-1) * A).exp_()
                inputs = delta_c * u_c
                h = inputs.unsqueeze(-1) * B_c.unsqueeze(-2)
                linear_recurrence_(decay, h, ctx.states[index], ctx.num_blocks)
                # g_t = dL/dh_t = C_t dL/dy_t + decay_{t+1} g_{t+1}, where `ahead` holds the last chunk's decay * g.
                grad_h = grad_y_c.unsqueeze(-1) * C_c.unsqueeze(-2)
                grad_h[-1].add_(ahead)
                if ctx.num_blocks == 1:
                    decays, grads = decay.unbind(0), grad_h.unbind(0)
                    for t in reversed(range(len(grads) - 1)):
                        grads[t].addcmul_(decays[t + 1], grads[t + 1])
                else:
                    backwards = grad_h.flip(0)
                    following = torch.cat([torch.zeros_like(decay[:1]), decay.flip(0)[:-1]])
                    linear_recurrence_(following, backwards, torch.zeros_like(ahead), ctx.num_blocks)
                    grad_h = backwards.flip(0)
                ahead = decay[0] * grad_h[0]
                part = slice(start, start + ctx.chunk_length)
                grad_inputs = torch.matmul(grad_h, B_c.unsqueeze(-1)).squeeze(-1)
                grad_B[:, part] = torch.matmul(inputs.unsqueeze(-2), grad_h).squeeze(-2).transpose(0, 1)
                grad_C[:, part] = torch.matmul(grad_y_c.unsqueeze(-2), h).squeeze(-2).transpose(0, 1)
                # d/d(delta A) of the decayed state: g_t * decay_t * h_{t-1}.
                grad_exponent = decay.mul_(grad_h)
                grad_exponent[0].mul_(ctx.states[index])
                grad_exponent[1:].mul_(h[:-1])
                grad_A += (grad_exponent * delta_c.unsqueeze(-1)).sum((0, 1))
                grad_delta[:, part] = (grad_inputs * u_c + (grad_exponent * A).sum(-1)).transpose(0, 1)
                grad_u[:, part] = (grad_inputs * delta_c).transpose(0, 1)
        grads = (grad_u, grad_delta, grad_A, grad_B, grad_C)
        return *(grad.to(dtype) for grad, dtype in zip(grads, dtypes)), None, None

    @staticmethod
    def _chunk(start: int, length: int, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Time-major float32 copies (T, B, ...) of a stretch of time."""
        return [tensor[:, start : start + length].transpose(0, 1).float() for tensor in tensors]


def chunked_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_length: int | None = None,
    num_blocks: int | None = None,
) -> torch.Tensor:
    """The scan in plain torch for any device; `chunk_length` steps at once, `num_blocks` of them side by side."""
    cpu = u.device.type == "cpu"
    chunk_length = chunk_length or (CPU_CHUNK if cpu else DEVICE_CHUNK)
    num_blocks = num_blocks or (CPU_BLOCKS if cpu else DEVICE_BLOCKS)
    return ChunkedScan.apply(u, delta, A, B, C, chunk_length, num_blocks)


def doubling_scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """
    The scan as a prefix sum: after round k every state has seen the 2^k inputs up to its own (Hillis and Steele, 1986).
    A few large operations and no loop over time, so that a compiler sees little; log2(L) times the arithmetic, all
    states in memory. In an exported graph, whose length is not known, there are as many rounds as for
    `EXPORTED_LENGTH`.
    """
    u, delta, A, B, C = (tensor.float() for tensor in (u, delta, A, B, C))
    decay = (delta.unsqueeze(-1) * A).exp()
    h = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    rounds = (EXPORTED_LENGTH - 1).bit_length() if torch.compiler.is_exporting() else (u.shape[1] - 1).bit_length()
    for round_ in range(rounds):
        offset = 1 << round_
        # Earlier states, zeros before the first.
        h = h + decay * F.pad(h, (0, 0, 0, 0, 0, 0, offset, 0))[:, : h.shape[1]]
        decay = decay * F.pad(decay, (0, 0, 0, 0, 0, 0, offset, 0))[:, : h.shape[1]]
    return (h * C.unsqueeze(-2)).sum(-1)


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package is there; looked up once, for every layer asks at every pass."""
    return importlib.util.find_spec(package) is not None


def kernel_is_available() -> bool:
    """Whether `mamba-ssm` (the extra `mamba`) is installed. It serves CUDA only."""
    return is_installed("mamba_ssm")


def kernel_scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> torch.Tensor:
    """The CUDA kernel of `mamba-ssm`. It takes (B, G * D, L), and B and C as (B, G, N, L), in one dtype."""
    # An import statement would make these packages a requirement of every model loaded as remote code.
    kernel = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    channels_first = [tensor.flatten(2).transpose(1, 2).contiguous() for tensor in (u, delta.to(u.dtype))]
    matrices = [tensor.to(u.dtype).permute(0, 2, 3, 1).contiguous() for tensor in (B, C)]
    y = kernel(*channels_first, A.float().flatten(0, 1).contiguous(), *matrices)
    return y.transpose(1, 2).reshape(u.shape).float()


def depthwise_convolution(x: torch.Tensor, weight: torch.Tensor, start: torch.Tensor, before: int) -> torch.Tensor:
    """
    `start` plus a convolution of each channel with its own filter, zeros beyond the ends.

    Args:
        x: (B, L, channels).
        weight: (channels, width).
        start: what is added to: the bias (channels,), or anything that broadcasts to x.
        before: how many positions before its own a filter sees; the others come after it.
    """
    width, length = weight.shape[1], x.shape[1]
    if torch.compiler.is_exporting():
        # Runtimes of graphs have a kernel for images and pay for every node: in ONNX Runtime a third of the time.
        image = F.pad(x.transpose(1, 2).unsqueeze(2), (before, width - 1 - before))
        return start + F.conv2d(image, weight[:, None, None], groups=len(weight)).squeeze(2).transpose(1, 2)
    padded = F.pad(x, (0, 0, before, width - 1 - before))
    # Shifted products: channels stay last, and on a CPU they take half the time of a grouped convolution.
    for offset in range(width):
        start = torch.addcmul(start, padded[:, offset : offset + length], weight[:, offset])
    return start


def causal_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, use_kernel: bool = False
) -> torch.Tensor:
    """
    Depthwise convolution over the present and the past, then SiLU.

    Args:
        x: (B, L, channels).
        weight: (channels, width), the last column for the present.
        bias: (channels,).
        use_kernel: take that of `causal-conv1d`, where it is installed.
    """
    if use_kernel and is_installed("causal_conv1d"):
        kernel = importlib.import_module("causal_conv1d").causal_conv1d_fn
        y = kernel(x.transpose(1, 2).contiguous(), weight, bias, activation="silu")
        return y.transpose(1, 2)
    return F.silu(depthwise_convolution(x, weight, bias, before=weight.shape[1] - 1))


def choose_scan(name: str, device: torch.device) -> str:
    """
    What `config.mamba_scan` means on a device: "auto" is the kernel on CUDA where it is installed, else "chunked"; and
    "doubling" in a graph that is compiled or exported.

    Raises:
        ValueError: for "kernel" where it cannot run.
    """
    if name not in SCANS:
        raise ValueError(f"mamba_scan={name!r} must be one of {SCANS}")
    usable = device.type == "cuda" and kernel_is_available()
    if name == "kernel" and not usable:
        raise ValueError(
            f"mamba_scan='kernel' needs a CUDA device (got {device.type}) and mamba-ssm "
            f"({'installed' if kernel_is_available() else 'not installed'}): pip install mamba-ssm causal-conv1d; "
            "'auto' and 'chunked' run anywhere"
        )
    if name == "auto" and torch.compiler.is_compiling():
        return "doubling"
    if name != "auto":
        return name
    if device.type == "cuda" and not usable:
        logger.warning_once("mamba-ssm is not installed: Mamba mixers use the plain torch scan on this CUDA device")
    return "kernel" if usable else "chunked"


IMPLEMENTATIONS: dict[str, Callable] = {
    "sequential": sequential_scan,
    "chunked": chunked_scan,
    "doubling": doubling_scan,
    "kernel": kernel_scan,
}
