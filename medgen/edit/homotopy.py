"""Changing a mask voxel by voxel without changing how it hangs together.

A voxel is *simple* where it can be added or taken away and pieces, tunnels and cavities stay what they were. Simple
voxels of one of the eight subfields (same parity of every index) are not each other's neighbours, so they can be
flipped together.

Masks are connected through corners (26 neighbours), what is around them through faces (6), as
:mod:`medgen.measure.topology` counts.

Reference:
    Bertrand & Malandain, A new characterization of three-dimensional simple points, Pattern Recognition Letters 1994.
    Han, Xu & Prince, A topology preserving level set method for geometric deformable models, TPAMI 2003.
"""

from itertools import product

import numpy as np

_OFFSETS = [o for o in product((-1, 0, 1), repeat=3) if any(o)]
_STEPS = [sum(map(abs, o)) for o in _OFFSETS]
_FACES = np.uint32(sum(1 << i for i, s in enumerate(_STEPS) if s == 1))
_EDGES = np.uint32(sum(1 << i for i, s in enumerate(_STEPS) if s <= 2))
_CHUNKS = ((0, 9), (9, 9), (18, 8))  # bits looked up at a time


def _tables(reach: int) -> list[np.ndarray]:
    """For each chunk of bits, the neighbours of the set ones, themselves with them; 1: by faces, 3: by corners."""
    grown = []
    for p in _OFFSETS:
        near = [i for i, q in enumerate(_OFFSETS) if _apart(p, q) <= reach and max(_gaps(p, q)) <= 1]
        grown.append(np.uint32(sum(1 << i for i in near)))
    tables = []
    for first, bits in _CHUNKS:
        table = np.zeros(1 << bits, np.uint32)
        for value in range(1, 1 << bits):
            low = (value & -value).bit_length() - 1
            table[value] = table[value & (value - 1)] | grown[first + low]
        tables.append(table)
    return tables


def _gaps(p: tuple[int, ...], q: tuple[int, ...]) -> list[int]:
    return [abs(a - b) for a, b in zip(p, q, strict=True)]


def _apart(p: tuple[int, ...], q: tuple[int, ...]) -> int:
    return sum(_gaps(p, q))


_BY_CORNERS, _BY_FACES = _tables(3), _tables(1)


def _lowest(bits: np.ndarray) -> np.ndarray:
    return bits & (~bits + np.uint32(1))


def _one_piece(bits: np.ndarray, count: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Whether the set bits that lie in pieces holding a bit of ``count`` are one piece; not where there is none."""
    piece = _lowest(bits & count)
    while True:
        grown = piece.copy()
        for (first, size), table in zip(_CHUNKS, tables, strict=True):
            grown |= table[(piece >> np.uint32(first)) & np.uint32((1 << size) - 1)]
        grown &= bits
        if np.array_equal(grown, piece):
            break
        piece = grown
    one: np.ndarray = (piece != 0) & ((bits & count & ~piece) == 0)
    return one


def simple(mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Which voxels can change without a change of topology.

    Args:
        mask: (X, Y, Z) bool with a margin of one voxel, C-contiguous.
        where: (n,) flat indices of voxels off the margin.

    Returns:
        (n,) bool.
    """
    _, y, z = mask.shape
    flat = mask.ravel()
    bits = np.zeros(len(where), np.uint32)
    for i, (dx, dy, dz) in enumerate(_OFFSETS):
        bits |= flat[where + (dx * y + dy) * z + dz].astype(np.uint32) << np.uint32(i)
    everywhere = np.uint32((1 << 26) - 1)
    good = _one_piece(bits, np.full_like(bits, everywhere), _BY_CORNERS)
    around = ~bits & _EDGES
    good[good] = _one_piece(around[good], np.full(int(good.sum()), _FACES), _BY_FACES)
    return good


def _fields(where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    x, y, z = np.unravel_index(where, shape)
    field: np.ndarray = (x % 2) * 4 + (y % 2) * 2 + z % 2
    return field


def follow(mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The mask brought as near to another one as its topology allows, by simple voxels alone.

    Args:
        mask: (X, Y, Z) bool.
        wanted: (X, Y, Z) bool; differences of a few voxels across are followed well, farther ones in several steps.
    """
    now, goal = np.pad(mask, 1), np.pad(wanted, 1)
    flat = now.ravel()
    todo = np.flatnonzero(now != goal)
    while len(todo):
        before = len(todo)
        field = _fields(todo, now.shape)
        for f in range(8):
            turn = todo[field == f]
            turn = turn[simple(now, turn)]
            flat[turn] = ~flat[turn]
        todo = todo[flat[todo] != goal.ravel()[todo]]
        if len(todo) == before:
            break
    return now[1:-1, 1:-1, 1:-1].copy()


def to_count(mask: np.ndarray, count: int, score: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The mask grown or shrunk by simple voxels to a number of voxels, as near to it as topology allows.

    Args:
        mask: (X, Y, Z) bool.
        count: voxels wanted.
        score: (X, Y, Z); the highest are added first, the lowest taken away first.
        allowed: (X, Y, Z) bool, where voxels may be added.
    """
    now, may = np.pad(mask, 1), np.pad(allowed, 1)
    rank = np.pad(score, 1).ravel()
    flat = now.ravel()
    missing = count - int(flat.sum())
    while missing != 0:
        grow = missing > 0
        edge = np.flatnonzero(_beside(now) & may & ~now if grow else _beside(~now) & now)
        edge = edge[np.argsort(-rank[edge] if grow else rank[edge], kind="stable")]
        edge = edge[simple(now, edge)]
        # A slice of the best at a time, so that what they uncover has its turn by rank too.
        edge = edge[: max(1, min(abs(missing), len(edge) // 4))]
        changed = 0
        field = _fields(edge, now.shape)
        for f in range(8):
            turn = edge[field == f]
            turn = turn[simple(now, turn)][: abs(missing) - changed]
            flat[turn] = grow
            changed += len(turn)
        if not changed:
            break
        missing -= changed if grow else -changed
    return now[1:-1, 1:-1, 1:-1].copy()


def _beside(mask: np.ndarray) -> np.ndarray:
    """Voxels off the margin that touch the mask by a face."""
    near = np.zeros_like(mask)
    core = near[1:-1, 1:-1, 1:-1]
    core |= mask[:-2, 1:-1, 1:-1] | mask[2:, 1:-1, 1:-1]
    core |= mask[1:-1, :-2, 1:-1] | mask[1:-1, 2:, 1:-1]
    core |= mask[1:-1, 1:-1, :-2] | mask[1:-1, 1:-1, 2:]
    return near
