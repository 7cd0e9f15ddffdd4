//! `luthier generate`: one prompt is streamed as it is written; several are decoded together and shown one by one.

use super::{ComputeArgs, ModelArg, count, say};
use indicatif::ProgressBar;
use luthier::data::TextStream;
use luthier::model::generate::Sampling;
use luthier::session::{Likely, SEQUENCES, Session, Text};
use luthier::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// An adapter's folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What to go on from; may be given several times.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts_file", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Prompts: .jsonl with "prompt" and, to be compared with, "completion"; else one a line.
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// Put the prompts through the model's chat template, as a user's message.
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: ComputeArgs,
    /// One JSON object a prompt.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
struct SamplingArgs {
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// 0 always takes the likeliest token; 1 draws as the model says.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the likeliest tokens that make up this share.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Draw from the K likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    fn checked(&self) -> Result<Sampling> {
        let SamplingArgs { max_new_tokens, temperature, top_p, top_k, seed } = *self;
        let sampling = Sampling { temperature, top_p, top_k, seed, max_new_tokens };
        sampling.check().map(|()| sampling)
    }
}

/// What to go on from, and what would be right.
struct Prompt {
    text: String,
    expected: Option<String>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let sampling = args.sampling.checked()?;
    let prompts = prompts(&args)?;
    let mut session = args.model.session(args.device.open()?, args.adapter.as_deref(), &Likely::ANSWERS)?;
    if !args.chat && !args.json && session.tokenizer.chat_template().is_some() {
        eprintln!("note: this model has a chat template; with --chat the prompt goes through it");
    }
    let started = Instant::now();
    let tokens = match &prompts[..] {
        [prompt] if !args.json => stream(&mut session, prompt, args.chat, &sampling)?,
        _ => list(&mut session, &prompts, &args, &sampling)?,
    };
    if !args.json {
        eprintln!("{}", speed(tokens, started.elapsed()));
    }
    Ok(ExitCode::SUCCESS)
}

fn speed(tokens: usize, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(1e-6);
    format!("{} in {seconds:.2} s: {:.1} tokens/s", count(tokens, "token"), tokens as f64 / seconds)
}

fn prompts(args: &Args) -> Result<Vec<Prompt>> {
    let mut all: Vec<Prompt> = args.prompt.iter().map(|p| Prompt { text: p.clone(), expected: None }).collect();
    if let Some(file) = &args.prompts_file {
        all.extend(read_prompts(file)?);
    }
    Ok(all)
}

fn read_prompts(file: &Path) -> Result<Vec<Prompt>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(&name, e))?;
    let json = file.extension().is_some_and(|e| e == "jsonl" || e == "json");
    let bad = |line: Option<u64>, what: String| {
        let hint = r#"a line is {"prompt": "…"}, with "completion" to compare the answer with"#.into();
        Error::Data { file: name.clone(), line, what, hint }
    };
    let lines = (1u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.map(|(number, line)| match json {
        true => json_prompt(line).map_err(|what| bad(Some(number), what)),
        false => Ok(Prompt { text: line.to_string(), expected: None }),
    });
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() { Err(bad(None, "there is no prompt in this file".into())) } else { Ok(prompts) }
}

fn json_prompt(line: &str) -> Result<Prompt, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let field = |name: &str| value[name].as_str().map(String::from);
    let text = field("prompt").ok_or("there is no text called \"prompt\"")?;
    Ok(Prompt { text, expected: field("completion") })
}

/// Writes an answer to stdout as it comes; returns its tokens.
fn stream(session: &mut Session, prompt: &Prompt, chat: bool, sampling: &Sampling) -> Result<usize> {
    let ids = session.prompt_ids(&prompt.text.as_str().into(), chat, sampling.max_new_tokens)?;
    let tokenizer = session.tokenizer.clone();
    let (mut text, mut out) = (TextStream::default(), std::io::stdout());
    let mut show = |text: String| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
    let on_token = |_, id| show(text.push(&tokenizer, id));
    let generated = block_on(session.generate_ids(&[ids], true, sampling, on_token))?;
    show(text.finish(&tokenizer) + "\n");
    Ok(generated.iter().map(|g| g.ids.len()).sum())
}

/// Answers all prompts, a group at a time; returns their tokens.
fn list(session: &mut Session, prompts: &[Prompt], args: &Args, sampling: &Sampling) -> Result<usize> {
    let bar = ProgressBar::new(prompts.len() as u64);
    let (mut tokens, mut exact) = (0, 0);
    for group in prompts.chunks(SEQUENCES) {
        let texts: Vec<_> = group.iter().map(|p| p.text.as_str().into()).collect();
        let answers = block_on(session.generate(&texts, args.chat, true, sampling))?;
        for (prompt, answer) in group.iter().zip(&answers) {
            tokens += answer.tokens;
            exact += usize::from(matches(prompt, answer) == Some(true));
            let line = if args.json { line_json(prompt, answer) } else { line_text(prompt, answer) };
            if !bar.suspend(|| say(line)) {
                return Ok(tokens); // nobody reads on
            }
        }
        bar.inc(group.len() as u64);
    }
    bar.finish_and_clear();
    let compared = prompts.iter().filter(|p| p.expected.is_some()).count();
    if compared > 0 {
        say(match args.json {
            true => json!({ "prompts": prompts.len(), "compared": compared, "exact_matches": exact }).to_string(),
            false => format!("exact match: {exact} of {compared} ({:.1} %)", 100.0 * exact as f64 / compared as f64),
        });
    }
    Ok(tokens)
}

/// Whether the answer is the expected one, but for white space around it.
fn matches(prompt: &Prompt, answer: &Text) -> Option<bool> {
    prompt.expected.as_ref().map(|expected| expected.trim() == answer.text.trim())
}

fn line_json(prompt: &Prompt, answer: &Text) -> String {
    let mut line = json!({
        "prompt": prompt.text, "text": answer.text, "tokens": answer.tokens, "finish": answer.finish,
    });
    if let Some(same) = matches(prompt, answer) {
        line["expected"] = json!(prompt.expected);
        line["exact_match"] = json!(same);
    }
    line.to_string()
}

fn line_text(prompt: &Prompt, answer: &Text) -> String {
    let wrong = match (matches(prompt, answer), &prompt.expected) {
        (Some(false), Some(expected)) => format!("\n  expected: {}", expected.trim()),
        _ => String::new(),
    };
    format!("> {}\n{}{wrong}\n", prompt.text, answer.text.trim_end())
}
