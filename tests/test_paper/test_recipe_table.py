"""Table 1: generated from recipes.yaml, both readings, every difference marked with its source."""

from __future__ import annotations

import csv
import io

import pytest

from fbt_paper.config.load import ConfigError, load
from fbt_paper.tables.latex import to_latex
from fbt_paper.tables.recipe_table import collect_recipes
from fbt_paper.tables.render import to_csv, to_markdown
from tests.test_paper.config_copy import ConfigCopy


def test_as_printed_equals_what_is_printed_and_every_difference_of_the_other_reading_is_the_swap():
    frame = collect_recipes(load(), "table1").frame
    assert set(frame[frame.reading == "as_printed"].source) == {""}
    ofa = frame[frame.reading == "ofa"]
    assert (ofa.source != "").sum() == 16
    assert set(ofa.source) == {"", "the printed column heads look swapped (docs/paper-facts.md#recipes)"}


def test_a_changed_recipe_shows_and_names_its_source(tmp_path):
    copy = ConfigCopy(tmp_path)
    copy.replace("recipes.yaml", "mixup: 0.8", "mixup: 0.7")
    text = to_markdown(collect_recipes(copy.load(), "table1"))
    assert "0.7 (b) (0.8)" in text and "(b) paper's Table 1" in text


def test_all_formats_hold_it():
    table = collect_recipes(load(), "table1")
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == 14 * 4 * 2
    assert ("300", "100") in {(line["ours"], line["printed"]) for line in lines}
    latex = to_latex(table)
    assert r"300 (a) (100)" in latex and r"\label{tab:table1}" in latex and r"$\times$0.1 at {[}30" in latex
    assert "(100)" not in to_markdown(table, paper=False)


def test_a_setting_that_no_recipe_has_is_refused(tmp_path):
    copy = ConfigCopy(tmp_path)
    copy.replace("tables/table1.yaml", "setting: augmentation.mixup", "setting: augmentation.mixupp")
    with pytest.raises(ConfigError, match="a recipe has no setting 'augmentation.mixupp'"):
        copy.load()
    copy = ConfigCopy(tmp_path / "again")
    copy.replace("tables/table1.yaml", '["100", "300", "300", "300"]', '["100", "300"]')
    with pytest.raises(ConfigError, match="must hold 4 texts"):
        copy.load()
