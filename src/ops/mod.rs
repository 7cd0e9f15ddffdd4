//! Kernels: one file a family, with its `Params`, the wrappers that append steps to a plan, and the CPU twins.
//!
//! A twin is written once, generic over the float: in f64 it is the reference of the tests, in f32 it is the CPU back
//! end. The contract of each kernel (math, shapes, what is overwritten) is the header of `shaders/NAME.wgsl`.
//!
//! Letters: B batch, T time, N rows (= B·T), C channels, H query heads, G kv heads, D head dim, F feed-forward,
//! V vocab, L layers, R rank, I/O a linear's width in and out, M supervised rows. `d` before a name: its gradient.

// A kernel takes its sizes and its buffers; a struct for each would say the same twice.
#![allow(clippy::too_many_arguments)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod attention_cached;
pub mod column_sum;
pub mod control;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gain;
pub mod gather;
pub mod layernorm;
pub mod lora_grad;
pub mod matmul;
pub mod par;
pub mod product;
pub mod rmsnorm;
pub mod rope;
pub mod row_gain;
pub mod row_squares;
pub mod rows;
pub mod softcap;
pub mod sum_squares;

use crate::plan::Kernel;

/// Declares a kernel's `Params` with its field names, which a test compares with the shader's struct.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ident),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        impl $name {
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($ty))),*];
        }
    };
}
pub(crate) use params;

/// Declares a kernel: name, entry point, bindings, params, shaders, twin.
macro_rules! kernel {
    ($ident:ident, $name:literal, $entry:literal, [$($access:ident),*], $params:ty, [$($style:ident $file:literal $tile:expr),*], $twin:ident) => {
        pub static $ident: crate::plan::Kernel = crate::plan::Kernel {
            name: $name,
            entry: $entry,
            access: &[$(crate::plan::Access::$access),*],
            fields: <$params>::FIELDS,
            shaders: &[$(crate::plan::Shader {
                style: crate::plan::Style::$style,
                source: include_str!(concat!("../../shaders/", $file, ".wgsl")),
                tile: $tile,
            }),*],
            f32: $twin::<f32>,
            f64: $twin::<f64>,
        };
    };
}
pub(crate) use kernel;

/// Every kernel there is; the static tests walk this list.
pub static KERNELS: &[&Kernel] = &[
    &activation::FORWARD,
    &activation::BACKWARD,
    &activation::FORWARD_PLAIN,
    &activation::BACKWARD_PLAIN,
    &adamw::ADAMW,
    &attention::FORWARD,
    &attention::DELTA,
    &attention::BACKWARD_Q,
    &attention::BACKWARD_KV,
    &attention_cached::APPEND,
    &attention_cached::FORWARD,
    &column_sum::ACCUMULATE,
    &cross_entropy::FORWARD,
    &cross_entropy::BACKWARD,
    &cross_entropy::REPORT,
    &dropout::FORWARD,
    &dropout::BACKWARD,
    &embedding::FORWARD,
    &gain::FORWARD,
    &gain::BACKWARD,
    &gather::FORWARD,
    &gather::BACKWARD,
    &layernorm::FORWARD,
    &layernorm::BACKWARD,
    &lora_grad::ACCUMULATE,
    &matmul::FORWARD,
    &matmul::BACKWARD,
    &rmsnorm::FORWARD,
    &rmsnorm::BACKWARD,
    &rope::FORWARD,
    &rope::BACKWARD,
    &row_gain::FORWARD,
    &row_squares::FORWARD,
    &rows::FORWARD,
    &rows::BACKWARD,
    &softcap::FORWARD,
    &sum_squares::PARTIAL,
    &sum_squares::FINISH,
];
