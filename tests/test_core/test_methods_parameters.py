"""The registry, and config/methods.yaml in step with what the methods take."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from fbt_core.methods import method_names, method_traits
from fbt_core.methods.parameters import ParameterError, read_parameters
from fbt_core.methods.registry import UnknownMethodError
from tests.test_core.methods_kit import default_parameters, make_method, read_methods

PAPER = {
    "cc", "crd", "dist", "dkd", "fbt", "fcfd", "fitnet", "kd", "lowpass", "ofa", "reviewkd", "rkd", "scratch",
    "simkd",
}  # fmt: skip
NAMES = method_names()
TRAITS = {
    "title", "transfers", "levels", "losses", "generic", "extra_parameters", "needs_teacher", "uses_fusion",
    "citation", "revision",
}  # fmt: skip
KINDS = {bool: bool, int: int, float: (int, float), str: str}
EVERY_METHOD = pytest.mark.parametrize("name", NAMES)


def take_kinds(name):
    """The parameters a method takes and their types."""
    record = importlib.import_module(f"fbt_core.methods.{name}").Parameters
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def test_the_papers_fourteen_methods_are_there():
    assert set(NAMES) >= PAPER
    assert list(NAMES) == sorted(NAMES)


@EVERY_METHOD
def test_traits_are_stated(name):
    traits = method_traits(name)
    assert traits.keys() >= TRAITS
    assert isinstance(traits["revision"], int)
    assert traits["revision"] >= 1
    assert traits["levels"] in (1, 2, 3)


def test_traits_say_what_the_score_of_simkd_means():
    assert method_traits("simkd")["score"] == "student, projector and the teacher's classifier"


def test_names_and_traits_are_read_without_torch():
    code = (
        "import sys; from fbt_core.methods import method_names, method_traits; "
        "[method_traits(name) for name in method_names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_method_is_told_with_the_nearest_one():
    with pytest.raises(UnknownMethodError, match="no method 'fitnets'.*did you mean 'fitnet'"):
        method_traits("fitnets")


def test_a_file_without_traits_is_no_method():
    with pytest.raises(UnknownMethodError):
        method_traits("modules")


@EVERY_METHOD
def test_the_file_states_every_parameter_and_no_other(name):
    assert set(read_methods()[name]["parameters"]) == set(take_kinds(name))


def test_the_file_states_every_method_and_no_other():
    assert sorted(read_methods()) == list(NAMES)


def every_value(entry):
    """A parameter's value and what it becomes for a dataset or a scale."""
    return [entry["value"], *entry.get("by_dataset", {}).values(), *entry.get("by_scale", {}).values()]


@EVERY_METHOD
def test_every_value_fits_its_type_choices_and_bounds(name):
    for key, kind in take_kinds(name).items():
        entry = read_methods()[name]["parameters"][key]
        for value in every_value(entry):
            if get_origin(kind) is Literal:
                assert value in get_args(kind), key
            else:
                assert isinstance(value, KINDS[kind]), key
            assert value in entry.get("choices", [value]), key
            assert entry.get("minimum", value) <= value <= entry.get("maximum", value), key


@EVERY_METHOD
def test_choices_are_those_of_the_code(name):
    for key, kind in take_kinds(name).items():
        choices = read_methods()[name]["parameters"][key].get("choices")
        if get_origin(kind) is Literal:
            assert tuple(choices) == get_args(kind), key
        elif kind is bool:
            assert choices == [True, False], key


@EVERY_METHOD
def test_every_number_has_a_source(name):
    entry = read_methods()[name]
    assert entry["citation"]
    assert entry["source"]
    assert all(len(parameter["source"]) > 5 for parameter in entry["parameters"].values())


@EVERY_METHOD
def test_numbers_have_a_lower_bound(name):
    """A negative weight or a temperature of 0 is refused before anything is trained."""
    for key, kind in take_kinds(name).items():
        assert kind not in (int, float) or "minimum" in read_methods()[name]["parameters"][key], key


@EVERY_METHOD
def test_titles_agree(name):
    assert read_methods()[name]["title"] == method_traits(name)["title"]


def test_methods_that_read_stages_can_be_split_in_both_ways():
    split = {name for name in PAPER if "split" in take_kinds(name)}
    assert split == {"fbt", "fcfd", "fitnet", "lowpass", "ofa", "reviewkd", "simkd"}


@dataclasses.dataclass(frozen=True)
class Example:
    """Parameters of each type."""

    weight: float
    count: int
    on: bool
    mode: Literal["a", "b"]


GOOD = {"weight": 1, "count": 2, "on": True, "mode": "a"}


def test_parameters_are_read():
    record = read_parameters(Example, GOOD, "example")
    assert record == Example(1.0, 2, True, "a")
    assert isinstance(record.weight, float)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"weights": 1.0}, "weights: not a parameter, did you mean 'weight'?"),
        ({"weight": "1e-3"}, "weight: '1e-3' is not a number"),
        ({"weight": True}, "weight: True is not a number"),
        ({"count": 1.5}, "count: 1.5 is not a whole number"),
        ({"count": True}, "count: True is not a whole number"),
        ({"on": 1}, "on: 1 is not true or false"),
        ({"mode": "c"}, "mode: 'c' is not one of a, b"),
    ],
)
def test_a_wrong_parameter_is_told(change, fault):
    with pytest.raises(ParameterError) as caught:
        read_parameters(Example, {**GOOD, **change}, "example")
    assert fault in str(caught.value)
    assert "method 'example'" in str(caught.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(ParameterError) as caught:
        read_parameters(Example, {"weight": "x", "other": 1}, "example")
    assert all(word in str(caught.value) for word in ("weight", "other", "count: missing", "on: missing"))


def test_a_method_refuses_parameters_it_does_not_take():
    with pytest.raises(ParameterError, match="method 'kd'.*tau: not a parameter"):
        make_method("kd", tau=4.0)


def test_the_kit_reads_the_smoke_values():
    assert default_parameters("crd")["negatives"] == 256


def test_fcfd_has_the_same_numbers_on_every_dataset():
    """Its two released files for ImageNet contradict each other; a row of a table may take theirs."""
    entries = read_methods()["fcfd"]["parameters"]
    for name, value in (("feature_weight", 5.0), ("temperature", 4.0)):
        assert entries[name]["value"] == value
        assert "by_dataset" not in entries[name]


def test_what_follows_an_abstract_alone_is_not_called_by_the_papers_name():
    entry = read_methods()["lowpass"]
    assert entry["title"] == "LFCC (adapted)"
    assert "abstract alone" in entry["source"] and "this repository's own" in entry["source"]
