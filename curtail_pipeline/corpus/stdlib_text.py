"""The embedded default corpus: English text that every Python carries.

It is the docstrings of the standard library's pure-Python modules and the topics of `help()` (pydoc): about 2 MB,
written by people, under the PSF licence, there without a network. Test packages are left out, because distributions
differ in whether they ship them. The text depends on the Python version, so builds read a snapshot of it.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "turtledemo"})


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield f"{name}\n\n{text}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from _docstrings(child, f"{name}.{getattr(child, 'name', '')}")


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """(name, text) of every document, in an order that depends on nothing but the Python version.

    A document is the docstring of a module, all docstrings of one of its top-level classes or functions, or a topic.
    """
    from pydoc_data.topics import topics  # type: ignore[import-untyped,unused-ignore]

    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts) or parts[0] == "pydoc_data":
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # templates and deliberately broken sources
            continue
        module = ".".join(parts).removesuffix(".__init__")
        heading = ast.get_docstring(tree)
        if heading:
            yield module, f"{module}\n\n{heading}"
        for node in tree.body:
            name = f"{module}.{getattr(node, 'name', '')}"
            text = "\n\n".join(_docstrings(node, name))
            if text:
                yield name, text
    for topic in sorted(topics):
        yield f"topic {topic}", topics[topic].strip()
