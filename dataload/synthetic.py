"""Renders a cohort: left and right fundus photographs, one report per patient, a manifest.

A stand-in for a hospital's data that shows the whole engine at work offline: photographs differ
in camera, pigment and exposure, findings differ between a patient's eyes, and the report says in
Chinese or English what was drawn in which eye. Each photograph and report is a pure function of
(seed, patient, eye), whatever the number of workers.
"""

import csv
import json
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from dataload.cores import usable_cores
from dataload.synthetic_findings import EYES, FINDINGS, draw_findings
from dataload.synthetic_render import encode_photograph
from dataload.synthetic_reports import LANGUAGES, write_report

# part of cohort.json: raise it whenever the same arguments give other photographs or reports
COHORT_VERSION = 7
_MARKER = "cohort.json"
_MANIFEST = "patients.csv"
_PHOTO_NAME = re.compile(r"P\d{6,}_(left|right)\.jpg(\.part)?")
_PATIENTS_PER_TASK = 8


def make_cohort(
    folder: str | Path,
    *,
    patients: int,
    seed: int = 0,
    language: str = "mixed",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders a cohort into a folder: photos/, patients.csv and cohort.json.

    A cohort that is there already with the same arguments is kept, an interrupted one is
    completed, and one with other arguments is replaced.

    Args:
        folder: where to write; created where missing.
        patients: how many, 1 to 999,999.
        seed: 0 or more.
        language: of the reports: "zh", "en", or "mixed", which draws one per patient.
        workers: processes, None for one per available core.
        progress: called as progress(done, total) with numbers of patients.

    Returns:
        Path of patients.csv: patient_id, left, right (paths relative to it, empty where an eye
        has no photograph), report, language, and per eye and finding 0 or 1
        (left_microaneurysms ... right_drusen), empty where that eye has no photograph.

    Raises:
        ValueError: an argument is out of range, or the folder holds something else.
    """
    _check_arguments(patients, seed, language, workers)
    folder = Path(folder)
    settings = {
        "version": COHORT_VERSION,
        "patients": patients,
        "seed": seed,
        "language": language,
    }
    _prepare_folder(folder, settings)
    manifest = folder / _MANIFEST
    rows = [_row(seed, patient, language) for patient in range(1, patients + 1)]
    missing = [number for number, row in enumerate(rows, 1) if not _has_photos(folder, row)]
    if missing or not manifest.is_file():
        _render_all(folder, missing, seed, workers, patients, progress)
        _write_manifest(manifest, rows)
    if progress is not None:
        progress(patients, patients)
    return manifest


def _check_arguments(patients, seed, language, workers):
    if not 1 <= patients <= 999_999:
        raise ValueError(f"patients must be 1 to 999999, not {patients}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    if language not in (*LANGUAGES, "mixed"):
        raise ValueError(f"language must be zh, en or mixed, not {language!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")


def _prepare_folder(folder, settings):
    """Makes the folder ready for these settings, or says why it is left alone."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the cohort")
    marker = folder / _MARKER
    found = _read_marker(marker)
    if found is None and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no cohort; name an empty or new folder")
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    if found == settings:
        return
    # the manifest goes first: what is left of the old cohort is never taken for a whole one
    (folder / _MANIFEST).unlink(missing_ok=True)
    for path in photos.iterdir():
        if _PHOTO_NAME.fullmatch(path.name):
            path.unlink()
    _write_atomically(marker, (json.dumps(settings) + "\n").encode())


def _read_marker(marker):
    """The settings of the cohort in this folder, or None where it is none of ours."""
    if not marker.is_file():
        return None
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return (
        found if isinstance(found, dict) and {"version", "patients", "seed"} <= set(found) else None
    )


def _row(seed, patient, language):
    """The manifest's row of one patient."""
    findings = draw_findings(seed, patient)
    if language == "mixed":
        language = LANGUAGES[np.random.default_rng((seed, patient, 5)).integers(2)]
    name = f"P{patient:06d}"
    row = {"patient_id": name}
    for eye in EYES:
        row[eye] = f"photos/{name}_{eye}.jpg" if eye in findings else ""
    row["report"] = write_report(findings, language=language, seed=seed, patient=patient)
    row["language"] = language
    for eye in EYES:
        present = {finding.name for finding in findings.get(eye, ())}
        for finding in FINDINGS:
            row[f"{eye}_{finding}"] = int(finding in present) if eye in findings else ""
    return row


def _has_photos(folder, row):
    # photographs appear under their names only when whole, so that existence is enough
    return all((folder / row[eye]).is_file() for eye in EYES if row[eye])


def _render_all(folder, numbers, seed, workers, total, progress):
    workers = min(workers or usable_cores(), max(1, len(numbers) // 2))
    tasks = [
        (str(folder), seed, numbers[start : start + _PATIENTS_PER_TASK])
        for start in range(0, len(numbers), _PATIENTS_PER_TASK)
    ]
    done = total - len(numbers)
    for count in _run_tasks(tasks, workers):
        done += count
        if progress is not None:
            progress(done, total)


def _run_tasks(tasks, workers):
    """Yields the number of patients of each task as it ends."""
    if workers <= 1:
        yield from map(_render_patients, tasks)
        return
    # fork would copy a parent that may hold threads and locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_render_patients, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _render_patients(task):
    folder, seed, numbers = task
    for patient in numbers:
        for eye, findings in draw_findings(seed, patient).items():
            path = Path(folder) / "photos" / f"P{patient:06d}_{eye}.jpg"
            photograph = encode_photograph(findings, eye=eye, seed=seed, patient=patient)
            _write_atomically(path, photograph)
    return len(numbers)


def _write_manifest(manifest, rows):
    part = manifest.with_name(manifest.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(manifest)


def _write_atomically(path, content):
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
