"""The list of what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from qgis.PyQt.QtCore import QRect, QSize, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QFont, QPainter, QPalette, QPixmap
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QStyle,
    QStyledItemDelegate,
)

from clippan.jobs import Hit

from ..hits import COLOURS
from ..i18n import tr
from ..styling import with_alpha

THUMBNAIL, GAP, BAR = 56, 6, 5  # pixels
_HIT_ROLE = Qt.ItemDataRole.UserRole
_MARK_ROLE = Qt.ItemDataRole.UserRole + 1
_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
GOOD, BAD = "+", "−"


class ResultList(QListWidget):
    """Hits with their pictures. Click or Enter chooses one; + and − call the selected one good or bad."""

    chosen = pyqtSignal(object)  # the hit
    marked = pyqtSignal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setItemDelegate(_HitDelegate(self))
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setUniformItemSizes(True)
        self.setMinimumHeight(2 * (THUMBNAIL + 2 * GAP))
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.setAccessibleName(tr("Results"))
        self.customContextMenuRequested.connect(self._menu)
        self.itemClicked.connect(lambda item: self.chosen.emit(item.data(_HIT_ROLE)))

    def paintEvent(self, event):
        super().paintEvent(event)
        if not self.count():
            painter = QPainter(self.viewport())
            painter.setPen(with_alpha(self.palette().color(QPalette.ColorRole.Text), 150))
            area = self.viewport().rect().adjusted(4 * GAP, 4 * GAP, -4 * GAP, -4 * GAP)
            text = tr("The places found are listed here, best match first.")
            painter.drawText(area, int(Qt.AlignmentFlag.AlignCenter) | int(Qt.TextFlag.TextWordWrap), text)
            painter.end()

    def show_hits(self, hits: Sequence[Hit], like: Sequence[int], unlike: Sequence[int]) -> None:
        """Shows these hits. The same tile stays selected; if it was judged away, the same row."""
        before, row = self.hit(), self.currentRow() if like or unlike else -1
        self.clear()
        for hit in hits:
            date = f", {hit.date}" if hit.date else ""
            item = QListWidgetItem(f"{hit.rank} {hit.prompt}, {confidence_percent(hit)}, {raster_name(hit)}{date}")
            item.setData(_HIT_ROLE, hit)
            item.setData(_MARK_ROLE, GOOD if hit.tile in like else BAD if hit.tile in unlike else "")
            similarity = tr("Similarity {score:.3f}", score=hit.score)
            item.setToolTip(f"{hit.prompt}\n{hit.raster}\n{similarity}")
            self.addItem(item)
            if before is not None and hit.tile == before.tile:
                row = hit.rank - 1
        self.setCurrentRow(min(row, self.count() - 1))

    def show_pictures(self, files: Mapping[str, str]) -> None:
        for item in map(self.item, range(self.count())):
            file = files.get(str(item.data(_HIT_ROLE).tile))
            if file:
                item.setData(Qt.ItemDataRole.DecorationRole, QPixmap(file))

    def hit(self) -> Optional[Hit]:
        item = self.currentItem()
        return item.data(_HIT_ROLE) if item else None

    def keyPressEvent(self, event):
        """Enter chooses, + and - judge; all else is the list's own."""
        key, hit = event.key(), self.hit()
        if hit is not None and key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.chosen.emit(hit)
        elif hit is not None and key in (Qt.Key.Key_Plus, Qt.Key.Key_Minus):
            self.marked.emit(key == Qt.Key.Key_Plus)
        else:
            super().keyPressEvent(event)

    def _menu(self, position) -> None:
        hit = self.hit()
        if hit is None:
            return
        menu = QMenu(self)
        menu.addAction(tr("Go there"), lambda: self.chosen.emit(hit))
        menu.addSeparator()
        menu.addAction(tr("More like this") + "\t+", lambda: self.marked.emit(True))
        menu.addAction(tr("Less like this") + "\t-", lambda: self.marked.emit(False))
        menu.popup(self.viewport().mapToGlobal(position))
        menu.aboutToHide.connect(menu.deleteLater)


def confidence_percent(hit: Hit) -> str:
    return f"{100 * hit.confidence:.0f} %"


def raster_name(hit: Hit) -> str:
    return Path(hit.raster).name or hit.raster


class _HitDelegate(QStyledItemDelegate):
    """Paints picture, rank, prompt, raster and confidence of a hit, in the colours of the theme."""

    def sizeHint(self, option, index):
        return QSize(160, max(THUMBNAIL, 2 * option.fontMetrics.height() + 2 * GAP + BAR) + 2 * GAP)

    def paint(self, painter, option, index):
        hit = index.data(_HIT_ROLE)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        style = option.widget.style()
        style.drawPrimitive(QStyle.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        active = bool(option.state & QStyle.StateFlag.State_Active)
        group = QPalette.ColorGroup.Active if active else QPalette.ColorGroup.Inactive
        colour = option.palette.color(
            group, QPalette.ColorRole.HighlightedText if selected else QPalette.ColorRole.Text
        )
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        area = option.rect.adjusted(GAP, GAP, -GAP, -GAP)
        picture = QRect(area.topLeft(), QSize(THUMBNAIL, THUMBNAIL))
        _paint_picture(painter, picture, index, colour)
        area.setLeft(picture.right() + GAP + 3)
        self._paint_texts(painter, option.font, area, hit, colour)
        area.setTop(area.top() + 2 * option.fontMetrics.height() + GAP + 1)
        area.setHeight(BAR)
        painter.fillRect(area, with_alpha(colour, 45))
        area.setWidth(round(area.width() * hit.confidence))
        painter.fillRect(area, QColor(COLOURS[min(int(hit.confidence * len(COLOURS)), len(COLOURS) - 1)]))
        painter.restore()

    def _paint_texts(self, painter, font, area, hit, colour) -> None:
        bold = QFont(font)
        bold.setBold(True)
        painter.setFont(bold)
        painter.setPen(colour)
        metrics = painter.fontMetrics()
        line = QRect(area.left(), area.top() - 2, area.width(), metrics.height())
        figure = confidence_percent(hit)
        painter.drawText(line, int(_RIGHT), figure)
        room = line.width() - metrics.horizontalAdvance(figure) - GAP
        title = metrics.elidedText(f"{hit.rank}  {hit.prompt}", Qt.TextElideMode.ElideRight, room)
        painter.drawText(line, int(_LEFT), title)
        painter.setFont(font)
        painter.setPen(with_alpha(colour, 170))
        metrics = painter.fontMetrics()
        line.moveTop(line.bottom() + 2)
        room = line.width()
        if hit.date:
            painter.drawText(line, int(_RIGHT), hit.date)
            room -= metrics.horizontalAdvance(hit.date) + GAP
        painter.drawText(line, int(_LEFT), metrics.elidedText(raster_name(hit), Qt.TextElideMode.ElideMiddle, room))


def _paint_picture(painter, area, index, colour) -> None:
    picture = index.data(Qt.ItemDataRole.DecorationRole)
    if picture is None or picture.isNull():
        painter.fillRect(area, with_alpha(colour, 25))
    else:
        painter.drawPixmap(area, picture)
    mark = index.data(_MARK_ROLE)
    if mark:
        badge = QRect(area.right() - 15, area.top(), 16, 16)
        painter.fillRect(badge, QColor("#1a7f37") if mark == GOOD else QColor("#b3261e"))
        painter.setPen(QColor("white"))
        painter.drawText(badge, int(Qt.AlignmentFlag.AlignCenter), mark)
