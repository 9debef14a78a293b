"""Docstrings: each begins with its noun or its verb, not with a relative clause."""

import ast
import re
from pathlib import Path

import pupitre

SOURCES = Path(pupitre.__file__).parent
RELATIVE = re.compile(
    r"(who|whom|whose|whoever|what|whatever|where|wherever|when|while|which|whichever|how|that|as|of|in|on|for|from|by"
    r"|to|at|with|out|after|before|until|if|nobody|none|only|also|everything|the same)\b",
    re.IGNORECASE,
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_docstrings_begin_with_their_noun() -> None:
    wrong, count = [], 0
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                count += 1
                if RELATIVE.match(text):
                    wrong.append(f"{path.relative_to(SOURCES)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)
    assert count > 1000
