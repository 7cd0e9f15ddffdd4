//! Executes a plan on wgpu: the only room that knows of it.
//!
//! A sequence is compiled once: pipelines, bind groups and one uniform buffer of parameters with dynamic offsets. A run
//! encodes its dispatches into few passes and cuts submits to about [`SUBMIT_MS`] each, so that no watchdog fires on
//! slow GPUs; the cut is found from the times of earlier runs.

mod adapters;
mod pipelines;
mod shader;
#[cfg(target_arch = "wasm32")]
mod subgroups;
mod tune;

pub use adapters::{AdapterFacts, FRAGMENTS, list, open};
use shader::mentions;
pub use shader::{assemble, defaults};
pub use tune::by_rule;

use crate::clock::{Instant, Profile};
use crate::error::{Error, Result};
use crate::plan::memory::{Memory, Place};
use crate::plan::{Buf, MAX_GROUPS, MAX_PARAMS, Plan, SequenceId, Shader, Step, Style};
use pipelines::{Pipeline, Pipelines, Recipe};
use std::sync::{Arc, Mutex};

/// GPU time a submit may take.
const SUBMIT_MS: f64 = 100.0;
/// Multiply-adds in a submit before the speed of the machine is known: about 20 ms on a software GPU.
const FIRST_CUT: f64 = 1e8;

/// Bytes of the staging buffer that reads share: the report ring's.
const KEPT_STAGING: u64 = 4096;

/// Errors that arrive outside of any call, the first of each kind. A lost device has others in its train.
#[derive(Default)]
pub(crate) struct Faults {
    lost: Option<String>,
    no_memory: Option<String>,
    other: Option<String>,
}

pub(crate) type Fault = Arc<Mutex<Faults>>;

impl Faults {
    fn check(&self, bytes: u64) -> Result<()> {
        match self {
            Faults { lost: Some(what), .. } => Err(Error::device_lost(what)),
            Faults { no_memory: Some(what), .. } => Err(out_of_memory(bytes, what)),
            Faults { other: Some(what), .. } => Err(failed(what)),
            _ => Ok(()),
        }
    }
}

/// Notes what happens to a device from here on.
fn watch(device: &wgpu::Device) -> Fault {
    let fault = Fault::default();
    let (uncaptured, lost) = (fault.clone(), fault.clone());
    device.on_uncaptured_error(Arc::new(move |error| {
        let mut faults = uncaptured.lock().expect("not poisoned");
        let kind = match error {
            wgpu::Error::OutOfMemory { .. } => &mut faults.no_memory,
            _ => &mut faults.other,
        };
        kind.get_or_insert(error.to_string());
    }));
    device.set_device_lost_callback(move |reason, what| {
        let what = format!("{reason:?} {what}").trim().to_string();
        lost.lock().expect("not poisoned").lost.get_or_insert(what);
    });
    fault
}

struct Dispatch {
    name: String,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: [u32; 3],
    work: u64,
    skip_up_to: u32,
}

struct Compiled {
    params: wgpu::Buffer,
    params_group: wgpu::BindGroup,
    dispatches: Vec<Dispatch>,
}

pub struct Gpu {
    pub facts: AdapterFacts,
    device: wgpu::Device,
    queue: wgpu::Queue,
    fault: Fault,
    memory: Memory,
    own: Vec<Option<wgpu::Buffer>>,
    slots: Vec<wgpu::Buffer>,
    params_layout: wgpu::BindGroupLayout,
    pipelines: Pipelines,
    compiled: Vec<Compiled>,
    param_stride: usize,
    cut: f64,
    pending_work: f64,
    pending_since: Option<Instant>,
    staging: Option<wgpu::Buffer>,
    choices: tune::Choices,
    /// Tiles may be kept as halves.
    halves: bool,
    /// When set (natively), each dispatch is submitted and waited for alone.
    pub profile: Option<Profile>,
}

impl Gpu {
    pub(crate) fn new(facts: AdapterFacts, device: wgpu::Device, queue: wgpu::Queue, halves: bool) -> Gpu {
        let fault = watch(&device);
        let params_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("params"),
            entries: &[entry(0, wgpu::BufferBindingType::Uniform, true)],
        });
        let choices = tune::Choices::of(&facts, halves);
        let param_stride = (device.limits().min_uniform_buffer_offset_alignment as usize).max(MAX_PARAMS);
        let staging = new_staging(&device, KEPT_STAGING);
        let pipelines = Pipelines::new(device.clone(), params_layout.clone());
        Gpu {
            facts,
            device,
            queue,
            fault,
            memory: Memory::default(),
            own: Vec::new(),
            slots: Vec::new(),
            params_layout,
            pipelines,
            compiled: Vec::new(),
            param_stride,
            cut: FIRST_CUT,
            pending_work: 0.0,
            pending_since: None,
            staging: Some(staging),
            choices,
            halves,
            profile: None,
        }
    }

    /// Whether products may keep their factors as halves.
    pub fn halves(&self) -> bool {
        self.halves
    }

    /// The largest binding in bytes: larger matrices are split by rows.
    pub fn max_binding(&self) -> u64 {
        let limits = self.device.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// Allocates and compiles what was added to the plan since the last call.
    pub async fn prepare(&mut self, plan: &Plan) -> Result<()> {
        let known = self.own.len();
        self.memory.extend(plan);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        for (i, decl) in plan.bufs.iter().enumerate().skip(known) {
            self.own.push(match self.memory.places[i] {
                Place::Own => Some(self.buffer(&decl.label, decl.len)?),
                _ => None,
            });
        }
        let moved = self.allocate_slots()?;
        if let Some(err) = scope.pop().await {
            return Err(out_of_memory(self.memory.bytes(plan), &err.to_string()));
        }
        let first = if moved { 0 } else { self.compiled.len() };
        self.compiled.truncate(first);
        if plan.sequences.len() > first {
            self.pipelines.settle().await;
        }
        self.tune(plan, &plan.sequences[first..]).await?;
        for sequence in &plan.sequences[first..] {
            let compiled = self.compile(plan, &sequence.steps)?;
            self.compiled.push(compiled);
        }
        self.check()
    }

    /// Creates new slots and replaces those that grew; true when an old one was replaced.
    fn allocate_slots(&mut self) -> Result<bool> {
        let mut moved = false;
        for i in 0..self.memory.slots.len() {
            let len = self.memory.slots[i].len;
            if i < self.slots.len() && self.slots[i].size() >= len as u64 * 4 {
                continue;
            }
            let buffer = self.buffer(&format!("slot {i}"), len)?;
            if i < self.slots.len() {
                self.slots[i].destroy();
                self.slots[i] = buffer;
                moved = true;
            } else {
                self.slots.push(buffer);
            }
        }
        Ok(moved)
    }

    fn buffer(&self, label: &str, len: usize) -> Result<wgpu::Buffer> {
        let size = (len as u64 * 4).next_multiple_of(16);
        if size > self.max_binding() {
            let what = format!("{label} needs {size} bytes, the device binds at most {}", self.max_binding());
            return Err(Error::device(
                what,
                "use --device cpu, a smaller model, adapter or batch, or fewer new tokens",
            ));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        Ok(self.device.create_buffer(&desc))
    }

    /// Bytes of the buffers that exist, counted from the buffers themselves.
    pub fn allocated(&self) -> u64 {
        let params = self.compiled.iter().map(|c| c.params.size());
        self.own.iter().flatten().chain(&self.slots).chain(&self.staging).map(|b| b.size()).chain(params).sum()
    }

    /// Bytes of the uniform buffers that hold the steps' parameters, and of the staging buffer.
    pub fn step_bytes(&self, plan: &Plan) -> u64 {
        let params = plan.sequences.iter().map(|s| (s.steps.len() * self.param_stride).max(16) as u64);
        params.sum::<u64>() + KEPT_STAGING
    }

    fn compile(&mut self, plan: &Plan, steps: &[Step]) -> Result<Compiled> {
        let mut words = vec![0u32; (steps.len() * self.param_stride / 4).max(4)];
        let mut dispatches = Vec::with_capacity(steps.len());
        for (i, step) in steps.iter().enumerate() {
            words[i * self.param_stride / 4..][..step.params.len()].copy_from_slice(&step.params);
            dispatches.push(self.dispatch(plan, step)?);
        }
        let params = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: words.len() as u64 * 4,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&params, 0, bytemuck::cast_slice(&words));
        let params_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params"),
            layout: &self.params_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &params,
                    offset: 0,
                    size: std::num::NonZeroU64::new(self.param_stride as u64),
                }),
            }],
        });
        Ok(Compiled { params, params_group, dispatches })
    }

    fn dispatch(&mut self, plan: &Plan, step: &Step) -> Result<Dispatch> {
        let shader = self.choice(step);
        let (pipeline, layout) = self.pipeline(step, shader)?;
        let entries: Vec<_> = step
            .bufs
            .iter()
            .enumerate()
            .map(|(i, buf)| {
                let (buffer, len) = (self.buffer_of(*buf), plan.decl(*buf).len as u64 * 4);
                let size = std::num::NonZeroU64::new(len.next_multiple_of(16));
                let binding = wgpu::BufferBinding { buffer, offset: 0, size };
                wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(binding) }
            })
            .collect();
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&step.label),
            layout: &layout,
            entries: &entries,
        });
        Ok(Dispatch {
            name: step.name(),
            pipeline,
            bind_group,
            groups: groups(step, shader),
            work: step.work,
            skip_up_to: step.skip_up_to,
        })
    }

    /// The pipeline of a step, shared by all steps with the same source.
    fn pipeline(&mut self, step: &Step, shader: &'static Shader) -> Result<Pipeline> {
        let pipeline = self.pipelines.get(&Recipe::new(step, shader));
        self.check()?;
        Ok(pipeline)
    }

    /// Has the pipelines of plans made that will probably be run, beside what is done meanwhile. Nothing of the plans
    /// is allocated, nothing is waited for, and nothing fails here. How large a run's steps are is no part of the guess,
    /// so what only large ones are worth is left out.
    pub fn make_ahead(&mut self, plans: &[Plan]) {
        let steps = plans.iter().flat_map(|plan| &plan.sequences).flat_map(|sequence| &sequence.steps);
        let chosen = steps.map(|step| (step, self.choice(step))).filter(|(_, shader)| shader.constant("LARGE") == 0);
        let recipes: Vec<_> = chosen.map(|(step, shader)| Recipe::new(step, shader)).collect();
        self.pipelines.make_ahead(recipes.into_iter());
    }

    /// Pipelines that were made only when they were wanted, and those made ahead that were not wanted so far.
    pub fn late_and_unused(&self) -> (usize, usize) {
        self.pipelines.late_and_unused()
    }

    fn buffer_of(&self, buf: Buf) -> &wgpu::Buffer {
        match self.memory.places[buf.0 as usize] {
            Place::Own => self.own[buf.0 as usize].as_ref().expect("a live buffer"),
            Place::Slot(s) => &self.slots[s],
            Place::Unused => panic!("buffer {} belongs to no sequence", buf.0),
        }
    }

    /// Takes effect before the next run.
    pub fn write(&mut self, buf: Buf, offset: usize, words: &[u32]) {
        self.queue.write_buffer(self.buffer_of(buf), offset as u64 * 4, bytemuck::cast_slice(words));
    }

    /// Hands all staged writes to the device, so that streaming a large model does not pile them up.
    pub fn flush(&mut self) {
        self.queue.submit([]);
    }

    pub fn run(&mut self, sequence: SequenceId, rows: u32) -> Result<()> {
        self.pending_since.get_or_insert_with(Instant::now);
        let compiled = &self.compiled[sequence];
        let active = |d: &&Dispatch| rows > d.skip_up_to || d.skip_up_to == 0;
        let stride = self.param_stride as u32;
        let mut steps = compiled.dispatches.iter().enumerate().filter(|(_, d)| active(d)).peekable();
        while steps.peek().is_some() {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let mut work = 0.0;
            let cut = if self.profile.is_some() { 0.0 } else { self.cut };
            let (mut name, start) = (None, Instant::now());
            while let Some((i, d)) = steps.next_if(|(_, d)| work == 0.0 || work + d.work as f64 <= cut) {
                pass.set_pipeline(&d.pipeline);
                pass.set_bind_group(0, &d.bind_group, &[]);
                pass.set_bind_group(1, &compiled.params_group, &[i as u32 * stride]);
                pass.dispatch_workgroups(d.groups[0], d.groups[1], d.groups[2]);
                work += (d.work as f64).max(1.0);
                name = Some(&d.name);
            }
            drop(pass);
            self.queue.submit([encoder.finish()]);
            self.pending_work += work;
            if let (Some(profile), Some(name)) = (&mut self.profile, name) {
                self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| failed(&e.to_string()))?;
                let (runs, ms) = profile.entry(name.clone()).or_default();
                (*runs, *ms) = (*runs + 1, *ms + start.elapsed_ms());
            }
        }
        self.check()
    }

    /// Reads `len` words after everything submitted so far is done.
    pub async fn read(&mut self, buf: Buf, offset: usize, len: usize) -> Result<Vec<u32>> {
        let size = len as u64 * 4;
        // Small reads, every few steps, share a buffer; a whole adapter, read at times, gets one of its own. Taken, not
        // borrowed: a read that fails leaves it mapped, and then it must not be used again.
        let kept = if size <= KEPT_STAGING { self.staging.take() } else { None };
        let staging = kept.unwrap_or_else(|| new_staging(&self.device, size));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(self.buffer_of(buf), offset as u64 * 4, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        let words = self.map(&staging, size).await?;
        if size <= KEPT_STAGING {
            self.staging = Some(staging);
        } else {
            staging.destroy();
        }
        self.calibrate();
        Ok(words)
    }

    /// The first `size` bytes of a staging buffer, after everything submitted so far is done.
    async fn map(&self, staging: &wgpu::Buffer, size: u64) -> Result<Vec<u32>> {
        let (send, receive) = futures_channel::oneshot::channel();
        staging.slice(..size).map_async(wgpu::MapMode::Read, move |r| {
            let _ = send.send(r);
        });
        #[cfg(not(target_arch = "wasm32"))]
        let mapped = {
            let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
            self.check()?;
            polled.map_err(|e| failed(&e.to_string()))?;
            // Everything submitted is done, so the answer is there; a device that is gone may give none.
            { receive }.try_recv().ok().flatten()
        };
        #[cfg(target_arch = "wasm32")]
        let mapped = receive.await.ok();
        #[cfg(target_arch = "wasm32")]
        if !matches!(mapped, Some(Ok(()))) {
            self.hear_the_cause().await;
        }
        self.check()?;
        mapped.ok_or_else(|| failed("a read was dropped"))?.map_err(|e| failed(&e.to_string()))?;
        let words = {
            let view = staging.slice(..size).get_mapped_range().map_err(|e| failed(&e.to_string()))?;
            bytemuck::pod_collect_to_vec(&view)
        };
        staging.unmap();
        Ok(words)
    }

    /// A refused read is told before the loss of the device that is its cause, which comes from another process.
    #[cfg(target_arch = "wasm32")]
    async fn hear_the_cause(&self) {
        const PATIENCE_MS: f64 = 2000.0;
        let start = Instant::now();
        while self.check().is_ok() && start.elapsed_ms() < PATIENCE_MS {
            crate::clock::turn().await;
        }
    }

    /// Everything submitted is done: the time since the first submit gives the speed, and so the next cut.
    fn calibrate(&mut self) {
        let Some(since) = self.pending_since.take() else { return };
        let ms = since.elapsed_ms();
        if self.pending_work > self.cut / 2.0 && ms > 0.0 {
            let fits = self.pending_work / ms * SUBMIT_MS;
            self.cut = fits.clamp(self.cut / 2.0, self.cut * 8.0).max(FIRST_CUT / 10.0);
        }
        self.pending_work = 0.0;
    }

    fn check(&self) -> Result<()> {
        self.fault.lock().expect("not poisoned").check(self.allocated())
    }

    /// Gives the device up, as a driver's reset would: for tests of what happens then.
    pub fn lose(&self) {
        self.device.destroy();
    }

    /// Overrides the choice of shaders: tests and benches run all families on one adapter.
    pub fn set_style(&mut self, style: Style) {
        self.facts.style = style;
    }
}

fn new_staging(device: &wgpu::Device, size: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: size.max(KEPT_STAGING),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn entry(binding: u32, ty: wgpu::BufferBindingType, has_dynamic_offset: bool) -> wgpu::BindGroupLayoutEntry {
    let ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None };
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}

/// Invocations of a direct shader's workgroup along x and y. Those that share loads lie along x.
fn workgroup(step: &Step, shader: &Shader) -> [u32; 2] {
    match shader.constant("LANES") {
        0 | 1 => step.workgroup,
        lanes => [4 * lanes, 1],
    }
}

/// Workgroups that cover the grid. Kernels that know their number stride over what exceeds the limit; the others have a
/// workgroup a tile, or a token, and no plan has so many.
fn groups(step: &Step, shader: &Shader) -> [u32; 3] {
    let grow = if shader.style == Style::Direct { workgroup(step, shader) } else { [1, 1] };
    let tile = [shader.tile[0] * grow[0], shader.tile[1] * grow[1], shader.tile[2]];
    let groups: [u32; 3] = std::array::from_fn(|d| step.grid[d].div_ceil(tile[d]).max(1));
    let strides = mentions(shader, "num_workgroups") && groups[1..] == [1, 1];
    assert!(strides || groups.iter().all(|g| *g <= MAX_GROUPS), "{:?} {}: {groups:?} groups", step.kernel, step.label);
    groups.map(|g| g.min(MAX_GROUPS))
}

fn failed(what: &str) -> Error {
    Error::device(format!("the GPU failed: {what}"), "try again; lower --batch-size or --seq-len, or use --device cpu")
}

fn out_of_memory(bytes: u64, what: &str) -> Error {
    Error::out_of_memory(&format!("on the GPU: {what}"), bytes)
}
