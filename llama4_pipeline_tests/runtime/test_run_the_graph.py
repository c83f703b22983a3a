"""The programs of docs/run-the-graph.md, run as a reader would: in a process of ONNX Runtime and numpy alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.runtime.decoder import Decoder
from llama4_pipeline.runtime.generate import FINISHED, generate, pad_left

_PAGE = Path(__file__).parents[2] / "docs" / "run-the-graph.md"
_NEW_TOKENS = 24
_random = np.random.default_rng(5)
_PROMPTS = {
    "one longer than two chunks": [_random.integers(3, 131, 40).tolist()],
    "several, padded by more than a chunk": [_random.integers(3, 131, n).tolist() for n in (4, 21, 13)],
}


def _program(in_place: bool) -> str:
    """The page's first listing, or that with its second in the place that the page names."""
    program, binding = re.findall(r"(?ms)^```python\n(.*?)^```$", _PAGE.read_text())
    if not in_place:
        return program
    program, replaced = re.subn(r"(?ms)^past = .*?(?=^def read)", lambda _: f"{binding}\n\n", program)
    assert replaced == 1
    return program


def _answers(program: str, graph: Path, prompts: list[list[int]]) -> list[list[int]]:
    modules = "import sys\nassert not {'llama4_pipeline', 'torch', 'onnx'} & set(sys.modules)\n"
    arguments = [str(graph), json.dumps(prompts), str(_NEW_TOKENS)]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", program + modules, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _expected(reference: Decoder, prompts: list[list[int]], stop_tokens: list[int]) -> list[list[int]]:
    steps = generate(reference, *pad_left(prompts), max_new_tokens=_NEW_TOKENS, stop_tokens=stop_tokens)
    return [[int(token) for token in row if token != FINISHED] for row in np.stack(list(steps), axis=1)]


@pytest.mark.parametrize("prompts", _PROMPTS.values(), ids=_PROMPTS)
@pytest.mark.parametrize("form, in_place", [("portable", False), ("fused", False), ("fused", True)])
def test_program_of_the_page_answers_as_transformers_does(
    request: pytest.FixtureRequest, reference: Decoder, form: str, in_place: bool, prompts: list[list[int]]
) -> None:
    graph = request.getfixturevalue(f"{form}_graph")

    assert _answers(_program(in_place), graph, prompts) == _expected(reference, prompts, [2])


def test_program_of_the_page_ends_a_row_at_its_stop_token(
    fused_graph: Path, reference: Decoder, tmp_path: Path
) -> None:
    prompts = _PROMPTS["several, padded by more than a chunk"]
    stop_tokens = [2, _expected(reference, prompts, [2])[1][6]]
    reference.reset()
    graph = shutil.copytree(fused_graph, tmp_path / "graph")
    (graph / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_tokens}))

    answers = _answers(_program(in_place=False), graph, prompts)

    assert answers == _expected(reference, prompts, stop_tokens)
    assert len(answers[1]) <= 7 and len(max(answers, key=len)) > 7


def test_table_of_the_page_names_each_input_and_output(portable_graph: Path, fused_graph: Path) -> None:
    of_a_cache = re.compile(r"\.\d+\.(key|value)$")
    in_the_table = set(re.findall(r"(?m)^\| `([a-z].*?)`", _PAGE.read_text()))
    for graph in (portable_graph, fused_graph):
        model = load_graph(graph)
        values = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
        assert {of_a_cache.sub(".N.key", name) for name in values} == in_the_table
    assert "new_tokens_lie_in_one_chunk" in {node.name for node in model.graph}
