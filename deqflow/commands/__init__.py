"""The commands of ``python -m deqflow``: their fields are the options, their docstrings the help, a call runs them.

A new one is a dataclass in the module it belongs to, and is named in ``Command``, whose order is that of the help.
"""

from deqflow.commands.convert import Convert, Export
from deqflow.commands.flow import Clip, Flow
from deqflow.commands.measure import Confidence, Evaluate, Experiment
from deqflow.commands.report import Report
from deqflow.commands.train import Reproduce, Train

Command = Flow | Clip | Evaluate | Train | Reproduce | Report | Convert | Experiment | Confidence | Export

__all__ = ["Command", "Train"]
