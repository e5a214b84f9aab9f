import copy
import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pairs import problem_of
from torch import Tensor

import deqflow
from deqflow import build
from deqflow.evidence.video_reuse import VideoSample, at_cuts, flicker, run_clip, summarise
from deqflow.model.geometry import pixel_grid, sample_bilinear
from deqflow.model.scales import resize_flow, resize_images, stop_at_scale
from deqflow.model.state import FlowState
from deqflow.solvers import Stop
from deqflow.video import CutDetector, CutRule, VideoFlow, carry, photometric_error

STOP = Stop(max_evals=12, atol=0.3)


def sequence(generator: torch.Generator, length: int, shift: float, height: int = 48, width: int = 64) -> list[Tensor]:
    """A smooth texture that moves to the right by ``shift`` px a frame, (1, 3, H, W) each."""
    wide = round(width + shift * length + 16)
    noise = torch.rand(1, 3, height // 6, wide // 6, generator=generator)
    texture = 255 * torch.nn.functional.interpolate(noise, (height, wide), mode="bicubic").clamp(0, 1)
    grid = pixel_grid(height, width)
    return [
        sample_bilinear(texture, grid + torch.tensor([shift * (length - i), 0.0]).view(1, 2, 1, 1))
        for i in range(length)
    ]


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture
def moving(generator) -> list[Tensor]:
    return sequence(generator, 6, 2.0)


@pytest.fixture
def with_cut(generator) -> list[Tensor]:
    return [*sequence(generator, 5, 2.0), *sequence(generator, 4, 3.0)]


def state(generator, flow: tuple[float, float]) -> FlowState:
    hidden = torch.rand(1, 4, 6, 8, generator=generator) + 1
    return FlowState(hidden, torch.tensor(flow).view(1, 2, 1, 1).expand(1, 2, 6, 8).clone())


def test_resetting_carries_nothing(generator):
    assert carry(state(generator, (2.0, 0.0)), "reset") is None


def test_reuse_moves_the_flow_and_leaves_the_hidden_state(generator):
    before = state(generator, (2.0, 1.0))
    before.flow[:, :, 1, 1] = torch.tensor([3.0, 2.0])
    after = carry(before, "reuse")
    assert after is not None
    assert torch.equal(after.hidden, before.hidden)
    assert after.flow[0, :, 3, 4].tolist() == pytest.approx([2.5, 1.5])  # it met the one that was there already
    assert after.flow[0, :, 2, 3].tolist() == [2.0, 1.0] or after.flow[0, :, 1, 1].tolist() == [2.0, 1.0]


def test_warping_moves_both_and_fills_what_was_uncovered(generator):
    before = state(generator, (2.0, 1.0))
    after = carry(before, "warp")
    assert after is not None
    torch.testing.assert_close(after.hidden[..., 1:, 2:], before.hidden[..., :-1, :-2])
    torch.testing.assert_close(after.hidden[..., 3, 0], before.hidden[..., 2, 0])  # from the nearest that arrived
    torch.testing.assert_close(after.flow, before.flow)


def test_the_flow_alone_is_moved_and_the_hidden_state_is_the_models_own(generator):
    before, own = state(generator, (2.0, 1.0)), state(generator, (0.0, 0.0))
    before.flow[:, :, 1, 1] = torch.tensor([3.0, 2.0])
    after = carry(before, "flow", own)
    assert after is not None
    assert torch.equal(after.hidden, own.hidden)
    assert torch.equal(after.flow, carry(before, "reuse").flow)
    assert not torch.equal(after.flow, before.flow)
    with pytest.raises(ValueError, match='policy "flow" expects own, the model\'s own start'):
        carry(before, "flow")


@pytest.fixture(scope="module")
def twin():
    return deqflow.load("raft-small-twin")


def test_recurrent_models_carry_the_flow_alone_and_others_both(estimator, twin, moving):
    assert VideoFlow(estimator).policy == "warp"
    video = VideoFlow(twin, stop=STOP)
    assert video.policy == "flow"
    first, second = (video.step(a, b) for a, b in pairwise(moving[:3]))
    with torch.no_grad():
        problem = problem_of(twin, moving[1], moving[2])
        own = FlowState.unpack(problem.z0)
        moved = carry(first.output.state, "flow", own).flow
        expected = problem.solve(start=FlowState(own.hidden, moved), stop=STOP)
    assert own.hidden.abs().max() > 0
    assert torch.equal(second.flow, expected.flow)
    assert not torch.equal(second.flow, problem.solve(start=carry(first.output.state, "warp"), stop=STOP).flow)


@pytest.mark.claims
def test_a_twins_flow_alone_is_a_start_nearer_to_the_end_than_none(twin, moving):
    cold, warm = (run_clip(twin, VideoSample([x[0] for x in moving]), policy, STOP) for policy in ("reset", "flow"))
    assert [step.reset for step in warm] == [True, *[False] * 4]
    for one, other in zip(warm[1:], cold[1:], strict=True):
        assert one.start_residual < 0.7 * other.start_residual


@pytest.mark.claims
@pytest.mark.parametrize("policy", ["warp", "reuse"])
def test_a_carried_start_is_nearer_to_the_end_and_needs_less(estimator, moving, policy):
    cold = run_clip(estimator, VideoSample([x[0] for x in moving]), "reset", STOP)
    warm = run_clip(estimator, VideoSample([x[0] for x in moving]), policy, STOP)
    assert torch.equal(warm[0].flow, cold[0].flow)
    assert [step.reset for step in warm] == [True, *[False] * 4]
    for one, other in zip(warm[1:], cold[1:], strict=True):
        assert one.start_residual < 0.7 * other.start_residual
        assert max(one.residual, other.residual) <= 0.3
    assert sum(step.evaluations for step in warm) < sum(step.evaluations for step in cold)


def test_a_step_without_a_past_is_what_the_estimator_says(estimator, moving):
    step = VideoFlow(estimator, stop=STOP).step(moving[0], moving[1])
    with torch.no_grad():
        output = problem_of(estimator, moving[0], moving[1]).solve(stop=STOP)
        # The same in one pass through the encoder, where oneDNN may round otherwise.
        torch.testing.assert_close(step.flow, estimator(moving[0], moving[1], stop=STOP).flow, rtol=0, atol=1e-3)
    assert torch.equal(step.flow, output.flow)
    assert step.evaluations == int(output.solve.evals)
    assert step.start_residual == float(output.solve.trace[0])
    assert not step.flow.requires_grad


def test_a_carried_step_is_what_the_estimator_says_from_that_start(estimator, moving):
    video = VideoFlow(estimator, policy="warp", stop=STOP)
    first = video.step(moving[0], moving[1])
    second = video.step(moving[1], moving[2])
    with torch.no_grad():
        start = carry(first.output.state, "warp")
        expected = problem_of(estimator, moving[1], moving[2]).solve(start=start, stop=STOP)
    assert torch.equal(second.flow, expected.flow)
    assert second.evaluations == int(expected.solve.evals)


def test_at_scales_a_cold_start_takes_all_of_them_and_a_warm_one_the_last(estimator, moving):
    video = VideoFlow(estimator, stop=STOP, scales=(1.0, 1.5))
    first = video.step(moving[0], moving[1])
    second = video.step(moving[1], moving[2])
    with torch.no_grad():
        cold = deqflow.estimate_at_scales(estimator, moving[0], moving[1], (1.0, 1.5), stop=STOP)
        fine = [resize_images(image, 1.5) for image in moving[1:3]]
        start = carry(cold.outputs[-1].state, "warp")
        warm = estimator(*fine, start=start, stop=stop_at_scale(STOP, 1.5, 8))
    torch.testing.assert_close(first.flow, cold.flow)
    assert first.evaluations == sum(int(output.solve.evals) for output in cold.outputs)
    torch.testing.assert_close(second.flow, resize_flow(warm.flow, 48, 64))
    assert second.evaluations == int(warm.solve.evals)
    assert second.residual == pytest.approx(float(warm.solve.residual), rel=1e-3)


def test_scales_must_suit_the_frames(estimator, moving):
    with pytest.raises(ValueError, match="ascending order"):
        VideoFlow(estimator, scales=(2.0, 1.0))
    with pytest.raises(ValueError, match="at least 16 px"):
        VideoFlow(estimator, scales=(0.25, 1.0)).step(moving[0], moving[1])


def test_the_first_evaluation_is_not_made_twice(estimator, moving, monkeypatch):
    calls = []
    forward = type(estimator.update).forward
    monkeypatch.setattr(type(estimator.update), "forward", lambda *a: calls.append(1) or forward(*a))
    steps = run_clip(estimator, VideoSample([x[0] for x in moving]), "warp", STOP)
    assert len(calls) == sum(step.evaluations for step in steps)


@pytest.mark.parametrize("policy", ["warp", "reuse"])
def test_a_cut_resets_and_costs_at_most_one_evaluation(estimator, with_cut, policy):
    clip = VideoSample([x[0] for x in with_cut], cuts=(5,))
    warm, cold = (run_clip(estimator, clip, p, STOP) for p in (policy, "reset"))
    assert [i for i, step in enumerate(warm) if step.cut] == [4]
    assert [i for i, step in enumerate(warm) if step.reset] == [0, 4, 5]
    for i in (4, 5):
        assert torch.equal(warm[i].flow, cold[i].flow)
        assert warm[i].evaluations - cold[i].evaluations in (0, 1)
    assert at_cuts(clip, warm, cold) == {
        "cuts": 1,
        "found": 1,
        "false_alarms": 0,
        "most_extra": max(warm[i].evaluations - cold[i].evaluations for i in (4, 5)),
    }


@pytest.mark.claims
def test_a_cut_that_brightness_does_not_show_is_seen_by_the_residual(estimator, with_cut):
    blind = CutRule(photometric_above=1e9, residual_times=2.0, residual_above=0.5)
    warm = VideoFlow(estimator, stop=STOP, cut=blind)
    cold = VideoFlow(estimator, stop=STOP, policy="reset")
    steps = [(warm.step(a, b), cold.step(a, b)) for a, b in pairwise(with_cut)]
    # Across the cut nothing matches, and the carried flow may stay; what moves otherwise after it cannot be missed.
    (seen,) = [i for i, (step, _) in enumerate(steps) if step.cut]
    assert seen in (4, 5)
    one, other = steps[seen]
    assert one.reset
    assert torch.equal(one.flow, other.flow)
    assert one.evaluations == other.evaluations + 1  # the one that showed it


def test_cuts_can_be_left_to_the_caller(estimator, with_cut):
    video = VideoFlow(estimator, stop=STOP, cut=None)
    steps = [video.step(a, b) for a, b in pairwise(with_cut)]
    assert [step.reset for step in steps] == [True, *[False] * 7]
    video.reset()
    assert video.step(with_cut[0], with_cut[1]).reset


def test_another_size_begins_anew(estimator, generator, moving):
    video = VideoFlow(estimator, stop=STOP)
    video.step(moving[0], moving[1])
    other = sequence(generator, 2, 1.0, height=40)
    assert video.step(other[0], other[1]).reset


def test_300_frames_take_the_memory_of_60(generator):
    estimator = build("mini").eval()
    texture = torch.rand(1, 3, 32, 340, generator=generator) * 255
    born: list[weakref.ref] = []

    def frames():
        for i in range(300):
            frame = texture[..., i : i + 32].clone()
            born.append(weakref.ref(frame))
            yield frame

    video = VideoFlow(estimator, stop=Stop(max_evals=1, atol=0.0))
    alive, tensors = {}, {}
    for count, _ in enumerate(video.run(frames()), 1):
        if count in (60, 299):
            gc.collect()
            tensors[count] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
            alive[count] = sum(frame() is not None for frame in born)
    assert len(born) == 300
    assert alive[299] == alive[60] <= 3
    assert tensors[299] <= tensors[60]  # what earlier tests left behind may go meanwhile


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_a_hole(estimator, moving, value):
    video = VideoFlow(estimator, stop=STOP)
    video.step(moving[0], moving[1])
    assert video.state is not None
    video.state.flow[0, 0, 2, 2] = value
    step = video.step(moving[1], moving[2])
    assert not step.reset
    assert torch.isfinite(step.flow).all()


@pytest.mark.filterwarnings("ignore:A solve diverged")
def test_a_failed_solve_is_not_carried_over(estimator, moving):
    broken = copy.deepcopy(estimator)
    with torch.no_grad():
        next(broken.update.parameters()).fill_(torch.nan)
    video = VideoFlow(broken, stop=STOP)
    video.step(moving[0], moving[1])
    video.estimator = estimator
    step = video.step(moving[1], moving[2])
    assert step.reset
    assert torch.isfinite(step.flow).all()


def test_one_pair_at_a_time(estimator, moving):
    with pytest.raises(ValueError, match="one pair at a time"):
        VideoFlow(estimator).step(moving[0].expand(2, -1, -1, -1), moving[1].expand(2, -1, -1, -1))


def test_policies_have_names(estimator):
    with pytest.raises(ValueError, match="Unknown policy 'hot': expected one of reset, reuse, warp, flow"):
        VideoFlow(estimator, policy="hot")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"photometric_times": 0.5}, "factors of at least 1"),
        ({"residual_times": 0.0}, "factors of at least 1"),
        ({"photometric_above": -1.0}, "margins of 0 or more"),
        ({"memory": 0}, "memory of at least 1"),
    ],
)
def test_cut_rules_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        CutRule(**options)


def test_a_jump_is_both_relative_and_absolute():
    detector = CutDetector(CutRule(photometric_times=2.0, photometric_above=5.0, memory=3))
    assert not detector.is_new_scene(1e9)  # nothing to compare with
    for usual in (1.0, 1.0, 1.5):
        detector.remember(usual, None)
    assert not detector.is_new_scene(5.0)
    assert detector.is_new_scene(6.5)
    for usual in (10.0, 10.0, 10.0):
        detector.remember(usual, None)
    assert not detector.is_new_scene(19.0)
    assert detector.is_new_scene(21.0)
    assert not detector.is_lost(1e9)  # no carried start has been seen
    detector.forget()
    assert not detector.is_new_scene(1e9)


def test_the_photometric_error_is_small_along_the_flow_only(generator):
    first, second = (image / 127.5 - 1 for image in sequence(generator, 2, 8.0))  # as features hold them
    still, along = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 6, 8)
    along[:, 0] = 1
    assert photometric_error(first, second, along) < 0.01
    brighter = second + 3 / 127.5
    assert photometric_error(first, brighter, along) == pytest.approx(3, abs=0.02)  # in grey levels
    assert photometric_error(first, second, still) > 10
    away = torch.full((1, 2, 6, 8), 100.0)  # everything leaves the frame
    assert photometric_error(first, second, away) > 10


def test_flicker_follows_trajectories():
    ramp = pixel_grid(20, 30)[:, :1].expand(1, 2, 20, 30) * torch.tensor([0.1, 0.0]).view(1, 2, 1, 1)
    here = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
    assert flicker(here, here) == pytest.approx(0, abs=1e-5)
    assert flicker(here, here + torch.tensor([0.0, 0.5]).view(1, 2, 1, 1)) == pytest.approx(0.5, abs=1e-4)
    # A pattern of flow that moves along with the flow does not flicker.
    assert flicker(here + 0 * ramp, here) < 1e-4
    assert flicker(torch.full((1, 2, 20, 30), 99.0), here) == 0


def test_what_is_summed_up_leaves_out_the_first_pair_and_cuts(estimator, with_cut):
    truth = [torch.zeros(2, 48, 64)] * 9
    clip = VideoSample([x[0] for x in with_cut], [*truth[:4], None, *truth[5:]], cuts=(5,))
    steps = run_clip(estimator, clip, "reset", STOP)
    numbers = summarise(clip, steps)
    assert len(steps) == 8
    kept = [steps[i] for i in (1, 2, 3, 5, 6, 7)]
    assert numbers["evaluations"] == [step.evaluations for step in kept]
    assert numbers["error_px"] == pytest.approx([float(s.flow.norm(dim=1).mean()) for s in kept], rel=1e-5)
    assert len(numbers["flicker_px"]) == 4  # 1-2, 2-3; 5-6, 6-7
    nowhere = torch.full((2, 48, 64), torch.nan)  # a true flow without a known pixel
    assert summarise(replace(clip, flows=[nowhere, nowhere, *clip.flows[2:]]), steps)["error_px"] == pytest.approx(
        numbers["error_px"][1:]
    )
    untrue = summarise(replace(clip, flows=()), steps)
    assert untrue["error_px"] == []


def test_a_clip_has_two_frames(estimator):
    with pytest.raises(ValueError, match="at least two frames, got 1: flow is from each one to the next"):
        run_clip(estimator, VideoSample([torch.zeros(3, 32, 40)]), "reset", STOP)
