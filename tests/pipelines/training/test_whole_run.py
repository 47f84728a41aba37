"""The share of a whole run that is done."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from pipelines.config.schema import PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.progress import Reporter
from pipelines.training.train import train_model
from pipelines.training.whole_run import LABEL, WholeRun, expected_costs

CONFIG = TrainConfig(
    phases=(PhaseConfig("head", "head", 2, 6e-3), PhaseConfig("top", "top", 1, 1e-3)), views=1, sanity="block"
)


@pytest.fixture(scope="module")
def data(butterflies):
    return scan_folder(butterflies)


def test_a_real_run_rises_to_one_hundred_and_every_kind_of_work_counts(data, in_tmp):
    steps = []
    train_model(data, CONFIG, name="eta", reporter=Reporter(step=lambda *news: steps.append(news)))
    shares = [done for what, done, total in steps if what == LABEL]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert sum(share == 100 for share in shares) <= 2
    # What is followed by no share has no cost of its own, and the bar would stand still meanwhile.
    followed = {what for (what, *_), (after, *_) in pairwise(steps) if after == LABEL}
    assert {what for what, *_ in steps} - {LABEL} == followed


def test_longer_phases_and_more_trained_blocks_cost_more(data):
    def cost(config):
        return sum(cost for _, cost in expected_costs(config, data))

    head, top = CONFIG.phases
    assert cost(replace(CONFIG, phases=(head, replace(top, epochs=4)))) > cost(CONFIG)
    assert cost(replace(CONFIG, phases=(head, replace(top, train_from="all")))) > cost(CONFIG)
    assert cost(replace(CONFIG, sanity="none")) < cost(CONFIG)


def test_what_is_read_from_the_cache_is_done_at_once_and_a_phase_that_ends_early_is_whole(data):
    steps = []
    whole = WholeRun(CONFIG, data, lambda *news: steps.append(news))
    whole("phase head", 1, 4)
    early = steps[-1][1]
    whole("phase head", 1, 1)
    assert steps[-1][1] >= early > 0
    whole("training features, view 1 of 1", 1, 30)
    assert steps[-1][1] >= early
    whole("something new", 1, 2)
    assert steps[-1] == ("something new", 1, 2)
