"""What an estimator returns, and the one door for two images."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import deqflow
from deqflow.data.colors import flow_to_rgb
from deqflow.data.flow_files import FLOW_SUFFIXES
from deqflow.data.images import as_images
from deqflow.equilibrium import Correction, Equilibrium, Phantom
from deqflow.model.output import NUMBERS
from deqflow.solvers import Anderson, Picard, Stop

THREE = Stop(max_evals=3, atol=0.0)


@pytest.fixture(scope="module")
def estimator():
    return deqflow.load("deqflow-small")


@pytest.fixture
def pictures(generator):
    """Two images (H, W, 3) of whole grey levels."""
    return [(255 * torch.rand(30, 44, 3, generator=generator)).byte().numpy() for _ in range(2)]


@pytest.fixture
def expected(estimator, pictures):
    tensors = [torch.from_numpy(picture).float().permute(2, 0, 1)[None] for picture in pictures]
    return estimator(*tensors, stop=THREE).flow


FORMS = {
    "array of bytes": lambda x: x,
    "array of floats": lambda x: x.astype(np.float32),
    "array, channels first": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)),
    "batch of arrays": lambda x: x[None],
    "array with transparency": lambda x: np.dstack([x, np.full((30, 44), 7, np.uint8)]),
    "array in reverse": lambda x: x[::-1][::-1],
    "PIL": Image.fromarray,
    "PIL with transparency": lambda x: Image.fromarray(x).convert("RGBA"),
    "tensor": lambda x: torch.from_numpy(x).permute(2, 0, 1),
    "tensor of floats": lambda x: torch.from_numpy(x).permute(2, 0, 1).double(),
    "tensor, channels last": torch.from_numpy,
    "batch of tensors": lambda x: torch.from_numpy(x).permute(2, 0, 1)[None],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_images_come_in_any_form(estimator, pictures, expected, form):
    output = deqflow.flow(*map(form, pictures), model=estimator, max_evals=3, atol=0.0)
    assert output.flow.shape == (1, 2, 30, 44)
    assert torch.equal(output.flow, expected)


@pytest.mark.parametrize("kind", [str, Path])
def test_images_come_from_files(tmp_path, estimator, pictures, expected, kind):
    paths = [kind(deqflow.write_image(tmp_path / f"{i}.png", picture)) for i, picture in enumerate(pictures)]
    assert torch.equal(deqflow.flow(*paths, model=estimator, max_evals=3, atol=0.0).flow, expected)
    with pytest.raises(FileNotFoundError):
        deqflow.flow(tmp_path / "none.png", paths[0], model=estimator)


def test_a_batch_gives_a_batch(estimator, pictures):
    both = np.stack(pictures)
    output = deqflow.flow(both, both[::-1], model=estimator, max_evals=2)
    assert output.flow.shape == (2, 2, 30, 44)
    assert output.numpy().shape == (2, 30, 44, 2)
    with pytest.raises(ValueError, match="save expects the output of one pair, got 2"):
        output.save("flow.flo")


def test_grey_images_get_three_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for form in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert as_images(form).shape == (1, 3, 3, 4)
        assert torch.equal(as_images(form)[0, 2], torch.from_numpy(grey).float())


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        ([[0]], TypeError, "image1 expects a path, a PIL image, a NumPy array or a tensor, got list: open a file"),
        (
            np.zeros((20, 20, 3), np.uint16),
            TypeError,
            "uint8 or floating-point values in 0..255, got uint16: divide them by 257",
        ),
        (torch.zeros(20, 20, dtype=torch.int64), TypeError, "got int64: convert them"),
        (torch.ones(20, 20, dtype=torch.bool), TypeError, "got bool: multiply them by 255"),
        (np.zeros((20, 20), object), TypeError, "got object: convert them"),
        (np.zeros((20, 20), np.longdouble), TypeError, "got (float128|longdouble|float96): convert them"),
        (torch.zeros(3, 20, 20).to(torch.float8_e4m3fn), TypeError, "got float8_e4m3fn: convert them"),
        (Image.fromarray(np.zeros((20, 20), np.int32)), ValueError, "8 or 16 bits, got mode 'I' with 32"),
        (Image.fromarray(np.zeros((20, 20), np.float32)), ValueError, "8 or 16 bits, got mode 'F' with 32"),
        (np.zeros((0, 20, 20, 3)), ValueError, "one number of images, at least 1, got 0 and 1"),
        (np.zeros((2, 20, 20, 3), np.uint8), ValueError, "one number of images, at least 1, got 2 and (2|1)"),
        (np.zeros((20, 30, 3), np.uint8), ValueError, r"one size, got 30x20 and 20x20 \(width x height\)"),
        (np.zeros((20, 20, 5)), ValueError, r"with 1, 3 or 4 channels, got \(20, 20, 5\)"),
        (torch.zeros(1, 1, 3, 20, 20), ValueError, r"got \(1, 1, 3, 20, 20\)"),
        (np.zeros((9, 20, 3), np.uint8), ValueError, "at least 16 px a side"),
    ],
)
def test_what_is_no_image_is_refused(estimator, image, error, sentence):
    other = image if np.shape(image)[:1] == (9,) else np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(error, match=sentence):
        deqflow.flow(image, other, model=estimator)


def test_grey_pil_images_of_16_bits_are_scaled(tmp_path):
    values = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), values)
    with Image.open(path) as image:
        assert torch.equal(as_images(image), as_images(path))
    assert torch.equal(as_images(Image.fromarray(values))[0, 1], torch.from_numpy(values.astype(np.float32) / 257))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_pil_image_is_turned_as_its_file_is(tmp_path, orientation, suffix):
    path, exif = tmp_path / f"turned{suffix}", Image.Exif()
    exif[0x0112] = orientation
    shades = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    Image.fromarray(np.dstack([shades] * 3)).save(path, exif=exif, quality=100)
    with Image.open(path) as image:
        turned = as_images(image)
    assert turned.shape == as_images(path).shape == ((1, 3, 16, 24) if orientation < 5 else (1, 3, 24, 16))
    assert (turned - as_images(path)).abs().max() <= 2  # two decoders of .jpg


def test_arrays_that_torch_does_not_know_are_taken(estimator, pictures, expected):
    locked = pictures[0].copy()
    locked.flags.writeable = False
    output = deqflow.flow(locked, pictures[1].astype(">f4"), model=estimator, max_evals=3, atol=0.0)
    assert torch.equal(output.flow, expected)


def test_an_estimate_changes_nothing_of_a_model_in_training(pictures):
    torch.manual_seed(0)
    model = deqflow.build("base", recurrent=True, dropout=0.5)  # batch norm in its context network
    model.feature_encoder.eval()
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    output = deqflow.flow(*pictures, model=model, max_evals=1)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(output.flow, deqflow.flow(*pictures, model=model.eval(), max_evals=1).flow)


def test_the_door_keeps_all_of_the_models_stop_and_its_device(estimator, pictures):
    own = estimator.equilibrium.eval_stop
    estimator.equilibrium.eval_stop = Stop(max_evals=5, atol=0.0, max_seconds=1e-9)
    try:
        assert deqflow.flow(*pictures, model=estimator).solve.evals.tolist() == [1]
    finally:
        estimator.equilibrium.eval_stop = own
    assert deqflow.flow(*pictures, model=estimator, device="cpu", max_evals=1).flow.device.type == "cpu"
    with pytest.raises(ValueError, match="device expects that of the given estimator, cpu, got cpu:3: move"):
        deqflow.flow(*pictures, model=estimator, device="cpu:3")
    for device in ("nonsense", None, 0):
        with pytest.raises(ValueError, match="Expected a device such as auto"):
            deqflow.flow(*pictures, model=estimator, device=device)


@pytest.mark.parametrize("scales", [2.0, None, (float("nan"),), (1.0, float("inf")), "12", (1, "2"), torch.ones(2)])
def test_scales_that_make_no_sense_are_refused(estimator, pictures, scales):
    with pytest.raises(ValueError, match="scales expects one or more positive factors in ascending order"):
        deqflow.flow(*pictures, model=estimator, scales=scales)


@pytest.mark.parametrize("model", [None, 3, torch.nn.Linear(1, 1)])
def test_what_is_no_model_is_refused(pictures, model):
    with pytest.raises(TypeError, match="A model is expected as a name or a path, got"):
        deqflow.flow(*pictures, model=model)


def test_the_doors_options_reach_the_solve(estimator, pictures):
    plain = deqflow.flow(*pictures, model=estimator)
    assert plain.solve.stop.max_evals == estimator.equilibrium.eval_stop.max_evals
    assert not plain.flow.requires_grad
    assert torch.equal(deqflow.flow(*pictures).flow, plain.flow)  # the shipped model by default
    assert deqflow.flow(*pictures, model="deqflow-small", max_evals=2, atol=0.0).solve.evals.tolist() == [2]
    loose = deqflow.flow(*pictures, model=estimator, atol=1e6)
    assert loose.solve.evals.tolist() == [1]
    other = deqflow.flow(*pictures, model=estimator, rule=Anderson(), max_evals=9, atol=0.0)
    assert not torch.equal(other.flow, deqflow.flow(*pictures, model=estimator, max_evals=9, atol=0.0).flow)
    assert deqflow.flow(*pictures, device="cpu", max_evals=1).flow.device.type == "cpu"


def test_the_door_solves_at_scales(estimator, pictures):
    images = [as_images(picture) for picture in pictures]
    with torch.no_grad():
        expected = deqflow.estimate_at_scales(estimator, *images, (1.0, 1.5))
    output = deqflow.flow(*pictures, model=estimator, scales=(1.0, 1.5))
    assert torch.equal(output.flow, expected.flow)
    assert output.flow.shape == (1, 2, 30, 44)
    with pytest.raises(ValueError, match="ascending order"):
        deqflow.flow(*pictures, model=estimator, scales=(2.0, 1.0))


def test_a_checkpoints_path_is_a_model(tmp_path, pictures):
    torch.manual_seed(0)
    model = deqflow.build("mini").eval()
    path = deqflow.save(model, tmp_path / "model.safetensors")
    for name in (path, str(path)):
        assert torch.equal(deqflow.flow(*pictures, model=name).flow, deqflow.flow(*pictures, model=model).flow)


def test_an_output_says_in_a_few_lines_what_it_is(estimator, pictures):
    text = repr(deqflow.flow(*pictures, model=estimator, max_evals=3, atol=0.0))
    assert len(text.splitlines()) == 3
    assert text.startswith("FlowOutput: 1 flow field of 44 x 30 px, on cpu, mean length ")
    assert "solve: max_evals after 3 evaluations; the last one moved the flow by " in text
    assert "(tolerance 0 px)" in text
    assert "state: hidden (1, 64, 4, 6), flow (1, 2, 4, 6); 1 correction" in text
    training = estimator.train()(*(as_images(picture) for picture in pictures), stop=THREE)
    estimator.eval()
    assert len(repr(training).splitlines()) == 3  # a graph is no obstacle


def test_an_output_becomes_an_array_a_picture_and_a_file(tmp_path, estimator, pictures, expected):
    output = deqflow.flow(*pictures, model=estimator, max_evals=3, atol=0.0)
    assert output.numpy().dtype == np.float32
    assert np.array_equal(output.numpy(), expected[0].permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(output.show()), flow_to_rgb(expected[0]))
    for suffix in (".flo", ".pfm"):
        path = output.save(tmp_path / f"flow{suffix}")
        assert torch.equal(deqflow.read_flow(path)[0], expected[0])
    path = output.save(tmp_path / "flow.png")
    assert torch.equal(deqflow.read_image(path)[0].permute(1, 2, 0), torch.from_numpy(flow_to_rgb(expected[0])).float())
    for suffix in (".ppm", ".JPG", ".pnm", ".TIFF"):
        assert deqflow.read_image(output.save(tmp_path / f"flow{suffix}")).shape == (1, 3, 30, 44)
    with pytest.raises(ValueError, match=r"such as .png or .jpg, got '.txt'. The numbers of a flow go into .flo, "):
        output.save(tmp_path / "flow.txt")
    assert set(NUMBERS) == FLOW_SUFFIXES - {".png"}
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match="there is a folder of this name: choose another name"):
        output.save(tmp_path / "folder.png")
    with pytest.raises(OSError, match=r"flow.png is a file, where a folder is needed"):
        output.save(tmp_path / "flow.png" / "flow.flo")


# What is warned of


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda x: (x / 255 - 0.45) / 0.225, "as after normalisation by a mean and a standard deviation: undo it"),
        (lambda x: x / 255, "multiply by 255 if they are 0..1"),
        (lambda x: x * 16 / 257, "multiply by 16 if they have 12 bits and were read as 16"),
        (lambda x: x * 257, "divide by 257 if they have 16 bits"),
        (lambda x: x / 127.5 - 1, "as after normalisation"),
        (lambda x: x - 128, "as after normalisation"),
        (lambda x: x * 4 / 257, "multiply by 64 if they have 10 bits and were read as 16"),
    ],
)
def test_a_range_of_values_that_looks_wrong_is_warned_of(estimator, pictures, change, advice):
    images = [change(as_images(picture)) for picture in pictures]
    with pytest.warns(UserWarning, match=advice) as caught:
        estimator(*images, max_evals=1)
    assert [warning.filename for warning in caught] == [__file__]
    ordinary = images[1] if "0..1" in advice else as_images(pictures[1])  # one image of 0..1 may be a dark frame
    with pytest.warns(UserWarning, match=advice) as caught:  # else one image is enough, at any depth of calls
        deqflow.flow(ordinary, images[0], model=estimator, max_evals=1)
    assert [warning.filename for warning in caught] == [__file__]
    images[0].requires_grad_()
    with pytest.warns(UserWarning, match=advice):
        estimator(*images, max_evals=1)


@pytest.mark.parametrize("low", [0, 20])
def test_ordinary_images_are_not_warned_of(estimator, low, recwarn):
    for high in (low + 9, 255, 300):  # dark, ordinary, and sharpened
        image = torch.linspace(low, high, 400).view(1, 1, 20, 20).expand(1, 3, 20, 20)
        if high > 16:
            estimator(image, image, max_evals=1)
    for high in (0, 2, 3, 10):  # black, and dark images of 8 bits
        image = torch.zeros(1, 3, 20, 20)
        image[..., ::2] = high
        estimator(image, image, max_evals=1)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "anderson"}, r"rule expects a solver such as Picard\(\)"),
        ({"rule": Anderson}, "rule expects a solver such as"),
        ({"stop": 3}, r"stop expects a Stop\(max_evals=..., atol=...\), got 3"),
        ({"start": torch.zeros(1, 2, 4, 6)}, "start expects a FlowState, .* got Tensor"),
        ({"on_eval": 3}, "on_eval expects a function of an Evaluation, got 3"),
        ({"on_eval": lambda evaluation: evaluation.fz > 0}, "one truth value .* got Tensor with several"),
        ({"on_eval": lambda _: np.zeros(3)}, "one truth value .* got ndarray with several"),
    ],
)
def test_options_of_another_type_are_refused(estimator, pictures, options, sentence):
    images = [as_images(picture) for picture in pictures]
    with pytest.raises(TypeError, match=sentence):
        estimator(*images, **options)
    for image in (images[0].to_sparse(), images[0].to("meta")):
        with pytest.raises(TypeError, match="image1 expects a floating-point or uint8 tensor"):
            estimator(image, images[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gradient": "phantom"}, r"gradient expects a mode such as Phantom\(steps=3\) or Implicit\(\), got 'phantom'"),
        ({"gradient": Phantom}, "gradient expects a mode such as"),
        ({"rule": "anderson"}, r"rule expects a solver such as Picard\(\)"),
    ],
)
def test_a_model_of_parts_of_another_type_is_not_built(options, sentence):
    with pytest.raises(TypeError, match=sentence):
        deqflow.build("tiny", **options)
    parts = {"rule": Picard(), "gradient": Phantom()} | options
    with pytest.raises(TypeError, match=sentence):
        Equilibrium(stop=Stop(max_evals=3, atol=0.0), **parts)
    if "gradient" in options:
        with pytest.raises(TypeError, match=sentence):
            Correction(3, options["gradient"])


@pytest.mark.parametrize("stops", [{"stop": 3}, {"stop": Stop(max_evals=3, atol=0.0), "eval_stop": 3}])
def test_a_layer_without_a_stop_is_not_built(stops):
    with pytest.raises(TypeError, match=r"stop expects a Stop\(max_evals=..., atol=...\), got 3"):
        Equilibrium(rule=Picard(), gradient=Phantom(), **stops)


def test_numbers_of_numpy_are_numbers(estimator, pictures):
    images = [as_images(picture) for picture in pictures]
    assert estimator(*images, max_evals=np.int64(2), atol=np.float32(0)).solve.evals.tolist() == [2]
    with pytest.raises(ValueError, match="Stop expects tolerances of 0 or more, got atol='x'"):
        estimator(*images, atol="x")
