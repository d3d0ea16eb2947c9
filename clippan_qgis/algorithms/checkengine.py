"""clippan:checkengine"""

from __future__ import annotations

from qgis.core import QgsProcessingException, QgsProcessingOutputBoolean, QgsProcessingOutputString

from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs import DoctorRequest

from ..engine import worker
from . import base


class CheckEngine(base.JobAlgorithm):
    """Says what the engine found. Works, and says what to do, also where there is no engine."""

    NAME = "checkengine"
    TITLE = "Check engine"
    GROUP = "Engine"
    TAGS = ("doctor", "python", "torch", "cuda", "gpu", "diagnose", "install")
    HELP = (
        "Looks at the engine, the process that computes for CLIPPan: which Python it runs on, whether PyTorch and "
        "GDAL work in it, which device it will use and why, and what to do where something is wrong.\n\n"
        "The report holds nothing secret and can be pasted into an issue."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_device()
        self.addOutput(QgsProcessingOutputBoolean("OK", "Engine works"))
        self.addOutput(QgsProcessingOutputString("REPORT", "Report"))

    def canExecute(self):
        """A check is the more wanted where the engine is missing."""
        return True, ""

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return DoctorRequest(device=self.device(parameters, context))

    def processAlgorithm(self, parameters, context, feedback):
        """Asks the doctor; a failure is a finding here, not an error."""
        try:
            if self._failure:
                raise ClippanError(self._failure)
            answer = worker.shared.run(self._launch, self._request, feedback)
        except Cancelled as error:
            raise QgsProcessingException(str(error)) from None
        except ClippanError as error:
            feedback.reportError(str(error), False)
            return {"OK": False, "REPORT": str(error)}
        return self.finish(answer, feedback)

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        origin = f"Engine Python: {self._launch.interpreter.path} (from {self._launch.interpreter.origin})"
        text = f"{origin}\n{answer['text']}"
        for line in text.splitlines():
            feedback.pushInfo(line)
        if not answer["ok"]:
            feedback.reportError("The engine does not work yet; the report says what to do.", False)
        return {"OK": answer["ok"], "REPORT": text}
