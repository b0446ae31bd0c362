"""Chat templates: the same text as transformers, and a limit to what a template does."""

import threading

import pytest

from jaxspec.data import template_sandbox
from jaxspec.data.chat_template import CHATML, ChatTemplate
from jaxspec.data.tokenizer import EMBEDDED_FOLDER

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How far is it?\nIs it 10% more?"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n12 miles."},
    {"role": "user", "content": "And back?"},
]
RANGE = "{% set x = range(100000) | list %}"
LONG = "{% set x = 'a' * 1000000 %}"
NAMESPACE = "{% set ns = namespace(x='aaaaaaaa', y=[1]) %}{% for i in range(60) %}"


def _render(source, *, place="chat_template.jinja"):
    return ChatTemplate(place, source=source).render(TURNS, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        "{{ messages }}",
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.revindex }}{{ m }}{% endfor %}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}"
        "{{ loop.length }}{{ loop.previtem }}{{ m.content | trim | upper }}{% endfor %}",
        "{% for key in messages[0] %}{{ key ~ loop.index0 ~ none }}{% else %}no{% endfor %}",
        "{% for key, value in messages[0] | dictsort %}{{ key }}={{ value }}{% endfor %}",
        "{% for m in messages %}{{ loop | attr('index') }}{{ loop.changed(m.role) }}"
        "{{ loop.cycle('a', 'b') }}{{ (m.content | safe).replace('1', '2') | e }}{% endfor %}",
        "{% for m in nothing %}{{ m }}{% else %}{{ nothing }}nobody{% endfor %}",
        "{% for a in [[1, [2]], [3]] recursive %}"
        "{{ loop(a) if a is iterable else a }}{{ loop.depth }}{% endfor %}",
        "{% macro turn(m, mark='|') %}{{ mark + m.content }}{{ caller(m) if caller }}{% endmacro %}"
        "{% for m in messages[1:] %}{{ turn(m) }}{{ turn(m, mark=loop.index | string) }}"
        "{% endfor %}"
        "{% call(m) turn(messages[0]) %}{{ m.role }}{{ [m.role, 1] }}{% endcall %}",
        "{% set ns = namespace(text='', n=0) %}{% for m in messages[::-1] %}"
        "{% set ns.text = ns.text + m.content %}{% set ns.n = ns.n + loop.index * 2 %}"
        "{% endfor %}{{ ns.text }}{{ ns.n }}{{ ns.n % 7 }}{{ 2 ** 5 }}{{ 7 // 2 - 1.5 }}",
        "{{ '%s has %5.2f' % ('it', 2.5) }}{{ '{:>8}|{a}'.format('x', a=1) }}{{ '-' * 20 }}",
        "{{ '%s-%s' | format(1, 2) }}{{ ['a', 'b'] | join(', ') }}{{ [0] * 3 + [1] }}",
        "{{ messages[2].content.split('</think>')[-1].lstrip('\\n').replace('1', 'one') }}",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.content.startswith('<') }}{{ 'x' in m.content }}{{ m.role is in ['user'] }}"
        "{{ m.items() | list }}{{ m.get('tool', 'none') }}{% endfor %}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}"
        "{% set text %}{{ messages[1].content }}!{% endset %}{{ text | length }}{{ text }}",
        "{% block a %}{{ messages | length }}{% endblock %}{{ self.a() }}",
        "{{ messages | map(attribute='role') | join(' ') }}{{ messages | tojson(indent=2) }}",
        "{{ messages | map('tojson') | list }}{{ messages | groupby('role') | length }}",
        "{{ {'a': messages[0], 'b': (1, 2)} }}{{ -3 | abs }}{{ 2.5 | round }}{{ dict(a=1) }}",
        "{% set a, b = 1, 2 %}{{ a < b <= 2 }}{{ not a }}{{ a if b else 0 }}{{ true and none }}",
        "{%- for m in messages %}\n  {%- if loop.first %}  x  {% endif -%}\n y\n{% endfor %}\n",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ bos_token }}",
        "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}",
    ],
)
def test_transformers_agrees(source):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(EMBEDDED_FOLDER))
    expected = theirs.apply_chat_template(
        TURNS, chat_template=source, add_generation_prompt=True, tokenize=False
    )
    assert _render(source) == expected


def test_the_clock_stands_still():
    """SmolLM3 and Mistral Small 3 ask for today's date; Llama 3.2 has one of its own."""
    smollm3 = "{%- set today = strftime_now('%d %B %Y') -%}{{ today }}"
    assert _render(smollm3) == "26 July 2024"
    llama = (
        "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}"
        "{%- else %}{{ '26 Jul 2024 of its own' }}{%- endif %}"
    )
    assert _render(llama) == "26 Jul 2024 of its own"


ENDLESS = {
    "loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "a loop that goes on": "{% for i in range(90000) %}{% for j in range(90000) %}{% continue %}"
    "{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "loops over iterators": "{% for i in range(90000) | map('string') %}"
    "{% for j in range(90000) | map('string') %}{% endfor %}{% endfor %}",
    "loops over constants": "{% for a in 'aaaaaaaaaaaaaaaaaaaa' %}" * 15 + "{% endfor %}" * 15,
    "a loop in itself": RANGE + "{% for i in x recursive %}{{ loop(x) }}{% endfor %}",
    "conditions": RANGE + "{% for i in x if -1 in x %}{% endfor %}",
    "searches": LONG + "{% for i in range(90000) %}{{ 'b' in x }}{% endfor %}",
    "tests": LONG + "{% for i in range(90000) %}{{ 'b' is in x }}{% endfor %}",
    "slices": LONG + "{% for i in range(90000) %}{% if x[::-1] %}{% endif %}{% endfor %}",
    "methods": LONG + "{% for i in range(90000) %}{% if x.upper() %}{% endif %}{% endfor %}",
    "a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a block": "{% block a %}{{ self.a() }}{% endblock %}",
    "a filter's loop": RANGE + "{{ x | select('in', x) | list | length }}",
    "a sum of lists": "{{ range(90000) | batch(1) | sum(start=[]) | length }}",
    "random text": "{{ lipsum(n=90000, max=90000) }}",
}
LARGE = {
    "output": LONG + "{% for i in range(90000) %}{{ x }}{% endfor %}",
    "output of a macro": LONG + "{% macro f() %}{% for i in range(90000) %}{{ x ~ i }}{% endfor %}"
    "{% endmacro %}{{ f() }}",
    "output to a variable": LONG + "{% set y %}{% for i in range(90000) %}{{ x }}{% endfor %}"
    "{% endset %}",
    "a product": "{{ 'a' * 10 ** 10 }}",
    "a product of lists": "{{ 10 ** 9 * [messages] }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a chain of products": "{% set ns = namespace(n=9) %}{% for i in range(90) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a growing sum": NAMESPACE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a growing join": NAMESPACE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a growing list": NAMESPACE + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
    "a growing dict": NAMESPACE + "{% set ns.y = dict(a=ns.y, b=ns.y) %}{% endfor %}",
    "growing views": NAMESPACE + "{% set ns.y = {1: {1: ns.y}.items(), 2: [ns.y]} %}{% endfor %}",
    "growing escapes": NAMESPACE + "{% set ns.x = ns.x | tojson | tojson %}{% endfor %}",
    "a replacement": LONG + "{{ x.replace('a', x) }}",
    "a filter's replacement": LONG + "{{ x | replace('a', x) }}",
    "a replacement in safe text": LONG + "{{ (x | safe).replace('a', x) }}",
    "a join": LONG + "{{ x.join(x) }}",
    "a join of an iterator": LONG + "{{ x.join(range(90000) | map('string')) }}",
    "a filter's join": LONG + "{{ range(90000) | map('string') | join(x) }}",
    "a mapped replacement": LONG + "{{ [x] | map('replace', 'a', x) | list | length }}",
    "white space": "{{ 'a'.center(10 ** 10) }}",
    "a filter's white space": "{{ 'a' | center(10000000000) }}",
    "tabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "zeros": "{{ '1'.zfill(10 ** 10) }}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "a width": "{{ '{:10000000000}'.format(1) }}",
    "a width from outside": "{{ '{:{w}}'.format(1, w=10 ** 10) }}",
    "a width of a map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "an old width": "{{ '%10000000000d' % 1 }}",
    "an old width from outside": "{{ '%*d' % (10 ** 10, 1) }}",
    "a filter's width": "{{ '%10000000000d' | format(1) }}",
    "batches": "{{ [1] | batch(10 ** 9, 'x') | list | length }}",
    "digits": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "indentation": "{{ 'a\nb' | indent(10 ** 10) }}",
}


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_too_much_is_refused(name, monkeypatch):
    monkeypatch.setattr(template_sandbox, "MOST_WORK", 1 << 25)  # To save time.
    with pytest.raises(ValueError, match=r"^The chat template of '.*\.jinja' refused ") as error:
        _render({**ENDLESS, **LARGE}[name])
    assert len(str(error.value)) < 900


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ nothing() }}", "refused .*'nothing' is undefined"),
        ("{{ messages.nothing.more }}", "refused .*no attribute 'nothing'"),
        ("{{ raise_exception('no system turns') }}", "refused .*no system turns"),
        ("{{ raise_exception('x' * 100000) }}", r"refused .*xxx\.\.\.\.$"),
        ("{{ [1] | map('counting _pass') | list }}", "refused .*No filter named"),
        ("{% include 'other' %}", "refused .*no loader"),
        ("{{ 10 ** 4900 }}", "refused .*16384 bits"),
        ("{{ 1 // 0 }}", "refused .*zero"),
        ("{% for m in messages %}", "cannot be read: Unexpected end"),
        ("{{ 1 | nothing }}", "cannot be read: No filter named 'nothing'"),
        ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "cannot be read: maximum recursion depth"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "cannot be read: too many"),
        ("x" * (template_sandbox.MOST_SOURCE + 1), "cannot be read: it has 200,001 characters"),
    ],
)
def test_mistakes_of_a_template_are_one_message(source, message):
    with pytest.raises(ValueError, match=rf"'a/b\.jinja' {message}") as error:
        _render(source, place="a/b.jinja")
    assert len(str(error.value)) < 900


def test_what_a_text_may_cost_is_counted_anew_for_each():
    most = template_sandbox.MOST_CHARACTERS
    template = ChatTemplate("x", source=f"{{{{ 'a' * {most} }}}}")
    for _ in range(30):
        assert len(template.render(TURNS, add_generation_prompt=True)) == most


def test_threads_do_not_share_a_count():
    source = "{% for i in range(30000) %}{% for j in range(8) %}{{ 'a' }}{% endfor %}{% endfor %}"
    template = ChatTemplate("x", source=source)
    expected = template.render(TURNS, add_generation_prompt=True)
    texts = []

    def render():
        texts.append(template.render(TURNS, add_generation_prompt=True))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 4
