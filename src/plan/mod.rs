//! A run as pure data: buffers with shapes and lifetimes, and the steps that read and write them.
//!
//! Layers do not dispatch. They append [`Step`]s to a [`Plan`]; an executor (`gpu`, `cpu`) replays its sequences.
//! A plan only grows, so buffer and sequence numbers stay valid: a training run adds "forward", "update" and
//! "evaluate", and generation may add its own sequences later on the same weights.
//!
//! Because it is data, three things are known before anything is allocated: the peak of bytes ([`memory`]), that no
//! step reads what no step wrote ([`Plan::check`]), and which binding of which step does what.

pub mod memory;

use crate::format::WeightFormat;
use crate::num::Float;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

/// A buffer of a plan: a proxy, not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buf(pub u32);

/// What the words of a buffer are. Executors in f64 keep `Float` buffers in f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    Float,
    Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Keeps its contents from run to run: weights, adapters, optimizer state, what the host writes.
    Persistent,
    /// Lives from its first to its last use within one sequence; shares memory with others.
    Temp,
}

#[derive(Clone, Debug)]
pub struct BufDecl {
    pub label: String,
    pub elem: Elem,
    /// 32-bit elements.
    pub len: usize,
    pub life: Life,
}

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Overwrites all that later steps read.
    Write,
    ReadWrite,
}

/// Which machines a shader is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Loads are dear and registers are memory: software drivers. Where a kernel has none of this style, its first
    /// serves.
    Software,
    /// No workgroup memory, no barriers: Apple GPUs.
    Direct,
    /// Tiles staged through workgroup memory: discrete GPUs.
    Tiled,
}

/// One way to compute a kernel: a WGSL source, and the constants it is compiled with. A kernel may have several of one
/// style, the best guess first; which one runs is the executor's choice, by the machine and by measurement.
#[derive(Debug)]
pub struct Shader {
    pub style: Style,
    /// The file's stem in `shaders/`.
    pub file: &'static str,
    pub source: &'static str,
    /// What one workgroup covers of the step's `grid`.
    pub tile: [u32; 3],
    pub consts: &'static [(&'static str, u32)],
}

impl Shader {
    /// The value of a constant, 0 if it has none of this name.
    pub fn constant(&self, name: &str) -> u32 {
        self.consts.iter().find(|(n, _)| *n == name).map_or(0, |(_, value)| *value)
    }
}

/// File and constants: "matmul_direct TALL=8 WIDE=8 LANES=1".
impl std::fmt::Display for Shader {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.file)?;
        self.consts.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// A kernel: its shaders, its bindings in order, and its twin for each float.
pub struct Kernel {
    /// The stem shared by `shaders/NAME.wgsl`, `src/ops/NAME.rs`, `tests/ops/NAME.rs` and the bench row.
    pub name: &'static str,
    pub entry: &'static str,
    pub access: &'static [Access],
    /// Names and types of `Params`, in order, for the comparison with the shader.
    pub fields: &'static [(&'static str, &'static str)],
    /// Bytes of `Params`.
    pub params: usize,
    pub shaders: &'static [Shader],
    pub f32: fn(&mut Call<f32>),
    pub f64: fn(&mut Call<f64>),
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{}", self.name, self.entry)
    }
}

/// Workgroups a dispatch may have along a dimension: WebGPU's `maxComputeWorkgroupsPerDimension`.
pub const MAX_GROUPS: u32 = 65_535;

/// Bytes that the parameters of a step may take.
pub const MAX_PARAMS: usize = 256;

/// One dispatch: a kernel, what it is bound to, and the size of its problem.
#[derive(Clone, Debug)]
pub struct Step {
    pub kernel: &'static Kernel,
    /// Storage format of the weight at binding 1, for kernels that read one.
    pub format: Option<WeightFormat>,
    /// Constants compiled into the shader (`HEAD_DIM_4` ...).
    pub consts: Vec<(&'static str, u32)>,
    pub params: Vec<u32>,
    pub bufs: Vec<Buf>,
    /// Elements of each buffer that are read or written, where a step works on a part: [`Step::touch`].
    pub touched: Vec<usize>,
    /// The kernel's accesses; a wrapper turns `ReadWrite` into `Write` where nothing old is added to.
    pub access: Vec<Access>,
    /// The problem's extent; a shader's tile divides it into workgroups.
    pub grid: [u32; 3],
    /// Invocations a workgroup of a direct matmul has along x and y; tiles grow by it. (1, 1) elsewhere.
    pub workgroup: [u32; 2],
    /// About how many multiply-adds the step takes; submits are cut by it, and shaders chosen.
    pub work: u64,
    /// Runs only when the run has more rows than this (chunks of the head beyond the supervised rows are skipped).
    pub skip_up_to: u32,
    pub label: String,
}

#[derive(Clone, Debug, Default)]
pub struct Sequence {
    pub name: String,
    pub steps: Vec<Step>,
}

impl Step {
    /// Of the buffer at this binding the step needs no more than so many elements.
    pub fn touch(&mut self, binding: usize, elements: usize) -> &mut Step {
        self.touched[binding] = self.touched[binding].min(elements);
        self
    }

    /// Bytes that it reads and writes at least.
    pub fn bytes(&self) -> u64 {
        let directions = |access: &Access| if *access == Access::ReadWrite { 2 } else { 1 };
        self.touched.iter().zip(&self.access).map(|(len, access)| *len as u64 * 4 * directions(access)).sum()
    }

    /// The kernel, and the format of its weight if it reads one: "matmul.forward q4_1".
    pub fn name(&self) -> String {
        let format = self.format.map_or(String::new(), |f| format!(" {}", f.name()));
        format!("{:?}{format}", self.kernel)
    }
}

/// Number of a sequence within its plan.
pub type SequenceId = usize;

#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub bufs: Vec<BufDecl>,
    pub sequences: Vec<Sequence>,
    /// What [`Step::skip_up_to`] is set to in the steps appended from here on.
    pub skip_up_to: u32,
}

impl Plan {
    pub fn persistent(&mut self, label: impl Into<String>, elem: Elem, len: usize) -> Buf {
        self.declare(label.into(), elem, len, Life::Persistent)
    }

    /// A float temporary of the sequence being built.
    pub fn temp(&mut self, label: impl Into<String>, len: usize) -> Buf {
        self.declare(label.into(), Elem::Float, len, Life::Temp)
    }

    /// A temporary of words.
    pub fn temp_words(&mut self, label: impl Into<String>, len: usize) -> Buf {
        self.declare(label.into(), Elem::Word, len, Life::Temp)
    }

    fn declare(&mut self, label: String, elem: Elem, len: usize, life: Life) -> Buf {
        self.bufs.push(BufDecl { label, elem, len: len.max(4), life });
        Buf(self.bufs.len() as u32 - 1)
    }

    pub fn begin(&mut self, name: &str) -> SequenceId {
        self.sequences.push(Sequence { name: name.into(), steps: Vec::new() });
        self.sequences.len() - 1
    }

    /// Appends a step to the sequence begun last.
    pub fn push<P: bytemuck::Pod>(
        &mut self,
        kernel: &'static Kernel,
        params: P,
        bufs: &[Buf],
        grid: [u32; 3],
    ) -> &mut Step {
        assert_eq!(bufs.len(), kernel.access.len(), "{kernel:?}: bindings");
        assert_eq!(size_of::<P>(), kernel.params, "{kernel:?}: params");
        let step = Step {
            kernel,
            format: None,
            consts: Vec::new(),
            params: bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec(),
            bufs: bufs.to_vec(),
            touched: bufs.iter().map(|buf| self.decl(*buf).len).collect(),
            access: kernel.access.to_vec(),
            grid,
            workgroup: [1, 1],
            work: grid.iter().map(|g| *g as u64).product(),
            skip_up_to: self.skip_up_to,
            label: String::new(),
        };
        let steps = &mut self.sequences.last_mut().expect("a sequence was begun").steps;
        steps.push(step);
        steps.last_mut().expect("just pushed")
    }

    pub fn decl(&self, buf: Buf) -> &BufDecl {
        &self.bufs[buf.0 as usize]
    }

    /// Bytes of the persistent buffers, 4 an element.
    pub fn persistent_bytes(&self) -> u64 {
        self.bufs.iter().filter(|b| b.life == Life::Persistent).map(|b| b.len as u64 * 4).sum()
    }

    /// Every breach of the rules that executors rely on: a temporary read before it was written, a written buffer
    /// bound twice in one step.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for sequence in &self.sequences {
            let mut written = HashSet::new();
            for (i, step) in sequence.steps.iter().enumerate() {
                let place = format!("{} #{i} {:?} {}", sequence.name, step.kernel, step.label);
                for (&buf, &access) in step.bufs.iter().zip(&step.access) {
                    let fresh = self.decl(buf).life == Life::Temp && !written.contains(&buf);
                    if fresh && access != Access::Write {
                        problems.push(format!("{place}: reads {} before any step wrote it", self.decl(buf).label));
                    }
                    let uses = step.bufs.iter().filter(|b| **b == buf).count();
                    if access != Access::Read && uses > 1 {
                        problems.push(format!("{place}: {} is written and bound {uses} times", self.decl(buf).label));
                    }
                }
                for (&buf, &access) in step.bufs.iter().zip(&step.access) {
                    if access != Access::Read {
                        written.insert(buf);
                    }
                }
            }
        }
        problems
    }
}

/// A buffer as a twin sees it.
pub enum Slot<'a, F> {
    F(&'a [F]),
    FMut(&'a mut [F]),
    W(&'a [u32]),
    WMut(&'a mut [u32]),
}

/// One step as a twin sees it: parameters, buffers in binding order, and scratch that outlives the step.
pub struct Call<'a, F: Float> {
    pub params: &'a [u32],
    pub format: Option<WeightFormat>,
    pub slots: Vec<Slot<'a, F>>,
    pub scratch: &'a Scratch<F>,
}

/// Working memory of twins, kept from step to step: tasks that run side by side each borrow a piece. A thread gets back
/// what it had before, which its core's cache still holds, and waits for no other.
#[derive(Default)]
pub struct Scratch<F>([Pieces<F>; THREADS]);

/// On cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
struct Pieces<F>(Mutex<Vec<Vec<F>>>);

/// Threads with pieces of their own; beyond, some share them.
const THREADS: usize = 32;

impl<F: Float> Scratch<F> {
    /// Lends `len` elements with whatever was left in them.
    pub fn with<R>(&self, len: usize, f: impl FnOnce(&mut [F]) -> R) -> R {
        let own = &self.0[thread() % THREADS];
        let mut piece = own.lock().pop().unwrap_or_default();
        if piece.len() < len {
            piece.resize(len, F::ZERO);
        }
        let result = f(&mut piece[..len]);
        own.lock().push(piece);
        result
    }
}

impl<F> Pieces<F> {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<F>>> {
        self.0.lock().expect("no twin panics while it holds the lock")
    }
}

/// Which of the pool's threads this is.
fn thread() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_thread_index().unwrap_or(0);
    #[cfg(target_arch = "wasm32")]
    0
}

impl<'a, F: Float> Call<'a, F> {
    pub fn params<P: bytemuck::Pod>(&self) -> P {
        *bytemuck::from_bytes(bytemuck::cast_slice(self.params))
    }

    pub fn f(&self, i: usize) -> &'a [F] {
        match &self.slots[i] {
            Slot::F(s) => s,
            _ => panic!("binding {i} is not a readable float buffer"),
        }
    }

    pub fn w(&self, i: usize) -> &'a [u32] {
        match &self.slots[i] {
            Slot::W(s) => s,
            _ => panic!("binding {i} is not a readable word buffer"),
        }
    }

    /// Takes the writable float buffer at `i` out of the call.
    pub fn f_mut(&mut self, i: usize) -> &'a mut [F] {
        match std::mem::replace(&mut self.slots[i], Slot::W(&[])) {
            Slot::FMut(s) => s,
            _ => panic!("binding {i} is not a writable float buffer"),
        }
    }

    /// Takes the writable word buffer at `i` out of the call.
    pub fn w_mut(&mut self, i: usize) -> &'a mut [u32] {
        match std::mem::replace(&mut self.slots[i], Slot::W(&[])) {
            Slot::WMut(s) => s,
            _ => panic!("binding {i} is not a writable word buffer"),
        }
    }
}
