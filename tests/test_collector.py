import gc

import pytest

from fedscale.collector import collector_paused


def test_the_collector_rests_within_the_block_and_works_after_it_whatever_happens():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled(), "the inner block leaves it as it was"
    assert gc.isenabled()
    with pytest.raises(ValueError), collector_paused():
        raise ValueError
    assert gc.isenabled()
