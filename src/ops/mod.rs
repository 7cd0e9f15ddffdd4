//! Kernels: one file a family, with its `Params`, the wrappers that append steps to a plan, and the CPU twins.
//!
//! A twin is written once, generic over the float: in f64 it is the reference of the tests, in f32 it is the CPU back
//! end. The contract of each kernel (math, shapes, what is overwritten) is the header of `shaders/NAME.wgsl`,
//! or of the part in `shaders/parts` that several share.
//!
//! Letters: B batch, T time, N rows (= B·T), C channels, H query heads, G kv heads, D head dim, F feed-forward,
//! V vocab, L layers, R rank, I/O a linear's width in and out, M supervised rows. `d` before a name: its gradient.

// A kernel takes its sizes and its buffers; a struct for each would say the same twice.
#![allow(clippy::too_many_arguments)]

pub mod activation;
pub mod adamw;
pub mod adamw_8bit;
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
pub mod low_rank;
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

use crate::plan::{Buf, Kernel};

/// Columns of a wider buffer that a kernel works on: rows of `ld` floats, from `col` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub buf: Buf,
    /// 0 stands for a row as wide as what the kernel works on.
    pub ld: usize,
    pub col: usize,
}

impl Columns {
    /// The row length and the first column as a kernel of `width` columns gets them.
    fn place(self, width: usize) -> [u32; 2] {
        [if self.ld == 0 { width } else { self.ld } as u32, self.col as u32]
    }
}

/// The whole of a buffer.
impl From<Buf> for Columns {
    fn from(buf: Buf) -> Columns {
        Columns { buf, ld: 0, col: 0 }
    }
}

/// How rows of some width lie in one buffer or in several alike: `heads` of them side by side in each `ld` floats, from
/// `col` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub n: usize,
    pub heads: usize,
    pub ld: usize,
    pub col: usize,
}

impl Heads {
    /// `n` rows, one after the other.
    pub fn rows(n: usize, width: usize) -> Heads {
        Heads { n, heads: 1, ld: width, col: 0 }
    }
}

/// Declares a kernel's `Params` with its field names, which a test compares with the shader's struct.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
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

/// Declares a kernel: name, entry point, bindings, params, shaders (style, file, tile, constants), twin.
macro_rules! kernel {
    ($ident:ident, $name:literal, $entry:literal, [$($access:ident),*], $params:ty, [$($style:ident $file:literal $tile:tt $({$($constant:ident: $value:literal),*})?),*], $twin:ident) => {
        pub static $ident: crate::plan::Kernel = crate::plan::Kernel {
            name: $name,
            entry: $entry,
            access: &[$(crate::plan::Access::$access),*],
            fields: <$params>::FIELDS,
            params: size_of::<$params>(),
            shaders: &[$(crate::plan::Shader {
                style: crate::plan::Style::$style,
                file: $file,
                source: include_str!(concat!("../../shaders/", $file, ".wgsl")),
                tile: $tile,
                consts: &[$($((stringify!($constant), $value)),*)?],
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
    &activation::FORWARD_PACKING,
    &activation::BACKWARD,
    &activation::BACKWARD_PACKED,
    &adamw::ADAMW,
    &adamw_8bit::ADAMW_8BIT,
    &attention::FORWARD,
    &attention::DELTA,
    &attention::BACKWARD,
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
    &low_rank::PROJECT,
    &low_rank::GRADIENT,
    &matmul::FORWARD,
    &matmul::BACKWARD,
    &rmsnorm::FORWARD,
    &rmsnorm::BACKWARD,
    &rmsnorm::IN_PLACE,
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
