//! Data, from files to batches: every format, the masks on real templates, packing, and what bad input is told.

#[path = "common/mod.rs"]
mod common;

use luthier::data::*;
use luthier::error::Error;
use luthier::weights::TokenizerFiles;
use std::path::Path;

/// A folder with a tokenizer, read by hand so that this file needs no more than the data room.
fn tokenizer_at(folder: &str, bos: u32, eos: u32) -> Option<Tokenizer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(tokenizer_json) = std::fs::read_to_string(folder.join("tokenizer.json")) else {
        common::skipped(&format!("there is no {}", folder.display()));
        return None;
    };
    let config = std::fs::read_to_string(folder.join("tokenizer_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let chat_template = config["chat_template"].as_str().map(String::from);
    let (bos, eos) = (Some(bos), vec![eos]);
    Some(Tokenizer::new(TokenizerFiles { tokenizer_json, chat_template, bos, eos, ..Default::default() }).unwrap())
}

fn nano() -> Tokenizer {
    tokenizer_at("models/nano", 0, 2).expect("models/nano is part of the tree")
}

/// nano's tokenizer under another chat template.
fn with_template(template: Option<&str>) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/tokenizer.json");
    let tokenizer_json = std::fs::read_to_string(path).unwrap();
    let chat_template = template.map(String::from);
    let files = TokenizerFiles { tokenizer_json, chat_template, bos: Some(0), eos: vec![2], ..Default::default() };
    Tokenizer::new(files).unwrap()
}

fn smollm2() -> Option<Tokenizer> {
    tokenizer_at("../shared/models/SmolLM2-135M-Instruct-Q4_1", 1, 2)
}

fn records(name: &str, text: &str) -> Records {
    read(name, text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn refused(name: &str, text: &str) -> Error {
    read(name, text.as_bytes(), &ReadOptions::default()).unwrap_err()
}

fn encoded(tokenizer: &Tokenizer, text: &str, seq_len: usize) -> Dataset {
    Dataset::encode(&records("a.jsonl", text), tokenizer, &EncodeOptions { seq_len, use_template: true }).unwrap()
}

/// The text of an example with its learned runs between ⟦ and ⟧.
fn marked(tokenizer: &Tokenizer, jsonl: &str) -> String {
    let data = encoded(tokenizer, jsonl, 512);
    let mut out = String::new();
    let example = &data.examples[0];
    let mut at = 0;
    for run in example.supervised.chunk_by(|a, b| a == b) {
        let text = tokenizer.decode(&example.ids[at..at + run.len()], false);
        out += &if run[0] { format!("⟦{text}⟧") } else { text };
        at += run.len();
    }
    out
}

fn pair(prompt: &str, completion: &str) -> Record {
    Record::Pair { prompt: prompt.into(), completion: completion.into() }
}

// --- reading -------------------------------------------------------------------------------------------------------

#[test]
fn every_kind_of_record_is_recognised() {
    let read = records(
        "a.jsonl",
        r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","weight":0}]}
{"prompt":"p","completion":"c"}

{"instruction":"i","input":"x","output":"o"}
{"instruction":"i","output":"o"}
{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}],"system":"s"}
{"text":"t","other":1}
{"prompt":[{"role":"user","content":"u"}],"completion":[{"role":"assistant","content":[{"type":"text","text":"a"}]}]}
"#,
    );
    let lines: Vec<u64> = read.records.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2, 4, 5, 6, 7, 8], "blank lines count as lines but are no records");
    let kinds: Vec<&Record> = read.records.iter().map(|(_, record)| record).collect();
    let Record::Chat(turns) = kinds[0] else { panic!("{:?}", kinds[0]) };
    assert!(!turns.messages[1].learned, "weight 0");
    assert_eq!(*kinds[1], pair("p", "c"));
    assert_eq!(kinds[2].turns().unwrap().messages[0].content, "i\n\nx");
    assert_eq!(kinds[3].turns().unwrap().messages[0].content, "i");
    let Record::Chat(turns) = kinds[4] else { panic!("{:?}", kinds[4]) };
    let roles: Vec<&str> = turns.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(*kinds[5], Record::Text { text: "t".into(), splits: false });
    assert_eq!(kinds[6].turns().unwrap().messages[1].content, "a");
}

#[test]
fn json_lists_csv_tsv_and_text_are_read() {
    let list = records("a.json", "[{\"prompt\":\"p\",\"completion\":1},\n{\"text\":\"t\"}]");
    assert_eq!(list.records[0], (1, pair("p", "1")));
    let csv = records("a.csv", "prompt,completion\n\"a, b\",\"c\nd\"\ne,f\n");
    assert_eq!(csv.records, [(2, pair("a, b", "c\nd")), (4, pair("e", "f"))]);
    let columns = ColumnMap { prompt: Some("mr".into()), completion: Some("ref".into()), ..ColumnMap::default() };
    let options = ReadOptions { columns, ..ReadOptions::default() };
    assert_eq!(read("a.csv", b"ref,mr\r\nr,m\r\n", &options).unwrap().records, [(2, pair("m", "r"))]);
    // Without a header, by number; quotes within a cell of TSV mean nothing.
    let columns = ColumnMap { prompt: Some("1".into()), completion: Some("2".into()), ..ColumnMap::default() };
    let options = ReadOptions { columns, ..ReadOptions::default() };
    let tsv = read("a.tsv", b"\"no\" end\t0\nfine\t1\n", &options).unwrap();
    assert_eq!(tsv.records, [(1, pair("\"no\" end", "0")), (2, pair("fine", "1"))]);
    let text = records("a.txt", "\nOne\ntwo\n\n\n  three\n");
    let document = |text: &str| Record::Text { text: text.into(), splits: true };
    assert_eq!(text.records, [(2, document("One\ntwo")), (6, document("  three"))]);
}

#[test]
fn all_bad_lines_are_told_with_their_number_and_reason() {
    let good = "{\"prompt\":\"p\",\"completion\":\"c\"}\n";
    let bad = format!("{good}{{\"prompt\":\n{good}[1]\n{{\"question\":\"q\",\"answer\":\"a\"}}\n[2]\n");
    let Error::Data { file, line, what, .. } = refused("a.jsonl", &bad) else { panic!() };
    assert_eq!((file.as_str(), line), ("a.jsonl", Some(2)));
    assert!(what.starts_with("4 of 6 records cannot be used\n  line 2: not JSON: EOF"), "{what}");
    assert!(what.contains("\n  lines 4, 6: not a JSON object"), "{what}");
    assert!(what.contains("line 5: not a record that can be learned: it has `question`, `answer`"), "{what}");
    assert!(what.contains("--prompt-column"), "{what}");
    let skipping = ReadOptions { skip_bad: true, ..ReadOptions::default() };
    let read = read("a.jsonl", bad.as_bytes(), &skipping).unwrap();
    assert_eq!((read.records.len(), read.skipped()), (2, 4));
}

#[test]
fn the_first_twenty_bad_records_are_named() {
    let bad: String = (0..50).map(|i| format!("{{\"field{i}\":1}}\n")).collect();
    let message = refused("a.jsonl", &bad).to_string();
    assert_eq!(message.lines().count(), 22, "{message}");
    assert!(message.ends_with("… and 30 more"), "{message}");
}

#[test]
fn missing_columns_name_the_ones_there() {
    let columns = ColumnMap { prompt: Some("question".into()), ..ColumnMap::default() };
    let options = ReadOptions { columns, ..ReadOptions::default() };
    let message = read("a.csv", b"prompt,completion\np,c\n", &options).unwrap_err().to_string();
    assert!(message.contains("there is no `question`; the record has `prompt`, `completion`"), "{message}");
    let message = refused("a.csv", "a,a\n1,2\n").to_string();
    assert!(message.contains("names the column `a` twice"), "{message}");
    let message = refused("a.csv", "prompt,completion\nx\n").to_string();
    assert!(message.contains("line 2: 1 columns where the first row has 2"), "{message}");
}

#[test]
fn fields_of_the_wrong_kind_are_told() {
    let cases = [
        (r#"{"prompt":null,"completion":"c"}"#, "`prompt` is null, not text"),
        (r#"{"prompt":"p","completion":" "}"#, "`completion` is empty"),
        (r#"{"messages":"hi"}"#, "`messages` is text, not a list"),
        (r#"{"messages":[]}"#, "`messages` is empty"),
        (r#"{"messages":[{"role":"robot","content":"x"}]}"#, "messages[0]: the role `robot`"),
        (r#"{"messages":[{"role":"assistant","content":"x","weight":0.5}]}"#, "`weight` is 0.5"),
        (r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, "type `image_url`"),
        (r#"{"messages":[{"role":"assistant","content":""}]}"#, "`content` is empty"),
        (r#"{"conversations":[{"from":"narrator","value":"x"}]}"#, "`from` is `narrator`"),
        (r#"{"text":["x"]}"#, "`text` is a list"),
    ];
    for (line, reason) in cases {
        let message = refused("a.jsonl", line).to_string();
        assert!(message.contains(reason), "{line}: {message}");
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    let cases: [(&str, &[u8], &str); 6] = [
        ("a.jsonl", b"", "there is no record"),
        ("a.csv", b"prompt,completion\n", "there is no record"),
        ("a.jsonl", b"\x1F\x8B\x08\x00", "gzip"),
        ("a.jsonl", b"\x80\x04\x95", "pickle"),
        ("a.parquet", b"PAR1xx", "Parquet"),
        ("a.bin", b"xx", "does not say what kind"),
    ];
    for (name, bytes, reason) in cases {
        let message = read(name, bytes, &ReadOptions::default()).unwrap_err().to_string();
        assert!(message.contains(reason), "{name}: {message}");
    }
    let message = read("a.jsonl", b"{\"text\":\"\xFF\"}\n", &ReadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("line 1: not UTF-8 from byte 10"), "{message}");
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20));
    assert!(refused("a.jsonl", &long).to_string().contains("at most 1048576"));
    assert!(matches!(read_file(Path::new("no/such.jsonl"), &ReadOptions::default()), Err(Error::Io { .. })));
}

#[test]
fn a_quote_that_is_never_closed_is_refused() {
    let skipping = ReadOptions { skip_bad: true, ..ReadOptions::default() };
    for (rows, line) in [("p,\"c\nx,y\nz,w\n", 3), ("a,b\r\n\r\n\"p,c\r\nx,y", 5), ("\"say \"\"no,c\n", 3)] {
        let text = format!("prompt,completion\n\"q\",a\n{rows}");
        let Err(Error::Data { line: told, what, .. }) = read("a.csv", text.as_bytes(), &skipping) else {
            panic!("{text:?} was read")
        };
        assert_eq!(told, Some(line), "{text:?}");
        assert!(what.contains("never closed"), "{what}");
    }
    let closed = "prompt,completion\na\"\",\"b \"\"quoted\"\"\"\nx\",y \"z\" \"";
    let csv = records("a.csv", closed);
    assert_eq!(csv.records, [(2, pair("a\"\"", "b \"quoted\"")), (3, pair("x\"", "y \"z\" \""))]);
}

#[test]
fn quoted_cells_of_tsv_are_read_as_they_were_written() {
    let text = "\"prompt\"\tcompletion\n\"say \"\"hi\"\"\"\t\"\"\"a\"\"\"\n\"so\" he \"said\"\tb\n\"\tc\n";
    let tsv = records("a.tsv", text);
    let wanted = [(2, pair("say \"hi\"", "\"a\"")), (3, pair("\"so\" he \"said\"", "b")), (4, pair("\"", "c"))];
    assert_eq!(tsv.records, wanted);
}

#[test]
fn columns_without_a_name_hold_nothing() {
    let csv = records("a.csv", "prompt,completion,,\np,c,,\nq,d, ,\n");
    assert_eq!(csv.records, [(2, pair("p", "c")), (3, pair("q", "d"))]);
    let message = refused("a.csv", "prompt,,completion\np,,c\nq,x,d\n").to_string();
    assert!(message.contains("line 3: column 2 holds a value and has no name"), "{message}");
    let seen = preview("a.csv", b"prompt,,completion,\np,,c,\n", &ReadOptions::default(), &nano(), 64, 5).unwrap();
    assert_eq!(
        (seen.columns, seen.rows),
        (vec!["prompt".into(), "completion".into()], vec![vec!["p".into(), "c".into()]])
    );
}

#[test]
fn null_fields_are_absent() {
    let line = r#"{"messages":null,"prompt":"p","completion":"c","text":null}"#;
    assert_eq!(records("a.jsonl", line).records, [(1, pair("p", "c"))]);
    let seen = preview("a.jsonl", line.as_bytes(), &ReadOptions::default(), &nano(), 64, 5).unwrap();
    assert_eq!((seen.kind, seen.bad), ("prompt/completion", 0));
    let alpaca = records("a.jsonl", r#"{"instruction":"i","input":null,"output":"o"}"#);
    assert_eq!(alpaca.records[0].1.turns().unwrap().messages[0].content, "i");
}

#[test]
fn lines_are_counted_however_they_end() {
    for end in ["\n", "\r\n", "\r"] {
        let text = ["", "prompt,completion", "p,\"a", "b\"", "", "", "q,c", "r,d", ""].join(end);
        let lines: Vec<u64> = records("a.csv", &text).records.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 7, 8], "{end:?}");
    }
}

#[test]
fn tool_calls_and_tools_are_objects_to_the_template() {
    let template = "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.content }}\
        {% for call in m.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}";
    let tokenizer = with_template(Some(template));
    let call = r#"{"type":"function","function":{"name":"f","arguments":ARGS}}"#;
    let line = r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":null,"tool_calls":[CALL]}],
        "tools":TOOLS}"#;
    let seen = |arguments: &str, tools: &str| {
        let line = line.replace("CALL", &call.replace("ARGS", arguments)).replace("TOOLS", tools).replace('\n', "");
        marked(&tokenizer, &line)
    };
    let plain = seen(r#"{"city":"Oslo"}"#, r#"[{"name":"f"}]"#);
    assert!(plain.contains(r#"{"city": "Oslo"}"#) && plain.starts_with(r#"[{"name": "f"}]"#), "{plain}");
    assert_eq!(seen(r#""{\"city\":\"Oslo\"}""#, r#""[{\"name\":\"f\"}]""#), plain);
    assert!(seen(r#""half {""#, "[]").contains(r#""half {""#), "text that is no object is text");
    let broken = r#"{"messages":[{"role":"assistant","content":"a"}],"tools":"[{"}"#;
    assert!(refused("a.jsonl", broken).to_string().contains("`tools` is text"));
}

// --- masks ---------------------------------------------------------------------------------------------------------

#[test]
fn the_answer_and_its_end_are_learned_on_nano() {
    let tokenizer = nano();
    assert_eq!((tokenizer.eos_ids(), tokenizer.end_of_turn()), (vec![2], Some(2)));
    assert_eq!(
        marked(&tokenizer, r#"{"prompt":"List files","completion":"ls -l"}"#),
        "<|endoftext|><|im_start|>user\nList files<|im_end|>\n<|im_start|>assistant\n⟦ls -l<|im_end|>⟧\n"
    );
    let chat = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#;
    assert_eq!(
        marked(&tokenizer, &chat.replace('\n', "")),
        "<|endoftext|><|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\
         ⟦b<|im_end|>⟧\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧\n"
    );
    let excluded = chat.replace('\n', "").replace(r#""b""#, r#""b","weight":0"#);
    let text = marked(&tokenizer, &excluded);
    assert!(text.contains("\nb<|im_end|>") && text.contains("⟦d<|im_end|>⟧"), "{text}");
    // What an answer says about end tokens is part of the answer.
    let quoting = r#"{"prompt":"How do turns end?","completion":"with <|im_end|> it says"}"#;
    assert!(marked(&tokenizer, quoting).contains("⟦with <|im_end|> it says<|im_end|>⟧"));
}

#[test]
fn smollm2_has_one_system_message_and_learns_to_stop() {
    let Some(tokenizer) = smollm2() else { return };
    let text = marked(&tokenizer, r#"{"prompt":"Are dogs real?","completion":" Yes.\n"}"#);
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    assert_eq!(
        text,
        format!("{system}<|im_start|>user\nAre dogs real?<|im_end|>\n<|im_start|>assistant\n⟦ Yes.\n<|im_end|>⟧\n")
    );
    // Its padding token is its end token (2): the mask goes by place, so the end is a target all the same.
    let data = encoded(&tokenizer, r#"{"prompt":"Are dogs real?","completion":"Yes."}"#, 512);
    let example = &data.examples[0];
    let ends: Vec<bool> =
        example.ids.iter().zip(&example.supervised).filter(|(id, _)| **id == 2).map(|(_, is)| *is).collect();
    assert_eq!(ends, [false, false, true], "system, user, assistant");
    // The ids before the answer are those of a prompt, and those that transformers gives.
    let prompt = tokenizer.encode_chat(&[Message::new("user", "Are dogs real?")]).unwrap();
    assert!(example.ids.starts_with(&prompt));
    assert_eq!(prompt[..6], [1, 9690, 198, 2683, 359, 253]);
    assert_eq!(prompt.len(), 34);
}

#[test]
fn an_answer_that_begins_with_space_keeps_the_prompts_ids() {
    let tokenizer = nano();
    for completion in ["\nls", "  ls", "\n\n\tls", "é"] {
        let record = serde_json::json!({ "prompt": "x", "completion": completion }).to_string();
        let data = encoded(&tokenizer, &record, 512);
        let prompt = tokenizer.encode_chat(&[Message::new("user", "x")]).unwrap();
        let example = &data.examples[0];
        assert!(example.ids.starts_with(&prompt), "{completion:?}");
        assert_eq!(example.supervised.iter().position(|is| *is), Some(prompt.len()), "{completion:?}");
    }
}

#[test]
fn templates_that_change_the_past_are_followed_or_refused() {
    // As Qwen3 does: an empty thought before the last answer only. And as DeepSeek: a cue that opens a thought.
    let thinking = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}\
        <think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let chat = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
        {"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#;
    let chat = &chat.replace('\n', "");
    assert_eq!(
        marked(&with_template(Some(thinking)), chat),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧\n<|im_start|>user\nc<|im_end|>\n\
         <|im_start|>assistant\n⟦<think></think>d<|im_end|>⟧\n"
    );
    let cueing = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";
    assert!(marked(&with_template(Some(cueing)), chat).contains("assistant\n⟦d<|im_end|>⟧"));
    let counting = "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    let read = records("a.jsonl", chat);
    let options = EncodeOptions { seq_len: 64, use_template: true };
    let message = Dataset::encode(&read, &with_template(Some(counting)), &options).unwrap_err().to_string();
    assert!(message.contains("cannot tell where messages[1] stands"), "{message}");
    // The same template with generation blocks can be used; the end token just behind a block belongs to it.
    let blocks = counting.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }} \
        {%- endgeneration -%}{% else %}{{ m.content }}{% endif %}",
    );
    assert_eq!(
        marked(&with_template(Some(&blocks)), chat),
        "4<|im_start|>a<|im_end|><|im_start|>⟦b<|im_end|>⟧<|im_start|>c<|im_end|><|im_start|>⟦d<|im_end|>⟧"
    );
    // As gpt-oss does: an earlier answer ends differently from the last.
    let changing = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {{ '<|im_end|>' if loop.last else '<|pad|>' }}{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let message = Dataset::encode(&read, &with_template(Some(changing)), &options).unwrap_err().to_string();
    assert!(message.contains("cannot tell where messages[1] stands"), "{message}");
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let message = Dataset::encode(&read, &with_template(Some(endless)), &options).unwrap_err().to_string();
    assert!(message.contains("no end token"), "{message}");
}

#[test]
fn templates_are_sandboxed() {
    let render = |template: &str| {
        let source = format!("{template}{{% if false %}}<|im_end|>{{% endif %}}");
        with_template(Some(&source)).render_chat(&[Message::new("user", "<a> & 'b'")], true)
    };
    assert_eq!(render("{{ messages[0].content.upper().split(' ')[0] }}").unwrap(), "<A>");
    assert_eq!(
        render("{{ messages | tojson }}").unwrap(),
        r#"[{"role": "user", "content": "<a> & 'b'"}]"#,
        "as Python's json.dumps, without HTML escapes"
    );
    assert_eq!(
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").unwrap(),
        "01"
    );
    assert_eq!(render("{{ tools is iterable }} {{ messages is iterable }}").unwrap(), "False True", "as in Python");
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
    let endless = "{% for i in range(9999) %}{% for i in range(9999) %}{% for i in range(99) %}{% endfor %}{% endfor %}\
        {% endfor %}";
    assert!(render(endless).unwrap_err().hint().contains("far more work"));
    let flood = "{% set x = 'x' * 100000 %}{% for i in range(999) %}{{ x }}{% endfor %}";
    let message = render(flood).unwrap_err().to_string();
    assert!(message.contains("longer than") || message.contains("fuel"), "{message}");
    assert!(render("{{ raise_exception('Roles must alternate') }}").unwrap_err().to_string().contains("Roles must"));
}

#[test]
fn broken_templates_and_tokenizers_are_errors() {
    let json =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/tokenizer.json")).unwrap();
    let make = |tokenizer_json: &str, template: Option<&str>, eos: u32| {
        let (tokenizer_json, chat_template) = (tokenizer_json.to_string(), template.map(String::from));
        let files = TokenizerFiles { tokenizer_json, chat_template, eos: vec![eos], ..Default::default() };
        Tokenizer::new(files).err().map(|err| err.to_string()).unwrap_or_default()
    };
    assert!(make("{}", None, 2).starts_with("tokenizer.json"));
    assert!(make(&json, Some("{% for %}"), 2).contains("syntax error"));
    assert!(make(&json, Some("{% include 'x' %}"), 2).contains("syntax error"));
    assert!(make(&json, Some(&"x".repeat(1 << 20)), 2).contains("bytes long"));
    assert!(make(&json, None, 9999).contains("end token 9999"));
}

#[test]
fn without_a_template_a_pair_is_plain_text_with_an_end() {
    let tokenizer = with_template(None);
    assert_eq!(marked(&tokenizer, r#"{"prompt":"Q: x\nA:","completion":" y"}"#), "Q: x\nA:⟦ y<|im_end|>⟧");
    let text = marked(&tokenizer, r#"{"instruction":"i","output":"o"}"#);
    assert_eq!(text, "### Instruction:\ni\n\n### Response:\n⟦o<|im_end|>⟧");
    let all = marked(&tokenizer, r#"{"text":"ls files"}"#);
    assert!(all.ends_with("files<|im_end|>⟧"), "{all}");
    let chat = records("a.jsonl", r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#);
    let options = EncodeOptions { seq_len: 64, use_template: true };
    let message = Dataset::encode(&chat, &tokenizer, &options).unwrap_err().to_string();
    assert!(message.contains("line 1: ") && message.contains("no chat template"), "{message}");
    // And with a template that is switched off.
    let read = records("a.jsonl", r#"{"prompt":"Q","completion":"A"}"#);
    let data = Dataset::encode(&read, &nano(), &EncodeOptions { seq_len: 64, use_template: false }).unwrap();
    assert_eq!(nano().decode(&data.examples[0].ids, false), "QA<|im_end|>");
}

#[test]
fn sentencepiece_texts_are_encoded_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260K/hf/tokenizer.json");
    let Ok(tokenizer_json) = std::fs::read_to_string(&folder) else {
        return common::skipped(&format!("there is no {}", folder.display()));
    };
    let zephyr = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
    for template in [None, Some(zephyr.to_string())] {
        let tokenizer_json = tokenizer_json.clone();
        let (bos, eos) = (Some(1), vec![2]);
        let plain = template.is_none();
        let tokenizer = Tokenizer::new(TokenizerFiles {
            tokenizer_json,
            chat_template: template,
            bos,
            eos,
            add_bos: true,
            ..Default::default()
        })
        .unwrap();
        let data = encoded(&tokenizer, r#"{"prompt":"Once upon","completion":" a time"}"#, 64);
        let example = &data.examples[0];
        let learned: Vec<u32> =
            example.ids.iter().zip(&example.supervised).filter(|(_, is)| **is).map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.decode(&learned, false).trim(), "a time</s>");
        let prompt = match plain {
            true => tokenizer.encode("Once upon", true).unwrap(),
            false => tokenizer.encode_chat(&[Message::new("user", "Once upon")]).unwrap(),
        };
        assert!(example.ids.starts_with(&prompt), "{prompt:?} {:?}", example.ids);
        assert_eq!(prompt[0] == 1, plain, "BOS before plain text");
    }
}

// --- encoding ------------------------------------------------------------------------------------------------------

#[test]
fn truncation_is_counted_and_no_target_is_refused() {
    let tokenizer = nano();
    let short = r#"{"prompt":"a","completion":"b"}"#;
    let long = r#"{"prompt":"a a a a a a a a a a a a a a a a a a a a a a a a a a a a","completion":"b"}"#;
    let data = encoded(&tokenizer, &format!("{short}\n{long}\n{short}\n"), 20);
    let stats = data.stats;
    assert_eq!((stats.records, stats.examples, stats.duplicates), (3, 3, 1));
    assert_eq!((stats.truncated, stats.lost_targets, stats.without_targets), (1, 1, 1));
    let cut = &data.examples[1];
    assert!(cut.truncated && cut.ids.len() == 20 && cut.full_len == stats.longest && cut.targets() == 0);
    let options = EncodeOptions { seq_len: 20, use_template: true };
    let message = Dataset::encode(&records("a.jsonl", long), &tokenizer, &options).unwrap_err().to_string();
    assert!(message.contains("the answers of 1 of 1 examples lie behind the first 20 tokens"), "{message}");
    let unlearned = r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","weight":0}]}"#;
    let message = Dataset::encode(&records("a.jsonl", unlearned), &tokenizer, &options).unwrap_err().to_string();
    assert!(message.contains("nothing to learn"), "{message}");
    let options = EncodeOptions { seq_len: 1, use_template: true };
    assert!(matches!(Dataset::encode(&records("a.jsonl", short), &tokenizer, &options), Err(Error::Setting { .. })));
}

#[test]
fn long_plain_text_goes_on_in_the_next_example() {
    let tokenizer = nano();
    let text: String = (0..100).map(|i| format!("line {i} ")).collect();
    let options = EncodeOptions { seq_len: 16, use_template: true };
    let data = Dataset::encode(&records("a.txt", &text), &tokenizer, &options).unwrap();
    assert_eq!(data.stats.truncated, 0);
    let whole = [tokenizer.encode(text.trim(), true).unwrap(), vec![2]].concat();
    assert_eq!(data.stats.supervised, whole.len() - 1, "every token but the first is a target once");
    let mut joined = vec![whole[0]];
    data.examples.iter().for_each(|example| joined.extend(&example.ids[1..]));
    assert_eq!(joined, whole);
}

#[test]
fn real_files_are_read_whole() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let columns = |prompt: &str, completion: &str| ColumnMap {
        prompt: Some(prompt.into()),
        completion: Some(completion.into()),
        ..ColumnMap::default()
    };
    let cases = [
        ("sst2/dev.tsv", columns("1", "2"), 872),
        ("viggo/valid.csv", columns("mr", "ref"), 714),
        ("tldr_cli/tldr_kubernetes.jsonl", columns("prompt", "command_plain"), 328),
    ];
    for (name, columns, count) in cases {
        let path = shared.join(name);
        if !path.exists() {
            common::skipped(&format!("there is no {}", path.display()));
            continue;
        }
        let read = read_file(&path, &ReadOptions { columns, ..ReadOptions::default() }).unwrap();
        assert_eq!(read.records.len(), count, "{name}");
        let options = EncodeOptions { seq_len: 512, use_template: true };
        let data = Dataset::encode(&read, &nano(), &options).unwrap();
        assert_eq!((data.examples.len(), data.stats.without_targets), (count, 0), "{name}");
    }
}

// --- packing -------------------------------------------------------------------------------------------------------

/// A data set of made-up lengths: ids say which example and which token they are of.
fn made(lengths: &[usize], seq_len: usize) -> Dataset {
    let one = |(i, length): (usize, &usize)| {
        let ids: Vec<u32> = (0..*length).map(|k| (i * 1000 + k + 1) as u32).collect();
        let supervised: Vec<bool> = (0..*length).map(|k| k > 0 && (k % 3 > 0 || k == 1)).collect();
        let full_supervised = supervised.iter().filter(|is| **is).count();
        Example { ids, supervised, truncated: false, line: i as u64 + 1, full_len: *length, full_supervised }
    };
    let examples: Vec<Example> = lengths.iter().enumerate().map(one).collect();
    let stats = Stats { examples: examples.len(), seq_len, ..Stats::default() };
    Dataset { file: "made".into(), examples: std::sync::Arc::new(examples), stats }
}

fn lengths(seed: u64, n: usize, longest: usize) -> Vec<usize> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    (0..n).map(|_| 2 + next() % (longest - 1)).collect()
}

fn check_batch(batch: &Batch, data: &Dataset, seen: &mut [usize]) {
    let n = batch.b * batch.t;
    assert!([batch.ids.len(), batch.targets.len(), batch.positions.len(), batch.spans.len()] == [n; 4]);
    let (mut tokens, mut supervised) = (0, 0);
    let mut at = 0;
    while at < n {
        let [start, end] = batch.spans[at].map(|x| x as usize);
        assert_eq!(start, at, "documents follow each other");
        assert_eq!(start / batch.t, (end - 1) / batch.t, "a document stays in its row");
        if batch.ids[at] == 0 {
            assert_eq!((end, batch.positions[at], batch.targets[at]), (at + 1, 0, IGNORE), "padding");
            at += 1;
            continue;
        }
        let which = batch.ids[at] as usize / 1000;
        let example = &data.examples[which];
        seen[which] += 1;
        assert_eq!(batch.ids[start..end], example.ids);
        for k in 0..end - start {
            let target = if example.supervised.get(k + 1) == Some(&true) { example.ids[k + 1] } else { IGNORE };
            assert_eq!(batch.targets[start + k], target);
            assert_eq!((batch.positions[start + k], batch.spans[start + k]), (k as u32, batch.spans[start]));
            supervised += usize::from(target != IGNORE);
        }
        tokens += end - start;
        at = end;
    }
    assert_eq!((batch.tokens, batch.supervised), (tokens, supervised));
}

#[test]
fn every_example_is_packed_once_an_epoch() {
    for seed in 0..40 {
        let n = 1 + seed as usize * 3;
        let data = made(&lengths(seed, n, 64), 64);
        for (packing, shuffle) in [(true, true), (true, false), (false, true), (false, false)] {
            let options = PackOptions { b: 1 + seed as usize % 5, t: 64, packing, shuffle, seed };
            let batches = Batches::new(&data, options).unwrap();
            for epoch in 0..2 {
                let mut seen = vec![0; n];
                for index in 0..batches.batches_per_epoch() {
                    let index = epoch * batches.batches_per_epoch() + index;
                    check_batch(&batches.batch(index), &data, &mut seen);
                }
                assert!(seen.iter().all(|times| *times == 1), "seed {seed}: {seen:?}");
            }
        }
    }
}

#[test]
fn best_fit_is_close_to_full() {
    let lengths = lengths(7, 500, 100);
    let data = made(&lengths, 128);
    let options = PackOptions { b: 4, t: 128, packing: true, shuffle: true, seed: 1 };
    let rows = Batches::new(&data, options).unwrap().rows();
    let least = lengths.iter().sum::<usize>().div_ceil(128);
    assert!(rows <= least + least / 20 + 1, "{rows} rows where {least} would hold the tokens");
}

#[test]
fn batches_are_a_pure_function_of_seed_and_index() {
    let data = made(&lengths(3, 90, 40), 64);
    let options = PackOptions { b: 2, t: 64, packing: true, shuffle: true, seed: 5 };
    let a = Batches::new(&data, options).unwrap();
    let b = Batches::new(&data, options).unwrap();
    let epoch = a.batches_per_epoch();
    assert_eq!(a.batch(epoch + 3), b.batch(epoch + 3), "without the batches before it");
    let all = |batches: &Batches, from: u64| (from..from + epoch).map(|i| batches.batch(i).ids).collect::<Vec<_>>();
    assert_ne!(all(&a, 0), all(&a, epoch), "another order in another epoch");
    let other = Batches::new(&data, PackOptions { seed: 6, ..options }).unwrap();
    assert_ne!(all(&a, 0), all(&other, 0), "another order for another seed");
}

#[test]
fn no_shuffle_no_packing_is_the_order_of_the_file() {
    let data = made(&[5, 9, 2, 7, 3], 16);
    let options = PackOptions { b: 2, t: 16, packing: false, shuffle: false, seed: 0 };
    let batches = Batches::new(&data, options).unwrap();
    assert_eq!(batches.batches_per_epoch(), 3);
    let first = |index| {
        let batch = batches.batch(index);
        [batch.ids[0] / 1000, batch.ids[16] / 1000]
    };
    assert_eq!([first(0), first(1)], [[0, 1], [2, 3]]);
    let last = batches.batch(2);
    assert_eq!((last.ids[0], last.ids[16], last.tokens), (4001, 0, 3), "an empty row fills the last batch");
    assert_eq!(first(3), first(0), "the next epoch");
}

#[test]
fn packing_settings_are_checked() {
    let data = made(&[5, 9], 16);
    let options = PackOptions { b: 2, t: 8, packing: true, shuffle: true, seed: 0 };
    let message = Batches::new(&data, options).err().unwrap().to_string();
    assert!(message.contains("rows of 8 tokens cannot hold an example of 9"), "{message}");
    assert!(Batches::new(&data, PackOptions { b: 0, t: 16, ..options }).is_err());
    assert!(Batches::new(&data, PackOptions { b: usize::MAX, t: 16, ..options }).is_err());
    assert!(Batches::new(&made(&[1, 1], 16), PackOptions { t: 16, ..options }).is_err(), "no targets");
}

#[test]
fn the_split_keeps_equal_examples_together() {
    let tokenizer = nano();
    let lines: String = (0..60).map(|i| format!("{{\"prompt\":\"p\",\"completion\":\"{}\"}}\n", i % 20)).collect();
    let data = encoded(&tokenizer, &lines, 64);
    for seed in 0..20 {
        let (train, held) = split(&data, Split::Fraction(0.2), seed).unwrap();
        assert_eq!(train.examples.len() + held.examples.len(), 60);
        assert_eq!(held.examples.len(), 12, "four different ones, three times each");
        assert!(held.examples.iter().all(|example| train.examples.iter().all(|other| other.ids != example.ids)));
        assert!(train.examples.is_sorted_by_key(|example| example.line));
        let (again, _) = split(&data, Split::Fraction(0.2), seed).unwrap();
        assert_eq!(train.examples, again.examples);
    }
    assert_eq!(split(&data, Split::Count(9), 1).unwrap().1.examples.len(), 9);
    for wrong in
        [Split::Fraction(0.0), Split::Fraction(1.0), Split::Fraction(f64::NAN), Split::Count(0), Split::Count(60)]
    {
        assert!(matches!(split(&data, wrong, 1), Err(Error::Setting { .. })), "{wrong:?}");
    }
    let same = encoded(&tokenizer, &"{\"prompt\":\"p\",\"completion\":\"c\"}\n".repeat(9), 64);
    let message = split(&same, Split::Count(3), 1).unwrap_err().to_string();
    assert!(message.contains("--val-fraction: 9 examples, all the same"), "{message}");
}

#[test]
fn oversampled_data_are_split_all_the_same() {
    let lines = |times: &[usize]| -> String {
        let record = |(i, n): (usize, &usize)| format!("{{\"prompt\":\"p\",\"completion\":\"{i}\"}}\n").repeat(*n);
        times.iter().enumerate().map(record).collect()
    };
    let data = encoded(&nano(), &lines(&[20, 15, 20, 15]), 64);
    for seed in 0..10 {
        let (train, held) = split(&data, Split::Fraction(0.1), seed).unwrap();
        assert_eq!((train.examples.len(), held.examples.len()), (55, 15), "a smallest group, alone");
        assert!(held.examples.iter().all(|example| train.examples.iter().all(|other| other.ids != example.ids)));
    }
}

// --- text out ------------------------------------------------------------------------------------------------------

#[test]
fn streamed_text_never_shows_half_a_character() {
    for tokenizer in [Some(nano()), smollm2()].into_iter().flatten() {
        for text in ["ls -l 42 files", "héllo — wörld 👩‍👩‍👧 日本語", " leading", "a\n\nb"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut stream = TextStream::default();
            let mut out = String::new();
            for id in &ids {
                let fresh = stream.push(&tokenizer, *id);
                assert!(!fresh.contains('\u{FFFD}'), "{fresh:?}");
                out += &fresh;
            }
            out += &stream.finish(&tokenizer);
            assert_eq!(out, text);
        }
        let broken = tokenizer.encode("👩", false).unwrap();
        let mut stream = TextStream::default();
        assert_eq!(stream.push(&tokenizer, broken[0]), "");
        assert!(!stream.finish(&tokenizer).is_empty(), "what is left is shown in the end");
    }
}

#[test]
fn inspection_shows_ids_masks_and_hidden_characters() {
    let tokenizer = nano();
    let data = encoded(&tokenizer, "{\"prompt\":\"a\\u202Eb\",\"completion\":\"c\"}", 512);
    let example = &data.examples[0];
    let line: serde_json::Value = serde_json::from_str(&example_json(example)).unwrap();
    assert_eq!(line["ids"].as_array().unwrap().len(), line["supervised"].as_array().unwrap().len());
    assert_eq!(line["supervised"].as_array().unwrap().iter().filter(|is| is.as_u64() == Some(1)).count(), 2);
    assert_eq!(line["truncated"], false);
    let text = example_text(&tokenizer, example, false);
    assert!(text.contains("2 of ") && text.contains("⟦c<|im_end|>⟧") && text.contains("\\u{202e}"), "{text}");
    assert!(summary(&data).contains("1 records, 1 examples"), "{}", summary(&data));
    assert!(histogram(&data).contains('█'));
}

fn previewed(name: &str, text: &str, columns: ColumnMap) -> Preview {
    let options = ReadOptions { columns, ..Default::default() };
    preview(name, text.as_bytes(), &options, &nano(), 64, 3).unwrap()
}

fn named(prompt: &str, completion: &str) -> ColumnMap {
    ColumnMap { prompt: Some(prompt.into()), completion: Some(completion.into()), text: None }
}

#[test]
fn a_preview_shows_every_kind_of_file() {
    let pair = r#"{"prompt": "a", "completion": "b", "extra": [1]}"#;
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let sharegpt = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#;
    let alpaca = r#"{"instruction": "a", "output": "b"}"#;
    let text = ColumnMap { text: Some("text".into()), ..Default::default() };
    for (name, content, kind, columns, mapping) in [
        ("a.jsonl", pair, "prompt/completion", vec!["prompt", "completion", "extra"], named("prompt", "completion")),
        ("a.jsonl", chat, "messages", vec!["messages"], ColumnMap::default()),
        ("a.json", &format!("[{sharegpt}]"), "conversations", vec!["conversations"], ColumnMap::default()),
        ("a.jsonl", alpaca, "instruction", vec!["instruction", "output"], named("instruction", "output")),
        (
            "a.csv",
            "prompt,completion\na,b\n",
            "prompt/completion",
            vec!["prompt", "completion"],
            named("prompt", "completion"),
        ),
        ("a.tsv", "text\tnote\na b c\t1\n", "text", vec!["text", "note"], text),
        ("a.txt", "one two three\n\nfour five", "text", vec![], ColumnMap::default()),
    ] {
        let p = previewed(name, content, ColumnMap::default());
        assert_eq!(
            (p.kind, &p.columns, &p.mapping),
            (kind, &columns.iter().map(|c| c.to_string()).collect(), &mapping)
        );
        assert!(p.problems.is_empty() && p.examples > 0 && p.supervised_tokens > 0, "{name}: {p:?}");
    }
    let p = previewed("a.jsonl", pair, ColumnMap::default());
    assert_eq!(p.rows, [["a", "b", "[1]"]]);
}

#[test]
fn a_preview_marks_what_is_learned_and_shows_what_hides() {
    let line = |prompt: &str| format!("{}\n", serde_json::json!({ "prompt": prompt, "completion": "né \u{202E}x" }));
    let long = line(&"word ".repeat(100));
    let text = line("q") + &line("q") + &long + &line("r");
    let p = previewed("a.jsonl", &text, ColumnMap::default());
    assert_eq!((p.examples, p.duplicates, p.truncated, p.records.len(), p.rows.len()), (4, 1, 1, 3, 3));
    let record = &p.records[0];
    assert_eq!((record.line, record.tokens, record.truncated), (1, record.pieces.len(), false));
    let learned: String = record.pieces.iter().filter(|t| t.supervised).map(|t| t.text.as_str()).collect();
    assert_eq!(learned, "né \\u{202e}x<|im_end|>");
    assert_eq!(record.supervised, record.pieces.iter().filter(|t| t.supervised).count());
    assert!(p.records[2].truncated && p.records[2].tokens == 64 && p.longest > 64);
    assert_eq!((p.histogram.edges.len(), p.histogram.counts.iter().sum::<usize>()), (p.histogram.counts.len() + 1, 4));
    assert!(p.histogram.edges[0] <= 1 && *p.histogram.edges.last().unwrap() > p.longest);
}

#[test]
fn a_preview_lists_bad_records_and_refuses_only_whole_files() {
    let text = "{\"prompt\": \"a\", \"completion\": \"b\"}\nnonsense\n\n{\"prompt\": \"a\"}\n";
    let p = previewed("a.jsonl", text, ColumnMap::default());
    let lines: Vec<u64> = p.problems.iter().map(|problem| problem.line).collect();
    assert_eq!((lines, p.bad, p.examples), (vec![2, 4], 2, 1));
    assert!(p.problems[0].message.starts_with("not JSON"), "{:?}", p.problems);

    // Columns of other names are shown before they are mapped, and used once they are.
    let table = "question,reply\nwhy?,because\nhow?,so\n";
    let p = previewed("a.csv", table, ColumnMap::default());
    assert_eq!((p.kind, p.examples, p.bad, p.columns.len(), p.rows.len()), ("unknown", 0, 2, 2, 2));
    let p = previewed("a.csv", table, named("question", "reply"));
    assert_eq!((p.kind, p.examples, p.bad, &p.mapping), ("prompt/completion", 2, 0, &named("question", "reply")));

    let many: String = (0..1500).map(|i| format!("broken {i}\n")).collect();
    let p = previewed("a.jsonl", &many, ColumnMap::default());
    assert_eq!((p.problems.len(), p.bad), (1000, 1500));
    assert_eq!(previewed("a.jsonl", "", ColumnMap::default()).examples, 0);
    for (name, content) in [("a.xyz", "?"), ("a.json", "[{"), ("a.csv", "a,a\n1,2\n")] {
        let refused = preview(name, content.as_bytes(), &ReadOptions::default(), &nano(), 64, 3);
        assert!(refused.is_err(), "{name}: {refused:?}");
    }
}
