"""Chat templates in the manner of well-known models, and the chats that they are tried on.

Each is what a `tokenizer_config.json` would hold. `tests/goldens/make_chat_goldens.py` keeps what
transformers makes of them; the live tests compare again.
"""

from __future__ import annotations

from typing import Any

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
  {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
  {% set turns = messages[1:] %}
{% else %}
  {% set system = '' %}
  {% set turns = messages %}
{% endif %}
{% for message in turns %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('user and assistant must take turns') -}}
  {% endif %}
  {% set content = (system if loop.first else '') + message['content'] %}
  {% if message['role'] == 'user' %}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {% elif message['role'] == 'assistant' %}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {% endif %}
{% endfor %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header|>' + message['role'] + '<|end_header|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}
"""

CHATML = """\
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""

# nothing but the end token stands between an answer and the next question
VICUNA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- message['role'] | upper + ': ' + message['content'] + ' ASSISTANT:' }}
    {%- endif %}
{%- endfor %}
"""

# as of models that reason: earlier answers are shown without it, the last one with it, and an
# option says whether to
THINKING = """\
{%- set last = namespace(at=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.at = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and loop.index0 < last.at and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip() %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# marks answers for training, has a macro, a namespace, and blanks of its own around the marks
MARKED = """\
{%- macro said(message) %}{{ message.role }}: {{ message['content'] }}{% endmacro %}
{%- set seen = namespace(answers=0) %}
{{- bos_token }}
{% for message in messages %}
    {% if message.role == 'assistant' %}
        {% set seen.answers = seen.answers + 1 %}
        {% generation %}
{{ said(message) }}{{ eos_token }}
        {% endgeneration %}
    {% else %}
{{ said(message) }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
({{ seen.answers }} answers so far)
{{ 'assistant: ' -}}
{% endif %}
"""

# loop controls, tojson both ways, functions and the names that a template may ask for
ODD = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- message | tojson }}{{ '<|eot|>' }}
{%- endfor %}
{%- if tools is not none or documents is defined and documents is not none %}
    {{- raise_exception('no tools were given') }}
{%- endif %}
{{- messages | map(attribute='role') | list | tojson(indent=2) }}
{{- strftime_now('%%') }}
{{- sep_token is defined }}{{ pad_token }}{{ eos_token }}{{ unk_token }}
{%- if add_generation_prompt %}{{ '<|start_header|>' }}{% endif %}
"""


def special(content: str) -> dict[str, Any]:
    """A special token as `tokenizer_config.json` writes it out."""
    return {
        "__type": "AddedToken", "content": content, "lstrip": False, "normalized": False,
        "rstrip": False, "single_word": False, "special": True,
    }  # fmt: skip


BYTE = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
SP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# name -> (tokenizer, tokenizer_config.json)
TEMPLATES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("sentencepiece", SP | {"chat_template": LLAMA_2}),
    "llama2_metaspace": ("metaspace", SP | {"chat_template": LLAMA_2}),
    "llama2_normalized": ("normalized", SP | {"chat_template": LLAMA_2}),
    "llama3": ("byte_level", BYTE | {"chat_template": LLAMA_3}),
    "chatml": ("byte_level", {"bos_token": None, "eos_token": "<|im_end|>"} | {
        "chat_template": [
            {"name": "tool_use", "template": "{{ raise_exception('not this one') }}"},
            {"name": "default", "template": CHATML},
        ]
    }),
    "vicuna": ("metaspace", SP | {"chat_template": VICUNA}),
    "vicuna_sentencepiece": ("sentencepiece", SP | {"chat_template": VICUNA}),
    "thinking": ("byte_level", {"eos_token": "<|im_end|>", "chat_template": THINKING}),
    "marked": ("byte_level", {"bos_token": special("<|begin|>"), "eos_token": "<|end|>"} | {
        "chat_template": MARKED
    }),
    "odd": ("byte_level", BYTE | {"pad_token": "<pad>", "chat_template": ODD}),
}  # fmt: skip


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation whose user speaks first."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


CHATS: list[list[dict[str, str]]] = [
    chat("Hello there!"),
    chat("  What is the sea?\n", "Water, mostly.", "Why?"),
    chat("Tell me more", system="You are brief."),
    chat("a", "b", "c", "d", "e\n\n", system=""),
    chat(
        "Größe, 日本 and 🦊!", "\tÇa va \u2028 bien \x07 'quoted' \"twice\" <b>&amp;</b>", "{{ x }}"
    ),
    chat("   ", "   answer with   blanks ", "\n\n"),
    [*chat("One."), *chat("Two.")],
    chat("Why?", "<think>Hm, why?</think>\n\nBecause.", "Oh?", "<think></think>Yes.", "OK"),
]
