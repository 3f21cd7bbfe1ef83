"""Local and global pools of a stream's frames."""

import numpy as np
import pytest
from gaussian_avatar import sampling
from gaussian_avatar.config import Online
from gaussian_avatar.sampling import Frame, Pools
from scipy import stats


def pools_after(n, seed=0, **settings):
    pools = Pools(Online(**settings), np.random.default_rng(seed))
    for i in range(n):
        sampling.add(pools, Frame(i, str(i), None, None, None))
    return pools


def test_pools_hold_the_newest_and_a_few_of_the_others():
    pools = pools_after(500, local_pool=30, global_pool=100)
    assert [frame.index for frame in pools.local] == list(range(470, 500))
    kept = [frame.index for frame in pools.reservoir]
    assert len(kept) == len(set(kept)) == 100 and max(kept) < 470
    assert (len(pools), pools.arrived) == (130, 500)
    small = pools_after(120, local_pool=30, global_pool=100)  # nothing is lost before the reservoir is full
    assert sorted(frame.index for frame in [*small.reservoir, *small.local]) == list(range(120))


def test_every_older_frame_is_kept_with_the_same_probability():
    counts = np.zeros(80)
    for seed in range(400):
        for frame in pools_after(90, seed, local_pool=10, global_pool=20).reservoir:
            counts[frame.index] += 1
    assert counts.sum() == 400 * 20
    assert stats.chisquare(counts).pvalue > 1e-3


def test_newer_frames_of_the_local_pool_are_drawn_more_often():
    pools = pools_after(20, local_focus=2.0)
    drawn = np.array([sampling.draw(pools, 1)[0].index for _ in range(4000)])
    weights = np.exp(2.0 * np.arange(1, 21) / 20)
    assert stats.chisquare(np.bincount(drawn, minlength=20), 4000 * weights / weights.sum()).pvalue > 1e-3


def test_the_global_share_grows_to_its_limit():
    shares = [sampling.global_share(pools_after(n, local_pool=150)) for n in (100, 151, 200, 300, 500, 2000)]
    assert shares == pytest.approx([0, 1 / 151, 50 / 200, 0.5, 0.7, 0.7])
    pools = pools_after(2000, local_pool=150)
    oldest_local = pools.local[0].index
    batches = [sampling.draw(pools, 10) for _ in range(400)]
    older = np.mean([[frame.index < oldest_local for frame in batch] for batch in batches])
    assert older == pytest.approx(0.7, abs=0.04)


def test_batches_have_different_frames_and_as_many_as_there_are():
    assert sorted(frame.index for frame in sampling.draw(pools_after(4), 10)) == [0, 1, 2, 3]
    pools = pools_after(40, local_pool=12, global_pool=9)
    for _ in range(50):
        batch = [frame.index for frame in sampling.draw(pools, 10)]
        assert len(set(batch)) == len(batch) == 10


def test_forced_pools():
    def drawn(**settings):
        pools = pools_after(60, local_pool=12, global_pool=9, **settings)
        return pools, [[frame.index for frame in sampling.draw(pools, 6)] for _ in range(30)]

    pools, batches = drawn(force_opt_current=True)
    assert all(batch[0] == 59 and len(set(batch)) == 6 for batch in batches)
    pools, batches = drawn(force_local=True)
    assert min(map(min, batches)) >= pools.local[0].index
    pools, batches = drawn(force_global=True)
    assert set().union(*batches) == {frame.index for frame in pools.reservoir}
    assert len(sampling.draw(pools_after(5, force_global=True), 3)) == 3  # there is no older frame yet
