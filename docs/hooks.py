"""
What the site adds to the pages of this folder: pages that lie elsewhere in the repository, notebooks among them, and
links that leave the folder. A page is written for GitHub, where its links lead to the files beside it; here each such
link is turned to what the site has for it.

| a link to | leads to |
| --- | --- |
| a page of the site, wherever its file lies | that page |
| a picture | a copy on the site |
| another file | the repository, where `repo_url` is set; else a copy, code as a page of its own |
| a folder | the repository, where `repo_url` is set; else nowhere: its name is left |
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files, InclusionLevel

log = get_plugin_logger("links")

ROOT = Path(__file__).resolve().parents[1]
# Pages whose place in the repository is not this folder, and their names on the site: models and notebooks have their
# own, `yan-e2e` as `yan_e2e.md`.
PAGES_ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/data/README.md": "example_data.md",
}
for card in sorted(ROOT.glob("examples/models/*/README.md")):
    PAGES_ELSEWHERE[card.relative_to(ROOT).as_posix()] = card.parent.name.replace("-", "_") + ".md"
for notebook in sorted(ROOT.glob("examples/notebooks/*.ipynb")):
    PAGES_ELSEWHERE[notebook.relative_to(ROOT).as_posix()] = notebook.stem + ".md"
SOURCES = {page: source for source, page in PAGES_ELSEWHERE.items()}
# Files that are shown as pages, and their highlighting.
LANGUAGES = {".py": "python", ".yaml": "yaml"}
PICTURES = {".png", ".svg"}
# Code is passed over, so that `a[0](b)` is no link. A link's text may hold code and brackets.
CODE = r"^```.*?^```|^ {4}.*?$"
TEXT = r"(?:`[^`]*`|[^\[\]`]|\[[^\[\]]*\])*"
LINK = re.compile(
    rf"{CODE}|(?P<start>!?\[(?P<text>{TEXT})\]\()(?P<target>[^)\s]+)\)|`[^`\n]+`", re.MULTILINE | re.DOTALL
)


def notebook_page(text: str) -> str:
    """Markdown of a notebook: its texts, its code and what the code printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                continue
            printed = "".join(output.get("text") or output["data"]["text/plain"]).rstrip("\n")
            parts.append(f"``` {{ .text .printed }}\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def read_page(path: str) -> str:
    """Markdown of a page by its place in the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return notebook_page(text) if path.endswith(".ipynb") else text


def source_of(page: str) -> str:
    """Place in the repository of a page of the site."""
    return SOURCES.get(page, f"docs/{page}")


def is_outside(target: str) -> bool:
    """Whether a link leads to no file of the repository: to the web, or to a heading of its own page."""
    return target.startswith("#") or re.match(r"[a-z]+:", target) is not None


def site_name(path: str) -> str | None:
    """Name on the site of a file of the repository, None for a folder."""
    if path in PAGES_ELSEWHERE:
        return PAGES_ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return None
    return f"files/{path}.md" if Path(path).suffix in LANGUAGES else f"files/{path}"


def repository_links(path: str) -> set[str]:
    """Files and folders of the repository that a page links to."""
    targets = (match["target"] for match in LINK.finditer(read_page(path)))
    inside = (target.split("#")[0] for target in targets if target and not is_outside(target))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for target in inside}


def rewrite_links(text: str, path: str, repo_url: str | None) -> str:
    """
    Args:
        text: Markdown of a page.
        path: where its file is in the repository.
        repo_url: address of the repository, None where it has none.
    """

    def rewrite(match: re.Match) -> str:
        if not match["target"] or is_outside(match["target"]):
            return match[0]
        target, _, anchor = match["target"].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not (ROOT / target).exists():
            log.warning(f"{path} links to {target}, which does not exist")
            return match[0]
        page = site_name(target)
        beyond = page is None or (page.startswith("files/") and Path(target).suffix not in PICTURES)
        if repo_url and beyond:
            kind = "blob" if page else "tree"
            return f"{match['start']}{repo_url.rstrip('/')}/{kind}/main/{target}{anchor and f'#{anchor}'})"
        if page is None:
            return match["text"]
        page = posixpath.relpath(page, posixpath.dirname(site_name(path)) or ".")
        return f"{match['start']}{page}{anchor and f'#{anchor}'})"

    return LINK.sub(rewrite, text)


def code_page(path: str) -> str:
    """Markdown of a page that shows a file."""
    code = (ROOT / path).read_text(encoding="utf-8")
    header = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{path}`\n"
    return f"{header}\n````{LANGUAGES[Path(path).suffix]}\n{code}````\n"


def on_files(files: Files, config) -> Files:
    """Adds the pages that lie elsewhere, and what the pages link to."""
    for source, page in PAGES_ELSEWHERE.items():
        files.append(File.generated(config, page, content=read_page(source)))
    linked = set().union(*(repository_links(source_of(page.src_uri)) for page in files.documentation_pages()))
    for path in sorted(linked):
        page = site_name(path)
        if page is None or not page.startswith("files/") or not (ROOT / path).exists():
            continue
        hidden = {"inclusion": InclusionLevel.NOT_IN_NAV}
        if page.endswith(".md"):
            files.append(File.generated(config, page, content=code_page(path), **hidden))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path), **hidden))
    return files


def on_page_markdown(markdown: str, page, config, **_) -> str:
    uri = page.file.src_uri
    return markdown if uri.startswith("files/") else rewrite_links(markdown, source_of(uri), config.repo_url)


def on_page_content(html: str, page, **_) -> str:
    """Docstrings in transformers' style have Markdown and defaults in their types, which the reference repeats."""
    if not page.file.src_uri.startswith("api/"):
        return html

    def render(match: re.Match) -> str:
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", match[1])
        return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)

    return re.sub(r"<code>([^<]*`[^<]*)</code>(?:,\s*default:\s*<code>[^<]*</code>)?", render, html)
