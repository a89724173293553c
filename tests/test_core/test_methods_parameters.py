"""What config/methods.yaml states of each method, and the one check of a method's parameters."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fbt_core.errors import UserError
from fbt_core.methods import method_facts, method_names
from fbt_core.methods.facts import MethodFacts, UnknownMethodError, read_facts
from fbt_core.methods.parameters import ParameterError, read_parameters
from fbt_core.methods.registry import FOLDER, method_files
from tests.test_core.methods_kit import default_parameters, make_method, read_methods

PAPER = {
    "cc", "crd", "dist", "dkd", "fbt", "fcfd", "fitnet", "kd", "lowpass", "ofa", "reviewkd", "rkd", "scratch",
    "simkd",
}  # fmt: skip
NAMES = method_names()
EVERY_METHOD = pytest.mark.parametrize("name", NAMES)


def test_the_papers_fourteen_methods_are_there():
    assert set(NAMES) >= PAPER
    assert list(NAMES) == sorted(NAMES)


def test_every_method_has_a_file_and_every_file_is_stated():
    assert method_files() == NAMES


def test_the_facts_of_simkd_say_what_its_score_means():
    assert method_facts("simkd").score == "student, projector and the teacher's classifier"


def test_facts_are_read_without_torch():
    code = (
        "import sys; from fbt_core.methods import method_facts, method_names; "
        "[method_facts(name) for name in method_names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_method_is_reported_with_the_nearest_one():
    with pytest.raises(UnknownMethodError, match="no method 'fitnets'.*did you mean 'fitnet'"):
        method_facts("fitnets")


def test_a_file_that_helps_is_no_method():
    with pytest.raises(UnknownMethodError):
        method_facts("modules")


def test_a_broken_file_is_reported_in_one_line(tmp_path):
    file = tmp_path / "methods.yaml"
    file.write_text("kd: {title: KD}")
    with pytest.raises(UserError, match=r"methods\.yaml: .*Field required") as caught:
        read_facts(file)
    assert "\n" not in str(caught.value)


@EVERY_METHOD
def test_the_code_reads_every_parameter_and_no_other(name):
    """`settings.gamma`, `s.gamma`, or a name in a text, such as those of the fused model."""
    code = (FOLDER / f"{name}.py").read_text()
    stated = set(method_facts(name).parameters)
    used = set(re.findall(r"\b(?:settings|s)\.(\w+)", code))
    assert used <= stated
    if re.search(r"logits_to_compare|Temperature", code):
        used |= set(re.findall(r"settings\.(\w+)", (FOLDER / "modules.py").read_text()))
    by_engine = {"split"}  # where a network is cut is decided when it is built
    unread = {key for key in stated - used - by_engine if not re.search(rf'"{key}"|_to_', code)}
    assert not unread


@EVERY_METHOD
def test_every_value_fits_its_type_choices_and_bounds(name):
    for key, entry in method_facts(name).parameters.items():
        values = [entry.value, *(entry.by_dataset or {}).values(), *(entry.by_scale or {}).values()]
        assert [entry.fault(value) for value in values] == [None] * len(values), key
        if entry.kind == "true or false":
            assert entry.choices == (True, False), key
        assert entry.kind != "a name" or entry.choices, key


@EVERY_METHOD
def test_every_number_has_a_source_and_a_lower_bound(name):
    """A negative weight or a temperature of 0 is refused before anything is trained."""
    for key, entry in method_facts(name).parameters.items():
        assert len(entry.source) > 5, key
        assert "number" not in entry.kind or entry.minimum is not None, key


@EVERY_METHOD
def test_a_method_that_was_not_made_for_any_pair_says_how_it_was_adapted(name):
    facts = method_facts(name)
    assert facts.generic or facts.adapted


def test_methods_that_read_stages_can_be_split_in_both_ways():
    split = {name for name in PAPER if "split" in method_facts(name).parameters}
    assert split == {"fbt", "fcfd", "fitnet", "lowpass", "ofa", "reviewkd", "simkd"}


EXAMPLE = MethodFacts.model_validate(
    {
        "title": "Example",
        "citation": "none",
        "source": "a test",
        "transfers": "logits",
        "levels": 2,
        "losses": ("none",),
        "formula": "none",
        "generic": True,
        "extra_parameters": False,
        "revision": 1,
        "parameters": {
            "weight": {"value": 1.0, "minimum": 0.0, "source": "a test"},
            "count": {"value": 2, "whole": True, "minimum": 1.0, "maximum": 9.0, "source": "a test"},
            "on": {"value": True, "source": "a test"},
            "mode": {"value": "a", "choices": ("a", "b"), "source": "a test"},
            "added": {"value": 0.5, "before": 0.0, "source": "a test"},
            "few": {"value": 3, "before": 3, "whole": True, "fewer_than_classes": True, "source": "a test"},
        },
        "ordered": (("weight", "count"),),
        "demands": ({"when": {"mode": "b"}, "then": {"on": True}, "because": "b is on"},),
    }
)
GOOD = {"weight": 1, "count": 2, "on": True, "mode": "a"}


def test_parameters_are_read():
    settings = read_parameters("example", EXAMPLE, GOOD, 10)
    assert (settings.weight, settings.count, settings.on, settings.mode) == (1.0, 2, True, "a")
    assert isinstance(settings.weight, float)


def test_parameters_do_not_change_and_a_name_that_is_not_stated_is_an_error():
    settings = read_parameters("example", EXAMPLE, GOOD, 10)
    with pytest.raises(AttributeError, match="parameters do not change: weight stays 1.0"):
        settings.weight = 2.0
    with pytest.raises(AttributeError, match=r"config/methods.yaml states no parameter 'wait' of example"):
        _ = settings.wait


def test_a_parameter_that_was_added_later_has_the_value_from_before_if_a_spec_lacks_it():
    assert read_parameters("example", EXAMPLE, GOOD, 10).added == 0.0
    assert read_parameters("example", EXAMPLE, {**GOOD, "added": 0.25}, 10).added == 0.25
    assert EXAMPLE.in_spec({**GOOD, "added": 0.0}) == GOOD
    assert EXAMPLE.in_spec({**GOOD, "added": 0.25}) == {**GOOD, "added": 0.25}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"weights": 1.0}, "weights: unknown parameter of example; valid: added, count,"),
        ({"weights": 1.0}, "did you mean 'weight'?"),
        ({"weight": "1e-3"}, "weight: '1e-3' is read as text, not as a number; write 1.0e-3"),
        ({"weight": True}, "weight: must be a number (given: True)"),
        ({"weight": -1.0}, "weight: -1.0 is below the minimum, 0"),
        ({"count": 1.5}, "count: must be a whole number (given: 1.5)"),
        ({"count": True}, "count: must be a whole number (given: True)"),
        ({"count": 10}, "count: 10 is above the maximum, 9"),
        ({"on": 1}, "on: must be true or false (given: 1)"),
        ({"mode": "c"}, "mode: 'c' is not a choice; valid: a, b"),
        ({"mode": 1}, "mode: must be a name (given: 1)"),
        ({"weight": 3.0}, "weight, 3.0, is above count, 2"),
        ({"mode": "b", "on": False}, "mode b needs on True: b is on"),
        ({"few": 10}, "10 classes are not fewer than all 10; use 9 or fewer"),
    ],
)
def test_a_wrong_parameter_is_reported(change, fault):
    with pytest.raises(ParameterError) as caught:
        read_parameters("example", EXAMPLE, {**GOOD, **change}, 10)
    assert fault in str(caught.value)
    assert "method 'example'" in str(caught.value)


def test_all_faults_are_reported_at_once():
    with pytest.raises(ParameterError) as caught:
        read_parameters("example", EXAMPLE, {"weight": "x", "other": 1}, 10)
    expected = ("weight: must", "other: unknown", "count: is missing", "on: is missing")
    assert all(words in str(caught.value) for words in expected)


def test_a_method_refuses_parameters_it_does_not_take():
    with pytest.raises(ParameterError, match="method 'kd'.*tau: unknown parameter of kd"):
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
