"""What a batch is asked to be: covariates with their missing entries, the part of the field it is, texts and a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from medgen.cohort.schema import Covariate, Schema, Value
from medgen.models.mask import UNKNOWN
from medgen.models.text import TextEncoderSpec, TextStates

WHOLE = (-1.0, 1.0)


@dataclass(frozen=True)
class Condition:
    """Covariates of a batch.

    Attributes:
        columns: K names.
        values: (B, K) float32; numbers standardised, levels as their index. Undefined where not present.
        present: (B, K) bool; False is the column's learned null.
        box: (B, 3, 2) first and last latent's place along each axis, in the whole field's coordinates in [-1, 1]; None
            for the whole field.
        tokens: (B, T, D) a frozen encoder's states of the texts of all text columns, padded.
        token_column: (B, T) int64, the column that each token belongs to; -1 is padding.
        mask: (B, S, x, y, z) int16, the label map that is to be followed, as :func:`medgen.models.mask.to_cells` lays
            it out: label ids of the S voxels of each latent, -1 where unknown; None where no row has one.
    """

    columns: tuple[str, ...]
    values: torch.Tensor
    present: torch.Tensor
    box: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    token_column: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def null(self) -> "Condition":
        """Nothing is asked, no mask either; the place in the field stays, as it is no question."""
        return replace(self, present=torch.zeros_like(self.present), mask=None)

    def drop(self, column: str) -> "Condition":
        """One column is not asked."""
        present = self.present.clone()
        present[:, self.columns.index(column)] = False
        return replace(self, present=present)

    def replace(self, column: str, values: torch.Tensor) -> "Condition":
        """One column is asked to be ``values`` (B,), standardised or level indices."""
        k = self.columns.index(column)
        new, present = self.values.clone(), self.present.clone()
        new[:, k], present[:, k] = values, True
        return replace(self, values=new, present=present)

    def masked(self, keep: torch.Tensor) -> "Condition":
        """Ask only where ``keep`` (B, K) too."""
        return replace(self, present=self.present & keep)

    def unmasked(self, rows: torch.Tensor) -> "Condition":
        """Without a mask where ``rows`` (B,) is true."""
        if self.mask is None:
            return self
        hidden = rows.to(self.mask.device)[:, None, None, None, None]
        return replace(self, mask=torch.where(hidden, UNKNOWN, self.mask))

    def crop(self, box: torch.Tensor) -> "Condition":
        """The condition of a crop.

        Args:
            box: (3, 2) or (B, 3, 2), see :func:`crop_box`, in the coordinates of what this condition describes: the
                crop of a crop is given within the crop.
        """
        inner = box.to(self.values).expand(len(self), 3, 2)
        mask = None if self.mask is None else _cropped(self.mask, inner)
        if self.box is not None:
            low, high = self.box[..., :1], self.box[..., 1:]
            inner = low + (inner + 1.0) / 2.0 * (high - low)
        return replace(self, box=inner, mask=mask)

    def rows(self, index: Sequence[int] | torch.Tensor | slice) -> "Condition":
        """Some rows of the batch."""
        return self._each(lambda t: t[index])

    def to(self, device: torch.device | str) -> "Condition":
        """On another device."""
        return self._each(lambda t: t.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        def optional(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else change(t)

        return Condition(
            self.columns,
            change(self.values),
            change(self.present),
            optional(self.box),
            optional(self.tokens),
            optional(self.token_column),
            optional(self.mask),
        )

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Join batches that ask the same columns; one without a box is the whole field, one without a mask has none."""
        assert len({c.columns for c in conditions}) == 1, "conditions of different columns cannot be joined"
        tokens, token_column = _joined_tokens(conditions)
        return Condition(
            conditions[0].columns,
            torch.cat([c.values for c in conditions]),
            torch.cat([c.present for c in conditions]),
            _joined_boxes(conditions),
            tokens,
            token_column,
            _joined_masks(conditions),
        )


def crop_box(start: Sequence[int], size: Sequence[int], extent: Sequence[int]) -> torch.Tensor:
    """The box (3, 2) of latents ``start`` to ``start + size - 1`` of a field of ``extent`` latents along each axis.

    Its ends are the places of the first and the last latent; the whole field reaches from -1 to 1.
    """
    ends = [(s, s + n - 1, e) for s, n, e in zip(start, size, extent, strict=True)]
    return torch.tensor([[_place(i, e) for i in (first, last)] for first, last, e in ends], dtype=torch.float32)


def _place(index: int, extent: int) -> float:
    return WHOLE[0] if extent == 1 else (2.0 * index - (extent - 1)) / (extent - 1)


def _cropped(mask: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """A mask (B, S, x, y, z) at the latents that a box (B, 3, 2) names, as :func:`crop_box` counts them."""
    last = torch.tensor([n - 1 for n in mask.shape[2:]], dtype=torch.float32)
    ends = ((box.cpu() + 1.0) / 2.0 * last[None, :, None]).round().long().tolist()
    return torch.stack(
        [m[:, x : x1 + 1, y : y1 + 1, z : z1 + 1] for m, ((x, x1), (y, y1), (z, z1)) in zip(mask, ends, strict=True)]
    )


def _joined_masks(conditions: Sequence[Condition]) -> torch.Tensor | None:
    shapes = [c.mask.shape[1:] for c in conditions if c.mask is not None]
    if not shapes:
        return None

    def of(c: Condition) -> torch.Tensor:
        return c.values.new_full((len(c), *shapes[0]), UNKNOWN, dtype=torch.int16) if c.mask is None else c.mask

    return torch.cat([of(c) for c in conditions])


def _joined_boxes(conditions: Sequence[Condition]) -> torch.Tensor | None:
    if all(c.box is None for c in conditions):
        return None
    return torch.cat([c.values.new_tensor(WHOLE).expand(len(c), 3, 2) if c.box is None else c.box for c in conditions])


def _joined_tokens(conditions: Sequence[Condition]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    shapes = [c.tokens.shape[1:] for c in conditions if c.tokens is not None]
    if not shapes:
        return None, None
    length, width = max(s[0] for s in shapes), shapes[0][1]
    tokens, columns = [], []
    for c in conditions:
        if c.tokens is None or c.token_column is None:
            tokens.append(c.values.new_zeros(len(c), length, width))
            columns.append(torch.full((len(c), length), -1, device=c.values.device))
        else:
            more = length - c.tokens.shape[1]
            tokens.append(F.pad(c.tokens, (0, 0, 0, more)))
            columns.append(F.pad(c.token_column, (0, more), value=-1))
    return torch.cat(tokens), torch.cat(columns)


@dataclass(frozen=True)
class ConditionEncoder:
    """Rows of covariates -> :class:`Condition`, with the cohort's standardisation.

    Attributes:
        schema: the columns, in order.
        centre: mean of each continuous column over the training cases (0 for the others).
        scale: standard deviation of each continuous column (1 for the others).
        text: the frozen encoder that text columns are read with.
        states: reads them; where it is None, texts cannot be asked for.
    """

    schema: Schema
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    text: TextEncoderSpec | None = None
    states: TextStates | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def fit(schema: Schema, rows: Sequence[Mapping[str, Value]]) -> "ConditionEncoder":
        """Measure centre and scale; missing entries are left out."""
        centre, scale = [], []
        for c in schema.covariates:
            cells = [row.get(c.name) for row in rows] if c.kind == "continuous" else []
            numbers = [float(cell) for cell in cells if cell is not None]
            values = torch.tensor(numbers, dtype=torch.float64)
            spread = float(values.std(correction=0)) if len(numbers) else 0.0
            centre.append(float(values.mean()) if len(numbers) else 0.0)
            scale.append(spread if len(set(numbers)) > 1 else 1.0)  # of one value the rounding is no spread
        return ConditionEncoder(schema, tuple(centre), tuple(scale))

    def encode(self, rows: Sequence[Mapping[str, Value]]) -> Condition:
        """Rows (a missing name is a missing entry) -> a batch.

        Raises:
            InputError: a text where the text encoder is not there, or is another one.
        """
        values = torch.zeros(len(rows), len(self.schema.covariates))
        present = torch.zeros(values.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            for k, c in enumerate(self.schema.covariates):
                value = row.get(c.name)
                if value is not None:
                    values[b, k], present[b, k] = self._number(c, k, value), True
        tokens, token_column = self._read(rows)
        return Condition(self.schema.names, values, present, None, tokens, token_column)

    def _number(self, c: Covariate, k: int, value: float | str) -> float:
        if c.is_text:
            return 0.0  # its tokens say it
        if c.kind == "periodic" and c.period:
            return float(value) % c.period  # the same number once around
        if c.is_numeric:
            return (float(value) - self.centre[k]) / self.scale[k]
        return float(c.levels.index(str(value)))

    def _read(self, rows: Sequence[Mapping[str, Value]]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tokens (B, T, D) and their columns (B, T): each text column has its own ``tokens`` places, in order."""
        columns = [(k, c) for k, c in enumerate(self.schema.covariates) if c.is_text]
        texts = {str(text) for row in rows for _, c in columns if (text := row.get(c.name)) is not None}
        if not texts:
            return None, None
        assert self.states is not None, "this condition encoder was given no text encoder"
        states = self.states(sorted(texts))
        tokens = torch.zeros(len(rows), sum(c.tokens for _, c in columns), columns[0][1].width)
        token_column = torch.full(tokens.shape[:2], -1)
        for b, row in enumerate(rows):
            start = 0
            for k, c in columns:
                text = row.get(c.name)
                if text is not None:
                    own = states[str(text)]
                    tokens[b, start : start + len(own)] = own
                    token_column[b, start : start + len(own)] = k
                start += c.tokens
        return tokens, token_column

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        raw: dict[str, Any] = {
            "schema": self.schema.to_json(),
            "centre": list(self.centre),
            "scale": list(self.scale),
        }
        return raw if self.text is None else raw | {"text": self.text.to_json()}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "ConditionEncoder":
        """From what :meth:`to_json` gave."""
        text = TextEncoderSpec.from_json(raw["text"]) if raw.get("text") else None
        schema = Schema.from_json(raw["schema"])
        states = None if text is None else TextStates(text)
        return ConditionEncoder(schema, tuple(raw["centre"]), tuple(raw["scale"]), text, states)
