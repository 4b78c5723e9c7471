"""The thread that reads batches ahead."""

import threading
from contextlib import closing

import pytest
import torch

from kdnb.data.stream import AHEAD, stream

CPU = torch.device("cpu")
PLANS = [{"index": torch.tensor([i])} for i in range(10)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_results_come_in_order_and_two_are_read_ahead():
    seen = []
    with closing(stream(lambda plan: seen.append(plan) or plan, PLANS, CPU)) as results:
        for i, result in enumerate(results):
            assert result["index"].item() == i and len(seen) <= i + 1 + AHEAD
    assert len(seen) == 10


def test_the_next_batch_is_read_while_the_loop_computes():
    second = threading.Event()

    def read(plan):
        if plan is PLANS[1]:
            second.set()
        return plan

    with closing(stream(read, PLANS, CPU)) as results:
        next(results)
        assert second.wait(10)


def test_an_error_reaches_the_loop_and_ends_the_thread():
    def read(plan):
        if plan is PLANS[4]:
            raise OSError("the disk is gone")
        return plan

    results = []
    with pytest.raises(OSError, match="the disk is gone"):
        for result in stream(read, PLANS, CPU):
            results.append(result)
    assert len(results) == 4


def test_a_loop_that_is_left_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        for _ in stream(lambda plan: plan, PLANS, CPU):
            raise KeyboardInterrupt
