"""Sentences as a trained model would say them: rows of ids for recognition, from text without sound.

Recognition learnt from a few thousand transcripts knows those sentences and no others. A model that speaks
can be asked for more (back-translation, Sennrich et al. 2016, here from text to ids): no codec is needed, as
recognition reads ids. What it says is used as heard, so the rows are for `data.replay`, beside recordings.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpa.data import sequences
from gpa.data.token_folder import TokenSet
from gpa.engine.network import Network
from gpa.engine.request import Request, Rules, Sampling
from gpa.engine.scheduler import Engine
from gpa.errors import UsageError
from gpa.prompt.formats import Format, get_format
from gpa.prompt.vocab import Vocab
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import TextTokenizer, copy_tokenizer

WORDS = (3, 22)  # of a sentence
PER_LETTER = (0.8, 3.0)  # ids of plausible speech; others were cut short or went astray
UNSPOKEN = re.compile(r"\d|[A-Z]{3}|\[")  # numbers, headings, notes
ENDS = re.compile(r"(?<=[.!?;])[\"')_]*\s+")


def sentences(text: str) -> Iterator[str]:
    """Sentences of running text, and their halves at semicolons, without digits and capitals' shouting."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in ENDS.split(" ".join(paragraph.replace("_", "").split())):
            words = sentence.split()
            if WORDS[0] <= len(words) <= WORDS[1] and not UNSPOKEN.search(sentence):
                yield normalise_text(sentence)


def rows(
    network: Network,
    fmt: Format,
    texts: Sequence[str],
    voices: Sequence[Sequence[int]],
    batch: int,
    temperature: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for each text whose speech came to a plausible end, spoken in a voice drawn from `voices`."""
    rng, sampling = np.random.default_rng(seed), Sampling(temperature)
    ordered = sorted(texts, key=len)  # rows of a batch end together
    for begin in tqdm(range(0, len(ordered), batch), unit="batch", dynamic_ncols=True):
        part = ordered[begin : begin + batch]
        drawn = [voices[int(i)] for i in rng.integers(len(voices), size=len(part))]
        rules = Rules(int(PER_LETTER[1] * max(map(len, part))), fmt.stop_ids("tts"), fmt.legal_ids("tts"))
        requests = [
            Request(fmt.build("tts", text=t, global_=v), rules, sampling, int(rng.integers(2**62)))
            for t, v in zip(part, drawn, strict=True)
        ]
        done = Engine(network, batch).generate(requests)
        for n, (text, voice, each) in enumerate(zip(part, drawn, done, strict=True)):
            codes = fmt.vocab.semantic.codes(each.ids[:-1]) if each.finish_reason == "stop" else []
            if PER_LETTER[0] * len(text) <= len(codes) <= PER_LETTER[1] * len(text):
                row = {"id": f"backtranslated-{begin + n}", "task": "asr", "split": "train"}
                row |= {"speaker": "backtranslated", "text": text}
                yield {**row, "semantic": codes, "global": list(voice)}


def main(argv: list[str] | None = None) -> None:
    """`gpa lab backtranslation TOKENS --lm EXPORT --text FILE ... -o OUT`."""
    parser = argparse.ArgumentParser(prog="gpa lab backtranslation", description=__doc__)
    parser.add_argument(
        "tokens", type=Path, help="token folder: its voices, its tokenizer, its texts left out"
    )
    parser.add_argument("--lm", type=Path, required=True, help="trained language model")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="running text")
    parser.add_argument("--format", default="instruct")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    vocab = Vocab.from_file(args.tokens)
    fmt = get_format(args.format, vocab, TextTokenizer.from_file(args.tokens))
    clips = TokenSet.open(args.tokens)
    voices = [clip["global"] for clip in clips if clip["split"].startswith("train")]
    known = {clip["text"] for clip in clips}
    found = (s for path in args.text for s in sentences(path.read_text(encoding="utf-8")))
    texts = list(dict.fromkeys(s for s in found if s and s not in known))
    if not texts or not voices:
        raise UsageError(f"{len(texts)} new sentences and {len(voices)} voices: nothing to speak")
    network, _ = Network.load(args.lm)
    args.out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(args.tokens, args.out)
    made = list(rows(network, fmt, texts, voices, args.batch, args.temperature, args.seed))
    sequences.write(args.out, made, clips.about)
    print(f"{len(made)} of {len(texts)} sentences spoken, {sum(len(r['semantic']) for r in made)} ids")
