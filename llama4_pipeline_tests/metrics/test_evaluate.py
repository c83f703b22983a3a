import json
import weakref

import numpy as np
import pytest

from llama4_pipeline.data.samples import ClassifySample, SummariseSample, TextSample, write_samples
from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.export import export_graph
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.metrics.divergence import measure_divergence
from llama4_pipeline.metrics.evaluate import evaluate, evaluate_graph
from llama4_pipeline.metrics.perplexity import measure_perplexity
from llama4_pipeline.metrics.quality import QualityResult
from llama4_pipeline.metrics.tasks import greedy_continuations

_TEXTS = [" ".join(f"w{60 + number % 71}" for number in range(start, 9 * start, 3)) for start in (10, 31)]
_TASKS = [
    SummariseSample("w60 w61", "w62 w63"),
    SummariseSample("w70", "the more"),
    ClassifySample("w80 w81", ("w60", "w61"), "w60"),
]


def _documents(tokenizer):
    return [np.array(tokenizer(text)["input_ids"]) for text in _TEXTS]


def test_mixed_rows_give_every_figure(decoder, disturbed, tokenizer, tmp_path):
    write_samples([*map(TextSample, _TEXTS), *_TASKS], tmp_path / "data.jsonl")
    quality = evaluate(disturbed, tokenizer, tmp_path / "data.jsonl", decoder)
    compared = measure_divergence(disturbed, decoder, _documents(tokenizer))
    assert (quality.tokens, quality.summaries, quality.classifications) == (compared.tokens, 2, 1)
    assert quality.kl_divergence == compared.mean > 0
    assert quality.perplexity == compared.perplexity.value
    assert quality.reference_perplexity == compared.reference_perplexity.value
    assert quality.accuracy in (0.0, 1.0)
    unmeasured = {name for name, value in quality if value is None}
    # One sample has no spread, and only a graph shows its routers.
    assert unmeasured == {"accuracy_stderr", "expert_change_share"}
    assert json.loads(quality.model_dump_json()) == quality.model_dump()


def test_without_reference_and_tasks_only_the_perplexity_is_known(decoder, tokenizer, tmp_path):
    write_samples(map(TextSample, _TEXTS), tmp_path / "validation.jsonl")
    quality = evaluate(
        decoder, tokenizer, {"validation": tmp_path / "validation.jsonl"}, context=50, stride=9
    )
    alone = measure_perplexity(decoder, _documents(tokenizer), context=50, stride=9)
    expected = QualityResult(tokens=alone.tokens, perplexity=alone.value, perplexity_stderr=alone.stderr)
    assert quality == expected


def test_a_plain_text_file_is_one_document(decoder, tokenizer, tmp_path):
    text = "\n\n".join(_TEXTS)
    (tmp_path / "text.txt").write_text(text)
    quality = evaluate(decoder, tokenizer, tmp_path / "text.txt")
    assert quality.tokens == len(tokenizer(text)["input_ids"]) - 1


def test_a_text_of_one_token_costs_no_other_figure(decoder, tokenizer, tmp_path):
    one = TextSample("w60")
    assert len(tokenizer(one.text)["input_ids"]) == 1
    write_samples([one, *_TASKS], tmp_path / "data.jsonl")
    quality = evaluate(decoder, tokenizer, tmp_path / "data.jsonl")
    assert (quality.tokens, quality.summaries, quality.classifications) == (None, 2, 1)
    write_samples([one], tmp_path / "data.jsonl")
    with pytest.raises(InputError, match="a text of at least two tokens"):
        evaluate(decoder, tokenizer, tmp_path / "data.jsonl")


def test_a_task_without_room_is_refused_before_anything_runs(decoder, tokenizer, tmp_path, monkeypatch):
    write_samples([*map(TextSample, _TEXTS), SummariseSample("w60 " * 90, "w61")], tmp_path / "data.jsonl")
    monkeypatch.setattr(decoder, "forward", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InputError, match="task prompt 1 has 90 tokens; with 48 new ones it does not fit"):
        evaluate(decoder, tokenizer, tmp_path / "data.jsonl")


def test_a_bad_row_is_named_by_line(decoder, tokenizer, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "w60 w61"}\n{"txt": "w60"}\n')
    with pytest.raises(InputError, match="line 2"):
        evaluate(decoder, tokenizer, tmp_path / "data.jsonl")


def test_a_summary_ends_at_every_token_that_ends_a_text_of_the_model(
    tiny_random_checkpoint, tmp_path, decoder, tokenizer
):
    [text] = greedy_continuations(decoder, tokenizer, ["w60 w61"], max_new_tokens=8)
    title, end, _ = text.split(maxsplit=2)
    assert title != end
    export_graph(Checkpoint.open(tiny_random_checkpoint), tmp_path, max_context=128)
    settings = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    write_samples([SummariseSample("w60 w61", title)], tmp_path / "data.jsonl")
    assert evaluate_graph(tmp_path, tmp_path / "data.jsonl").rouge1 == 1.0


def test_a_graph_is_judged_with_one_model_of_pytorch_in_memory(
    tiny_random_checkpoint, tmp_path, tokenizer, monkeypatch
):
    export_graph(Checkpoint.open(tiny_random_checkpoint), tmp_path, max_context=128)
    write_samples(map(TextSample, _TEXTS), tmp_path / "data.jsonl")
    load, loaded, beside = Checkpoint.load_model, weakref.WeakSet(), []

    def load_and_count(*arguments):
        beside.append(len(loaded))
        model = load(*arguments)
        loaded.add(model)
        return model

    monkeypatch.setattr(Checkpoint, "load_model", load_and_count)
    quality = evaluate_graph(tmp_path, tmp_path / "data.jsonl", tiny_random_checkpoint)
    assert quality.expert_change_share == 0
    assert beside == [0, 0]
