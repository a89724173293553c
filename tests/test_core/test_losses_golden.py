"""A loss may change only together with its method's REVISION, so that exactly its runs are trained again."""

from __future__ import annotations

import pytest

from fbt_core.methods import method_names
from tests.golden import losses as golden

ENTRIES = golden.read()


def cases():
    return [
        (name, variant)
        for name in method_names()
        for variant in ENTRIES.get(name, {}).get(golden.key_of(name), {})
    ]


@pytest.mark.parametrize("name", method_names())
def test_a_method_has_golden_losses_for_its_revision(name):
    entry = ENTRIES.get(name, {}).get(golden.key_of(name))
    assert entry, f"add them: python -m tests.golden.losses {name}"
    missing = sorted(set(golden.present_variants(name)) - set(entry))
    assert not missing, f"add {missing}: python -m tests.golden.losses {name}"


@pytest.mark.parametrize(("name", "variant"), cases())
def test_the_loss_is_what_it_was(name, variant):
    entry = ENTRIES[name][golden.key_of(name)][variant]
    measured = golden.measure(name, entry["parameters"], mixed=variant == "mixed")
    message = (
        f"the loss of '{name}' has changed: raise its revision, then python -m tests.golden.losses {name}"
    )
    assert measured.keys() == entry["terms"].keys()
    for pair, steps in entry["terms"].items():
        for before, now, tolerance in zip(steps, measured[pair], (1e-4, 1e-3), strict=True):
            assert now == pytest.approx(before, rel=tolerance, abs=1e-6), message


def test_an_entry_is_never_overwritten():
    before = golden.FILE.read_bytes()
    with pytest.raises(SystemExit, match="raise its revision"):
        golden.add("kd", {"default": {}})
    assert golden.FILE.read_bytes() == before


def test_a_new_variant_is_added_to_the_entry_there_is(monkeypatch, tmp_path):
    copy = tmp_path / "losses.json"
    copy.write_bytes(golden.FILE.read_bytes())
    monkeypatch.setattr(golden, "FILE", copy)
    key, variants = golden.key_of("kd"), golden.present_variants("kd")
    golden.add("kd", {**variants, "hot": {**variants["default"], "temperature": 4.0}})
    entry = golden.read()["kd"][key]
    assert {name: entry[name] for name in variants} == ENTRIES["kd"][key]
    assert entry["hot"]["terms"] != entry["default"]["terms"]


@pytest.mark.parametrize("name", method_names())
def test_soft_labels_are_covered(name):
    entry = ENTRIES[name][golden.key_of(name)]
    assert entry["mixed"]["terms"] != entry["default"]["terms"]


def test_a_raised_revision_asks_for_a_new_entry(monkeypatch, tmp_path):
    copy = tmp_path / "losses.json"
    copy.write_bytes(golden.FILE.read_bytes())
    monkeypatch.setattr(golden, "FILE", copy)
    monkeypatch.setattr(golden, "key_of", lambda name: "99")
    variants = golden.present_variants("kd")
    golden.add("kd", variants)
    assert golden.read()["kd"]["99"].keys() == variants.keys()
    assert golden.read()["kd"]["1"] == ENTRIES["kd"]["1"]
