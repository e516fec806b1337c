"""The layout: who may import whom, and how long a file may be. Read from the source with `ast`."""

import ast
import graphlib
import pathlib
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LEVELS = {
    "checks": 0,
    "types": 0,
    "compiled": 1,
    "counts": 1,
    "prng": 1,
    "trees": 1,
    "schedules": 1,
    "meshes": 1,
    "axes": 2,
    "jaxprs": 2,
    "packed": 2,
    "recognition": 2,
    "selection": 2,
    "state_tree": 2,
    "distributions": 3,
    "masks": 3,
    "patterns": 3,
    "redistribution": 3,
    "rules": 3,
    "scores": 3,
    "inner_state": 3,
    "mask_update": 4,
    "own_masks": 4,
    "plans": 4,
    "sparse": 4,
    "compaction": 5,
    "storage": 5,
    "targets": 5,
    "states": 5,
    "pruning": 6,
    "regrowth": 6,
    "compressed": 6,
    "initialization": 6,
    "takeover": 6,
    "nnx": 6,
    "plot": 6,
    "transform": 7,
    "algorithms": 8,
    "analysis": 7,
    "lottery": 7,
    "__init__": 9,
}
FLOORS = {
    "faults": 0,
    "files": 0,
    "data": 1,
    "models": 1,
    "report": 1,
    "training": 2,
    "study": 3,
}
"""The rooms of experiments/common, and the two files below them; the experiments stand on top."""
USES = {"compare": {"train"}}
"""The experiments that are made of another one."""
OPTAX_FROM = 6
FRAMEWORKS = {"flax", "equinox", "chex", "haiku", "orbax"}
FRAMEWORK_MODULES = {"nnx": {"flax"}, "linen": {"flax"}, "equinox": {"equinox"}}
"""Modules that may serve one framework, imported by nothing else."""
PUBLIC_MODULES = {"jaxsparse"} | {
    f"jaxsparse.{name}"
    for name in (
        *("analysis", "distributions", "lottery", "plot", "schedules", "scores", "selection"),
        "sparse",
    )
}
LINES = 300
LONG = {
    "tests/experiments/test_damages.py": "one table of all damages, and the runs that they meet",
    "tests/experiments/test_lottery_ticket.py": "one study, from its cells to its report",
}

LIBRARY = sorted((ROOT / "jaxsparse").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
SOURCES = [
    path
    for folder in ("jaxsparse", "experiments", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def name(path):
    return path.relative_to(ROOT).as_posix()


def module(path):
    """`jaxsparse/algorithms/rigl.py` -> `("jaxsparse", "algorithms", "rigl")`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def level(parts):
    """The level of a module of jaxsparse, which its first name under the package decides."""
    room = parts[1] if len(parts) > 1 else "__init__"
    assert room in LEVELS, f"jaxsparse.{room} has no level: give it one in LEVELS"
    return LEVELS[room]


def imports(path):
    """Every `(module, imported name or None)` of a file, absolute, wherever it stands."""
    package = module(path) if path.name == "__init__.py" else module(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split(".")), None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield base, alias.name


def is_module(parts):
    base = ROOT.joinpath(*parts)
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def imported_modules(path):
    """The modules that a file imports; `from package import name` may name a module."""
    for base, alias in imports(path):
        whole = (*base, alias) if alias else base
        yield whole if is_module(whole) else base


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_imports_from_lower_levels_only(path):
    here = module(path)
    for there in imported_modules(path):
        if there[0] != "jaxsparse" or there == here:
            continue
        same_room = len(here) > 1 and here[:2] == there[:2]
        if same_room and path.name == "__init__.py":
            continue
        if same_room and there[-1].startswith("_"):
            continue
        assert level(there) < level(here), f"{'.'.join(here)} imports {'.'.join(there)}"


@pytest.mark.parametrize("room", ["algorithms", "analysis", "lottery"])
def test_at_most_one_private_base_per_room(room):
    private = [p for p in (ROOT / "jaxsparse" / room).glob("_*.py") if p.name != "__init__.py"]
    assert len(private) <= 1, private
    for path in private:
        for there in imported_modules(path):
            assert there[:2] != ("jaxsparse", room), f"{name(path)} is the base of its room"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_the_library_knows_no_framework(path):
    for base, alias in imports(path):
        own = FRAMEWORK_MODULES.get(module(path)[-1], set())
        assert base[0] not in FRAMEWORKS - own, f"{name(path)} imports {base[0]}"
        assert not {*base, alias} & set(FRAMEWORK_MODULES) or base[0] != "jaxsparse", (
            f"{name(path)} imports a module that serves one framework"
        )
        if base[0] == "optax":
            whole = (*base, alias or "")
            assert level(module(path)) >= OPTAX_FROM, f"{name(path)} is too low to import optax"
            assert not any(part.startswith("_") for part in whole), f"{name(path)}: {whole}"
        if base[0] == "jax":
            assert "_src" not in (*base, alias), f"{name(path)} imports jax._src"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr != "_src", f"{name(path)}:{node.lineno} reaches into _src"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_matplotlib_is_imported_when_a_picture_is_drawn(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "matplotlib" not in ast.unparse(node), f"{name(path)} imports it at once"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_stand_on_three_floors(path):
    here = module(path)[1:]
    for there in imported_modules(path):
        if there[0] != "experiments" or there[1:] == here:
            continue
        room, other = here[1:2], there[2:3]
        if here[0] == there[1] == "common":
            allowed = room == other or FLOORS[other[0]] < max(1, FLOORS[room[0]])
        else:
            allowed = there[1] in {here[0], "common"} | USES.get(here[0], set())
            allowed &= here[0] != "common"
        assert allowed, f"{name(path)} imports {'.'.join(there)}"


def test_no_circles_among_the_experiments():
    graph = {module(path): set(imported_modules(path)) - {module(path)} for path in EXPERIMENTS}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_use_the_public_library_only(path):
    import jaxsparse

    public = set(jaxsparse.__all__)
    aliases = set()
    for base, alias in imports(path):
        if base[0] != "jaxsparse":
            continue
        assert ".".join(base) in PUBLIC_MODULES, f"{name(path)} imports {'.'.join(base)}"
        if alias and base == ("jaxsparse",):
            assert alias in public or f"jaxsparse.{alias}" in PUBLIC_MODULES, alias
        assert not (alias or "").startswith("_"), f"{name(path)} imports {alias}"
        aliases |= {"jaxsparse"} if alias is None else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in aliases:
                known = node.attr in public or f"jaxsparse.{node.attr}" in PUBLIC_MODULES
                assert known, f"{name(path)}:{node.lineno}: jaxsparse.{node.attr} is not public"


def test_one_idea_a_file():
    """A hint and no rule: a long file may hold two ideas, unless a reason says that it does not."""
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES and name(path) not in LONG:
            warnings.warn(f"{name(path)} has {lines} lines: is it one idea?", stacklevel=1)
