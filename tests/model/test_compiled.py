"""``deqflow.load(..., compile=True)``: encoders and update operator are compiled, and the flow stays the same.

What inductor makes of them takes minutes to compile, so that only ``make bench`` compiles for real.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import deqflow
from deqflow.model.compiled import compile_estimator, require_compiler
from deqflow.solvers import Stop
from deqflow.video import VideoFlow


@pytest.fixture
def traced(monkeypatch) -> list[dict]:
    """Compile without generating machine code; holds the options of each compilation."""
    asked, compile_module = [], torch.nn.Module.compile

    def trace(module, **options):
        asked.append(options)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    monkeypatch.setattr("deqflow.model.compiled.require_compiler", lambda: None)
    torch._dynamo.reset()
    return asked


def test_a_compiled_model_gives_the_same_flow_and_saves_the_same_file(tmp_path, generator, traced):
    torch.manual_seed(0)
    path = deqflow.save(deqflow.build("mini", max_evals=4, atol=0.0), tmp_path / "mini.safetensors")
    plain, compiled = deqflow.load(path), deqflow.load(path, compile=True)
    assert traced == [{"options": {"freezing": True}}] * 2, "an encoder for features and context, and the update"
    frames = [255 * torch.rand(1, 3, 32, 48, generator=generator) for _ in range(3)]
    expected = plain(*frames[:2]).flow
    assert expected.abs().max() > 0.1
    assert (compiled(*frames[:2]).flow - expected).abs().max() < 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not any(parameter.requires_grad for parameter in compiled.parameters())
    for (_, found), (_, wanted) in zip(VideoFlow(compiled).run(frames), VideoFlow(plain).run(frames), strict=True):
        assert (found.flow - wanted.flow).abs().max() < 1e-3
    again = deqflow.save(compiled, tmp_path / "again.safetensors")
    assert load_file(again).keys() == load_file(path).keys()
    assert torch.equal(deqflow.load(again)(*frames[:2], stop=Stop(max_evals=4, atol=0.0)).flow, expected)


def test_without_a_compiler_an_error_message_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match=r"a C\+\+ compiler, got none called no-such-compiler"):
        compile_estimator(deqflow.build("mini"))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="install one, name yours in the environment variable CXX"):
        require_compiler()
