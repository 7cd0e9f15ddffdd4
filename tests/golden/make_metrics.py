"""Reference cases for the metrics of src/eval, by the packages and scripts that define them.

    pip install scikit-learn==1.9.1 sacrebleu==2.6.0 tree-sitter==0.26.1 tree-sitter-python==0.25.0
    git clone the repository ShishirPatil/gorilla (the cases were made with commit 6ea57973)
    python make_metrics.py GORILLA > metrics.json

The texts, labels, functions and APIs are made up here. F1 and confusion matrices are scikit-learn's, chrF and BLEU
sacreBLEU's, calls are judged by the leaderboard's own ast_checker, API calls by Gorilla's own ast_eval scripts (with
today's tree-sitter in place of the one they were written for).
"""

import json
import random
import re
import sys
import types
from pathlib import Path

import sacrebleu
import tree_sitter
import tree_sitter_python
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

GORILLA = Path(sys.argv[1])
DRAW = random.Random(7)


def labels():
    cases = []
    for names, n in [(["no", "yes"], 9), (["a", "b", "c"], 40), (["w", "x", "y", "z"], 25), (["a", "b", "rare"], 12)]:
        expected = [DRAW.choice(names[:2] if "rare" in names else names) for _ in range(n)]
        answered = [e if DRAW.random() < 0.6 else DRAW.choice(names) for e in expected]
        cases.append({
            "labels": names, "expected": expected, "answered": answered,
            "accuracy": accuracy_score(expected, answered),
            "macro_f1": f1_score(expected, answered, average="macro", zero_division=0),
            "confusion": confusion_matrix(expected, answered, labels=names).tolist(),
        })
    return cases


PAIRS = [
    ("Ich finde mein großes Bild.", "Ich finde mein großes Bild."),
    ("Ich finde das Bild", "Ich finde mein großes Bild."),
    ("", "Ein Satz."),
    ("Ein Satz.", "Ein ganz anderer, viel längerer Satz steht hier geschrieben."),
    ("Der Hund, der bellt, beißt nicht; er kostet 1,234.50 Euro (etwa 5-6 Tage Lohn)!", "Hunde, die bellen, beißen nicht: sie kosten 1,234.50 Euro (5-6 Tage Lohn)."),
    ("It's &quot;quoted&quot; &amp; escaped &lt;here&gt;", "It's \"quoted\" & escaped <here>"),
    ("What?! No... yes,no.maybe 3.14,15 a.b 7,x", "What ? ! No ... yes , no . maybe 3.14,15 a.b 7,x"),
    ("the the the the", "the cat sat on the mat"),
    ("a", "a"),
    ("Elle a mangé à l'hôtel près d'ici.", "Elle a mangé dans l'hôtel près d'ici ."),
    ("¿Dónde está la biblioteca? No lo sé.", "¿Dónde está la biblioteca? No sé."),
    ("don't {stop} [now] ~ `tick` @home #1 $5 50% *x* a/b a\\b ^ _u_", "don't { stop } [now] ~ tick @home #1 $5 50 % x a/b a\\b"),
    ("end with hyphen-\nated line", "end with hyphenated line"),
    ("ab", "abcdefgh"),
]


def translations():
    one = [{"answer": a, "expected": e, "chrf": sacrebleu.sentence_chrf(a, [e]).score,
            "bleu": sacrebleu.corpus_bleu([a], [[e]]).score} for a, e in PAIRS]
    answers, expected = [a for a, _ in PAIRS], [e for _, e in PAIRS]
    corpus = {"chrf": sacrebleu.corpus_chrf(answers, [expected]).score,
              "bleu": sacrebleu.corpus_bleu(answers, [expected]).score}
    return {"sentences": one, "corpus": corpus}


def module(name, **names):
    """A stand-in for a module whose import would pull in every model's client."""
    made = types.ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made
    return made


def checker():
    root = GORILLA / "berkeley-function-call-leaderboard" / "bfcl_eval"
    python, enum = object(), types.SimpleNamespace
    languages = enum(PYTHON=python, JAVA=object(), JAVASCRIPT=object())
    formats = enum(PYTHON="python")
    module("bfcl_eval"), module("bfcl_eval.constants")
    module("bfcl_eval.constants.enums", Language=languages, ReturnFormat=formats)
    configs = {"plain": enum(underscore_to_dot=False)}
    module("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING=configs)
    module("bfcl_eval.constants.type_mappings", JAVA_TYPE_CONVERSION={}, JS_TYPE_CONVERSION={})
    for part in ["eval_checker", "eval_checker.ast_eval", "eval_checker.ast_eval.type_convertor"]:
        module("bfcl_eval." + part)
    base = "bfcl_eval.eval_checker.ast_eval.type_convertor."
    module(base + "java_type_converter", java_type_converter=None)
    module(base + "js_type_converter", js_type_converter=None)
    judged, decoding = {}, {"ReturnFormat": formats}
    exec((root / "eval_checker/ast_eval/ast_checker.py").read_text(), judged)
    # Of the file with all handlers' helpers, the decoder alone.
    source = (root / "model_handler/utils.py").read_text()
    wanted = ["ast_parse", "resolve_ast_call", "resolve_ast_by_type", "default_decode_ast_prompting"]
    parts = re.split(r"(?m)^(?=def |#)", source)
    exec("import ast, re\n" + "".join(p for p in parts if any(p.startswith(f"def {w}(") for w in wanted)), decoding)

    def judge(answer, functions, truth):
        try:
            calls = decoding["default_decode_ast_prompting"](answer)
        except Exception:
            return not truth
        if not truth:
            return not calls
        if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
            return False
        category = "multiple" if len(functions) > 1 else "simple"
        return judged["ast_checker"](functions, calls, truth, python, category, "plain")["valid"]

    return judge


def calls():
    judge = checker()
    p = lambda kind, **more: {"type": kind, **more}
    shelf = {"name": "shelf.put", "parameters": {"type": "dict", "required": ["item", "count"], "properties": {
        "item": p("string"), "count": p("integer"), "weight": p("float"), "fragile": p("boolean"),
        "tags": p("array", items=p("string")), "size": p("tuple", items=p("integer")), "box": p("dict"),
        "parts": p("array", items=p("dict")), "any": p("any"), "grid": p("array", items=p("array")),
    }}}
    look = {"name": "look_up", "parameters": {"type": "dict", "required": ["name"], "properties": {"name": p("string")}}}
    truth = [{"shelf.put": {
        "item": ["Big Apple, red", "apple"], "count": [3], "weight": [1.5, 2, ""], "fragile": [True, ""],
        "tags": [["New", "cheap"], ["new"], ""], "size": [[1, 2], ""], "box": [{"w": [10], "name": ["A-1", ""]}, ""],
        "parts": [[{"id": [1], "n": ["x", "y"]}, {"id": [2], "n": [""]}], ""], "any": ["hello", ""], "grid": [[[1], [2]], ""],
    }}]
    variable = [{"shelf.put": {"item": ["apple"], "count": ["n"], "weight": ["w", ""]}}]
    base = "shelf.put(item='apple', count=3"
    answers = [base + rest for rest in [
        ")", ", weight=2)", ", weight=1.5)", ", weight='2')", ", weight=True)", ", weight=3/2)", ", weight=1.0 + 0.5)", ", fragile=True)",
        ", fragile='True')", ", fragile=1)", ", tags=['new'])", ", tags=['NEW', 'cheap'])", ", tags=['cheap', 'new'])", ", tags=[])",
        ", tags=[1])", ", tags=('new',))", ", tags='')", ", size=(1, 2))", ", size=[1, 2])", ", size=(1.0, 2))", ", size=(2, 1))",
        ", box={'w': 10})", ", box={'w': 10, 'name': 'a 1'})", ", box={'w': 11})", ", box={'name': 'A-1'})", ", box={'x': 1})",
        ", box={'w': 10.0})", ", box='w')", ", parts=[{'id': 1, 'n': 'X'}, {'id': 2}])", ", parts=[{'id': 1, 'n': 'x'}])",
        ", parts=[{'id': 2}, {'id': 1, 'n': 'x'}])", ", parts=[])", ", parts=['a'])", ", any='Hello')", ", any=1)",
        ", grid=[[1], [2]])", ", grid=[[1], [3]])", ", grid=[1, 2])", ", colour='red')",
    ]] + [
        "shelf.put('apple', 3)", "shelf.put(item='BIG APPLE red', count=3)", "shelf.put(item='big-apple_red', count=3)",
        "shelf.put(item='pear', count=3)", "shelf.put(item='apple', count=3.0)", "shelf.put(item='apple', count='3')",
        "shelf.put(item='apple', count=-3)", "shelf.put(item='apple', count=1 + 2)", "shelf.put(item=apple, count=3)",
        "shelf.put(item='apple')", "put(item='apple', count=3)", "[" + base + ")]", "`" + base + ")`\n", "[" + base + "), " + base + ")]",
        base + "), " + base + ")", base, "I put the apple there.", "", "[]", "look_up(name='apple')", "{'shelf.put': 1}", "3",
        "print(shelf.put(item='apple', count=3))", "shelf.put(item=f(1), count=3)", "shelf.put(item='app' 'le', count=0x3)",
        "shelf.put(item=\"apple\", count=3) # done", "shelf['put'](item='apple', count=3)", "shelf.put(**{'item': 'apple', 'count': 3})", "shelf.put(item='apple', **{'count': 3})",
        "shelf.put(*['apple'], item='apple', count=3)",
    ]
    cases = []
    for functions, right, tried in [
        ([shelf], truth, answers), ([look, shelf], truth, answers[:3] + answers[-18:]), ([shelf, look], [{"look_up": {"name": ["it's", ""]}}],
         ["look_up(name=\"it's\")", "look_up(name='it\"s')", "look_up()", "look_up(name='')", base + ")"]),
        ([shelf], [], answers[:2] + answers[-18:]),
        ([shelf], variable, ["shelf.put(item='apple', count=n)", "shelf.put(item='apple', count='n')", "shelf.put(item='apple', count=3)",
         "shelf.put(item='apple', count=n, weight=w)", "shelf.put(item='apple', count=N)"]),
    ]:
        for answer in tried:
            cases.append({"functions": functions, "truth": right, "answer": answer, "right": judge(answer, functions, right)})
    return cases


def ast_eval(script):
    source = (GORILLA / "gorilla/eval/eval-scripts" / script).read_text().replace(".sexp()", ".type")
    names = {"__name__": "script"}
    exec(source, names)
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))
    parse = lambda text: parser.parse(bytes(text, "utf8")).root_node

    def find(text, apis):
        trees = [parse(call) for call in apis]
        return names["ast_check"](names["get_all_sub_trees"](parse(text)), trees)

    return find


def cut(text):
    """What the scripts parse of an answer."""
    parts = text.split("api_call")
    if len(parts) == 1:
        return parts[0]
    output = parts[1].split("api_provider")[0]
    start = output.index(":") if ":" in output else 0
    end = output.rindex(")") if ")" in output else -2
    return output[start + 2:end + 1]


def api_calls():
    hubs = {
        "ast_eval_th.py": (["torch.hub.load(repo_or_dir='acme/vision', model='net18', pretrained=True)",
                            "torch.hub.load(repo_or_dir='acme/vision', model='net18_wide')",
                            "torch.hub.load('acme/other', 'plain')",
                            "torch.hub.load(repo_or_dir='acme/sound', model='hear')",
                            "torch.hub.load(repo_or_dir='acme/birds', model='net', pretrained=True, **{'top': 6})"],
                           ["torch.hub.load('acme/vision', 'net18', pretrained=True)",
                            "model = torch.hub.load(repo_or_dir='acme/vision', model='net18_wide')",
                            "torch.hub.load('acme/sound:v2', \"hear\")", "torch.hub.load('acme/sound', 'speak')",
                            "torch.load('acme/vision', 'net18')", "torch.hub.load('acme/vision', model=name)",
                            "net = torch.hub.load('acme/vision', 'net18').eval().to(device)",
                            "x = 1; y = torch.hub.load('acme/sound', 'hear', device=torch.device('cpu'))",
                            "torch.hub.load('acme/birds', 'net', **{'top': 6})", "torch.hub.load('acme/birds', 'net', *[1])",
                            "torch.hub.load(**{'repo_or_dir': 'acme/sound', 'model': 'hear'})"]),
        "ast_eval_hf.py": (["AutoModel.from_pretrained('acme/bert')", "pipeline('text-classification', model='acme/bert-cased')",
                            "pipeline('conversational')", "Tokenizer.load('acme/t5', size=3).fast()",
                            "model = AutoModel.from_pretrained('acme/hidden')"],
                           ["AutoModel.from_pretrained('acme/bert')", "AutoModel.from_pretrained(\"acme/bert\")",
                            "pipeline('text-classification', model='acme/bert-cased')", "pipeline(model='acme/bert-cased', task='text-classification')",
                            "pipeline('acme/bert')", "f(g('acme/bert'))", "load('acme/bert', 'conversational')", "pipeline('summarisation')",
                            "nlp = pipeline('conversational', model='acme/talk')", "AutoModel.from_pretrained('acme/hidden')",
                            "AutoModel.load('acme/bert')", "AutoModel.from_pretrained(['acme/bert', {'a': -1}])[0]"]),
        "ast_eval_tf.py": (["hub.load('acme/place/1')", "hub.KerasLayer('acme/face/2')", "hub.load(model='acme/word/3')"],
                           ["hub.load('acme/place/1')", "model = hub.load(\"acme/place/1\")", "hub.KerasLayer('acme/face/2', trainable=True)",
                            "hub.KerasLayer('acme/place/1')", "hub.load('acme/word/3')", "tf.Sequential([hub.KerasLayer('acme/face/2'), d(1)])"]),
    }
    cases = []
    for script, (apis, answers) in hubs.items():
        find = ast_eval(script)
        for answer in answers:
            whole = f"<<<domain>>>: X\n<<<api_call>>>: {answer}\n<<<api_provider>>>: Acme\n<<<code>>>: load('a')"
            for text in [answer, whole]:
                cases.append({"apis": apis, "answer": text, "found": find(cut(text), apis)})
    return cases


print(json.dumps({"labels": labels(), "translations": translations(), "calls": calls(), "api_calls": api_calls()},
                 ensure_ascii=False, indent=0))
