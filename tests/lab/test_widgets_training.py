import base64
import dataclasses
import threading

import pytest
import torch
from training_runs import CONFIG

import deqflow
from deqflow.data.datasets import FlowSample
from deqflow.lab.notebook import CHOICES
from deqflow.lab.widgets.training import TrainingPanel
from deqflow.training import Trainer

RUN = dataclasses.replace(CONFIG, size="small", steps=4, batch=1, evals=(3, 3), validate_every=1)


class Slow(Trainer):
    """Waits before its third step until it is let go; says that it is there."""

    def train_step(self, batch: FlowSample) -> float:
        if self.step == 2:
            self.there.set()
            assert self.go.wait(60)
        return super().train_step(batch)


@pytest.fixture
def slow(tmp_path) -> Slow:
    trainer = Slow(RUN, tmp_path)
    trainer.there, trainer.go = threading.Event(), threading.Event()
    return trainer


def test_headless_it_waits_and_stands_for_itself(tmp_path):
    trainer = Trainer(RUN, tmp_path)
    before = trainer.estimator.state_dict()["update.head.conv2.bias"].clone()
    panel = TrainingPanel(trainer, wait=True)
    assert trainer.finished
    assert panel.join() is trainer.estimator
    assert not torch.equal(trainer.estimator.state_dict()["update.head.conv2.bias"], before)
    assert [entry.step for entry in panel.entries] == [1, 2, 3, 4]
    assert "Finished: 4 steps" in panel.message.value
    assert (panel.stop_button.disabled, panel.go_on_button.disabled) == (True, True)
    bundle = panel._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == panel.still()
    assert panel.curves.image.value == panel.still()
    assert [choice["label"] for choice in bundle[CHOICES]] == ["Stop", "Go on"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_preview_is_the_flow_of_the_model_as_it_is(tmp_path):
    panel = TrainingPanel(Trainer(RUN, tmp_path), wait=True)
    with torch.no_grad():
        flow = panel.trainer.estimator(panel.preview.image1[None], panel.preview.image2[None]).flow[0]
    assert torch.equal(panel._flow, flow)


def test_an_interrupt_while_waiting_stops_the_run_and_keeps_its_state(slow, monkeypatch):
    panel = TrainingPanel(slow)
    assert slow.there.wait(60)
    join, calls = panel._work.join, []

    def interrupted():
        calls.append(None)
        if len(calls) == 1:
            slow.go.set()
            raise KeyboardInterrupt
        join()

    monkeypatch.setattr(panel._work, "join", interrupted)
    panel.join()
    assert (slow.step, slow.finished) == (3, False)
    assert "Stopped after 3 of 4 steps" in panel.message.value


def test_a_run_is_stopped_and_goes_on(slow):
    panel = TrainingPanel(slow)
    assert slow.there.wait(60)
    assert (panel.stop_button.disabled, panel.go_on_button.disabled) == (False, True)
    assert "step 2" in panel.message.value
    panel.stop_button.click()
    slow.go.set()
    panel.join()
    assert (slow.step, slow.finished) == (3, False)
    assert "Stopped after 3 of 4 steps" in panel.message.value
    assert (panel.stop_button.disabled, panel.go_on_button.disabled) == (True, False)
    panel.go_on_button.click()
    panel.join()
    assert slow.finished
    assert [entry.step for entry in panel.entries] == [1, 2, 3, 4]


def test_a_second_start_changes_nothing_while_the_run_is_under_way(slow):
    panel = TrainingPanel(slow)
    assert slow.there.wait(60)
    panel.start()
    slow.go.set()
    panel.join()
    assert [entry.step for entry in panel.entries] == [1, 2, 3, 4]


@pytest.mark.parametrize("wait", [True, False])
def test_what_training_raises_is_shown_and_raised(tmp_path, wait):
    class Spoilt(Trainer):
        def train_step(self, batch: FlowSample) -> float:
            return super().train_step(batch._replace(image1=batch.image1 * float("nan")))

    trainer = Spoilt(RUN, tmp_path)
    if wait:
        with pytest.raises(FloatingPointError, match="loss of step 0"):
            TrainingPanel(trainer, wait=True)
        return
    panel = TrainingPanel(trainer)
    with pytest.raises(FloatingPointError, match="loss of step 0"):
        panel.join()
    assert "loss of step 0" in panel.message.value
    assert panel.progress.bar_style == "danger"


def test_a_preview_of_ones_own_needs_no_truth(tmp_path):
    pair = FlowSample(
        *(255 * torch.rand(3, 32, 40) for _ in range(2)), torch.zeros(2, 32, 40), *[torch.zeros(32, 40) > 0] * 2
    )
    panel = TrainingPanel(Trainer(dataclasses.replace(RUN, steps=1), tmp_path), preview=pair, wait=True)
    assert panel.trainer.finished


@pytest.mark.parametrize("frozen", ["freeze_encoders", "freeze_batch_norm"])
def test_what_is_frozen_stays_frozen_after_each_log(tmp_path, frozen):
    """Pitfall 42: the preview put the whole model into training mode again."""
    modes = []

    class Watched(Trainer):
        def train_step(self, batch: FlowSample) -> float:
            parts = self.estimator.modules() if frozen == "freeze_batch_norm" else [self.estimator.feature_encoder]
            norms = [part for part in parts if isinstance(part, torch.nn.BatchNorm2d)]
            modes.append((self.estimator.training, any(part.training for part in norms or parts)))
            return super().train_step(batch)

    start = deqflow.save(deqflow.build("tiny"), tmp_path / "start.safetensors")
    config = dataclasses.replace(RUN, size="tiny", batch=2, start_from=str(start), **{frozen: True})
    TrainingPanel(Watched(config, tmp_path / "run"), wait=True)
    assert modes == [(True, False)] * 4
