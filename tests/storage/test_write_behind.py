"""Writes in a thread: in their order, none after one that failed, and the error where it is waited for."""

import threading

import pytest

from pipeline.storage.write_behind import Writer


def test_what_is_written_behind_is_not_waited_for():
    go, done = threading.Event(), []
    writer = Writer(behind=True)
    writer(lambda: (go.wait(60), done.append(1)))
    writer(lambda: done.append(2))
    assert done == []
    go.set()
    writer.wait()
    assert done == [1, 2]


def test_after_a_failure_nothing_is_written_until_it_is_known():
    done = []

    def fail():
        raise OSError(28, "No space left on device")

    writer = Writer(behind=True)
    writer(fail)
    writer(lambda: done.append("relies on it"))
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    assert done == []
    writer(lambda: done.append("the next save"))
    writer.wait()
    assert done == ["the next save"]


def test_without_a_gpu_it_is_written_at_once():
    done = []
    Writer(behind=False)(lambda: done.append(threading.current_thread()))
    assert done == [threading.main_thread()]
