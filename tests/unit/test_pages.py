"""The pages: commands exist, README is short, and CONTRIBUTING.md names existing functions, classes and constants."""

import re

import pytest

from breviary.runtime.checkout import ROOT
from breviary.serving.text_interface import TextReader

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = ("experiment", "dataset", "compressor", "objective", "engine", "backbone")
MAX_README_LINES = 120
# Of docs/own_method.md, which its reader writes.
OWN_METHODS = {f"configs/compressor/{name}.yaml" for name in ("every_kth", "decay_pool", "spread_pool", "value_norm")}

WHERE_TO_EDIT = PAGES[1].read_text(encoding="utf-8").partition("## Where to edit\n")[2].partition("\n## ")[0]
PLACES = [
    (file, name)
    for file, names in re.findall(r"\[`[^`]+`\]\(([^)]+\.py)\): ((?:(?:, | or | and )?`\w+`)+)", WHERE_TO_EDIT)
    for name in re.findall(r"`(\w+)`", names)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_and_configuration_of_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    scripts = re.findall(r"\bscripts/[\w/]+\.(?:py|sh|sbatch)", text)
    choices = re.findall(rf"(?<![\w.])({'|'.join(GROUPS)})=([a-z0-9][\w/]*)(?![\w(])", text)  # not glob(...)
    named = [*scripts, *(f"configs/{group}/{name}.yaml" for group, name in choices)]
    assert {file for file in named if not (ROOT / file).is_file()} <= OWN_METHODS


def test_readme_is_two_screens_and_links():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_readme_s_python_block_calls_methods_of_a_reader():
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    compile(code, "README.md", "exec")
    called = set(re.findall(r"\breader\.(\w+)\(", code))
    assert called and all(hasattr(TextReader, name) for name in called)


def shell_lines(page):
    """The lines of a page's shell blocks, with their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return "".join(blocks).splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_page_names_only_what_its_earlier_commands_made(page):
    """The page in its order: python is that of .venv before it is used, runs and sweeps exist before they are named."""
    made, activated = set(), False
    for line in shell_lines(page):
        activated |= line.startswith("source .venv/bin/activate")
        assert activated or not line.startswith("python "), line
        assert set(re.findall(r"outputs/([\w/]+?)(?:/RUN)?(?=[\s\"]|$)", line.partition("#")[0])) <= made, line
        name = re.search(r"\bname=(\w+)", line) or re.search(r"\bexperiment=(\w+)", line)
        made |= {name[1]} if name and "train.py" in line else set()
        made |= {f"sweeps/{sweep}" for sweep in re.findall(r"\bsweep=(\w+)", line)}
    assert activated and len(made) >= 3


def test_where_to_edit_names_places():
    assert len(PLACES) >= 10 and ("comi/information_gain.py", "merge_weights") in PLACES


@pytest.mark.parametrize("file, name", PLACES)
def test_a_place_to_edit_exists(file, name):
    code = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(def |class )?{name}\b", code, re.MULTILINE), f"{file} defines no {name}"


def test_committed_results_name_no_path_of_a_machine():
    """Paths of data and runs are written as $BREVIARY_DATA/... and outputs/... before results are committed."""
    files = [file for file in (ROOT / "results").rglob("*") if file.suffix in (".json", ".csv", ".md", ".html", ".tex")]
    assert len(files) > 100
    absolute = re.compile(r"(?:^|[\s\"'=\[(,:])/(?:home|root|tmp|work|mnt|data|Users|opt|srv)/\w")
    assert [str(file) for file in files if absolute.search(file.read_text(encoding="utf-8"))] == []
