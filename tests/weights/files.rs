//! Models as people have them: folders, single files, files dropped on a page.

use super::support::*;
use luthier::weights::{ModelFiles, Source, TokenizerFiles, files};

const TOKENIZER: &str = r#"{"version":"1.0","added_tokens":[{"id":7,"content":"<eos>"},{"id":8,"content":"<bos>"}],
    "model":{"type":"BPE","vocab":{"<pad>":3,"a":0},"merges":[]}}"#;

fn tokenizer(others: &[(&str, &str)]) -> TokenizerFiles {
    let all = [("tokenizer.json", TOKENIZER)].into_iter().chain(others.iter().copied());
    let sources: Vec<Source> = all.map(|(name, text)| Source::bytes(name, text.as_bytes())).collect();
    block_on(files::tokenizer_files("model", &sources)).unwrap()
}

fn refused(folder: &TempDir) -> String {
    let Err(error) = ModelFiles::open(&folder.0) else { panic!("accepted") };
    assert!(!error.hint().is_empty(), "{error}");
    error.to_string()
}

fn one_tensor() -> Vec<u8> {
    safetensors_file(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4)
}

#[test]
fn tokens_are_told_in_many_ways() {
    let settings = r#"{"bos_token":{"content":"<bos>"},"eos_token":"<eos>","pad_token":"<pad>","add_bos_token":true}"#;
    let files = tokenizer(&[
        ("tokenizer_config.json", settings),
        ("generation_config.json", r#"{"eos_token_id":[9,7]}"#),
        ("config.json", r#"{"eos_token_id":9,"bos_token_id":1}"#),
    ]);
    assert_eq!((files.bos, files.pad, files.add_bos), (Some(8), Some(3), true));
    assert_eq!(files.eos, [7, 9]);

    let files = tokenizer(&[("config.json", r#"{"eos_token_id":2,"bos_token_id":1,"pad_token_id":null}"#)]);
    assert_eq!((files.bos, &files.eos[..], files.pad, files.add_bos), (Some(1), &[2][..], None, false));
}

#[test]
fn a_post_processor_can_ask_for_bos() {
    let template = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<bos>","type_id":0}}]}"#;
    for processor in [template.to_string(), format!(r#"{{"type":"Sequence","processors":[{{}},{template}]}}"#)] {
        let text = TOKENIZER.replacen('{', &format!(r#"{{"post_processor":{processor},"#), 1);
        let sources = [
            Source::bytes("tokenizer.json", text.into_bytes()),
            Source::bytes("tokenizer_config.json", br#"{"bos_token":"<bos>"}"#.as_slice()),
        ];
        assert!(block_on(files::tokenizer_files("model", &sources)).unwrap().add_bos);
    }
}

#[test]
fn chat_templates_lie_in_three_places() {
    let list = r#"{"chat_template":[{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]}"#;
    let template = |files: &[(&str, &str)]| tokenizer(files).chat_template;
    assert_eq!(template(&[]), None);
    assert_eq!(template(&[("tokenizer_config.json", r#"{"chat_template":"S"}"#)]).as_deref(), Some("S"));
    assert_eq!(template(&[("tokenizer_config.json", list)]).as_deref(), Some("D"));
    assert_eq!(template(&[("tokenizer_config.json", list), ("chat_template.jinja", "J")]).as_deref(), Some("J"));
}

#[test]
fn folders_that_are_no_models_say_what_they_lack() {
    let folder = TempDir::new("folder");
    assert!(refused(&folder).contains("no config.json"));
    folder.write("pytorch_model.bin", b"PK\x03\x04............");
    assert!(refused(&folder).contains("zip"));
    folder.write("config.json", "[]");
    assert!(refused(&folder).contains("not a JSON object"));
    folder.write("config.json", r#"{"model_type":"llama"}"#);
    assert!(refused(&folder).contains("zip"));
    std::fs::remove_file(folder.0.join("pytorch_model.bin")).unwrap();
    assert!(refused(&folder).contains("no .safetensors"));
    folder.write("model.safetensors", one_tensor());
    assert!(refused(&folder).contains("no tokenizer.json"));
    folder.write("tokenizer.json", "{");
    assert!(refused(&folder).contains("not JSON"));
    folder.write("tokenizer.json", TOKENIZER);
    assert!(ModelFiles::open(&folder.0).is_ok());
    assert!(ModelFiles::open(folder.0.join("absent")).is_err());
}

#[test]
fn a_folder_of_shards_names_the_missing_ones() {
    let folder = TempDir::new("shards");
    folder.write("config.json", "{}");
    folder.write("tokenizer.json", TOKENIZER);
    let map = r#"{"weight_map":{"w":"model-1.safetensors","v":"model-2.safetensors"}}"#;
    folder.write("model.safetensors.index.json", map);
    assert!(refused(&folder).contains("shard 'model-1.safetensors' is missing\n  shard 'model-2.safetensors'"));
    folder.write("model-1.safetensors", one_tensor());
    assert!(refused(&folder).contains("shard 'model-2.safetensors' is missing"));
}

#[test]
fn two_gguf_files_are_one_too_many() {
    let folder = TempDir::new("ggufs");
    folder.write("a.gguf", GgufFile::new().bytes());
    folder.write("b.gguf", GgufFile::new().bytes());
    assert!(refused(&folder).contains("2 GGUF files"));
}

#[test]
fn real_models_open() {
    for (path, tensors, bos, eos) in [
        ("models/nano", 56, Some(0), 2),
        ("models/stories260K/hf", 47, Some(1), 2),
        ("models/SmolLM2-135M-Instruct-Q4_1/SmolLM2-135M-Instruct.Q4_1.gguf", 272, Some(1), 2),
        ("models/SmolLM2-135M-Instruct-Q4_1", 272, Some(1), 2),
    ] {
        let Some(path) = shared(path) else { continue };
        let model = ModelFiles::open(&path).unwrap();
        assert_eq!(model.checkpoint().tensors.len(), tensors, "{}", path.display());
        assert_eq!((model.tokenizer().bos, &model.tokenizer().eos[..]), (bos, &[eos][..]), "{}", path.display());
        let checkpoint = model.checkpoint();
        for info in checkpoint.tensors.values() {
            let format = info.stored.default_format();
            let words = block_on(checkpoint.read_rows(info, info.rows() - 1, 1, format)).unwrap();
            assert_eq!(words.len(), format.words(info.cols() as usize), "{}", info.name);
        }
    }
}
