"""The equations of an allocator's figures: true ones pass, and any that is off is named with a proof."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smartpool.testing import Block, Contract
from smartpool.testing.accounting import Accounts

CONTRACT = Contract(factory=list, rounding=16)
sizes = st.lists(st.integers(0, 1000), max_size=8)


def blocks_of(live):
    return [
        Block(f"b{n}", n, None, address=4096 * (n + 1), nbytes=nbytes, stream=None, stamped=False)
        for n, nbytes in enumerate(live)
    ]


def figures_of(live, peak, idle):
    counted = sum(map(CONTRACT.counted, live))
    return {
        "live_bytes": counted,
        "live_blocks": len(live),
        "free_bytes": idle,
        "reserved_bytes": counted + idle,
        "peak_live_bytes": max(peak, counted),
        "peak_reserved_bytes": 1 << 20,
    }


@given(st.lists(st.tuples(sizes, st.integers(0, 500)), max_size=6))
def test_true_figures_agree_at_every_step(steps):
    accounts, peak = Accounts(CONTRACT), 0
    for live, idle in steps:
        figures = figures_of(live, peak, idle)
        peak = figures["peak_live_bytes"]
        assert accounts.mismatch(figures, blocks_of(live)) is None


@given(sizes, st.integers(0, 500), st.sampled_from(sorted(figures_of([], 0, 0))), st.integers(1, 9))
def test_a_figure_that_is_off_is_found_and_the_proof_fails_on_it(live, idle, name, off):
    figures = figures_of(live, 0, idle)
    figures[name] = figures["reserved_bytes"] - 1 if name == "peak_reserved_bytes" else figures[name] + off
    detail, proof = Accounts(CONTRACT).mismatch(figures, blocks_of(live))
    assert detail
    assert eval(proof, {"figures": figures}) is False


@given(sizes)
def test_a_table_of_live_blocks_is_compared_entry_by_entry(live):
    blocks = blocks_of(live)
    table = {block.address: block.nbytes for block in blocks}
    assert Accounts(CONTRACT).mismatch({"live_blocks": table}, blocks) is None
    assert Accounts(CONTRACT).mismatch({"live_blocks": table | {1: 1}}, blocks) is not None
