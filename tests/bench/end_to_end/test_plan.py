"""What is measured, and what of it fits the time."""

from __future__ import annotations

import pytest

from bench.end_to_end.bundles import ZOO, only
from bench.end_to_end.cases import WORKLOADS, Case, EndToEndError, cases_of, program_of
from bench.end_to_end.plan import ROUNDS, SLOW, WIDE, Forwards, Lot, fitting
from models.checkpoint import load_checkpoint
from models.program import Line, Program, assign

BY_NAME = {workload.model: workload for workload in WORKLOADS}


def card_of(name: str):
    return load_checkpoint(ZOO / name)


def program(*networks: str) -> Program:
    return Program(0.0, 1.0, tuple(Line(network, updates=(assign(),)) for network in networks))


class Model:
    """A loaded model whose networks take `fixed + slope * rows`; it says which rows were tried."""

    engine, contenders, tells_networks = "fake", ("served", "bare"), False

    def __init__(self, fixed: float, slope: float) -> None:
        self.fixed, self.slope = fixed, slope
        self.tried: list[int] = []

    def forward_seconds(self, network: str, rows: int) -> float:
        self.tried.append(rows)
        return self.fixed + self.slope * rows


def test_every_number_of_steps_comes_with_every_number_of_rows():
    """Samples have the steps of the table, chains one length, and scores one step."""
    cases = cases_of(BY_NAME["ddpm-cifar10"], rows=(1, 8), steps=(1, 4))
    assert [(case.steps, case.rows) for case in cases] == [(1, 1), (1, 8), (4, 1), (4, 8)]
    hat = cases_of(BY_NAME["digits-hat"], rows=(1,), langevin=6)
    assert [(case.task, case.steps) for case in hat] == [("score", 1), ("langevin", 6)]
    assert [case.text for case in hat] == ["score, 1 row", "Langevin 6, 1 row"]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_sample_takes_as_many_evaluations_as_the_case_says(steps: int):
    """The program is the server's own DDIM."""
    assert program_of(card_of("digits-ddpm"), Case("digits-ddpm", "sample", steps, 1)).nfe == steps


@pytest.mark.parametrize(("model", "evaluations"), [("digits-hat", 6), ("digits-latent", 7)])
def test_a_chain_takes_as_many_gradients_as_the_case_says(model: str, evaluations: int):
    """The latent model splits its steps over its diffusion steps, and makes the image in the end."""
    found = program_of(card_of(model), Case(model, "langevin", 6, 1))
    assert (found.gradient_passes, found.nfe) == (6, evaluations)


def test_a_chain_that_cannot_be_split_is_refused():
    """Seven steps are no multiple of three chains."""
    with pytest.raises(EndToEndError, match="multiple"):
        program_of(card_of("digits-latent"), Case("digits-latent", "langevin", 7, 1))


def test_a_model_without_an_energy_scores_nothing():
    """The error names the model."""
    with pytest.raises(EndToEndError, match="digits-ddpm scores no images"):
        program_of(card_of("digits-ddpm"), Case("digits-ddpm", "score", 1, 1))


@pytest.mark.parametrize("workload", [workload for workload in WORKLOADS if not workload.preset])
def test_a_trimmed_card_runs_every_case_of_its_workload(workload):
    """What is left out of a card is nothing that its cases run."""
    card = only(card_of(workload.model), workload.networks)
    assert set(card.networks) == set(workload.networks)
    for case in cases_of(workload):
        assert {line.network for line in program_of(card, case).lines} <= set(card.networks)
    used = {card.networks[name].module for name in card.networks}
    used |= {part for name in used for part in card.modules[name].parts.values()}
    assert set(card.modules) == used


def test_a_programs_seconds_are_those_of_its_networks():
    """One and some rows are tried once a network, and a line through them tells of the others."""
    model = Model(0.01, 0.002)
    forwards = Forwards(model)
    assert forwards.program_seconds(program("a", "a", "b"), 64) == pytest.approx(3 * (0.01 + 64 * 0.002))
    assert forwards.program_seconds(program("a"), 1) == pytest.approx(0.012)
    assert model.tried == [1, WIDE, 1, WIDE]


def test_slow_networks_are_tried_with_one_row_alone():
    """What takes long for one row is reckoned for more."""
    model = Model(0.0, 2 * SLOW)
    assert Forwards(model).program_seconds(program("a"), 64) == pytest.approx(64 * 2 * SLOW)
    assert model.tried == [1]


def test_the_longest_cases_are_left_out_until_the_rest_fits():
    """All that is kept fits its rounds and the one that warms up; nothing goes that need not."""
    lots = [Lot(Case("m", "sample", 1, rows), program("a"), Model(0, 0), float(rows)) for rows in (1, 64, 8, 32)]
    kept, left = fitting(lots, (ROUNDS + 1) * 10.0)
    assert [lot.case.rows for lot in kept] == [1, 8]
    assert [lot.case.rows for lot in left] == [64, 32]
    assert fitting(lots, (ROUNDS + 1) * 105.0) == (lots, [])
    assert fitting(lots, 0.0)[0] == []
