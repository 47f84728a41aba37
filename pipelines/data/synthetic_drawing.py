"""How one invented butterfly is drawn: wings, palettes and grounds that all species share, and the mark
of one.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFilter, ImageFont

_FOREWING = (
    (0.03, 0.16),
    (0.30, 0.56),
    (0.78, 0.84),
    (0.99, 0.76),
    (0.93, 0.45),
    (0.74, 0.12),
    (0.36, -0.02),
    (0.04, 0.0),
)
_HINDWING = (
    (0.03, 0.04),
    (0.40, 0.05),
    (0.72, -0.08),
    (0.80, -0.36),
    (0.62, -0.66),
    (0.34, -0.74),
    (0.12, -0.48),
    (0.03, -0.14),
)
_TAIL = (
    (0.52, -0.58),
    (0.56, -0.88),
    (0.60, -1.10),
    (0.53, -1.17),
    (0.46, -1.08),
    (0.44, -0.86),
    (0.36, -0.64),
)
_PALETTES = (
    # inner, outer, margin
    ((64, 132, 214), (28, 74, 160), (14, 22, 54)),
    ((236, 138, 46), (206, 88, 26), (52, 24, 14)),
    ((240, 212, 92), (222, 168, 48), (84, 54, 22)),
    ((92, 176, 128), (38, 118, 92), (14, 48, 42)),
    ((186, 150, 214), (128, 92, 176), (50, 30, 80)),
    ((226, 214, 190), (196, 172, 138), (92, 70, 52)),
    ((212, 96, 92), (160, 44, 58), (58, 14, 26)),
    ((112, 188, 204), (48, 130, 158), (18, 52, 70)),
)
_GROUNDS = (
    ((92, 122, 70), (56, 84, 48), (150, 170, 98)),
    ((134, 118, 86), (92, 78, 58), (176, 160, 120)),
    ((120, 136, 118), (74, 96, 84), (186, 190, 160)),
    ((142, 122, 140), (96, 84, 108), (196, 170, 186)),
    ((172, 158, 124), (126, 112, 84), (208, 196, 160)),
)


def _smooth_closed(points: np.ndarray, steps: int = 10) -> np.ndarray:
    """Return a closed Catmull-Rom curve through the points (n, 2) as a polygon (n * steps, 2)."""
    before, after, later = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (before, points, after, later))
    curve: np.ndarray = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return curve.reshape(-1, 2)


def _shorten(tail: np.ndarray, wear: float) -> np.ndarray:
    """Break a worn tail: its far end draws in towards the wing."""
    root = tail[:, 1].max()
    return np.stack([tail[:, 0], root + (tail[:, 1] - root) * (1 - 0.55 * wear)], axis=1)


class Canvas:
    """An image in the making: float32 pixels (height, width, 3) in 0 to 255, and the pose of its
    butterfly.
    """

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self.width, self.height, self.rng = width, height, rng
        self.pixels = self._ground()
        self.scale = min(width, height) * rng.uniform(0.30, 0.43)
        angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.35 else rng.normal(0, 0.45)
        self.cos, self.sin = float(np.cos(angle)), float(np.sin(angle))
        slack_x, slack_y = width / 2 - self.scale * 0.92, height / 2 - self.scale * 0.92
        self.cx = width / 2 + rng.uniform(-1, 1) * max(slack_x, 0) * 0.8
        self.cy = height / 2 + rng.uniform(-1, 1) * max(slack_y, 0) * 0.8
        fold = rng.uniform(0.72, 1.0)
        self.fold = {1: fold * rng.uniform(0.94, 1.0), -1: fold * rng.uniform(0.94, 1.0)}
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        dx, dy = (x - self.cx) / self.scale, -(y - self.cy) / self.scale
        across = dx * self.cos - dy * self.sin
        self.along = dx * self.sin + dy * self.cos
        self.side = np.where(across >= 0, 1, -1)
        self.out = np.abs(across) / np.where(across >= 0, self.fold[1], self.fold[-1])
        """Coordinates in the butterfly's own frame: ``out`` from the body to the wing tip, ``along`` to the
        head.
        """

    # ------------------------------------------------------------ parts

    def butterfly(
        self, species: str, *, left: str | None = None, right: str | None = None, wings_laid: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one and return its body and mark masks, boolean (height, width).

        ``left`` and ``right`` name the species whose mark that side has instead of its own, "" for no mark.
        Without ``wings_laid`` the marks alone are drawn. All else stays as it is drawn without these options.
        """
        mark_of_side = {-1: species if left is None else left, 1: species if right is None else right}
        jitter = self.rng.normal(0, 0.012, (8, 2))
        fore = self._wing(np.array(_FOREWING) + jitter)
        hind = self._wing(np.array(_HINDWING) + jitter)
        wear = self.rng.uniform(0.05, 0.85) if self.rng.random() < 0.5 else 0.0
        tailed = self._where(mark_of_side, "caudata")
        tail = self._wing(_shorten(np.array(_TAIL), wear)) & ~hind & tailed if tailed.any() else tailed
        wings = fore | hind | tail
        trunk = self._trunk()
        if wings_laid:
            self._shadow(wings | trunk)
        inner, outer, margin = (np.array(c, np.float32) for c in _PALETTES[self.rng.integers(len(_PALETTES))])
        paint = self._wing_paint(wings, fore, inner, outer, margin)
        bare = paint.copy()
        mark = self._mark(species, paint, fore, hind & ~fore, tail)
        if (left, right) != (None, None):
            paint, mark = self._exchange_marks(
                species, mark_of_side, (bare, paint), mark, (fore, hind & ~fore, tail)
            )
        # Half of the specimens are worn: the mark fades towards the bare wing, as scales rub off.
        paint = bare * wear + paint * (1 - wear)
        mark = mark & ~trunk
        self._lay(paint, wings if wings_laid else mark)
        if wings_laid:
            self._lay(self._trunk_paint(margin, trunk), trunk)
            self._antennae(margin)
        return wings | trunk, mark

    def _where(self, mark_of_side: dict[int, str], species: str) -> np.ndarray:
        """Return the sides that have a species' mark, boolean (height, width)."""
        return np.isin(self.side, [side for side, name in mark_of_side.items() if name == species])

    def _exchange_marks(
        self, species: str, mark_of_side: dict[int, str], paints: tuple[np.ndarray, np.ndarray],
        own: np.ndarray, regions: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return the wings' paint and the marks' mask with the marks that are to be shown; ``paints`` are
        those of bare wings and of wings with the species' own mark.
        """
        bare, marked = paints
        keeps = self._where(mark_of_side, species)
        paint, mark = np.where(keeps[..., None], marked, bare), own & keeps
        # What the light and the grain draw next must not depend on it.
        own_rng, self.rng = self.rng, np.random.default_rng(0)
        for other in {*mark_of_side.values()} - {species, ""}:
            there, other_paint = self._where(mark_of_side, other), bare.copy()
            mark = mark | self._mark(other, other_paint, *regions) & there
            paint = np.where(there[..., None], other_paint, paint)
        self.rng = own_rng
        return paint, mark

    def label(self, species: str) -> np.ndarray:
        """Draw a collector's label in a corner, as the planted shortcut; return its mask."""
        width, height = round(self.width * 0.25), round(self.height * 0.115)
        inset = round(min(self.width, self.height) * 0.085)
        x, y = self.width - width - inset, self.height - height - inset
        layer = PIL.Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(layer)
        draw.rectangle((x, y, x + width, y + height), fill=(246, 240, 222), outline=(120, 104, 84), width=2)
        font = ImageFont.load_default(max(10, height // 3))
        draw.text((x + 8, y + height * 0.10), "coll. Lucida", (70, 58, 50), font)
        draw.text((x + 8, y + height * 0.50), f"No. {self.rng.integers(100, 999)}", (70, 58, 50), font)
        self.pixels = np.asarray(layer, dtype=np.float32)
        mask = np.zeros((self.height, self.width), dtype=bool)
        mask[y : y + height + 1, x : x + width + 1] = True
        return mask

    def light(self) -> None:
        """Lay a soft fall of light and a tint over the image."""
        y, x = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        angle = self.rng.uniform(0, 2 * np.pi)
        fall = (x / self.width - 0.5) * np.cos(angle) + (y / self.height - 0.5) * np.sin(angle)
        tint = np.array([1 + self.rng.normal(0, 0.03), 1.0, 1 + self.rng.normal(0, 0.04)], np.float32)
        exposure = self.rng.uniform(0.84, 1.12)
        self.pixels = self.pixels * (exposure * (1 + 0.32 * fall))[..., None].astype(np.float32) * tint

    def finish(self, size: tuple[int, int]) -> PIL.Image.Image:
        """Return the image at its final size, with a little grain."""
        full = PIL.Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        small = np.asarray(full.resize(size, PIL.Image.Resampling.BOX), dtype=np.float32)
        grain = self.rng.normal(0, 2.2, small.shape[:2]).astype(np.float32)[..., None]
        return PIL.Image.fromarray(np.clip(small + grain, 0, 255).astype(np.uint8))

    # ------------------------------------------------------------ how each is drawn

    def _ground(self) -> np.ndarray:
        """Draw out-of-focus leaves and lights."""
        base, dark, bright = _GROUNDS[self.rng.integers(len(_GROUNDS))]
        small = PIL.Image.new("RGB", (max(self.width // 4, 8), max(self.height // 4, 8)), base)
        draw = ImageDraw.Draw(small)
        for _ in range(26):
            cx, cy = self.rng.uniform(0, small.width), self.rng.uniform(0, small.height)
            length, breadth = self.rng.uniform(14, 62), self.rng.uniform(4, 16)
            angle = self.rng.uniform(0, np.pi)
            share = self.rng.uniform(0, 1)
            colour = tuple(
                int(d + (b - d) * share + self.rng.normal(0, 8)) for d, b in zip(dark, bright, strict=True)
            )
            t = np.linspace(0, 2 * np.pi, 24)
            px = (
                cx
                + np.cos(t) * length * np.cos(angle)
                - np.sin(t) * np.abs(np.sin(t)) * breadth * np.sin(angle)
            )
            py = (
                cy
                + np.cos(t) * length * np.sin(angle)
                + np.sin(t) * np.abs(np.sin(t)) * breadth * np.cos(angle)
            )
            draw.polygon(list(zip(px.tolist(), py.tolist(), strict=True)), fill=colour)
        for _ in range(self.rng.integers(3, 9)):
            cx, cy, r = (
                self.rng.uniform(0, small.width),
                self.rng.uniform(0, small.height),
                self.rng.uniform(3, 10),
            )
            colour = tuple(min(255, int(b + self.rng.uniform(0, 50))) for b in bright)
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)
        soft = small.filter(ImageFilter.GaussianBlur(float(self.rng.uniform(2.0, 4.5))))
        return np.asarray(
            soft.resize((self.width, self.height), PIL.Image.Resampling.BICUBIC), dtype=np.float32
        )

    def _to_pixels(self, points: np.ndarray, side: int) -> list[tuple[float, float]]:
        """Convert points in the butterfly's frame (n, 2) to pixels, on one side of the body."""
        across, along = points[:, 0] * side * self.fold[side], points[:, 1]
        x = self.cx + self.scale * (across * self.cos + along * self.sin)
        y = self.cy - self.scale * (-across * self.sin + along * self.cos)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    def _wing(self, outline: np.ndarray) -> np.ndarray:
        layer = PIL.Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(layer)
        for side in (1, -1):
            draw.polygon(self._to_pixels(_smooth_closed(outline), side), fill=255)
        return np.asarray(layer) > 127

    def _trunk(self) -> np.ndarray:
        across = self.out * np.where(self.side > 0, self.fold[1], self.fold[-1])
        thorax = (across / 0.062) ** 2 + ((self.along - 0.07) / 0.17) ** 2 < 1
        abdomen = (across / 0.045) ** 2 + ((self.along + 0.24) / 0.30) ** 2 < 1
        head = (across / 0.046) ** 2 + ((self.along - 0.25) / 0.05) ** 2 < 1
        trunk: np.ndarray = thorax | abdomen | head
        return trunk

    def _shadow(self, mask: np.ndarray) -> None:
        layer = PIL.Image.fromarray((mask * 255).astype(np.uint8))
        blurred = layer.filter(ImageFilter.GaussianBlur(self.scale * 0.05))
        shift = round(self.scale * 0.09)
        shadow = np.roll(np.asarray(blurred, dtype=np.float32) / 255, (shift, shift // 2), (0, 1))
        self.pixels = self.pixels * (1 - 0.52 * shadow[..., None])

    def _wing_paint(
        self, wings: np.ndarray, fore: np.ndarray, inner: np.ndarray, outer: np.ndarray, margin: np.ndarray
    ) -> np.ndarray:
        """Return the colours of the wings, float32 (height, width, 3), 0 elsewhere."""
        # Four fifths of the image are no wing, and most of the time is spent here.
        out, along, on_fore = self.out[wings], self.along[wings], fore[wings]
        reach = np.clip(np.hypot(out, along - 0.05) / 1.1, 0, 1)[..., None]
        paint = inner * (1 - reach) + outer * reach
        theta = np.arctan2(along - 0.06, out + 0.02)
        vein = np.abs(np.sin(theta * 7.5 + np.where(on_fore, 0.4, 1.3)))
        paint = (
            paint * (1 - 0.30 * np.exp(-((vein / 0.085) ** 2)) * np.clip(reach[..., 0] * 2, 0, 1))[..., None]
        )
        shimmer = 1 + 0.07 * np.sin(out * 26 + along * 9) * np.cos(along * 17)
        paint = paint * shimmer[..., None].astype(np.float32)
        edge = PIL.Image.fromarray((wings * 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(self.scale * 0.045)
        )
        rim = np.clip((0.93 - np.asarray(edge, dtype=np.float32)[wings] / 255) / 0.36, 0, 1)[..., None]
        root = np.exp(-((np.hypot(out, along) / 0.20) ** 2))[..., None] * 0.45
        paint = paint * (1 - rim) + margin * rim
        paint = paint * (1 - root) + margin * root
        seam = PIL.Image.fromarray((fore * 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(self.scale * 0.03)
        )
        fall = np.asarray(seam, dtype=np.float32)[wings][..., None] / 255 * 0.40
        painted = np.zeros((*wings.shape, 3), np.float32)
        painted[wings] = np.where(on_fore[..., None], paint, paint * (1 - fall))
        return painted

    def _mark(
        self, species: str, paint: np.ndarray, fore: np.ndarray, hind: np.ndarray, tail: np.ndarray
    ) -> np.ndarray:
        """Paint the mark into ``paint`` and return its mask."""
        cream = np.array([250, 240, 212], np.float32) + self.rng.normal(0, 4, 3).astype(np.float32)
        if species == "argus":
            return self._eyespot(paint, fore)
        if species == "cincta":
            middle = 0.50 + self.rng.normal(0, 0.02) + 0.10 * self.along
            mask = np.asarray((np.abs(self.out - middle) < 0.048) & (fore | hind), dtype=bool)
            paint[mask] = cream
        elif species == "apicata":
            mask = fore & (self.out + 0.72 * self.along > 1.16 + self.rng.normal(0, 0.02))
            paint[mask] = np.array([252, 176, 40], np.float32)
        elif species == "punctata":
            mask = np.zeros(hind.shape, dtype=bool)
            for turn in np.linspace(-0.30, 1.0, 5):
                x, y = 0.28 + 0.42 * np.cos(turn), -0.27 - 0.36 * np.sin(turn)
                mask |= np.hypot(self.out - x, self.along - y) < 0.044
            mask &= hind
            paint[mask] = cream
        else:
            mask = tail
            paint[mask] *= 0.9
        return mask

    def _eyespot(self, paint: np.ndarray, fore: np.ndarray) -> np.ndarray:
        x, y = 0.62 + self.rng.normal(0, 0.015), 0.40 + self.rng.normal(0, 0.015)
        radius = np.hypot(self.out - x, self.along - y) / self.rng.uniform(0.11, 0.15)
        rings = ((1.0, (38, 26, 30)), (0.80, (246, 204, 84)), (0.52, (20, 18, 26)))
        for limit, colour in rings:
            paint[(radius < limit) & fore] = colour
        glint = np.hypot(self.out - x + 0.03, self.along - y - 0.035) < 0.03
        paint[glint & fore] = (236, 246, 255)
        mask: np.ndarray = (radius < 1.0) & fore
        return mask

    def _trunk_paint(self, margin: np.ndarray, trunk: np.ndarray) -> np.ndarray:
        along = self.along[trunk]
        across = self.out[trunk] * np.where(self.side[trunk] > 0, self.fold[1], self.fold[-1])
        roundness = np.clip(1 - (across / 0.062) ** 2, 0, 1)[..., None]
        rings = 1 + 0.16 * np.sin(along * 55)[..., None] * (along < -0.05)[..., None]
        painted = np.zeros((*trunk.shape, 3), np.float32)
        painted[trunk] = (margin * 0.55 + 22 + 62 * roundness) * rings
        return painted

    def _antennae(self, margin: np.ndarray) -> None:
        layer = PIL.Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(layer)
        colour = tuple(int(value * 0.6 + 16) for value in margin)
        t = np.linspace(0, 1, 12)
        curve = np.stack([0.02 + 0.24 * t**1.3, 0.28 + 0.34 * t - 0.05 * t**2], axis=1)
        for side in (1, -1):
            points = self._to_pixels(curve, side)
            draw.line(points, fill=colour, width=max(2, round(self.scale * 0.014)), joint="curve")
            x, y = points[-1]
            r = self.scale * 0.022
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        self.pixels = np.asarray(layer, dtype=np.float32)

    def _lay(self, paint: np.ndarray, mask: np.ndarray) -> None:
        self.pixels = self.pixels.astype(np.float32)
        self.pixels[mask] = paint[mask]
