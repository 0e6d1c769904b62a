"""The ledger against a model that is too simple to be wrong, and the audit against sabotage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve.cache import BlockLedger, BlockState
from mserve.core import BLOCK_TOKENS, BlockName, EngineError, next_name, root_name


def chain(length: int, salt: str = "") -> list[BlockName]:
    names = [root_name(salt)]
    for number in range(length):
        names.append(next_name(names[-1], [number] * BLOCK_TOKENS))
    return names[1:]


def sealed(ledger: BlockLedger, names: list[BlockName]) -> tuple[int, ...]:
    """Claim and seal one block per name, and keep reading them."""
    table = ledger.claim(len(names))
    assert table is not None
    for block_id, name in zip(table, names, strict=True):
        ledger.seal(block_id, name)
    return table


def test_a_block_lives_from_free_to_idle_and_back() -> None:
    ledger = BlockLedger(2)
    (block,) = ledger.claim(1) or ()
    assert ledger.state(block) is BlockState.CLAIMED
    name = chain(1)[0]
    assert ledger.match([name]) == []  # not before it is sealed
    ledger.seal(block, name)
    assert ledger.state(block) is BlockState.SEALED
    ledger.share(ledger.match([name]))
    ledger.release([block])
    assert ledger.state(block) is BlockState.SEALED  # one reader is left
    ledger.release([block])
    assert ledger.state(block) is BlockState.IDLE
    assert ledger.num_claimable == 2
    ledger.share(ledger.match([name]))
    assert (ledger.state(block), ledger.num_claimable) == (BlockState.SEALED, 1)
    ledger.release([block])
    assert len(ledger.claim(2) or ()) == 2
    assert ledger.match([name]) == []


def test_claiming_is_all_or_nothing() -> None:
    ledger = BlockLedger(3)
    assert ledger.claim(4) is None
    assert ledger.num_claimable == 3
    assert ledger.claim(0) == ()


def test_free_blocks_go_before_idle_ones_and_tails_before_heads() -> None:
    ledger = BlockLedger(6)
    old, new = chain(2, "old"), chain(2, "new")
    ledger.release(sealed(ledger, old))
    ledger.release(sealed(ledger, new))
    ledger.claim(2)
    assert (len(ledger.match(old)), len(ledger.match(new))) == (2, 2)
    ledger.claim(1)
    assert (len(ledger.match(old)), len(ledger.match(new))) == (1, 2)
    ledger.claim(2)
    assert (len(ledger.match(old)), len(ledger.match(new))) == (0, 1)


def test_use_makes_a_block_recent() -> None:
    ledger = BlockLedger(2)
    first, second = chain(1, "first"), chain(1, "second")
    ledger.release(sealed(ledger, first))
    ledger.release(sealed(ledger, second))
    again = ledger.match(first)
    ledger.share(again)
    ledger.release(again)
    ledger.claim(1)
    assert (len(ledger.match(first)), len(ledger.match(second))) == (1, 0)


def test_a_second_block_of_one_name_stays_unnamed() -> None:
    ledger = BlockLedger(2)
    names = chain(1)
    original, copy = sealed(ledger, names), sealed(ledger, names)
    assert ledger.match(names) == list(original)
    ledger.release(copy)
    assert ledger.state(copy[0]) is BlockState.FREE
    ledger.release(original)
    assert ledger.state(original[0]) is BlockState.IDLE


def test_a_withdrawn_block_is_found_no_more_and_ends_free() -> None:
    ledger = BlockLedger(3)
    names = chain(2)
    table = sealed(ledger, names)
    ledger.share(table)
    ledger.withdraw(table)
    assert ledger.match(names) == []
    ledger.audit([table, table])
    ledger.release(table)
    ledger.release(table)
    assert [ledger.state(block_id) for block_id in table] == [BlockState.FREE] * 2


def test_a_hole_ends_a_match() -> None:
    ledger = BlockLedger(3)
    names = chain(3)
    table = sealed(ledger, [names[0], names[2]])
    assert ledger.match(names) == [table[0]]


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda ledger, block: ledger.release([block, block]), "released once too often"),
        (lambda ledger, block: ledger.share([block]), "cannot be shared"),
        (lambda ledger, block: [ledger.seal(block, n) for n in chain(2)], "cannot be sealed"),
    ],
)
def test_misuse_is_refused(misuse: Callable[[BlockLedger, int], None], message: str) -> None:
    ledger = BlockLedger(1)
    (block,) = ledger.claim(1) or ()
    with pytest.raises(EngineError, match=message):
        misuse(ledger, block)


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (lambda ledger: ledger._free.append(ledger._free[0]), "free list twice"),
        (lambda ledger: ledger._free.pop(), "free list disagrees"),
        (lambda ledger: ledger._idle.popitem(), "idle list disagrees"),
        (lambda ledger: setattr(ledger._blocks[0], "readers", 2), "counts 2 readers"),
        (lambda ledger: setattr(ledger._blocks[1], "name", None), "name that it does not have"),
        (lambda ledger: ledger._index.remove(ledger._blocks[1].name), "not listed"),
        (lambda ledger: setattr(ledger._blocks[0], "state", BlockState.FREE), "free list"),
        (lambda ledger: setattr(ledger._blocks[3], "state", BlockState.CLAIMED), "free list"),
        (lambda ledger: setattr(ledger._blocks[0], "name", b"x"), "not listed"),
    ],
)
def test_the_audit_finds_sabotage(sabotage: Callable[[BlockLedger], None], message: str) -> None:
    ledger = BlockLedger(4)
    claimed = ledger.claim(1) or ()
    read = sealed(ledger, chain(1, "read"))
    ledger.release(sealed(ledger, chain(1, "idle")))
    tables = [claimed, read]
    ledger.audit(tables)
    sabotage(ledger)
    with pytest.raises(EngineError, match=message):
        ledger.audit(tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "counts 1 readers, 0 tables"),
        ([(0, 1), (1,)], "counts 1 readers, 2 tables"),
        ([(0, 0), (1,)], "same block twice"),
    ],
)
def test_the_audit_finds_wrong_tables(tables: list[tuple[int, ...]], message: str) -> None:
    ledger = BlockLedger(4)
    ledger.claim(2)
    with pytest.raises(EngineError, match=message):
        ledger.audit(tables)


class Model:
    """The ledger's contract in the plainest words: who holds what, and an order of idleness."""

    def __init__(self, num_blocks: int) -> None:
        self.ledger = BlockLedger(num_blocks)
        self.num_blocks = num_blocks
        self.tables: list[list[int]] = []
        self.sealed: list[int] = []  # per table: how many leading blocks are sealed
        self.owners: dict[BlockName, int] = {}  # findable names
        self.idle: list[int] = []  # least recently used first

    def held(self) -> set[int]:
        return {block_id for table in self.tables for block_id in table}

    def claim(self, names: list[BlockName], count: int) -> None:
        """A request enters with whatever prefix is there, and ``count`` fresh blocks."""
        cached = self.ledger.match(names)
        assert cached == [self.owners[name] for name in names[: len(cached)]]
        assert len(cached) == len(names) or names[len(cached)] not in self.owners
        self.ledger.share(cached)
        self.idle = [block_id for block_id in self.idle if block_id not in cached]
        held = self.held() | set(cached)
        fresh = self.ledger.claim(count)
        num_free = self.num_blocks - len(held) - len(self.idle)
        if fresh is None:
            assert count > num_free + len(self.idle)
            fresh = ()
        assert not held & set(fresh), "a block in use was handed out"
        evicted = self.idle[: max(0, len(fresh) - num_free)]
        assert set(evicted) <= set(fresh), "not the least recently used was evicted"
        assert not set(self.idle[len(evicted) :]) & set(fresh)
        self.idle = self.idle[len(evicted) :]
        self.owners = {n: b for n, b in self.owners.items() if b not in evicted}
        self.tables.append([*cached, *fresh])
        self.sealed.append(len(cached))

    def seal(self, which: int, names: list[BlockName]) -> None:
        if not self.tables:
            return
        which %= len(self.tables)
        number = self.sealed[which]
        if number < min(len(self.tables[which]), len(names)):
            block_id = self.tables[which][number]
            self.ledger.seal(block_id, names[number])
            self.owners.setdefault(names[number], block_id)
            self.sealed[which] += 1

    def release(self, which: int) -> None:
        if not self.tables:
            return
        which %= len(self.tables)
        table = self.tables.pop(which)
        self.sealed.pop(which)
        self.ledger.release(table)
        held = self.held()
        for block_id in reversed(table):
            if block_id not in held and block_id in self.owners.values():
                self.idle.append(block_id)

    def check(self) -> None:
        self.ledger.audit(self.tables)
        assert self.ledger.num_claimable == self.num_blocks - len(self.held())


NAMES = [chain(5, salt) for salt in ("a", "b", "c")]
moves = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 2), st.integers(0, 4)),
    st.tuples(st.just("seal"), st.integers(0, 5), st.integers(0, 2)),
    st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
)


@settings(
    max_examples=1500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.integers(1, 10), st.lists(moves, max_size=40))
def test_any_history_agrees_with_the_model(
    num_blocks: int, history: list[tuple[str, int, int]]
) -> None:
    model = Model(num_blocks)
    for move, first, second in history:
        match move:
            case "claim":
                model.claim(NAMES[first], second)
            case "seal":
                model.seal(first, NAMES[second])
            case "release":
                model.release(first)
        model.check()
