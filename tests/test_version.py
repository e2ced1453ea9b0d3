"""The version is stated in four files, which agree."""

import re
import tomllib
from pathlib import Path

import spectra

ROOT = Path(__file__).parents[1]


def test_all_files_state_one_version():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert stated == spectra.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {stated}\n" in citation
    (date,) = re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE)
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (stated, date)
