"""What mkdocs does before it renders docs/: pages that are made from other files, and links.

mkdocs.yml names this file as a hook. README.md becomes the home page and the guide, the commands'
own help becomes the command reference, and each public package gets a page with its docstrings. So
nothing of the site is a copy that could get out of date.

Links are written for readers of the repository. On the site, those to README.md, CONTRIBUTING.md
and CHANGELOG.md lead to the pages made from them, and those to files that the site does not have
become the files' names.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from command_reference import command_reference  # noqa: E402

END_OF_HOME = "<!-- Here ends the home page of the documentation site. -->"
"""Line of README.md."""
ORIGINS = {
    "index.md": "README.md",
    "guide.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page that is made from a file outside of docs/ -> the file."""
PACKAGES = {
    "jaxspec": ("jaxspec.api",),
    "losses": ("jaxspec.losses",),
    "verify": ("jaxspec.verify",),
    "decoding": ("jaxspec.decoding", "jaxspec.ops.sampling"),
    "drafters": (
        "jaxspec.drafters.protocol",
        "jaxspec.drafters.kind",
        "jaxspec.drafters.registry",
        "jaxspec.drafters.dflash",
        "jaxspec.drafters.denoiser",
        "jaxspec.drafters.autoregressive",
        "jaxspec.drafters.ngram",
        "jaxspec.drafters.tree",
    ),
    "models": (
        "jaxspec.models.registry",
        "jaxspec.models.transformer",
        "jaxspec.models.dflash",
        "jaxspec.models.denoiser",
    ),
    "training": ("jaxspec.training.loop",),
    "evals": ("jaxspec.evals.tau", "jaxspec.evals.results", "jaxspec.evals.report"),
    "study": ("jaxspec.study.declaration", "jaxspec.study.results", "jaxspec.study.summary"),
    "config": ("jaxspec.config", "jaxspec.evaluation_settings"),
}
"""Page of reference/ -> the modules that it shows."""
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made."""
    for name, text in made_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Changes the links of a page to those of the site."""
    return with_links_of_the_site(markdown, page.file.src_uri)


def made_pages() -> dict[str, str]:
    """Name -> Markdown of each page that is made from other files."""
    home, guide = readme_parts()
    pages = {
        "index.md": home,
        "guide.md": f"# Everything at a glance\n\n{guide}",
        "commands.md": command_reference(),
    }
    for name, origin in ORIGINS.items():
        if origin != "README.md":
            pages[name] = (ROOT / origin).read_text(encoding="utf-8")
    for name, modules in PACKAGES.items():
        pages[f"reference/{name}.md"] = _reference(name, modules)
    return pages


def readme_parts() -> tuple[str, str]:
    """README.md up to the line that ends the home page, and what follows it.

    Raises:
      ValueError: the line is not there, or there twice.
    """
    parts = (ROOT / "README.md").read_text(encoding="utf-8").split(END_OF_HOME)
    if len(parts) != 2:
        raise ValueError(
            f"README.md has {len(parts) - 1} lines {END_OF_HOME!r}: expected one, where the home "
            "page of the site ends."
        )
    return parts[0].rstrip() + "\n", parts[1].lstrip()


def with_links_of_the_site(markdown: str, page: str) -> str:
    """Markdown whose relative links lead to pages of the site, outside of code.

    Args:
      markdown: text of the page.
      page: its name, relative to docs/.
    """
    pieces = _FENCE.split(markdown)
    for place in range(0, len(pieces), 2):
        pieces[place] = _LINK.sub(lambda link: _relinked(link, page), pieces[place])
    return "".join(pieces)


def _relinked(link: re.Match[str], page: str) -> str:
    text, target = link.group(1), link.group(2)
    if re.match(r"[a-z]+:", target):
        return link.group(0)
    path, _, anchor = target.partition("#")
    origin = ORIGINS.get(page, f"docs/{page}")
    folder = posixpath.dirname(origin)
    file = posixpath.normpath(posixpath.join(folder, path)) if path else origin
    place = _page_of(file, anchor)
    if place is None:
        return f"`{file}`" if file in text or text.strip("`") in file else f"{text} (`{file}`)"
    relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
    return f"[{text}]({relative}{'#' + anchor if anchor else ''})"


def _page_of(file: str, anchor: str) -> str | None:
    """The page, or other file, of the site that a file of the repository is in; None: in none."""
    if file == "README.md":
        return "guide.md" if anchor in _anchors(readme_parts()[1]) else "index.md"
    for page, origin in ORIGINS.items():
        if file == origin:
            return page
    return file.removeprefix("docs/") if file.startswith("docs/") else None


def _anchors(markdown: str) -> set[str]:
    outside_code = "".join(_FENCE.split(markdown)[::2])
    return {slugify(found, "-") for found in re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)}


def _reference(name: str, modules: tuple[str, ...]) -> str:
    parts = [f"# jaxspec{'' if name == 'jaxspec' else '.' + name}"]
    for module in modules:
        names = public_names(module)
        # By the package's name, the reader of docstrings finds the file that is called alike.
        folder = ROOT / module.replace(".", "/")
        hidden = [each for each in names if (folder / f"{each}.py").is_file()]
        members = "".join(f"\n        - {each}" for each in names if each not in hidden)
        heading = f"## {module}\n\n" if len(modules) > 1 else ""
        parts.append(f"{heading}::: {module}\n    options:\n      members:{members}")
        parts += [
            f"::: {module}.{each}.{each}\n    options:\n      show_root_heading: true\n"
            "      show_root_toc_entry: true\n      heading_level: 2"
            for each in hidden
        ]
    return "\n\n".join(parts) + "\n"


def public_names(module: str) -> list[str]:
    """What a module offers: its ``__all__``, or else its classes, functions and documented values.

    Args:
      module: dotted name. It is read, not imported.
    """
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    names = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if not isinstance(target, ast.Name):
                continue
            if target.id == "__all__":
                return list(ast.literal_eval(node.value))
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                names.append(target.id)
    return [name for name in names if not name.startswith("_")]
