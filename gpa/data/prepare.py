"""`gpa prepare`: a source of rows becomes a folder of ids, once, in as many processes as there are.

Two passes over numbered shards of rows: the doctor judges all of them, then the codec encodes those that are
left. A shard is one file that appears whole, so a killed run goes on with the shards that are missing, and
processes need no network between them: they see each other's files. The lead process alone writes what
concerns all shards. Order and number of processes change no byte of the result.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

from gpa import disk
from gpa.codec import load_codec
from gpa.data import (
    huggingface,
    require_datasets,
    screening,
    streaming,
    tar_shards,
    token_folder,
    validation_summary,
)
from gpa.data.checks import REASONS, Limits
from gpa.data.encoding import Encoder, Extras, Wording, corpus_processor, transcriber, write_tokenizer
from gpa.data.sharding import Part, Share, Workers, wait
from gpa.data.sources import is_dataset, open_source
from gpa.data.token_folder import PREPARED, REJECTED
from gpa.errors import DataError
from gpa.models.gpa.checkpoint_gpa import known_as
from gpa.models.gpa.pipeline_gpa import GPA

if TYPE_CHECKING:
    from gpa.data.manifest import ManifestRow, Source
    from gpa.models.gpa.processing_gpa import GPAProcessor
    from gpa.prompt.vocab import Vocab

WORK, PLAN, SUMMARY, STREAM, TEXT = ".work", "plan.json", "summary.json", "stream", "text"
IDS, TAR = "ids", "tar"
KINDS = {IDS: token_folder.KIND, TAR: tar_shards.KIND}  # of folders that a job may write


@dataclass(frozen=True)
class Job:
    """What is to be prepared: all that `open_source` reads, or a stream of rows (streaming.py).

    Ids are a `model`'s, or those of a `codec` alone, in place of it, for models that are yet to be trained.
    `licence` is that of rows without one; `columns` and `splits` choose from a dataset; `to` is of `KINDS`.
    """

    source: Any
    out: Path
    model: str | Path
    limits: Limits = Limits()
    licence: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Sequence[str] = ()
    streaming: bool = False
    shard_rows: int = 1000
    max_rejected: float = 0.1
    workers: int = 1
    patience: float = 1800.0
    device: str = "auto"
    offline: bool = False
    threads: int | None = None
    codec: str | Path = ""
    wording: Wording = Wording()
    extras: Extras = Extras()
    to: str = IDS

    def check(self) -> None:
        """DataError for settings that make no sense."""
        if self.to not in KINDS or (self.to == TAR and self.extras.columns):
            raise DataError(f"--to {self.to}: one of {', '.join(KINDS)}; tar shards hold recordings alone")
        unknown = sorted(set(self.limits.allow) - {c for c, r in REASONS.items() if r.optional})
        if unknown:
            optional = ", ".join(c for c, r in REASONS.items() if r.optional)
            raise DataError(f"rows with {unknown[0]!r} cannot be kept; --allow takes {optional}")
        if self.shard_rows < 1 or self.workers < 1 or not 0 <= self.max_rejected <= 1:
            raise DataError("shard rows and workers are at least 1, the rejected share lies in 0 .. 1")
        if self.codec and self.limits.check_text:
            raise DataError("--check-text needs a model that hears, not a codec alone: use --model")
        if self.extras.copies < 0:
            raise DataError(f"--copies {self.extras.copies}: 0 or more")
        if tar_shards.find(self.source) and (self.splits or self.columns):
            raise DataError(f"{self.source}: tar shards say split and columns themselves, in KEY.json")
        if self.streaming and (huggingface.is_saved(Path(self.source)) or not is_dataset(self.source)):
            raise DataError(
                f"{self.source}: --streaming is for hf:NAME and Parquet, others are read in place"
            )


@dataclass(frozen=True)
class Report:
    """What came out: the content of prepared.json, and seconds of audio and of time of this run's encoding.

    Only the lead of several processes has something to tell.
    """

    about: Mapping[str, Any]
    is_main: bool
    encoded: float = 0.0
    took: float = 0.0

    def speed(self) -> str:
        """The throughput in words."""
        if not self.encoded:
            return "everything was encoded already"
        rate = self.encoded / max(self.took, 1e-9)
        return f"encoded {self.encoded:.0f} s of audio in {self.took:.1f} s: {rate:.1f} s of audio per second"


def prepare(job: Job, share: Share | None = None) -> Report:
    """Prepare a source, or this rank's share of it; DataError if it does not fit or too much is rejected."""
    job.check()
    require_datasets()
    share = share or Share.from_environment(workers=job.workers)
    job = dataclasses.replace(job, device=share.device(job.device))
    try:
        job = _numbered(job, share)
        _spell(job, share)
    except _Over:
        return Report(token_folder.read_about(job.out, KINDS[job.to]), is_main=False)
    if share.workers == 1:
        return _Run.start(job, share.part(), lambda: None).go()
    with Workers(_work, job, share) as workers:
        return _Run.start(job, share.part(), workers.check).go()


def _numbered(job: Job, share: Share) -> Job:
    """A job whose rows have numbers: the lead process writes a stream to disk, the others wait for it."""
    source = job.source
    if shards := tar_shards.find(source):
        source = tar_shards.read(shards)
    elif job.streaming:
        source = huggingface.load(str(source), job.splits, streaming=True)
    if not huggingface.is_stream(source):
        return job
    folder = job.out / WORK / STREAM

    def look() -> None:
        if (job.out / PREPARED).is_file():
            raise _Over

    if share.rank == 0:
        _check_free(job.out)
        streaming.write(source, folder, job.columns, job.splits, job.shard_rows)
    for _ in wait([folder / streaming.STATE], job.patience, look, "to write the stream"):
        pass
    return dataclasses.replace(job, source=folder, columns={}, splits=(), streaming=False)


def _spell(job: Job, share: Share) -> None:
    """Where a codec comes without a model: the lead process makes a tokenizer, the others wait for it."""
    if not job.codec or (job.out / PREPARED).is_file():
        return
    folder = job.out / WORK / TEXT
    if share.rank == 0 and not folder.is_dir():
        _check_free(job.out)
        rows = open_source(job.source, job.columns, job.splits).check()
        spec = load_codec(job.codec, offline=job.offline).spec
        texts = (row.text.encode("utf-8", "ignore").decode() for row in rows if row.trains)
        write_tokenizer(texts, spec, job.wording, folder)
    for _ in wait([folder], job.patience, lambda: None, "to make the tokenizer"):
        pass


def _check_free(out: Path) -> None:
    """DataError for a folder that holds something else than a preparation."""
    held = out.exists() and any(out.iterdir())
    # Looked at after the listing: another process of the job may have begun, or finished, meanwhile.
    if held and not ((out / WORK).exists() or (out / PREPARED).is_file()):
        raise DataError(f"{out} is not empty and no unfinished preparation: give another folder")


def _work(job: Job, part: Part, alive: Callable[[], None]) -> None:
    _Run.start(job, part, alive).go()


class _Over(Exception):
    """The lead has finished what this process was about to look at."""


@dataclass(frozen=True)
class _Run:
    """One process at work: its part of the shards; `alive` raises when the others have failed."""

    job: Job
    part: Part
    alive: Callable[[], None]
    source: Source
    processor: GPAProcessor
    doctor: screening.Doctor
    plan: Mapping[str, Any]

    @classmethod
    def start(cls, job: Job, part: Part, alive: Callable[[], None]) -> _Run:
        """Read the whole manifest, then load the model."""
        source = open_source(job.source, job.columns, job.splits)
        held = screening.held_out(source.check(), job.limits)
        processor, transcribe = _processor(job)
        doctor = screening.Doctor(_reader(processor, transcribe), job.limits, held)
        return cls(job, part, alive, source, processor, doctor, _plan(job, source, processor))

    @property
    def work(self) -> Path:
        return self.job.out / WORK

    @property
    def screens(self) -> list[Path]:
        return [self.work / f"screen-{k:05d}.jsonl" for k in range(self.plan["shards"])]

    @property
    def shards(self) -> list[Path]:
        name = tar_shards.shard_name if self.job.to == TAR else token_folder.shard_name
        return [self.job.out / name(k, self.plan["shards"]) for k in range(self.plan["shards"])]

    def go(self) -> Report:
        """Everything from the first row to prepared.json, or what is left of it."""
        if (self.job.out / PREPARED).is_file():
            return self._done()
        try:
            return self._both()
        except (_Over, FileNotFoundError):  # a lead with nothing left to do has cleaned up meanwhile
            if not (self.job.out / PREPARED).is_file():
                raise
            return self._done()

    def _both(self) -> Report:
        """Both passes, and for the lead what stands between and after them."""
        self._claim()
        self._pass("screen", self.screens, self._screen, shared=True)
        found = self._summary()
        validation_summary.refuse(found, self.job.max_rejected, self.job.out / REJECTED)
        absent = [k for k, path in enumerate(self.shards) if not path.exists()]
        began = time.monotonic()
        self._pass("encode", self.shards, self._encode(found), shared=self.part.is_main)
        took = time.monotonic() - began
        about = {
            **_about(self.plan, found, self.processor.vocab),
            "model": known_as(self.job.codec or self.job.model),
        }
        if self.part.is_main:
            for name, content in self.processor.text_files.items() if self.job.to == IDS else ():
                disk.write_bytes(self.job.out / name, content)
            token_folder.write_json(self.job.out / PREPARED, about)
            shutil.rmtree(self.work, ignore_errors=True)
        return Report(about, self.part.is_main, sum(found["shard_seconds"][k] for k in absent), took)

    def _claim(self) -> None:
        """Make the folder this job's; DataError if it is another's, or holds something else."""
        _check_free(self.job.out)
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / PLAN).is_file():
            token_folder.write_json(self.work / PLAN, self.plan)
        self._same(json.loads((self.work / PLAN).read_text(encoding="utf-8")))

    def _same(self, found: Mapping[str, Any]) -> None:
        differs = [key for key, value in self.plan.items() if found.get(key) != value]
        if differs:
            raise DataError(
                f"{self.job.out} holds a preparation of something else ({', '.join(differs)} differ): "
                "give another folder, or remove this one first"
            )

    def _done(self) -> Report:
        about = token_folder.read_about(self.job.out, KINDS[self.job.to])
        if self.part.is_main:
            shutil.rmtree(self.work, ignore_errors=True)  # a kill may have come just before this
        self._same(about)
        return Report(about, self.part.is_main)

    def _look(self) -> None:
        self.alive()
        if not self.part.is_main and (self.job.out / PREPARED).is_file():
            raise _Over

    def _pass(self, name: str, paths: list[Path], make: Callable[[int, Any], None], *, shared: bool) -> None:
        """Make the missing files of this part; `shared` waits for everybody's."""
        size, total = self.job.shard_rows, self.source.size
        with tqdm(total=total, desc=name, unit="row", dynamic_ncols=True, **self.part.bar()) as bar:
            for k in self.part.shards(len(paths)):
                if paths[k].exists():
                    bar.update(min(size, total - k * size))
                else:
                    make(k, bar)
            if shared:
                for n in wait(paths, self.job.patience, self._look, f"to {name} its rows"):
                    bar.n = min(n * size, total)
                    bar.refresh()

    def _rows(self, k: int) -> Iterator[tuple[int, ManifestRow]]:
        begin = k * self.job.shard_rows
        for n, row in enumerate(self.source.rows(begin, begin + self.job.shard_rows), begin):
            self._look()
            yield n, row if row.licence else dataclasses.replace(row, licence=self.job.licence)

    # First pass -------------------------------------------------------------------------------------------

    def _screen(self, k: int, bar: Any) -> None:
        lines = []
        for n, row in self._rows(k):
            lines.append(json.dumps(validation_summary.record(n, row, self.doctor.judge(row))) + "\n")
            bar.update()
        disk.write_text(self.screens[k], "".join(lines))

    def _summary(self) -> dict[str, Any]:
        """What all rows together say; the lead works it out and writes every dropped row down."""
        path = self.work / SUMMARY
        if self.part.is_main:
            copies = screening.duplicates(validation_summary.usable(self._records()))
            allowed = "duplicate" in self.job.limits.allow
            dropped = validation_summary.rejections(self._records(), {} if allowed else copies)
            disk.write_text(self.job.out / REJECTED, "".join(dropped))
            found = validation_summary.summarise(self._records(), copies, allowed, self.job.shard_rows)
            token_folder.write_json(path, found)
        for _ in wait([path], self.job.patience, self._look, "to sum up"):
            pass
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return read

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self.screens:
            with path.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    # Second pass ------------------------------------------------------------------------------------------

    def _encode(self, found: Mapping[str, Any]) -> Callable[[int, Any], None]:
        copies = set(found["duplicates"])
        encoder = Encoder(self.processor, self.job.extras, self.job.codec) if self.job.to == IDS else None

        def make(k: int, bar: Any) -> None:
            records = map(json.loads, self.screens[k].read_text(encoding="utf-8").splitlines())
            keep = {r["n"] for r in records if not r["reason"] and r["n"] not in copies}
            rows, path = self._kept(k, keep, bar), self.shards[k]
            if encoder is None:
                return tar_shards.write(path, rows, self.processor.codec.spec.sample_rate, self.work)
            return token_folder.write_shard(path, encoder.numbered(rows), self.work, self.job.extras.columns)

        return make

    def _kept(self, k: int, keep: set[int], bar: Any) -> Iterator[tuple[int, ManifestRow]]:
        for n, row in self._rows(k):
            if n in keep:
                yield n, row
            bar.update()


def _processor(job: Job) -> tuple[GPAProcessor, screening.Transcribe | None]:
    """What makes ids: a model's own, or a codec's with the corpus' tokenizer; and who hears, if asked for."""
    if job.codec:
        text = job.out if (job.out / PREPARED).is_file() else job.out / WORK / TEXT
        return corpus_processor(job.codec, text, device=job.device, offline=job.offline), None
    model = GPA.from_pretrained(job.model, device=job.device, offline=job.offline, threads=job.threads)
    return model.processor, transcriber(model) if job.limits.check_text else None


def _reader(processor: GPAProcessor, transcribe: screening.Transcribe | None) -> screening.Reader:
    """What the doctor needs of the model."""
    glm = processor.glm.spec if processor.glm else None
    return screening.Reader(processor.format, processor.codec.spec, glm, processor.context, transcribe)


def _plan(job: Job, source: Source, processor: GPAProcessor) -> dict[str, Any]:
    """What decides the result: two runs with one plan write the same bytes."""
    plan = {
        "kind": KINDS[job.to],
        "source": {"sha256": source.digest, "rows": source.size},
        "licence": job.licence,
        "limits": dataclasses.asdict(job.limits),
        "shards": -(-source.size // job.shard_rows),
        "shard_rows": job.shard_rows,
        "format": processor.format.name,
        "context": processor.context,
        "codec": {
            "name": processor.codec.spec.name,
            "frame_rate": processor.codec.spec.frame_rate,
            **({"codebooks": k} if (k := processor.codec.spec.n_codebooks) > 1 else {}),
        },
        "fingerprints": processor.fingerprints(),
        "extras": dataclasses.asdict(job.extras),
    }
    return cast("dict[str, Any]", json.loads(json.dumps(plan)))  # tuples become lists, as in the file


def _about(plan: Mapping[str, Any], found: Mapping[str, Any], vocab: Vocab) -> dict[str, Any]:
    counts = {key: found[key] for key in ("rows", "seconds", "screened", "rejected", "allowed", "counts")}
    head = {"version": token_folder.VERSION, "gpa": metadata.version("gpa-audio")}
    return {**head, **plan, "vocabulary": token_folder.layout(vocab), **counts}
