from pathlib import Path

import pytest

from deqflow.lab import notebook


@pytest.fixture
def project(tmp_path):
    """A project's folder with one numbered notebook."""
    (tmp_path / "project" / "notebooks").mkdir(parents=True)
    (tmp_path / "project" / "notebooks" / "00_start.ipynb").write_text("{}")
    return tmp_path / "project"


@pytest.mark.parametrize("kernel", ["notebooks", ".", "build/notebooks"])
def test_a_path_counts_from_the_projects_folder_wherever_the_kernel_runs(project, monkeypatch, kernel):
    (project / kernel).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(project / kernel)
    assert notebook.project_path("data") == project / "data"
    assert notebook.project_path("../data") == project.parent / "data"


def test_outside_of_a_project_a_path_counts_from_the_checkout_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert notebook.project_path("data") == Path(__file__).parents[2] / "data"
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "site-packages" / "deqflow" / "lab" / "notebook.py"))
    assert notebook.project_path("data") == tmp_path / "data"  # an installed package has no checkout


def test_an_absolute_path_stays_as_it_is(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert notebook.project_path(tmp_path / "a.png") == tmp_path / "a.png"
    assert notebook.project_path("~/a.png") == tmp_path / "a.png"


def test_record_displays_numbers_for_readers_and_for_reports(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: shown.append(data))
    notebook.record(epe_px=0.31234, evaluations=12, passed=True, model="mini")
    assert shown[0][notebook.NUMBERS] == {"epe_px": 0.31234, "evaluations": 12, "passed": True, "model": "mini"}
    assert "0.3123" in shown[0]["text/plain"]


def test_record_refuses_what_json_would_not_hold():
    with pytest.raises(TypeError, match=r"got list for errors: use .item\(\)"):
        notebook.record(errors=[1, 2])


def test_a_table_has_a_column_for_each_name_and_four_digits():
    text = notebook.table([{"name": "one", "px": 0.123456, "n": 7}, {"name": "two", "px": 2.0, "n": 8}]).data
    assert text.splitlines() == [
        "| name | px | n |",
        "| --- | ---: | ---: |",
        "| one | 0.1235 | 7 |",
        "| two | 2 | 8 |",
    ]


def test_columns_of_numbers_are_aligned_at_the_right_also_where_they_are_texts():
    rows = [
        {"set": "a", "error": "", "within": "-3%", "unit": "px"},
        {"set": "b", "error": "0.9 ± 0.1"} | dict.fromkeys(("within", "unit"), "unknown"),
    ]
    assert notebook.table(rows).data.splitlines()[1] == "| --- | ---: | ---: | --- |"


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_a_table_needs_rows_of_the_same_columns(rows):
    with pytest.raises(ValueError, match="same columns"):
        notebook.table(rows)
