"""Reasoning in the Python client and on the command line: told apart from the answer."""

from __future__ import annotations

import json
from pathlib import Path

from clforge import ChatTemplateOrigin, Client, Delta, Section
from clforge.updates import completion_from_proto, model_info_from_proto
from clforge.v1 import generation_pb2 as pb
from clforge.v1 import tokenizer_pb2
from tests.clforge.scripted_server import ScriptedServer, Step, accepted, delta, finished, running
from tests.clforge.test_cli import run

ANSWER: list[Step] = [
    accepted(),
    delta(1, "<think>\n", section=pb.SECTION_MARK),
    delta(2, "hm é\n", section=pb.SECTION_REASONING),
    delta(3, "</think>\n\n", section=pb.SECTION_MARK),
    delta(4, "It is 4.", section=pb.SECTION_ANSWER),
    finished(5),
]


async def test_deltas_name_their_section(tmp_path: Path) -> None:
    """As values; concatenated they are the whole text. What the server does not tell is None."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    logprobs = [pb.TokenLogprobs(chosen=pb.Logprob(token_id=1, logprob=-1.0), text_offset=7)]
    prompt = delta(1, "2 + 2", 0, 0, section=pb.SECTION_PROMPT)
    servicer.scripts = [ANSWER, [accepted(), prompt, delta(2, "4", logprobs=logprobs), finished(3)]]
    async with running(servicer, tmp_path) as target, Client(target) as client:
        deltas = [event async for event in client.chat("2 + 2", tell_reasoning=True) if isinstance(event, Delta)]
        assert [each.section for each in deltas] == [Section.MARK, Section.REASONING, Section.MARK, Section.ANSWER]
        assert "".join(each.text for each in deltas) == "<think>\nhm é\n</think>\n\nIt is 4."
        deltas = [event async for event in client.generate("2 + 2", echo=True) if isinstance(event, Delta)]
        assert [(each.section, each.text, each.num_tokens) for each in deltas] == [
            (Section.PROMPT, "2 + 2", 0),
            (None, "4", 1),
        ]
        assert deltas[1].logprobs[0].text_offset == 7
    assert servicer.requests[0].params.tell_reasoning
    assert servicer.requests[1].params.echo
    assert not servicer.requests[1].params.HasField("tell_reasoning")


def test_whole_answers_have_both_parts() -> None:
    """Answer and reasoning stand beside the whole text."""
    choice = tokenizer_pb2.CompleteResponse.Choice(
        text="<think>a</think>b", answer="b", reasoning="a", finished=finished(0).finished
    )
    whole = completion_from_proto(tokenizer_pb2.CompleteResponse(choices=[choice])).choices[0]
    assert (whole.text, whole.answer, whole.reasoning) == ("<think>a</think>b", "b", "a")


def test_model_info_tells_where_the_template_is_from() -> None:
    """None where the server, as older ones, does not say."""
    assert model_info_from_proto(pb.ModelInfo()).chat_template_origin is None
    info = pb.ModelInfo(chat_template_origin=pb.CHAT_TEMPLATE_ORIGIN_FALLBACK)
    assert model_info_from_proto(info).chat_template_origin is ChatTemplateOrigin.FALLBACK


async def test_only_the_answer_goes_to_standard_output(tmp_path: Path) -> None:
    """Reasoning goes to standard error; --json prints all events, each delta with its section."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [ANSWER, ANSWER]
    async with running(servicer, tmp_path) as target:
        ended = await run("generate", "--target", target, "--chat", "-p", "2 + 2")
        assert (ended.code, ended.out, ended.err) == (0, "It is 4.", "<think>\nhm é\n</think>\n\n")
        ended = await run("generate", "--target", target, "--chat", "-p", "2 + 2", "--json")
    sections = [json.loads(line).get("section") for line in ended.out.splitlines()]
    assert sections == [None, "mark", "reasoning", "mark", "answer", None]
