"""Finetune clip: teach a CLIP classes by labelled chips, and keep what it knew, by weight interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, file_lines, job
from clippan.jobs.kinds import FieldName, Folder, Phrases, Raster, Vector, check_start_is_kept, is_file, is_folder
from clippan.jobs.options import ChipOptions, LayerOption
from clippan.jobs.param import advanced_param, inherited, param
from clippan.jobs.rendering import Rendering


@dataclass(frozen=True)
class AlphaPoint:
    """What the model with the weights (1 − α)·before + α·fine-tuned names right, as parts of pictures, 0 to 1.

    Attributes:
        alpha: 0 is the model that it started from, 1 the fine-tuned one.
        task, control: on the pictures that no choice has seen; control is None without a control set.
        task_validation, control_validation: on those that α is chosen by.
    """

    alpha: float
    task: float
    control: Optional[float]
    task_validation: float
    control_validation: Optional[float]


@dataclass(frozen=True)
class ClassGain:
    """What of a class is named right before and after, on pictures that no choice has seen.

    Attributes:
        name: the words of it.
        control: whether it is of the control set.
        pictures: that were asked.
        before, after: parts that are right, 0 to 1; None where there was no picture to ask.
    """

    name: str
    control: bool
    pictures: int
    before: Optional[float]
    after: Optional[float]


@dataclass(frozen=True)
class FinetuneClipResult(Result):
    """What was tuned.

    Attributes:
        alpha: of the model in the folder.
        before, after: the curve at 0 and at alpha.
        curve: all of it, α rising from 0 to 1.
        classes: each class of the task, then each of the control set.
        chips: that it was tuned on.
        steps: of the optimiser.
        loss: the mean of the last steps; None for a run that was complete already.
        picture: which bands of the raster the model saw, and how they were stretched; None for folders of pictures.
    """

    model: str
    report: str
    base: str
    alpha: float
    before: AlphaPoint
    after: AlphaPoint
    curve: tuple[AlphaPoint, ...]
    classes: tuple[ClassGain, ...]
    chips: int
    steps: int
    loss: Optional[float]
    hints: tuple[str, ...]
    device: str
    seconds: float
    picture: Optional[Rendering] = None

    def describe(self) -> list[Line]:
        points = [
            (
                f"{point.alpha:.2f}",
                _percent(point.task),
                _percent(point.control),
                "←" if point.alpha == self.alpha else "",
            )
            for point in self.curve
        ]
        classes = [
            (
                Message("{name} (control)", name=item.name) if item.control else item.name,
                *(str(item.pictures), _percent(item.before), _percent(item.after)),
            )
            for item in self.classes
        ]
        return [
            Table(("α", "Your classes", "Control set", ""), points),
            Table(("Class", "Pictures", "Before", "After"), classes),
            self.line(
                "{model}: from {base}, α {alpha:.2f}; chips: {chips}, steps: {steps}; {seconds:.0f} s on {device}"
            ),
            *file_lines(("Report", self.report)),
        ]


def _percent(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.1%}"


@job(
    "finetune clip",
    title="Fine-tune CLIP without forgetting",
    summary="Teaches a model new classes from labelled chips and keeps what it knew (train clip --method patch).",
    result=FinetuneClipResult,
    shows_log=True,
)
class FinetuneClipRequest(ChipOptions, LayerOption, Request):
    """A robust fine-tuning ("patching"; Zavras et al. 2024, Ilharco et al. 2022)."""

    data: Raster = param(
        title="Pictures",
        help="A folder that holds one folder of pictures for each class, named after it; or a raster, together with "
        "labelled places.",
    )
    samples: Vector = param("", title="Labelled places in the raster", help="Polygons or points over the raster.")
    field: FieldName = param(
        "class",
        title="Field with the class",
        help="The field of the labelled places that holds the class, in English words such as “solar panels”.",
    )
    layer: str = inherited("")
    control: Folder = param(
        "",
        title="Control set",
        help="A folder of the same form with other classes, which the model knows and should not forget. A dozen "
        "pictures per class are enough.",
    )
    words: Phrases = param(
        "",
        title="Names of the classes in words",
        help="What the model reads in place of codes, such as “SeaLake=sea; AnnualCrop=annual crop land”, or the path "
        "of a .txt file with one per line, or of a .json file. By default, the names of the folders or the field.",
    )
    alpha: Optional[float] = param(
        None,
        title="How far to go (α)",
        help="0 is the model as it was, 1 the fully fine-tuned one. By default, it is chosen on validation pictures, "
        "as far as the control set allows; without a control set it is 0.5.",
        low=0,
        high=1,
    )
    keep: float = advanced_param(
        0.95,
        title="Part of the old accuracy to keep",
        help="Where α is chosen: the part of the former accuracy on the control set that has to remain.",
        low=0,
        high=1,
    )
    held: float = advanced_param(
        0.2,
        title="Part to choose α with",
        help="The part of each class that is not learned from but chooses α. As many pictures again measure the "
        "result.",
        low=0.01,
        high=0.4,
    )
    measured: int = advanced_param(
        400,
        title="Pictures to measure with",
        help="The largest number of pictures of your classes, and of the control set, that each α is measured with.",
        low=1,
    )
    pixels: int = advanced_param(
        0,
        title="Edge of the model's input",
        help="Pictures are resized to this edge for the model; 0 keeps the size it was trained with. Smaller is "
        "faster, and only convolutional models accept it.",
        low=0,
        unit="pixels",
    )
    size: int = inherited(
        0, help="Edge of the chip that is cut out of the raster around a place; 0 means what suits the pixel size."
    )

    def check(self) -> None:
        if not self.samples:
            if is_file(self.data):
                raise ClippanError(
                    "{path} is not a folder of pictures; for a raster give its labelled places (--samples).",
                    path=self.data,
                )
            if not is_folder(self.data):
                raise ClippanError(
                    "The folder of pictures {path} does not exist; create it or choose another.", path=self.data
                )
        check_start_is_kept(self.output, self.model)
        texts.parse_legend(self.words)
