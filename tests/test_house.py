"""The house itself: what installs it, what may import what, and what a clone holds."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mathkit.__main__ import COMMANDS
from studies.__main__ import COMMANDS as STUDIES
from studies.__main__ import main as studies

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ASKED_FOR = "jupyter numpy torch diffusers matplotlib ipywidgets scikit-learn".split()

# A module imports only from its own floor and from those above it.
FLOORS = [
    "arguments data scores exercises",
    "linear",
    "diffusion",
    "show",
    "chapters",
    "draw",
    "tools",
    "studies",
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
HEAVY = "accelerate diffusers ipywidgets matplotlib scipy skimage sklearn transformers".split()
OTHER_NAMES = {"scikit-learn": "sklearn", "scikit-image": "skimage", "pillow": "PIL"}
# by jupyter, matplotlib, diffusers; the next two by torch; av by the extra `book`
BROUGHT_ALONG = {"IPython", "cycler", "huggingface_hub", "jinja2", "markupsafe", "av"}

HOSTS = ["files.pythonhosted", "registry.npmjs", "conda.anaconda"]
FOLDERS = ["work", "root", "opt", "mnt", "srv", "scratch", r"home/\w+", r"Users/\w+", "tmp/bash"]
MACHINE = re.compile(r"(?<![\w.:/~-])/(?:" + "|".join(FOLDERS) + r")/|" + "|".join(HOSTS))


def python(*words, **kw):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **kw)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone: there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


# The environment ---------------------------------------------------------------------------------


def pip_section():
    (found,) = [entry["pip"] for entry in ENVIRONMENT if isinstance(entry, dict)]
    return found


def test_environment_shows_the_names_that_were_asked_for():
    needed = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert set(ASKED_FOR) <= set(pip_section()) and set(ASKED_FOR) <= needed


def test_conda_and_pip_install_the_same():
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip_section()[-1]).group(1).split(",")
    assert set(extras) == {"book", "dev"} <= set(PROJECT["optional-dependencies"])
    assert pip_section()[0] == "-c constraints.txt"
    assert {line for line in pip_section()[1:-1]} == set(ASKED_FOR), "versions belong in the lock"
    version = next(e for e in ENVIRONMENT if str(e).startswith("python=")).split("=")[1]
    assert f"{version}.0" in Requirement(f"python{PROJECT['requires-python']}").specifier


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {req.name.lower().replace("_", "-"): req for req in pinned}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for needed in map(Requirement, PROJECT["dependencies"] + extras):
        (pin,) = pins()[needed.name].specifier
        assert pin.operator == "==" and needed.specifier.contains(pin.version), needed


def test_the_lock_installs_anywhere():
    assert str(pins()["torch"].specifier) == "==2.13.0", "no +cpu: that build has no other home"
    assert not re.search(r"://|--hash|^-|file:", (ROOT / "constraints.txt").read_text(), re.M)


def versions(changelog, citation):
    """The (version, date) of the newest changes and of the citation."""
    (newest, *_) = re.findall(r"^## (\S+) \((\S+)\)$", changelog, re.M)
    cited = yaml.safe_load(citation)
    return [newest, (str(cited["version"]), str(cited["date-released"]))]


def test_the_version_is_one():
    texts = [(ROOT / n).read_text(encoding="utf-8") for n in ("CHANGELOG.md", "CITATION.cff")]
    newest, cited = versions(*texts)
    assert newest == cited and newest[0] == PROJECT["version"]
    newest, cited = versions(texts[0].replace(f"## {newest[0]}", "## 99.0"), texts[1])
    assert newest != cited


def test_the_citation_has_what_its_format_asks():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0" and cited["authors"] == [{"name": "The mathkit authors"}]
    assert " AND ".join(cited["license"]) == PROJECT["license"]


# The commands ------------------------------------------------------------------------------------


def targets():
    (line,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
    return set(line.split())


def test_readme_and_makefile_name_the_same_commands():
    assert set(re.findall(r"`make ([a-z-]+)", README)) == targets()


def test_ci_runs_the_readme_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test" and "`make test`" in README


def fake(folder, name, body):
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def choose(folder, variable):
    """What the Makefile finds when `folder` is all there is on the PATH."""
    rule = f"show:; @{variable}"
    words = ["make", "-s", "--no-print-directory", "--eval", rule, "show"]
    env = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="uses GNU make's --eval")
def test_make_takes_the_first_python_that_runs(tmp_path):
    fake(tmp_path, "python3.13", "echo no such version >&2; exit 127")
    fake(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    assert choose(tmp_path, "$(ABLE)").stdout.strip() == "python3.12"


@pytest.mark.skipif(sys.platform != "linux", reason="uses GNU make's --eval")
def test_make_names_the_cure_for_a_missing_venv_module(tmp_path):
    has = f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        fake(tmp_path, name, has)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = choose(tmp_path, 'p=$$($(ABLE)); [ -n "$$p" ] || { $(CURE); }')
    assert found.returncode and f"sudo apt install python{version}-venv" in found.stdout


def test_a_command_that_cannot_go_on_says_why(capsys):
    assert studies(["ship", "everything"]) == 1
    assert "takes no arguments" in capsys.readouterr().err


@pytest.mark.parametrize("module", [m for _, m in (COMMANDS | STUDIES).values()])
def test_each_command_leads_somewhere(module):
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# The modules -------------------------------------------------------------------------------------


def imported(source):
    """(our modules, other packages) that a module's source imports, anywhere in it."""
    inner, outer = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            package = node.module in ("mathkit", "studies")
            names = [f"{node.module}.{a.name}" for a in node.names] if package else [node.module]
        else:
            continue
        inner |= {name for name in names if ours(name)}
        outer |= {name.split(".")[0] for name in names if not ours(name)}
    return inner, outer


def ours(name):
    return name.split(".")[0] in ("mathkit", "studies")


def floor(module):
    """Of mathkit.linear.svd that of linear; of mathkit itself, which imports all, the last."""
    first, *rest = module.split(".")
    return FLOOR[rest[0] if first == "mathkit" else first] if rest else len(FLOORS)


def violations(module, source):
    inner, outer = imported(source)
    wrong = {name for name in inner if floor(name) > floor(module)}
    private = {n for n in inner if "._" in n and not module.startswith(n.split("._")[0] + ".")}
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    allowed = {OTHER_NAMES.get(n, n) for n in declared} | set(sys.stdlib_module_names)
    return sorted(wrong | private | (outer - allowed - BROUGHT_ALONG))


def modules():
    """Every module but the doors, by its dotted name."""
    paths = [p for top in ("mathkit", "studies") for p in sorted((ROOT / top).rglob("*.py"))]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p.read_text() for p in paths}
    return {name: text for name, text in names.items() if not name.endswith("__")}


def test_each_floor_imports_only_from_those_above():
    found = {name: violations(name, source) for name, source in modules().items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        (
            "mathkit.linear.linear_map",
            "from mathkit.draw.pictures import row",
            ["mathkit.draw.pictures"],
        ),
        ("mathkit.linear.linear_map", "def f():\n    from mathkit import show", ["mathkit.show"]),
        ("mathkit.scores", "import mathkit.linear.svd as t", ["mathkit.linear.svd"]),
        ("mathkit.scores", "import mathkit as mk", ["mathkit"]),
        ("mathkit.scores", "import pandas", ["pandas"]),
        ("mathkit.tools.atlas", "from studies import rows", ["studies.rows"]),
        ("mathkit.show.x", "from mathkit.linear._tape import twice", ["mathkit.linear._tape"]),
        ("studies.rows", "from mathkit.scores import wilson\nimport torch, math", []),
        ("mathkit.linear.x", "from mathkit.linear._tape.rules import Rule", []),
    ],
)
def test_a_planted_import_is_found(module, source, wrong):
    assert violations(module, source) == wrong


def test_the_door_names_what_it_opens():
    import mathkit

    assert all(hasattr(mathkit, name) for name in mathkit.__all__)
    lines = ast.parse((ROOT / "mathkit/__init__.py").read_text()).body
    imports = [node for node in lines if isinstance(node, ast.ImportFrom)]
    defined = {alias.asname or alias.name for node in imports for alias in node.names}
    assert defined == set(mathkit.__all__)
    for folder in FLOOR:
        assert re.search(rf"^{folder}\b|, {folder}\b", mathkit.__doc__ + "\nstudies", re.M), folder


def rooms():
    """Of the house's own table: (chapter's number, its title, the file to look into first)."""
    import mathkit.chapters

    return re.findall(r"^(\d\d) (.+?) {2,}(\S+\.py)$", mathkit.chapters.__doc__, re.M)


def defined(path):
    """The names of a module that a reader may call."""
    body = ast.parse((ROOT / path).read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in names if not name.startswith("_")}


def test_every_chapter_has_its_room_and_calls_what_is_in_it():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [number for number, _, _ in rooms()] == [path.name[:2] for path in notebooks]
    for (number, title, file), path in zip(rooms(), notebooks, strict=True):
        cells = json.loads(path.read_text())["cells"]
        heading = "".join(cells[0]["source"]).splitlines()[0]
        assert heading == f"# {number} {title}"
        code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert defined(file) & set(re.findall(r"\w+", code)), f"{path.name} calls nothing of {file}"


# Names of colour maps and of a notebook's metadata.
OTHERS = {"mathkit.signed", "mathkit.unsigned", "mathkit.blurb"}
WRITTEN = re.compile(r"(?<![\w./-])((?:mathkit|studies)(?:\.[A-Za-z_]\w*)+)")


def missing(text):
    """The dotted names of ours in a text, code or prose, that lead nowhere."""
    return sorted({n for n in WRITTEN.findall(text) if n not in OTHERS and not leads(n)})


def leads(name):
    """Is it a module, or something in one?"""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (path := ROOT.joinpath(*parts[:end])).is_dir() or path.with_suffix(".py").is_file():
            thing = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                if not hasattr(thing, part):
                    return False
                thing = getattr(thing, part)
            return True
    return False


def test_every_name_of_ours_that_is_written_down_leads_somewhere():
    kinds = {".py", ".md", ".ipynb", ".toml"}
    found = {p.name: missing(text_of(p)) for p in tracked() if p.suffix in kinds}
    del found[Path(__file__).name]
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_name_that_leads_nowhere_is_found():
    assert missing("see mathkit.linear.maps and mathkit.linear.svd.svd") == ["mathkit.linear.maps"]
    assert missing("`mathkit.linear.svd.SVD.converge`") == ["mathkit.linear.svd.SVD.converge"]


@pytest.mark.long
def test_importing_mathkit_loads_nothing_heavy():
    code = f"import sys, mathkit; print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code, cwd=ROOT).stdout.strip() == "[]"


# The wheel ---------------------------------------------------------------------------------------

LOAD = """
import mathkit as mk
model = mk.load_model("alice", device="cpu")
print(mk.__file__, mk.info()["data"], sum(p.numel() for p in model.unet.parameters()), sep="\\n")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, built and installed where nothing of the clone is seen."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel)
    return folder / "site"


@pytest.mark.long
def test_the_wheel_holds_the_package_and_its_data_alone(site):
    names = {path.relative_to(site).parts[0] for path in site.rglob("*") if path.is_file()}
    assert names == {"mathkit", f"mathkit-{PROJECT['version']}.dist-info"}
    listed = json.loads((ROOT / "data" / "manifest.json").read_text())["files"]
    assert [f["path"] for f in listed if not (site / "mathkit/data" / f["path"]).exists()] == []
    assert all((site / "mathkit" / name).exists() for name in ("py.typed", "tools/report.html"))


@pytest.mark.long
def test_the_wheel_loads_the_built_in_model_from_its_own_data(site, tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MATHKIT_DATA")}
    said = python("-c", LOAD, cwd=tmp_path, env={**env, "PYTHONPATH": str(site)}).stdout
    code, data, parameters = said.splitlines()
    assert Path(code).is_relative_to(site) and Path(data).is_relative_to(site)
    assert int(parameters) > 1_000_000


# The clone ---------------------------------------------------------------------------------------


def text_of(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_file_speaks_of_the_machine_it_was_made_on():
    searched = [p for p in tracked() if p != Path(__file__) and "vendor" not in p.parts]
    hits = {p.name: found for p in searched if (found := MACHINE.findall(text_of(p)))}
    assert hits == {}


@pytest.mark.parametrize("text", ["see /srv/x", "'/home/ann/data'", "(/opt/wheels)", HOSTS[0]])
def test_the_search_for_machines_finds_one(text):
    assert MACHINE.search(text) and not MACHINE.search("https://example.org/root/x a/opt/b ~/mnt/")


def test_files_are_small_enough_to_clone():
    sizes = {p.relative_to(ROOT).as_posix(): p.stat().st_size for p in tracked()}
    assert {p: s for p, s in sizes.items() if s > 16e6} == {}
    assert sum(s for p, s in sizes.items() if p.startswith("data/")) < 24e6
    assert {p: s for p, s in sizes.items() if p.endswith(".ipynb") and s > 1.5e6} == {}
    assert {p: s for p, s in sizes.items() if p.startswith("data/results/") and s > 300e3} == {}


def unsaid(source):
    """Lines that call torch.allclose with its own tolerance, 1e-8 beside a zero: under rounding."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    calls = [n for n in calls if ast.unparse(n.func) == "torch.allclose"]
    return [n.lineno for n in calls if not {"atol", "rtol"} & {k.arg for k in n.keywords}]


def test_no_test_rests_on_the_last_bits_beside_a_zero():
    found = {p.name: unsaid(text_of(p)) for p in tracked() if p.match("tests/*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert unsaid("torch.allclose(a, b, atol=1)\ntorch.allclose(a,\n  b)") == [2]


@pytest.mark.notebook
def test_the_readme_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    said = python("-W", "error", "-c", f"{code}\nprint(len(S))", cwd=ROOT).stdout
    assert said.split() == ["5"]
