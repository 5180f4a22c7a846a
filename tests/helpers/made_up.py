"""What hypothesis makes up for tests of readers: names, types, shapes, values as JSON and pickles have them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from baize_engine.checkpoint.dtypes import ITEMSIZE

# however slow the machine is
at_leisure = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
few = settings(at_leisure, max_examples=100, derandomize=True)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
dtypes = st.sampled_from(sorted(ITEMSIZE))
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=20,
)
