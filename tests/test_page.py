"""The page in a real browser: it speaks, writes down, knows voices, cancels, and says what went wrong.

Debian's Chromium by Playwright; these tests skip where either is absent.
"""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import soundfile

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright drives the browser: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from serving import Served

expect = sync_api.expect
expect.set_options(timeout=30_000)
TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Served"]:
    """The shipped model behind the page: what it says can be understood."""
    from gpa.serve.app import load_shipped
    from gpa.serve.settings import Settings
    from serving import served

    with served(load_shipped, Settings(voices=tmp_path_factory.mktemp("voices"))) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """A headless browser whose microphone hears a file, again and again."""
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    shutil.copy(spoken(), heard)
    arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments += [f"--use-file-for-fake-audio-capture={heard}"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: "Browser", server: "Served") -> Iterator["Page"]:
    """The page, loaded. Whatever a script or the content policy complains of fails the test."""
    context = browser.new_context(accept_downloads=True)
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    foreign: list[str] = []
    found.on("request", lambda asked: foreign.append(asked.url))
    found.set_default_timeout(30_000)
    opened(found, server.url)
    yield found
    context.close()
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    assert [url for url in foreign if not url.startswith((server.url, "blob:"))] == []


def opened(page: "Page", url: str) -> "Page":
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


def spoken() -> Path:
    """A recording of TEXT, without its capitals and full stop."""
    return Path(__file__).parent.parent / "gpa/assets/gpa-mini/golden/audio_0.wav"


def downloaded(page: "Page", panel: str) -> tuple[np.ndarray, int]:
    """What the page gives to keep."""
    with page.expect_download() as waited:
        page.locator(f"#{panel} .download").click()
    return soundfile.read(io.BytesIO(Path(waited.value.path()).read_bytes()), dtype="float32")


def test_a_text_is_heard_read_along_and_downloaded(page: "Page", server: "Served") -> None:
    page.fill("#text", TEXT)
    page.click("#speak .primary")
    page.wait_for_selector("#speak .word.now")  # while it plays
    expect(page.locator("#speak .play")).to_have_attribute("aria-label", "Pause")
    expect(page.locator("#speak .reading")).to_have_text(TEXT)  # as it was written
    expect(page.locator("#speak .download")).to_be_visible()
    expect(page.locator("#announce")).to_contain_text("Spoken")
    assert {"First sound", "Real-time factor"} <= set(page.locator("#speak dt").all_inner_texts())
    wav, rate = downloaded(page, "speak")
    assert rate == 24000 and 1.5 < len(wav) / rate < 6 and np.abs(wav).max() > 0.1
    asked = {"input": TEXT, "voice": page.input_value("#speak select"), "response_format": "pcm"}
    sent = httpx.post(f"{server.url}/v1/audio/speech", json=asked, timeout=60).content
    assert (np.round(wav * 32768).astype("<i2").tobytes()) == sent  # sample by sample what the server says
    pixels = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    drawn = f"{pixels}.filter((x, i) => i % 4 == 3 && x).length"
    assert page.locator("#speak canvas").evaluate(drawn) > 1000
    expect(page.locator("#speak .play")).to_have_attribute("aria-label", "Play")  # it ends by itself
    assert server.settled()


def test_the_strip_shows_every_id_and_what_is_heard(page: "Page", server: "Served") -> None:
    asked = {
        "input": TEXT,
        "voice": page.input_value("#speak select"),
        "stream": True,
        "return_token_ids": True,
    }
    lines = httpx.post(f"{server.url}/v1/audio/speech", json=asked, timeout=60).text.splitlines()
    deltas = [json.loads(line.removeprefix("data: ")) for line in lines if "token_ids" in line]
    ids, starts = ([each for delta in deltas for each in delta[key]] for key in ("token_ids", "token_starts"))
    page.fill("#text", TEXT)
    page.click("#speak .primary")
    page.wait_for_selector("#speak .tokens .now")  # while it plays
    expect(page.locator("#speak .download")).to_be_visible()
    cells, strip, shown = (page.locator(f"#speak {part}") for part in (".tokens span", ".tokens", ".token"))
    expect(cells).to_have_count(len(ids))
    expect(page.locator("#speak .play")).to_have_attribute("aria-label", "Play")  # it ended
    expect(shown).to_be_empty()
    hues = cells.evaluate_all("cells => cells.map(cell => cell.style.getPropertyValue('--hue'))")
    assert [hues[ids.index(token)] for token in ids] == hues and len(set(hues)) > 5
    cells.nth(9).hover()
    expect(shown).to_have_text(f"id {ids[9]} at {starts[9]:.2f} s")
    page.mouse.move(0, 0)
    strip.focus()  # one stop for the keyboard
    page.keyboard.press("End")
    expect(strip).to_have_attribute("aria-valuetext", f"id {ids[-1]} at {starts[-1]:.2f} s")
    expect(strip).to_have_attribute("aria-valuenow", str(len(ids)))
    assert str(len(ids)) in (strip.get_attribute("aria-label") or "")
    assert strip.locator("[tabindex], button").count() == 0


def test_cancelling_frees_the_slot(page: "Page", server: "Served") -> None:
    page.fill("#text", f"{TEXT} " * 60)
    page.click("#speak .primary")
    page.wait_for_selector("#speak .sound")
    expect(page.locator("#speak .play")).to_have_attribute("aria-label", "Pause")  # the first chunk is heard
    assert server.service.worker.jobs
    page.keyboard.press("Escape")
    expect(page.locator("#announce")).to_have_text("Cancelled.")
    assert server.settled(5)
    expect(page.locator("#speak .primary")).to_be_focused()
    expect(page.locator("#speak .problem")).to_be_empty()
    expect(page.locator("#speak .play")).to_have_attribute("aria-label", "Play")


def test_a_recording_is_written_down_with_words_that_play(page: "Page") -> None:
    page.click("#tab-transcribe")
    page.set_input_files("#transcribe input[type=file]", spoken())
    page.click("#transcribe .primary")
    expect(page.locator("#transcribe .copy")).to_be_visible()
    words = page.locator("#transcribe .word")
    assert " ".join(words.all_inner_texts()) == TEXT.lower().strip(".")
    words.nth(5).click()
    assert page.locator("#transcribe audio").evaluate("audio => audio.currentTime") > 0.5
    expect(words.nth(5)).to_have_class("word now")


def test_the_microphone_is_recorded_and_written_down(page: "Page", server: "Served") -> None:
    """A busy machine drops sound of Chromium's microphone: one good recording of three is enough."""
    heard: set[str] = set()
    for _ in range(3):
        opened(page, server.url).click("#tab-transcribe")
        page.click("#transcribe .record")
        expect(page.locator("#transcribe .record .what")).to_have_text("Stop 3 s")
        page.click("#transcribe .record")
        expect(page.locator("#transcribe .name")).to_have_text("recording.wav")
        page.click("#transcribe .primary")
        expect(page.locator("#transcribe .numbers")).to_contain_text("Words")
        heard = set(page.locator("#transcribe .text").inner_text().split())
        if len(heard & set(TEXT.lower().strip(".").split())) >= 4:
            return
    raise AssertionError(heard)


def test_a_recording_that_is_still_on_is_what_is_sent(page: "Page") -> None:
    """Not the file that was chosen before; whoever asks for the text need not press Stop first."""
    page.click("#tab-transcribe")
    page.set_input_files("#transcribe input[type=file]", spoken())
    page.click("#transcribe .record")
    expect(page.locator("#transcribe .record .what")).to_have_text("Stop 1 s")
    page.click("#transcribe .primary")
    expect(page.locator("#transcribe .name")).to_have_text("recording.wav")
    expect(page.locator("#transcribe .record .what")).to_have_text("Record")
    expect(page.locator("#transcribe .numbers")).to_contain_text("Words")


def test_a_voice_comes_speaks_and_goes(page: "Page", server: "Served") -> None:
    page.click("#tab-voices")
    sample, agreed = (page.locator("#voices input[type=file]").nth(n) for n in range(2))
    sample.set_input_files(spoken())
    expect(page.locator("#voices .report li")).to_have_count(3)
    page.fill("#voices [name=name]", "ada")
    page.click("#voices .primary")
    expect(page.locator("#voices .problem")).to_contain_text("speaker agrees")  # not without consent
    page.check("#voices [name=agreed]")
    page.click("#voices .primary")
    expect(page.locator("#voices .problem")).to_contain_text("Record how the speaker agrees")
    agreed.set_input_files(spoken())
    page.dblclick("#voices .primary")  # once is enough
    expect(page.locator("#voices .library")).to_contain_text("with recorded consent")
    expect(page.locator("#voices .problem")).to_be_empty()
    (consent,) = server.service.voices.consents.newest()
    assert consent["name"] == "ada" and server.service.voices.about("ada")["consent"] == consent["id"]
    page.click("#tab-speak")
    page.select_option("#speak select", label="ada")
    page.fill("#text", "Hello there.")
    page.click("#speak .primary")
    expect(page.locator("#speak .download")).to_be_visible()
    expect(page.locator("#speak h3")).to_have_text("ada")  # its name, not the id that the server gave it
    expect(page.locator("#speak .download")).to_have_attribute("download", "gpa-ada.wav")
    page.click("#tab-voices")
    delete = page.get_by_role("button", name="Delete the voice ada")
    delete.click()
    assert "ada" in list(server.service.voices)  # the first click only asks
    delete.click()
    expect(page.locator("#voices .library")).not_to_contain_text("ada")
    assert "ada" not in list(server.service.voices) and not server.service.voices.consents.newest()
    assert "ada" not in page.locator("#speak option").all_inner_texts()


def test_an_error_says_what_and_where(page: "Page", tmp_path: Path) -> None:
    page.fill("#text", "  ")
    page.click("#speak .primary")
    expect(page.locator("#speak .problem")).to_contain_text("nothing to say")
    expect(page.locator("#speak .problem")).to_contain_text("400")
    expect(page.locator("#text")).to_be_focused()
    expect(page.locator("#text")).to_have_attribute("aria-invalid", "true")
    page.click("#tab-transcribe")
    page.click("#transcribe .primary")
    expect(page.locator("#transcribe .problem")).to_contain_text("Choose a file")
    (tmp_path / "no.wav").write_bytes(b"no sound at all" * 50)
    page.set_input_files("#transcribe input[type=file]", tmp_path / "no.wav")
    page.click("#transcribe .primary")
    expect(page.locator("#transcribe .problem")).to_contain_text("400")
    page.route("**/v1/audio/**", lambda route: route.abort())  # the server is gone
    page.click("#transcribe .primary")
    expect(page.locator("#transcribe .problem")).to_contain_text("cannot be reached")


def test_settings_live_in_the_address_and_keys_move_between_tasks(page: "Page", server: "Served") -> None:
    page.select_option("#speak select", "kore")
    page.locator("#speak summary").click()
    page.fill("#speak [name=seed]", "7")
    page.locator("#tab-speak").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-transcribe")).to_be_focused()
    expect(page.locator("#transcribe")).to_be_visible()
    expect(page.locator("#speak")).to_be_hidden()
    address = page.evaluate("location.hash")
    assert {"voice=kore", "seed=7", "task=transcribe"} <= set(address[1:].split("&"))
    other = opened(page.context.new_page(), f"{server.url}/{address}")
    expect(other.locator("#transcribe")).to_be_visible()
    assert other.locator("#speak select").input_value() == "kore"
    assert other.locator("#speak [name=seed]").input_value() == "7"


def test_every_control_has_a_name_and_a_phone_does_not_scroll_sideways(page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.click("#speak .primary")
    page.wait_for_selector("#speak .download:not([hidden])")
    for tab in page.locator("[role=tab]:visible").all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab.inner_text()
        for control in page.locator("main :is(button, input, select, textarea):visible").all():
            name = control.evaluate("e => e.labels?.[0]?.innerText || e.ariaLabel || e.innerText")
            assert name.strip(), control.evaluate("e => e.outerHTML")
    assert page.evaluate("document.querySelectorAll('[role=alert]').length") >= 4


def test_speech_is_converted_and_enhanced(page: "Page", second: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "second.wav", second, 16000)
    for task in ("convert", "enhance"):
        page.click(f"#tab-{task}")
        page.set_input_files(f"#{task} input[type=file]", tmp_path / "second.wav")
        page.click(f"#{task} .primary")
        expect(page.locator(f"#{task} .download")).to_be_visible()
        wav, rate = downloaded(page, task)
        assert rate == 24000 and abs(len(wav) / rate - 1) < 0.1 and np.abs(wav).max() > 0.01
    expect(page.locator("#enhance h3")).to_have_text("Enhanced")


def test_a_key_is_asked_for_and_kept(browser: "Browser", tiny: Path) -> None:
    from gpa.models.gpa import GPA
    from gpa.serve.settings import Settings
    from serving import served

    with served(GPA.from_pretrained(tiny), Settings(keys=("sesame",))) as locked:
        page = browser.new_page()
        page.goto(locked.url)
        expect(page.locator("#speak .problem")).to_contain_text("Give the API key")
        page.fill("[name=key]", "sesame")
        page.click("#access button")
        page.wait_for_selector("body[data-ready]")
        assert page.locator("#speak option").all_inner_texts() == ["anna", "ben"]
        expect(page.locator("#tab-enhance")).to_be_hidden()  # this server has nothing for it
        page.close()
