//! Generation: prompts through the cache and tokens one after the other, alone and 32 side by side, and what it saves
//! to ask 200 prompts at once instead of one by one.

use super::nets::{self, Net};
use super::report::{Column, Row, row};
use super::{Case, Machine};
use luthier::Result;
use luthier::clock::Instant;
use luthier::format::WeightFormat::{self, BF16, Q4_0};
use luthier::model::Base;
use luthier::model::generate::{Generator, Request, Sampling};
use luthier::session::SEQUENCES;

pub const COLUMNS: &[Column] = &[
    Column::text("net", "net", 12),
    Column::text("weights", "weights", 7),
    Column::number("prompts", "prompts", 0),
    Column::number("side_by_side", "at a time", 0),
    Column::number("prompt_tokens", "tokens in", 0),
    Column::number("new_tokens", "out", 0),
    Column::number("prefill_per_s", "in/s", 0),
    Column::share("prefill_of_limit", "of limit"),
    Column::number("decode_per_s", "out/s", 1),
    Column::share("decode_of_limit", "of limit"),
    Column::number("seconds", "seconds", 2),
    Column::number("gain", "gain", 2),
];

#[derive(Clone, Copy)]
struct Asking {
    net: Net,
    format: WeightFormat,
    prompts: usize,
    side_by_side: usize,
    prompt_tokens: usize,
    new_tokens: usize,
}

pub fn cases(machine: &Machine) -> Vec<Case> {
    let one =
        Asking { net: nets::SMOLLM2, format: BF16, prompts: 1, side_by_side: 1, prompt_tokens: 128, new_tokens: 32 };
    let many = Asking { prompts: 32, side_by_side: 32, ..one };
    let answers = Asking { prompts: 200, side_by_side: SEQUENCES, prompt_tokens: 48, new_tokens: 16, ..one };
    let all = [
        (1, one),
        (2, many),
        (2, Asking { format: Q4_0, ..one }),
        (3, Asking { format: Q4_0, ..many }),
        (3, Asking { net: nets::LLAMA_1B, ..one }),
        (2, answers),
    ];
    let case = |(importance, asking): (u8, Asking)| Case {
        name: asking.name(),
        section: "generate",
        columns: COLUMNS,
        importance,
        gflop: asking.flops() / 1e9,
        run: Box::new(move |machine| asking.run(machine)),
    };
    all.into_iter().filter(|(_, asking)| machine.args.wants(&asking.name())).map(case).collect()
}

impl Asking {
    fn name(&self) -> String {
        let Asking { net, format, prompts, side_by_side, .. } = self;
        format!("generate {} {} {prompts} prompts, {side_by_side} at a time", net.name, format.name())
    }

    /// A cache row a token, the head a prompt and a new token.
    fn flops(&self) -> f64 {
        let tokens = (self.prompt_tokens + self.new_tokens) as f64;
        2.0 * self.prompts as f64 * (self.net.linears() * tokens + self.net.head() * self.new_tokens as f64)
    }

    fn ids(&self) -> Vec<Vec<u32>> {
        let id = |i: usize| ((i * 7 + 3) % self.net.spec().vocab) as u32;
        (0..self.prompts).map(|p| (0..self.prompt_tokens).map(|i| id(p * 31 + i)).collect()).collect()
    }

    fn run(&self, machine: &Machine) -> Result<Vec<Row>> {
        let mut base = nets::planned(&self.net, self.format, machine.device()?);
        nets::fill(&mut base)?;
        let capacity = (self.prompt_tokens + self.new_tokens).next_multiple_of(64);
        let generator = pollster::block_on(Generator::new(&mut base, None, self.side_by_side, capacity))?;
        let prompts = self.ids();
        // What comes first compiles and touches everything for the first time.
        self.ask(&mut base, &generator, &prompts[..1])?;
        let took: Vec<Took> = prompts
            .chunks(self.side_by_side)
            .map(|group| self.ask(&mut base, &generator, group))
            .collect::<Result<_>>()?;
        let sum = |part: fn(&Took) -> f64| took.iter().map(part).sum::<f64>();
        let (prefill_ms, decode_ms) = (sum(|t| t.prefill_ms), sum(|t| t.decode_ms));
        let alone = self.ask(&mut base, &generator, &prompts[..1])?;
        let gain = self.prompts as f64 * (alone.prefill_ms + alone.decode_ms) / (prefill_ms + decode_ms);
        let ideal = |name: &str| {
            let sequence = base.plan.sequences.iter().find(|sequence| sequence.name == name);
            sequence.map(|sequence| machine.limits.ideal_ms_of(sequence.steps.iter()))
        };
        let groups = took.len() as f64;
        let chunks = (self.prompt_tokens * self.side_by_side).div_ceil(CHUNK) as f64 * groups;
        let decodes = (self.new_tokens - 1) as f64 * groups;
        machine.took(self.flops() / 1e9, prefill_ms + decode_ms);
        Ok(vec![row([
            ("case", self.name().into()),
            ("net", self.net.name.into()),
            ("weights", self.format.name().into()),
            ("prompts", self.prompts.into()),
            ("side_by_side", self.side_by_side.into()),
            ("prompt_tokens", self.prompt_tokens.into()),
            ("new_tokens", self.new_tokens.into()),
            ("prefill_per_s", ((self.prompts * self.prompt_tokens) as f64 / prefill_ms * 1e3).into()),
            ("prefill_of_limit", ideal("prefill").map(|ms| ms * chunks / prefill_ms).into()),
            ("decode_per_s", ((self.prompts * (self.new_tokens - 1)) as f64 / decode_ms * 1e3).into()),
            ("decode_of_limit", ideal("decode").map(|ms| ms * decodes / decode_ms).into()),
            ("seconds", ((prefill_ms + decode_ms) / 1e3).into()),
            ("gain", (self.prompts > 1).then_some(gain).into()),
        ])])
    }

    /// Answers of full length: no token ends one.
    fn ask(&self, base: &mut Base, generator: &Generator, prompts: &[Vec<u32>]) -> Result<Took> {
        let sampling = Sampling { max_new_tokens: self.new_tokens, ..Default::default() };
        let request = Request { prompts, first: 0, adapted: false, stop: &[], sampling: &sampling };
        let start = Instant::now();
        let mut prefill_ms = None;
        let mut on_token = |_, _| {
            prefill_ms.get_or_insert(start.elapsed_ms());
            true
        };
        pollster::block_on(generator.run(base, request, &mut on_token))?;
        let prefill_ms = prefill_ms.expect("an answer has a first token");
        Ok(Took { prefill_ms, decode_ms: start.elapsed_ms() - prefill_ms })
    }
}

/// Rows that a prompt goes in by (`model::generate`).
const CHUNK: usize = 64;

/// Milliseconds until the first token, and from there to the last.
struct Took {
    prefill_ms: f64,
    decode_ms: f64,
}
