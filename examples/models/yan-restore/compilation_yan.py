"""
Compiled forms of a model's functions: one for each shape and set of options, a bounded number of them, kept with the
model; and the shapes themselves, rounded up so that few are ever needed.
"""

import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F

from .canvas_yan import length_mask

MAX_COMPILED = 32
# Lengths are rounded up to multiples of this, and rows whose canvases round up to the same one are written together.
LENGTH_BUCKET = 16


def round_up(size: int, multiple: int, limit: int) -> int:
    """The next multiple, but no more than `limit` (which `size` must not exceed)."""
    return max(size, min(-(-size // multiple) * multiple, limit))


def next_power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def group_by_bucket(lengths: torch.LongTensor) -> list[torch.LongTensor]:
    """
    Rows that are written together, by their canvas (B,): short rows do not pay for long ones. One group where grouping
    would save less than a quarter of the positions.
    """
    whole = [torch.arange(len(lengths), device=lengths.device)]
    buckets = (-(-lengths // LENGTH_BUCKET)).tolist()
    groups: dict[int, list[int]] = {}
    for row, bucket in enumerate(buckets):
        groups.setdefault(bucket, []).append(row)
    positions = sum(len(rows) * bucket for bucket, rows in groups.items())
    if positions > 0.75 * len(buckets) * max(buckets):
        return whole
    return [torch.tensor(rows, device=lengths.device) for _, rows in sorted(groups.items())]


def pad_source(source: torch.Tensor, mask: torch.Tensor | None, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A source (B, L) or (B, L, d) and its mask (B, L) in the shape of their bucket: a power of two of rows, a multiple of
    `LENGTH_BUCKET` positions, but no more than `longest`.
    """
    rows, length = source.shape[:2]
    more_rows, more_positions = next_power_of_two(rows) - rows, round_up(length, LENGTH_BUCKET, longest) - length
    if mask is None:
        mask = torch.ones(rows, length, dtype=torch.long, device=source.device)
    mask = F.pad(mask.long(), (0, more_positions, 0, more_rows))
    # Rows that fill the batch up read one token; a row without any would have nothing to attend to.
    mask[rows:, 0] = 1
    trailing = (0, 0) * (source.dim() - 2)
    return F.pad(source, (*trailing, 0, more_positions, 0, more_rows)), mask


def pad_canvases(
    x_0: torch.Tensor, uniform: torch.Tensor, lengths: torch.LongTensor, canvases: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Noise (N, L, d) and uniform numbers (2, N, L) for `canvases` canvases, in the shape of their bucket, no longer than
    `longest`; and the mask of their positions.
    """
    more_canvases = canvases - len(x_0)
    more_positions = round_up(x_0.shape[1], LENGTH_BUCKET, longest) - x_0.shape[1]
    # A canvas that fills the batch up has one position to write.
    mask = length_mask(F.pad(lengths, (0, more_canvases), value=1), x_0.shape[1] + more_positions)
    return (
        F.pad(x_0, (0, 0, 0, more_positions, 0, more_canvases)),
        F.pad(uniform, (0, more_positions, 0, more_canvases)),
        mask,
    )


def default_compile_options(device: torch.device) -> dict:
    """One graph and static shapes; on CUDA the graph is captured, so that a call is a single launch."""
    return {
        "fullgraph": True,
        "dynamic": False,
        "mode": "reduce-overhead" if device.type == "cuda" else "default",
    }


class CompiledFunctions:
    """
    The compiled functions of one model, those used last. Each has guards of its own: when modules of the model are
    replaced (an adapter, another dtype), it is compiled again and never computes with what was there before.

    Args:
        owner: the model; only weakly held. A copy of the model starts with none.
        limit: how many are kept.
    """

    def __init__(self, owner: torch.nn.Module | None = None, limit: int = MAX_COMPILED):
        self.owner = weakref.ref(owner) if owner is not None else lambda: None
        self.limit = limit
        self._functions: OrderedDict[Hashable, Callable] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: torch.nn.Module) -> "CompiledFunctions":
        """Those of a model, made where there are none."""
        found = model.__dict__.get("_compiled_functions")
        # A shallow copy of a model shares its attributes, these among them.
        if found is None or found.owner() is not model:
            found = model.__dict__["_compiled_functions"] = cls(model)
        return found

    def __len__(self) -> int:
        return len(self._functions)

    def __deepcopy__(self, memo) -> "CompiledFunctions":
        return type(self)(limit=self.limit)

    def __reduce__(self):
        return type(self), (None, self.limit)

    def get(self, key: Hashable, function: Callable, options: dict) -> Callable:
        """
        The compiled form of `function` kept under `key`, compiled by `torch.compile` at its first call.

        Args:
            key: everything that tells this form from others: shapes, dtype, device, options.
            options: keyword arguments of `torch.compile`.
        """
        with self._lock:
            if key in self._functions:
                self._functions.move_to_end(key)
                return self._functions[key]
            compiled = self._functions[key] = _compile(function, options)
            while len(self._functions) > self.limit:
                self._functions.popitem(last=False)
            return compiled


def _compile(function: Callable, options: dict) -> Callable:
    def call(*args):
        return function(*args)

    # torch keeps compiled graphs with the code object: one of its own, so that no other shape or model counts against
    # its limit of recompilations, and all of it goes when this function goes.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    compiled = torch.compile(own, **options)
    captured = options.get("mode") in ("reduce-overhead", "max-autotune")

    def run(*args):
        if not captured or not torch.cuda.is_available():
            return compiled(*args)
        torch.compiler.cudagraph_mark_step_begin()
        # The next replay overwrites what this one returns.
        return tuple(x.clone() if torch.is_tensor(x) else x for x in compiled(*args))

    return run


def call_compiled(model: torch.nn.Module, name: str, arguments: tuple, options: dict, *, rest: tuple = ()) -> tuple:
    """
    A method of the model by its name, compiled for exactly these tensors' shapes.

    Args:
        arguments: tensors, or None.
        options: keyword arguments of `torch.compile`.
        rest: further arguments, which are not tensors and are part of what is compiled.
    """
    shapes = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in arguments)
    key = (name, shapes, rest, model.dtype, model.config._attn_implementation, repr(sorted(options.items())))
    return CompiledFunctions.of(model).get(key, getattr(model, name), options)(*arguments, *rest)
