"""What is searched for, as the panel and the locator bar put it together."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsProject,
    QgsRectangle,
    QgsReferencedPointXY,
)

from clippan.jobs import SearchRequest

from .i18n import tr

_WITHOUT = re.compile(r"\s+without\s+|^without\s+", re.IGNORECASE)
_MINUS = re.compile(r"(?:^|\s)-\s*(?=\w)")  # before a word, never inside one: high-rise


def split_texts(text: str) -> tuple[str, ...]:
    """The texts between semicolons."""
    return tuple(part for part in (re.sub(r"\s+", " ", item).strip() for item in text.split(";")) if part)


def parse_query(prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to look for, and texts to leave out: ``harbour; marina without ships``, ``harbour -ships -cranes``."""
    wanted, *unwanted = _WITHOUT.split(prompt)
    texts = []
    for item in split_texts(wanted):
        text, *more = (part.strip() for part in _MINUS.split(item))
        unwanted += more
        if text:
            texts.append(text)
    return tuple(texts), tuple(text for item in unwanted for text in split_texts(item))


@dataclass(frozen=True)
class Query:
    """What is searched for; all of it may be mixed.

    Attributes:
        text, without: what the places should show, and should not.
        images: example pictures.
        at: a place on the map whose like is searched.
        like, unlike: tiles that the user has called good and bad answers.
    """

    text: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    at: Optional[QgsReferencedPointXY] = None
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.images or self.at or self.like)

    @property
    def name(self) -> str:
        """What a layer with the answer is called."""
        names = [*self.text, *(Path(image).stem for image in self.images)]
        if self.at or (self.like and not names):
            names.append(tr("like a place"))
        name = ", ".join(names)
        return tr("{name} without {others}", name=name, others=", ".join(self.without)) if self.without else name

    @property
    def examples(self) -> str:
        """The examples in words; empty if there are none."""
        like = [Path(image).name for image in self.images]
        if self.at:
            like.insert(0, tr("a place on the map"))
        if self.like:
            like.append(_count_of_results(self.like))
        liked, unliked = tr(" and ").join(like), _count_of_results(self.unlike)
        if like and self.unlike:
            return tr("Like {liked}, unlike {unliked}", liked=liked, unliked=unliked)
        if like:
            return tr("Like {liked}", liked=liked)
        return tr("Unlike {unliked}", unliked=unliked) if self.unlike else ""

    def with_text(self, text: tuple[str, ...], without: tuple[str, ...]) -> Query:
        """The same with another text; what was called good or bad for the old one is forgotten."""
        if (text, without) == (self.text, self.without):
            return self
        return replace(self, text=text, without=without, like=(), unlike=())

    def marked(self, tile: int, good: bool) -> Query:
        """The same with a tile called good or bad; said twice it is taken back."""
        chosen, other = (self.like, self.unlike) if good else (self.unlike, self.like)
        other = tuple(item for item in other if item != tile)
        chosen = tuple(item for item in chosen if item != tile) if tile in chosen else (*chosen, tile)
        return replace(self, like=chosen if good else other, unlike=other if good else chosen)

    def request(self, index: str, crs: QgsCoordinateReferenceSystem, **options: Any) -> SearchRequest:
        """The job. The CRS is that of an extent in the options; the place on the map is brought into it."""
        at: tuple[float, ...] = ()
        if self.at:
            point = QgsCoordinateTransform(self.at.crs(), crs, QgsProject.instance()).transform(self.at)
            at = (point.x(), point.y())
        return SearchRequest(
            index=index,
            text=self.text,
            without=self.without,
            image=self.images,
            at=at,
            like=self.like,
            unlike=self.unlike,
            crs=crs_name(crs) if at or options.get("extent") else "",
            **options,
        )


def bounds(extent: QgsRectangle) -> tuple[float, float, float, float]:
    """xmin, ymin, xmax, ymax, as the engine has them."""
    return (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())


def crs_name(crs: QgsCoordinateReferenceSystem) -> str:
    """A CRS as the engine understands it; empty for an invalid one."""
    if not crs.isValid() or crs.authid().startswith("EPSG:"):
        return crs.authid()
    return crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT_PREFERRED)


def _count_of_results(tiles: tuple[int, ...]) -> str:
    return tr("1 result") if len(tiles) == 1 else tr("{count} results", count=len(tiles))
