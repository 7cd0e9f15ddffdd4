//! Which of a kernel's shaders runs: by rule, or by measurement where the machine is unknown.
//!
//! No tile is good on every GPU, so on real ones each product's shaders are tried once on scratch buffers of its own
//! size. A shader counts only if it gives the numbers that the plainest one gives, so that a driver's bug costs speed
//! and not truth; it must also be clearly faster than the rule's choice, so that noise decides nothing. What was
//! measured is kept per adapter and driver, since a resumed run is to give the bits of an uninterrupted one: natively
//! in a file, in browsers by whoever opens the engine ([`Gpu::tune_with`]). By rule it goes on software drivers, which
//! are known, and where nothing keeps what was measured.

use super::{AdapterFacts, Gpu, Recipe};
use crate::clock::Instant;
use crate::error::Result;
use crate::plan::{Access, Elem, Plan, Sequence, Shader, Step, Style};
use std::collections::BTreeMap;

/// Time that measuring may take in all, compilation included, before nothing new is begun.
const BUDGET_MS: f64 = 1500.0;
/// Time that a round of one shader takes, about: a browser's clock is coarse, and its answers take their time.
const ROUND_MS: f64 = if cfg!(target_arch = "wasm32") { 10.0 } else { 4.0 };
/// Dispatches in a round, at most.
const MOST_TIMES: usize = 64;
/// A shader replaces the rule's choice where it takes at most this part of its time.
const CLEARLY: f64 = 0.9;
/// Largest difference between two shaders' results, as a part of the largest result.
const CLOSE: f32 = 1e-4;
/// The same where one of them keeps 11 bits of what it multiplies.
const CLOSE_HALF: f32 = 4e-3;
/// Steps with more to bind than this go by rule.
const MAX_BYTES: u64 = 256 << 20;
/// Bytes of the output that are compared, from its start and from its end.
const COMPARED: u64 = 64 << 10;

/// Whether a shader can compute a step on a machine, and is meant to.
fn fits(facts: &AdapterFacts, halves: bool, shader: &Shader, step: &Step) -> bool {
    let lanes = shader.constant("LANES");
    let skinny = shader.constant("SKINNY");
    let (rows, outs) = (step.grid[0], step.grid[1]);
    let fragment = shader.constant("FRAG");
    if shader.constant("HALF") > 0 && !halves {
        return false;
    }
    if fragment > 0 {
        return fragment == facts.fragment && lanes == facts.lanes;
    }
    (lanes <= 1 || (lanes == facts.lanes && rows >= 4 * lanes))
        && (skinny == 0 || rows <= skinny || outs <= skinny)
        && (shader.style == Style::Tiled || shader.constant("WIDE") <= outs.next_multiple_of(8))
}

/// Whether a step is large enough for what a shader takes to compile.
fn worth(shader: &Shader, step: &Step) -> bool {
    step.work.max(1) >> shader.constant("LARGE") > 0
}

/// The shader for a step where nothing is measured: of those that fit it and are worth it, the first of the machine's style,
/// or else the first.
pub fn by_rule(facts: &AdapterFacts, halves: bool, step: &Step) -> Option<&'static Shader> {
    let all = || step.kernel.shaders.iter().filter(|s| fits(facts, halves, s, step) && worth(s, step));
    all().find(|s| s.style == facts.style).or_else(|| all().next())
}

/// What was chosen for which step: "matmul.forward bf16 512x576x1 1.7e8" → "matmul_tiled TALL=8 ...".
#[derive(Default)]
pub(super) struct Choices {
    measure: bool,
    only: Option<String>,
    spent_ms: f64,
    known: BTreeMap<String, String>,
    /// Something is known that was not kept yet.
    new: bool,
    file: Option<std::path::PathBuf>,
}

impl Choices {
    pub fn of(facts: &AdapterFacts, halves: bool) -> Choices {
        let file = if facts.software { None } else { file_of(facts, halves) };
        let kept = file.as_ref().map(|file| read(file));
        Choices { measure: file.is_some(), known: kept.unwrap_or_default(), file, ..Default::default() }
    }

    /// Keeps what is known for the next process. A cache: where it cannot be written, the next one measures again.
    fn store(&mut self) {
        let Some(file) = &self.file else { return };
        self.new = false;
        // Another process may have measured meanwhile.
        let all: BTreeMap<_, _> = self.known.iter().map(|(k, v)| (k.clone(), v.clone())).chain(read(file)).collect();
        let aside = file.with_extension(format!("{}.part", std::process::id()));
        let text = serde_json::to_vec_pretty(&all).expect("strings");
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.and_then(|()| std::fs::write(&aside, text)).and_then(|()| std::fs::rename(&aside, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
    }
}

/// What a file holds; nothing where there is none that can be read.
fn read(file: &std::path::Path) -> BTreeMap<String, String> {
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(target_arch = "wasm32")]
fn file_of(_: &AdapterFacts, _: bool) -> Option<std::path::PathBuf> {
    None
}

/// One file an adapter, driver and version of this program; another where halves were allowed.
#[cfg(not(target_arch = "wasm32"))]
fn file_of(facts: &AdapterFacts, halves: bool) -> Option<std::path::PathBuf> {
    let name = name_of(facts) + if halves { "-f16.json" } else { ".json" };
    Some(crate::cache::dir().ok()?.join("presets").join(name))
}

fn name_of(facts: &AdapterFacts) -> String {
    let plain = |text: &str| text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
    plain(&format!("{} {} {} {}", facts.name, facts.backend, facts.driver, env!("CARGO_PKG_VERSION")))
}

/// A step's kind of problem.
fn key(step: &Step) -> String {
    let [x, y, z] = step.grid;
    format!("{} {x}x{y}x{z} {:.1e}", step.name(), step.work as f64)
}

impl Gpu {
    /// The name to keep under what is measured on this adapter.
    pub fn tuning_name(&self) -> String {
        name_of(&self.facts)
    }

    /// Measures from here on, where what was kept (as [`Gpu::newly_tuned`] gave it) does not tell already.
    pub fn tune_with(&mut self, kept: &str) {
        // A file that cannot be read is one that is not there.
        let known = serde_json::from_str(kept).unwrap_or_default();
        self.choices = Choices { measure: true, known, ..Default::default() };
    }

    /// All that is known now, to be kept, where it is more than when this was asked last.
    pub fn newly_tuned(&mut self) -> Option<String> {
        let new = std::mem::take(&mut self.choices.new);
        new.then(|| serde_json::to_string_pretty(&self.choices.known).expect("strings"))
    }

    /// What was measured and chosen: step → shader.
    pub fn tuned(&self) -> &BTreeMap<String, String> {
        &self.choices.known
    }

    /// Takes the shader of this name (its `Display`) wherever it can run: for tests and benches.
    pub fn set_shader(&mut self, name: Option<&str>) {
        self.choices.only = name.map(String::from);
    }

    /// Whether the shader of this name can run at all: it fits a step of the plan on this machine.
    pub fn has_use_for(&self, plan: &Plan, name: &str) -> bool {
        let steps = plan.sequences.iter().flat_map(|sequence| &sequence.steps);
        let mut pairs = steps.flat_map(|step| step.kernel.shaders.iter().map(move |shader| (shader, step)));
        pairs.any(|(shader, step)| shader.to_string() == name && self.fits(shader, step))
    }

    fn fits(&self, shader: &Shader, step: &Step) -> bool {
        fits(&self.facts, self.halves, shader, step)
    }

    /// The shader for a step: the one asked for, else the one measured, else that of the rule.
    pub(super) fn choice(&self, step: &Step) -> &'static Shader {
        let fitting = || step.kernel.shaders.iter().filter(|s| self.fits(s, step));
        let named = |name: &String| fitting().find(|s| s.to_string() == *name);
        let Choices { only, known, .. } = &self.choices;
        let chosen = only
            .as_ref()
            .and_then(named)
            .or_else(|| known.get(&key(step)).and_then(named))
            .or_else(|| by_rule(&self.facts, self.halves, step));
        chosen.unwrap_or(&step.kernel.shaders[0])
    }

    /// Measures the products of new sequences, the heaviest first, until the time is spent.
    pub(super) async fn tune(&mut self, plan: &Plan, sequences: &[Sequence]) -> Result<()> {
        if !self.choices.measure {
            return Ok(());
        }
        let mut kinds: BTreeMap<String, (&Step, u64)> = BTreeMap::new();
        for step in sequences.iter().flat_map(|s| &s.steps).filter(|s| self.measurable(plan, s)) {
            kinds.entry(key(step)).or_insert((step, 0)).1 += step.work;
        }
        let mut kinds: Vec<_> = kinds.into_iter().filter(|(k, _)| !self.choices.known.contains_key(k)).collect();
        kinds.sort_by_key(|(_, (_, work))| std::cmp::Reverse(*work));
        let any = !kinds.is_empty();
        for (key, (step, _)) in kinds {
            let start = Instant::now();
            let in_time = self.choices.spent_ms < BUDGET_MS;
            let fastest = if in_time { self.fastest(plan, step).await? } else { None };
            // What the time did not reach stays with the rule, also in the next process: the same bits.
            let shader = fastest.unwrap_or_else(|| self.choice(step));
            self.choices.known.insert(key, shader.to_string());
            self.choices.spent_ms += start.elapsed_ms();
        }
        if any {
            self.choices.new = true;
            self.choices.store();
        }
        Ok(())
    }

    /// Several shaders fit, and any floats will do as input.
    fn measurable(&self, plan: &Plan, step: &Step) -> bool {
        let bytes: u64 = step.bufs.iter().map(|b| plan.decl(*b).len as u64 * 4).sum();
        let floats = |(i, b)| plan.decl(b).elem == Elem::Float || (i == 1 && step.format.is_some());
        step.format.is_some()
            && step.kernel.shaders.iter().filter(|s| self.fits(s, step)).count() > 1
            && bytes <= MAX_BYTES
            && step.bufs.iter().copied().enumerate().all(floats)
    }

    /// What is to be compared with the plainest shader: the rule's choice, which the others must beat, then what is
    /// likely to be fastest.
    fn rivals(&self, step: &Step, plain: &Shader, by_rule: &Shader) -> Vec<&'static Shader> {
        let all = step.kernel.shaders.iter().filter(|s| !std::ptr::eq(*s, plain) && self.fits(s, step));
        let mut all: Vec<_> = all.filter(|s| worth(s, step)).collect();
        all.sort_by_key(|s| {
            std::cmp::Reverse((std::ptr::eq(*s, by_rule), s.constant("FRAG") > 0, s.constant("HALF") > 0))
        });
        all
    }

    /// The fastest shader that gives the plainest one's numbers; `None` where the time ran out first.
    async fn fastest(&mut self, plan: &Plan, step: &Step) -> Result<Option<&'static Shader>> {
        let by_rule = self.choice(step);
        let plain = step.kernel.shaders.iter().find(|s| s.style == Style::Direct && s.constant("LANES") <= 1);
        let plain = plain.unwrap_or(by_rule);
        let rivals = self.rivals(step, plain, by_rule);
        // Natively several threads compile them; a browser would have to make all before the first is measured.
        if cfg!(not(target_arch = "wasm32")) {
            let recipes: Vec<_> = [plain].iter().chain(&rivals).map(|s| Recipe::new(step, s)).collect();
            self.pipelines.make_ahead(recipes.into_iter());
        }
        let start = Instant::now();
        let trial = Trial::new(self, plan, step);
        let Some((mut best_ms, want)) = trial.run(self, step, plain).await? else { return Ok(None) };
        let mut best = plain;
        for shader in rivals {
            if self.choices.spent_ms + start.elapsed_ms() > BUDGET_MS {
                break;
            }
            let Some((ms, got)) = trial.run(self, step, shader).await? else { continue };
            let needed = if std::ptr::eq(shader, by_rule) { 1.0 / CLEARLY } else { CLEARLY };
            let apart = if shader.constant("HALF") > 0 { CLOSE_HALF } else { CLOSE };
            if close(&got, &want, apart) && ms < best_ms * needed {
                (best, best_ms) = (shader, ms);
            }
        }
        Ok(Some(best))
    }
}

/// Whether two results are the same but for rounding. Nothing but zeros proves nothing.
fn close(got: &[f32], want: &[f32], most: f32) -> bool {
    let scale = want.iter().fold(0f32, |a, x| a.max(x.abs()));
    let mut apart = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    // A NaN is not at most anything.
    scale > 0.0 && scale.is_finite() && apart.all(|d| d <= most * scale)
}

/// Scratch buffers of a step's sizes.
struct Trial {
    bufs: Vec<wgpu::Buffer>,
    output: usize,
    params: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl Trial {
    fn new(gpu: &Gpu, plan: &Plan, step: &Step) -> Trial {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = |size: u64, usage| {
            let desc = wgpu::BufferDescriptor { label: Some("trial"), size, usage, mapped_at_creation: false };
            gpu.device.create_buffer(&desc)
        };
        let size = |b| (plan.decl(b).len as u64 * 4).next_multiple_of(16);
        let bufs: Vec<_> = step.bufs.iter().map(|b| buffer(size(*b), usage)).collect();
        for (i, buf) in bufs.iter().enumerate() {
            fill(&gpu.queue, buf, i == 1);
        }
        let params = buffer(gpu.param_stride as u64, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        gpu.queue.write_buffer(&params, 0, bytemuck::cast_slice(&step.params));
        let output = step.access.iter().rposition(|a| *a != Access::Read).expect("a step writes");
        let staging = super::new_staging(&gpu.device, 2 * COMPARED);
        Trial { bufs, output, params, staging }
    }

    /// Milliseconds of one dispatch, and its results before and after it was timed; `None` where the driver refuses the
    /// shader.
    async fn run(&self, gpu: &mut Gpu, step: &Step, shader: &'static Shader) -> Result<Option<(f64, Vec<f32>)>> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| gpu.device.push_error_scope(filter));
        let pipeline = gpu.pipeline(step, shader);
        let mut refused = false;
        for scope in scopes.into_iter().rev() {
            refused |= scope.pop().await.is_some();
        }
        let (pipeline, layout) = pipeline?;
        if refused {
            return Ok(None);
        }
        let params = [self.params.clone()];
        let binds =
            [bind(gpu, &layout, &self.bufs, None), bind(gpu, &gpu.params_layout, &params, Some(gpu.param_stride))];
        let groups = super::groups(step, shader);
        // The output may be added to, so each shader starts from the same.
        fill(&gpu.queue, &self.bufs[self.output], false);
        let (_, mut words) = self.round(gpu, &pipeline, &binds, groups, 1).await?;
        // What it takes to ask and to be answered, which can be longer than a small product.
        let idle = self.round(gpu, &pipeline, &binds, groups, 0).await?.0;
        let mut times = 1;
        let mut best = self.round(gpu, &pipeline, &binds, groups, times).await?.0;
        while best - idle < ROUND_MS / 2.0 && times < MOST_TIMES {
            times *= 4;
            best = self.round(gpu, &pipeline, &binds, groups, times).await?.0;
        }
        for _ in 0..2 {
            best = best.min(self.round(gpu, &pipeline, &binds, groups, times).await?.0);
        }
        // Once more: invocations that do not wait for each other as they should may have been lucky.
        fill(&gpu.queue, &self.bufs[self.output], false);
        words.extend(self.round(gpu, &pipeline, &binds, groups, 1).await?.1);
        let ms = (best - idle).max(1e-3) / times as f64;
        Ok(Some((ms, words.into_iter().map(f32::from_bits).collect())))
    }

    /// Milliseconds that so many dispatches in a row take, and what they leave.
    async fn round(
        &self,
        gpu: &Gpu,
        pipeline: &wgpu::ComputePipeline,
        binds: &[wgpu::BindGroup; 2],
        groups: [u32; 3],
        times: usize,
    ) -> Result<(f64, Vec<u32>)> {
        let start = Instant::now();
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &binds[0], &[]);
        pass.set_bind_group(1, &binds[1], &[0]);
        for _ in 0..times {
            pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        }
        drop(pass);
        let out = &self.bufs[self.output];
        let part = out.size().min(COMPARED);
        encoder.copy_buffer_to_buffer(out, 0, &self.staging, 0, part);
        encoder.copy_buffer_to_buffer(out, out.size() - part, &self.staging, COMPARED, part);
        gpu.queue.submit([encoder.finish()]);
        let words = gpu.map(&self.staging, 2 * COMPARED).await?;
        Ok((start.elapsed_ms(), words))
    }
}

fn bind(gpu: &Gpu, layout: &wgpu::BindGroupLayout, bufs: &[wgpu::Buffer], size: Option<usize>) -> wgpu::BindGroup {
    let size = size.and_then(|size| std::num::NonZeroU64::new(size as u64));
    let entries: Vec<_> = bufs
        .iter()
        .enumerate()
        .map(|(i, buffer)| {
            let binding = wgpu::BufferBinding { buffer, offset: 0, size };
            wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(binding) }
        })
        .collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

/// Fills a buffer with numbers: floats of -1 to 1, or words that are moderate weights in every format (as halves, bf16
/// pairs, floats, and blocks whose scale is a half).
fn fill(queue: &wgpu::Queue, buf: &wgpu::Buffer, weights: bool) {
    const BLOCK: usize = 1 << 16;
    let word = |i: usize| {
        let random = (crate::num::uniform(11, 0, i as u64) * u32::MAX as f64) as u32;
        if weights {
            (random & 0x83ff_83ff) | 0x3800_3800
        } else {
            (random as f32 / u32::MAX as f32 * 2.0 - 1.0).to_bits()
        }
    };
    let block: Vec<u32> = (0..BLOCK.min(buf.size() as usize / 4)).map(word).collect();
    for at in (0..buf.size()).step_by(BLOCK * 4) {
        let len = (buf.size() - at).min(BLOCK as u64 * 4) as usize;
        queue.write_buffer(buf, at, &bytemuck::cast_slice(&block)[..len]);
    }
}
