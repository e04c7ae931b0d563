"""How often several processes agree on stopping and saving, and what they agree on."""

from types import SimpleNamespace

import pytest
import torch

from engine.training import consensus
from engine.training.consensus import ProcessConsensus


class Processes:
    """Stands for trainer and strategy of the first of two processes. `other` is the request of the second process."""

    def __init__(self, world_size: int = 2) -> None:
        self.world_size, self.strategy, self.root_device = world_size, self, "cpu"
        self.other, self.questions = torch.tensor([0, 0, -(10**9)]), 0

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        self.questions += 1
        return torch.stack([values, self.other])


@pytest.fixture
def clock(monkeypatch):
    """A clock that does not advance by itself."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(consensus.time, "monotonic", lambda: clock.now)
    return clock


def trained(both: Processes, clock: SimpleNamespace, seconds: float, batches: int = 1000) -> ProcessConsensus:
    agreed = ProcessConsensus(timeout_minutes=1)
    agreed.connect(both)
    for batch in range(batches):
        if not agreed.can_skip(batch):
            agreed.agree_at_batch(batch, 0, False)
        clock.now += seconds
    return agreed


@pytest.mark.parametrize(("seconds", "questions"), [(0.001, 63), (0.01, 100), (0.03, 334), (0.5, 1000)])
def test_processes_agree_ten_times_a_second_or_every_sixteenth_batch(clock, seconds, questions):
    both = Processes()
    trained(both, clock, seconds)
    assert both.questions == pytest.approx(questions, rel=0.02)


def test_a_resumed_run_agrees_at_once_and_in_the_next_batch(clock):
    """The time per batch is unknown: the batches so far were trained by an earlier process."""
    both, clock.now = Processes(), 20.0
    agreed = ProcessConsensus(timeout_minutes=1)
    agreed.connect(both)
    assert not agreed.can_skip(500_000)
    agreed.agree_at_batch(500_000, 0, False)
    assert not agreed.can_skip(500_001)


def test_a_single_process_needs_no_agreement(clock):
    alone = Processes(world_size=1)
    agreed = trained(alone, clock, 0.001)
    assert alone.questions == 0
    assert agreed.agree_at_batch(5, 15, True) == (15, True)
    assert agreed.agree_on_signal(15) == 15


def test_a_request_of_another_process_is_followed(clock):
    both = Processes()
    agreed = trained(both, clock, 0.001)
    both.other = torch.tensor([15, 1, -(10**9)])
    assert agreed.agree_at_batch(2000, 0, False) == (15, True)
    assert agreed.agree_on_signal(0) == 15


def test_the_earliest_proposal_counts(clock):
    """Clocks differ. If processes agreed at different batches, they would wait forever."""
    both = Processes()
    agreed = trained(both, clock, 0.001)
    both.other = torch.tensor([0, 0, -2007])
    agreed.agree_at_batch(2000, 0, False)
    assert agreed.can_skip(2006)
    assert not agreed.can_skip(2007)
