"""A fork waits for the steps that it must not come in the middle of."""

from __future__ import annotations

import threading

from storage_backend.forks import no_fork
from storage_backend.testing.topics.processes import in_child


def take(lock: threading.Lock) -> None:
    assert lock.acquire(timeout=20), "the lock of another thread's step is held in the child for ever"


def test_child_inherits_no_lock_of_a_step() -> None:
    lock, inside, enough = threading.Lock(), threading.Event(), threading.Event()

    def step() -> None:
        with no_fork(), lock:
            inside.set()
            enough.wait(0.2)

    thread = threading.Thread(target=step)
    thread.start()
    assert inside.wait(60)
    in_child(lambda: take(lock))
    thread.join()


def test_steps_pass_side_by_side_and_within_one_another() -> None:
    meeting = threading.Barrier(2, timeout=60)

    def step() -> None:
        with no_fork(), no_fork():
            meeting.wait()

    thread = threading.Thread(target=step)
    thread.start()
    step()
    thread.join()


def test_fork_in_the_middle_of_a_step_of_its_own_thread() -> None:
    def child() -> None:
        with no_fork():
            pass
        in_child(lambda: None)

    with no_fork():
        in_child(child)
    in_child(child)
    with no_fork():
        pass
