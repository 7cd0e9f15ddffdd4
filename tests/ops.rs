//! Each kernel family, three ways: its twin against finite differences (or the textbook), the GPU and the f32 twin
//! against the f64 twin on awkward shapes, and (in `tests/shaders.rs`) its `Params` against the shader.

mod common;

#[path = "ops/harness.rs"]
mod harness;

#[path = "ops/activation.rs"]
mod activation;
#[path = "ops/adamw.rs"]
mod adamw;
#[path = "ops/adamw_8bit.rs"]
mod adamw_8bit;
#[path = "ops/attention.rs"]
mod attention;
#[path = "ops/attention_cached.rs"]
mod attention_cached;
#[path = "ops/column_sum.rs"]
mod column_sum;
#[path = "ops/cross_entropy.rs"]
mod cross_entropy;
#[path = "ops/dropout.rs"]
mod dropout;
#[path = "ops/embedding.rs"]
mod embedding;
#[path = "ops/gain.rs"]
mod gain;
#[path = "ops/gather.rs"]
mod gather;
#[path = "ops/layernorm.rs"]
mod layernorm;
#[path = "ops/low_rank.rs"]
mod low_rank;
#[path = "ops/matmul.rs"]
mod matmul;
#[path = "ops/rmsnorm.rs"]
mod rmsnorm;
#[path = "ops/rope.rs"]
mod rope;
#[path = "ops/row_gain.rs"]
mod row_gain;
#[path = "ops/row_squares.rs"]
mod row_squares;
#[path = "ops/rows.rs"]
mod rows;
#[path = "ops/softcap.rs"]
mod softcap;
#[path = "ops/sum_squares.rs"]
mod sum_squares;
