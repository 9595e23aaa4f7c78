"""Files that were uploaded: checked, stored under random names, known by their bytes, and put
together to a case.

What a browser sends is not trusted: neither its name, which is only ever shown, nor its content,
which only `runtime.nifti` reads.
"""

import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from runtime.case import Case, Dialect, Source, read_names
from runtime.dataset_json import ALIASES
from runtime.errors import InputError
from runtime.labels import MODALITIES
from runtime.naming import is_channel, is_nifti, take_apart
from runtime.nifti_bytes import count_frames

TRUTH: Final = "truth"
ROLES: Final = (*MODALITIES, TRUTH)
_LABEL_TOKENS: Final = ("seg", "segm", "label", "labels")
_NAME_LENGTH: Final = 100
# Four modalities, their truth, and room for what else is kept in one file.
_MAX_FRAMES: Final = 8


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded, or one frame of a 4D file.

    Attributes:
        name: as the browser gave it, without folders; only to be shown.
        path: where it is stored.
        frame: index on the last axis of a 4D file; None for a 3D file.
        role: modality or `TRUTH` by its name; None where the name does not tell.
    """

    name: str
    path: Path
    frame: int | None
    role: str | None

    @property
    def title(self) -> str:
        return self.name if self.frame is None else f"{self.name} [{self.frame}]"


class Store:
    """A private folder of one session; it goes when the session does.

    Attributes:
        folder: where files lie, mode 0700.
    """

    def __init__(self, parent: Path | None = None, max_bytes: int = 1 << 30) -> None:
        """
        Args:
            parent: of the folder; None means the system's place for temporary files.
            max_bytes: largest file to take.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="brats-app-", dir=parent))
        # Apart from what is made of them: nothing is ever written among the files of a case.
        self._files = self.folder / "files"
        self._files.mkdir(0o700)
        self._max_bytes = max_bytes
        self._by_hash: dict[str, Path] = {}
        self._names: dict[Path, str] = {}
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def add(self, name: str, data: bytes) -> tuple[Upload, ...]:
        """Store a file under a random name; the same bytes are stored once.

        Args:
            name: as the browser gave it.
            data: the file's bytes.

        Returns:
            The file, or, of a 4D one, each of its frames.

        Raises:
            InputError: not a .nii or .nii.gz by name and content, damaged, too large, or with more
                frames than a case can have. Nothing of it is stored.
        """
        shown = shown_name(name)
        _check(shown, data, self._max_bytes)
        frames = _frames(shown, data)
        digest = hashlib.sha256(data).hexdigest()
        path = self._by_hash.get(digest)
        if path is None:
            path = self._files / f"{secrets.token_hex(16)}{'.nii.gz' if _gzipped(data) else '.nii'}"
            with os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(data)
            self._by_hash[digest] = path
        self._names[path] = shown
        if frames == 1:
            return (Upload(shown, path, None, role_of(shown)),)
        return tuple(Upload(shown, path, frame, None) for frame in range(frames))

    def new_folder(self) -> Path:
        """An empty folder for what is made in this session."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def plain(self, text: str) -> str:
        """A message with the names that the user knows in the place of ours."""
        for path, name in self._names.items():
            text = text.replace(str(path), name).replace(path.name, name)
        return text.replace(f"{self._files}{os.sep}", "").replace(f"{self.folder}{os.sep}", "")

    @property
    def closed(self) -> bool:
        """Whether everything has been deleted."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Delete everything now."""
        self._finalizer()


def shown_name(name: str) -> str:
    """The last part of a name from outside, printable, and not endless."""
    last = PurePosixPath(name.replace("\\", "/")).name
    clean = "".join(letter if letter.isprintable() else "?" for letter in last)
    if len(clean) > _NAME_LENGTH:
        # The end says what the file is.
        clean = f"...{clean[-_NAME_LENGTH + 3 :]}"
    return clean or "file"


def role_of(name: str) -> str | None:
    """Modality or `TRUTH` that a file name tells; None where it tells nothing."""
    named = take_apart(Path(name))
    if named.token in _LABEL_TOKENS:
        return TRUTH
    return None if is_channel(named) else ALIASES.get(named.token)


def assemble(
    chosen: Sequence[tuple[Upload, str | None]], needed: Sequence[str] = MODALITIES
) -> Case:
    """Put uploaded files together to a case.

    Args:
        chosen: files of one patient's visit, each with its modality or `TRUTH` as the user decided;
            None leaves a file out.
        needed: modalities that the model cannot do without.

    Returns:
        A case as `Case.from_dir` would make of the same files in a folder.

    Raises:
        InputError: a modality is missing or there twice, files of several patients, or a frame of a
            4D file as the truth.
    """
    taken = _taken(chosen)
    missing = [name for name in needed if name not in taken]
    if missing:
        raise InputError(
            "the case",
            found=f"no {' and no '.join(missing)}",
            expected=", ".join(needed),
            remedy="add the file, or say in the table which one it is",
        )
    _check_one_patient(taken)
    named = [take_apart(Path(upload.name)) for upload in taken.values() if upload.role != TRUTH]
    telling = [one for one in named if one.token in ALIASES]
    dialect, implied = read_names(telling) if telling else (Dialect.NNUNET, None)
    return Case(
        case_id=_case_id(taken),
        images={
            name: Source(taken[name].path, taken[name].frame)
            for name in MODALITIES
            if name in taken
        },
        labels=taken[TRUTH].path if TRUTH in taken else None,
        dialect=dialect,
        convention=implied,
    )


def _taken(chosen: Sequence[tuple[Upload, str | None]]) -> dict[str, Upload]:
    """Role to the one file that has it."""
    taken: dict[str, Upload] = {}
    for upload, role in chosen:
        if role is None:
            continue
        if role in taken:
            raise InputError(
                upload.title,
                found=f"{role} twice (also {taken[role].title})",
                expected="each modality once",
                remedy="choose another modality for one of the two, or leave it out",
            )
        if role == TRUTH and upload.frame is not None:
            # A case knows its truth by a file alone, as the command line does.
            raise InputError(
                upload.title,
                found="a frame of a 4D file as the truth",
                expected="a 3D label map",
                remedy="leave this frame out, and upload the truth as a file of its own",
            )
        taken[role] = upload
    return taken


def _check_one_patient(taken: Mapping[str, Upload]) -> None:
    """Compare the names that tell what their files are; what others begin with tells nothing."""
    prefixes = set()
    for role, upload in taken.items():
        named = take_apart(Path(upload.name))
        # BraTS20_Training_355 carries its mask as W39_1998.09.19_Segm.nii: see `Case.from_dir`.
        odd = role == TRUTH and named.token == "segm"
        if upload.role is not None and not odd:
            prefixes.add(named.prefix)
    if len(prefixes) > 1:
        raise InputError(
            "the files",
            found=f"names of several cases ({', '.join(sorted(map(repr, prefixes))[:3])})",
            expected="the files of one patient's visit",
            remedy="upload one case at a time",
        )


def _case_id(taken: Mapping[str, Upload]) -> str:
    """What the images' names begin with, first of those that tell what they are."""
    images = [taken[name] for name in MODALITIES if name in taken]
    images.sort(key=lambda upload: upload.role is None)
    prefixes = [take_apart(Path(upload.name)).prefix for upload in images]
    first = next((prefix for prefix in prefixes if prefix), "case")
    # It becomes a part of file names that are offered for download.
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in first)


def _gzipped(data: bytes) -> bool:
    return data[:2] == b"\x1f\x8b"


def _check(name: str, data: bytes, max_bytes: int) -> None:
    if not is_nifti(Path(name)):
        raise InputError(
            name,
            found="a name that does not end in .nii or .nii.gz",
            expected="a NIfTI file",
            remedy="convert it, for instance with dcm2niix",
        )
    if len(data) > max_bytes:
        raise InputError(
            name,
            found=f"{len(data) >> 20} MiB",
            expected=f"at most {max_bytes >> 20} MiB",
            remedy="start brats-app with a larger --max-upload-mb",
        )
    sizes = (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))
    if not _gzipped(data) and not {348, 540} & set(sizes):
        raise InputError(
            name,
            found=f"a file that starts with {data[:4].hex() or 'nothing'}",
            expected="a NIfTI file",
            remedy="convert it, for instance with dcm2niix",
        )


def _frames(name: str, data: bytes) -> int:
    """How many frames a file really has."""
    frames = count_frames(Path(name), data)
    if frames > _MAX_FRAMES:
        raise InputError(
            name,
            found=f"a series of {frames} frames",
            expected="the modalities of one visit",
            remedy=f"upload one 3D file per modality, or one 4D file of at most {_MAX_FRAMES}",
        )
    return frames
