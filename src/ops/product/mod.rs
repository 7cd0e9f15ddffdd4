//! Products of matrices on the processor: tiles in registers over panels of B packed for them.
//!
//! B is packed into panels as wide as a tile, so that the tile's loop reads it in one stream: packing is also where a
//! weight is unpacked and transposed. Products of a few rows read B where it lies. So is A, always, but on AMX, where
//! it is packed once for all of B. A low-rank term is more columns of A and rows of B. Every element of a product is
//! one chain of additions along k, of a few rows a chain a lane, whatever the tile, panel or thread it falls into.

#[cfg(target_arch = "x86_64")]
mod amx;
mod dots;
mod engine;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg_attr(any(target_arch = "aarch64", target_arch = "wasm32"), allow(dead_code))]
mod plain;
mod tile;
#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::par::Rect;
use crate::num::Float;
use crate::plan::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;
use crate::simd::{self, simd};
use dots::Dots;
use engine::{Engine, dots, tile};
#[cfg(target_arch = "x86_64")]
use engine::{as_f32, as_f32_mut, as_f32_slice, is_f32};
use std::mem::MaybeUninit;
use std::ops::Range;
use tile::{End, MAX_TILE, MAX_WIDTH, Run, Tile};

/// A row-major operand: `ld` elements from row to row, or transposed.
#[derive(Clone, Copy)]
pub struct Mat<'a, F> {
    pub data: &'a [F],
    pub ld: usize,
    pub transposed: bool,
}

impl<'a, F> Mat<'a, F> {
    pub fn new(data: &'a [F], ld: usize) -> Self {
        Mat { data, ld, transposed: false }
    }

    pub fn t(data: &'a [F], ld: usize) -> Self {
        Mat { data, ld, transposed: true }
    }

    /// The transpose.
    pub fn turned(self) -> Self {
        Mat { transposed: !self.transposed, ..self }
    }

    /// The part that begins at a row and a column.
    fn from(self, row: usize, col: usize) -> Self {
        let (row, col) = if self.transposed { (col, row) } else { (row, col) };
        Mat { data: &self.data[(row * self.ld + col).min(self.data.len())..], ..self }
    }

    /// From row to row and from column to column. Panics unless the view of `rows` × `cols` lies within the data.
    fn strides(&self, rows: usize, cols: usize) -> [usize; 2] {
        let (r, c) = if self.transposed { (cols, rows) } else { (rows, cols) };
        assert!(r == 0 || c == 0 || (r - 1) * self.ld + c <= self.data.len(), "matrix view out of bounds");
        if self.transposed { [1, self.ld] } else { [self.ld, 1] }
    }
}

/// The low-rank term of a product: t:[rows, rank], `ld` from row to row, times what its parts add up to.
#[derive(Clone, Copy)]
pub struct Term<'a, F> {
    pub t: &'a [F],
    pub ld: usize,
    pub rank: usize,
    pub parts: [Part<'a, F>; PARTS],
}

/// Of a term: scale · factor:[rank, width], from column `t` of t and column `col` of the product on.
#[derive(Clone, Copy, Default)]
pub struct Part<'a, F> {
    pub factor: &'a [F],
    pub rank: usize,
    pub width: usize,
    pub t: usize,
    pub col: usize,
    pub scale: F,
}

/// Matrices that share an input: q, k and v.
pub const PARTS: usize = 3;

impl<F: Float> Term<'_, F> {
    pub fn nothing() -> Self {
        Term { t: &[], ld: 0, rank: 0, parts: [Part::default(); PARTS] }
    }

    /// Columns `cols` of the parts, as [rank, cols], times `scale`.
    fn write(&self, cols: Range<usize>, scale: F, out: &mut [F]) {
        out.fill(F::ZERO);
        for part in self.parts.iter().filter(|part| part.rank > 0) {
            let (lo, hi) = (cols.start.max(part.col), cols.end.min(part.col + part.width));
            for r in 0..if lo < hi { part.rank } else { 0 } {
                let factor = &part.factor[r * part.width + lo - part.col..][..hi - lo];
                let out = &mut out[(part.t + r) * cols.len() + lo - cols.start..][..hi - lo];
                simd::add_scaled(out, factor, part.scale * scale);
            }
        }
    }
}

/// A product of many columns: A, and beside it the low-rank term's t.
pub struct Left<'a, F: Float> {
    engine: Engine<F>,
    x: Mat<'a, F>,
    k: usize,
    term: Term<'a, F>,
    scratch: &'a Scratch<F>,
    /// A as AMX loads it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AMX is an x86-64 extension"))]
    tiles: &'a [F],
}

impl<'a, F: Float> Left<'a, F> {
    /// Lends A, packed where that helps, to a product with `cols` columns whose B holds floats that are sums of `parts`
    /// bf16 (3 for any float).
    pub fn with(
        (rows, cols, k): (usize, usize, usize),
        x: Mat<'a, F>,
        term: Term<'a, F>,
        parts: usize,
        scratch: &'a Scratch<F>,
        f: impl FnOnce(&Left<F>),
    ) {
        Self::with_engine(Engine::choose((rows, cols, k), parts), rows, x, k, term, scratch, f);
    }

    /// The same for few columns, whose parts may begin at any column.
    pub fn narrow(
        (rows, cols, k): (usize, usize, usize),
        x: Mat<'a, F>,
        scratch: &'a Scratch<F>,
        f: impl FnOnce(&Left<F>),
    ) {
        Self::with_engine(Engine::Tile(tile(cols)), rows, x, k, Term::nothing(), scratch, f);
    }

    fn with_engine(
        engine: Engine<F>,
        rows: usize,
        x: Mat<'a, F>,
        k: usize,
        term: Term<'a, F>,
        scratch: &'a Scratch<F>,
        f: impl FnOnce(&Left<F>),
    ) {
        x.strides(rows, k);
        let left = Left { engine, x, k, term, scratch, tiles: &[] };
        match engine {
            Engine::Tile(_) => f(&left),
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(_) => {
                let strip = left.strip().iter().sum();
                let room = rows.next_multiple_of(amx::SIDE) / amx::WIDE * strip;
                scratch.with(room + ALIGN, |tiles| {
                    let tiles = aligned(tiles, room);
                    super::par::rows(tiles, strip, 1, |at, strip| left.lay_strip(at * amx::WIDE, rows, strip));
                    f(&Left { tiles, ..left })
                })
            }
        }
    }

    /// Elements that 16 rows of A take as tiles: of x, and of t.
    #[cfg(target_arch = "x86_64")]
    fn strip(&self) -> [usize; 2] {
        [self.k, self.term.rank].map(|k| amx::room(k, amx::ALL))
    }

    #[cfg(target_arch = "x86_64")]
    fn lay_strip(&self, row: usize, rows: usize, strip: &mut [F]) {
        let some = rows.saturating_sub(row).min(amx::WIDE);
        let (x, t) = strip.split_at_mut(self.strip()[0]);
        let (from, from_t) = (self.x.from(row, 0), Mat::new(self.term.t, self.term.ld).from(row, 0));
        // SAFETY: the engine was chosen since it is there.
        unsafe {
            amx::lay_rows(as_f32_mut(x), as_f32(from), some, self.k);
            amx::lay_rows(as_f32_mut(t), as_f32(from_t), some, self.term.rank);
        }
    }

    /// `out = scale · (A · B + the term)`, and what `plus` names, for the block of rows from `row` on and columns from
    /// `col` of the factor on. `lay` packs rows of B, which is taken in pieces of at most `piece` rows (a multiple of
    /// 32).
    pub fn multiply(
        &self,
        out: &mut Rect<F>,
        (row, col): (usize, usize),
        piece: usize,
        plus: Plus<F>,
        lay: impl Fn(Range<usize>, &mut Panels<F>),
    ) {
        for first in (0..self.k.max(1)).step_by(piece) {
            let k = first..self.k.min(first + piece);
            let rank = if k.end == self.k { self.term.rank } else { 0 };
            let room = Panels::room(self.engine, k.len(), rank, out.cols);
            self.scratch.with(room + ALIGN, |data| {
                let mut panels = Panels::new(self.engine, aligned(data, room), k.len(), rank, out.cols);
                lay(k.clone(), &mut panels);
                if rank > 0 {
                    panels.lay_term(&self.term, col, plus.scale, self.scratch);
                }
                panels.multiply(out, self, (row, k.start), if first == 0 { plus } else { plus.more() });
            });
        }
    }
}

/// Elements to lose so that the rest begins at a cache line.
const ALIGN: usize = 16;

fn aligned<F>(data: &mut [F], len: usize) -> &mut [F] {
    let skip = data.as_ptr().align_offset(64).min(data.len() - len);
    &mut data[skip..][..len]
}

/// B packed: `k` rows and the `rank` rows of a factor, of `cols` columns.
pub struct Panels<'a, F: Float> {
    engine: Engine<F>,
    data: &'a mut [F],
    k: usize,
    rank: usize,
    cols: usize,
}

impl<'a, F: Float> Panels<'a, F> {
    /// Elements that they take.
    fn room(engine: Engine<F>, k: usize, rank: usize, cols: usize) -> usize {
        cols.next_multiple_of(engine.width()) / engine.group() * engine.room(k, rank).iter().sum::<usize>()
    }

    fn new(engine: Engine<F>, data: &'a mut [F], k: usize, rank: usize, cols: usize) -> Self {
        assert_eq!(data.len(), Self::room(engine, k, rank, cols), "room for panels");
        // What pads them is multiplied too: zeros, since NaN would spread along k, and small numbers may be slow.
        let [main, low] = engine.room(k, rank);
        for (group, panel) in data.chunks_exact_mut((main + low).max(1)).enumerate() {
            let (panel, factor) = panel.split_at_mut(main);
            let full = (group + 1) * engine.group() <= cols;
            for (part, rows) in [(panel, k), (factor, rank)] {
                if !(full && rows.is_multiple_of(engine.granule())) {
                    part.fill(F::ZERO);
                }
            }
        }
        Panels { engine, data, k, rank, cols }
    }

    /// Packs `part`, rows × cols of B from row `k0` and column `c0` on: multiples of 32 and 16, but for the last parts.
    pub fn lay(&mut self, (k0, c0): (usize, usize), part: Mat<F>, (rows, cols): (usize, usize)) {
        assert!(k0 + rows <= self.k && c0 + cols <= self.cols, "a part beyond the panels");
        self.put(false, (k0, c0), part, (rows, cols));
    }

    /// Packs all columns of B at once, which lie as rows of pairs of bf16, `ld` words apart, if that is what the engine
    /// multiplies.
    pub fn lay_pairs(&mut self, _words: &[u32], _ld: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let Engine::Amx(1) = self.engine {
            let (panel, deep) = (self.engine.room(self.k, self.rank).iter().sum(), self.k / 2);
            for (panel, first) in self.data.chunks_exact_mut(panel).zip((0..self.cols).step_by(amx::WIDE)) {
                // Where rows are read side by side, the processor does not foresee what comes next.
                let next = (first + amx::WIDE..self.cols).take(amx::WIDE);
                next.for_each(|col| simd::prefetch(&_words[col * _ld..][..deep]));
                let (pairs, some) = (bytemuck::cast_slice(&_words[first * _ld..]), amx::WIDE.min(self.cols - first));
                // SAFETY: whoever has AMX has AVX-512.
                unsafe { x86::lay_transposed(as_f32_mut(panel), amx::WIDE, pairs, _ld, deep, some) };
            }
            return true;
        }
        false
    }

    /// Packs the term's parts from column `col` on, for sums that are multiplied by `scale`.
    fn lay_term(&mut self, term: &Term<F>, col: usize, scale: F, scratch: &Scratch<F>) {
        assert!(scale != F::ZERO, "a product with a low-rank term has a scale");
        let cols = self.cols;
        scratch.with(self.rank * cols, |rows| {
            term.write(col..col + cols, F::ONE / scale, rows);
            self.put(true, (0, 0), Mat::new(rows, cols), (self.rank, cols));
        });
    }

    /// Packs a part of B, or of the factor.
    fn put(&mut self, factor: bool, (k0, c0): (usize, usize), part: Mat<F>, (rows, cols): (usize, usize)) {
        part.strides(rows, cols);
        let (group, [main, low]) = (self.engine.group(), self.engine.room(self.k, self.rank));
        let mut c = 0;
        while c < cols {
            let (panel, at) = ((c0 + c) / group, (c0 + c) % group);
            let some = (cols - c).min(group - at);
            let (panel, part) = (&mut self.data[panel * (main + low)..][..main + low], part.from(0, c));
            let panel = if factor { &mut panel[main..] } else { &mut panel[..main] };
            match self.engine {
                Engine::Tile(_) => lay(&mut panel[k0 * group + at..], group, part, rows, some),
                // SAFETY: the engine was chosen since it is there.
                #[cfg(target_arch = "x86_64")]
                Engine::Amx(parts) => unsafe {
                    let parts = if factor { amx::ALL } else { parts };
                    amx::lay(as_f32_mut(panel), parts, k0, as_f32(part), rows, some)
                },
            }
            c += some;
        }
    }

    fn multiply(&self, out: &mut Rect<F>, left: &Left<F>, (row, k0): (usize, usize), plus: Plus<F>) {
        match self.engine {
            Engine::Tile(tile) => {
                let x = (left.x.from(row, k0), self.k);
                let t = (Mat::new(left.term.t, left.term.ld).from(row, 0), self.rank);
                self.multiply_tiles(tile, out, [x, t], plus);
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Amx(parts) => self.multiply_amx(parts, out, left, (row, k0), plus),
        }
    }

    fn multiply_tiles(&self, tile: &Tile<F>, out: &mut Rect<F>, [x, t]: [(Mat<F>, usize); 2], plus: Plus<F>) {
        let (rows, width) = (out.rows, tile.cols);
        assert_eq!(self.cols, out.cols, "columns of panels and of the product");
        let panels = self.data.chunks_exact(((self.k + self.rank) * width).max(1));
        let [mut x, mut t] = [x, t].map(|(a, k)| Run::new(a, rows, k, width));
        let mut tiles = Tiles::new(tile, out, plus);
        for row in (0..rows).step_by(tile.writes.len()) {
            for (panel, col) in panels.clone().zip((0..self.cols).step_by(width)) {
                x.b = panel.as_ptr();
                t.b = panel[self.k * width..].as_ptr();
                let runs = [x.from(row), t.from(row)];
                // SAFETY: A was checked, and a panel has k rows and those of the factor.
                unsafe { tiles.write(&runs[..1 + (self.rank > 0) as usize], (row, col)) };
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply_amx(&self, parts: usize, out: &mut Rect<F>, left: &Left<F>, (row, k0): (usize, usize), plus: Plus<F>) {
        assert!(row.is_multiple_of(amx::WIDE) && k0.is_multiple_of(amx::DEEP), "blocks begin where tiles do");
        let ([x, t], [main, low]) = (left.strip(), self.engine.room(self.k, self.rank));
        // Tiles along k: of x and B from k0 on, of t and the factor.
        let terms = [(parts, self.k, amx::room(k0, amx::ALL), 0), (amx::ALL, self.rank, x, main)];
        let mut sums = [F::ZERO; amx::SIDE * amx::SIDE];
        // SAFETY: the engine was chosen since it is there.
        unsafe { amx::begin() };
        for down in (0..out.rows).step_by(amx::SIDE) {
            for across in (0..self.cols).step_by(amx::SIDE) {
                let rows = amx::SIDE.min(out.rows - down);
                out.prefetch((down, across), (rows, amx::SIDE.min(out.cols - across)));
                for (i, (parts, k, from_a, from_b)) in terms.into_iter().filter(|term| term.1 > 0).enumerate() {
                    let a = [0, 1].map(|i| &left.tiles[((row + down) / amx::WIDE + i) * (x + t) + from_a..]);
                    let b = [0, 1].map(|i| &self.data[(across / amx::WIDE + i) * (main + low) + from_b..]);
                    // SAFETY: as above.
                    unsafe {
                        let (a, b) = (a.map(as_f32_slice), b.map(as_f32_slice));
                        amx::add_product(parts, k, a, b, as_f32_mut(&mut sums), i > 0)
                    };
                }
                write_tile(&plus, out, (down, across), amx::SIDE, &sums[..rows * amx::SIDE]);
            }
        }
        // SAFETY: as above.
        unsafe { amx::end() };
    }
}

impl<F: Float> Run<F> {
    /// Of `rows` rows of A and `k` of B, which are still to be named, `ld` apart.
    fn new(a: Mat<F>, rows: usize, k: usize, ld: usize) -> Self {
        Run { k, a: a.data.as_ptr(), strides: a.strides(rows, k), b: std::ptr::null(), ld }
    }

    /// The same from a row of A on, which is there.
    #[inline(always)]
    fn from(&self, row: usize) -> Self {
        Run { a: self.a.wrapping_add(row * self.strides[0]), ..*self }
    }
}

/// A product as tiles are written to it.
struct Tiles<'a, 'b, F: Float> {
    tile: &'a Tile<F>,
    out: &'a mut Rect<'b, F>,
    plus: Plus<'a, F>,
    /// Of the product's first tile.
    end: End<F>,
}

impl<'a, 'b, F: Float> Tiles<'a, 'b, F> {
    fn new(tile: &'a Tile<F>, out: &'a mut Rect<'b, F>, plus: Plus<'a, F>) -> Self {
        let ((to, ld), (bias, residual)) = (out.raw(), plus.raw(out.rows, out.cols));
        let end = End { out: to, ld, scale: plus.scale, old: plus.old, bias, residual };
        Tiles { tile, out, plus, end }
    }

    /// The tile from a row and a column on.
    ///
    /// # Safety
    /// `runs` have as many rows of A as the product from `row` on, or the tile, and as many columns of B as the tile.
    #[inline(always)]
    unsafe fn write(&mut self, runs: &[Run<F>], (row, col): (usize, usize)) {
        assert!(row < self.out.rows && col < self.out.cols, "a tile beyond the product");
        let (m, width) = (self.tile.writes.len().min(self.out.rows - row), self.tile.cols);
        let write = self.tile.writes[m - 1];
        if width > self.out.cols - col {
            // SAFETY: the caller's.
            return unsafe { self.write_part(runs, (row, col), m) };
        }
        let End { out, ld, bias, residual, .. } = self.end;
        let end = End {
            out: out.wrapping_add(row * ld + col),
            bias: bias.map(|bias| bias.wrapping_add(col)),
            residual: residual.map(|(residual, ld)| (residual.wrapping_add(row * ld + col), ld)),
            ..self.end
        };
        // SAFETY: the caller's for what is read; m rows and `width` columns of the product are there, with bias and
        // residual, and the processor has what the tile is made for, since it was asked when the tile was chosen.
        unsafe { write(runs, &end) }
    }

    /// A tile of whose m rows only a part lies within the product.
    ///
    /// # Safety
    /// As of [`Tiles::write`].
    #[inline(never)]
    unsafe fn write_part(&mut self, runs: &[Run<F>], at: (usize, usize), m: usize) {
        let (mut sums, ld) = ([const { MaybeUninit::uninit() }; MAX_TILE], self.tile.cols);
        let out = sums.as_mut_ptr().cast();
        let end = End { out, ld, scale: F::ONE, old: false, bias: None, residual: None };
        // SAFETY: the caller's; `sums` holds m rows of any tile, all of which are written.
        let sums = unsafe {
            self.tile.writes[m - 1](runs, &end);
            sums[..m * ld].assume_init_ref()
        };
        write_tile(&self.plus, self.out, at, ld, sums);
    }
}

/// Packs rows × cols of B into rows `width` apart.
fn lay<F: Float>(out: &mut [F], width: usize, part: Mat<F>, rows: usize, cols: usize) {
    #[cfg(target_arch = "x86_64")]
    let quick = is_f32::<F>() && simd::level() == Level::Avx512;
    match (part.transposed, cols) {
        #[cfg(target_arch = "x86_64")]
        (true, _) if quick => {
            let (out, part) = (as_f32_mut(out), as_f32(part));
            for col in (0..cols).step_by(16) {
                // SAFETY: the processor was asked.
                unsafe {
                    let some = (cols - col).min(16);
                    x86::lay_transposed(&mut out[col..], width, &part.data[col * part.ld..], part.ld, rows, some)
                };
            }
        }
        (true, _) => lay_transposed(out, width, part.data, part.ld, rows, cols),
        // The widths of tiles, so that rows are moved in registers and not by a call for each.
        (false, 48) if width == 48 => lay_rows::<F, 48>(out, part, rows),
        (false, 32) if width == 32 => lay_rows::<F, 32>(out, part, rows),
        (false, 16) if width == 16 => lay_rows::<F, 16>(out, part, rows),
        (false, 8) if width == 8 => lay_rows::<F, 8>(out, part, rows),
        _ => {
            for (out, row) in out.chunks_mut(width).zip(part.data.chunks(part.ld)).take(rows) {
                out[..cols].copy_from_slice(&row[..cols]);
            }
        }
    }
}

/// Whole rows of a panel.
fn lay_rows<F: Float, const W: usize>(out: &mut [F], part: Mat<F>, rows: usize) {
    let copy = |(out, row): (&mut [F; W], &[F])| *out = *row.first_chunk().expect("a row of a panel");
    out.as_chunks_mut().0.iter_mut().zip(part.data.chunks(part.ld)).take(rows).for_each(copy);
}

simd! {
    fn lay_transposed<F: Float>(out: &mut [F], width: usize, part: &[F], ld: usize, rows: usize, cols: usize) {
        for k in 0..rows {
            let out = &mut out[k * width..][..cols];
            for (c, out) in out.iter_mut().enumerate() {
                *out = part[c * ld + k];
            }
        }
    }
}

/// The factor of a product and what joins it where it is written: old values, a bias, a residual, whose first element
/// stands where the rectangle's does.
#[derive(Clone, Copy)]
pub struct Plus<'a, F> {
    pub scale: F,
    pub old: bool,
    pub bias: Option<&'a [F]>,
    pub residual: Option<(&'a [F], usize)>,
}

impl<F: Float> Plus<'_, F> {
    pub fn nothing(scale: F, old: bool) -> Self {
        Plus { scale, old, bias: None, residual: None }
    }

    /// For what comes after the first piece of a sum.
    fn more(self) -> Self {
        Plus::nothing(self.scale, true)
    }

    /// Where bias and residual of so many rows and columns begin, and from row to row of the latter.
    fn raw(&self, rows: usize, cols: usize) -> (Option<*const F>, Option<(*const F, usize)>) {
        let residual = |(residual, ld)| {
            Mat::new(residual, ld).strides(rows, cols);
            (residual.as_ptr(), ld)
        };
        (self.bias.map(|bias| bias[..cols].as_ptr()), self.residual.map(residual))
    }

    #[inline(always)]
    pub fn write(&self, (row, col): (usize, usize), out: &mut [F], sums: &[F]) {
        let scale = self.scale;
        match self.old {
            true => by_vectors(out, sums, |old, sum| old + scale * sum),
            false => by_vectors(out, sums, |_, sum| scale * sum),
        }
        if let Some(bias) = self.bias {
            by_vectors(out, &bias[col..], |y, bias| y + bias);
        }
        if let Some((residual, ld)) = self.residual {
            by_vectors(out, &residual[row * ld + col..], |y, residual| y + residual);
        }
    }
}

/// `out = f(out, x)`, in lots of 16 and 8: a tile's rows are too short for the loops that compilers unroll.
#[inline(always)]
fn by_vectors<F: Float>(out: &mut [F], x: &[F], f: impl Fn(F, F) -> F + Copy) {
    let (out, x) = in_lots::<F, 16>(out, &x[..out.len()], f);
    let (out, x) = in_lots::<F, 8>(out, x, f);
    out.iter_mut().zip(x).for_each(|(out, x)| *out = f(*out, *x));
}

/// What is left when whole lots are done.
#[inline(always)]
fn in_lots<'a, F: Float, const LANES: usize>(
    out: &'a mut [F],
    x: &'a [F],
    f: impl Fn(F, F) -> F,
) -> (&'a mut [F], &'a [F]) {
    let ((outs, rest), (xs, rest_x)) = (out.as_chunks_mut::<LANES>(), x.as_chunks::<LANES>());
    for (out, x) in outs.iter_mut().zip(xs) {
        *out = std::array::from_fn(|lane| f(out[lane], x[lane]));
    }
    (rest, rest_x)
}

simd! {
    /// Writes the rows of a tile, `width` apart.
    fn write_tile<F: Float>(plus: &Plus<F>, out: &mut Rect<F>, at: (usize, usize), width: usize, sums: &[F]) {
        let cols = width.min(out.cols - at.1);
        for (row, sums) in (at.0..).zip(sums.chunks_exact(width)) {
            plus.write((row, at.1), &mut out.row(row)[at.1..][..cols], &sums[..cols]);
        }
    }
}

/// Rows of B that [`multiply`] takes at a time: of the widest tile, they fit the first cache.
const DEEP: usize = 160;

/// Up to so many rows of the result, B is read where it lies: packing would take as long as the product.
const FEW_ROWS: usize = 16;

/// `out = old·out + scale · a · b`, with b[k, ·] packed piece by piece: for products that are used once.
pub fn multiply<F: Float>(
    out: &mut Rect<F>,
    old: bool,
    k: usize,
    a: Mat<F>,
    b: Mat<F>,
    scale: F,
    scratch: &Scratch<F>,
) {
    let (rows, cols) = (out.rows, out.cols);
    b.strides(k, cols);
    let nothing = (Mat::new(&[], 0), 0);
    scratch.with(DEEP * MAX_WIDTH + ALIGN, |room| {
        let room = aligned(room, DEEP * MAX_WIDTH);
        let mut col = 0;
        while col < cols {
            let tile = tile::<F>(cols - col);
            let some = tile.cols.min(cols - col);
            let out = &mut out.part((0, col), (rows, some));
            for first in (0..k.max(1)).step_by(DEEP) {
                let k = DEEP.min(k - first);
                let (a, b, plus) = (a.from(0, first), b.from(first, col), Plus::nothing(scale, old || first > 0));
                if rows <= FEW_ROWS && some == tile.cols && !b.transposed {
                    b.strides(k, some);
                    let run = Run { b: b.data.as_ptr(), ..Run::new(a, rows, k, b.ld) };
                    let mut tiles = Tiles::new(tile, out, plus);
                    for row in (0..rows).step_by(tile.writes.len()) {
                        // SAFETY: both were checked.
                        unsafe { tiles.write(&[run.from(row)], (row, 0)) };
                    }
                    continue;
                }
                let engine = Engine::Tile(tile);
                let mut panels = Panels::new(engine, &mut room[..Panels::room(engine, k, 0, some)], k, 0, some);
                panels.lay((0, 0), b, (k, some));
                panels.multiply_tiles(tile, out, [(a, k), nothing], plus);
            }
            col += some;
        }
    });
}

/// `out += scale · a · bᵀ` for a few rows of each, which lie along k, rows `lds` apart.
pub fn add_dots<F: Float>(out: &mut Rect<F>, k: usize, a: &[F], b: &[F], lds: [usize; 2], scale: F) {
    add_dots_by(dots(), out, k, a, b, lds, scale);
}

fn add_dots_by<F: Float>(
    Dots(kernels): &Dots<F>,
    out: &mut Rect<F>,
    k: usize,
    a: &[F],
    b: &[F],
    lds: [usize; 2],
    scale: F,
) {
    let (rows, cols) = (out.rows, out.cols);
    Mat::new(a, lds[0]).strides(rows, k);
    Mat::new(b, lds[1]).strides(cols, k);
    let mut sums = [F::ZERO; dots::MAX];
    for row in (0..rows).step_by(kernels.len()) {
        let some = kernels.len().min(rows - row);
        let mut col = 0;
        while col < cols {
            let wide = cols - col >= dots::ROWS;
            let n = if wide { dots::ROWS } else { 1 };
            let a = dots::Rows { at: a[row * lds[0]..].as_ptr(), ld: lds[0] };
            let b = dots::Rows { at: b[col * lds[1]..].as_ptr(), ld: lds[1] };
            // SAFETY: `some` rows of a and `n` of b are there, as was checked; `sums` holds as many as any kernel
            // writes; and the processor was asked when the kernels were chosen.
            unsafe { kernels[some - 1][wide as usize](k, a, b, sums.as_mut_ptr()) };
            for (m, sums) in sums.chunks_exact(n).enumerate().take(some) {
                let out = &mut out.row(row + m)[col..][..n];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += scale * *sum);
            }
            col += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::uniform;

    /// Every engine of this machine, also those that its widest one stands in for.
    fn engines() -> Vec<(&'static str, Engine<f32>)> {
        let mut all = vec![("plain", Engine::Tile(&plain::PLAIN)), ("chosen", Engine::Tile(tile(1 << 10)))];
        #[cfg(target_arch = "x86_64")]
        {
            let (level, names) = (simd::level(), ["avx512", "avx512 narrow", "avx2", "avx2 narrow"]);
            let tiles = [&x86::AVX512, &x86::AVX512_NARROW, &x86::AVX2, &x86::AVX2_NARROW];
            let first = match level {
                Level::Avx512 => 0,
                Level::Avx2 => 2,
                Level::Baseline => 4,
            };
            all.extend(names.into_iter().zip(tiles.map(Engine::Tile)).skip(first));
            if amx::available() {
                all.push(("amx", Engine::Amx(amx::ALL)));
            }
        }
        all
    }

    fn random(len: usize, seed: u64) -> Vec<f32> {
        (0..len).map(|i| uniform(seed, 0, i as u64) as f32 - 0.5).collect()
    }

    /// A product with all that may join it, by the engine and by plain loops in f64.
    fn compare(name: &str, engine: Engine<f32>, (m, n, k, rank): (usize, usize, usize, usize), transposed: bool) {
        let (x, b, t, factor) = (random(m * k, 1), random(k * n, 2), random(m * rank, 3), random(rank * n, 4));
        // Rows of the product and of the residual lie differently far apart.
        let (ld, residual_ld) = (n + 1, n + 3);
        let (old, bias, residual) = (random(m * ld, 5), random(n, 6), random(m * residual_ld, 7));
        // Two parts side by side in t, one of them of some columns only.
        let (half, some) = (rank / 2, n.div_ceil(2));
        let part = |rank, width, t, col, from| Part { factor: &factor[from..], rank, width, t, col, scale: 1.5 };
        let parts = [part(half, n, 0, 0, 0), part(rank - half, some, half, n - some, half * n), Part::default()];
        let term = Term { t: &t, ld: rank, rank, parts };
        // Each alone for some shape, and all together.
        let joins = [m, n, k].map(|extent| extent.is_multiple_of(2) || extent == 1);
        let plus = Plus {
            scale: 0.75,
            old: joins[0],
            bias: joins[1].then_some(&bias[..]),
            residual: joins[2].then_some((&residual[..], residual_ld)),
        };
        let scratch = Scratch::default();
        let spoiled = |f: &dyn Fn()| scratch.with(1 << 16, |room| (room.fill(f32::NAN), f()).1);
        spoiled(&|| spoiled(&|| spoiled(&|| ())));
        let b_at = |k0: usize, col: usize| if transposed { b[col * k + k0] } else { b[k0 * n + col] };
        let mut y = old.clone();
        Left::with_engine(engine, m, Mat::new(&x, k), k, term, &scratch, |left| {
            left.multiply(&mut Rect::new(&mut y, (m, n), ld), (0, 0), 64, plus, |part, panels| {
                for k0 in part.clone().step_by(32) {
                    let deep = 32.min(part.end - k0);
                    let at = if transposed { k0 } else { k0 * n };
                    let b = Mat { data: &b[at..], ld: if transposed { k } else { n }, transposed };
                    panels.lay((k0 - part.start, 0), b, (deep, n));
                }
            });
        });
        for (at, got) in y.iter().enumerate() {
            let (row, col) = (at / ld, at % ld);
            if col >= n {
                assert_eq!(*got, old[at], "beyond the row's end");
                continue;
            }
            let main: f64 = (0..k).map(|i| x[row * k + i] as f64 * b_at(i, col) as f64).sum();
            let at_part = |r: usize| match r < half {
                true => factor[r * n + col],
                false if col >= n - some => factor[half * n + (r - half) * some + col - (n - some)],
                false => 0.0,
            };
            let low: f64 = (0..rank).map(|r| t[row * rank + r] as f64 * at_part(r) as f64).sum();
            let joined = [old[at], bias[col], residual[row * residual_ld + col]];
            let joined: f64 = joined.into_iter().zip(joins).map(|(x, joins)| if joins { x as f64 } else { 0.0 }).sum();
            let want = 0.75 * main + 1.5 * low + joined;
            let error = (*got as f64 - want).abs();
            assert!(error < 4e-6, "{name} {m}x{n}x{k} r{rank} [{row},{col}]: {got}, want {want}");
        }
    }

    #[test]
    fn every_engine_multiplies() {
        for (name, engine) in engines() {
            let ragged = [(1, 1, 1, 0), (7, 50, 33, 3), (8, 33, 7, 2), (5, 97, 33, 0), (33, 97, 100, 17)];
            for shape in ragged.into_iter().chain([(16, 64, 32, 8), (64, 96, 160, 1)]) {
                compare(name, engine, shape, false);
                compare(name, engine, shape, true);
            }
        }
    }

    #[test]
    fn a_few_rows_are_multiplied_by_every_kernel() {
        let mut all = vec![("plain", &plain::DOTS), ("chosen", dots::<f32>())];
        #[cfg(target_arch = "x86_64")]
        if simd::level() == Level::Avx512 {
            all.push(("avx2", &x86::DOTS_256));
        }
        for (name, kernels) in all {
            for (m, n, k) in [(1, 1, 1), (1, 9, 64), (3, 4, 100), (5, 7, 33), (8, 6, 16)] {
                let (lds, old) = ([k + 3, k + 1], random(m * n, 3));
                let (a, b, mut y) = (random(m * lds[0], 1), random(n * lds[1], 2), old.clone());
                add_dots_by(kernels, &mut Rect::new(&mut y, (m, n), n), k, &a, &b, lds, 0.75);
                for (at, got) in y.iter().enumerate() {
                    let term = |i: usize| a[at / n * lds[0] + i] as f64 * b[at % n * lds[1] + i] as f64;
                    let want = old[at] as f64 + 0.75 * (0..k).map(term).sum::<f64>();
                    assert!((*got as f64 - want).abs() < 2e-6, "{name} {m}x{n}x{k} [{at}]: {got}, want {want}");
                }
            }
        }
    }

    /// No order of additions differs between threads: neither rows nor columns of a block change an element's bits.
    #[test]
    fn blocks_do_not_change_bits() {
        let ((m, n, k), scratch) = ((70, 100, 190), Scratch::default());
        let (x, b) = (random(m * k, 1), random(k * n, 2));
        let mut whole = vec![0f32; m * n];
        multiply(&mut Rect::new(&mut whole, (m, n), n), false, k, Mat::new(&x, k), Mat::new(&b, n), 1.0, &scratch);
        for (row, col, rows, cols) in [(0, 0, 1, 1), (13, 5, 30, 60), (69, 99, 1, 1), (8, 48, 62, 52)] {
            let mut part = vec![0f32; rows * cols];
            let (x, b) = (Mat::new(&x, k).from(row, 0), Mat::new(&b, n).from(0, col));
            multiply(&mut Rect::new(&mut part, (rows, cols), cols), false, k, x, b, 1.0, &scratch);
            for (at, got) in part.iter().enumerate() {
                assert_eq!(*got, whole[(row + at / cols) * n + col + at % cols], "{row}, {col}: {at}");
            }
        }
    }
}
