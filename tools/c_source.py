# SPDX-License-Identifier: Apache-2.0
"""A view of the C sources for tools/check-style, check-calls and measure-source.

It relies on the layout that clang-format gives them: a function's braces, and only those, stand
alone in the first column. It knows no preprocessor: both sides of an #if count.
"""

import os
import re

# A comment, a string or a character constant, or a piece of text without any of these.
TOKEN = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[^/\"']+|.", re.DOTALL
)  # fmt: skip
CALL = re.compile(r"(->|\.)?\s*\b([A-Za-z_]\w*)\s*\(")
NO_CALL = set(
    "if for while switch return sizeof defined do else case alignof typeof __typeof__ _Generic"
    " __attribute__ _Static_assert static_assert __asm__ asm _Alignof __builtin_expect"
    " __extension__ int void char bool const cleanup format nonnull noreturn aligned packed"
    " unused printf_like _Alignas alignas _Atomic".split()
)


def blank(text):
    """The text with comments and the inside of literals gone; each byte in its place."""

    def replace(match):
        token = match.group(0)
        if token[:2] in ("/*", "//"):
            return re.sub(r"[^\n]", " ", token)
        if token[0] in "\"'" and len(token) > 1:
            return token[0] + " " * (len(token) - 2) + token[-1]
        return token

    return TOKEN.sub(replace, text)


def comments_and_strings(text):
    """The text with all else gone; each byte in its place."""

    def replace(match):
        token = match.group(0)
        if token[:2] in ("/*", "//") or token[0] in "\"'" and len(token) > 1:
            return token
        return re.sub(r"[^\n]", " ", token)

    return TOKEN.sub(replace, text)


def blank_preprocessor(code):
    """Code, as from blank(), with the lines of preprocessor directives gone."""
    lines, inside = [], False
    for line in code.split("\n"):
        directive = inside or line.lstrip().startswith("#")
        inside = directive and line.endswith("\\")
        lines.append(" " * len(line) if directive else line)
    return "\n".join(lines)


class Function:
    def __init__(self, path, name, static, start, first, last, body):
        self.path = path
        self.name = name
        self.static = static
        self.start = start  # the line on which its declaration begins
        self.first = first  # the line of its opening brace
        self.last = last  # the line of its closing brace
        self.body = body  # the code between both

    def lines(self):
        return self.last - self.start + 1

    def body_lines(self):
        return self.last - self.first - 1

    def calls(self):
        """(whether through a member, name) of each call, in order, also of function-like macros."""
        for match in CALL.finditer(self.body):
            if match.group(2) not in NO_CALL:
                yield bool(match.group(1)), match.group(2)


class Declaration:
    def __init__(self, name, start, inline):
        self.name = name
        self.start = start
        self.inline = inline


class Source:
    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.lines = text.split("\n")
        if self.lines and not self.lines[-1]:
            self.lines.pop()
        self.code = blank(text)
        self.code_lines = self.code.split("\n")
        self.plain = blank_preprocessor(self.code)
        self.plain_lines = self.plain.split("\n")

    def functions(self):
        """The function definitions, but those whose body begins on the line of their head."""
        found, first = [], None
        for number, line in enumerate(self.plain_lines, 1):
            if line.rstrip() == "{":
                first = number
            elif line.startswith("}") and first is not None:
                head_start, head = self.head_above(first)
                name = function_name(head)
                if name:
                    static = re.match(r"\s*(?:inline\s+)?static\b", head) is not None
                    body = "\n".join(self.plain_lines[first : number - 1])
                    found.append(Function(self.path, name, static, head_start, first, number, body))
                first = None
        return found

    def head_above(self, brace):
        start = brace
        while start > 1:
            line = self.plain_lines[start - 2].rstrip()
            if not line or line.endswith((";", "}")):
                break
            start -= 1
        return start, " ".join(self.plain_lines[start - 1 : brace - 1])

    def statements(self):
        """(line, text) of each top-level statement; the bodies of functions are `{}`."""
        depth, start, text, line = 0, None, [], 1
        for char in self.plain:
            if char == "\n":
                line += 1
            if char == "}":
                depth -= 1
            if depth == 0 or (char == "{" and depth == 0):
                if start is None and not char.isspace():
                    start = line
                text.append(char)
            if char == "{":
                depth += 1
            joined_end = char == ";" and depth == 0
            if char == "}" and depth == 0 and is_function_head("".join(text)):
                joined_end = True
            if joined_end:
                yield start, " ".join("".join(text).split())
                start, text = None, []

    def declarations(self):
        """The functions that a header declares, inline ones too."""
        for line, text in self.statements():
            if text.startswith(("typedef", "extern \"C\"", "_Static_assert", "static_assert")):
                continue
            name = function_name(text.split("{")[0])
            if name and "=" not in text.split("(")[0]:
                yield Declaration(name, line, text.endswith("}"))

    def has_comment(self, declaration):
        """Whether a comment stands above it, or in its group (lines without an empty one between).
        """
        line = declaration.start - 2
        if self.code_lines[declaration.start - 1].rstrip() != self.lines[declaration.start - 1].rstrip():
            return True
        while line >= 0 and self.lines[line].strip():
            if self.lines[line].startswith(("}", "#if", "#endif", "#include")):
                return False
            if not self.code_lines[line].strip():
                return True
            line -= 1
        return False


def is_function_head(text):
    return "(" in text and not re.match(r"\s*(struct|union|enum|typedef)\s+\w*\s*\{", text) and (
        function_name(text.split("{")[0]) is not None and "=" not in text.split("{")[0]
    )


def function_name(head):
    """The name of the function that a declaration declares; None if it is something else."""
    head = re.sub(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)", " ", head)
    match = re.search(r"\b([A-Za-z_]\w*)\s*\((?!\s*\*)", head)
    if not match or match.group(1) in NO_CALL or not head[: match.start()].strip():
        return None
    if "," in head[: match.start()] or "=" in head[: match.start()]:
        return None
    return match.group(1)


def load(tree, roots, suffixes=(".c", ".h")):
    """Every C file below `roots` of a tree, sorted."""
    for root in roots:
        for folder, folders, names in os.walk(os.path.join(tree, root)):
            folders.sort()
            for name in sorted(names):
                if name.endswith(suffixes):
                    full = os.path.join(folder, name)
                    with open(full, encoding="utf-8", errors="replace") as f:
                        yield Source(os.path.relpath(full, tree), f.read())


def torn_declarations(source):
    """Lines of statements that clang-format has broken only for a comment behind them."""
    torn = []
    lines, code = source.lines, source.code_lines
    for number in range(1, len(lines)):
        stripped = code[number].rstrip()
        if len(lines[number].rstrip()) == len(stripped) or not stripped.strip():
            continue
        first = number
        while first > 0 and continues(code[first - 1]):
            first -= 1
        if first == number:
            continue
        if any(lines[i].rstrip() != code[i].rstrip() for i in range(first, number)):
            continue
        parts = [re.sub(r"\s*\\$", "", code[i]).strip() for i in range(first, number + 1)]
        indent = len(code[first]) - len(code[first].lstrip())
        joined = parts[0]
        for part in parts[1:]:
            joined += part if joined.endswith(("(", "*")) else " " + part
        if indent + len(joined) <= 100 and stripped.endswith((";", ",", "{", ")")) or (
            code[first].lstrip().startswith("#define") and indent + len(joined) <= 100
        ):
            torn.append(first + 1)
    return torn


def continues(line):
    """Whether the statement of a line of code goes on on the next one."""
    line = line.rstrip()
    if not line.strip() or line.lstrip().startswith("#") and not line.endswith("\\"):
        return False
    if line.endswith("\\"):
        return True
    if line.endswith(","):
        return line.count("(") > line.count(")")
    return not line.endswith((";", "{", "}", ":", ")")) or line.count("(") > line.count(")")
