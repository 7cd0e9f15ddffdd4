//! The innermost loop of a product: a tile of it in registers. One body for every instruction set; what differs is how a
//! vector is loaded, stored and multiplied, and how many of them a processor holds.

/// A register of floats.
pub(super) trait Vector: Copy {
    type F: Copy;
    const LANES: usize;
    unsafe fn load(at: *const Self::F) -> Self;
    unsafe fn store(self, at: *mut Self::F);
    unsafe fn splat(x: Self::F) -> Self;
    /// `self + a · b`
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// `acc[M][cols] += a[M, k] · b[k, cols]`: rows of a are `strides[0]` apart and its columns `strides[1]`,
/// those of b and acc lie close.
pub(super) type Run<F> = unsafe fn(k: usize, a: *const F, strides: [usize; 2], b: *const F, acc: *mut F);

/// A kernel for each number of rows up to the most that fit the registers.
pub(super) struct Tile<F: 'static> {
    pub cols: usize,
    /// `runs[m - 1]` takes m rows.
    pub runs: &'static [Run<F>],
}

/// The most elements of any tile.
pub(super) const MAX_TILE: usize = 8 * 48;

/// # Safety
/// `a`, `b` and `acc` hold what [`Run`] says.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, const M: usize, const N: usize>(
    k: usize,
    a: *const V::F,
    [rows, step]: [usize; 2],
    mut b: *const V::F,
    acc: *mut V::F,
) {
    // SAFETY: the caller's.
    unsafe {
        let a: [*const V::F; M] = std::array::from_fn(|m| a.add(m * rows));
        let mut sums: [[V; N]; M] =
            std::array::from_fn(|m| std::array::from_fn(|n| V::load(acc.add((m * N + n) * V::LANES))));
        let mut at = 0;
        for _ in 0..k {
            let row: [V; N] = std::array::from_fn(|n| V::load(b.wrapping_add(n * V::LANES)));
            for (a, sums) in a.into_iter().zip(&mut sums) {
                let x = V::splat(*a.wrapping_add(at));
                for (sum, b) in sums.iter_mut().zip(row) {
                    *sum = sum.add_product(x, b);
                }
            }
            at += step;
            b = b.wrapping_add(N * V::LANES);
        }
        for (at, sum) in sums.into_iter().flatten().enumerate() {
            sum.store(acc.add(at * V::LANES));
        }
    }
}

/// Compiles a tile of `$n` vectors across for the instruction set named, if any.
macro_rules! tile {
    ($name:ident: $f:ty, $vector:ty, $n:literal, [$($m:literal)*] $(, $feature:literal)?) => {
        pub(in crate::ops::product) static $name: crate::ops::product::tile::Tile<$f> = {
            $(#[target_feature(enable = $feature)])?
            unsafe fn run<const M: usize>(
                k: usize, a: *const $f, strides: [usize; 2], b: *const $f, acc: *mut $f,
            ) {
                // SAFETY: the caller's.
                unsafe { crate::ops::product::tile::run::<$vector, M, $n>(k, a, strides, b, acc) }
            }
            crate::ops::product::tile::Tile {
                cols: $n * <$vector as crate::ops::product::tile::Vector>::LANES,
                runs: &[$(run::<$m>),*],
            }
        };
    };
}
pub(super) use tile;
