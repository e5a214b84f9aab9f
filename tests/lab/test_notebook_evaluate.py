"""Notebook 09 on a benchmark of which nobody knows the flow, as the test sets of KITTI and Sintel are."""

from pathlib import Path

import cv2
import layouts
import nbformat

from deqflow.lab import reports

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "09_evaluate.ipynb"


def test_a_set_without_truth_has_its_row_and_the_others_their_verdict(tmp_path):
    folder = layouts.write_kitti(tmp_path / "data")
    for path in folder.glob("training/flow_*/*.png"):
        vectors = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        vectors[..., 0] = 0  # OpenCV turns channels around: KITTI's third says where the flow is known
        cv2.imwrite(str(path), vectors)
    values = reports.parameters_of([NOTEBOOK], "fast")[NOTEBOOK.stem] | {"root": str(tmp_path / "data")}
    run = reports.run_notebook(NOTEBOOK, tmp_path, values)
    assert not run.error
    assert (run.numbers["sets"], run.numbers["benchmarks"]) == (4, 1)
    assert not [name for name in run.numbers if "kitti" in name], "what is not known is not recorded"
    text = "".join(str(cell.outputs) for cell in nbformat.read(tmp_path / NOTEBOOK.name, 4).cells if "outputs" in cell)
    assert "| kitti-2015 | DIS | unknown |" in text
    assert "of 3 sets" in run.verdict
