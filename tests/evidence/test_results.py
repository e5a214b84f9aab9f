import numpy as np
import pytest

from deqflow.evidence.results import curves, load_results, published, save_results


def test_curves_are_arrays_of_seeds_by_evaluations():
    runs = [{"variant": name, "seed": s, "curve": {"error_px": [s, 1, 2]}} for s in (0, 1) for name in "ab"]
    got = curves({"runs": [*runs, {"variant": "a", "seed": 2, "failed": "so"}]}, "error_px")
    assert list(got) == ["a", "b"]
    assert np.array_equal(got["a"], [[0, 1, 2], [1, 1, 2]])


def test_missing_results_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="says which command makes them"):
        load_results(tmp_path / "corrections.json")


def test_what_is_saved_is_read(tmp_path):
    path = tmp_path / "new folder" / "a.json"
    save_results({"runs": [1.5, None]}, path)
    assert load_results(path) == {"runs": [1.5, None]}
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    save_results({"runs": []}, path)
    with pytest.raises(TypeError):
        save_results({"runs": object()}, path)
    assert load_results(path) == {"runs": []}


def test_published_results_lie_in_the_checkout():
    assert published("corrections").parts[-3:] == ("reports", "published", "corrections.json")
