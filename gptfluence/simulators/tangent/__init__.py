"""The tangent simulator: the GPT's linearisation, trained by the true optimizer and corrected by recorded runs."""

from gptfluence.simulators.tangent.simulator import TangentSimulator

__all__ = ["TangentSimulator"]
