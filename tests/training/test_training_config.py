import dataclasses
import math
from pathlib import Path

import pytest
from training_runs import CONFIG, QUICK

from deqflow.__main__ import main
from deqflow.commands.train import Train
from deqflow.data.synthetic import RICH_SCENES, SceneConfig
from deqflow.training import HELD_OUT_SEED, PUBLISHED, TrainConfig, Trainer, read_config
from deqflow.training.files import write_config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "at least 1 step and 1 pair, got 0 and 2"),
        ({"batch": 0}, "at least 1 step and 1 pair, got 6 and 0"),
        ({"accumulate": 0}, "accumulate of at least 1 that divides batch=2, got 0"),
        ({"accumulate": 3}, "accumulate of at least 1 that divides batch=2, got 3"),
        ({"validate_every": 0}, "validate_every and validation_pairs of at least 1, got 0 and 1"),
        ({"validation_pairs": 0}, "validate_every and validation_pairs of at least 1, got 2 and 0"),
        ({"seed": -1}, "a seed of 0 or more other than 1000003.* got -1"),
        ({"seed": HELD_OUT_SEED}, "1000003, which makes the held-out pairs, got 1000003"),
        ({"evals": (7, 6)}, r"evals as \(least, greatest\).* got \(7, 6\)"),
        ({"evals": (2, 6)}, r"no smaller than corrections=3, got \(2, 6\)"),
        ({"corrections": 4}, "no smaller than corrections=4"),
        ({"jacobian_weight": -1.0}, "jacobian_weight of 0 or more, got -1.0"),
        ({"jacobian_weight": float("nan")}, "jacobian_weight of 0 or more, got nan"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": "medium"}, "Unknown size 'medium': expected one of tiny"),
        ({"corrections": 0}, "corrections of at least 1"),
        ({"phantom_steps": 0}, "Phantom expects steps"),
    ],
)
def test_what_no_model_can_be_built_with_is_told_at_once(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(dataclasses.replace(CONFIG, **change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        TrainConfig(learning_rate=1e-3)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_configuration_is_read_as_it_was_written(tmp_path):
    scenes = dataclasses.replace(RICH_SCENES, height=48, photographs="mine")
    config = TrainConfig(
        size="tiny", update="gma", seed=3, lr=1e-4, evals=(4, 9), corrections=2, stage="things", crop=(64, 96),
        bfloat16=False, start_from="deqflow-small", scenes=scenes,
    )  # fmt: skip
    assert read_config(write_config(config, tmp_path / "run.yaml")) == config
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def test_what_a_file_does_not_say_has_its_default(tmp_path):
    text = "lr: 1e-4\nsteps: 20\nclip: 2\nevals: [3, 5]\nscenes:\n  height: 64\n  motion_scales: [0.5, 1]\n"
    config = read_config(write(tmp_path, text))
    scenes = SceneConfig(height=64, motion_scales=(0.5, 1.0))
    assert config == TrainConfig(lr=1e-4, steps=20, clip=2.0, evals=(3, 5), scenes=scenes)
    assert isinstance(config.clip, float)
    assert read_config(write(tmp_path, "")) == TrainConfig()


def test_a_file_may_begin_with_a_preset(tmp_path):
    config = read_config(write(tmp_path, "preset: kitti\nsteps: 7\n"))
    assert config == dataclasses.replace(PUBLISHED["kitti"], steps=7)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rat: 1", r"run.yaml: no setting learning_rat: expected one of size, update"),
        ("step: 1", r"no setting step: did you mean 'steps'\?"),
        ("scenes:\n  heigth: 64", r"no setting scenes.heigth: did you mean 'height'\?"),
        ("steps: many", "steps expects int, got 'many'"),
        ("steps: 1.5", "steps expects int, got 1.5"),
        ("steps: true", "steps expects int, got True"),
        ("lr: fast", "lr expects float, got 'fast'"),
        ("bfloat16: 1", "bfloat16 expects bool, got 1"),
        ("evals: 6", r"evals expects a list such as \[int, int\], got 6"),
        ("evals: [6]", r"evals expects a list such as \[int, int\], got \[6\]"),
        ("scenes: 3", "scenes expects SceneConfig, got 3"),
        ("scenes:\n  photographs: 3", "scenes.photographs expects str, got 3"),
        ("stage: cars", "stage expects one of '', 'chairs', 'things', 'sintel', 'kitti', got 'cars'"),
        ("preset: cars", "Unknown preset 'cars'"),
        ("steps: 0", "at least 1 step"),
        ("- 1", "expects lines such as 'steps: 1500', got list"),
        ("steps: [", "is no YAML file"),
        ("steps: !!python/object/apply:os.getcwd []", "is no YAML file"),
    ],
)
def test_a_file_that_makes_no_sense_is_told(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(write(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No configuration at .*nothing.yaml: expected a YAML file"):
        read_config(tmp_path / "nothing.yaml")


def test_train_takes_a_file_and_what_is_said_beside_it(tmp_path, capsys):
    path = write_config(dataclasses.replace(QUICK, steps=1, seed=3), tmp_path / "run.yaml")
    folder = tmp_path / "run"
    assert main(["train", "--config", str(path), "--folder", str(folder), "--seed", "4", "--device", "cpu"]) == 0
    assert read_config(folder / "config.yaml") == dataclasses.replace(QUICK, steps=1, seed=4)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Training on one CPU, in {folder}."
    assert said[1].startswith("step 1: loss ")
    assert said[2].startswith(f"Wrote {folder / 'model.safetensors'}")


def test_train_takes_a_preset_and_weights_to_go_on_from(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Train, "__call__", lambda command: seen.append(command) or 0)
    arguments = ["--preset", "things", "--from", "chairs.safetensors", "--steps", "9", "--folder", str(tmp_path)]
    assert main(["train", *arguments]) == 0
    changes = {"steps": 9, "start_from": "chairs.safetensors"}
    assert seen[0].config == dataclasses.replace(PUBLISHED["things"], **changes)
    assert main(["train", "--from", "deqflow-small"]) == 0
    assert seen[1].config == TrainConfig(start_from="deqflow-small")
    assert (seen[1].device, seen[1].folder) == ("auto", Path("runs/mine"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "nothing.yaml"], "No configuration at nothing.yaml"),
        (["--preset", "cars"], "Unknown preset 'cars'"),
        (["--preset", "chairs", "--config", "run.yaml"], "--config or --preset, got both"),
    ],
)
def test_train_says_what_is_wrong_with_its_settings(capsys, arguments, sentence):
    assert main(["train", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_the_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in text for field in dataclasses.fields(TrainConfig)[:-1])
    assert "--config" in text
    assert "--from" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"recurrent": True}, []),
        ({"recurrent": True, "corrections": 5}, ["corrections has no effect on a recurrent model"]),
        ({"recurrent": True, "phantom_steps": 2}, ["phantom_steps has no effect on a recurrent model"]),
        ({"corrections": 5, "attraction_strength": 0.5}, []),
        (
            {"attraction": "none", "attraction_strength": 0.5},
            ["attraction_strength has no effect with attraction"],
        ),
        ({"crop": (64, 64)}, ["crop has no effect on procedural pairs"]),
        ({"stage": "chairs", "scenes": SceneConfig(height=64)}, ["scenes has no effect on the published data"]),
    ],
)
def test_settings_without_effect_are_named(settings, expected):
    found = TrainConfig(**settings).without_effect()
    assert len(found) == len(expected)
    assert all(remark.startswith(start) for remark, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "settings", [{"lr": math.nan}, {"lr": -1.0}, {"lr": math.inf}, {"clip": 0.0}, {"weight_decay": -1.0}]
)
def test_rates_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="TrainConfig expects lr and clip above 0 and weight_decay of 0 or more, got"):
        TrainConfig(**settings)


def test_a_preset_that_is_no_name_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("preset: [chairs]")
    with pytest.raises(ValueError, match=r"Unknown preset \['chairs'\]: expected one of chairs"):
        read_config(tmp_path / "run.yaml")
