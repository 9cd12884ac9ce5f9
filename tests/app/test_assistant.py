"""The server for assistants, asked over standard input and output by the client of the SDK."""

import asyncio
import hashlib
import json
import sys
from datetime import timedelta

import pytest
from click.testing import CliRunner

from gpovae import GPOVAE
from gpovae.app.assistant import TOOLS
from gpovae.app.cli import main

from places import ROOT

pytestmark = pytest.mark.xdist_group("runs")
TALK = timedelta(seconds=100).total_seconds()


def hashes(folder):
    "Of every file in it, with its time of change."
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


async def talk(folder, questions):
    "What the server, in a process of its own, says of itself and answers to each question."
    from mcp import ClientSession, StdioServerParameters, stdio_client

    code = "from gpovae.app.cli import main; main()"
    server = StdioServerParameters(
        command=sys.executable,
        args=["-c", code, "mcp", "--quiet"],
        env=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        cwd=folder,
    )
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        said = await session.initialize()
        tools = await session.list_tools()
        answers = [await session.call_tool(name, given) for name, given in questions]
    return said, tools.tools, answers


@pytest.fixture(scope="module")
def asked(run_folder):
    "One conversation, of which the tests look at the parts; and what it left of the files."
    pytest.importorskip("mcp.server.mcpserver", reason="the SDK is not installed: gpovae[mcp]")
    edge = GPOVAE.load(run_folder / "run", data=False).network(0).iloc[0]
    run = str(run_folder / "run")
    pair = dict(run=run, source=edge["source"], target=edge["target"])
    questions = {
        "check": ("check_file", dict(file=str(run_folder / "raw.h5ad"), control="non-targeting")),
        "describe": ("describe_run", dict(run=run)),
        "setting": ("list_settings", dict(task="train", name="threads")),
        "settings": ("list_settings", dict(task="prepare")),
        "edge": ("explain_edge", pair),
        "effect": ("explain_effect", pair),
        "overview": ("explain_effect", dict(run=run, source=edge["source"])),
        "predict": ("predict_top_genes", dict(run=run, perturbations=["GATA1"], top=3)),
        "unseen": ("predict_top_genes", dict(run=run, perturbations=["HBB"], unseen=True)),
        "no file": ("check_file", dict(file="norman2019")),
        "no run": ("describe_run", dict(run=str(run_folder))),
        "no gene": ("explain_edge", pair | dict(target="GATA9")),
        "not trained": ("predict_top_genes", dict(run=run, perturbations=["GATA2"])),
        "no setting": ("list_settings", dict(task="objective", name="hops")),
        "no task": ("list_settings", dict(task="evaluate")),
    }
    before = hashes(run_folder)
    talked = asyncio.run(asyncio.wait_for(talk(run_folder, questions.values()), TALK))
    said, tools, answers = talked
    assert hashes(run_folder) == before, "the server only reads"
    return said, tools, dict(zip(questions, answers)), pair


def test_what_it_says_of_itself(asked):
    said, tools, _, _ = asked
    assert said.server_info.name == "gpovae" and "spread" in said.instructions
    assert [tool.name for tool in tools] == [question.__name__ for question in TOOLS]
    for tool in tools:
        hints = tool.annotations
        assert hints.read_only_hint and hints.open_world_hint is False
        assert not hints.destructive_hint
        for parameter in tool.input_schema["properties"]:
            assert f"{parameter}:" in tool.description, (tool.name, parameter)


def test_it_answers_what_python_answers(asked, run_folder):
    _, _, answers, pair = asked
    of = {name: answer.structured_content for name, answer in answers.items()}
    model = GPOVAE.load(run_folder / "run", data=False)
    assert of["check"]["status"] in (0, 1) and of["check"]["findings"]
    assert of["describe"]["perturbations"] == model.labels
    assert of["describe"]["n_edges"] == len(model.network())
    assert of["edge"]["edge"]["probability"] == pytest.approx(model.network(0).probability[0])
    why = model.explain(pair["source"], pair["target"])
    assert of["effect"]["sentence"] == why.sentence()
    assert of["overview"]["genes"][0]["total"]
    (predicted,) = of["predict"]["perturbations"]
    strongest = model.predict("GATA1").to_df().loc["GATA1"].abs().nlargest(3)
    assert [gene["gene"] for gene in predicted["genes"]] == list(strongest.index)
    assert "log2" in of["predict"]["units"]["effect"]
    assert of["unseen"]["perturbations"][0]["evidence"] in ("network", "none")


def test_settings_come_with_reasons(asked):
    from dataclasses import fields

    from gpovae.data.options import PrepareOptions

    _, _, answers, _ = asked
    (threads,) = answers["setting"].structured_content["settings"]
    assert threads["default"] is None and "Threads" in threads["decides"]
    listed = answers["settings"].structured_content["settings"]
    assert [s["name"] for s in listed] == [f.name for f in fields(PrepareOptions)]
    assert all(s["decides"] for s in listed)


@pytest.mark.parametrize(
    "question, says",
    [
        ("no file", "There is no norman2019 on this machine"),
        ("no run", "is not a gpovae run"),
        ("no gene", "GATA9"),
        ("not trained", "GATA2"),
        ("no setting", "has no setting 'hops'"),
        ("no task", "objective"),
    ],
)
def test_what_it_refuses_is_a_sentence(asked, question, says):
    _, _, answers, _ = asked
    answer = answers[question]
    assert answer.is_error and says in answer.content[0].text
    assert "Traceback" not in answer.content[0].text


def test_the_command_lists_its_tools_and_names_the_extra(monkeypatch):
    listed = json.loads(CliRunner().invoke(main, ["mcp", "--list", "--json"]).stdout)["tools"]
    assert [tool["name"] for tool in listed] == [question.__name__ for question in TOOLS]
    for name in ("mcp", "mcp.server", "mcp.server.mcpserver"):
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(main, ["mcp"])
    assert result.exit_code == 2 and "pip install 'gpovae[mcp]'" in result.output
