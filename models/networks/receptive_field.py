"""What a value of a network sees of its input, by interval arithmetic (Araujo et al. 2019).

A value at position i along an axis sees the input from ``start + i * jump`` to ``start + i * jump + size``;
of branches that meet, the union. A global pooling, attention or squeeze-and-excitation sees everything: that
is said beside the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


def output_size(size: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Return the size along one axis: floor((size - dilation * (kernel - 1) - 1 + 2 * padding) / stride)
    + 1.
    """
    return (size - effective_kernel(kernel, dilation) + 2 * padding) // stride + 1


def effective_kernel(kernel: int, dilation: int = 1) -> int:
    """Return how many input positions a dilated kernel spans along one axis: dilation * (kernel - 1) + 1."""
    return dilation * (kernel - 1) + 1


@dataclass(frozen=True, slots=True)
class FieldAxis:
    """The part of the input that a position sees along one axis, in input pixels."""

    size: int = 1
    jump: int = 1
    """From one position's field to the next one's."""
    start: int = 0
    """First pixel that position 0 sees; below 0 it sees padding."""

    def through(self, kernel: int, stride: int, before: int, dilation: int) -> FieldAxis:
        """Return the field after a kernel with so much padding ``before`` position 0."""
        return FieldAxis(
            self.size + (effective_kernel(kernel, dilation) - 1) * self.jump,
            self.jump * stride,
            self.start - before * self.jump,
        )

    def padded(self, before: int) -> FieldAxis:
        """Return the field after padding alone."""
        return replace(self, start=self.start - before * self.jump)

    def joined(self, other: FieldAxis) -> FieldAxis:
        """Return where two branches meet."""
        start = min(self.start, other.start)
        stop = max(self.start + self.size, other.start + other.size)
        return FieldAxis(stop - start, max(self.jump, other.jump), start)


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """A receptive field."""

    rows: FieldAxis = field(default_factory=FieldAxis)
    cols: FieldAxis = field(default_factory=FieldAxis)
    sees_all: bool = False
    """Whether a global pooling, attention or squeeze-and-excitation lies below: a position may then depend on
    more than this field, up to the whole image; how far attention in windows reaches is not followed."""

    def box(self, row: int, col: int) -> tuple[float, float, float, float]:
        """Return (x0, y0, x1, y1) of one position in pixels of the model's input; it may reach beyond the
        edges.
        """
        x0, y0 = self.cols.start + col * self.cols.jump, self.rows.start + row * self.rows.jump
        return (float(x0), float(y0), float(x0 + self.cols.size), float(y0 + self.rows.size))

    def joined(self, other: ReceptiveField) -> ReceptiveField:
        """Return where two branches meet."""
        return ReceptiveField(
            self.rows.joined(other.rows), self.cols.joined(other.cols), self.sees_all or other.sees_all
        )
