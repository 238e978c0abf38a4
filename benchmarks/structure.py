"""Count files, imports, cycles and small functions: ``python -m benchmarks.structure [CHECKOUT ...]``.

To compare two commits, pass two checkouts (``git worktree add ../before COMMIT``).
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

PACKAGES = ("rlt_data", "cli", "recipes")
#: Packages and modules from the top layer to the bottom, including modules of earlier commits; imports go down.
LAYERS = (
    ("cli", "recipes"), ("api",), ("run",), ("calls",), ("reporting", "page"), ("publish",), ("training",),
    ("statistics",), ("steps",), ("scoring", "reward"), ("tasks",), ("engines", "cluster"), ("inputs",), ("formats",),
    ("provenance",), ("storage", "store", "errorlog", "joins", "listing", "locks", "parquet", "places", "tables"),
    ("settings",), ("plugins", "progress"), ("errors", "libraries", "plots", "watchdog", "retries", "nano"),
)  # fmt: skip


def files_of(root: Path) -> dict[str, Path]:
    """Return the Python files by module, without symbolic links."""
    files = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            relative = file.relative_to(root)
            if not any((root / parent).is_symlink() for parent in relative.parents):
                files[".".join(relative.with_suffix("").parts).removesuffix(".__init__")] = file
    return files


def imports_of(tree: ast.AST) -> set[str]:
    """Return the top-level modules and packages of ``rlt_data`` that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.split(".")[1] for name in names if name.startswith("rlt_data.")}


def structure(root: Path) -> dict[str, int]:
    """Return the counts of a checkout."""
    files = files_of(root)
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    unit = {name: name.split(".")[1] if name.startswith("rlt_data.") else name.split(".")[0] for name in files}
    height = {name: -layer for layer, names in enumerate(LAYERS) for name in names}
    arrows = {(unit[name], target) for name, tree in trees.items() for target in imports_of(tree)}
    arrows = {(source, target) for source, target in arrows if source != target and {source, target} <= height.keys()}
    used = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute))
    )
    private = [
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("_")
        and not node.name.startswith("__")
    ]
    text = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    checks = {name: len(re.findall(r"isinstance\([^)]*\bPath\b", content)) for name, content in text.items()}
    return {
        "modules at the top of rlt_data/": sum(
            path.suffix == ".py" and path.name != "__init__.py" for path in (root / "rlt_data").iterdir()
        ),
        "packages and modules that import one another": len({name for pair in arrows for name in pair}),
        "import arrows between them": len(arrows),
        "upward imports": sum(height[target] > height[source] for source, target in arrows),
        "import cycles": sum((target, source) in arrows for source, target in arrows) // 2,
        "files": len(files),
        "lines": sum(content.count("\n") for content in text.values()),
        "private functions": len(private),
        "private functions with one caller": sum(used[name] == 1 for name in private),
        "isinstance(..., Path) checks": sum(checks.values()),
        "files with such checks": sum(map(bool, checks.values())),
    }


def main() -> None:
    """Print the counts of each checkout in a column."""
    roots = [Path(name) for name in sys.argv[1:]] or [Path()]
    counts = [structure(root) for root in roots]
    for key in counts[0]:
        print(f"{key:48}" + "".join(f"{count[key]:>9,}" for count in counts))
    if len(roots) == 1:
        print(json.dumps(counts[0]))


if __name__ == "__main__":
    main()
