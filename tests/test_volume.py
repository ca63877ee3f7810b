"""Geometry in and out of NIfTI: properties over random grids, a table of broken files, and what a header may hold."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy.spatial.transform import Rotation

from medgen.errors import InputError
from medgen.volume import Volume, corner_gap_voxels, corners_mm, read_volume, write_volume

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
AXES = ["".join(p) for p in ("RAS", "LPS", "LAS", "RPI", "ASR", "PIL", "SAL", "IRP")]


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any right-angled affine: orientation by axis codes, then an oblique turn, anisotropic spacing, an origin."""
    spacing = [draw(st.floats(0.2, 6.0)) for _ in range(3)]
    ornt = axcodes2ornt(tuple(draw(st.sampled_from(AXES))))
    tilt = draw(st.sampled_from([0.0, 1e-4, 1e-2, 0.4])) * np.array([draw(st.floats(-1, 1)) for _ in range(3)])
    affine = inv_ornt_aff(ornt, (5, 6, 7)) @ np.diag([*spacing, 1.0])
    affine[:3, :3] = Rotation.from_rotvec(tilt).as_matrix() @ affine[:3, :3]
    # Spacing belongs to voxel axes: rebuild from pure directions.
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(2, 6)) for _ in range(3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Volume(rng.standard_normal(shape).astype(np.float32), draw(affines()))


@QUICK
@given(volume=volumes())
def test_write_then_read_gives_the_same_arrays_and_place(volume: Volume, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, volume)
    first = read_volume(path)
    np.testing.assert_array_equal(first.data, volume.data)
    assert corner_gap_voxels(volume, first) < 1e-3  # what float32 leaves of an origin at 300 mm
    bytes_first = path.read_bytes()
    write_volume(path, first)
    again = read_volume(path)
    np.testing.assert_array_equal(again.affine, first.affine)
    assert path.read_bytes() == bytes_first


@QUICK
@given(affine=affines())
def test_image_and_label_share_the_affine_bit_for_bit(affine: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "i.nii.gz", Volume(np.ones((1, 4, 5, 6), np.float32), affine))
    write_volume(tmp_path / "l.nii.gz", Volume(np.ones((1, 4, 5, 6), np.uint8), affine))
    image, label = read_volume(tmp_path / "i.nii.gz"), read_volume(tmp_path / "l.nii.gz", label=True)
    np.testing.assert_array_equal(image.affine, label.affine)


@QUICK
@given(affine=affines())
def test_qform_agrees_with_sform_wherever_it_is_claimed(affine: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    big = Volume(np.broadcast_to(np.uint8(1), (1, 160, 40, 20)), affine)
    write_volume(path, big)
    image = nib.load(path)
    assert image.header["sform_code"] == 1
    qform, code = image.get_qform(coded=True)
    near_ras = np.trace(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)) > 2
    assert code == 1 or not near_ras  # only turns near 180 degrees defeat a float32 quaternion
    if code:
        assert corner_gap_voxels(big, Volume(big.data, qform)) < 0.01
    np.testing.assert_allclose(image.header.get_zooms(), Volume(big.data, affine).spacing_mm, rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


@QUICK
@given(volume=volumes(), axes=st.sampled_from(AXES))
def test_reorientation_keeps_every_voxel_where_it_is(volume: Volume, axes: str) -> None:
    turned = volume.reoriented(axes)
    # World coordinates of all voxels, ordered by their value in the first channel.
    for v in (volume, turned):
        assert v.data.flags.c_contiguous
    assert turned.orientation == axes
    np.testing.assert_allclose(_world_by_value(turned), _world_by_value(volume), atol=1e-9)
    back = turned.reoriented(volume.orientation)
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


def _world_by_value(volume: Volume) -> np.ndarray:
    index = np.indices(volume.shape).reshape(3, -1).T
    world = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world[np.argsort(volume.data[0].ravel())]


@pytest.mark.parametrize("tilt", [1e-5, 1e-4, 1e-3, 1e-2])
def test_a_scan_turned_by_nearly_half_a_circle_stays_in_place(tilt: float, tmp_path: Path) -> None:
    # Slightly oblique LPS: a quaternion in float32 would move the far corner by up to half a voxel.
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([tilt, -tilt, tilt / 2]).as_matrix() @ np.diag([-1.0, -1.0, 1.0])
    affine[:3, 3] = (120, 130, -90)
    volume = Volume(np.broadcast_to(np.uint8(1), (1, 200, 200, 20)), affine)
    write_volume(tmp_path / "a.nii.gz", volume)
    assert corner_gap_voxels(volume, read_volume(tmp_path / "a.nii.gz")) < 1e-4


def test_itk_and_nibabel_see_the_same_corners(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix() @ np.diag([1.0, 1.5, 3.0])
    affine[:3, 3] = (-80, 17, 33)
    volume = Volume(np.zeros((1, 30, 20, 10), np.float32), affine)
    write_volume(tmp_path / "a.nii.gz", volume)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    corners = [
        image.TransformIndexToPhysicalPoint((i, j, k)) for i in (0, 29) for j in (0, 19) for k in (0, 9)
    ] * np.array([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(corners, corners_mm(volume.shape, affine), atol=1e-3)


@pytest.mark.parametrize("unit,to_mm", [("mm", 1.0), ("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)])
def test_units_become_millimetres(unit: str, to_mm: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), None)
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) / to_mm
    affine[3, 3] = 1.0
    image.set_sform(affine, 1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").spacing_mm, (2, 3, 4), rtol=1e-6)


@pytest.mark.parametrize("form", ["sform", "qform", "both"])
def test_either_form_places_the_image_and_the_sform_wins(form: str, tmp_path: Path) -> None:
    sform, qform = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([-3.0, 3.0, 3.0, 1.0])
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), None)
    image.set_qform(qform, 0 if form == "sform" else 1)
    image.set_sform(None if form == "qform" else sform, 0 if form == "qform" else 2)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, qform if form == "qform" else sform, atol=1e-6)


def test_a_fourth_dimension_is_channels(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    write_volume(tmp_path / "a.nii.gz", Volume(data, np.eye(4)))
    assert nib.load(tmp_path / "a.nii.gz").shape == (3, 4, 5, 2)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, data)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "int32", "uint16", "int64", "bool", "float32", "float64", "float16"]
)
def test_every_type_medgen_meets_can_be_written(dtype: str, tmp_path: Path) -> None:
    data = (np.arange(24).reshape(1, 2, 3, 4) % 2).astype(dtype)
    write_volume(tmp_path / "a.nii.gz", Volume(data, np.eye(4)))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", label=True).data, data.astype(np.int32))


def test_labels_keep_large_values_exactly(tmp_path: Path) -> None:
    data = np.full((1, 2, 2, 2), 2**24 + 1, np.int32)
    write_volume(tmp_path / "a.nii.gz", Volume(data, np.eye(4)))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", label=True).data, data)


def test_scaled_integers_are_read_in_their_units(tmp_path: Path) -> None:
    _save(tmp_path / "a.nii", np.full((2, 2, 2), 10, np.int16), scl_slope=0.5, scl_inter=-1.0)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").data, 4.0)


# --- headers -------------------------------------------------------------------------------------------------------


def test_no_text_of_the_input_reaches_the_output(tmp_path: Path) -> None:
    secret = b"DOE^JANE"
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = secret
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret + b" born 1950"))
    source = tmp_path / "DOE^JANE.nii"
    nib.save(image, source)
    assert source.read_bytes().count(secret) == 5
    for name in ("a.nii", "a.nii.gz"):
        write_volume(tmp_path / name, read_volume(source))
        raw = (tmp_path / name).read_bytes()
        plain = gzip.decompress(raw) if name.endswith("gz") else raw
        assert secret not in raw + plain
        header = nib.load(tmp_path / name).header
        assert len(header.extensions) == 0
        assert struct.unpack_from("<f", plain, 108) == (352.0,)
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            assert header[field].tobytes().strip(b"\0") == b""
    # The gzip header may carry a file name and a time: it must not.
    flags, time = (tmp_path / "a.nii.gz").read_bytes()[3], (tmp_path / "a.nii.gz").read_bytes()[4:8]
    assert flags == 0 and time == b"\0\0\0\0"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    singular = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(InputError):
        write_volume(tmp_path / "a.nii.gz", Volume(np.zeros((1, 2, 2, 2), np.float32), singular))
    assert list(tmp_path.iterdir()) == []


# --- broken files --------------------------------------------------------------------------------------------------


def _save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> None:
    """A NIfTI file whose header fields are then overwritten in its bytes."""
    image = nib.Nifti1Image(data, None)
    image.set_sform(np.eye(4) if affine is None else affine, 1)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    for field, value in fields.items():
        code, offset = _FIELDS[field]
        values = value if isinstance(value, tuple) else (value,)
        struct.pack_into(f"<{len(values)}{code}" if code != "s" else f"<{len(values[0])}s", raw, offset, *values)
    path.write_bytes(bytes(raw))


_FIELDS = {
    "sizeof_hdr": ("i", 0),
    "dim": ("h", 40),
    "datatype": ("h", 70),
    "bitpix": ("h", 72),
    "pixdim": ("f", 76),
    "vox_offset": ("f", 108),
    "scl_slope": ("f", 112),
    "scl_inter": ("f", 116),
    "xyzt_units": ("B", 123),
    "qform_code": ("h", 252),
    "sform_code": ("h", 254),
    "quatern": ("f", 256),
    "srow": ("f", 280),
    "magic": ("s", 344),
}
ONES = np.ones((4, 5, 6), np.float32)
NAN, INF = float("nan"), float("inf")


def _field(data: np.ndarray = ONES, **fields: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _save(folder / "a.nii", data, **fields)
        return folder / "a.nii"

    return make


def _data(data: np.ndarray) -> Callable[[Path], Path]:
    return _field(data)


def _affine(affine: np.ndarray) -> Callable[[Path], Path]:
    return _field(srow=tuple(float(v) for v in affine[:3].ravel()))


def _raw(content: bytes, name: str = "a.nii") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _cut_gzip(share: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).standard_normal((20, 20, 20)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / "a.nii.gz")
        raw = (folder / "a.nii.gz").read_bytes()
        (folder / "a.nii.gz").write_bytes(raw[: int(share * len(raw))])
        return folder / "a.nii.gz"

    return make


def _cut_plain(folder: Path) -> Path:
    path = _field()(folder)
    path.write_bytes(path.read_bytes()[:500])
    return path


def _flipped_gzip(folder: Path) -> Path:
    path = _cut_gzip(1.0)(folder)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    raw[len(raw) // 2 + 1] ^= 0xFF
    path.write_bytes(bytes(raw))
    return path


def _huge_gzip(folder: Path) -> Path:
    path = _field(dim=(3, 30000, 30000, 30000))(folder)
    (folder / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "b.nii.gz"


def _with(value: float) -> np.ndarray:
    data = ONES.copy()
    data[1, 2, 3] = value
    return data


def _rgb(folder: Path) -> Path:
    data = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(data, np.eye(4)), folder / "a.nii")
    return folder / "a.nii"


def _folder(folder: Path) -> Path:
    (folder / "a.nii").mkdir()
    return folder / "a.nii"


def _minc_like(folder: Path) -> Path:
    nib.save(nib.MGHImage(ONES, np.eye(4)), folder / "a.mgz")
    return folder / "a.mgz"


SHEARED = np.eye(4)
SHEARED[0, 1] = 0.2
SAME_AXES = np.eye(4)
SAME_AXES[:3, 1] = SAME_AXES[:3, 0]
NO_FORMS = {"sform_code": 0, "qform_code": 0}
QFORM_ONLY = {"sform_code": 0, "qform_code": 1}

BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing file": (lambda folder: folder / "none.nii.gz", "does not exist"),
    "a folder": (_folder, "cannot be read"),
    "empty file": (_raw(b""), "cannot be read"),
    "empty gzip": (_raw(b"", "a.nii.gz"), "cannot be read"),
    "text": (_raw(b"subject,age\n1,30\n" * 50), "cannot be read"),
    "header only": (_raw(b"\x5c\x01\x00\x00" + b"\0" * 344), "cannot be read|has shape"),
    "truncated": (_cut_plain, "cannot be read"),
    "truncated gzip": (_cut_gzip(0.5), "cannot be read"),
    "gzip cut in its header": (_cut_gzip(0.001), "cannot be read"),
    "gzip with flipped bytes": (_flipped_gzip, "cannot be read"),
    "not gzip in spite of its name": (_raw(b"plain text " * 60, "a.nii.gz"), "cannot be read"),
    "gzip that claims terabytes": (_huge_gzip, "cannot be read"),
    "another format": (_minc_like, "not a NIfTI"),
    "wrong magic": (_field(magic=b"abc\0"), "cannot be read|not a NIfTI"),
    "zero extent": (_field(dim=(3, 0, 5, 6)), "has shape|cannot be read"),
    "negative extent": (_field(dim=(3, -4, 5, 6)), "has shape|cannot be read"),
    "more voxels than the file": (_field(dim=(3, 4000, 5000, 600)), "cannot be read"),
    "nonsense number of dimensions": (_field(dim=(77,)), "cannot be read|has shape"),
    "2D": (_data(ONES[..., 0]), "has shape"),
    "5D": (_data(np.ones((3, 3, 3, 1, 2), np.float32)), "has shape"),
    "NaN": (_data(_with(NAN)), "1 voxels that are NaN"),
    "infinite": (_data(_with(INF)), "NaN or infinite"),
    "overflowing scl_slope": (_field(np.full((3, 3, 3), 9000, np.int16), scl_slope=3e38, scl_inter=0.0), "infinite"),
    "NaN scl_inter": (_field(np.full((3, 3, 3), 9, np.int16), scl_slope=1.0, scl_inter=NAN), "NaN|cannot be read"),
    "beyond float32": (_data(np.full((3, 3, 3), 1e300)), "overflow float32"),
    "complex": (_data(np.ones((3, 3, 3), np.complex64)), "real-valued"),
    "RGB": (_rgb, "real-valued"),
    "unknown data type": (_field(datatype=999), "cannot be read"),
    "offset beyond the file": (_field(vox_offset=1e7), "cannot be read"),
    "NaN offset": (_field(vox_offset=NAN), "cannot be read"),
    "unknown unit": (_field(xyzt_units=5), "unit"),
    "neither form": (_field(**NO_FORMS), "neither sform nor qform"),
    "NaN in the affine": (_field(srow=(NAN, 0.0, 0.0, 0.0)), "affine is not finite|cannot be read"),
    "infinite origin": (_field(srow=(1.0, 0.0, 0.0, INF)), "affine is not finite|cannot be read"),
    "zero affine": (_affine(np.zeros((4, 4))), "voxel sizes"),
    "huge voxels": (_affine(np.diag([1e6, 1e6, 1e6, 1])), "voxel sizes"),
    "two axes point the same way": (_affine(SAME_AXES), "singular"),
    "sheared": (_affine(SHEARED), "sheared"),
    "quaternion longer than one": (_field(**QFORM_ONLY, quatern=(0.9, 0.9, 0.9)), "cannot be read"),
    "NaN quaternion": (_field(**QFORM_ONLY, quatern=(NAN, 0.0, 0.0)), "cannot be read|not finite"),
    "NaN spacing in the qform": (_field(**QFORM_ONLY, pixdim=(1.0, NAN, 1.0, 1.0)), "cannot be read|not finite"),
}

BROKEN_LABELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fractions": (_data(_with(1.5)), "not integers"),
    "NaN label": (_data(_with(NAN)), "not integers"),
    "two channels": (_data(np.ones((3, 3, 3, 2), np.int16)), "2 channels"),
    "float beyond 32 bits": (_data(np.full((3, 3, 3), 2.0**40)), "32 bits"),
    "integer beyond 32 bits": (_data(np.full((3, 3, 3), 2**32 - 1, np.uint32)), "32 bits"),
    "fractions by scl_slope": (_field(np.full((3, 3, 3), 3, np.int16), scl_slope=0.5, scl_inter=0.0), "not integers"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_one_sentence_that_names_the_file(name: str, tmp_path: Path) -> None:
    _refused(*BROKEN[name], tmp_path, label=False)


@pytest.mark.parametrize("name", BROKEN_LABELS)
def test_a_broken_label_is_one_sentence_that_names_the_file(name: str, tmp_path: Path) -> None:
    _refused(*BROKEN_LABELS[name], tmp_path, label=True)


def _refused(make: Callable[[Path], Path], says: str, folder: Path, *, label: bool) -> None:
    path = make(folder)
    with pytest.raises(InputError, match=says) as error:
        read_volume(path, label=label)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 500


def test_real_files_survive_a_round_trip(data: Path, tmp_path: Path) -> None:
    files = [p for c in ("oasis", "hippocampus", "ms") for p in sorted((data / c).rglob("*.nii.gz"))[:3]]
    assert files
    for path in files:
        if path.name.startswith("."):
            continue
        volume = read_volume(path)
        write_volume(tmp_path / "a.nii.gz", volume)
        back = read_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(back.data, volume.data)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)
