from __future__ import annotations

from qgis.core import (
    Qgis,
    QgsProcessingException,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
)

from clippan.core.errors import ClippanError
from clippan.core.messages import Message

from ..engine import environment, variables, worker
from ..i18n import tr
from ..settings import OPTIONS, Settings
from . import base
from .parameters import choice_parameter


class SetUpEngine(base.Algorithm):
    WHEELS = "WHEELS"
    TORCH = "TORCH"
    RESET = "RESET"

    NAME = "setupengine"
    TITLE = "Set up engine"
    GROUP = "Engine"
    TAGS = ("install", "python", "torch", "pytorch", "pip", "environment", "cuda", "gpu")
    HELP = Message(
        "Installs the environment of the engine: PyTorch and the packages that it needs, in a separate folder. QGIS's "
        "own Python and other plugins are not changed.\n\n"
        "The download is 0.3 GB (processor only) to 3 GB (NVIDIA graphics card), and the installation needs up to "
        "three times as much disk space. The proxy and the certificates of QGIS are used. An interrupted set-up is "
        "resumed.\n\n"
        "The folder is set under {options}. If you already have a Python with PyTorch and GDAL, choose it there "
        "instead; the set-up is then not needed.",
        options=OPTIONS,
    )

    def initAlgorithm(self, configuration=None):
        self.add(
            choice_parameter(
                self.TORCH,
                tr("PyTorch for"),
                {
                    "auto": tr("Automatic: the one that suits this machine"),
                    "cpu": tr("Processor only (small download)"),
                    "cuda": tr("NVIDIA graphics card"),
                    "pypi": tr("The build that PyPI, or your organisation's mirror of it, offers"),
                },
                "auto",
            ),
            tr("Which build of PyTorch to install. “auto” installs the NVIDIA build if the NVIDIA driver is found."),
        )
        self.add(
            QgsProcessingParameterFile(
                self.WHEELS, tr("Folder of wheels"), Qgis.ProcessingFileParameterBehavior.Folder, optional=True
            ),
            tr(
                "For machines without network access: a folder with the wheels of torch, torchvision, "
                "open_clip_torch, huggingface_hub, safetensors and their dependencies. “pip download” collects "
                "them on another machine."
            ),
        )
        self.add(
            QgsProcessingParameterBoolean(self.RESET, tr("Start afresh"), False),
            tr("Removes an existing environment and creates a new one."),
        )
        self.addOutput(QgsProcessingOutputString("PYTHON", tr("Engine Python")))

    def prepareAlgorithm(self, parameters, context, feedback):
        """Reads settings in the main thread: the proxy's password may have to be asked for."""
        self._settings = Settings.read()
        self._variables = variables.for_pip(self._settings)
        return True

    def processAlgorithm(self, parameters, context, feedback):
        worker.shared_worker.stop()  # on Windows its open libraries could not be replaced
        setup = environment.SetUp(
            self._settings,
            self._variables,
            feedback,
            wheels=self.parameterAsString(parameters, self.WHEELS, context),
            torch=self.parameterAsEnumString(parameters, self.TORCH, context),
            reset=self.parameterAsBool(parameters, self.RESET, context),
        )
        try:
            path = setup.run()
        except ClippanError as error:
            raise QgsProcessingException(tr(error.message)) from None
        feedback.pushInfo(tr("The engine is ready: {path}. “Check engine” gives more information.", path=path))
        if self._settings.python:
            feedback.pushWarning(
                tr(
                    "Another Python is set under {options} ({path}); clear that setting to use this one.",
                    options=OPTIONS,
                    path=self._settings.python,
                )
            )
        return {"PYTHON": str(path)}
