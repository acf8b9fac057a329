"""`EXPERIMENTS`: all of them, in the order of the page."""

from theory.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = ()
