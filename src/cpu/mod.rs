//! Executes a plan with the ops' twins: f32 is the CPU back end, f64 the reference that tests compare with.

use crate::clock::Profile;
use crate::error::{Error, Result};
use crate::num::Float;
use crate::ops::par;
use crate::plan::memory::{Memory, Place};
use crate::plan::{Access, Buf, Call, Elem, Plan, Scratch, SequenceId, Slot, Step};

enum Store<F> {
    F(Vec<F>),
    W(Vec<u32>),
}

impl<F: Float> Store<F> {
    fn new(elem: Elem, len: usize) -> Result<Self> {
        match elem {
            Elem::Float => room::<F>(len).map(|()| Store::F(vec![F::ZERO; len])),
            Elem::Word => room::<u32>(len).map(|()| Store::W(vec![0; len])),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Store::F(v) => size_of_val(v.as_slice()) as u64,
            Store::W(v) => size_of_val(v.as_slice()) as u64,
        }
    }

    fn grow(&mut self, len: usize) -> Result<()> {
        match self {
            Store::F(v) => room::<F>(len).map(|()| v.resize(len.max(v.len()), F::ZERO)),
            Store::W(v) => room::<u32>(len).map(|()| v.resize(len.max(v.len()), 0)),
        }
    }
}

/// Asks for memory in a way that can be refused, and gives it back: the allocation that follows aborts the program
/// where there is none (wasm ends at 4 GiB).
fn room<T>(len: usize) -> Result<()> {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    Vec::<T>::new().try_reserve_exact(len).map_err(|_| Error::out_of_memory("in the memory of the CPU", bytes))
}

/// Plan buffers as vectors: one for each persistent buffer, one for each shared slot.
#[derive(Default)]
pub struct Cpu<F> {
    memory: Memory,
    own: Vec<Option<Store<F>>>,
    slots: Vec<Store<F>>,
    scratch: Scratch<F>,
    pub profile: Option<Profile>,
}

impl<F: Twin> Cpu<F> {
    pub fn new() -> Self {
        Cpu {
            memory: Memory::default(),
            own: Vec::new(),
            slots: Vec::new(),
            scratch: Scratch::default(),
            profile: None,
        }
    }

    /// Allocates what was added to the plan since the last call.
    pub fn prepare(&mut self, plan: &Plan) -> Result<()> {
        let old = self.own.len();
        self.memory.extend(plan);
        for (decl, place) in plan.bufs.iter().zip(&self.memory.places).skip(old) {
            self.own.push((*place == Place::Own).then(|| Store::new(decl.elem, decl.len)).transpose()?);
        }
        for (i, decl) in self.memory.slots.iter().enumerate() {
            match self.slots.get_mut(i) {
                Some(slot) => slot.grow(decl.len)?,
                None => self.slots.push(Store::new(decl.elem, decl.len)?),
            }
        }
        Ok(())
    }

    /// Bytes of the buffers that exist, counted from the buffers themselves.
    pub fn allocated(&self) -> u64 {
        self.own.iter().flatten().chain(&self.slots).map(Store::bytes).sum()
    }

    fn store(&self, buf: Buf) -> &Store<F> {
        match self.memory.places[buf.0 as usize] {
            Place::Own => self.own[buf.0 as usize].as_ref().expect("a live buffer"),
            Place::Slot(s) => &self.slots[s],
            Place::Unused => panic!("buffer {} belongs to no sequence", buf.0),
        }
    }

    fn store_mut(&mut self, buf: Buf) -> &mut Store<F> {
        match self.memory.places[buf.0 as usize] {
            Place::Own => self.own[buf.0 as usize].as_mut().expect("a live buffer"),
            Place::Slot(s) => &mut self.slots[s],
            Place::Unused => panic!("buffer {} belongs to no sequence", buf.0),
        }
    }

    pub fn write_words(&mut self, buf: Buf, offset: usize, words: &[u32]) {
        match self.store_mut(buf) {
            Store::W(v) => v[offset..offset + words.len()].copy_from_slice(words),
            Store::F(v) => v[offset..].iter_mut().zip(words).for_each(|(v, w)| *v = F::of32(f32::from_bits(*w))),
        }
    }

    pub fn write_floats(&mut self, buf: Buf, offset: usize, values: impl ExactSizeIterator<Item = f64>) {
        match self.store_mut(buf) {
            Store::F(v) => v[offset..offset + values.len()].iter_mut().zip(values).for_each(|(v, x)| *v = F::of(x)),
            Store::W(_) => panic!("buffer {} holds words", buf.0),
        }
    }

    pub fn read(&self, buf: Buf, offset: usize, len: usize) -> &[F] {
        match self.store(buf) {
            Store::F(v) => &v[offset..offset + len],
            Store::W(_) => panic!("buffer {} holds words", buf.0),
        }
    }

    /// Words, or floats as the bits of f32.
    pub fn read_words(&self, buf: Buf, offset: usize, len: usize) -> Vec<u32> {
        match self.store(buf) {
            Store::F(v) => v[offset..offset + len].iter().map(|x| x.to32().to_bits()).collect(),
            Store::W(v) => v[offset..offset + len].to_vec(),
        }
    }

    /// On a thread of the pool, so that no step has to wake one and to sleep until its tasks are done.
    pub fn run(&mut self, plan: &Plan, sequence: SequenceId, rows: u32) {
        par::on_pool(|| self.run_steps(plan, sequence, rows));
    }

    fn run_steps(&mut self, plan: &Plan, sequence: SequenceId, rows: u32) {
        for step in &plan.sequences[sequence].steps {
            if rows > step.skip_up_to || step.skip_up_to == 0 {
                let start = crate::clock::Instant::now();
                self.run_step(plan, step);
                if let Some(profile) = &mut self.profile {
                    let (runs, ms) = profile.entry(step.name()).or_default();
                    (*runs, *ms) = (*runs + 1, *ms + start.elapsed_ms());
                }
            }
        }
    }

    /// Runs one step: written buffers are taken out of their stores, read ones are borrowed.
    pub fn run_step(&mut self, plan: &Plan, step: &Step) {
        let mut written: Vec<(usize, Store<F>)> = Vec::new();
        for (i, (buf, access)) in step.bufs.iter().zip(&step.access).enumerate() {
            if *access != Access::Read {
                written.push((i, std::mem::replace(self.store_mut(*buf), Store::W(Vec::new()))));
            }
        }
        let scratch = std::mem::take(&mut self.scratch);
        let mut slots: Vec<Slot<F>> = step.bufs.iter().map(|_| Slot::W(&[])).collect();
        for (i, (buf, access)) in step.bufs.iter().zip(&step.access).enumerate() {
            let len = plan.decl(*buf).len;
            if *access == Access::Read {
                slots[i] = match self.store(*buf) {
                    Store::F(v) => Slot::F(&v[..len]),
                    Store::W(v) => Slot::W(&v[..len]),
                };
            }
        }
        for (i, store) in &mut written {
            let len = plan.decl(step.bufs[*i]).len;
            slots[*i] = match store {
                Store::F(v) => Slot::FMut(&mut v[..len]),
                Store::W(v) => Slot::WMut(&mut v[..len]),
            };
        }
        F::twin(step.kernel)(&mut Call { params: &step.params, format: step.format, slots, scratch: &scratch });
        self.scratch = scratch;
        for (i, store) in written {
            *self.store_mut(step.bufs[i]) = store;
        }
    }
}

/// Picks the kernel's twin for a float.
pub trait Twin: Float {
    fn twin(kernel: &'static crate::plan::Kernel) -> fn(&mut Call<Self>);
}

impl Twin for f32 {
    fn twin(kernel: &'static crate::plan::Kernel) -> fn(&mut Call<f32>) {
        kernel.f32
    }
}

impl Twin for f64 {
    fn twin(kernel: &'static crate::plan::Kernel) -> fn(&mut Call<f64>) {
        kernel.f64
    }
}
