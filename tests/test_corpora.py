"""Label files of every layout: right rows or a refusal that names the cause, also by the commands."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import soundfile

from conftest import RATE, speechlike
from fuzz_corpora import RIFF
from gpa.data.records import read_sentences
from gpa.data.sources import open_source
from gpa.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
FOX, DOG, OWL = (
    "The fox is quick and they say so.",
    "A dog sleeps by the door all day.",
    "Owls look at 7 mice.",
)
OWL_SAID = "Owls look at seven mice."


def write(folder: Path, files: Mapping[str, str | bytes], sounds: str = "a.wav b.wav c.wav") -> Path:
    """Label files, and headers of sounds without samples: nothing here is decoded."""
    for name in sounds.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(RIFF)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.replace("@", str(folder)).encode()
        (folder / name).write_bytes(data)
    return folder


def rows(source: Path, root: Path | None = None) -> dict[str, tuple[str, str, str]]:
    """{path: (text, speaker, split)}; every path is a file."""
    found = [*open_source(source).check()]
    assert all(Path(row.audio.name).is_file() for row in found)
    read = {os.path.relpath(r.audio.name, root or source): (r.text, r.speaker, r.split) for r in found}
    assert len(read) == len(found)
    return read


def of(*said: tuple[str, str, str], split: str = "train") -> dict[str, tuple[str, str, str]]:
    """Expected rows of (path, text, speaker)."""
    return {path: (text, speaker, split) for path, text, speaker in said}


ONE = of(("a.wav", FOX, "one"), ("b.wav", DOG, "one"), ("c.wav", OWL, "one"))
LAYOUTS = {
    "LJSpeech": (
        {"metadata.csv": f"a|{FOX}|{FOX}\nb|{DOG}|{DOG}\nc|{OWL}|{OWL_SAID}\n"},
        "wavs/a.wav wavs/b.wav wavs/c.wav",
        of(("wavs/a.wav", FOX, "one"), ("wavs/b.wav", DOG, "one"), ("wavs/c.wav", OWL_SAID, "one")),
    ),
    "LJSpeech with blanks, a byte order mark and CRLF": (
        {"metadata.csv": f"\ufeffa | {FOX} | {FOX}\r\nb | {DOG} | \r\nc | {OWL} | {OWL_SAID}\r\n"},
        "a.wav b.wav c.wav",
        {**ONE, "c.wav": (OWL_SAID, "one", "train")},
    ),
    "LJSpeech's quotation marks over two rows": (
        {"metadata.csv": 'a|"I will not,|"I will not,\nb|he said, "or may I."|he said, "or may I."\n'},
        "a.wav b.wav",
        of(("a.wav", '"I will not,', "one"), ("b.wav", 'he said, "or may I."', "one")),
    ),
    "Coqui": (
        {"metadata.csv": f"wavs/a.wav|{FOX}|ann\nwavs/b.wav|{DOG}|ben\nwavs/c.wav|{OWL}|ann\n"},
        "wavs/a.wav wavs/b.wav wavs/c.wav",
        of(("wavs/a.wav", FOX, "ann"), ("wavs/b.wav", DOG, "ben"), ("wavs/c.wav", OWL, "ann")),
    ),
    "Coqui with a header and quoting": (
        {"metadata.csv": 'audio_file|text|speaker_name\na.wav|"one | two ""three"""|Mary Ann\n'},
        "a.wav",
        of(("a.wav", 'one | two "three"', "Mary Ann")),
    ),
    "piper": (
        {"metadata.csv": f"a|{FOX}\nb|{DOG}\nc|{OWL}\n"},
        "wav/a.wav wav/b.wav wav/c.wav",
        {f"wav/{path}": said for path, said in ONE.items()},
    ),
    "piper of several speakers": (
        {"metadata.csv": f"a|ann|{FOX}\nb|ben|{DOG}\nc|ann|{OWL}\n"},
        "wav/a.wav wav/b.wav wav/c.wav",
        of(("wav/a.wav", FOX, "ann"), ("wav/b.wav", DOG, "ben"), ("wav/c.wav", OWL, "ann")),
    ),
    "MeloTTS": (
        {"metadata.list": f"data/one/wavs/a.wav|EN-ann|EN|{FOX}\ndata/one/wavs/b.wav|EN-ben|EN|{DOG}\n"},
        "wavs/a.wav wavs/b.wav",
        of(("wavs/a.wav", FOX, "EN-ann"), ("wavs/b.wav", DOG, "EN-ben")),
    ),
    "Bert-VITS2, cleaned": (
        {"train.list": f"./a.wav|ann|ZH|你好, 再见。|n i|1 2|1 1\n./b.wav|ann|EN|{DOG}|d o|0 1|2 1\n"},
        "a.wav b.wav",
        of(("a.wav", "你好, 再见。", "ann"), ("b.wav", DOG, "ann")),
    ),
    "AudioFolder": (
        {"metadata.csv": f'file_name,text\na.wav,"{FOX}"\nb.wav,{DOG}\nc.wav,{OWL}\n'},
        "a.wav b.wav c.wav",
        ONE,
    ),
    "AudioFolder with tabs": (
        {"metadata.tsv": f"file_name\ttranscription\tspeaker_id\na.wav\t{FOX}\tann\nb.wav\t{DOG}\t7\n"},
        "a.wav b.wav",
        of(("a.wav", FOX, "ann"), ("b.wav", DOG, "7")),
    ),
    "AudioFolder with semicolons as Excel saves it": (
        {"metadata.csv": f'\ufeffsep=;\r\nfile_name;Text\r\na.wav;{FOX}\r\nb.wav;"{DOG}; no"\r\n'},
        "a.wav b.wav",
        of(("a.wav", FOX, "one"), ("b.wav", f"{DOG}; no", "one")),
    ),
    "blanks around commas and quotes": (
        {"metadata.csv": 'file_name , text ,speaker\na.wav , "one, two" , ann\n b.wav,three,Mary Ann \n'},
        "a.wav b.wav",
        of(("a.wav", "one, two", "ann"), ("b.wav", "three", "Mary Ann")),
    ),
    "Chinese text and speakers": (
        {"metadata.csv": "a.wav|我今年二十五岁了|张三\nb.wav|再见吧朋友|李四\n"},
        "a.wav b.wav",
        of(("a.wav", "我今年二十五岁了", "张三"), ("b.wav", "再见吧朋友", "李四")),
    ),
    "a language behind the text": (
        {"esd.list": "a.wav|ann|one two three four|EN\nb.wav|ben|five six seven eight|EN\n"},
        "a.wav b.wav",
        of(("a.wav", "one two three four", "ann"), ("b.wav", "five six seven eight", "ben")),
    ),
    "MLS": (
        {"train/transcripts.txt": "1_2_0\tone two\n", "dev/transcripts.txt": "3_4_0\tthree\n"},
        "train/audio/1/2/1_2_0.flac dev/audio/3/4/3_4_0.flac",
        {
            "train/audio/1/2/1_2_0.flac": ("one two", "1", "train"),
            "dev/audio/3/4/3_4_0.flac": ("three", "3", "dev"),
        },
    ),
    "Excel's Unicode text": (
        {"metadata.txt": f"file_name\ttext\r\na.wav\t{FOX} Größe\r\n".encode("utf-16")},
        "a.wav",
        of(("a.wav", f"{FOX} Größe", "one")),
    ),
    "line breaks inside a text": (
        {
            "metadata.csv": 'file_name,text\na.wav,"one\ntwo"\nb.wav,"one\r\n two"\n'
            "c.wav,one\u2028two\u0085three\n"
        },
        "a.wav b.wav c.wav",
        of(("a.wav", "one two", "one"), ("b.wav", "one two", "one"), ("c.wav", "one two three", "one")),
    ),
    "AudioFolder in JSON lines": (
        {"metadata.jsonl": '{"file_name": "a.wav", "text": "one two", "speaker": "ann", "mood": [1]}\n'},
        "a.wav",
        of(("a.wav", "one two", "ann")),
    ),
    "AudioFolder by splits": (
        {
            "train/metadata.csv": f"file_name,text\na.wav,{FOX}\n",
            "test/metadata.csv": f"file_name,text\nb.wav,{DOG}\n",
        },
        "train/a.wav test/b.wav",
        {"train/a.wav": (FOX, "one", "train"), "test/b.wav": (DOG, "one", "test")},
    ),
    "Kaldi": (
        {
            "wav.scp": "u1 @/a.wav\nu2 b.wav\n",
            "text": f"u1 {FOX}\nu2\t{DOG}\n",
            "utt2spk": "u1 ann\nu2 ben\n",
        },
        "a.wav b.wav",
        of(("a.wav", FOX, "ann"), ("b.wav", DOG, "ben")),
    ),
    "ESPnet": (
        {
            f"dump/raw/{part}/{name}": f"{key} {value}\n"
            for part, key, text in (("train_nodev", "a", FOX), ("dev", "b", DOG))
            for name, value in (("wav.scp", f"sounds/{key}.wav"), ("text", text), ("utt2spk", "ann"))
        },
        "sounds/a.wav sounds/b.wav",
        {"sounds/a.wav": (FOX, "ann", "train"), "sounds/b.wav": (DOG, "ann", "dev")},
    ),
    "LibriSpeech": (
        {"84/121/84-121.trans.txt": "84-121-0 GO DO YOU HEAR\n84-121-1 BUT NO\n"},
        "84/121/84-121-0.flac 84/121/84-121-1.flac",
        of(("84/121/84-121-0.flac", "GO DO YOU HEAR", "84"), ("84/121/84-121-1.flac", "BUT NO", "84")),
    ),
    "VCTK": (
        {"txt/p225/p225_001.txt": FOX, "txt/p226/p226_001.txt": DOG},
        "wav48/p225/p225_001.wav wav48/p226/p226_001.wav",
        of(("wav48/p225/p225_001.wav", FOX, "p225"), ("wav48/p226/p226_001.wav", DOG, "p226")),
    ),
    "texts beside, in any case, and what macOS adds": (
        {
            "a.TXT": f" {FOX}\n",
            "b.Txt": f"\ufeff{DOG}",
            "c.lab": OWL,
            "._a.txt": b"\0\5",
            "__MACOSX/._b.WAV": b"\0\5",
        },
        "a.WAV b.wav c.Wav ._a.WAV",
        of(("a.WAV", FOX, "one"), ("b.wav", DOG, "one"), ("c.Wav", OWL, "one")),
    ),
    "paths of another machine": (
        {"metadata.csv": f"file_name,text\n/home/ben/one/x/a.wav,{FOX}\nD:\\one\\x\\b.wav,{DOG}\n"},
        "x/a.wav x/b.wav",
        of(("x/a.wav", FOX, "x"), ("x/b.wav", DOG, "x")),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_right(layout: str, tmp_path: Path) -> None:
    files, sounds, expected = LAYOUTS[layout]
    assert rows(write(tmp_path / "one", files, sounds)) == expected


def test_common_voice_is_read_by_its_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = "client_id\tpath\tsentence\tup_votes\n"
    files = {
        "train.tsv": f'{head}x1\ta.mp3\t{FOX}\t2\nx2\tb.mp3\t"Go, and say "no.\t2\n',
        "dev.tsv": f"{head}x3\tc.mp3\t{OWL}\t2\n",
        "validated.tsv": f"{head}x3\tc.mp3\t{OWL}\t2\n",
        "invalidated.tsv": f"{head}x4\td.mp3\t{DOG}\t0\n",
    }
    folder = write(tmp_path / "one", files, "clips/a.mp3 clips/b.mp3 clips/c.mp3 clips/d.mp3")
    assert rows(folder) == {
        "clips/a.mp3": (FOX, "x1", "train"),
        "clips/b.mp3": ('"Go, and say "no.', "x2", "train"),
        "clips/c.mp3": (OWL, "x3", "dev"),
    }
    assert "label files that are not used: invalidated.tsv, validated.tsv" in caplog.text
    assert "1 audio files are not named" in caplog.text and "not used: up_votes" in caplog.text
    assert rows(folder / "invalidated.tsv", folder) == of(("clips/d.mp3", DOG, "x4"))
    (folder / "dev.tsv").unlink()
    (folder / "train.tsv").unlink()
    assert rows(folder) == of(("clips/c.mp3", OWL, "x3"))  # validated.tsv alone, no rejected clip
    (folder / "train.tsv").write_text(files["train.tsv"].replace(f"{FOX}\t2", FOX), encoding="utf-8")
    with pytest.raises(DataError, match="train.tsv:2: 'x1' has 3 cells where other rows have 4"):
        rows(folder)


def test_segments_are_spans(tmp_path: Path) -> None:
    kaldi = {"wav.scp": "r a.wav\n", "text": "u one\nv two\n", "segments": "u r 0.5 1.25\nv r 1.25 -1\n"}
    found = [*open_source(write(tmp_path / "k", kaldi, "a.wav")).check()]
    assert [(r.id, r.text, r.audio.begin, r.audio.end) for r in found] == [
        ("u", "one", 0.5, 1.25),
        ("v", "two", 1.25, None),
    ]
    line = '{"audio_filepath": "a.wav", "text": "%s", "offset": %s, "duration": 0.75}\n'
    nemo = write(tmp_path / "n", {"train_manifest.json": line % ("one", 0.5) + line % ("two", 1.25)}, "a.wav")
    found = [*open_source(nemo).check()]
    assert [(r.id, r.text, r.audio.begin, r.audio.end) for r in found] == [
        ("a", "one", 0.5, 1.25),
        ("a-2", "two", 1.25, 2.0),
    ]


REFUSED = {
    "a command of Kaldi": (
        {"wav.scp": "a sox a.wav -t wav - |\n", "text": "a one\n"},
        "wav.scp:1: .* is a command, and gpa runs none",
    ),
    "an archive of Kaldi": (
        {"wav.scp": "a x.ark:17\n", "text": "a one\n"},
        "wav.scp:1: .* is an archive of Kaldi",
    ),
    "features of Kaldi": ({"feats.scp": "a x.ark:17\n", "text": "a one\n"}, "has no wav.scp"),
    "a recording without text in Kaldi": (
        {"wav.scp": "a a.wav\nb b.wav\n", "text": "a one\n"},
        r"text: 1 recordings are not in it, 'b' first",
    ),
    "a key twice in Kaldi": (
        {"wav.scp": "a a.wav\na b.wav\n", "text": "a one\n"},
        "wav.scp:2: 'a' is in line 1 already",
    ),
    "a time that is none": (
        {"wav.scp": "a a.wav\n", "segments": "u a x 2\n"},
        "segments:1: utterance, recording, begin and end",
    ),
    "speakers or texts": (
        {"metadata.csv": "a.wav|yes|ann\nb.wav|no|ben\n"},
        "which is the text and which the speaker cannot be told",
    ),
    "no text column": (
        {"metadata.csv": "file_name,label\na.wav,cat\n"},
        "no column is called text; its columns are file_name, label",
    ),
    "unknown columns": ({"metadata.csv": f"clip,utterance\na,{FOX}\nb,{DOG}\n"}, "metadata.csv:[12]"),
    "two text columns": ({"metadata.csv": "file_name,text,text\na.wav,x,y\n"}, "two columns called 'text'"),
    "an unquoted comma": (
        {"metadata.csv": "file_name,text\na.wav,one, two\n"},
        "metadata.csv:2: 'a.wav' has 3 cells where other rows have 2",
    ),
    "an unquoted line break": (
        {"metadata.csv": f"a.wav|{FOX}|ann\nb.wav|A dog\nsleeps by the door.|ben\nc.wav|{OWL}|ben\n"},
        "metadata.csv:2: 'b.wav' has 2 cells",
    ),
    "line breaks in most rows, and a quote that is damaged": (
        {"metadata.tsv": 'file_name\ttext\tspeaker\na.wav\t"x\ny"\tann\nb.wav\t"x\ny""\tann\n'},
        "metadata.tsv:2: 'a.wav' has 2 cells",
    ),
    "a quote left open": (
        {"metadata.csv": 'file_name,text\na.wav,"one\nb.wav,two\n'},
        "a quote is opened and not closed",
    ),
    "a quote closed elsewhere": (
        {"metadata.csv": 'file_name,text\na.wav,"one\nb.wav,two\nc.wav,"three"\n'},
        "metadata.csv:2: a quote is opened here and closed in another row",
    ),
    "Latin-1": (
        {"metadata.csv": "file_name,text\na.wav,one\nb.wav,größer\n".encode("latin-1")},
        "metadata.csv:3: not UTF-8",
    ),
    "zero bytes": ({"metadata.csv": b"file_name,text\na.wav,o\0ne\n"}, "holds zero bytes"),
    "an empty table": ({"metadata.csv": ""}, "metadata.csv: is empty"),
    "a table of other files": ({"labels.csv": f"x1,{FOX}\nx2,{DOG}\n"}, "labels.csv: no layout that is read"),
    "two tables": (
        {"metadata.csv": "file_name,text\na.wav,x\n", "metadata.tsv": "file_name\ttext\na.wav\ty\n"},
        "metadata.csv and .*metadata.tsv both claim",
    ),
    "one recording in two tables": (
        {"train.csv": "file_name,text\na.wav,x\n", "dev.tsv": "file_name\ttext\na.wav\ty\n"},
        "both name a.wav",
    ),
    "a JSON document": (
        {"metadata.json": '[\n {"file_name": "a.wav", "text": "one"}\n]'},
        "write a row on each line",
    ),
    "a spreadsheet": ({"texts.xlsx": b"PK\3\4"}, "texts.xlsx: is not read.*save the sheet as CSV"),
    "alignments": ({"a.TextGrid": "x"}, "texts in .textgrid files are not read"),
    "subtitles": ({"a.srt": "1\n00:00 --> 00:01\none\n"}, "texts in .srt files are not read"),
    "times of phones": (
        {"a.lab": "0 310000 sil\n310000 400000 f\n"},
        "a.lab: holds times and labels, no text",
    ),
    "a list cut in the middle": (
        {"metadata.csv": f"a.wav|ann|{FOX}\nb.wav|ben|{DOG}\nc.wav|an"},
        "metadata.csv:3: 'c.wav' has 2 cells",
    ),
    "a row of JSON without text": (
        {"metadata.jsonl": '{"file_name": "a.wav", "text": "one"}\n{"file_name": "b.wav"}\n'},
        "metadata.jsonl:2: has no text",
    ),
    "times in other units": (
        {"metadata.csv": "file_name,start_ms,text\na.wav,20,one\n"},
        "column start_ms is no time that is read",
    ),
    "numbers for texts": ({"lengths.csv": "a.wav,1.5\nb.wav,2.25\n"}, "column 2 has numbers alone"),
    "a packed table": ({"metadata.csv.gz": b"\x1f\x8b"}, "metadata.csv.gz: is not read.*unpack it"),
    "texts of other names": (
        {"x.txt": "one", "y.txt": "two"},
        "none of 2 text files is called like a recording",
    ),
    "a number that is none": (
        {"metadata.jsonl": '{"file_name": "a.wav", "text": NaN}\n'},
        "metadata.jsonl:1: text is nan",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    files, message = REFUSED[case]
    with pytest.raises(DataError, match=f"(?s){message}"):
        rows(write(tmp_path / "one", files))


def test_nothing_is_left_out_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = "".join(f"{n}.wav,speaker {n % 2},x,y\n" for n in range(12))
    sounds = " ".join(f"{n}.wav" for n in range(12))
    files = {"metadata.csv": "file_name,text,mood,\n" + many, "notes.csv": "who\nme\n", "3.json": "{}"}
    with caplog.at_level(logging.WARNING):
        assert len(rows(write(tmp_path / "one", files, f"{sounds} more.wav voice.m4a"))) == 12
    for said in (
        "only 2 different texts in 12 rows",
        "columns that are not used: mood",
        "2 audio files are not named",
        "label files that are not used: notes.csv",
        "1 files beside the audio are not used, 3.json first",
    ):
        assert said in caplog.text, said
    caplog.clear()
    lengths = {"lengths.csv": "file,seconds\na.wav,1.5\n", "a.txt": FOX}
    assert rows(write(tmp_path / "three", lengths, "a.wav")) == of(("a.wav", FOX, "three"))
    assert (
        "no column is called text" in caplog.text and "the texts beside the recordings count" in caplog.text
    )
    caplog.clear()
    beside = write(
        tmp_path / "two",
        {"a.txt": FOX, "m.m4a": b"\0\0\0\x20ftypM4A ", "n.m4a": b"\0\0\0\x20ftypM4A "},
        "a.wav n.wav",
    )
    assert set(rows(beside)) == {"a.wav", "n.wav", "m.m4a"}  # n.m4a is what n.wav was made of
    assert "2 of 3 rows have no text" in caplog.text and ("1 .m4a files cannot be read" in caplog.text)


@pytest.mark.parametrize("name", ["txt.done.data", "labels.mlf", "utts"])
def test_a_file_of_no_layout_that_names_the_recordings_is_refused(name: str, tmp_path: Path) -> None:
    lines = "".join(f'( {stem} "{FOX}" )\n' for stem in ("clip_1", "clip_2"))
    folder = write(tmp_path / "one", {name: lines}, "wavs/clip_1.wav wavs/clip_2.wav")
    with pytest.raises(DataError, match=f"{name}: is not read, and no other file has the texts: write"):
        rows(folder)
    (folder / name).write_text("A recording of the sea.\nMade on a boat.\n")
    assert len(rows(folder)) == 2


def test_columns_may_be_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", {"metadata.csv": f"file_name,Said Text,text\na.wav,{FOX},x\n"}, "a.wav")
    (row,) = open_source(folder, {"text": "Said Text"}).check()
    assert row.text == FOX
    with pytest.raises(DataError, match="--columns needs a table with named columns"):
        open_source(write(tmp_path / "two", {"metadata.csv": f"a|{FOX}\n"}, "a.wav"), {"text": "x"})


SENTENCES = {
    "book.txt": ("\ufeffone two\r\nText, three\u2028four\n", ["one two", "Text, three\u2028four"]),
    "list.tsv": ("1\tone two\n2\tthree\n", ["one two", "three"]),
    "cv.tsv": ("client_id\tpath\tsentence\tlocale\nx\ta.mp3\tone two\ten\n", ["one two"]),
    "m.csv": ('file_name;text;speaker\na.wav;"one; two";ann\n', ["one; two"]),
    "m.jsonl": ('{"path": "a.wav", "sentence": "one two"}\n{"path": "b.wav"}\n', ["one two"]),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_tokenizer_learns_from_the_text_column(name: str, tmp_path: Path) -> None:
    content, expected = SENTENCES[name]
    write(tmp_path, {name: content}, "")
    assert [text for text in read_sentences(tmp_path / name) if text] == expected


def test_tables_without_text_teach_no_tokenizer(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.csv": "file_name,label\na.wav,cat\n", "b.jsonl": '{"words": "x"}\n', "c.txt": b"gr\xfcn"},
        "",
    )
    for name, message in (
        ("a.csv", "no column is called text"),
        ("b.jsonl", "no row has"),
        ("c.txt", "not UTF-8"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_sentences(tmp_path / name))


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "disk", {"a.txt": FOX}, "a.wav")
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "ann").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(folder)
    assert rows(folder) == of(("ann/a.wav", FOX, "ann"))


# By the commands, in processes of their own -----------------------------------------------------------------


def gpa(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "gpa", *map(str, words)]
    done = subprocess.run(
        line, env=environment, capture_output=True, text=True, errors="replace", timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def write_speech(folder: Path, names: list[str]) -> Path:
    """Real sounds, each of its own."""
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, speechlike(1.6 + 0.1 * n, seed=n), RATE, format="WAV")
    return folder


TEXTS = (
    "one two three.",
    "the quick brown fox jumps.",
    "how are you?",
    "hello there, dog.",
    "a lazy fox.",
    "one dog.",
)


def write_rough_speech(folder: Path) -> Path:
    """Six clips with texts beside them as they come from a phone, a Mac and an old archive."""
    write_speech(folder, [f"{n}.WAV" for n in range(6)])
    for n, text in enumerate(TEXTS):
        (folder / f"{n}.TXT").write_text(text)
    (folder / "._0.wav").write_bytes(b"\0\5\26\7")
    for suffix in ("WAV", "TXT"):
        target = os.path.join(os.fsencode(folder), b"gr\xfcn." + suffix.encode())
        os.rename(os.fsencode(folder / f"5.{suffix}"), target)
    (folder / "notes.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(40))
    return folder


def test_prepare_reads_a_list_and_goes_on_past_a_name_that_is_no_unicode(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = write_speech(tmp_path / "one", [f"wavs/{n}.wav" for n in range(6)])
    lines = [f"wavs/{n}.wav|{text}|{'ann' if n % 2 else 'Ben Ray'}\n" for n, text in enumerate(TEXTS)]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    done = gpa("prepare", folder, "-o", tmp_path / "t", "--model", tiny, "--licence", "PD", "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["rows"] == 6 and set(about["counts"]["speaker"]) == {"ann", "Ben Ray"}
    from gpa.data.token_folder import TokenSet

    assert list(TokenSet.open(tmp_path / "t").column("text")) == list(TEXTS)

    plain = write_rough_speech(tmp_path / "two")
    words = ["prepare", plain, "-o", tmp_path / "u", "--model", tiny, "--licence", "PD"]
    done = gpa(*words, "--max-rejected", 0.4)
    assert done.returncode == 0 and "kept                  5" in done.stdout, done.stderr
    assert "1 .m4a files cannot be read" in done.stderr
    rejected = [json.loads(line) for line in (tmp_path / "u" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rejected) == ["bad_name", "unreadable"]


def test_finetune_reads_the_same(tiny: Path, tmp_path: Path) -> None:
    for module in ("datasets", "peft"):
        pytest.importorskip(module)
    folder = write_rough_speech(tmp_path / "zoe")
    small = ["--model", tiny, "--voice-steps", 2, "--voice-rank", 0, "--items", 0]
    words = ["finetune", "--voice", folder, *small, "--device", "cpu", "--threads", 1]
    done = gpa(*words, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "5 clips" in done.stderr and "rejected   bad_name 1, unreadable 1" in done.stderr
    made = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    given = [row["text"] for row in made if row.get("text_source") == "given"]
    assert given == list(TEXTS[:5]) and {row["speaker"] for row in made} == {"zoe"}
    (folder / "metadata.csv").write_text("file_name,label\n0.WAV,x\n", encoding="utf-8")
    done = gpa(*words, "-o", tmp_path / "none")
    assert done.returncode == DataError.exit_code and "no column is called text" in done.stderr
    assert not (tmp_path / "none").exists()
