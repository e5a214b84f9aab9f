"""The command that turns a recurrent model into an equilibrium model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from deqflow.commands.shared import (
    load_model,
    print_line,
    refuse_overwriting,
    refuse_without_effect,
    require_data_folder,
    require_suffix,
)

if TYPE_CHECKING:
    from deqflow.training import TrainConfig
    from deqflow.training.equilibrating import Pairs


@dataclass(frozen=True)
class Equilibrate:
    """Turn a recurrent model into an equilibrium model by a short training.

    An interrupted run goes on where it was. The encoders stay as they are. At the end it says how both models converge,
    on held-out procedural pairs and on the data given.

    Attributes:
        source: name or path of a recurrent model: RAFT, RAFT-small, GMA, torchvision's, or your own.
        out: where the equilibrium model goes, ending in .safetensors.
        folder: where the run's files go.
        steps: optimiser steps, of four pairs each.
        smoothing: strength of a smoothness term on the coarse flow, from 0 to less than 1; as the model has it if
            not given.
        stage: published data to train on, below --data: chairs, things, sintel or kitti; procedural pairs if not given.
        photographs: folder of your own photographs, which the procedural pairs then show.
        data: folder of data sets with known flow to measure on, laid out as data/README.md says.
        pairs: held-out procedural pairs to measure on.
        results: results file (.json) for what was measured at the end.
        device: to train on, such as cpu or cuda; auto takes a GPU where there is one.
    """

    source: tyro.conf.Positional[str]
    out: Path
    folder: Path = Path("runs/equilibrate")
    steps: int = 600
    smoothing: float | None = None
    stage: Literal["", "chairs", "things", "sintel", "kitti"] = ""
    photographs: Path | None = None
    data: Path | None = None
    pairs: int = 24
    results: Path | None = None
    device: str = "auto"

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.evidence.equilibration import compare_convergence
        from deqflow.evidence.video_reuse import procedural_clips, real_clips
        from deqflow.model.checkpoints import save
        from deqflow.model.precision import choose_device
        from deqflow.training import as_equilibrium, equilibrate, say

        require_suffix(self.out, ".safetensors")
        require_suffix(self.results, ".json", option="--results")
        refuse_overwriting(self.out, Path(self.source))
        if self.data is not None:
            require_data_folder(self.data, "--data")
        recurrent, device, config = load_model(self.source), choose_device(self.device), self._config()
        sets = self._sets()
        trained = equilibrate(
            recurrent, self.folder, config=config, device=device, smoothing=self.smoothing, on_progress=say
        ).cpu()
        save(trained, self.out, recipe={"origin": f"{recurrent.origin or self.source}, equilibrated"})
        models = {"before": as_equilibrium(recurrent, config).eval(), "after": trained}
        clips = procedural_clips() | (real_clips(self.data) if self.data else {})
        compare_convergence(models, sets, clips if self.results else {}, self.results, print_line)
        print(f"Wrote {self.out}: use it with deqflow.load(path).")
        return 0

    def _config(self) -> "TrainConfig":
        from deqflow.training.equilibrating import RECIPE

        if self.stage:
            refuse_without_effect({"--photographs": self.photographs}, "with --stage: leave one of them out")
            if self.data is None:
                raise ValueError(f"--stage {self.stage} expects --data, the folder of the published data; got none.")
        every = min(RECIPE.validate_every, self.steps)
        config = dataclasses.replace(RECIPE, steps=self.steps, validate_every=every, stage=self.stage)
        if self.data is not None:
            config = dataclasses.replace(config, data_root=str(self.data))
        if self.photographs is not None:
            scenes = dataclasses.replace(config.scenes, photographs=str(self.photographs))
            config = dataclasses.replace(config, scenes=scenes)
        return config

    def _sets(self) -> "dict[str, Pairs]":
        """The pairs to measure on, by name."""
        from deqflow.data.synthetic import RICH_SCENES
        from deqflow.evidence.evaluation.sets import evaluation_sets, procedural_pairs

        sets: dict[str, Pairs] = {"procedural, held out": procedural_pairs(self.pairs, RICH_SCENES)}
        if self.data is not None:
            found = evaluation_sets(self.data).items()
            sets |= {name: chosen.pairs for name, chosen in found if not name.startswith("procedural")}
        return sets
