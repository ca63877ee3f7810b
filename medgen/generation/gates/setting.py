"""Which gates judge, and how often a rejected draw is drawn again: as a config or the command line says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.registry import beside, check_options, kinds, options_of, resolve

ROOM = "generation.gates"


@dataclass(frozen=True)
class Setting:
    """How draws are judged.

    Attributes:
        kinds: gate -> whether it judges, or its options; gates not named do as they are made to.
        others: whether gates that are not named judge at all.
        attempts: draws of a sample at most; where all are rejected the sample is left out.
        most: share of rejected draws above which a run stops.
    """

    kinds: Mapping[str, bool | Mapping[str, Any]] = field(default_factory=dict)
    others: bool = True
    attempts: int = 8
    most: float = 0.8

    def check(self) -> None:
        """Refuse unknown gates and options.

        Raises:
            InputError: naming the nearest.
        """
        for kind, options in self.active().items():
            check_options(ROOM, kind, "build", options)
            if look := hook(kind, "check"):
                look(**_filled(kind, options))
        for kind in self.kinds:
            resolve(ROOM, kind, "build")

    def active(self) -> dict[str, dict[str, Any]]:
        """Gate -> options, for those that judge, sorted by name."""
        found: dict[str, dict[str, Any]] = {}
        for kind in sorted({*kinds(ROOM, "build"), *self.kinds}):
            said = self.kinds.get(kind, self.others and bool(hook(kind, "ON")))
            if said is not False:
                found[kind] = dict(said) if isinstance(said, Mapping) else {}
        return found

    def recorded(self) -> dict[str, Any]:
        """All that decides which draw is taken, as plain JSON for a sidecar."""
        told = {}
        for kind, options in self.active().items():
            filled, own = _filled(kind, options), hook(kind, "recorded")
            told[kind] = dict(own(**filled)) if own else filled
        return {"attempts": self.attempts, "kinds": told}

    def to_json(self) -> dict[str, Any]:
        """As a model folder keeps it for its user; what names a file of this machine stays behind."""
        kept: dict[str, Any] = {}
        for kind, said in self.kinds.items():
            paths = {n for n, p in options_of(resolve(ROOM, kind, "build")).items() if isinstance(p.default, Path)}
            needs = isinstance(said, Mapping) and bool(paths & set(said))
            if isinstance(said, Mapping):
                said = {name: value for name, value in said.items() if name not in paths}
            if not (needs and not hook(kind, "ON")):
                kept[kind] = said
        return {"kinds": kept, "others": self.others, "attempts": self.attempts, "most": self.most}


def from_json(raw: Mapping[str, Any]) -> Setting:
    """From what :meth:`Setting.to_json` gave; as shipped where a model says nothing."""
    return Setting(**raw)


def parse(words: Sequence[str], before: Setting) -> Setting:
    """``--gate`` options, added to a setting: a gate, ``{request: {tolerance: 0.5}}``, ``topology: off`` or ``none``.

    Raises:
        InputError: none of these.
    """
    import yaml

    kinds, others = dict(before.kinds), before.others
    for word in words:
        try:
            said = yaml.safe_load(word)
        except yaml.YAMLError:
            said = None
        if said == "none":
            kinds, others = {}, False
        elif isinstance(said, str):
            kinds[said] = True
        elif isinstance(said, dict) and all(_is_said(k, v) for k, v in said.items()):
            kinds |= said
        else:
            forms = "a gate, `none`, `topology: off` or `{request: {tolerance: 0.5}}`"
            raise InputError(f"--gate is {forms}, not '{word}'")
    return Setting(kinds, others, before.attempts, before.most)


def _is_said(kind: object, value: object) -> bool:
    return isinstance(kind, str) and isinstance(value, (bool, dict))


def _filled(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: p.default for name, p in options_of(resolve(ROOM, kind, "build")).items()} | dict(options)


def hook(kind: str, name: str) -> Any:
    """Something of a gate's module beside its ``build``; None where it has none."""
    return beside(ROOM, kind, "build", name)
