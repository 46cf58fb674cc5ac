"""Where stages run. An executor knows no backend; it is handed a StageRun and a toolchain."""

from edgekiln.executors.base import Event, Executor, StageResult, StageRun

__all__ = ["Event", "Executor", "StageResult", "StageRun"]
