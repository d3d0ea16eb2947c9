"""Pictures composed for concepts that the collections do not show: an island, a railway, dunes, a stadium.

Shapes are drawn with noise and geometry, and filled with textures from the collections' own pictures and with plain
colours. What matters is the shape and the setting, not that a picture looks real.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import numpy as np

SIZE = 192  # edge of a picture in pixels

Picture = np.ndarray  # (SIZE, SIZE, 3), float32, 0 to 255
Maker = Callable[["Scenes"], Picture]

_MAKERS: list[tuple[dict[str, float], Maker]] = []


def _shows(**shares: float) -> Callable[[Maker], Maker]:
    """Registers a maker with the shares of concepts that it shows; underscores stand for spaces."""

    def register(maker: Maker) -> Maker:
        _MAKERS.append(({name.replace("_", " "): share for name, share in shares.items()}, maker))
        return maker

    return register


class Scenes:
    """Composes pictures from textures.

    Args:
        textures: for each class the pictures (n, height, width, 3), uint8, that may be used; a class may be missing.
        chance: the random numbers.
    """

    def __init__(self, textures: Mapping[str, list[np.ndarray]], chance: np.random.Generator) -> None:
        self.textures = {name: found for name, found in textures.items() if len(found)}
        self.chance = chance
        self._noise = [self._fractal(chance.uniform(1.2, 1.8)) for _ in range(160)]
        self._smooth = [self._fractal(chance.uniform(2.1, 2.9)) for _ in range(80)]
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        self.x, self.y = x, y
        self.fine = True

    def __call__(self, number: int) -> tuple[Picture, dict[str, float]]:
        """A picture by the maker of this number (modulo their count), and the shares of what it shows."""
        shares, maker = _MAKERS[number % len(_MAKERS)]
        self.fine = bool(self.chance.random() < 0.6)
        picture = maker(self)
        return np.clip(picture + self.chance.normal(0, 2, picture.shape), 0, 255).astype(np.float32), shares

    # Ingredients

    def _fractal(self, power: float) -> np.ndarray:
        """Noise (SIZE, SIZE), ranks spread evenly over 0 to 1; its amplitude falls with this power of the frequency."""
        frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
        frequency[0, 0] = 1
        spectrum = np.fft.rfft2(self.chance.normal(size=(SIZE, SIZE))) / frequency**power
        field = np.fft.irfft2(spectrum, (SIZE, SIZE))
        ranks = np.empty(field.size, np.float32)
        ranks[field.ravel().argsort()] = np.linspace(0, 1, field.size)
        return ranks.reshape(field.shape)

    def noise(self, smooth: bool = False) -> np.ndarray:
        bank = self._smooth if smooth else self._noise
        field = bank[self.chance.integers(len(bank))]
        field = np.roll(field, self.chance.integers(0, SIZE, 2), (0, 1))
        return np.rot90(field, self.chance.integers(4))

    def pick(self, *names: str) -> str:
        found = [name for name in names if name in self.textures]
        return found[self.chance.integers(len(found))] if found else ""

    def texture(self, *names: str) -> Picture:
        """A picture of one of these classes, cut and enlarged or mirrored to the full size; plain where none is."""
        name = self.pick(*names)
        if not name:
            return self.plain((70, 95, 60), 30)
        found = self.textures[name]
        picture = found[self.chance.integers(len(found))].astype(np.float32)
        picture = np.rot90(picture, self.chance.integers(4))
        edge = picture.shape[0]
        if edge >= SIZE:
            step = 1 if self.chance.random() < 0.6 else -(-edge // 160)
            picture = picture[::step, ::step]
            edge = picture.shape[0]
        if edge < SIZE:
            if edge < 80 and self.chance.random() < 0.7:
                picture = picture.repeat(2, 0).repeat(2, 1)
                picture = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1) + np.roll(picture, 1, (0, 1))) / 4
                edge *= 2
            while edge < SIZE:
                picture = np.concatenate([picture, picture[::-1]], 0)
                picture = np.concatenate([picture, picture[:, ::-1]], 1)
                edge *= 2
        top, left = self.chance.integers(0, edge - SIZE + 1, 2)
        return picture[top : top + SIZE, left : left + SIZE].copy()

    def plain(self, colour: tuple[float, float, float], spread: float = 20, rough: float = 18) -> Picture:
        """An even surface about this colour, varied by ``spread``, with noise of this height."""
        base = np.array(colour) + self.chance.normal(0, spread / 2, 3) + self.chance.normal(0, spread)
        field = (self.noise() - 0.5) * rough + self.chance.normal(0, rough / 6, (SIZE, SIZE))
        return (base + field[..., None]).astype(np.float32)

    def land(self) -> Picture:
        """Country of any kind."""
        if self.fine:
            return self.texture("forest", "chaparral", "agricultural", "golfcourse", "Land", "Vegetation", "meadow")
        return self.texture("Forest", "HerbaceousVegetation", "Pasture", "AnnualCrop", "PermanentCrop")

    def green(self) -> Picture:
        if self.chance.random() < 0.4:
            return self.plain((95, 130, 70), 22)
        return self.texture("Pasture", "golfcourse", "forest", "Forest", "HerbaceousVegetation", "Vegetation")

    def built(self) -> Picture:
        if self.fine:
            return self.texture("denseresidential", "buildings", "mediumresidential", "Building", "mobilehomepark")
        return self.texture("Residential", "Industrial")

    def soil(self) -> Picture:
        if self.chance.random() < 0.5:
            return self.texture("Land", "AnnualCrop")
        return self.plain((175, 150, 120), 25)

    def water(self) -> Picture:
        if self.chance.random() < 0.3:
            return self.texture("SeaLake", "Water")
        colours = ((25, 50, 75), (40, 80, 90), (50, 100, 130), (70, 85, 65), (20, 35, 50), (60, 130, 150))
        return self.plain(colours[self.chance.integers(len(colours))], 12, 10)

    def sand(self) -> Picture:
        return self.plain((212, 190, 150), 18, 22)

    def grey(self, level: float = 130) -> Picture:
        return self.plain((level, level, level + 2), 14, 10)

    def turned(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along and across a random direction from a point near the middle, in pixels."""
        angle = self.chance.uniform(0, 2 * np.pi)
        x = self.x - SIZE / 2 - self.chance.normal(0, 18)
        y = self.y - SIZE / 2 - self.chance.normal(0, 18)
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def line(self, bend: float) -> np.ndarray:
        """Signed distance in pixels from a line that swings by about ``bend`` pixels."""
        along, across = self.turned()
        wave = np.sin(along / self.chance.uniform(22, 50) + self.chance.uniform(0, 6))
        slow = np.sin(along / self.chance.uniform(60, 110) + self.chance.uniform(0, 6))
        return across - bend * (0.5 * wave + slow) + (self.noise() - 0.5) * bend * 0.35

    def blob(self, radius: float, rough: float = 0.8) -> np.ndarray:
        """Distance from an uneven round shape in parts of its radius; under 1 is inside."""
        along, across = self.turned()
        stretch = self.chance.uniform(1, 1.8)
        return np.hypot(along / stretch, across * stretch**0.5) / radius + rough * (self.noise() - 0.5)

    def over(self, below: Picture, above: Picture, mask: np.ndarray, soft: float = 0) -> Picture:
        """``above`` where the mask is true; or, with ``soft``, where the mask's values are under 0, faded over it."""
        if mask.dtype != bool:
            mask = np.clip(0.5 - mask / max(soft, 1e-3), 0, 1)
        weight = mask.astype(np.float32)[..., None]
        return below * (1 - weight) + above * weight

    def relief(self) -> tuple[np.ndarray, np.ndarray]:
        """Height (0 to 1) and shading (about -1 to 1) of mountains."""
        first, second = self.noise(smooth=True), self.noise(smooth=self.chance.random() < 0.6)
        height = 1 - np.abs(first - 0.5) * 2 if self.chance.random() < 0.7 else first
        height = 0.75 * height + 0.25 * (1 - np.abs(second - 0.5) * 2)
        angle = self.chance.uniform(0, 2 * np.pi)
        slope = np.gradient(height)
        shade = slope[0] * np.sin(angle) + slope[1] * np.cos(angle)
        return height, np.clip(shade / (np.abs(shade).mean() * 2.5 + 1e-6), -1.3, 1.3)

    def blocks(self, cell: tuple[int, int], gap: int, fill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Rectangles in rows, turned at random: a mask, and a number for each, both of shape (SIZE, SIZE)."""
        along, across = self.turned()
        column, row = np.floor(along / cell[0]), np.floor(across / cell[1])
        inside = (along % cell[0] > gap) & (across % cell[1] > gap)
        number = np.abs(np.sin(column * 12.9898 + row * 78.233 + self.chance.uniform(0, 9)) * 43758.5453) % 1
        return inside & (number <= fill), number

    def mosaic(self, count: int, *names: str) -> Picture:
        """``count`` by ``count`` pictures of these classes, smaller, with or without roads between."""
        edge = -(-SIZE // count)
        out = np.zeros((edge * count, edge * count, 3), np.float32)
        for row in range(count):
            for column in range(count):
                picture = self.texture(*names)
                step = max(1, SIZE // edge)
                small = picture[: edge * step, : edge * step].reshape(edge, step, -1, step, 3)[:, :, :edge].mean((1, 3))
                out[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge] = small
        out = out[:SIZE, :SIZE]
        if self.chance.random() < 0.5:
            road = (self.x % edge < 4) | (self.y % edge < 4)
            out = self.over(out, self.grey(), road)
        return out


@_shows(island=0.85, sea=0.15)
def _island(s: Scenes) -> Picture:
    shape = s.blob(s.chance.uniform(22, 62))
    out = s.water()
    out = s.over(out, out + np.array([25, 45, 40]), shape - 1.25, 0.4) if s.chance.random() < 0.6 else out
    rim = s.chance.uniform(0, 0.2)
    out = s.over(out, s.sand(), shape < 1 + rim)
    return s.over(out, s.land() if s.chance.random() < 0.8 else s.built(), shape < 1)


@_shows(inland_water=0.85, water=0.15)
def _pond(s: Scenes) -> Picture:
    shape = s.blob(s.chance.uniform(22, 75), s.chance.uniform(0.3, 1))
    below = s.built() if s.chance.random() < 0.25 else s.land()
    out = s.over(below, s.soil() if s.chance.random() < 0.4 else s.green(), shape < 1.08)
    return s.over(out, s.water(), shape < 1)


@_shows(river=0.85, water=0.15)
def _river(s: Scenes) -> Picture:
    distance, wide = np.abs(s.line(s.chance.uniform(5, 38))), s.chance.uniform(6, 32)
    out = s.built() if s.chance.random() < 0.25 else s.land()
    if s.chance.random() < 0.5:
        out = s.over(
            out, s.green() if s.chance.random() < 0.6 else s.sand(), distance < wide * s.chance.uniform(1.1, 1.6)
        )
    return s.over(out, s.water(), distance < wide)


@_shows(mudflat=0.8, river=0.2)
def _mudflat(s: Scenes) -> Picture:
    out = _river(s) if s.chance.random() < 0.5 else _coast(s)
    bars = np.abs(s.noise() - 0.5) < s.chance.uniform(0.05, 0.12)
    return s.over(out, s.sand(), bars & (s.noise() < 0.7))


@_shows(coast=0.8, sea=0.2)
def _coast(s: Scenes) -> Picture:
    distance = s.line(s.chance.uniform(3, 30)) + (s.noise() - 0.5) * s.chance.uniform(0, 40)
    out = s.over(s.land() if s.chance.random() < 0.7 else s.built(), s.water(), distance > 0)
    rock = s.plain((120, 110, 100), 15, 60) if s.chance.random() < 0.5 else s.sand()
    return s.over(out, rock, np.abs(distance) < s.chance.uniform(0, 5))


@_shows(beach=0.8, coast=0.2)
def _beach(s: Scenes) -> Picture:
    distance = s.line(s.chance.uniform(2, 18)) + (s.noise() - 0.5) * 10
    wide = s.chance.uniform(12, 45)
    out = s.over(s.land() if s.chance.random() < 0.6 else s.built(), s.water(), distance > 0)
    out = s.over(out, s.sand(), (distance < 0) & (distance > -wide))
    foam = (distance > 0) & (distance < s.chance.uniform(3, 16)) & (s.noise() > 0.35)
    return s.over(out, s.plain((235, 238, 238), 5), foam)


@_shows(bridge=0.85, river=0.15)
def _bridge(s: Scenes) -> Picture:
    along, across = s.turned()
    wide = s.chance.uniform(18, 75)
    channel = np.abs(along + s.chance.uniform(0, 12) * np.sin(across / 40) + (s.noise() - 0.5) * 10) < wide
    out = s.over(s.built() if s.chance.random() < 0.5 else s.land(), s.water(), channel)
    half = s.chance.uniform(2.5, 9)
    out = s.over(out, out * 0.5, (np.abs(across - half * 0.9) < half) & channel)
    out = s.over(out, s.grey(s.chance.uniform(110, 200)), np.abs(across) < half)
    return s.over(out, s.grey(225), (np.abs(np.abs(across) - half * 0.9) < 0.8) & channel)


@_shows(road=0.7, highway=0.3)
def _road(s: Scenes) -> Picture:
    distance, half = s.line(s.chance.uniform(0, 14)), s.chance.uniform(1.5, 8)
    out = s.land() if s.chance.random() < 0.7 else s.soil()
    out = s.over(out, s.grey(s.chance.uniform(90, 190)), np.abs(distance) < half)
    return s.over(out, s.grey(220), np.abs(distance) < 0.7) if half > 4 else out


@_shows(railway=1)
def _railway(s: Scenes) -> Picture:
    along, across = s.turned()
    across = across + s.chance.uniform(0, 22) * np.sin(along / s.chance.uniform(60, 140))
    tracks, gap = int(s.chance.integers(1, 9)), s.chance.uniform(6, 14)
    half = tracks * gap / 2 + 2
    out = s.land() if s.chance.random() < 0.5 else s.built()
    out = s.over(out, s.plain((125, 112, 100), 18, 25), np.abs(across) < half)
    place = (across + half) % gap
    rails = (np.abs(place - gap * 0.35) < 0.8) | (np.abs(place - gap * 0.65) < 0.8)
    out = s.over(out, s.grey(s.chance.choice([60, 75, 190])), rails & (np.abs(across) < half))
    for _ in range(int(s.chance.integers(0, 4))):
        start, row = s.chance.uniform(-90, 20), int(s.chance.integers(tracks))
        body = np.abs(across + half - (row + 0.5) * gap) < gap * 0.36
        train = body & (along > start) & (along < start + s.chance.uniform(30, 110)) & (along % 17 > 1.2)
        out = s.over(out, s.plain(tuple(s.chance.uniform(60, 230, 3)), 5), train)
    return out


@_shows(roundabout=0.9, road=0.1)
def _roundabout(s: Scenes) -> Picture:
    along, across = s.turned()
    radius, half = s.chance.uniform(16, 42), s.chance.uniform(4, 9)
    distance = np.hypot(along, across)
    out = s.built() if s.chance.random() < 0.5 else s.land()
    roads = np.abs(distance - radius) < half
    turn = s.chance.uniform(0, 0.5)
    for arm in range(int(s.chance.integers(3, 6))):
        angle = arm * np.pi / 2 + turn
        far = along * np.cos(angle) + across * np.sin(angle)
        roads |= (np.abs(across * np.cos(angle) - along * np.sin(angle)) < half) & (far > radius)
    out = s.over(out, s.green(), distance < radius)
    return s.over(out, s.grey(s.chance.uniform(100, 170)), roads)


def _oval(s: Scenes) -> np.ndarray:
    """Distance in pixels from the middle line of a running track or of stands, about 45 long and 25 wide inside."""
    along, across = s.turned()
    straight = s.chance.uniform(8, 30)
    return np.hypot(np.maximum(np.abs(along) - straight, 0), across) - s.chance.uniform(22, 38)


@_shows(stadium=0.85, sports_field=0.15)
def _stadium(s: Scenes) -> Picture:
    oval = _oval(s)
    out = s.texture("parkinglot", "buildings", "denseresidential", "golfcourse", "Pasture", "Building")
    grass = s.plain((90, 145, 75), 15, 10)
    stripes = (np.floor(s.x / 6) % 2)[..., None] * 10
    if s.chance.random() < 0.65:  # stands, like a bowl
        tall = s.chance.uniform(8, 24)
        out = s.over(out, out * 0.5, np.roll(oval, (5, 5), (0, 1)) < tall)
        stands = s.plain(tuple(s.chance.uniform(110, 230, 3)), 8) + 14 * np.sin(oval * 1.7)[..., None]
        out = s.over(out, stands, oval < tall)
    if s.chance.random() < 0.6:  # a running track
        out = s.over(out, s.plain((165, 85, 65), 15, 8), oval < 0)
    return s.over(out, grass + stripes, oval < -s.chance.uniform(0, 8))


@_shows(sports_field=0.9, park=0.1)
def _pitch(s: Scenes) -> Picture:
    out = s.green() if s.chance.random() < 0.6 else s.built()
    along, across = s.turned()
    long, wide = s.chance.uniform(30, 70), s.chance.uniform(20, 40)
    inside = (np.abs(along) < long) & (np.abs(across) < wide)
    colour = ((80, 140, 70), (110, 150, 80), (170, 110, 80), (90, 110, 150))[s.chance.integers(4)]
    out = s.over(out, s.plain(colour, 12, 8) + (np.floor(along / 8) % 2)[..., None] * 8, inside)
    edge = np.maximum(np.abs(along) - long, np.abs(across) - wide)
    lines = (
        (np.abs(edge + 3) < 0.9) | ((np.abs(along) < 0.9) & (edge < -3)) | (np.abs(np.hypot(along, across) - 10) < 0.9)
    )
    return s.over(out, s.grey(230), lines & inside)


@_shows(pivot=0.85, farmland=0.15)
def _pivot(s: Scenes) -> Picture:
    cell = s.chance.uniform(40, 110)
    along, across = s.turned()
    column, row = np.floor(along / cell), np.floor(across / cell)
    distance = np.hypot(along % cell - cell / 2, across % cell - cell / 2)
    number = np.abs(np.sin(column * 12.9898 + row * 78.233) * 43758.5453) % 1
    crops = np.array([(75, 110, 55), (120, 140, 75), (170, 150, 110), (60, 90, 60), (150, 110, 80)], np.float32)
    colours = crops[(number * len(crops)).astype(int)] + ((s.noise() - 0.5) * 20)[..., None]
    return s.over(s.soil(), colours, (distance < cell * 0.48) & (number < 0.9))


@_shows(desert=0.85, sand=0.15)
def _dunes(s: Scenes) -> Picture:
    colour = ((205, 165, 110), (215, 185, 135), (190, 135, 85), (225, 200, 160))[s.chance.integers(4)]
    along, _ = s.turned()
    phase = along / s.chance.uniform(2.5, 9) + s.noise(smooth=True) * s.chance.uniform(3, 25)
    wave = 0.6 * np.sin(phase) + 0.4 * np.abs(np.sin(phase / 2))
    if s.chance.random() < 0.3:
        wave = s.relief()[1] * 0.7
    shade = s.chance.uniform(12, 45) * wave * (0.4 + s.noise())
    return s.plain(colour, 12, 15) + shade[..., None] * (1, 0.9, 0.7)


@_shows(bare_ground=0.6, sand=0.4)
def _bare(s: Scenes) -> Picture:
    colour = ((175, 150, 120), (150, 115, 90), (200, 180, 150), (165, 155, 145))[s.chance.integers(4)]
    out = s.plain(colour, 15, s.chance.uniform(10, 50))
    for _ in range(int(s.chance.integers(0, 3))):
        out = s.over(out, out + s.chance.choice([-18, 18]), np.abs(s.line(20)) < 1.5)
    return out


@_shows(mountain=0.85, rock=0.15)
def _mountain(s: Scenes) -> Picture:
    height, shade = s.relief()
    low = ((60, 80, 45), (95, 95, 60), (120, 100, 75), (140, 115, 90))[s.chance.integers(4)]
    high = ((130, 115, 95), (110, 105, 95), (165, 145, 120), (90, 90, 70))[s.chance.integers(4)]
    out = s.over(s.plain(low, 10, 25), s.plain(high, 10, 25), s.chance.uniform(0.3, 0.7) - height, 0.5)
    if s.chance.random() < 0.5:
        out = 0.5 * out + 0.5 * s.texture("Forest", "forest", "HerbaceousVegetation", "chaparral")
    out = out * (1 + s.chance.uniform(0.3, 0.65) * shade[..., None])
    return s.over(out, s.plain((235, 238, 242), 5), height > 0.9) if s.chance.random() < 0.25 else out


@_shows(rock=0.7, mountain=0.3)
def _rock(s: Scenes) -> Picture:
    _, shade = s.relief()
    colour = ((140, 130, 120), (170, 120, 90), (110, 105, 105), (190, 170, 140))[s.chance.integers(4)]
    out = s.plain(colour, 12, 70) * (1 + 0.3 * shade[..., None])
    bands = np.sin(s.relief()[0] * s.chance.uniform(20, 60))
    return out + s.chance.uniform(0, 16) * bands[..., None]


@_shows(snow=0.85, mountain=0.15)
def _snow(s: Scenes) -> Picture:
    height, shade = s.relief()
    out = s.plain((232, 236, 242), 6, 12) * (1 + s.chance.uniform(0.05, 0.3) * shade[..., None] * (1, 0.9, 0.7))
    if s.chance.random() < 0.6:
        rock = s.plain((95, 90, 90), 15, 40) * (1 + 0.4 * shade[..., None])
        out = s.over(out, rock, height < s.chance.uniform(0.15, 0.45))
    return out


@_shows(cloud=0.85, sea=0.05, forest=0.05, farmland=0.05)
def _cloud(s: Scenes) -> Picture:
    below = s.land() if s.chance.random() < 0.6 else s.water()
    thick = np.clip((s.noise() - s.chance.uniform(0.05, 0.55)) * s.chance.uniform(1.5, 4), 0, 1)
    white = s.plain((238, 238, 240), 5, 14)
    shadow = np.roll(thick, (9, 7), (0, 1))
    return s.over(below * (1 - 0.45 * shadow[..., None]), white, 0.5 - thick, 1.0)


@_shows(wetland=0.9, water=0.1)
def _wetland(s: Scenes) -> Picture:
    greens = ((85, 95, 55), (110, 105, 65), (70, 85, 60), (125, 115, 80))
    out = s.over(
        s.plain(greens[s.chance.integers(4)], 12, 35),
        s.plain(greens[s.chance.integers(4)], 12, 35),
        s.noise() - 0.5,
        0.2,
    )
    if s.chance.random() < 0.4:
        out = 0.5 * out + 0.5 * s.texture("HerbaceousVegetation", "chaparral", "Forest")
    channels = (np.abs(s.noise() - 0.5) < s.chance.uniform(0.01, 0.05)) | (s.noise() < s.chance.uniform(0.1, 0.35))
    return s.over(out, s.plain((45, 55, 50), 15, 10), channels)


@_shows(solar=1)
def _solar(s: Scenes) -> Picture:
    inside, _ = s.blocks((int(s.chance.integers(20, 90)), int(s.chance.integers(6, 14))), 2)
    field = s.blob(s.chance.uniform(60, 140), 0.2) < 1
    panels = s.plain(((35, 45, 85), (50, 55, 70), (25, 30, 50))[s.chance.integers(3)], 8, 6)
    return s.over(s.soil() if s.chance.random() < 0.5 else s.green(), panels, inside & field)


@_shows(greenhouse=1)
def _greenhouse(s: Scenes) -> Picture:
    inside, number = s.blocks(
        (int(s.chance.integers(40, 110)), int(s.chance.integers(7, 16))), 2, s.chance.uniform(0.6, 1)
    )
    roofs = s.plain((205, 212, 215), 12, 8) + (number[..., None] - 0.5) * 40
    return s.over(s.texture("AnnualCrop", "agricultural", "Land", "PermanentCrop"), roofs, inside)


@_shows(terrace=1)
def _terrace(s: Scenes) -> Picture:
    height = s.noise(smooth=True)
    shade = s.relief()[1]
    level = height * s.chance.uniform(8, 24)
    number = np.abs(np.sin(np.floor(level) * 12.9898) * 43758.5453) % 1
    crops = np.array([(90, 120, 60), (125, 140, 80), (150, 135, 95), (70, 100, 60), (110, 130, 120)], np.float32)
    out = crops[(number * len(crops)).astype(int)] + ((s.noise() - 0.5) * 18)[..., None]
    return s.over(out, out * 0.6, level % 1 < 0.16) * (1 + 0.12 * shade[..., None])


@_shows(pool=0.6, sparse_residential=0.2, medium_residential=0.2)
def _pool(s: Scenes) -> Picture:
    out = s.texture("sparseresidential", "mediumresidential", "denseresidential")
    for _ in range(int(s.chance.integers(1, 4))):
        along, across = s.turned()
        along, across = along + s.chance.normal(0, 35), across + s.chance.normal(0, 35)
        size = s.chance.uniform(4, 13)
        shape = (
            np.hypot(along, across * 1.6)
            if s.chance.random() < 0.5
            else np.maximum(np.abs(along), np.abs(across) * 1.8)
        )
        out = s.over(out, s.grey(205), shape < size * 1.35)
        out = s.over(out, s.plain((75, 180, 205), 15, 8), shape < size)
    return out


@_shows(quarry=1)
def _quarry(s: Scenes) -> Picture:
    shape = s.blob(s.chance.uniform(55, 95), 0.6)
    benches = (
        s.plain((190, 178, 158), 20, 25) + (18 * np.sin(np.minimum(shape, 1) * s.chance.uniform(25, 50)))[..., None]
    )
    out = s.over(s.land(), benches * (1 + 0.15 * s.relief()[1][..., None]), shape < 1)
    return s.over(out, s.plain((90, 140, 140), 15), shape < 0.3) if s.chance.random() < 0.5 else out


@_shows(construction=1)
def _construction(s: Scenes) -> Picture:
    out = s.plain((180, 150, 120), 15, 45)
    for _ in range(3):
        out = s.over(out, out + s.chance.choice([-20, 22]), np.abs(s.line(25)) < s.chance.uniform(1.5, 5))
    inside, number = s.blocks(
        (int(s.chance.integers(28, 60)), int(s.chance.integers(24, 50))), 11, s.chance.uniform(0.2, 0.5)
    )
    out = s.over(out, out * 0.6, np.roll(inside, (3, 3), (0, 1)))
    return s.over(out, s.grey(170) + (number[..., None] - 0.3) * 90, inside)


def _ship(s: Scenes, out: Picture, long: float) -> Picture:
    along, across = s.turned()
    along, across = along + s.chance.normal(0, 40), across + s.chance.normal(0, 40)
    half = long / s.chance.uniform(5, 8)
    hull = (np.abs(along) < long) & (np.abs(across) < half * np.clip((long - along) / (0.5 * long), 0, 1) ** 0.5)
    wake = (
        (along < -long)
        & (np.abs(across) < half * (1 + (-long - along) / 60))
        & (along > -long - 60)
        & (s.noise() > 0.4)
    )
    if s.chance.random() < 0.4:
        out = s.over(out, out + 60, wake)
    out = s.over(out, s.plain(tuple(s.chance.uniform(110, 235, 3)), 5), hull)
    deck = hull & (np.abs(across) < half * 0.7) & (along % 9 > 2)
    return s.over(out, s.plain(tuple(s.chance.uniform(60, 220, 3)), 5), deck)


@_shows(boats=0.75, sea=0.25)
def _ships(s: Scenes) -> Picture:
    out = s.water()
    for _ in range(int(s.chance.integers(1, 4))):
        out = _ship(s, out, s.chance.uniform(8, 50))
    return out


@_shows(port=0.85, harbor=0.15)
def _port(s: Scenes) -> Picture:
    _, across = s.turned()
    out = s.over(s.water(), s.grey(s.chance.uniform(120, 180)), across > s.chance.uniform(-20, 20))
    inside, number = s.blocks(
        (int(s.chance.integers(9, 24)), int(s.chance.integers(5, 9))), 1, s.chance.uniform(0.4, 0.9)
    )
    colours = np.array([(175, 70, 55), (60, 90, 150), (200, 200, 195), (75, 120, 85), (200, 150, 60)], np.float32)
    yard = inside & (across > 18 + s.chance.uniform(0, 25)) & (s.noise() < 0.75)
    out = s.over(out, colours[(number * 97 % 5).astype(int)], yard)
    for _ in range(int(s.chance.integers(1, 3))):
        out = _ship(s, out, s.chance.uniform(25, 60))
    return out


def _roofs(s: Scenes, out: Picture, cell: tuple[int, int], gap: int) -> Picture:
    inside, number = s.blocks(cell, gap, s.chance.uniform(0.6, 1))
    out = s.over(out, out * 0.45, np.roll(inside, (3, 3), (0, 1)))
    colours = np.array(
        [(215, 215, 212), (165, 170, 175), (190, 180, 165), (110, 140, 180), (235, 235, 235), (160, 100, 85)]
    )
    roofs = colours[(number * 89 % 6).astype(int)] + ((s.x + s.y) % 5 < 1)[..., None] * -14
    return s.over(out, roofs, inside)


@_shows(industrial=0.85, commercial=0.15)
def _industrial(s: Scenes) -> Picture:
    out = s.texture("parkinglot", "buildings", "storagetanks", "Industrial") if s.chance.random() < 0.5 else s.grey(150)
    return _roofs(
        s, out, (int(s.chance.integers(45, 120)), int(s.chance.integers(28, 70))), int(s.chance.integers(5, 16))
    )


@_shows(commercial=0.85, buildings=0.15)
def _commercial(s: Scenes) -> Picture:
    if s.chance.random() < 0.4:
        return s.mosaic(2, "parkinglot", "buildings", "buildings")
    out = s.texture("parkinglot") if s.chance.random() < 0.6 else s.texture("buildings")
    return _roofs(
        s, out, (int(s.chance.integers(70, 130)), int(s.chance.integers(60, 110))), int(s.chance.integers(22, 44))
    )


@_shows(city=0.85, buildings=0.15)
def _city(s: Scenes) -> Picture:
    if s.chance.random() < 0.5:
        return s.mosaic(int(s.chance.integers(2, 4)), "buildings", "denseresidential", "Building", "buildings")
    return _roofs(
        s, s.grey(125), (int(s.chance.integers(14, 32)), int(s.chance.integers(12, 30))), int(s.chance.integers(3, 7))
    )


@_shows(village=0.9, farmland=0.1)
def _village(s: Scenes) -> Picture:
    fields = s.texture("AnnualCrop", "Pasture", "agricultural", "PermanentCrop")
    houses = s.mosaic(2, "sparseresidential", "mediumresidential", "Residential")
    out = s.over(fields, houses, s.blob(s.chance.uniform(28, 60), 0.7) < 1)
    return s.over(out, s.grey(165), np.abs(s.line(12)) < s.chance.uniform(1, 3))


@_shows(airport=0.85, runway=0.15)
def _airport(s: Scenes) -> Picture:
    out = (
        s.texture("Pasture", "HerbaceousVegetation", "runway")
        if s.chance.random() < 0.6
        else s.plain((125, 125, 85), 18)
    )
    along, across = s.turned()
    half, paved = s.chance.uniform(3, 9), s.grey(s.chance.uniform(105, 185))
    out = s.over(out, paved, (np.abs(across) < half) | (np.abs(across - s.chance.uniform(25, 40)) < half * 0.6))
    out = s.over(out, s.grey(220), (np.abs(across) < 0.8) & (along % 12 < 7))
    angle = s.chance.uniform(0.4, 1.2)
    out = s.over(out, paved, np.abs(across * np.cos(angle) - along * np.sin(angle)) < half * 0.8)
    apron = (across > 38) & (np.abs(along) < s.chance.uniform(35, 80))
    out = s.over(out, paved + 12, apron)
    if s.chance.random() < 0.7:
        out = s.over(out, s.mosaic(2, "airplane", "airplane", "buildings"), apron & (across > 50))
    return out


@_shows(park=0.85, trees=0.15)
def _park(s: Scenes) -> Picture:
    out = s.over(
        s.plain((105, 140, 80), 15), s.texture("forest", "golfcourse", "Vegetation", "Forest"), s.noise() > 0.45
    )
    for _ in range(int(s.chance.integers(1, 4))):
        out = s.over(out, s.plain((200, 190, 170), 10), np.abs(s.line(25)) < s.chance.uniform(1, 2.5))
    if s.chance.random() < 0.5:
        out = s.over(out, s.water(), s.blob(s.chance.uniform(12, 32), 0.7) < 1)
    return s.over(out, s.built(), s.line(3) > s.chance.uniform(50, 90))


@_shows(meadow=0.85, pasture=0.15)
def _meadow(s: Scenes) -> Picture:
    colour = ((105, 145, 75), (130, 150, 85), (90, 125, 60), (140, 140, 80))[s.chance.integers(4)]
    out = s.plain(colour, 12, s.chance.uniform(10, 40))
    stripes = np.sin(s.turned()[0] / s.chance.uniform(2, 8)) * s.chance.uniform(0, 5)
    return out + stripes[..., None]


def _dots(s: Scenes, out: Picture, spacing: float, size: float, jitter: float) -> Picture:
    along, across = s.turned()
    along, across = along + jitter * spacing * (s.noise() - 0.5), across + jitter * spacing * (s.noise() - 0.5)
    distance = np.hypot(along % spacing - spacing / 2, across % spacing - spacing / 2)
    out = s.over(out, out * 0.55, np.roll(distance, (2, 2), (0, 1)) < size)
    colour = ((55, 80, 45), (75, 100, 55), (45, 65, 45))[s.chance.integers(3)]
    return s.over(out, s.plain(colour, 8, 25), distance < size)


@_shows(orchard=0.85, permanent_crop=0.15)
def _orchard(s: Scenes) -> Picture:
    spacing = s.chance.uniform(6, 22)
    below = s.soil() if s.chance.random() < 0.6 else s.green()
    return _dots(s, below, spacing, spacing * s.chance.uniform(0.25, 0.42), 0)


@_shows(bushes=0.9, chaparral=0.1)
def _bushes(s: Scenes) -> Picture:
    spacing = s.chance.uniform(8, 24)
    return _dots(s, s.soil(), spacing, spacing * s.chance.uniform(0.15, 0.3), 9)


@_shows(farmland=0.65, annual_crop=0.35)
def _fields(s: Scenes) -> Picture:
    inside, number = s.blocks(
        (int(s.chance.integers(25, 110)), int(s.chance.integers(20, 90))), int(s.chance.integers(1, 3))
    )
    crops = np.array(
        [(85, 115, 60), (130, 145, 80), (175, 155, 115), (65, 95, 55), (150, 115, 85), (195, 180, 130)], np.float32
    )
    choice = (number * 61 % len(crops)).astype(int)
    along, _ = s.turned()
    furrows = np.sin(along / s.chance.uniform(0.8, 3)) * s.chance.uniform(0, 14)
    colours = crops[choice] + ((s.noise() - 0.5) * 24)[..., None] + furrows[..., None]
    return s.over(s.green() if s.chance.random() < 0.5 else s.soil(), colours, inside)


CONCEPTS = tuple(shares for shares, _ in _MAKERS)
