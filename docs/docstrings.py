"""For mkdocstrings: the docstrings' section "Example" is what Griffe knows as "Examples", and renders as code."""

import re

import griffe


class Example(griffe.Extension):
    """Names the section as Griffe does."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
