"""Settings saved by any release, and the documentation of fields."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.foundation.config import field_docs, from_saved, identity_of, load_config, saved_identity


@dataclass(frozen=True)
class OldInner:
    """A config with a renamed field, an upgraded field and a field marked EXECUTION."""

    RENAMED: ClassVar[dict[str, str]] = {"phi": "base"}

    base: float = 0.5
    """Was called phi."""
    unit: Literal["per step", "per image"] = "per step"
    """Was a number, 0 or 1."""
    kernel: str = field(default="fast", metadata=EXECUTION)
    """How it is computed."""

    @staticmethod
    def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
        unit = settings.get("unit")
        return {**settings, "unit": ("per step", "per image")[unit]} if isinstance(unit, int) else settings


@dataclass(frozen=True)
class OldConfig:
    """A config that contains other configs in every possible way."""

    out: str = field(metadata=EXECUTION)
    """Where the result goes."""
    inner: OldInner = field(default_factory=OldInner)
    """One."""
    maybe: OldInner | None = None
    """One or none."""
    named: dict[str, OldInner] = field(default_factory=dict)
    """Several by name."""
    listed: tuple[OldInner, ...] = ()
    """Several in order."""
    pair: tuple[OldInner, int] = (OldInner(), 1)
    """One with a number."""


SAVED = {"phi": 0.25, "unit": 1, "kernel": "slow"}
CURRENT = {"base": 0.25, "unit": "per image"}
EVERYWHERE = {"inner": SAVED, "maybe": SAVED, "named": {"a": SAVED}, "listed": [SAVED, SAVED], "pair": [SAVED, 3]}


def test_settings_saved_by_an_old_release_are_read_in_their_current_form_at_any_depth():
    expected = {
        "inner": CURRENT,
        "maybe": CURRENT,
        "named": {"a": CURRENT},
        "listed": [CURRENT] * 2,
        "pair": [CURRENT, 3],
    }
    assert saved_identity(OldConfig, {**EVERYWHERE, "out": "somewhere"}) == expected
    now = OldInner(0.25, "per image", "other")
    config = OldConfig("elsewhere", now, now, {"a": now}, (now, now), (now, 3))
    assert identity_of(config) == expected


def test_missing_settings_are_the_defaults_and_execution_fields_belong_to_no_identity():
    default = {"base": 0.5, "unit": "per step"}
    expected = {"inner": default, "maybe": None, "named": {}, "listed": [], "pair": [default, 1]}
    assert saved_identity(OldConfig, {}) == identity_of(OldConfig("o")) == expected
    assert saved_identity(OldConfig, {"inner": {"kernel": "slow"}, "maybe": None}) == expected


def test_from_saved_leaves_execution_to_the_defaults():
    assert from_saved(OldInner, SAVED) == OldInner(0.25, "per image", "fast")


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"newer": 1}, "newer"),
        ({"inner": {"newer": 1}}, "inner.newer"),
        ({"named": {"a": {"newer": 1}}}, "named.a.newer"),
        ({"listed": [{}, {"newer": 1}]}, "listed.1.newer"),
    ],
)
def test_from_saved_refuses_what_only_a_newer_release_can_have_written(tree, key):
    """Otherwise the model would be built without the newer setting."""
    with pytest.raises(ValueError, match=f"the key {key}, which this release does not know; update rdpm"):
        from_saved(OldConfig, {"out": "o", **tree})


@pytest.mark.parametrize("key", ["inner.phi", "maybe.phi", "named.a.phi"])
def test_an_old_key_in_a_config_is_refused_with_its_new_name(tmp_path, key):
    with pytest.raises(ValueError) as refused:
        load_config(OldConfig, "made", None, ["out=a", f"{key}=0.5"])
    assert str(refused.value) == f"unknown config key {key}; it is now called {key.removesuffix('phi')}base"


def test_an_unknown_key_in_a_list_is_refused_by_its_position():
    with pytest.raises(ValueError, match=r"unknown config key listed\.1\.bose; did you mean listed\.1\.base\?"):
        load_config(OldConfig, "made", None, ["out=a", "listed=[{}, {bose: 1}]"])


def test_documentation_is_the_string_below_a_field_of_the_class_or_its_base():
    @dataclass(frozen=True)
    class Derived(OldInner):
        """A class docstring is the documentation of no field."""

        unit: str = "own"
        """Two lines of
        documentation."""
        bare: int = 0

    assert field_docs(Derived) == {
        "base": "Was called phi.",
        "unit": "Two lines of documentation.",
        "kernel": "How it is computed.",
    }
