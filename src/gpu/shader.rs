//! Assembles a shader's source: prelude, constants, the snippet that reads a weight format, then the file itself with
//! its `#` lines carried out.
//!
//! Register tiles must be single variables: naga writes loops that Metal and DX12 do not unroll, and software drivers
//! keep an array that a loop indexes in memory. So a file may say, a line each, nested as one likes:
//!
//! ```text
//! #for m in TALL          repeats what follows for m = 0 .. TALL, with {m} replaced; `by N` steps by more
//! #if NAME                keeps what follows where the constant is not 0
//! #end
//! #include NAME           puts in shaders/parts/NAME.wgsl, which shaders of one contract share
//! ```
//!
//! `{m+j}` is the sum, and `{NAME}` a constant. Bounds are numbers or constants. Beside the shader's own constants
//! there are SHARED, 1 where LANES says that a subgroup shares its loads, and SINGLE, 1 elsewhere; and HALF and WHOLE,
//! by whether halves are computed with.

use crate::format::WeightFormat;
use crate::plan::Shader;

const PRELUDE: &str = include_str!("../../shaders/prelude.wgsl");

fn load_w(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::F32 => include_str!("../../shaders/load_w/f32.wgsl"),
        WeightFormat::F16 => include_str!("../../shaders/load_w/f16.wgsl"),
        WeightFormat::BF16 => include_str!("../../shaders/load_w/bf16.wgsl"),
        WeightFormat::Q8_0 => include_str!("../../shaders/load_w/q8_0.wgsl"),
        WeightFormat::Q4_0 => include_str!("../../shaders/load_w/q4_0.wgsl"),
        WeightFormat::Q4_1 => include_str!("../../shaders/load_w/q4_1.wgsl"),
    }
}

fn part(name: &str) -> &'static str {
    match name {
        "adamw" => include_str!("../../shaders/parts/adamw.wgsl"),
        "attention" => include_str!("../../shaders/parts/attention.wgsl"),
        "attention_cached" => include_str!("../../shaders/parts/attention_cached.wgsl"),
        "factor" => include_str!("../../shaders/parts/factor.wgsl"),
        "fragments" => include_str!("../../shaders/parts/fragments.wgsl"),
        "fragments_multiply" => include_str!("../../shaders/parts/fragments_multiply.wgsl"),
        "low_rank_gradient" => include_str!("../../shaders/parts/low_rank_gradient.wgsl"),
        "low_rank_project" => include_str!("../../shaders/parts/low_rank_project.wgsl"),
        "low_rank_term" => include_str!("../../shaders/parts/low_rank_term.wgsl"),
        "matmul" => include_str!("../../shaders/parts/matmul.wgsl"),
        "rmsnorm" => include_str!("../../shaders/parts/rmsnorm.wgsl"),
        _ => panic!("no part {name}"),
    }
}

/// The lines of a file, with its parts.
fn lines(source: &'static str) -> Vec<&'static str> {
    let with_parts = |line: &'static str| match line.strip_prefix("#include ") {
        Some(name) => lines(part(name)),
        None => vec![line],
    };
    source.lines().flat_map(with_parts).collect()
}

/// Whether the word stands in a shader's file or in its parts.
pub fn mentions(shader: &Shader, word: &str) -> bool {
    lines(shader.source).iter().any(|line| line.contains(word))
}

/// `consts` are the step's own, beside the shader's.
pub fn assemble(
    shader: &Shader,
    format: Option<WeightFormat>,
    consts: &[(&'static str, u32)],
    workgroup: [u32; 2],
) -> String {
    let lanes = shader.constant("LANES");
    let half = shader.constant("HALF");
    let mut source = String::from(if half > 0 { "enable f16;\n" } else { "" });
    source += if shader.constant("FRAG") > 0 { "enable wgpu_cooperative_matrix;\n" } else { "" };
    // Browsers want the extension named; naga knows the functions and refuses the name.
    source += if cfg!(target_arch = "wasm32") && lanes > 1 { "enable subgroups;\n" } else { "" };
    source += PRELUDE;
    let mut known: Vec<_> = consts.iter().chain(shader.consts).copied().collect();
    if mentions(shader, "WG_X") {
        known.extend([("WG_X", workgroup[0]), ("WG_Y", workgroup[1])]);
    }
    for (name, value) in &known {
        source += &format!("const {name}: u32 = {value}u;\n");
    }
    if let Some(format) = format {
        source += load_w(format);
    }
    known.extend([("SHARED", (lanes > 1) as u32), ("SINGLE", (lanes <= 1) as u32)]);
    known.extend([("HALF", half), ("WHOLE", (half == 0) as u32)]);
    unroll(&lines(shader.source), &known, &mut Vec::new(), &mut source);
    source
}

/// Appends `lines` with their `#` lines carried out and the variables of the loops around them put in.
fn unroll<'a>(lines: &[&'a str], known: &[(&str, u32)], vars: &mut Vec<(&'a str, u32)>, out: &mut String) {
    let value = |word: &str| {
        let constant = || known.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        word.parse().ok().or_else(constant).unwrap_or_else(|| panic!("no constant {word}"))
    };
    let mut rest = lines;
    while let Some((line, after)) = rest.split_first() {
        rest = after;
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, end, by) = match words[..] {
            ["#for", name, "in", end] => (name, value(end), 1),
            ["#for", name, "in", end, "by", by] => (name, value(end), value(by)),
            ["#if", constant] => ("", value(constant).min(1), 1),
            _ => {
                *out += &substitute(line, vars, known);
                out.push('\n');
                continue;
            }
        };
        let (body, after) = rest.split_at(body(rest));
        rest = &after[1..];
        for i in (0..end).step_by(by as usize) {
            vars.push((name, i));
            unroll(body, known, vars, out);
            vars.pop();
        }
    }
}

/// Lines before the `#end` of a block whose opening line was just read.
fn body(lines: &[&str]) -> usize {
    let mut depth = 1;
    let end = lines.iter().position(|line| {
        depth += (line.starts_with("#for") || line.starts_with("#if")) as i32 - line.starts_with("#end") as i32;
        depth == 0
    });
    end.expect("every # block has its #end")
}

/// Puts in `{m}`, `{m+j}` and constants; other braces are WGSL's.
fn substitute(line: &str, vars: &[(&str, u32)], known: &[(&str, u32)]) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        let named = |word: &str| vars.iter().chain(known).find(|(name, _)| *name == word).map(|(_, value)| *value);
        let number = |word: &str| word.parse().ok().or_else(|| named(word));
        let sum = after.split_once('}').and_then(|(inner, tail)| {
            let terms: Option<Vec<u32>> = inner.split('+').map(number).collect();
            Some((terms?.iter().sum::<u32>(), tail))
        });
        match sum {
            Some((sum, tail)) => (out += &sum.to_string(), rest = tail),
            None => (out.push('{'), rest = after),
        };
    }
    out + rest
}

/// Format and constants that make any shader of the tree complete, for the static tests.
pub fn defaults(shader: &Shader) -> (Option<WeightFormat>, Vec<(&'static str, u32)>) {
    let format = mentions(shader, "load_w").then_some(WeightFormat::BF16);
    let consts = if mentions(shader, "HEAD_DIM_4") { vec![("HEAD_DIM_4", 16), ("PER", 2)] } else { vec![] };
    (format, consts)
}
