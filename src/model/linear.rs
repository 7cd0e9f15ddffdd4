//! Linears with their patches, grouped by their input: the only place where adapters meet frozen weights (formulas: the
//! seam's docs). Backward comes in two parts, the gradient of the input first, then those of the weights: in between,
//! what comes next on the way back may leave the input itself, made again, in the place of its gradient.

use super::seam::{Gain, LinearPatch, Patches, Site};
use super::tensors::Tensor;
use crate::format::WeightFormat;
use crate::ops::gain::Vector;
use crate::ops::low_rank::{self, FACTORS, Factor, Factors, Lift, Narrow, Pair};
use crate::ops::matmul::{self, Epilogue, Matrix};
use crate::ops::row_gain::{self, Rows};
use crate::ops::{Columns, column_sum, dropout, gain, rows};
use crate::plan::{Buf, Plan};

/// What layers need to append steps: the plan, the run's rows, and the small buffers everyone binds.
pub struct Build<'a> {
    pub plan: &'a mut Plan,
    pub n: usize,
    pub patches: Option<&'a Patches>,
    pub control: Buf,
    /// A small buffer bound where a kernel reads nothing.
    pub none: Buf,
    /// A word that is 0.
    pub zero: Buf,
    /// As many ones and zeros as a norm is wide; for training only.
    pub units: [Buf; 2],
    /// Dropout is for training only.
    pub dropout: bool,
    /// What is widest is kept as bf16 from forward to backward.
    pub packs: bool,
}

impl<'a> Build<'a> {
    /// Where the trained copy of a tensor of the base lies, if it has one.
    pub fn replaced(&self, tensor: Tensor) -> Option<(&'a Patches, usize)> {
        let patches = self.patches?;
        Some((patches, *patches.replaced.get(&tensor)?))
    }

    /// [`Build::replaced`], where it is trained now.
    pub fn active(&self, tensor: Tensor) -> Option<(&'a Patches, usize)> {
        self.replaced(tensor).filter(|(patches, _)| patches.is_active(tensor))
    }

    /// A vector of the base, or its trained copy as a buffer of its own.
    pub fn vector(&mut self, tensor: Tensor, base: Buf, len: usize) -> Buf {
        let Some((patches, at)) = self.replaced(tensor) else { return base };
        let copy = self.plan.temp("trained vector", len);
        rows::copy(self.plan, "copy", len, self.zero, patches.param(at), copy);
        copy
    }

    /// A matrix of the base, or its trained copy.
    pub fn matrix(&self, tensor: Tensor, base: &Matrix) -> Matrix {
        match self.replaced(tensor) {
            Some((patches, at)) => Matrix::at(patches.params, at, WeightFormat::F32, base.rows, base.cols),
            None => base.clone(),
        }
    }

    /// Adds `Σ_n d` to the gradient of a trained vector.
    pub fn vector_grad(&mut self, tensor: Tensor, (n, c): (usize, usize), d: impl Into<Columns>) {
        if let Some((patches, at)) = self.active(tensor) {
            column_sum::accumulate(self.plan, "vector grad", (n, c), d, None, patches.grad(at), true);
        }
    }

    /// Adds `pᵀ·x` to the gradient of a trained matrix [O, I]; p: O columns of a wider buffer, x:[n, I].
    pub fn matrix_grad(&mut self, tensor: Tensor, n: usize, (p, col, o): (Narrow, usize, usize), (x, i): (Buf, usize)) {
        let Some((patches, at)) = self.active(tensor) else { return };
        let (off, rank, t, width) = (at as u32, o as u32, col as u32, i as u32);
        let whole = Factor { off, rank, t, width, scale: 1.0, ..Default::default() };
        let factors = [whole, Factor::default(), Factor::default()];
        let pair = Pair { t: p, x: Columns { buf: x, ld: i, col: 0 }, factors };
        low_rank::gradient(self.plan, "matrix grad", n, pair, None, patches.grads);
    }
}

/// Linears of one input: q, k and v; gate and up; or one by itself. Their outputs lie side by side in one buffer, and
/// they are one product where nothing sets one of them apart (`Group::runs`).
#[derive(Clone, Debug)]
pub struct Group {
    pub linears: Vec<Linear>,
}

#[derive(Clone, Debug)]
pub struct Linear {
    pub site: Site,
    /// Its rows of what may be one matrix with the others of its group.
    pub w: Matrix,
    pub bias: Option<Vector>,
    /// The first column of its output.
    pub col: usize,
}

/// What backward needs of forward, by run.
#[derive(Clone, Debug)]
pub struct Saved(Vec<SavedRun>);

#[derive(Clone, Copy, Debug, Default)]
struct SavedRun {
    /// dropout(x')·Aᵀ
    u: Option<Narrow>,
    /// x', where the input has a gain.
    scaled: Option<Buf>,
    /// z (with the bias, where that lies inside the gain) and g.
    gained: Option<Gained>,
}

#[derive(Clone, Copy, Debug)]
struct Gained {
    z: Buf,
    g: Vector,
    /// 1/‖W + s·B·A‖ where the gain follows from a magnitude.
    inv: Option<Buf>,
}

/// What the gradients of weights need of the way back, by run.
pub struct Flow(Vec<FlowRun>);

struct FlowRun {
    dz: Columns,
    du: Option<Narrow>,
    /// dx', where the input has a gain.
    d_scaled: Option<Buf>,
}

impl Group {
    pub fn width(&self) -> usize {
        self.linears.iter().map(|linear| linear.w.rows).sum()
    }

    /// Neighbours that are one product: of one format, and without what needs an input or an output of its own (a gain,
    /// dropout).
    fn runs(&self, cx: &Build) -> Vec<Run<'_>> {
        let mut runs: Vec<Run> = Vec::new();
        for (i, linear) in self.linears.iter().enumerate() {
            let (w, alone) = (cx.matrix(Tensor::Weight(linear.site), &linear.w), linear.stands_alone(cx));
            match runs.last_mut() {
                Some(run) if !alone && !run.alone && run.w.format == w.format => {
                    run.w = Matrix::stack([&run.w, &w]);
                    run.linears = &self.linears[i - run.linears.len()..=i];
                }
                _ => runs.push(Run { linears: &self.linears[i..=i], w, alone, ld: self.width() }),
            }
        }
        runs
    }

    /// `y = g∘(h∘x·Wᵀ + s·u·Bᵀ) + bias + residual`
    pub fn forward(&self, cx: &mut Build, x: Buf, residual: Option<Buf>, y: Buf) -> Saved {
        Saved(self.runs(cx).iter().map(|run| run.forward(cx, x, residual, Some(y))).collect())
    }

    /// Forward for backward's sake alone: its output is not made.
    pub fn recompute(&self, cx: &mut Build, x: Buf) -> Saved {
        Saved(self.runs(cx).iter().map(|run| run.forward(cx, x, None, None)).collect())
    }

    /// Where asked, the gradient of the input: `dx = dz·W + du·A`. Adds those of gains on the output and of biases.
    pub fn backward(&self, cx: &mut Build, saved: &Saved, dy: Buf, dx: Option<Buf>) -> Flow {
        let runs = self.runs(cx);
        let back = |(i, (run, saved)): (usize, (&Run, &SavedRun))| run.backward(cx, saved, dy, dx, i > 0);
        Flow(runs.iter().zip(&saved.0).enumerate().map(back).collect())
    }

    /// Whether [`Group::gradients`] has anything to do.
    pub fn needs_input(&self, cx: &Build) -> bool {
        self.linears.iter().any(|linear| {
            let low_or_gain = |patch: LinearPatch| patch.low_rank.is_some() || patch.input_gain.is_some();
            linear.patch(cx).is_some_and(|(_, patch)| low_or_gain(patch))
                || cx.active(Tensor::Weight(linear.site)).is_some()
        })
    }

    /// Adds the gradients of what is trained of the weights and on the input; `x` is forward's input.
    pub fn gradients(&self, cx: &mut Build, saved: &Saved, flow: &Flow, x: Buf) {
        for ((run, saved), flow) in self.runs(cx).iter().zip(&saved.0).zip(&flow.0) {
            run.gradients(cx, saved, flow, x);
        }
    }
}

impl Linear {
    fn patch<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, LinearPatch)> {
        let patches = cx.patches?;
        Some((patches, *patches.sites.get(&self.site)?))
    }

    fn stands_alone(&self, cx: &Build) -> bool {
        self.patch(cx).is_some_and(|(_, patch)| {
            let dropout = patch.low_rank.is_some_and(|low| cx.dropout && low.dropout > 0.0);
            dropout || patch.gain.is_some() || patch.input_gain.is_some()
        })
    }

    fn site_number(&self) -> u32 {
        (self.site.layer * 7) as u32 + self.site.module as u32
    }
}

/// Neighbouring linears of a group that are one product.
struct Run<'a> {
    linears: &'a [Linear],
    /// W, or its trained copy, of all of them.
    w: Matrix,
    /// It is one linear, with a gain or dropout.
    alone: bool,
    /// The group's width.
    ld: usize,
}

/// The low-rank updates of a run.
struct Low<'a> {
    patches: &'a Patches,
    /// Linears that files fuse share an A.
    a: Factors,
    b: Factors,
    /// The ranks of all As.
    rank: usize,
    /// Ranks that are trained, of each A and of each B.
    trained: [[u32; FACTORS]; 2],
}

impl Low<'_> {
    fn narrow(&self, cx: &mut Build, label: String) -> Narrow {
        Narrow { buf: cx.plan.temp(label, cx.n * self.rank), width: self.rank }
    }

    /// The factors less what is frozen.
    fn trained(&self, which: usize) -> Factors {
        let all = if which == 0 { self.a } else { self.b };
        std::array::from_fn(|i| Factor { rank: self.trained[which][i], ..all[i] })
    }
}

impl Run<'_> {
    fn label(&self) -> String {
        let names: Vec<&str> = self.linears.iter().map(|linear| linear.site.module.name()).collect();
        format!("layers.{}.{}", self.linears[0].site.layer, names.join("+"))
    }

    fn first(&self) -> &Linear {
        &self.linears[0]
    }

    /// The patch of the one linear that stands alone.
    fn own<'a>(&self, cx: &Build<'a>) -> Option<(&'a Patches, LinearPatch)> {
        self.first().patch(cx).filter(|_| self.alone)
    }

    /// Where the run's columns lie in a buffer of the group.
    fn within(&self, buf: Buf) -> Columns {
        Columns { buf, ld: self.ld, col: self.first().col }
    }

    /// b, or the trained copies of all.
    fn bias(&self, cx: &mut Build) -> Option<Vector> {
        let trained =
            |cx: &Build, linear: &Linear| cx.replaced(Tensor::Bias(linear.site)).map(|(patches, at)| patches.param(at));
        if !self.linears.iter().any(|linear| trained(cx, linear).is_some()) {
            return self.first().bias;
        }
        if let [linear] = self.linears {
            return trained(cx, linear);
        }
        let all = Columns { buf: cx.plan.temp("biases", self.w.rows), ld: self.w.rows, col: 0 };
        for linear in self.linears {
            let bias = trained(cx, linear).or(linear.bias).expect("all linears of a group have biases, or none");
            let place = Columns { col: linear.col - self.first().col, ..all };
            rows::copy(cx.plan, "copy", linear.w.rows, cx.zero, bias, place);
        }
        Some(Vector { buf: all.buf, off: 0 })
    }

    /// The low-rank updates, if there are any; `at` is where the run's outputs lie.
    fn low_rank<'a>(&self, cx: &Build<'a>, at: Columns) -> Option<Low<'a>> {
        let patches = cx.patches?;
        let mut low =
            Low { patches, a: Default::default(), b: Default::default(), rank: 0, trained: [[0; FACTORS]; 2] };
        let mut known = 0;
        for (i, linear) in self.linears.iter().enumerate() {
            let Some(update) = linear.patch(cx).and_then(|(_, patch)| patch.low_rank) else { continue };
            let (rank, trained) = (update.rank as u32, update.trained as u32);
            let shared = (0..known).find(|k| low.a[*k].off == update.a as u32);
            let k = shared.unwrap_or_else(|| {
                let (off, t, width) = (update.a as u32, low.rank as u32, self.w.cols as u32);
                low.a[known] = Factor { off, rank, t, width, scale: 1.0, ..Default::default() };
                low.trained[0][known] = trained;
                (known, low.rank) = (known + 1, low.rank + update.rank);
                known - 1
            });
            let col = (at.col + linear.col - self.first().col) as u32;
            let (off, width, scale) = (update.b as u32, linear.w.rows as u32, update.scale);
            low.b[i] = Factor { off, rank, t: low.a[k].t, col, width, scale, ..Default::default() };
            low.trained[1][i] = trained;
        }
        (known > 0).then_some(low)
    }

    /// Without `y` only what backward needs is made.
    fn forward(&self, cx: &mut Build, x: Buf, residual: Option<Buf>, y: Option<Buf>) -> SavedRun {
        let (label, own) = (self.label(), self.own(cx));
        let mut saved = SavedRun::default();
        let x = match own.and_then(|(patches, p)| Some(patches.param(p.input_gain?))) {
            Some(h) => *saved.scaled.insert(self.scale_input(cx, h, x)),
            None => x,
        };
        let gain = own.and_then(|(patches, patch)| Some((patches, patch, patch.gain?)));
        let z = gain.map(|_| Columns::from(cx.plan.temp(format!("{label} z"), cx.n * self.w.rows)));
        let Some(out) = z.or(y.map(|y| self.within(y))) else {
            saved.u = self.low_rank(cx, self.within(x)).map(|low| self.project(cx, &low, x));
            return saved;
        };
        let low = self.low_rank(cx, out);
        saved.u = low.as_ref().map(|low| self.project(cx, low, x));
        let term = low.zip(saved.u).map(|(low, t)| Lift { t, flat: low.patches.params, factors: low.b });
        let bias = self.bias(cx);
        let Some((patches, patch, g)) = gain else {
            let epilogue = Epilogue { low: term, bias, residual, accumulate: false };
            matmul::forward(cx.plan, &label, cx.n, x, &self.w, 1.0, epilogue, cx.none, out);
            return saved;
        };
        let (inside, outside) = if matches!(g, Gain::Learned(_)) { (bias, None) } else { (None, bias) };
        let epilogue = Epilogue { low: term, bias: inside, residual: None, accumulate: false };
        matmul::forward(cx.plan, &label, cx.n, x, &self.w, 1.0, epilogue, cx.none, out);
        let gained = *saved.gained.insert(self.gain(cx, patches, patch, g, out.buf));
        if let Some(y) = y {
            let y = self.within(y);
            gain::forward(cx.plan, &label, (cx.n, self.w.rows), out.buf, gained.g, outside, residual, cx.none, y);
        }
        saved
    }

    /// u = dropout(x)·Aᵀ
    fn project(&self, cx: &mut Build, low: &Low, x: Buf) -> Narrow {
        let label = self.label();
        let (u, input) = (low.narrow(cx, format!("{label} u")), self.dropped(cx, x));
        low_rank::project(cx.plan, &label, cx.n, input, self.w.cols, low.patches.params, low.a, u);
        u
    }

    fn scale_input(&self, cx: &mut Build, h: Vector, x: Buf) -> Buf {
        let label = self.label();
        let scaled = cx.plan.temp(format!("{label} scaled input"), cx.n * self.w.cols);
        gain::forward(cx.plan, &label, (cx.n, self.w.cols), x, h, None, None, cx.none, scaled);
        scaled
    }

    /// The gain as a vector. That of a magnitude is made of products with as many rows as the rank.
    fn gain(&self, cx: &mut Build, patches: &Patches, patch: LinearPatch, g: Gain, z: Buf) -> Gained {
        let magnitude = match g {
            Gain::Learned(at) => return Gained { z, g: patches.param(at), inv: None },
            Gain::Magnitude(at) => at,
        };
        let label = self.label();
        let low = patch.low_rank.expect("a magnitude comes with a low-rank update");
        let (o, i, r) = (self.w.rows, self.w.cols, low.rank);
        let a = Matrix::at(patches.params, low.a, WeightFormat::F32, r, i);
        let [aw, aa] = [("A·Wᵀ", o), ("A·Aᵀ", r)].map(|(what, width)| cx.plan.temp(what, r * width));
        let copy = cx.plan.temp("A", r * i);
        rows::copy(cx.plan, &label, r * i, cx.zero, patches.param(low.a), copy);
        matmul::forward(cx.plan, &label, r, copy, &self.w, 1.0, Epilogue::default(), cx.none, aw);
        matmul::forward(cx.plan, &label, r, copy, &a, 1.0, Epilogue::default(), cx.none, aa);
        let [inv, gain] = ["1/‖W + s·B·A‖", "gain"].map(|what| cx.plan.temp(what, o));
        let squares = patches.squares[&self.first().site];
        let of = Rows { params: patches.params, magnitude, b: low.b, rank: r, scale: low.scale, squares };
        row_gain::forward(cx.plan, &label, o, of, aw, aa, inv, gain);
        Gained { z, g: Vector { buf: gain, off: 0 }, inv: Some(inv) }
    }

    fn backward(&self, cx: &mut Build, saved: &SavedRun, dy: Buf, dx: Option<Buf>, accumulate: bool) -> FlowRun {
        let (label, n, i) = (self.label(), cx.n, self.w.cols);
        let dz = match saved.gained {
            Some(gained) => self.gain_backward(cx, gained, dy),
            None => self.within(dy),
        };
        // A bias inside a gain is scaled with it; no method trains both.
        for linear in self.linears {
            let columns = Columns { buf: dy, ld: self.ld, col: linear.col };
            cx.vector_grad(Tensor::Bias(linear.site), (n, linear.w.rows), columns);
        }
        let low = self.low_rank(cx, dz);
        let du = low.as_ref().map(|low| {
            let du = low.narrow(cx, format!("{label} du"));
            low_rank::project(cx.plan, &label, n, dz.buf, dz.ld, low.patches.params, low.b, du);
            du
        });
        let term = low.zip(du).map(|(low, t)| Lift { t, flat: low.patches.params, factors: low.a });
        let Some(h) = self.own(cx).and_then(|(patches, p)| Some(patches.param(p.input_gain?))) else {
            if let Some(dx) = dx {
                self.product_backward(cx, dz, term, dx, accumulate);
            }
            return FlowRun { dz, du, d_scaled: None };
        };
        let d_scaled = cx.plan.temp(format!("{label} dscaled"), n * i);
        self.product_backward(cx, dz, term, d_scaled, false);
        if let Some(dx) = dx {
            gain::backward(cx.plan, &label, (n, i), d_scaled, h, dx, accumulate);
        }
        FlowRun { dz, du, d_scaled: Some(d_scaled) }
    }

    /// Adds the gradient of the gain or of the magnitude behind it; returns dz.
    fn gain_backward(&self, cx: &mut Build, gained: Gained, dy: Buf) -> Columns {
        let (patches, patch) = self.own(cx).expect("a gain is an adapter's");
        let (label, o, dy) = (self.label(), self.w.rows, self.within(dy));
        let z = Some(gained.z.into());
        match (patch.gain.expect("there is a gain"), gained.inv) {
            (Gain::Learned(at), _) => {
                column_sum::accumulate(cx.plan, &label, (cx.n, o), dy, z, patches.grad(at), true);
            }
            (Gain::Magnitude(at), inv) => {
                let dg = Vector { buf: cx.plan.temp("dgain", o), off: 0 };
                column_sum::accumulate(cx.plan, &label, (cx.n, o), dy, z, dg, false);
                let inv = inv.map(Columns::from);
                column_sum::accumulate(cx.plan, &label, (1, o), dg.buf, inv, patches.grad(at), true);
            }
        }
        let dz = Columns { buf: cx.plan.temp(format!("{label} dz"), cx.n * o), ld: o, col: 0 };
        gain::backward(cx.plan, &label, (cx.n, o), dy, gained.g, dz.buf, false);
        dz
    }

    /// `dx (+)= dz·W + du·A`; with dropout, du·A passes through the mask before it joins dx.
    fn product_backward(&self, cx: &mut Build, dz: Columns, term: Option<Lift>, dx: Buf, accumulate: bool) {
        let (label, n, i) = (self.label(), cx.n, self.w.cols);
        let Some(low) = term.filter(|_| self.dropout(cx) > 0.0) else {
            matmul::backward(cx.plan, &label, n, dz, &self.w, term, accumulate, cx.none, dx);
            return;
        };
        matmul::backward(cx.plan, &label, n, dz, &self.w, None, accumulate, cx.none, dx);
        let through = cx.plan.temp(format!("{label} du·A"), n * i);
        let nothing = Matrix::at(low.flat, 0, WeightFormat::F32, 0, i);
        matmul::backward(cx.plan, &label, n, dz, &nothing, Some(low), false, cx.none, through);
        let (site, p) = (self.first().site_number(), self.dropout(cx));
        dropout::backward(cx.plan, &label, n * i, site, p, cx.control, through, dx);
    }

    fn gradients(&self, cx: &mut Build, saved: &SavedRun, flow: &FlowRun, x: Buf) {
        let (label, n, i) = (self.label(), cx.n, self.w.cols);
        if let Some((d_scaled, (patches, patch))) = flow.d_scaled.zip(self.own(cx)) {
            let h = patches.grad(patch.input_gain.expect("the input has a gain"));
            column_sum::accumulate(cx.plan, &label, (n, i), d_scaled, Some(x.into()), h, true);
        }
        let x = saved.scaled.unwrap_or(x);
        let dz = Narrow { buf: flow.dz.buf, width: flow.dz.ld };
        for linear in self.linears {
            let col = flow.dz.col + linear.col - self.first().col;
            cx.matrix_grad(Tensor::Weight(linear.site), n, (dz, col, linear.w.rows), (x, i));
        }
        let Some(low) = self.low_rank(cx, flow.dz) else { return };
        let (u, du) = saved.u.zip(flow.du).expect("a low-rank update has u and du");
        let input = Columns { buf: self.dropped(cx, x), ld: i, col: 0 };
        let of_a = Pair { t: du, x: input, factors: low.trained(0) };
        let of_b = Pair { t: u, x: flow.dz, factors: low.trained(1) };
        low_rank::gradient(cx.plan, &label, n, of_a, Some(of_b), low.patches.grads);
    }

    /// The rate of the dropout before A.
    fn dropout(&self, cx: &Build) -> f32 {
        let low = self.own(cx).and_then(|(_, patch)| patch.low_rank);
        low.filter(|_| cx.dropout).map_or(0.0, |low| low.dropout)
    }

    /// The input of A: x itself, or x with dropout in a temporary of its own.
    fn dropped(&self, cx: &mut Build, x: Buf) -> Buf {
        let rate = self.dropout(cx);
        if rate == 0.0 {
            return x;
        }
        let (label, len) = (self.label(), cx.n * self.w.cols);
        let y = cx.plan.temp(format!("{label} dropout"), len);
        dropout::forward(cx.plan, &label, len, self.first().site_number(), rate, cx.control, x, y);
        y
    }
}
