"""Writing a new project, whole or not at all."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import numpy as np

from pfl_lm.files import move_new, scratch_beside
from pfl_lm.project.commented import commented_toml
from pfl_lm.project.templates import TEMPLATES, Template
from pfl_lm.reference.json_schema import json_schema
from pfl_lm.reference.kinds import KINDS

DEFAULT = "invented"
_PAGES = Path(__file__).parent / "pages"
_IGNORED = "# Built by pfl-lm from what is beside it.\n{}\n__pycache__/\n"
_SAMPLE_USERS, _SAMPLE_TOKENS, _SAMPLE_WORDS = 300, 120, 8_000


def create(folder: Path, template: str = DEFAULT) -> Path:
    """Write a project.

    Args:
        folder: where; it must not exist, or be empty.
        template: a name in ``TEMPLATES``.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such template, or the folder holds something.
    """
    chosen, folder = template_of(template), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; choose a new folder")
    target = folder.resolve()
    with scratch_beside(target) as scratch:
        (whole := scratch / "whole").mkdir()
        _write(whole, template, chosen, target.name)
        move_new(whole, target)
    return folder


def template_of(name: str) -> Template:
    """Return a template; ValueError with the nearest name where there is none."""
    if name not in TEMPLATES:
        close = difflib.get_close_matches(name, TEMPLATES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TEMPLATES)}"
        raise ValueError(f"{name!r} is no template; {hint}")
    return TEMPLATES[name]


def _write(folder: Path, name: str, template: Template, project: str) -> None:
    for file, values in template.recipes.items():
        kind = Path(file).stem
        text = commented_toml(kind, values, f"schemas/{kind}.json")
        (folder / file).write_text(text, encoding="utf-8")
    (folder / "schemas").mkdir()
    for kind in KINDS:
        schema = json.dumps(json_schema(kind), indent=2, ensure_ascii=False)
        (folder / "schemas" / f"{kind}.json").write_text(f"{schema}\n", encoding="utf-8")
    page = (_PAGES / f"{name}.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(page.replace("{{ project }}", project), encoding="utf-8")
    ignored = "\n".join(f"/{built}/" for built in template.folders)
    (folder / ".gitignore").write_text(_IGNORED.format(ignored), encoding="utf-8")
    if template.sample_text:
        _write_sample(folder / "text")


def _write_sample(folder: Path) -> None:
    """Write messages that nobody wrote: by user, and public ones."""
    from pfl_lm.text.synthetic.population import PUBLIC, SyntheticPopulation, synthetic_tokenizer

    users = {"train": _SAMPLE_USERS, PUBLIC: _SAMPLE_USERS}
    people = SyntheticPopulation(users, _SAMPLE_WORDS, _SAMPLE_TOKENS, seed=1, language="english")
    tokenizer = synthetic_tokenizer(_SAMPLE_WORDS, "english")
    folder.mkdir()
    for split, file in (("train", "messages.jsonl"), (PUBLIC, "public.jsonl")):
        with (folder / file).open("w", encoding="utf-8") as lines:
            for user in range(users[split]):
                tokens = people.tokens(split, user)
                ends = np.flatnonzero(tokens == tokenizer.eos_id)[:-1] + 1
                entry = {"user": f"user{user:03d}"} if split == "train" else {}
                for message in np.split(tokens, ends):
                    lines.write(
                        json.dumps(entry | {"text": tokenizer.decode(message.tolist())}) + "\n"
                    )
