"""Names find blocks, and different beginnings, salts and models never share one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.cache import PrefixIndex
from mserve.core import BLOCK_TOKENS, BlockName, next_name, root_name


def name_of(blocks: tuple[int, ...], salt: str, model_id: str) -> BlockName:
    name = root_name(salt, model_id)
    for token in blocks:
        name = next_name(name, [token] * BLOCK_TOKENS)
    return name


keys = st.tuples(
    st.lists(st.integers(0, 2), max_size=4).map(tuple),
    st.sampled_from(["", "salt"]),
    st.sampled_from(["", "model"]),
)


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(keys, max_size=30))
def test_a_name_stands_for_everything_before_it(all_keys: list) -> None:
    by_name = {name_of(*key): key for key in all_keys}
    assert len(by_name) == len(set(all_keys))
    assert all(by_name[name_of(*key)] == key for key in all_keys)


def test_the_first_block_of_a_name_keeps_it() -> None:
    index = PrefixIndex()
    name = root_name()
    assert index.add(name, 3)
    assert not index.add(name, 4)
    assert index.add(name, 3)
    assert index.find(name) == 3
    index.remove(name)
    assert index.find(name) is None
    assert len(index) == 0
