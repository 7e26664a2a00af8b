"""Several takes of a text: their twin, likelihood, which take wins, and bad counts."""


import pytest
from transformers import Qwen3ForCausalLM

from gpa.errors import UsageError
from gpa.models.gpa import GPA
from gpa.models.gpa import best_gpa as best
from gpa.models.gpa.generation_gpa import Rules, Sampling, generate, generate_several, logits_of
from test_generation import PROMPT, RULES, STOP, lm
from tiny_model import write_tiny_model

__all__ = ["lm"]


@pytest.mark.parametrize("sampling", [Sampling(1.5), Sampling(0.9, 8, 0.9, 1.3)])
@pytest.mark.parametrize("rules", [RULES, Rules(max_new=20, stop=frozenset({STOP}), loop=6)])
def test_side_by_side_is_one_by_one(lm: Qwen3ForCausalLM, rules: Rules, sampling: Sampling) -> None:
    """A batch of seeds gives what each seed gives alone, however early some of them end."""
    seeds = list(range(8))
    alone = [generate(lm, PROMPT, rules, sampling, seed=seed) for seed in seeds]
    assert generate_several(lm, PROMPT, rules, sampling, seeds) == alone
    assert len({len(done.ids) for done in alone}) > 1


def test_likelihood(lm: Qwen3ForCausalLM) -> None:
    """The sum of each id's log-probability after those before it, one pass an id."""
    ids = [12, 7, STOP]
    one_by_one = sum(
        float(logits_of(lm, [*PROMPT, *ids[:n]])[-1].log_softmax(-1)[token_id])
        for n, token_id in enumerate(ids)
    )
    assert best.log_likelihood(lm, PROMPT, ids) == pytest.approx(one_by_one, abs=1e-4)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> GPA:
    return GPA.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def test_the_take_that_is_understood_is_kept(ours: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what several seeds give, the one that recognition gives the text the best chance."""
    seen = []
    score = best.understood

    def spy(lm, budgets, take, text):  # type: ignore[no-untyped-def]
        seen.append((take.finish_reason == "stop", score(lm, budgets, take, text), budgets.codes(take)))
        return seen[-1][1]

    monkeypatch.setattr(best, "understood", spy)
    speech = ours.tts("Hi you.", voice="anna", temperature=1.0, best_of=4, seed=3)
    assert len(seen) == 4 and list(speech.tokens) == max(seen)[2]
    first = ours.tts("Hi you.", voice="anna", temperature=1.0, best_of=1, seed=3)
    assert list(first.tokens) in [codes for _, _, codes in seen] and len(seen) == 4
    assert ours.tts("Hi you.", voice="anna", temperature=0, best_of=4).tokens.tolist() == (
        ours.tts("Hi you.", voice="anna", temperature=0).tokens.tolist()
    )


@pytest.mark.parametrize("count", [0, -1, 17])
def test_bad_counts(ours: GPA, count: int) -> None:
    with pytest.raises(UsageError, match="best_of"):
        ours.tts("Hi you.", voice="anna", best_of=count)
