"""What a batch is asked to be: covariates with their missing mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medgen.cohort.schema import Covariate, Schema, Value


@dataclass(frozen=True)
class Condition:
    """Covariates of a batch.

    Attributes:
        columns: K names.
        values: (B, K) float32; numbers standardised, levels as their index. Undefined where not present.
        present: (B, K) bool; False is the column's learned null.
    """

    columns: tuple[str, ...]
    values: torch.Tensor
    present: torch.Tensor

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def null(self) -> "Condition":
        """Nothing is asked."""
        return replace(self, present=torch.zeros_like(self.present))

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

    def rows(self, index: Sequence[int] | torch.Tensor | slice) -> "Condition":
        """Some rows of the batch."""
        return replace(self, values=self.values[index], present=self.present[index])

    def to(self, device: torch.device | str) -> "Condition":
        """On another device."""
        return replace(self, values=self.values.to(device), present=self.present.to(device))

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Join batches that ask the same columns."""
        assert len({c.columns for c in conditions}) == 1, "conditions of different columns cannot be joined"
        return Condition(
            conditions[0].columns,
            torch.cat([c.values for c in conditions]),
            torch.cat([c.present for c in conditions]),
        )


@dataclass(frozen=True)
class ConditionEncoder:
    """Rows of covariates -> :class:`Condition`, with the cohort's standardisation.

    Attributes:
        schema: the columns, in order.
        centre: mean of each numeric column over the training cases (0 for levels).
        scale: standard deviation of each numeric column (1 for levels).
    """

    schema: Schema
    centre: tuple[float, ...]
    scale: tuple[float, ...]

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
            scale.append(spread if spread > 1e-12 else 1.0)
        return ConditionEncoder(schema, tuple(centre), tuple(scale))

    def encode(self, rows: Sequence[Mapping[str, Value]]) -> Condition:
        """Rows (a missing name is a missing entry) -> a batch."""
        values = torch.zeros(len(rows), len(self.schema.covariates))
        present = torch.zeros(values.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            for k, c in enumerate(self.schema.covariates):
                value = row.get(c.name)
                if value is not None:
                    values[b, k], present[b, k] = self._number(c, k, value), True
        return Condition(self.schema.names, values, present)

    def _number(self, c: Covariate, k: int, value: float | str) -> float:
        if c.is_numeric:
            return (float(value) - self.centre[k]) / self.scale[k]
        return float(c.levels.index(str(value)))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"schema": self.schema.to_json(), "centre": list(self.centre), "scale": list(self.scale)}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "ConditionEncoder":
        """From what :meth:`to_json` gave."""
        return ConditionEncoder(Schema.from_json(raw["schema"]), tuple(raw["centre"]), tuple(raw["scale"]))
