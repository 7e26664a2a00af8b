"""Live sound to text: the WebSocket /v1/realtime?intent=transcription, as in OpenAI's GA interface.

With `turn_detection` null a commit ends an item. Else the model's own segmenter does, in pauses: the
transcripts of all items are together that of the same sound as one recording. docs/server.md has every event.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from gpa.errors import AudioError
from gpa.serve import sockets
from gpa.serve.catalogue import check_model, model_name
from gpa.serve.failures import Failure
from gpa.serve.realtime_session import Config, updated

if TYPE_CHECKING:
    from gpa.models.gpa.activity_gpa import Stretch
    from gpa.models.gpa.outputs_gpa import Partial
    from gpa.serve.service import Service
    from gpa.serve.sockets import Connection
    from gpa.serve.worker import Job

ITEMS = 8  # that are read at a time; more sound waits
BACKLOG = 60  # seconds of sound of one item that wait to be looked at, before more is taken

router = APIRouter()


class Pcm:
    """16-bit samples at a client's rate, as they come, to float (S,) at the model's."""

    def __init__(self, rate: int, model_rate: int) -> None:
        self._odd = b""
        self._resampler = (
            soxr.ResampleStream(rate, model_rate, 1, "float64", "VHQ") if rate != model_rate else None
        )
        self.bytes = 0

    def push(self, encoded: str) -> np.ndarray:
        """More, in base64. AudioError if it is not."""
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise AudioError(f"audio: no base64 ({error})") from error
        self.bytes += len(data)
        data = self._odd + data
        whole = len(data) - len(data) % 2
        self._odd = data[whole:]
        return self._resampled(np.frombuffer(data[:whole], "<i2") / 32768, False)

    def finish(self) -> np.ndarray:
        """What the resampler holds back."""
        return self._resampled(np.zeros(0), True)

    def _resampled(self, wav: np.ndarray, last: bool) -> np.ndarray:
        return (self._resampler.resample_chunk(wav, last=last) if self._resampler else wav).astype(np.float32)


class Item:
    """Sound that is read as one: its text is sent once it is committed."""

    def __init__(self) -> None:
        self.id = f"item_{uuid.uuid4().hex[:24]}"
        self.committed = asyncio.Event()
        self.job: Job[Partial] | None = None
        self.reading: asyncio.Task[None] | None = None
        self.seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether its text is on its way."""
        return bool(self.reading and not self.reading.done() and self.committed.is_set())

    def forget(self) -> None:
        """Nobody waits for it any more."""
        if self.job and self.reading:
            self.job.cancel()
            self.reading.cancel()


class RealtimeSession:
    """A client that is listened to."""

    def __init__(self, service: Service, connection: Connection) -> None:
        self._service, self._connection = service, connection
        self._rate = service.model.sample_rate
        self._config = Config()
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._items: dict[asyncio.Task[None], Item] = {}  # that are read
        self._previous: str | None = None  # the item that was committed last
        self._begun = 0  # sample at which the buffer begins, on the clock of all sound
        self._empty()

    def _empty(self) -> None:
        """Begin a new buffer."""
        self._pcm = Pcm(self._config.rate, self._rate)
        self._samples = 0
        self._item: Item | None = None  # under way
        self._segmenter = self._service.model.processor.segmenter()

    @property
    def busy(self) -> bool:
        """Whether text is to come."""
        return any(item.busy for item in self._items.values())

    async def greet(self) -> None:
        """The client learns what holds."""
        await self._send("session.created", session=self._described())

    async def handle(self, event: dict[str, Any]) -> None:
        """An event of the client. Failure for what is none or cannot be."""
        match event["type"]:
            case "session.update":
                await self._update(event.get("session"))
            case "input_audio_buffer.append":
                await self._append(event.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._clear()
            case other:
                known = "session.update, input_audio_buffer.append, .commit and .clear"
                raise Failure(400, f"no event {other!r:.100}: there are {known}", "type", "unknown_event")

    async def refuse(self, failure: Failure, event: dict[str, Any]) -> None:
        """An error leaves the session as it was."""
        await self._send("error", error=failure.body["error"] | {"event_id": event.get("event_id")})

    async def close(self) -> None:
        """Forget all of it."""
        for item in self._items.values():
            item.forget()
        await asyncio.gather(*self._items, return_exceptions=True)

    async def _send(self, kind: str, **more: Any) -> None:
        await self._connection.send({"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **more})

    def _described(self) -> dict[str, Any]:
        about = {"id": self._id, "object": "realtime.transcription_session", "type": "transcription"}
        return about | {"audio": {"input": self._config.shown(model_name(self._service))}}

    # Events -----------------------------------------------------------------------------------------------

    async def _update(self, session: Any) -> None:
        config = updated(self._config, session)
        check_model(self._service, config.model)
        if self._pcm.bytes and (config.rate, config.vad) != (self._config.rate, self._config.vad):
            what = "there is sound in the buffer: commit or clear it before the format or the turns change"
            raise Failure(400, what, "session.audio.input", "buffer_not_empty")
        self._config = config
        if not self._pcm.bytes:
            self._empty()
        await self._send("session.updated", session=self._described())

    async def _append(self, audio: Any) -> None:
        if not isinstance(audio, str):
            raise Failure(422, "audio: base64 of 16-bit samples is needed", "audio", "invalid_value")
        most = self._service.settings.audio_seconds
        if not self._config.vad and self._samples > most * self._rate:
            what = f"more than {most:.0f} s in one item: commit or clear it"
            raise Failure(400, what, "audio", "audio_too_long")
        await self._hear(await self._service.aside(self._pcm.push, audio))

    async def _hear(self, wav: np.ndarray) -> None:
        """More sound (S,) of the buffer."""
        self._samples += len(wav)
        self._connection.visit.hear(len(wav) / self._rate)
        if self._config.vad:
            stretches = await self._service.aside(self._segmenter.push, wav)
            await self._turns(stretches)
            if self._segmenter.speaking is not None and not self._item:
                self._item = await self._started(self._segmenter.speaking)
        elif len(wav):
            await self._feed(wav)

    async def _commit(self) -> None:
        if not self._pcm.bytes:
            what = "the buffer is empty: append sound before a commit"
            raise Failure(400, what, None, "input_audio_buffer_commit_empty")
        await self._hear(await self._service.aside(self._pcm.finish))
        if self._config.vad:
            await self._turns(await self._service.aside(self._segmenter.finish))
        elif self._item:
            item = self._item
            assert item.job is not None
            item.job.close()
            item.seconds = self._samples / self._rate
            await self._committed(item)
        self._begun += self._samples
        self._empty()

    async def _clear(self) -> None:
        if self._item:
            self._item.forget()
        self._begun += self._samples
        self._empty()
        await self._send("input_audio_buffer.cleared")

    # Items ------------------------------------------------------------------------------------------------

    async def _feed(self, wav: np.ndarray) -> None:
        """Sound of the item that a commit will end: it is looked at as it comes."""
        if not self._item:
            item = Item()
            await self._begin(item, uncut=False)
            self._item = item
        job = self._item.job
        assert job is not None
        for block in np.split(wav, range(self._rate, len(wav), self._rate)):
            while len(job.heard) >= BACKLOG and job in self._service.worker.jobs:
                await asyncio.sleep(0.02)
            job.feed(block)

    async def _turns(self, stretches: list[Stretch]) -> None:
        """Stretches that the segmenter has decided: each one of speech is an item."""
        for stretch in stretches:
            if not stretch.speech:
                continue
            item, self._item = self._item or await self._started(stretch.begin), None
            end = stretch.begin + len(stretch.wav)
            await self._send("input_audio_buffer.speech_stopped", item_id=item.id, audio_end_ms=self._ms(end))
            item.seconds = len(stretch.wav) / self._rate
            await self._begin(item, uncut=True)
            assert item.job is not None
            item.job.feed(stretch.wav)
            item.job.close()
            await self._committed(item)

    async def _started(self, begin: int) -> Item:
        item = Item()
        await self._send("input_audio_buffer.speech_started", item_id=item.id, audio_start_ms=self._ms(begin))
        return item

    def _ms(self, sample: int) -> int:
        return round(1000 * (self._begun + sample) / self._rate)

    async def _begin(self, item: Item, uncut: bool) -> None:
        while len(self._items) >= ITEMS:
            await asyncio.wait(self._items, return_when=asyncio.FIRST_COMPLETED)
        model = self._service.model
        item.job = await self._service.worker.submit(
            lambda engine: model.recognition(engine, {}, uncut), live=True
        )
        item.reading = asyncio.create_task(self._read(item, item.job))
        self._items[item.reading] = item
        item.reading.add_done_callback(self._items.pop)

    async def _committed(self, item: Item) -> None:
        previous, self._previous = self._previous, item.id
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous)
        item.committed.set()

    async def _read(self, item: Item, job: Job[Partial]) -> None:
        """Send the text of an item, as it comes, once it is committed."""
        kind, where = "conversation.item.input_audio_transcription", {"item_id": item.id, "content_index": 0}
        new = ""
        try:
            async for partial in job:
                new += partial.text
                if new and item.committed.is_set():
                    await self._send(f"{kind}.delta", **where, delta=new)
                    new = ""
            await item.committed.wait()
            if new:
                await self._send(f"{kind}.delta", **where, delta=new)
            usage = {"type": "duration", "seconds": round(item.seconds, 3)}
            text = job.work.transcript.text
            await self._send(f"{kind}.completed", **where, transcript=text, usage=usage)
        except WebSocketDisconnect:
            pass  # the connection notices, too
        except Exception as error:  # noqa: BLE001 - the other items go on
            await item.committed.wait()
            await self._send(f"{kind}.failed", **where, error=Failure.of(error).body["error"])
        finally:
            job.cancel()


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket, intent: str = "", model: str | None = None) -> None:
    """Write down what a client says."""
    if intent != "transcription":
        what = "conversations are not served: connect to /v1/realtime?intent=transcription"
        await socket.send_denial_response(Failure(400, what, "intent", "invalid_value").response())
        return
    await sockets.attend(socket, RealtimeSession)
