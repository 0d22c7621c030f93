"""The Modelfile's template, rendered by Go itself where it is installed, with the types that Ollama hands to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from export.ollama import go_template, take_apart
from tests.fixtures_ollama import CONVERSATIONS, TEMPLATES, expected_text, ollama_values
from tinydispatch.bundled import bundled_tools

_GO = shutil.which("go")
# Arguments print themselves as JSON. Older versions of Ollama hang the method on a pointer, newer ones on the value.
_PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Arguments map[string]any

func (a RECEIVERArguments) String() string {
	text, _ := json.Marshal(a)
	return string(text)
}

type Call struct {
	Function struct {
		Name      string
		Arguments Arguments
	}
}

type Message struct {
	Role, Content string
	ToolCalls     []Call
}

type Values struct {
	System   string
	Tools    []string
	Messages []*Message
}

type Job struct {
	Template string
	Values   Values
}

func main() {
	var jobs []Job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, job := range jobs {
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		if err := parsed.Execute(&text, job.Values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@pytest.mark.slow
@pytest.mark.skipif(_GO is None, reason="go is not installed")
@pytest.mark.parametrize("receiver", ["*", ""], ids=["a pointer's method", "a value's method"])
def test_go_prints_what_the_chat_template_prints(receiver: str, tmp_path: Path) -> None:
    jobs, expected = [], []
    for chat_template in TEMPLATES.values():
        template = go_template(take_apart(chat_template, bundled_tools()))
        for messages in CONVERSATIONS.values():
            for has_tools in (False, True):
                values = ollama_values(messages, has_tools)
                jobs.append({"Template": template, "Values": values})
                expected.append(expected_text(chat_template, messages, has_tools))
    source = tmp_path / "main.go"
    source.write_text(_PROGRAM.replace("RECEIVER", receiver), "utf-8")
    environment = os.environ | {"GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    done = subprocess.run(
        [str(_GO), "run", str(source)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout) == expected
