"""Compiled forms of a model's functions: one for each shape and set of options, a bounded number of them, kept with the model."""

import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

# Shapes are rounded up before they get here, so that few are ever needed.
MAX_COMPILED = 32


def round_up(size: int, multiple: int, limit: int) -> int:
    """The next multiple, but no more than `limit` (which `size` must not exceed)."""
    return max(size, min(-(-size // multiple) * multiple, limit))


def next_power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def default_compile_options(device: torch.device) -> dict:
    """One graph and static shapes; on CUDA the graph is captured, so that a call is a single launch."""
    return {
        "fullgraph": True,
        "dynamic": False,
        "mode": "reduce-overhead" if device.type == "cuda" else "default",
    }


class CompiledFunctions:
    """
    The compiled functions of one model, those used last. Each has guards of its own: when modules of the model are replaced
    (an adapter, another dtype), it is compiled again and never computes with what was there before.

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

    # torch keeps compiled graphs with the code object: one of its own, so that no other shape or model counts against its
    # limit of recompilations, and all of it goes when this function goes.
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
