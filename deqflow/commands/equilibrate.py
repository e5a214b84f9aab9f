"""The command that turns a recurrent model into an equilibrium model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from deqflow.commands.shared import load_model, print_line, refuse_overwriting, require_data_folder, require_suffix


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
        data: folder of data sets with known flow to measure on, laid out as data/README.md says.
        pairs: held-out procedural pairs to measure on.
        device: to train on, such as cpu or cuda; auto takes a GPU where there is one.
    """

    source: tyro.conf.Positional[str]
    out: Path
    folder: Path = Path("runs/equilibrate")
    steps: int = 600
    smoothing: float | None = None
    data: Path | None = None
    pairs: int = 24
    device: str = "auto"

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.data.synthetic import RICH_SCENES
        from deqflow.evidence.evaluation.sets import evaluation_sets, procedural_pairs
        from deqflow.model.checkpoints import save
        from deqflow.model.precision import choose_device
        from deqflow.training import say
        from deqflow.training.equilibrating import RECIPE, as_equilibrium, equilibrate, measure_convergence

        require_suffix(self.out, ".safetensors")
        refuse_overwriting(self.out, Path(self.source))
        if self.data is not None:
            require_data_folder(self.data, "--data")
        recurrent, device = load_model(self.source), choose_device(self.device)
        config = dataclasses.replace(RECIPE, steps=self.steps, validate_every=min(RECIPE.validate_every, self.steps))
        sets = {"procedural, held out": procedural_pairs(self.pairs, RICH_SCENES)}
        if self.data is not None:
            sets |= {name: chosen.pairs for name, chosen in evaluation_sets(self.data).items() if "proc" not in name}
        trained = equilibrate(
            recurrent, self.folder, config=config, device=device, smoothing=self.smoothing, on_progress=say
        ).cpu()
        save(trained, self.out, recipe={"origin": f"{recurrent.origin or self.source}, equilibrated"})
        before = as_equilibrium(recurrent, config).eval()
        for name, pairs in sets.items():
            for label, model in (("before", before), ("after", trained)):
                print_line(f"{name}, {label}: {measure_convergence(model, pairs)}")
        print(f"Wrote {self.out}: use it with deqflow.load(path).")
        return 0
