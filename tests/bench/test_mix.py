"""The one-line language of loads."""

from __future__ import annotations

import pytest

from bench.load import DEFAULT_MIX
from bench.mix import Call, Kind, MixError, parse_kind, parse_mix, resolve
from server.client import ModelSummary

MODELS = (
    ModelSummary("one", 1, "ddpm", "", ("ddim", "iddim"), scores=False),
    ModelSummary("two", 1, "vdrme", "", ("vdrme",), scores=True),
    ModelSummary("three", 1, "vdrme", "", ("ddim", "vdrme"), scores=True),
)


def test_a_mix_names_kinds_with_weights_and_options() -> None:
    """Steps, options and the weight after the last `=` are read; the name is the part without its weight."""
    kinds = parse_mix(
        " ddim:1=4, iddim:4:m=0.2/0.6:count=3:model=x=0.5,score:images=16:scales=clean/noisy=2,"
        "infer:model=net:rows=8:timeout=0.5=1"
    )
    assert kinds == (
        Kind("ddim:1", 4, Call.SAMPLE, "ddim", "", {"steps": 1}),
        Kind(
            *("iddim:4:m=0.2/0.6:count=3:model=x", 0.5, Call.SAMPLE, "iddim", "x"),
            {"steps": 4, "m": (0.2, 0.6), "count": 3},
        ),
        Kind(
            *("score:images=16:scales=clean/noisy", 2, Call.SCORE, "", ""),
            {"images": 16, "scales": ("clean", "noisy")},
        ),
        Kind("infer:model=net:rows=8:timeout=0.5", 1, Call.INFER, "", "net", {"rows": 8}, timeout=0.5),
    )


def test_the_default_mix_is_valid() -> None:
    """What `python -m bench load` sends by itself can be read."""
    names = ["ddim:1", "ddim:8", "iddim:4:m=0.6", "vdrme:4:model=digits-vdrme", "score:model=digits-vdrme"]
    assert [kind.name for kind in parse_mix(DEFAULT_MIX)] == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no kind"),
        ("ddim:4", "'ddim:4' has no weight: write ddim:4=1"),
        ("ddim:4=1,ddim:4=2", "'ddim:4' stands twice"),
        ("ddim:4=many", "'ddim:4=many': the weight after the last '=' must be a number, got 'many'"),
        ("ddim:4=0", "'ddim:4=0': the weight must be positive"),
        ("ddim:4=inf", "'ddim:4=inf': the weight must be positive and finite"),
        ("ddim=1", "'ddim': the steps after 'ddim' must be a whole number from 1, got ''"),
        ("ddim:0=1", "'ddim:0': the steps after 'ddim' must be a whole number from 1, got '0'"),
        ("score=1,ddim:4:speed=9=1", "'ddim:4:speed=9': unknown option 'speed'; there are model, timeout, count, m"),
        ("iddim:4:m=0.6", "'iddim:4:m': option m has no value, or the weight is missing"),
        ("iddim:4:m=a/b=1", "'iddim:4:m=a/b': m must be a number, or one a step as in 0.2/0.6, got 'a/b'"),
        ("score:4=1", "'score:4': unknown option '4'; there are model, timeout, images"),
        (":4=1", "':4' names no sampler"),
        ("infer:rows=2=1", "'infer:rows=2' names no model: write infer:model=NAME"),
        ("ddim:4:timeout=0=1", "'ddim:4:timeout=0': timeout must be seconds above 0, got '0'"),
        ("ddim:4:timeout=inf=1", "timeout must be seconds above 0, got 'inf'"),
    ],
)
def test_errors_quote_the_part_at_fault(text: str, said: str) -> None:
    """Whoever mistypes one part of a long mix sees which, and what would have been right."""
    with pytest.raises(MixError) as caught:
        parse_mix(text)
    assert said in str(caught.value)


def test_kinds_go_to_the_first_model_that_serves_them() -> None:
    """A sampler's first model and the first model that scores are chosen; a named one stays."""
    kinds = resolve(parse_mix("ddim:1=1,vdrme:4=1,score=1,ddim:2:model=three=1"), MODELS)
    assert [kind.model for kind in kinds] == ["one", "two", "two", "three"]


def test_a_kind_that_nobody_serves_is_refused() -> None:
    """The message says what the models of the server can do."""
    with pytest.raises(MixError, match=r"'langevin:5': no model .*samplers: ddim, iddim, vdrme; .* score: two, three"):
        resolve(parse_mix("langevin:5=1"), MODELS)


def test_of_several_models_one_that_takes_the_steps_is_chosen():
    """Two models have the sampler; the second alone accepts the kind's number of steps."""
    models = [ModelSummary(name, 1, "vdrme", "", ("vdrme",), scores=True) for name in ("board", "digits")]
    steps = {"board": (5,), "digits": (4, 6, 8)}
    chosen = resolve(parse_mix("vdrme:4=1,vdrme:5=1,vdrme:7=1"), models, steps.__getitem__)
    assert [kind.model for kind in chosen] == ["digits", "board", "board"]


def test_rows_of_a_call_are_counted_for_every_kind() -> None:
    """Samples, images and rows of inputs, one where nothing is said; a single kind is read without a weight."""
    names = ("ddim:4:count=3", "score:images=5", "infer:model=net:rows=7", "ddim:4", "score", "infer:model=net")
    assert [parse_kind(name).rows for name in names] == [3, 5, 7, 1, 1, 1]
    with pytest.raises(MixError, match=r"'ddim:4:m': option m has no value$"):
        parse_kind("ddim:4:m")
