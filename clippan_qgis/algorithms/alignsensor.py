"""clippan:alignsensor"""

from __future__ import annotations

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterString,
)

from clippan.jobs import AlignSensorRequest

from .. import sources
from . import base
from .training import TrainingAlgorithm

_RANKS = (1, 5, 10)


class AlignSensor(TrainingAlgorithm):
    """Makes a model for a sensor that a vision-language model does not know."""

    TEACHER = "TEACHER"
    SENSOR = "SENSOR"
    WORDS = "WORDS"
    SENSOR_BANDS = "SENSOR_BANDS"
    LOW = "LOW"
    HIGH = "HIGH"
    TEST = "TEST"
    OVERLAP = "OVERLAP"
    MSE = "MSE"
    COSINE = "COSINE"
    CONTRAST = "CONTRAST"
    LABEL = "LABEL"

    NAME = "alignsensor"
    TITLE = "Align a sensor with CLIP"
    TAGS = (
        *("train", "align", "alignment", "clip", "sensor", "sar", "radar", "multispectral", "hyperspectral", "thermal"),
        *("sentinel-1", "sentinel-2", "distillation", "model", "retrieval"),
    )
    HELP = (
        "Makes a model that understands the rasters of a sensor by words: radar, thermal, or all bands of a "
        "multispectral one. Models of the list know pictures in natural colours only. Where you have both of the same "
        "place, the model for pictures is the teacher: a new model learns to say of the sensor's raster what the "
        "teacher says of the picture. No labels are needed.\n\n"
        "Give pairs of rasters of the same places: the first picture belongs to the first raster of the sensor, and so "
        "on. They should be of about the same date, and the more area and the more kinds of land, the better.\n\n"
        "The outcome is a folder: choose it as “Own model” in Segment by text and Build tile index, with rasters of "
        "that sensor.\n\n"
        "The log and the report say how well it went, at places that were not learned from: how often a part of the "
        "sensor's raster finds its own picture among all others at the first place (R@1), or under the first 5 or 10, "
        "before and after, and what guessing would give."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        for name, label, help_text in (
            (
                *(self.TEACHER, "Raster(s) in natural colours"),
                "Pictures that the model of the list understands: with red, green and blue bands. One for each raster "
                "of the sensor, in the same order: drag them into place.",
            ),
            (
                *(self.SENSOR, "Raster(s) of the sensor"),
                "The same places as the other sensor sees them, in the order of the list above, in any coordinate "
                "system and pixel size. All have the same bands.",
            ),
        ):
            self.add(QgsProcessingParameterMultipleLayers(name, label, Qgis.ProcessingSourceType.Raster), help_text)
        self.add_model(
            "The teacher: which model says what the pictures show; its licence holds for what is made of it.",
            AlignSensorRequest.model,
        )
        self.add(
            QgsProcessingParameterString(self.WORDS, "Words", multiLine=True, optional=True),
            "What there is in the rasters, in English, as in “water; forest; buildings”, or a line for each: the new "
            "model learns to tell these apart as the teacher does, and the log says how often both agree. Other words "
            "work afterwards as well.",
        )
        self.add(
            QgsProcessingParameterString(
                self.SENSOR_BANDS, "Bands of the sensor, such as 1,2 (all if empty)", optional=True
            ),
            "Numbers of the bands of the sensor's rasters that the new model sees, counted from 1. Empty means all.",
            advanced=True,
        )
        for name, label, help_text in (
            (
                *(self.LOW, "Lowest values of the sensor, such as -25"),
                "Values that are as dark as can be for the model: one for all bands, or one for each. Empty means what "
                "the rasters hold. Fixed values are right where other rasters are to be looked at later.",
            ),
            (
                *(self.HIGH, "Highest values of the sensor, such as 0"),
                "Values that are as bright as can be. Radar in decibels goes well from -25 to 0, Sentinel-2 from 0 to "
                "10000. Empty means what the rasters hold.",
            ),
            (
                *(self.TEST, "Pairs to measure with, such as 3"),
                "Numbers of the pairs, counted from 1, that are not learned from but say how well it went. Empty means "
                "a strip of each.",
            ),
        ):
            self.add(QgsProcessingParameterString(name, label, optional=True), help_text, advanced=True)
        self.add_number(
            *(self.HELD, "Part to measure with", float, AlignSensorRequest.held),
            "How large the strip of each raster is that is not learned from but says how well it went.",
            *(0.05, 0.5),
        )
        self.add_number(
            *(self.SIZE, "Edge of the pictures (pixels)", int, AlignSensorRequest.size),
            "The rasters are cut into pictures of this size, in pixels of the natural colours; 0 means what suits the "
            "pixel size.",
            least=0,
        )
        self.add_number(
            *(self.OVERLAP, "Overlap of the pictures", float, AlignSensorRequest.overlap),
            "How much neighbouring pictures share, from 0 to 0.95. More gives more pictures to learn from.",
            *(0, 0.95),
        )
        for name, label, value, help_text in (
            (
                *(self.MSE, "Weight: same numbers", AlignSensorRequest.mse),
                "How much it counts that the new model gives the same numbers as the teacher. 0 leaves it out.",
            ),
            (
                *(self.COSINE, "Weight: same direction", AlignSensorRequest.cosine),
                "How much it counts that both see the same in a place, however strongly. 0 leaves it out.",
            ),
            (
                *(self.CONTRAST, "Weight: told apart from others", AlignSensorRequest.contrast),
                "How much it counts that a place fits its own picture better than others. 0 leaves it out.",
            ),
            (
                *(self.LABEL, "Weight: same words", AlignSensorRequest.label),
                "How much it counts that both choose the same of the words above. 0 leaves it out.",
            ),
        ):
            self.add_number(name, label, float, value, help_text, 0, 1000)
        self.add_training(AlignSensorRequest, fewest=2)
        for name, label in (
            *((f"RECALL_{rank}", f"Own picture among the first {rank}, after, 0 to 1") for rank in _RANKS),
            *((f"RECALL_{rank}_BEFORE", f"Own picture among the first {rank}, before") for rank in _RANKS),
            *((f"RECALL_{rank}_CHANCE", f"Own picture among the first {rank}, by guessing") for rank in _RANKS),
            ("COSINE_MEAN", "Mean likeness to what the teacher says, -1 to 1"),
            ("AGREEMENT", "Part of the places where both choose the same word, 0 to 1"),
            ("CHIPS", "Pictures learned from"),
            ("CHIPS_HELD", "Pictures measured with"),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, label))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        teacher, sensor = (
            tuple(sources.data_source(layer) for layer in self.rasters(parameters, name, context))
            for name in (self.TEACHER, self.SENSOR)
        )
        low, high, test = (
            base.numbers(self.parameterAsString(parameters, name, context), what, like)
            for name, what, like in (
                (self.LOW, "lowest value", "-25 or -25, -30"),
                (self.HIGH, "highest value", "0 or 0, -5"),
                (self.TEST, "list of pairs", "3 or 3, 5"),
            )
        )
        weights = {
            name.lower(): self.parameterAsDouble(parameters, name, context)
            for name in (self.MSE, self.COSINE, self.CONTRAST, self.LABEL)
        }
        return AlignSensorRequest(
            teacher_rasters=teacher,
            sensor_rasters=sensor,
            output="",
            words=self.phrases(parameters, self.WORDS, context),
            sensor_bands=self.bands(parameters, context, self.SENSOR_BANDS),
            low=low,
            high=high,
            test=tuple(round(number) for number in test),
            overlap=self.parameterAsDouble(parameters, self.OVERLAP, context),
            **weights,
            **self.training(parameters, context),
        )

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        rows = [("At places not learned from", *(f"R@{rank}" for rank in _RANKS))]
        for label, name in (
            ("Guessing", "chance"),
            ("Sensor finds picture, before", "before"),
            ("Sensor finds picture, after", "to_picture"),
            ("Picture finds sensor, after", "from_picture"),
        ):
            rows.append((label, *(f"{float(answer[name][f'at_{rank}']):.1%}" for rank in _RANKS)))
        base.tell(feedback, rows)
        agreement = answer["agreement"]
        same = "" if agreement is None else f"; both choose the same word in {float(agreement):.1%} of the places"
        feedback.pushInfo(f"Mean likeness to what the teacher says: {base.figure(answer['cosine'])}{same}")
        feedback.pushInfo(
            f"{len(answer['bands'])} bands, {answer['chips']} pictures to learn from and {answer['held']} to measure "
            f"with, {answer['steps']} steps in {answer['seconds']:.0f} s on {answer['device']}"
        )
        recalls = {
            f"RECALL_{rank}{suffix}": float(answer[name][f"at_{rank}"])
            for suffix, name in (("", "to_picture"), ("_BEFORE", "before"), ("_CHANCE", "chance"))
            for rank in _RANKS
        }
        return {
            self.OUTPUT: answer["model"],
            **({self.REPORT: answer["report"]} if answer["report"] else {}),
            **recalls,
            "COSINE_MEAN": float(answer["cosine"]),
            **({} if agreement is None else {"AGREEMENT": float(agreement)}),
            "CHIPS": answer["chips"],
            "CHIPS_HELD": answer["held"],
            "DEVICE_USED": answer["device"],
        }
