"""The shell blocks of a document: read from Markdown, run in one shell, their answers compared.

A block is fenced as `sh`, `shell` or `bash`; a block fenced as `json` or `text` right after it is
what it prints. In one fenced as `console`, or indented by four and begun with `$ `, the lines with
`$ ` are the commands and those below them what they print. Two comments, which the reader does not
see, stand before a block: `<!-- not run: WHY -->`, and `<!-- run: COMMAND -->` for what has to
happen first.
"""

import re
import subprocess
from typing import NamedTuple

from tests.fixtures import ROOT

PIECE = re.compile(
    r"""
    ^<!--\ not\ run:\ (?P<reason>.+?)\ -->$
    | ^<!--\ run:\ (?P<hidden>.+?)\ -->$
    | ^```(?:sh|shell|bash)\n(?P<script>.*?)^```$(?:\n\n?```(?:json|text)\n(?P<answer>.*?)^```$)?
    | ^```console\n(?P<console>.*?)^```$
    | (?:^|(?<=\n\n))(?P<indented>\ {4}\$\ [^\n]*\n(?:(?:\ {4}[^\n]*)?\n)*)
    """,
    re.M | re.S | re.X,
)
# What is another each time
VARIES = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "MOMENT"),
    (r"\d{4}-\d\d-\d\d", "DAY"),
    (r"\d+ms", "TIME"),
]


class Block(NamedTuple):
    """A command, the answer that is shown (or None), and why it is not run (or None)."""

    command: str
    answer: str | None = None
    reason: str | None = None


def blocks_of(text):
    """The Blocks of a document, in order."""
    found, reason = [], None
    for piece in PIECE.finditer(text):
        if piece["reason"]:
            reason = piece["reason"]
        elif piece["hidden"]:
            found.append(Block(piece["hidden"]))
        else:
            if piece["script"]:
                new = [Block(piece["script"], piece["answer"])]
            else:
                new = _dialogue(piece["console"] or re.sub(r"(?m)^ {4}", "", piece["indented"]))
            found += [block._replace(reason=reason) for block in new]
            reason = None
    return found


def _dialogue(text):
    for turn in re.split(r"(?m)^\$ ", text)[1:]:
        first, *rest = turn.split("\n")
        command = [first]
        while command[-1].endswith("\\"):
            command.append(rest.pop(0))
        answer = "\n".join(rest)
        yield Block("\n".join(command), answer if answer.strip() else None)


def run(blocks, env):
    """Run the blocks one after the other in one shell; [what is wrong], empty if all is well."""
    blocks = [block for block in blocks if not block.reason]
    script = "".join(f"{{ {b.command}\n}}\nprintf '\\n\\036%d\\036' $?\n" for b in blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=env, timeout=500, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    printed = re.findall(r"(.*?)\n\x1e(\d+)\x1e", done.stdout, re.S)
    wrong = [] if len(printed) == len(blocks) else [f"the shell ended early: {done.stderr}"]
    for block, (output, status) in zip(blocks, printed, strict=False):
        if status != "0":
            wrong.append(f"{block.command}\nexits {status}: {output}\n{done.stderr}")
        elif block.answer is not None and not is_like(block.answer, output):
            wrong.append(f"{block.command}\nprints\n{output}\nand not\n{block.answer}")
    return wrong


def is_like(shown, printed):
    """Whether a command printed what is shown, but for spaces and what is another each time; `…`
    is anything."""
    pattern = re.escape(_steady(shown)).replace("…", ".*?")
    return re.fullmatch(pattern, _steady(printed), re.S) is not None


def _steady(text):
    text = "".join(text.split())
    for written, name in VARIES:
        text = re.sub(written, name, text)
    return text
