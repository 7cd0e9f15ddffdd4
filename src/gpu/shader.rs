//! Assembles a shader's source: prelude, constants, the snippet that reads a weight format, then the file itself.
//! There is no preprocessor: snippets are prepended, nothing is replaced.

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

pub fn assemble(
    shader: &Shader,
    format: Option<WeightFormat>,
    consts: &[(&'static str, u32)],
    workgroup: [u32; 2],
) -> String {
    let mut source = String::from(PRELUDE);
    for (name, value) in consts {
        source += &format!("const {name}: u32 = {value}u;\n");
    }
    if shader.source.contains("WG_X") {
        source += &format!("const WG_X: u32 = {}u;\nconst WG_Y: u32 = {}u;\n", workgroup[0], workgroup[1]);
    }
    if let Some(format) = format {
        source += load_w(format);
    }
    source + shader.source
}

/// Format and constants that make any shader of the tree complete, for the static tests.
pub fn defaults(shader: &Shader) -> (Option<WeightFormat>, Vec<(&'static str, u32)>) {
    let format = shader.source.contains("load_w").then_some(WeightFormat::BF16);
    let consts = if shader.source.contains("HEAD_DIM_4") { vec![("HEAD_DIM_4", 16)] } else { vec![] };
    (format, consts)
}
