"""Photographs per second: decoding by every means at hand, and the loader end to end.

Encoded photographs of several sizes lie in memory and are decoded in random order, with and without
the resize to 224 pixels; then training images are made from shards of 512 pixels. Beside every
speed stands how far the pixels are from Pillow's, and at the end whether the loader is as fast as
is asked of it. Every number lands in bench/results/.

    python -m bench.decode                               all that this machine can run
    python -m bench.decode --photographs FOLDER --plot   of real photographs, and pictures
    python -m bench.decode --quick --sizes 512 --impl dali-cpu pillow
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from bench.decode_measure import measure
from bench.decode_peers import PEERS as DECODERS
from bench.decode_peers import why_not
from bench.decode_photographs import ORIGINAL, SIZES, Album
from bench.decode_table import show
from bench.decode_targets import verdicts
from bench.decode_training import PEERS as SOURCES
from bench.decode_training import SOURCE_SIDE, Cohort, make_shards, measure_training
from bench.gpu import clock_log
from bench.measure import attempt
from bench.plots import announce
from bench.record import make_record, write_record
from dataload.cores import usable_cores
from engine.jpeg_engines import jpeg_engines

_MEASURED = ("dataload", "bench/*.py")
_PACKAGES = ("pillow", "nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg")
_PACKAGES += ("simplejpeg", "torchvision")
_NAMES = tuple(dict.fromkeys(peer.name for peer in (*DECODERS, *SOURCES)))
# by --quick
_REPEATS, _SECONDS = {False: 5, True: 3}, {False: 1.0, True: 0.2}
_DISTINCT = {False: 16, True: 6}
# by device type: patients of the shard set, fully and quickly, and in a batch
_PATIENTS, _BATCH = {"cpu": (256, 64), "cuda": (4096, 2048)}, {"cpu": 16, "cuda": 128}


def parse(argv=None):
    """Return the command line's options, defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, help="short sides, px")
    parser.add_argument(
        *("--impl", "--peers"), nargs="+", choices=_NAMES, metavar="NAME", help=_listed()
    )
    parser.add_argument("--threads", type=int, help="of decoding; default: every core")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="of real ones; JPEG")
    parser.add_argument("--quick", action="store_true", help="less exact, within two minutes")
    parser.add_argument("--repeats", type=int, help="turns of each implementation")
    parser.add_argument("--seconds", type=float, help="of a turn of decoding")
    parser.add_argument("--patients", type=int, help="of the shards")
    parser.add_argument("--consumed", type=float, help="photographs/s that a training step takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in bench/results/")
    parser.add_argument("--plot", action="store_true", help="PNG files beside the JSON file")
    return _completed(parser.parse_args(argv))


def _size(text):
    return text if text == ORIGINAL else int(text)


def _listed():
    return f"of {', '.join(_NAMES)}"


def _completed(options):
    kind, quick = torch.device(options.device).type, options.quick
    options.threads = options.threads or usable_cores()
    options.repeats = options.repeats or _REPEATS[quick]
    options.seconds = options.seconds or _SECONDS[quick]
    options.patients = options.patients or _PATIENTS[kind][quick]
    options.distinct = _DISTINCT[quick]
    options.batch = min(_BATCH[kind], options.patients)
    return options


def main(argv=None):
    """Measure, print tables, write a record after every size; return the record's path."""
    options = parse(argv)
    # one photograph is one thread's work, here as in the worker processes
    torch.set_num_threads(1)
    record, path = _measure_all(options, torch.device(options.device))
    show(dataclasses.asdict(record))
    return announce(path, options.plot)


def _measure_all(options, device):
    """Measure every size and the training images; return the record and its path."""
    decoders, missing = _chosen(DECODERS, options, device)
    sources, absent = _chosen(SOURCES, options, device)
    missing += absent
    album = Album(options.photographs, options.distinct)
    rows, facts = [], {"photographs": {}, "clocks": {}, "jpeg_engines": jpeg_engines(device)}
    facts["about"] = {peer.name: peer.about for peer in (*decoders, *sources)}
    for size in options.sizes if decoders else ():
        photographs = album.at(size)
        facts["photographs"][str(size)] = photographs.facts()
        with clock_log(device) as clocks:
            rows += measure(photographs, decoders, options, device)
        facts["clocks"][str(size)] = clocks
        # what ends a later size leaves this one
        _write(rows + missing, facts, options, device)
    if sources:
        with clock_log(device) as clocks:
            rows += _training_rows(album, sources, options, device)
        facts["clocks"]["training"] = clocks
    return _write(rows + missing, facts, options, device)


def _chosen(peers, options, device):
    """Return the peers that are asked for and can run, and a row for each that cannot."""
    able, missing = [], {}
    for peer in peers:
        if options.impl is not None and peer.name not in options.impl:
            continue
        why = why_not(peer, device)
        if why is None:
            able.append(peer)
        else:
            missing[peer.name] = {"implementation": peer.name, "size": None, "note": why}
    return able, list(missing.values())


def _training_rows(album, sources, options, device):
    """Build a shard set in a temporary folder and return the rows of the training images."""
    with tempfile.TemporaryDirectory() as folder:

        def build():
            return {"folder": make_shards(Path(folder), album.at(SOURCE_SIDE), options.patients)}

        made = {}
        if not attempt(made, build):
            return [{"implementation": peer.name, "size": None, **made} for peer in sources]
        cohort = Cohort(
            folder=made["folder"],
            patients=options.patients,
            batch=options.batch,
            threads=options.threads,
            device=device,
        )
        # two of them are held against each other to a tenth
        return measure_training(cohort, sources, 2 * options.repeats)


def _write(rows, facts, options, device):
    """Write the record; return it and its path."""
    settings = {"repeats": options.repeats, "seconds": options.seconds, "quick": options.quick}
    settings |= {"threads": options.threads, "patients": options.patients, "batch": options.batch}
    settings["origin"] = "rendered" if options.photographs is None else "real"
    settings["targets"] = verdicts(rows, device, options.consumed)
    record = make_record(
        "decode", device, rows, folders=_MEASURED, packages=_PACKAGES, **settings, **facts
    )
    record = dataclasses.replace(record, threads=options.threads)
    variant = "quick" if options.quick else ""
    return record, write_record(record, options.json, variant)


if __name__ == "__main__":
    main()
