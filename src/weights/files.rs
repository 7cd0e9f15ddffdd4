//! A model as people have it: a Hugging Face folder, a .gguf file, or a handful of files dropped on the page.

use super::checkpoint::Checkpoint;
use super::gguf::Gguf;
use super::gguf_tokenizer;
use super::safetensors;
use super::source::Source;
use super::{TokenizerFiles, foreign, malformed, unsupported};
use crate::{Error, Result};
use serde_json::Value;

/// Large vocabularies make a tokenizer.json of tens of megabytes; the other files are small.
const MAX_TOKENIZER: u64 = 256 << 20;
const MAX_JSON: u64 = 16 << 20;

/// Files that go with the weights wherever they go.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

#[derive(Clone)]
pub enum ModelFiles {
    Hf {
        config: Value,
        checkpoint: Checkpoint,
        tokenizer: TokenizerFiles,
        /// Tokenizer and generation settings as they are.
        companions: Vec<Source>,
    },
    Gguf {
        gguf: Gguf,
        tokenizer: TokenizerFiles,
    },
}

impl ModelFiles {
    /// A folder or a .gguf file.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<ModelFiles> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let sources = if path.is_dir() { folder(path)? } else { vec![Source::file(path)?] };
        pollster::block_on(ModelFiles::from_sources(&name, sources))
    }

    /// Files by their names; `name` is what errors call them together.
    pub async fn from_sources(name: &str, sources: Vec<Source>) -> Result<ModelFiles> {
        let ends = |end: &str| sources.iter().filter(|s| s.file_name().ends_with(end)).collect::<Vec<_>>();
        let ggufs = ends(".gguf");
        if ends(".safetensors").is_empty() && !ggufs.is_empty() {
            let [gguf] = ggufs[..] else {
                let names = ggufs.iter().map(|s| s.file_name()).collect::<Vec<_>>().join(", ");
                let what = format!("{} GGUF files: {names}", ggufs.len());
                return Err(unsupported(name, what, "name the one to open"));
            };
            let gguf = Gguf::open(gguf.clone()).await?;
            let tokenizer = gguf_tokenizer::tokenizer_files(&gguf)?;
            return Ok(ModelFiles::Gguf { gguf, tokenizer });
        }
        let Some(config) = find(&sources, "config.json") else { return Err(no_model(name, &sources).await) };
        let config = json(config).await?;
        let checkpoint = open_weights(name, &sources).await?;
        let tokenizer = tokenizer_files(name, &sources).await?;
        let companion = |source: &&Source| COMPANIONS.contains(&source.file_name());
        let companions = sources.iter().filter(companion).cloned().collect();
        Ok(ModelFiles::Hf { config, checkpoint, tokenizer, companions })
    }

    pub fn tokenizer(&self) -> &TokenizerFiles {
        match self {
            ModelFiles::Hf { tokenizer, .. } | ModelFiles::Gguf { tokenizer, .. } => tokenizer,
        }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        match self {
            ModelFiles::Hf { checkpoint, .. } => checkpoint,
            ModelFiles::Gguf { gguf, .. } => &gguf.checkpoint,
        }
    }
}

/// The files of a folder that can belong to a model.
#[cfg(not(target_arch = "wasm32"))]
pub fn folder(path: &std::path::Path) -> Result<Vec<Source>> {
    let failed = |e| Error::io(path.display().to_string(), e);
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let wanted = ["json", "jinja", "txt", "safetensors", "gguf", "bin", "pt", "pth", "model"];
        if file.is_file() && wanted.contains(&ending) {
            sources.push(Source::file(file)?);
        }
    }
    sources.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(sources)
}

fn find<'a>(sources: &'a [Source], name: &str) -> Option<&'a Source> {
    sources.iter().find(|s| s.file_name() == name)
}

async fn json(source: &Source) -> Result<Value> {
    let text = source.text(MAX_JSON).await?;
    let at = |e: &serde_json::Error| format!("line {}", e.line());
    let value: Value =
        serde_json::from_str(&text).map_err(|e| malformed(source.name(), at(&e), format!("not JSON: {e}")))?;
    if !value.is_object() {
        return Err(malformed(source.name(), "line 1", "not a JSON object"));
    }
    Ok(value)
}

/// Nothing that can be opened: says what it is instead, where that can be told.
async fn no_model(name: &str, sources: &[Source]) -> Error {
    for source in sources.iter().filter(|s| !s.file_name().ends_with(".json")) {
        let head = source.read(0, source.len().min(32) as usize).await.unwrap_or_default();
        if let Some((what, hint)) = foreign(&head) {
            return unsupported(source.name(), what, hint);
        }
    }
    let hint = "a model is a folder with config.json, tokenizer.json and *.safetensors, or one .gguf file; \
                an adapter's folder goes with its base model";
    unsupported(name, "no config.json and no .gguf file: not a model", hint)
}

async fn open_weights(name: &str, sources: &[Source]) -> Result<Checkpoint> {
    let index = find(sources, "model.safetensors.index.json");
    let single = find(sources, "model.safetensors");
    let all = sources.iter().filter(|s| s.file_name().ends_with(".safetensors"));
    let shards: Vec<Source> = match (single, index) {
        (Some(single), None) => vec![single.clone()],
        _ => all.filter(|s| !s.file_name().starts_with("adapter_")).cloned().collect(),
    };
    if shards.is_empty() && index.is_none() {
        let no_weights = unsupported(name, "no .safetensors file", "put model.safetensors beside config.json");
        let other = sources.iter().any(|s| [".bin", ".pt", ".pth"].iter().any(|end| s.file_name().ends_with(end)));
        return Err(if other { no_model(name, sources).await } else { no_weights });
    }
    safetensors::open(shards, index).await
}

/// The tokenizer of a Hugging Face folder.
pub async fn tokenizer_files(name: &str, sources: &[Source]) -> Result<TokenizerFiles> {
    let Some(tokenizer) = find(sources, "tokenizer.json") else {
        let hint = "write one with transformers: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`";
        return Err(unsupported(name, "no tokenizer.json", hint));
    };
    let tokenizer_json = tokenizer.text(MAX_TOKENIZER).await?;
    let parsed: Value = serde_json::from_str(&tokenizer_json)
        .map_err(|e| malformed(tokenizer.name(), format!("line {}", e.line()), format!("not JSON: {e}")))?;
    let settings = optional_json(sources, "tokenizer_config.json").await?;
    let configs =
        [optional_json(sources, "generation_config.json").await?, optional_json(sources, "config.json").await?];
    let vocab = configs[1]["vocab_size"].as_u64().and_then(|n| usize::try_from(n).ok());
    let token = |key: &str| token_text(&settings[key]).and_then(|text| token_id(&parsed, text));
    let configured = |key: &str| configs.iter().flat_map(|config| ids(&config[key])).collect::<Vec<u32>>();

    let mut eos: Vec<u32> = token("eos_token").into_iter().chain(configured("eos_token_id")).collect();
    let mut seen = Vec::new();
    eos.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    let bos = token("bos_token").or_else(|| configured("bos_token_id").first().copied());
    Ok(TokenizerFiles {
        chat_template: chat_template(sources, &settings).await?,
        bos,
        eos,
        add_bos: settings["add_bos_token"].as_bool().unwrap_or_else(|| starts_with_bos(&parsed, bos)),
        pad: token("pad_token").or_else(|| configured("pad_token_id").first().copied()),
        tokenizer_json,
        vocab,
    })
}

async fn optional_json(sources: &[Source], name: &str) -> Result<Value> {
    match find(sources, name) {
        Some(source) => json(source).await,
        None => Ok(Value::Null),
    }
}

/// A token is told as a string or as an object with its content.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn token_id(tokenizer: &Value, text: &str) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let id = added.filter(|t| t["content"] == text).map(|t| &t["id"]).next();
    id.unwrap_or(&tokenizer["model"]["vocab"][text]).as_u64().and_then(|id| u32::try_from(id).ok())
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

/// Whether the post-processor of tokenizer.json, or one of its parts, puts `bos` in front.
fn starts_with_bos(tokenizer: &Value, bos: Option<u32>) -> bool {
    let processor = &tokenizer["post_processor"];
    let parts = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let first = |part: &Value| token_id(tokenizer, part["single"][0]["SpecialToken"]["id"].as_str()?);
    bos.is_some() && parts.iter().any(|part| first(part) == bos)
}

/// The file of its own wins; in tokenizer_config.json it is a string or a list of named ones.
async fn chat_template(sources: &[Source], settings: &Value) -> Result<Option<String>> {
    if let Some(file) = find(sources, "chat_template.jinja") {
        return file.text(MAX_JSON).await.map(Some);
    }
    let value = &settings["chat_template"];
    let named = value.as_array().and_then(|list| list.iter().find(|t| t["name"] == "default").or(list.first()));
    let text = named.map_or(value, |t| &t["template"]).as_str();
    Ok(text.map(String::from))
}
