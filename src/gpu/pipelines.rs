//! Pipelines, one for each source. Those that will probably be wanted are made ahead, beside other work: natively by
//! threads, in browsers by the GPU's process, which compiles what it was asked for while nobody waits.
//!
//! What goes wrong ahead of time is forgotten: the pipeline is made again where it is wanted, and there the error
//! counts.

use super::shader::{assemble, mentions};
use super::{entry, workgroup};
use crate::format::WeightFormat;
use crate::plan::{Access, Kernel, Shader, Step};
use std::collections::{HashMap, HashSet};

pub(super) type Pipeline = (wgpu::ComputePipeline, wgpu::BindGroupLayout);

/// What a pipeline is made of. Its source is put together only where it is made: most steps have one made already.
pub(super) struct Recipe {
    kernel: &'static Kernel,
    shader: &'static Shader,
    format: Option<WeightFormat>,
    consts: Vec<(&'static str, u32)>,
    workgroup: [u32; 2],
}

impl Recipe {
    pub fn new(step: &Step, shader: &'static Shader) -> Recipe {
        let workgroup = if mentions(shader, "WG_X") { workgroup(step, shader) } else { [1, 1] };
        Recipe { kernel: step.kernel, shader, format: step.format, consts: step.consts.clone(), workgroup }
    }

    /// The same for all steps that run the same source.
    fn key(&self) -> String {
        let Recipe { kernel, shader, format, consts, workgroup } = self;
        format!("{kernel:?} {shader} {format:?} {consts:?} {workgroup:?}")
    }
}

#[derive(Clone)]
struct Maker {
    device: wgpu::Device,
    params_layout: wgpu::BindGroupLayout,
}

impl Maker {
    fn make(&self, recipe: &Recipe) -> Pipeline {
        let Recipe { kernel, shader, format, consts, workgroup } = recipe;
        let storage = |(i, a): (usize, &Access)| {
            entry(i as u32, wgpu::BufferBindingType::Storage { read_only: *a == Access::Read }, false)
        };
        let entries: Vec<_> = kernel.access.iter().enumerate().map(storage).collect();
        let layout =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let label = format!("{kernel:?}");
        let source = wgpu::ShaderSource::Wgsl(assemble(shader, *format, consts, *workgroup).into());
        let desc = wgpu::ShaderModuleDescriptor { label: Some(&label), source };
        // SAFETY: the checks left out are bounds, loop and division guards. An index of our shaders is derived from
        // sizes the plan was built with, or is one that the host wrote: token ids, which are below the vocabulary (the
        // tokenizer refuses others, and so does whoever writes them), and rows, slots and spans, which are computed
        // from the same sizes. GPU tests run each kernel with guards around its buffers.
        let module = unsafe { self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout), Some(&self.params_layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        (pipeline, layout)
    }
}

/// All pipelines there are, or will soon be.
pub(super) struct Pipelines {
    maker: Maker,
    made: HashMap<String, Pipeline>,
    ahead: ahead::Ahead,
    /// Made ahead, and not wanted yet.
    unused: HashSet<String>,
    late: usize,
}

impl Pipelines {
    pub fn new(device: wgpu::Device, params_layout: wgpu::BindGroupLayout) -> Pipelines {
        let (made, ahead, unused) = Default::default();
        Pipelines { maker: Maker { device, params_layout }, made, ahead, unused, late: 0 }
    }

    /// Has pipelines made that will probably be wanted, in this order. Nothing is waited for.
    pub fn make_ahead(&mut self, recipes: impl Iterator<Item = Recipe>) {
        let keyed = recipes.map(|recipe| (recipe.key(), recipe));
        let new = |(key, _): &(String, Recipe)| !self.made.contains_key(key) && self.unused.insert(key.clone());
        let new: Vec<_> = keyed.filter(new).collect();
        self.ahead.begin(&self.maker, new, &mut self.made);
    }

    /// To be called before pipelines are got: what was made ahead and is no good is forgotten.
    pub async fn settle(&mut self) {
        self.ahead.settle(&mut self.made).await;
    }

    /// The pipeline of a recipe: the one made, the one being made, or a new one.
    pub fn get(&mut self, recipe: &Recipe) -> Pipeline {
        let key = recipe.key();
        self.ahead.wait_for(&key, &mut self.made);
        self.unused.remove(&key);
        if let Some(found) = self.made.get(&key) {
            return found.clone();
        }
        self.late += 1;
        let pipeline = self.maker.make(recipe);
        self.made.insert(key, pipeline.clone());
        pipeline
    }

    /// How many were made only when they were wanted, and how many were made ahead and not wanted so far.
    pub fn late_and_unused(&self) -> (usize, usize) {
        (self.late, self.unused.len())
    }
}

/// Threads, which end when all is made or nobody wants it any more.
#[cfg(not(target_arch = "wasm32"))]
mod ahead {
    use super::{Maker, Pipeline, Recipe};
    use std::collections::{HashMap, HashSet, VecDeque};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::{Builder, JoinHandle};

    /// More would take the cores from those who read and hash the weights.
    const MOST_THREADS: usize = 4;

    type Made = HashMap<String, Pipeline>;
    type Waiting = Arc<Mutex<VecDeque<(String, Recipe)>>>;

    #[derive(Default)]
    pub struct Ahead {
        waiting: Waiting,
        underway: HashSet<String>,
        results: Option<Receiver<(String, Option<Pipeline>)>>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Ahead {
        pub fn begin(&mut self, maker: &Maker, recipes: Vec<(String, Recipe)>, made: &mut Made) {
            // One list at a time.
            while self.receive(made) {}
            self.underway.extend(recipes.iter().map(|(key, _)| key.clone()));
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            let threads = cores.min(MOST_THREADS).min(recipes.len());
            self.waiting = Arc::new(Mutex::new(recipes.into()));
            let (send, receive) = channel();
            self.results = Some(receive);
            let worker = |_| {
                let (maker, waiting, send) = (maker.clone(), self.waiting.clone(), send.clone());
                // Where the system has no thread to give, pipelines are made when they are wanted.
                Builder::new().name("pipelines".into()).spawn(move || work(&maker, &waiting, &send)).ok()
            };
            self.threads.extend((0..threads).filter_map(worker));
        }

        /// Takes one result; false when there will be no more.
        fn receive(&mut self, made: &mut Made) -> bool {
            let Some(Ok((key, pipeline))) = self.results.as_ref().map(Receiver::recv) else {
                self.underway.clear();
                return false;
            };
            self.underway.remove(&key);
            made.extend(pipeline.map(|pipeline| (key, pipeline)));
            true
        }

        pub async fn settle(&mut self, _: &mut Made) {}

        pub fn wait_for(&mut self, key: &str, made: &mut Made) {
            while self.underway.contains(key) && self.receive(made) {}
        }
    }

    impl Drop for Ahead {
        /// A process must not end while a driver compiles.
        fn drop(&mut self) {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
    }

    fn work(maker: &Maker, waiting: &Waiting, send: &Sender<(String, Option<Pipeline>)>) {
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some((key, recipe)) = next() {
            // Scopes are a thread's own.
            let scopes = super::FILTERS.map(|filter| maker.device.push_error_scope(filter));
            let pipeline = maker.make(&recipe);
            let errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).count();
            if send.send((key, (errors == 0).then_some(pipeline))).is_err() {
                return;
            }
        }
    }
}

/// The browser: it makes a pipeline in another process, and what was made can be bound before it is there.
#[cfg(target_arch = "wasm32")]
mod ahead {
    use super::{Maker, Pipeline, Recipe};
    use std::collections::HashMap;
    use std::pin::Pin;

    type Made = HashMap<String, Pipeline>;

    #[derive(Default)]
    pub struct Ahead {
        keys: Vec<String>,
        errors: Vec<Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>>,
    }

    impl Ahead {
        pub fn begin(&mut self, maker: &Maker, recipes: Vec<(String, Recipe)>, made: &mut Made) {
            let scopes = super::FILTERS.map(|filter| maker.device.push_error_scope(filter));
            for (key, recipe) in recipes {
                made.insert(key.clone(), maker.make(&recipe));
                self.keys.push(key);
            }
            let scopes = scopes.into_iter().rev();
            self.errors.extend(scopes.map(|scope| Box::pin(scope.pop()) as Pin<Box<dyn Future<Output = _>>>));
        }

        pub async fn settle(&mut self, made: &mut Made) {
            let mut refused = false;
            for error in self.errors.drain(..) {
                refused |= error.await.is_some();
            }
            // Which of them it was nobody says.
            self.keys.drain(..).filter(|_| refused).for_each(|key| drop(made.remove(&key)));
        }

        pub fn wait_for(&mut self, _: &str, _: &mut Made) {}
    }
}

const FILTERS: [wgpu::ErrorFilter; 3] =
    [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
