import io
import json
import zipfile
from dataclasses import replace

import pytest
import torch

import deqflow
from deqflow.__main__ import main
from deqflow.commands.convert import PARITY_SIZES, parity_pair
from deqflow.model.export import ExportedEstimator, FixedEvaluations, cropped_index, export, padded_index, parity, trace
from deqflow.model.geometry import Padding
from deqflow.model.sizes import SIZES
from deqflow.solvers import Anderson, Picard, Stop

EVALS = 5  # of the ONNX graph


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture(scope="module")
def speck():
    """An estimator of every kind of part, but few of each: what is exported soon."""
    with pytest.MonkeyPatch.context() as patch:
        size = replace(SIZES["mini"], levels=2, depths=(1, 1, 1), encoder=(8, 8, 12, 16), hidden=16, context=16)
        patch.setitem(SIZES, "speck", size)
        torch.manual_seed(0)
        return deqflow.build("speck").eval()


@pytest.fixture(scope="module")
def onnx_file(speck, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="ONNX needs the extra: pip install 'deqflow[export]'")
    pytest.importorskip("onnxruntime", reason="ONNX needs the extra: pip install 'deqflow[export]'")
    return export(speck, tmp_path_factory.mktemp("onnx") / "model.onnx", evals=EVALS, notes={"model": "a speck"})


def test_an_onnx_graph_gives_the_models_flow_at_any_size(speck, onnx_file):
    differences = parity(speck, onnx_file, evals=EVALS, pairs=[parity_pair(*size) for size in PARITY_SIZES])
    assert len(differences) == 2  # one divides by 8 and the other by nothing
    assert max(differences.values()) < 1e-3


def test_an_onnx_graph_takes_batches(speck, onnx_file, generator):
    for batch in (1, 3):
        images = 255 * torch.rand(2, batch, 3, 45, 67, generator=generator)
        expected = speck(*images, stop=Stop(max_evals=EVALS, atol=0.0)).flow
        torch.testing.assert_close(ExportedEstimator(onnx_file)(*images), expected, rtol=0, atol=1e-3)


def test_a_torch_program_takes_batches(speck, tmp_path, generator):
    run = ExportedEstimator(export(speck, tmp_path / "model.pt2", evals=2, size=(24, 40)))
    for batch in (1, 5):
        images = 255 * torch.rand(2, batch, 3, 24, 40, generator=generator)
        expected = speck(*images, stop=Stop(max_evals=2, atol=0.0)).flow
        torch.testing.assert_close(run(*images), expected, rtol=0, atol=1e-3)


def test_an_onnx_graph_has_its_evaluations_as_a_loop(onnx_file, capfd):
    import onnx

    (loop,) = (node for node in onnx.load(onnx_file).graph.node if node.op_type == "Loop")
    body = next(entry.g for entry in loop.attribute if entry.name == "body")
    assert sum(node.op_type == "Conv" for node in body.node) == 8  # those of one evaluation
    ExportedEstimator(onnx_file)
    assert capfd.readouterr().err == ""  # the runtime has nothing to warn of


class SharingUpdate(torch.nn.Module):
    """A user's operator that prepares two views of one tensor, which a graph's loop does not take."""

    hidden_channels = 3

    def prepare(self, context):
        return context[:, :3], context[:, 1:4]

    def forward(self, hidden, flow, correlation, prepared):
        first, second = prepared
        new = (0.5 * hidden + first + second + correlation.mean(1, keepdim=True)).tanh()
        return new, 0.1 * (new[:, :2] - flow)


class Enlarge(torch.nn.Module):
    """The flow at full size without a convex combination."""

    def forward(self, state):
        return 8 * torch.nn.functional.interpolate(state.flow, scale_factor=8.0)


def test_evaluations_that_make_no_loop_are_written_out(speck, tmp_path, monkeypatch):
    monkeypatch.setattr(speck, "update", SharingUpdate())
    monkeypatch.setattr(speck, "upsampler", Enlarge())
    with pytest.warns(UserWarning, match="each of the 3 evaluations is written out"):
        path = export(speck, tmp_path / "model.pt2", evals=3, size=(32, 48))
    assert max(parity(speck, path, evals=3, pairs=[parity_pair(32, 48)]).values()) < 1e-4


def test_an_onnx_graph_says_what_it_is(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert (notes["evals"], notes["model"], notes["deqflow"]) == (str(EVALS), "a speck", deqflow.__version__)
    assert json.loads(notes["config"])["size"] == "speck"
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image1", "image2", "flow"]
    sides = model.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [0, 3, 0, 0]  # 0: any


def test_a_torch_program_of_one_size_gives_the_models_flow(tmp_path, capsys, estimator):
    out = tmp_path / "new folder" / "model.pt2"
    assert main(["export", "--evals", "2", "--size", "50", "67", "--out", str(out)]) == 0
    assert "67 x 50: at most" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
    assert max(parity(estimator, out, evals=2, pairs=[parity_pair(50, 67)]).values()) < 1e-3
    with zipfile.ZipFile(io.BytesIO(out.read_bytes())) as file:
        name = next(name for name in file.namelist() if name.endswith("deqflow.json"))
        assert json.loads(file.read(name))["evals"] == "2"


def test_a_difference_that_is_too_large_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deqflow.model.export.export", lambda *_, **__: None)
    monkeypatch.setattr("deqflow.model.export.parity", lambda *_, **__: {(64, 96): float("nan")})
    assert main(["export", "--out", str(tmp_path / "model.pt2")]) == 1
    assert "96 x 64: at most nan px" in capsys.readouterr().out


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_the_graphs_module_is_the_estimator(generator, damping):
    torch.manual_seed(0)
    estimator = deqflow.build("tiny", damping=damping).eval()
    images = 255 * torch.rand(2, 1, 3, 37, 50, generator=generator)
    with torch.no_grad():
        expected = estimator(*images, stop=Stop(max_evals=3, atol=0.0)).flow
        assert torch.allclose(FixedEvaluations(estimator, 3)(*images), expected, atol=1e-5)


def test_recurrent_models_export_too(generator):
    torch.manual_seed(0)
    estimator = deqflow.build("small", recurrent=True).eval()
    images = 255 * torch.rand(2, 1, 3, 32, 48, generator=generator)
    with torch.no_grad():
        expected = estimator(*images, stop=Stop(max_evals=2, atol=0.0)).flow
        assert torch.allclose(FixedEvaluations(estimator, 2)(*images), expected, atol=1e-5)


@pytest.mark.parametrize("side", range(16, 25))
def test_indices_pad_and_crop_as_padding_does(side):
    row = torch.arange(float(side)).view(1, 1, 1, side)
    padded = row[..., padded_index(side, row.device)]
    assert torch.equal(padded, Padding(8, side, 8).pad(row.expand(1, 1, 8, side))[:, :, :1])
    assert torch.equal(padded[..., cropped_index(side, row.device)], row)


def test_tracing_leaves_the_estimator_as_it_was(estimator, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    estimator.correlation = "sampled"
    trace(estimator, size=(32, 32))
    assert estimator.correlation == "sampled"
    estimator.correlation = "auto"


def test_export_says_what_it_expects(tmp_path, estimator):
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.pt2, got model\.pb"):
        export(estimator, "model.pb")
    with pytest.raises(ValueError, match="evaluation mode, got one in training"):
        trace(deqflow.build("tiny"))
    with pytest.raises(ValueError, match="at least 1 evaluation, got 0"):
        trace(estimator, evals=0)
    with pytest.raises(ValueError, match=r"at least 16 px a side, got 15x64 \(width x height\)"):
        trace(estimator, size=(64, 15))
    with pytest.raises(ValueError, match="plain iteration, got an estimator with Anderson"):
        trace(deqflow.build("tiny", rule=Anderson()).eval())
    assert isinstance(estimator.equilibrium.rule, Picard)
    with pytest.raises(ValueError, match=r"got model\.pb"):
        ExportedEstimator("model.pb")
    with pytest.raises(FileNotFoundError, match="python -m deqflow export"):
        ExportedEstimator(tmp_path / "none.onnx")


def test_without_the_extra_onnx_says_what_to_install(tmp_path, estimator, monkeypatch, capsys):
    def missing(*_, **__):
        raise ImportError("No module named 'onnxscript'")

    monkeypatch.setattr("deqflow.model.export.trace", lambda *_, **__: None)
    monkeypatch.setattr(torch.onnx, "export", missing)
    out = tmp_path / "model.onnx"
    assert main(["export", "--out", str(out)]) == 1
    assert "pip install 'deqflow[export]'" in capsys.readouterr().err
    assert not out.exists()
    out.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'deqflow\[export\]'"):
        ExportedEstimator(out)
