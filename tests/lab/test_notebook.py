import pytest

from deqflow.lab import notebook


@pytest.mark.parametrize(("value", "expected"), [(None, 40), ("", 40), ("0", 40), ("1", 8)])
def test_the_environment_chooses_between_full_and_fast(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv(notebook.FAST, raising=False)
    else:
        monkeypatch.setenv(notebook.FAST, value)
    assert notebook.choose(40, 8) == expected


@pytest.mark.parametrize(("value", "expected"), [(None, 40), ("short", 40), ("full", 400)])
def test_a_full_profile_has_values_of_its_own(monkeypatch, value, expected):
    monkeypatch.delenv(notebook.FAST, raising=False)
    monkeypatch.delenv(notebook.PROFILE, raising=False)
    if value:
        monkeypatch.setenv(notebook.PROFILE, value)
    assert notebook.choose(40, 8, 400) == expected
    assert notebook.choose(40, 8) == 40


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


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_a_table_needs_rows_of_the_same_columns(rows):
    with pytest.raises(ValueError, match="same columns"):
        notebook.table(rows)
