"""The measurement of the command line: its ratios."""

from __future__ import annotations

from bench.speed.command_line import page, processor


def test_ratios() -> None:
    text = page("timm:a", {"script": 10.0, "capture": 3.0, "attribution": 2.0, "command": 13.0})
    assert "| the command / the script | 1.30 |" in text
    assert "| the command / (capture + one attribution) | 2.60 |" in text


def test_seconds_are_of_the_command_that_runs() -> None:
    idle, printed = processor(["python3", "-c", "import time; time.sleep(0.3); print(7)"])
    busy, _ = processor(["python3", "-c", "import time\nwhile time.process_time() < 0.3: pass"])
    assert printed == "7\n" and idle < 0.3 <= busy
