"""Text to speech while the text is written: each sentence is spoken as soon as it is complete.

The protocol of the WebSocket /v1/audio/speech/stream is vLLM-Omni's; docs/server.md has every message. The
bytes of a sentence are those of POST /v1/audio/speech for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from gpa.audio.encoders import FORMATS
from gpa.serve import sockets
from gpa.serve.answers import Speaking
from gpa.serve.catalogue import check_model, find_voice
from gpa.serve.failures import Failure
from gpa.serve.speaking import begin
from gpa.serve.speech_request import SpeechRequest, SpeechSettings
from gpa.serve.uploads import copied_url
from gpa.text.sentences import Sentences

if TYPE_CHECKING:
    from gpa.codec.voice import Voice
    from gpa.serve.service import Service
    from gpa.serve.sockets import Connection

PREFETCH = 3  # sentences that are on their way at once: the one that is sent and the next ones

router = APIRouter()


class LiveSettings(SpeechSettings):
    """Of a session. With `stream_audio` sound comes while it is made, else a sentence is one frame."""

    stream_audio: bool = True


@dataclass(eq=False)
class Sentence:
    """A sentence that is to be spoken, or with no text the end of its utterance."""

    utterance: int
    number: int
    text: str | None
    asked: LiveSettings
    voice: Voice | None = None  # that of a reference
    speaking: asyncio.Task[Speaking] | None = None

    @property
    def where(self) -> dict[str, int]:
        """Which one it is."""
        return {"utterance_index": self.utterance, "sentence_index": self.number}

    def begin(self, service: Service) -> None:
        """Start to make its sound."""
        given = self.asked.model_dump(exclude={"stream_audio"}, exclude_unset=True)
        asked = SpeechRequest.model_validate({**given, "input": self.text or ""})
        complete = not (self.asked.stream_audio and FORMATS[asked.response_format].streamed)
        self.speaking = asyncio.create_task(begin(service, asked, complete, self.voice))

    async def forget(self) -> None:
        """Nobody waits for it any more."""
        if self.speaking:
            self.speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                (await self.speaking).cancel()


class SpeechSession:
    """A client that writes: what it wrote and was not heard yet, sentence by sentence."""

    def __init__(self, service: Service, connection: Connection) -> None:
        self._service, self._connection = service, connection
        self._settings, self._sentences = LiveSettings.model_validate({}), Sentences()
        self._voice: Voice | None = None  # of a reference, which is listened to once
        self._utterance = self._number = 0  # of the sentence that is written
        self._waiting: deque[Sentence] = deque()
        self._current: Sentence | None = None
        self._sent = 0  # bytes of the current one
        self._some = asyncio.Event()
        self._speaker = asyncio.create_task(self._speak())

    @property
    def busy(self) -> bool:
        """Whether something is to be spoken."""
        return bool(self._waiting or self._current)

    async def greet(self) -> None:
        """Clients begin."""

    async def handle(self, event: dict[str, Any]) -> None:
        """A message. Failure for what is none or cannot be."""
        match event["type"]:
            case "session.config":
                await self._configure(event)
            case "input.text":
                self._write(event.get("text"))
            case "input.done":
                self._check_room(1)
                self._add(*self._sentences.finish(), None)
                self._utterance, self._number = self._utterance + 1, 0
            case "input.cancel":
                await self._cancel()
            case other:
                known = "session.config, input.text, input.done, input.cancel and session.close"
                raise Failure(400, f"no message {other!r:.100}: there are {known}", "type", "unknown_message")

    async def refuse(self, failure: Failure, event: dict[str, Any]) -> None:
        """An error leaves the session as it was."""
        await self._connection.send({"type": "error", "message": str(failure), **failure.body})

    async def close(self) -> None:
        """Forget all of it."""
        self._speaker.cancel()
        await asyncio.gather(self._speaker, return_exceptions=True)
        unheard = [*([self._current] if self._current else []), *self._waiting]
        self._waiting.clear()
        self._current = None
        await asyncio.gather(*(sentence.forget() for sentence in unheard))

    # Messages ---------------------------------------------------------------------------------------------

    async def _configure(self, event: dict[str, Any]) -> None:
        """Settings of all that is written from now on; what is left out has its default."""
        try:
            settings = LiveSettings.model_validate({k: v for k, v in event.items() if k != "type"})
        except ValidationError as error:
            first = error.errors()[0]
            raise Failure.invalid(first["type"], first["loc"], first["msg"]) from error
        check_model(self._service, settings.model)
        find_voice(self._service, settings.voice)
        reference = settings.ref_audio
        if reference is None:
            self._voice = None
        elif reference != self._settings.ref_audio:
            self._voice = await copied_url(self._service, reference, "ref_audio")
        self._settings = settings

    def _write(self, text: Any) -> None:
        if not isinstance(text, str):
            raise Failure(422, "input.text needs a text, a string", "text", "invalid_value")
        self._check_room(len(text))
        self._add(*self._sentences.push(text))

    def _check_room(self, characters: int) -> None:
        """Failure if so many characters more are too many; an end counts for one."""
        most = self._service.settings.text_characters
        held = len(self._sentences) + sum(len(sentence.text or " ") for sentence in self._waiting)
        if held + characters > most:
            what = f"{held} characters wait to be spoken, {most} are the limit: write the rest later"
            raise Failure(400, what, "text", "string_above_max_length")

    def _add(self, *texts: str | None) -> None:
        for text in texts:
            self._waiting.append(Sentence(self._utterance, self._number, text, self._settings, self._voice))
            self._number += 1
        if texts:
            self._some.set()
            self._prefetch()

    def _prefetch(self) -> None:
        """Begin what is next."""
        free = PREFETCH - (self._current is not None)
        for sentence in [each for each in self._waiting if each.text][:free]:
            if not sentence.speaking:
                sentence.begin(self._service)

    async def _cancel(self) -> None:
        """Forget what was written and not heard: one `session.done` for each utterance that has none."""
        current, sent = self._current, self._sent
        ends = {sentence.utterance for sentence in [*([current] if current else []), *self._waiting]}
        await self.close()
        if current:
            await self._connection.send({"type": "audio.done", **current.where, "total_bytes": sent,
                                         "error": False, "cancelled": True})  # fmt: skip
        for utterance in sorted(ends | {self._utterance}):
            spoken = current.number if current and current.utterance == utterance else 0
            await self._done(utterance, spoken, cancelled=True)
        self._sentences = Sentences()
        self._utterance, self._number = self._utterance + 1, 0
        self._speaker = asyncio.create_task(self._speak())

    # Sound ------------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        """Send what is written, in its order."""
        while True:
            while not self._waiting:
                self._some.clear()
                await self._some.wait()
            sentence = self._waiting.popleft()
            if sentence.text is None:
                await self._done(sentence.utterance, sentence.number)
                continue
            self._current, self._sent = sentence, 0
            self._prefetch()
            if not sentence.speaking:
                sentence.begin(self._service)
            await self._say(sentence)
            self._current = None

    async def _say(self, sentence: Sentence) -> None:
        """One sentence. What fails here ends it alone."""
        assert sentence.speaking is not None
        asked, send = sentence.asked, self._connection.send
        form = {"format": asked.response_format, "sample_rate": asked.sample_rate}
        await send({"type": "audio.start", **sentence.where, "sentence_text": sentence.text, **form})
        more: dict[str, Any] = {"error": False}
        try:
            speaking = await sentence.speaking
            speaking.visit = self._connection.visit
            if asked.stream_audio:
                async for data, _ in speaking.bodies():
                    await self._frame(data)
            else:
                await self._frame(await speaking.whole())
            more |= speaking.said.summary
            more |= {"segments": speaking.said.segments} if asked.timestamps else {}
            more |= speaking.said.new_ids()
        except WebSocketDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - the next sentence is spoken all the same
            more["error"] = True
            await sentence.forget()
            await send({"type": "error", **sentence.where, "message": str(Failure.of(error)),
                        **Failure.of(error).body})  # fmt: skip
        await send({"type": "audio.done", **sentence.where, "total_bytes": self._sent, **more})

    async def _frame(self, data: bytes) -> None:
        if data:
            await self._connection.send_bytes(data)
            self._sent += len(data)

    async def _done(self, utterance: int, sentences: int, **more: Any) -> None:
        total = {"utterance_index": utterance, "total_sentences": sentences}
        await self._connection.send({"type": "session.done", **total, **more})


@router.websocket("/v1/audio/speech/stream")
async def speak_live(socket: WebSocket) -> None:
    """Speak what a client writes."""
    await sockets.attend(socket, SpeechSession)
