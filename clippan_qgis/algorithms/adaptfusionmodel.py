"""clippan:adaptfusionmodel"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
)

from clippan.catalogue.models import MODELS
from clippan.jobs import ADAPTED, FIGURES, AdaptFusionRequest

from .. import sources
from . import base

NO_CLIP = "none"


class AdaptFusionModel(base.JobAlgorithm):
    """Tunes the network of Pansharpen to one scene."""

    MODEL = "MODEL"
    CLIP = "CLIP"
    SECONDS = "SECONDS"
    STEPS = "STEPS"
    SEED = "SEED"
    OUTPUT = "OUTPUT"

    NAME = "adaptfusionmodel"
    TITLE = "Adapt fusion model"
    GROUP = "Pansharpening"
    TAGS = ("pan", "sharpen", "fusion", "train", "fine-tune", "adapt", "clip", "unsupervised", "model", "network")
    HELP = (
        "Tunes the network that Pansharpen uses to a scene of yours, for the last bit of quality. No reference is "
        "needed: the network learns from the scene itself that the result, made coarse again, has to be the "
        "multispectral raster, and that its fine detail has to be that of the panchromatic one. A vision-language "
        "model (CLIP) watches that the picture moves in the direction of a good fusion.\n\n"
        "The outcome is a small file: choose it as the fusion model in Pansharpen, for this scene and for others of "
        "the same sensor with the same bands.\n\n"
        "It takes up to two minutes, also for a large scene, of which only the places that tell most are read. The log "
        "shows how good the fusion is before and after: HQNR at full resolution (best 1), and Q2n (best 1), SAM and "
        "ERGAS (best 0) one scale down, where the multispectral raster is the truth. A model that makes colours worse "
        "is never written: where nothing better is found, the algorithm says so, and you go on with the model you had."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_spectral()
        self.add_panchromatic()
        self.add_sensor()
        self.add_bands()
        self.add_nodata()
        self.add_registration(
            "Satellites often deliver the two a little beside each other. This measures by how much, and learns with "
            "the multispectral raster moved onto the panchromatic one; choose the same here and in Pansharpen."
        )
        self.add(
            QgsProcessingParameterFile(self.MODEL, "Start from fusion model", extension="safetensors", optional=True),
            "The model to start from: one that was adapted to another scene, say. Empty means the one that ships with "
            "CLIPPan.",
        )
        labels = {name: model.label for name, model in MODELS.items()}
        self.add(
            base.choice(self.CLIP, "Supervising CLIP", {**labels, NO_CLIP: "None"}, AdaptFusionRequest.clip),
            "Which vision-language model says whether the result moves in the direction of a good fusion. The starter "
            "model is small and comes with the plugin; a larger one needs more time, or a graphics card. None leaves "
            "that out.",
            advanced=True,
        )
        self.add_weights("Own CLIP")
        self.add(
            QgsProcessingParameterNumber(
                self.SECONDS,
                "Time budget (seconds)",
                Qgis.ProcessingNumberParameterType.Double,
                AdaptFusionRequest.seconds,
                minValue=1,
            ),
            "How long all of it may take. Less time means fewer steps; it ends earlier where nothing gets better.",
        )
        for name, text, value, least, help_text in (
            (self.STEPS, "Steps", AdaptFusionRequest.steps, 1, "How often the network is corrected at most."),
            (
                *(self.SEED, "Seed", AdaptFusionRequest.seed, 0),
                "Decides which places are looked at in which order; another number gives a slightly different model.",
            ),
        ):
            self.add(
                QgsProcessingParameterNumber(
                    name, text, Qgis.ProcessingNumberParameterType.Integer, value, minValue=least
                ),
                help_text,
                advanced=True,
            )
        self.add_device()
        self.add_threads()
        self.add(
            QgsProcessingParameterFileDestination(self.OUTPUT, "Adapted model", "Fusion models (*.safetensors)"),
            "The file to write, less than a megabyte; Pansharpen takes it as its fusion model.",
        )
        for name in ADAPTED:
            for when in ("before", "after"):
                self.addOutput(QgsProcessingOutputNumber(f"{name}_{when}".upper(), f"{FIGURES[name][0]}, {when}"))
        self.addOutput(QgsProcessingOutputNumber("STEPS_DONE", "Steps up to the model that was kept"))
        self.addOutput(QgsProcessingOutputString("SENSOR_USED", "Sensor used"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        clip = self.parameterAsEnumString(parameters, self.CLIP, context)
        own = sources.absolute(self.parameterAsFile(parameters, base.WEIGHTS, context))
        return AdaptFusionRequest(
            pan=self.source(parameters, base.PANCHROMATIC, context),
            ms=tuple(sources.data_source(layer) for layer in self.rasters(parameters, base.SPECTRAL, context)),
            output="",
            model=sources.absolute(self.parameterAsFile(parameters, self.MODEL, context)),
            sensor=self.parameterAsEnumString(parameters, base.SENSOR, context),
            bands=self.bands(parameters, context),
            nodata=self.nodata(parameters, context),
            registration=self.registration(parameters, context),
            clip=own or ("" if clip == NO_CLIP else clip),
            seconds=self.parameterAsDouble(parameters, self.SECONDS, context),
            steps=self.parameterAsInt(parameters, self.STEPS, context),
            seed=self.parameterAsInt(parameters, self.SEED, context),
            threads=self.threads(parameters, context),
            device=self.device(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        return replace(request, output=sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context)))

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        before, after = answer["before"], answer["after"]
        rows = [("Figure", "Before", "After", "Best", "Meaning")]
        for name in ADAPTED:
            label, best = FIGURES[name]
            rows.append((name, f"{float(before[name]):.4f}", f"{float(after[name]):.4f}", best, label))
        base.tell(feedback, rows)
        feedback.pushInfo(
            f"{answer['steps']} steps on {answer['megapixels']:.1f} megapixels of the scene, {answer['seconds']:.0f} s"
        )
        results = {
            f"{name}_{when}".upper(): float(values[name])
            for name in ADAPTED
            for when, values in (("before", before), ("after", after))
        }
        return {
            self.OUTPUT: answer["output"],
            **results,
            "STEPS_DONE": answer["steps"],
            "SENSOR_USED": answer["sensor"],
            "DEVICE_USED": answer["device"],
        }
