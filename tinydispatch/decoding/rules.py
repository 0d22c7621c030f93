"""The text of a Lark grammar as it grows: rules and terminals by name, each body written once."""

from __future__ import annotations

from tinydispatch.decoding import terminals


class GrammarError(ValueError):
    """A schema that no grammar can be made of, or that fails while a reply is written; the message names the tool, the
    place in its schema, and the reason.
    """

    def __init__(self, tool: str, path: str, problem: str) -> None:
        super().__init__(f"tool {tool!r}: {path or 'parameters'}: {problem}")
        self.tool = tool
        self.path = path
        self.problem = problem


class Rules:
    """Definitions of one grammar."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._n_names = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def reserve(self) -> str:
        """The name of a rule whose body is given later by `define`."""
        return f"r{self._number()}"

    def define(self, name: str, body: str, parameter: str = "") -> None:
        """Give a reserved rule its body; `parameter` "::_" makes it a rule with a number that its body reads."""
        self._bodies[name + parameter] = body

    def _number(self) -> int:
        self._n_names += 1
        return self._n_names

    def rule(self, body: str) -> str:
        """The rule with that body, which may be an older one."""
        if body not in self._names:
            self._names[body] = self.reserve()
            self.define(self._names[body], body)
        return self._names[body]

    def terminal(self, body: str) -> str:
        """The terminal with that body: one lexeme, matched as a regular expression."""
        if body not in self._names:
            name = f"T{self._number()}"
            self._names[body] = name
            self._bodies[name] = body
        return self._names[body]

    def text(self) -> str:
        """All definitions, a line each."""
        return "".join(f"{name}: {body}\n" for name, body in self._bodies.items())

    def any_value(self) -> str:
        """Any JSON value, spaced as the writer of calls spaces it."""
        if "any" not in self._bodies:
            string = self.terminal(terminals.any_string())
            number = self.terminal(terminals.NUMBER)
            self._bodies["any"] = f'{string} | {number} | "true" | "false" | "null" | any_array | any_object'
            self._bodies["any_array"] = '"[" (any (", " any)*)? "]"'
            self._bodies["any_object"] = '"{" any_members? "}"'
            self._bodies["any_members"] = f'{string} ": " any (", " {string} ": " any)*'
        return "any"

    def any_object(self) -> str:
        """Any JSON object."""
        self.any_value()
        return "any_object"

    def any_array(self) -> str:
        """Any JSON array."""
        self.any_value()
        return "any_array"
