"""What strangers' files and names may hold, a line each. Every output of an evaluation is tried with every line."""

from __future__ import annotations

PLAIN = "plain"  # what the outputs are compared with

HOSTILE = {
    # HTML
    "a script": "<script>alert(1)</script>",
    "a picture": '<img src=x onerror="alert(1)">',
    "an attribute": "\" onmouseover='alert(1)' x=\"",
    "a comment": "<!-- x",
    "an entity": "&lt;b&gt; &amp; &#60;",
    "the end of a style": "</style></table><b>",
    "a URL of a script": "<a href='javascript:alert(1)'>x</a>",
    # Markdown
    "a cell's end": "a | b || c",
    "a link": "[x](https://evil.example)",
    "an image": "![x](https://evil.example/x.png)",
    "a reference": "[x][y]",
    "a definition": "[x]: https://evil.example",
    "an address": "https://evil.example/?a=b_c*d*",
    "a www address": "www.evil.example",
    "a mail address": "me@evil.example",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "code": "`x` ``y``",
    "backslashes": "\\ \\* \\| \\\\",
    "a formula of GitHub": "$x$ $$y$$",
    "a fence": "```html",
    "a heading": "# x",
    # LaTeX
    "a command": "\\input{/etc/passwd} \\write18{x}",
    "special characters": "50 % & #1 _a_ ^b {c} ~ $d$",
    "caret notation": "^^5cinput",
    # spreadsheets
    "a formula": "=1+1",
    "a command of a spreadsheet": "=cmd|' /C calc'!A0",
    "a plus": "+1+1",
    "a minus": "-1+1",
    "an at": "@SUM(1)",
    "a full-width formula": "＝1+1",
    "behind a semicolon": "x;=1+1",
    "behind a semicolon and a quote": '";"=1+1',
    "behind a tab": "x\t=1+1",
    "behind a comma and a quote": '","=1+1',
    "behind a line's end": "x\n=1+1",
    # terminals
    "a colour": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;title\x07",
    "a hidden link": "\x1b]8;;https://evil.example\x07x\x1b]8;;\x07",
    "clear": "\x1b[2J\x1b[H",
    "one-byte sequences": "\x9b31m \x90x\x9c",
    "a carriage return": "good\rbad",
    "backspaces": "good\x08\x08\x08\x08bad",
    "a zero byte": "a\x00b",
    "a bell": "\x07",
    "markup of rich": "[bold red]x[/] [link=https://evil.example]x[/link] :smile:",
    # Unicode
    "an override": "abc\u202etxt.exe\u202c",
    "an isolate": "\u2066x\u2069 \u200f",
    "zero width": "a\u200bb\ufeff",
    "tags": "x\U000e0041\U000e007f",
    "a line separator": "a\u2028b\u2029c\x85d",
    "half a pair": "a \ud800 b",
    # lines
    "lines": "a\nb\r\nc\n\n# d\n| e | f |",
    "a rule": "a\n---\nb",
    "html lines": "a\n<div>\n\nb",
    # harmless, and left as they are
    "other scripts": "цвет 颜色 لون रंग",
    "joined": "می\u200cخواهم 👩\u200d🔬",
}
