import pytest

from deqflow import notebook


@pytest.mark.parametrize(("value", "expected"), [(None, 40), ("", 40), ("0", 40), ("1", 8)])
def test_the_environment_chooses_between_full_and_fast(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv(notebook.FAST, raising=False)
    else:
        monkeypatch.setenv(notebook.FAST, value)
    assert notebook.choose(40, 8) == expected


def test_record_displays_numbers_for_readers_and_for_reports(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: shown.append(data))
    notebook.record(epe_px=0.31234, evaluations=12, passed=True, model="mini")
    assert shown[0][notebook.NUMBERS] == {"epe_px": 0.31234, "evaluations": 12, "passed": True, "model": "mini"}
    assert "0.3123" in shown[0]["text/plain"]


def test_record_refuses_what_json_would_not_hold():
    with pytest.raises(TypeError, match=r"got list for errors: use .item\(\)"):
        notebook.record(errors=[1, 2])
