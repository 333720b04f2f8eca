"""Training that happened elsewhere: weights from checkpoints or from a training loop, as a run of flowsim."""

from flowsim.training.observing import observe
from flowsim.training.recording import Recorder

__all__ = ["Recorder", "observe"]
