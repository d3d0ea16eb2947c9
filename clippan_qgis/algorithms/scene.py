"""What the algorithms that learn a scene share: its rasters, and the pixels on which all of them are laid."""

from __future__ import annotations

from typing import Any

from qgis.core import Qgis, QgsProcessingParameterMultipleLayers, QgsProcessingParameterRasterLayer

from clippan.core.errors import ClippanError
from clippan.jobs import ClassifyRequest

from .. import sources
from . import base


class SceneAlgorithm(base.JobAlgorithm):
    """An algorithm that looks at one or several rasters of the same place."""

    RASTERS = "RASTERS"
    GRID = "GRID"
    STEPS = "STEPS"

    GROUP = "Classification"

    def add_rasters(self) -> None:
        """RASTERS: all that is known of the place."""
        self.add(
            QgsProcessingParameterMultipleLayers(self.RASTERS, "Raster(s)", Qgis.ProcessingSourceType.Raster),
            "One raster or several of the same place, with any number of bands: multispectral, hyperspectral, radar, "
            "elevation. They may differ in coordinate system and pixel size. Each raster is a kind of measurement of "
            "its own; bands that belong together belong in one raster (a virtual raster will do).",
        )

    def add_learning(self) -> None:
        """How the scene is learned."""
        self.add(
            QgsProcessingParameterRasterLayer(self.GRID, "Raster whose pixels are taken", optional=True),
            "One of the rasters above: the result has its pixels and its coordinate system, and the others are laid on "
            "them. Empty means the raster with the smallest pixels.",
            advanced=True,
        )
        self.add_number(
            *(self.STEPS, "Steps of pre-training", int, ClassifyRequest.steps),
            "How often the network is corrected while it learns what the scene looks like. More takes longer and can "
            "be better. Empty means 400.",
            least=1,
        )
        self.add_seed(ClassifyRequest.seed)
        self.add_nodata(advanced=True)
        self.add_device()
        self.add_threads()

    def scene(self, parameters, context) -> dict[str, Any]:
        """The values that all requests about a scene share.

        Raises:
            ClippanError: the grid is that of another raster.
        """
        rasters = tuple(sources.data_source(layer) for layer in self.rasters(parameters, self.RASTERS, context))
        grid = 0
        for layer in self.rasters(parameters, self.GRID, context):
            source = sources.data_source(layer)
            if source not in rasters:
                raise ClippanError(f"{layer.name()} is none of the rasters; take the pixels of one of them.")
            grid = rasters.index(source) + 1
        return {
            "rasters": rasters,
            "grid": grid,
            "steps": self.count(parameters, self.STEPS, context),
            "seed": self.parameterAsInt(parameters, base.SEED, context),
            "nodata": self.nodata(parameters, context),
            "threads": self.threads(parameters, context),
            "device": self.device(parameters, context),
        }
