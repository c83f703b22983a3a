"""Calibration from samples."""

from pathlib import Path

from llama4_pipeline.data.samples import ClassifySample, SummariseSample, TextSample, write_samples
from llama4_pipeline.graph.quantize.calibration_text import read_calibration
from llama4_pipeline.llama4.checkpoint import Checkpoint


def test_samples_of_every_kind_turn_to_sequences(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Checkpoint.open(tiny_random_checkpoint).load_tokenizer()
    samples = [
        TextSample("the of and " * 300),
        SummariseSample("the of and", "to in"),
        ClassifySample("the of", ("is", "that"), "is"),
    ]
    write_samples(samples, tmp_path / "samples.jsonl")
    sequences = read_calibration(tmp_path / "samples.jsonl", tokenizer).sequences
    assert [len(sequence) for sequence in sequences] == [512, 388, 5, 3]
