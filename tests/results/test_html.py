"""Names from other people's files are text in tables and pages."""

import pandas as pd

from kdnb.results.tables import markdown


def test_a_table_shows_names_as_they_are():
    table = markdown(pd.DataFrame({"teacher": ["<svg onload=alert(1)>|x\ny", "R&D"]}))
    assert "<svg" not in table and "&lt;svg onload=alert(1)&gt;\\|x y" in table
    assert "R&amp;D" in table and len(table.splitlines()) == 4
