"""Made-up sources: new, of known fields, and never one of the held-out texts."""

import pytest

from modeling_yan.data.sources import cross_fields, drop_fields

SOURCES = ["name[A], food[x], area[p]", "name[B], area[q]", "name[C], food[y], price[1], near[z]"]


def test_dropping_keeps_the_first_field_and_the_order():
    made = drop_fields(SOURCES, 5, ", ", 0, {"name[A], food[x]"})
    assert made == drop_fields(SOURCES, 5, ", ", 0, {"name[A], food[x]"})
    assert len(set(made)) == len(made) > 1
    for source in made:
        assert source not in {*SOURCES, "name[A], food[x]"}
        first, *rest = source.split(", ")
        parent = next(s for s in SOURCES if s.startswith(first)).split(", ")
        assert rest == [f for f in parent if f in rest]
        assert 0 < len(rest) < len(parent) - 1


def test_crossing_brings_values_together_that_never_met():
    held_out = {"name[B], food[x], area[q]"}
    made = cross_fields(SOURCES, 7, ", ", 0, held_out)
    assert made == cross_fields(SOURCES, 7, ", ", 0, held_out)
    assert len(set(made)) == len(made) == 7
    kinds = ["name", "food", "area", "price", "near"]
    for source in made:
        assert source not in {*SOURCES, *held_out}
        fields = source.split(", ")
        assert all(any(f in s.split(", ") for s in SOURCES) for f in fields)
        names = [f.split("[")[0] for f in fields]
        assert len(set(names)) == len(names)
        assert names[0] == "name"
        assert set(names) <= set(kinds)
    assert any("name[A]" in s and "near[z]" in s for s in made)


def test_few_sources_give_few_and_texts_without_fields_none():
    assert drop_fields(["name[A], food[x]"], 5, ", ", 0, set()) == []
    assert cross_fields(["name[A], food[x]"], 5, ", ", 0, set()) == []
    with pytest.raises(ValueError, match="no fields like"):
        cross_fields(["a plain text", "another one"], 5, ", ", 0, set())
