"""The README: its commands are valid, and none is missing."""

import re
import shlex

import pytest
import typer.main

import cli
from tests.support.sources import ROOT

README = ROOT / "README.md"


def commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?(cifar [^#\n]*)", text, re.MULTILINE)
    return [line.strip() for line in lines + re.findall(r"`(cifar [a-z]+ [^`]*)`", text)]


def test_there_are_exactly_two_set_up_lines():
    assert re.findall(r"^(pip .*)", README.read_text(encoding="utf-8"), re.MULTILINE) == [
        "pip install . && cifar demo",
        'pip install -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_valid(command):
    words = shlex.split(command.replace("[WHAT]", "").replace("--help", "").replace("PATH...", "PATH"))[1:]
    group = typer.main.get_command(cli.app)
    name, *arguments = words
    parsed = group.commands[name].make_context(name, arguments)  # refuses an invalid call
    assert parsed.command.name == name


def test_every_command_of_the_command_line_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for name in typer.main.get_command(cli.app).commands:
        assert f"| `cifar {name}" in text, name
