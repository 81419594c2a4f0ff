"""
More sources for a teacher to answer, made of those there are: texts of fields such as "name[Aromi], food[Italian]".
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence


def _collect(make: Callable[[], str | None], count: int, known: set[str]) -> list[str]:
    """Up to `count` distinct results of `make` that are not known; fewer where it finds no more."""
    known, made = set(known), []
    for _ in range(20 * count):
        if len(made) == count:
            break
        source = make()
        if source is not None and source not in known:
            known.add(source)
            made.append(source)
    return made


def drop_fields(sources: Sequence[str], count: int, separator: str, seed: int, held_out: set[str]) -> list[str]:
    """
    `count` new sources, each a training source less one or more of its fields after the first; none repeats a training
    source or one of `held_out`. Fewer come back when there are not that many.
    """
    generator = random.Random(seed)

    def make() -> str | None:
        first, *rest = generator.choice(sources).split(separator)
        if len(rest) < 2:
            return None
        kept = [f for f in rest if generator.random() > 0.3]
        return separator.join([first, *kept]) if kept else None

    return _collect(make, count, set(sources) | held_out)


def cross_fields(sources: Sequence[str], count: int, separator: str, seed: int, held_out: set[str]) -> list[str]:
    """
    `count` new sources, each with the fields of two training sources: of a kind that both have, one at random; in the
    order that the kinds usually have. They hold values side by side that never met, and more of them than most sources
    do. A field's kind is what stands before its first "[", ":" or "=". None repeats a training source or one of
    `held_out`.

    Raises:
        ValueError: if the fields have no kinds.
    """
    generator = random.Random(seed)
    split = [{re.split(r"[\[:=]", f, maxsplit=1)[0]: f for f in source.split(separator)} for source in sources]
    if all(kind == text for fields in split for kind, text in fields.items()):
        raise ValueError(
            f"the sources have no fields like kind[value], kind: value or kind=value, separated by {separator!r}"
        )
    places = defaultdict(list)
    for fields in split:
        for place, kind in enumerate(fields):
            places[kind].append(place)
    order = {kind: sum(found) / len(found) for kind, found in places.items()}

    def make() -> str:
        one, other = generator.choice(split), generator.choice(split)
        both = {
            kind: generator.choice([fields for fields in (one, other) if kind in fields])[kind] for kind in one | other
        }
        return separator.join(both[kind] for kind in sorted(both, key=order.__getitem__))

    return _collect(make, count, set(sources) | held_out)
