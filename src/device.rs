//! The executors behind one face: a real or software GPU, the CPU in f32, or the CPU in f64 as reference.

use crate::clock;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::gpu::{self, Gpu};
use crate::plan::{Buf, Plan, SequenceId};

/// `--device`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(target_arch = "wasm32"), derive(clap::ValueEnum))]
pub enum DeviceChoice {
    /// A real GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// A GPU, also a software one.
    #[serde(alias = "webgpu")]
    Gpu,
    Cpu,
}

pub enum Device {
    Gpu(Box<Gpu>),
    Cpu(Cpu<f32>),
    /// f64 everywhere: tests only.
    Reference(Cpu<f64>),
}

/// What runs are computed on, for people and programs.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    pub kind: &'static str,
    pub description: String,
    /// A GPU whose driver computes on the CPU.
    pub software: bool,
}

/// What the user should know, but nobody has to handle.
fn note(text: &str) {
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("note: {text}");
    #[cfg(target_arch = "wasm32")]
    web_sys::console::warn_1(&text.into());
}

const NO_ADAPTER: &str = if cfg!(target_arch = "wasm32") {
    "use --device cpu, or a browser that has WebGPU and a page that came over https"
} else {
    "use --device cpu, or install a Vulkan, Metal or DX12 driver"
};

impl Device {
    pub async fn open(choice: DeviceChoice) -> Result<Device> {
        Device::open_with(choice, false).await
    }

    /// `fp16`: products keep their factors as halves, on matrix units where the GPU has them and they are right. Sums,
    /// and everything beside products, stay f32. Nothing but a GPU that computes with halves will do then.
    pub async fn open_with(choice: DeviceChoice, fp16: bool) -> Result<Device> {
        let device = Device::found(choice, fp16).await?;
        if fp16 && !device.fp16() {
            let what = format!("fp16 was asked for, and {} does not compute with halves", device.describe());
            return Err(Error::device(what, "leave fp16 out, or take a GPU that does"));
        }
        if fp16 && matches!(&device, Device::Gpu(gpu) if gpu.facts.software) {
            note(&format!("fp16 gains nothing on {}: its products stay in f32", device.describe()));
        }
        Ok(device)
    }

    async fn found(choice: DeviceChoice, fp16: bool) -> Result<Device> {
        match choice {
            DeviceChoice::Cpu => Ok(Device::cpu()),
            DeviceChoice::Auto => match gpu::open(false, fp16).await {
                Ok(Some(gpu)) => Ok(Device::Gpu(Box::new(gpu))),
                Ok(None) => Ok(Device::cpu()),
                Err(error) => {
                    note(&format!("the GPU is not used: {error}"));
                    Ok(Device::cpu())
                }
            },
            DeviceChoice::Gpu => match gpu::open(true, fp16).await? {
                Some(gpu) => Ok(Device::Gpu(Box::new(gpu))),
                None => Err(Error::device("no GPU adapter was found", NO_ADAPTER)),
            },
        }
    }

    pub fn cpu() -> Device {
        Device::Cpu(Cpu::new())
    }

    pub fn reference() -> Device {
        Device::Reference(Cpu::new())
    }

    pub fn describe(&self) -> String {
        match self {
            Device::Gpu(g) => {
                let soft = if g.facts.software { ", software" } else { "" };
                let fp16 = if self.fp16() { ", fp16" } else { "" };
                format!("{} ({}{soft}{fp16})", g.facts.name, g.facts.backend)
            }
            Device::Cpu(_) if cfg!(target_arch = "wasm32") => "CPU (wasm, 1 thread)".into(),
            Device::Cpu(_) => format!("CPU ({} threads, f32)", threads()),
            Device::Reference(_) => "CPU (f64 reference)".into(),
        }
    }

    /// [`Device::describe`], where it is more than one thread of a browser that computes.
    pub fn describe_with(&self, workers: &str) -> String {
        match self {
            Device::Cpu(_) if cfg!(target_arch = "wasm32") => format!("CPU (wasm, {workers})"),
            _ => self.describe(),
        }
    }

    pub fn info(&self) -> DeviceInfo {
        let (kind, software) = match self {
            Device::Gpu(g) => ("webgpu", g.facts.software),
            _ => ("cpu", false),
        };
        DeviceInfo { kind, description: self.describe(), software }
    }

    /// Whether products keep their factors as halves.
    pub fn fp16(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.halves())
    }

    /// The largest binding in bytes; larger matrices are split by rows.
    pub fn max_binding(&self) -> u64 {
        match self {
            Device::Gpu(g) => g.max_binding(),
            _ => u64::MAX,
        }
    }

    /// Allocates and compiles what was added to the plan since the last call.
    pub async fn prepare(&mut self, plan: &Plan) -> Result<()> {
        debug_assert_eq!(plan.check(), Vec::<String>::new());
        match self {
            Device::Gpu(g) => g.prepare(plan).await?,
            Device::Cpu(c) => c.prepare(plan)?,
            Device::Reference(c) => c.prepare(plan)?,
        }
        Ok(())
    }

    /// Whether plans have to be compiled before they run.
    pub fn compiles(&self) -> bool {
        matches!(self, Device::Gpu(_))
    }

    /// Begins to compile what plans run that are likely to come, beside what is done meanwhile. It is only a guess:
    /// nothing is allocated, and nothing fails here.
    pub fn make_ahead(&mut self, plans: &[Plan]) {
        if let Device::Gpu(g) = self {
            g.make_ahead(plans);
        }
    }

    /// Loses the GPU, as a driver's reset would; false where there is none to lose. For tests.
    pub fn lose(&self) -> bool {
        match self {
            Device::Gpu(g) => {
                g.lose();
                true
            }
            _ => false,
        }
    }

    /// Bytes of the buffers that exist now.
    pub fn allocated(&self) -> u64 {
        match self {
            Device::Gpu(g) => g.allocated(),
            Device::Cpu(c) => c.allocated(),
            Device::Reference(c) => c.allocated(),
        }
    }

    /// Bytes an executor needs for the parameters of a plan's steps.
    pub fn step_bytes(&self, plan: &Plan) -> u64 {
        match self {
            Device::Gpu(g) => g.step_bytes(plan),
            _ => 0,
        }
    }

    /// Writes words (or the bits of floats) into a persistent buffer, before the next run.
    pub fn write(&mut self, buf: Buf, offset: usize, words: &[u32]) {
        match self {
            Device::Gpu(g) => g.write(buf, offset, words),
            Device::Cpu(c) => c.write_words(buf, offset, words),
            Device::Reference(c) => c.write_words(buf, offset, words),
        }
    }

    pub fn write_floats(&mut self, buf: Buf, offset: usize, values: &[f32]) {
        self.write(buf, offset, bytemuck::cast_slice(values));
    }

    /// Hands staged writes over, so that streaming a model does not pile them up.
    pub fn flush(&mut self) {
        if let Device::Gpu(g) = self {
            g.flush();
        }
    }

    /// Runs a sequence of the plan; steps of chunks beyond `rows` supervised rows are skipped.
    pub fn run(&mut self, plan: &Plan, sequence: SequenceId, rows: u32) -> Result<()> {
        match self {
            Device::Gpu(g) => g.run(sequence, rows)?,
            Device::Cpu(c) => c.run(plan, sequence, rows),
            Device::Reference(c) => c.run(plan, sequence, rows),
        }
        Ok(())
    }

    /// Reads words, or floats as their bits, after everything submitted is done.
    pub async fn read_words(&mut self, buf: Buf, offset: usize, len: usize) -> Result<Vec<u32>> {
        clock::breathe().await;
        match self {
            Device::Gpu(g) => g.read(buf, offset, len).await,
            Device::Cpu(c) => Ok(c.read_words(buf, offset, len)),
            Device::Reference(c) => Ok(c.read_words(buf, offset, len)),
        }
    }

    /// Reads floats after everything submitted is done.
    pub async fn read(&mut self, buf: Buf, offset: usize, len: usize) -> Result<Vec<f32>> {
        clock::breathe().await;
        match self {
            Device::Gpu(g) => Ok(bytemuck::cast_vec(g.read(buf, offset, len).await?)),
            Device::Cpu(c) => Ok(c.read(buf, offset, len).to_vec()),
            Device::Reference(c) => Ok(c.read(buf, offset, len).iter().map(|x| *x as f32).collect()),
        }
    }
}

/// Threads the CPU back end computes on.
pub fn threads() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads();
    #[cfg(target_arch = "wasm32")]
    1
}
