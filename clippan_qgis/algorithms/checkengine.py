from __future__ import annotations

from qgis.core import QgsProcessingException, QgsProcessingOutputBoolean, QgsProcessingOutputString

from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs import DoctorRequest

from ..i18n import tr
from . import base
from .parameters import JobParameters


class CheckEngine(base.JobAlgorithm):
    """Says what the engine found. Works, and says what to do, also where there is no engine."""

    PARAMETERS = JobParameters(DoctorRequest)

    NAME = "checkengine"
    GROUP = "Engine"
    TAGS = ("doctor", "python", "torch", "cuda", "gpu", "diagnose", "install")
    HELP = (
        "Checks the engine, which is the process that does the computing for CLIPPan. The report says which Python the "
        "engine uses, whether PyTorch and GDAL work in it, which device it will use and why, and how to solve the "
        "problems that were found.\n\n"
        "The report contains no confidential information and can be pasted into an issue."
    )

    def initAlgorithm(self, configuration=None):
        super().initAlgorithm(configuration)
        self.addOutput(QgsProcessingOutputBoolean("OK", tr("Engine works")))
        self.addOutput(QgsProcessingOutputString("REPORT", tr("Report")))

    def canExecute(self):
        """A check is the more wanted where the engine is missing."""
        return True, ""

    def processAlgorithm(self, parameters, context, feedback):
        """Asks the doctor; a failure is a finding here, not an error."""
        try:
            if self._failure:
                raise ClippanError(self._failure)
            result = self.run_job(feedback)
        except Cancelled as error:
            raise QgsProcessingException(tr(error.message)) from None
        except ClippanError as error:
            sentence = tr(error.message)
            feedback.reportError(sentence, False)
            return {"OK": False, "REPORT": sentence}
        text = f"{self._launch.interpreter}\n{result.text}"
        for line in text.splitlines():
            feedback.pushInfo(line)
        if not result.ok:
            feedback.reportError(tr("The engine does not work yet; the report says what to do."), False)
        return {"OK": result.ok, "REPORT": text}
