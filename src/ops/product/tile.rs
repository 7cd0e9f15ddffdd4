//! The innermost loop of a product: a tile of it in registers. One body for every instruction set; what differs is how
//! a vector is loaded, stored and multiplied, and how many of them a processor holds.

#![expect(clippy::needless_range_loop, reason = "arrays of registers that iterators own go through memory")]

/// A register of floats.
pub(super) trait Vector: Copy {
    type F: Copy;
    const LANES: usize;
    unsafe fn load(at: *const Self::F) -> Self;
    unsafe fn store(self, at: *mut Self::F);
    unsafe fn splat(x: Self::F) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn times(self, b: Self) -> Self;
    /// `self + a · b`
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// Rows of A and B that a tile multiplies: `k` columns of the one by `k` rows of the other. Rows of a are `strides[0]`
/// apart and its columns `strides[1]`, rows of b `ld`.
#[derive(Clone, Copy)]
pub(super) struct Run<F> {
    pub k: usize,
    pub a: *const F,
    pub strides: [usize; 2],
    pub b: *const F,
    pub ld: usize,
}

/// Where the sums of a tile go, and what joins them there: `out = old·out + scale·sums + bias + residual`. Rows of out are
/// `ld` apart, those of the residual as far as stands beside it.
#[derive(Clone, Copy)]
pub(super) struct End<F> {
    pub out: *mut F,
    pub ld: usize,
    pub scale: F,
    pub old: bool,
    pub bias: Option<*const F>,
    pub residual: Option<(*const F, usize)>,
}

/// Sums the products of all runs for a tile, and writes them.
pub(super) type Write<F> = unsafe fn(runs: &[Run<F>], end: &End<F>);

/// A kernel for each number of rows up to the most that fit the registers.
pub(super) struct Tile<F: 'static> {
    pub cols: usize,
    /// The kernels at `m - 1` take m rows.
    pub writes: &'static [Write<F>],
}

/// The most columns of any tile, and the most elements.
pub(super) const MAX_WIDTH: usize = 48;
pub(super) const MAX_TILE: usize = 8 * MAX_WIDTH;

/// # Safety
/// `a` and `b` hold what [`Run`] says.
#[inline(always)]
unsafe fn run<V: Vector, const M: usize, const N: usize>(run: &Run<V::F>, sums: &mut [[V; N]; M]) {
    let Run { k, strides: [rows, step], mut b, ld, .. } = *run;
    // SAFETY: the caller's.
    unsafe {
        let a: [*const V::F; M] = std::array::from_fn(|m| run.a.wrapping_add(m * rows));
        let mut at = 0;
        for _ in 0..k {
            let row: [V; N] = std::array::from_fn(|n| V::load(b.wrapping_add(n * V::LANES)));
            for m in 0..M {
                let x = V::splat(*a[m].wrapping_add(at));
                for n in 0..N {
                    sums[m][n] = sums[m][n].add_product(x, row[n]);
                }
            }
            at += step;
            b = b.wrapping_add(ld);
        }
    }
}

/// # Safety
/// `runs` and `end` hold what [`Run`] and [`End`] say.
#[inline(always)]
pub(super) unsafe fn write<V: Vector, const M: usize, const N: usize>(runs: &[Run<V::F>], zero: V::F, end: &End<V::F>) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[V::splat(zero); N]; M];
        for what in runs {
            run(what, &mut sums);
        }
        let scale = V::splat(end.scale);
        for m in 0..M {
            for n in 0..N {
                let (col, at) = (n * V::LANES, end.out.add(m * end.ld + n * V::LANES));
                let mut sum = scale.times(sums[m][n]);
                if end.old {
                    sum = V::load(at).add(sum);
                }
                if let Some(bias) = end.bias {
                    sum = sum.add(V::load(bias.add(col)));
                }
                if let Some((residual, ld)) = end.residual {
                    sum = sum.add(V::load(residual.add(m * ld + col)));
                }
                sum.store(at);
            }
        }
    }
}

/// A register whose intrinsics are named; the last is how `c + a · b` is written.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! vector {
    ($vector:ty: $f:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $times:ident,
     $c:ident + $a:ident * $b:ident = $fma:expr) => {
        #[allow(unused_unsafe)] // intrinsics of NEON are safe where the compiler is new
        impl crate::ops::product::tile::Vector for $vector {
            type F = $f;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn load(at: *const $f) -> Self {
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut $f) {
                unsafe { $store(at, self) }
            }
            #[inline(always)]
            unsafe fn splat(x: $f) -> Self {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                unsafe { $add(self, b) }
            }
            #[inline(always)]
            unsafe fn times(self, b: Self) -> Self {
                unsafe { $times(self, b) }
            }
            #[inline(always)]
            unsafe fn add_product(self, $a: Self, $b: Self) -> Self {
                let $c = self;
                unsafe { $fma }
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use vector;

/// Compiles a tile of `$n` vectors across for the instruction set named, if any.
macro_rules! tile {
    ($name:ident: $f:ty, $vector:ty, $n:literal, [$($m:literal)*] $(, $feature:literal)?) => {
        pub(in crate::ops::product) static $name: crate::ops::product::tile::Tile<$f> = {
            use crate::ops::product::tile;
            $(#[target_feature(enable = $feature)])?
            unsafe fn write<const M: usize>(runs: &[tile::Run<$f>], end: &tile::End<$f>) {
                // SAFETY: the caller's.
                unsafe { tile::write::<$vector, M, $n>(runs, 0.0, end) }
            }
            tile::Tile {
                cols: $n * <$vector as tile::Vector>::LANES,
                writes: &[$(write::<$m>),*],
            }
        };
    };
}
pub(super) use tile;
