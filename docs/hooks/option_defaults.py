"""For the API page (mkdocs.yml): a field made by `option(default, text, …)` has that default, not the call."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, ExprCall, Extension


class OptionDefaults(Extension):
    """Replaces the value of each such field; the parameters of its dataclass are made of it."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Called by griffe for each attribute that it reads."""
        call = attr.value
        if isinstance(call, ExprCall) and call.function.canonical_path == "baize_engine.fields.option":
            attr.value = call.arguments[0]
