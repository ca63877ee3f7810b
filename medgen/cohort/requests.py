"""Which covariates each synthetic case gets: requests, the plan over all samples, and the row that answers each.

A request is one for all samples, one a line of a table, or one a stratum of the joint. ``balance=age:10y,sex``
flattens the joint: each stratum (ten years of age by sex) that the cohort covers gets the same number of samples.
``match=real`` keeps the cohort's proportions, and closer than independent draws would.
"""

import csv
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort import coverage
from medgen.cohort.given import Fixed, Given, GivenMap, OneOf, Range
from medgen.cohort.joint import Joint
from medgen.cohort.schema import MISSING_WORDS, Schema, Value
from medgen.cohort.strata import balance_axes, real_axes, strata
from medgen.cohort.where import Request, from_values, known, parse_cell, parse_where, text_of
from medgen.errors import InputError
from medgen.files import digest

__all__ = [
    "Fixed",
    "Given",
    "OneOf",
    "Range",
    "Request",
    "RequestPlan",
    "Row",
    "check",
    "from_values",
    "parse_where",
    "plan",
    "resolve",
    "text_of",
]

MATCHES = ("real",)
_DRAWS = 4096
_GOLDEN = 0.6180339887498949
_IDS = frozenset({"participant_id", "subject_id", "subject", "case_id", "id"})


@dataclass(frozen=True)
class Row:
    """Covariates of one synthetic case.

    Attributes:
        values: every covariate of the cohort; None where the cohort has no value to draw from, for a text that was
            not asked for, and for everything else not asked for beside a text.
        asked: names that the request constrained; the others were drawn given them.
        extrapolated: names whose value lies outside the cohort's range or levels (only under ``force``).
        request: what was asked, in words.
        plausibility: of what was asked, taken together (see :func:`medgen.cohort.coverage.plausibility`).
        given: what was asked: values, ranges, levels.
    """

    values: Mapping[str, Value]
    asked: frozenset[str]
    extrapolated: tuple[str, ...] = ()
    request: str = ""
    plausibility: float = 1.0
    given: GivenMap = field(default_factory=dict)

    @property
    def unlike_cohort(self) -> bool:
        """Whether what was asked is, taken together, unlike any case, though each value alone may be ordinary."""
        return self.plausibility < coverage.UNLIKELY

    @property
    def extrapolation(self) -> str:
        """How the request leaves the cohort, in words; empty where it does not."""
        said = [f"{name} lies outside the cohort's range" for name in self.extrapolated]
        if self.unlike_cohort and len(self.asked) > 1:
            said.append("taken together, what is asked is unlike any case")
        return "; ".join(said)


def stream(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """A random stream of its own for a purpose, a seed and a key, the same on every machine."""
    words = "/".join(["medgen", purpose, str(seed), *map(str, key)])
    key128 = int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key128))


def check(request: Request, schema: Schema, joint: Joint, source: str = "the request") -> None:
    """Stop a request for what is unknown, or for what the cohort never covers unless it is forced.

    Raises:
        InputError: with the known covariates, or the cohort's range and the way to force it.
    """
    for name in request.given:
        known(name, schema, source)
    message = joint.covers(request.given)
    if message is not None and not request.force:
        raise InputError(f"{source}: {message}; ask inside it, or add --force to extrapolate")


def resolve(request: Request, joint: Joint, seed: int, index: int, attempt: int = 0) -> Row:
    """The covariates of sample ``index``: a function of (request, joint, seed, index, attempt) alone.

    Raises:
        InputError: see :func:`check`.
    """
    check(request, joint.schema, joint)
    values = joint.draw(stream("covariates", seed, index, attempt), request.given)
    if any(joint.schema[n].is_text for n in request.given):
        # The joint knows nothing of texts, and a value drawn without regard to the text would contradict it. A missing
        # one does not: the network has learnt what the rest is like given what is asked.
        values = {n: v if n in request.given else None for n, v in values.items()}
    given = {n: Fixed(v) for n in request.given if (v := values[n]) is not None}
    beyond = coverage.outside(joint, given)
    likely = coverage.plausibility(joint, given)
    return Row(values, frozenset(request.given), beyond, str(request), likely, dict(request.given))


@dataclass(frozen=True)
class RequestPlan:
    """The request and the row of covariates of every sample.

    Attributes:
        joint: the cohort's.
        requests: one for all samples, or one a line of the user's table (after its last line it starts again).
        strata: what each stratum adds to the request, with the stratum's share of the samples; empty for none.
        even: whether strata take turns (balance) instead of following their shares (match).
        from_table: whether the requests are lines of a table.
        words: match, balance as given.
    """

    joint: Joint
    requests: tuple[Request, ...]
    strata: tuple[tuple[GivenMap, float], ...] = ()
    even: bool = False
    from_table: bool = False
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> frozenset[str]:
        """Everything that some sample is asked."""
        return frozenset(
            name for given in (*(r.given for r in self.requests), *(s for s, _ in self.strata)) for name in given
        )

    @property
    def length(self) -> int | None:
        """Samples that a table asks for; None where the user says how many."""
        return len(self.requests) if self.from_table else None

    def request(self, index: int, seed: int) -> Request:
        """What sample ``index`` is asked to be; depends on (index, seed) alone, so that shards agree."""
        request = self.requests[index % len(self.requests)]
        if not self.strata:
            return request
        n = len(self.strata)
        if self.even:
            turn = int(stream("balance", seed, index // n).permutation(n)[index % n])
        else:  # a golden-ratio sequence: any run of samples has the strata in proportion, up to about one each
            u = (stream("match", seed).random() + index * _GOLDEN) % 1.0
            shares = np.cumsum([share for _, share in self.strata])
            turn = int(min(np.searchsorted(shares, u * shares[-1], "right"), n - 1))
        return Request({**request.given, **self.strata[turn][0]}, request.force)

    def describe(self) -> dict[str, Any]:
        """Plain JSON that two plans share where they ask the same."""
        texts = [str(request) for request in self.requests]
        asked = {"table_sha256": digest(texts)} if self.from_table else {"where": texts[0]}
        return {**asked, **self.words, "force": self.requests[0].force}

    def row(self, index: int, seed: int, attempt: int = 0) -> Row:
        """The covariates of sample ``index``."""
        return resolve(self.request(index, seed), self.joint, seed, index, attempt)


def plan(
    schema: Schema,
    joint: Joint,
    *,
    where: str | None = None,
    table: Path | None = None,
    match: str | None = None,
    balance: str | None = None,
    force: bool = False,
) -> RequestPlan:
    """Make a plan from what a user gives.

    Args:
        schema: what can be asked for.
        joint: the cohort's.
        where: a request for all samples, see :func:`medgen.cohort.where.parse_where`.
        table: CSV (commas or semicolons) or TSV, one request a line, a column a covariate; cells as in ``where``;
            empty cells are drawn. A participants.tsv does as well: a column of ids is passed over.
        match: ``real``: strata (levels, and quartiles of the first numeric column) in the cohort's proportions.
        balance: covariates to flatten, for example ``age:10y,sex`` (numeric ones with the width of their bins).
        force: allow what the cohort never covers.

    Raises:
        InputError: anything that is not understood, contradicts itself, or that the cohort does not cover.
    """
    if sum(option is not None for option in (table, match, balance)) > 1:
        raise InputError("a table of requests, match and balance exclude each other; give one of them")
    if match is not None and match not in MATCHES:
        raise InputError(f"match has '{', '.join(MATCHES)}', not '{match}'")
    common = parse_where(where or "", schema, force=force)
    if table is not None:
        return RequestPlan(joint, _table(table, common, schema, joint), from_table=True)
    check(common, schema, joint, "--where")
    if match is None and balance is None:
        return RequestPlan(joint, (common,))
    rows = joint.many(stream("strata", 0), _DRAWS, common.given)
    if not rows:
        raise InputError(f"--where: the cohort has too few cases like '{common}' to cut them into strata; widen it")
    axes = real_axes(joint, rows) if match else balance_axes(balance or "", joint, rows)
    even = match is None
    words = {"balance": balance or ""} if even else {"match": match or ""}
    return RequestPlan(joint, (common,), strata(joint, common.given, axes, rows, even=even), even, words=words)


def _table(path: Path, common: Request, schema: Schema, joint: Joint) -> tuple[Request, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a CSV or TSV with one request a line") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); save it as CSV or TSV in UTF-8") from None
    rows = text.splitlines()
    header = re.sub(r'"[^"]*"', "", rows[0]) if rows else ""
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    try:
        lines = list(csv.reader(rows, delimiter=separator, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is not a valid table ({error}); mend it") from None
    if not lines or not any(cell.strip() for cell in lines[0]):
        raise InputError(f"{path} is empty; its first line names covariates: {', '.join(schema.names)}")
    names = [cell.strip() for cell in lines[0]]
    while not names[-1]:  # spreadsheets write empty columns behind the last
        names.pop()
    # Who is asked for has a name in the user's table; samples are numbered.
    skipped = {name for name in names if name.lower() in _IDS and name not in schema}
    if len(skipped) == len(names):
        raise InputError(f"{path} has no column of covariates; add some of: {', '.join(schema.names) or 'none'}")
    columns = [None if name in skipped else known(name, schema, str(path)) for name in names]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns '{name}'; keep one")
        if name in common.given:
            raise InputError(f"'{name}' is asked for in --where and is a column of {path}; keep one of the two")
    requests = []
    for number, cells in enumerate(lines[1:], start=2):
        source = f"{path} line {number}"
        if not cells:
            continue
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(names):
            raise InputError(f"{source} has {len(cells)} cells, but the first line has {len(names)}; mend the line")
        own: dict[str, Given] = {
            c.name: parse_cell(cell, c, source)
            for c, cell in zip(columns, cells, strict=True)
            if c is not None and cell.strip().lower() not in MISSING_WORDS
        }
        request = Request({**common.given, **own}, common.force)
        check(request, schema, joint, source)
        requests.append(request)
    if not requests:
        raise InputError(f"{path} has no line of requests below its header; add one a sample")
    return tuple(requests)
