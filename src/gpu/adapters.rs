//! Adapters: what there is, what each can do, and which one to open.

use super::Gpu;
use crate::error::{Error, Result};
use crate::plan::Style;

/// What `luthier devices` and the page's device card show.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterFacts {
    pub name: String,
    pub backend: String,
    pub driver: String,
    /// A driver that computes on the CPU: lavapipe, SwiftShader, WARP.
    pub software: bool,
    /// Discrete, integrated, virtual, cpu or other.
    pub kind: String,
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    pub shader_f16: bool,
    /// Rows and columns of what matrix units multiply that take halves and add up floats; 0 where there are none, or none
    /// that a shader here is written for.
    pub fragment: u32,
    #[serde(skip)]
    pub style: Style,
    /// Invocations of a subgroup, where all have the same number and kernels may use them; else 1.
    #[serde(skip)]
    pub lanes: u32,
}

fn facts(adapter: &wgpu::Adapter, subgroups: bool) -> AdapterFacts {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let named = ["llvmpipe", "swiftshader", "warp"].iter().any(|s| info.name.to_lowercase().contains(s));
    let software = info.device_type == wgpu::DeviceType::Cpu || named;
    // Register tiles without barriers are fastest on software drivers and good on Apple GPUs; workgroup memory pays
    // on the others (measurements: benches/README.md).
    let apple = info.backend == wgpu::Backend::Metal || info.name.to_lowercase().contains("apple");
    let style = match (software, apple) {
        (true, _) => Style::Software,
        (_, true) => Style::Direct,
        _ => Style::Tiled,
    };
    let lanes = if subgroups && info.subgroup_min_size == info.subgroup_max_size { info.subgroup_max_size } else { 1 };
    AdapterFacts {
        name: [&info.name, &info.driver].into_iter().find(|s| !s.is_empty()).map_or("GPU".into(), String::clone),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        software,
        kind: format!("{:?}", info.device_type).to_lowercase(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        shader_f16: adapter.features().contains(wgpu::Features::SHADER_F16),
        fragment: fragment(adapter, info.backend, lanes),
        style,
        lanes,
    }
}

/// Fragments that matrix units multiply, as `matmul_cooperative` is written for: their rows and columns, the invocations
/// of a subgroup, and the bytes of workgroup memory that its largest tile takes.
pub const FRAGMENTS: [[u32; 3]; 2] = [[16, 32, 36_864], [8, 8, 14_336]];

/// Vulkan's matrix units alone: naga's Metal wants other pointers than `matmul_cooperative` has.
fn fragment(adapter: &wgpu::Adapter, backend: wgpu::Backend, lanes: u32) -> u32 {
    use wgpu::CooperativeScalarType::{F16, F32};
    let all = adapter.cooperative_matrix_properties();
    let room = adapter.limits().max_compute_workgroup_storage_size;
    let fits = |[size, subgroup, bytes]: &[u32; 3]| {
        let mut square = all.iter().filter(|c| [c.m_size, c.n_size, c.k_size] == [*size; 3]);
        lanes == *subgroup && room >= *bytes && square.any(|c| c.ab_type == F16 && c.cr_type == F32)
    };
    let usable = backend == wgpu::Backend::Vulkan && adapter.features().contains(MATRIX_UNITS);
    FRAGMENTS.iter().find(|f| usable && fits(f)).map_or(0, |[size, ..]| *size)
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

/// The adapters with what is known of each.
async fn adapters() -> Vec<(AdapterFacts, wgpu::Adapter)> {
    #[cfg(not(target_arch = "wasm32"))]
    {
        let all = instance().enumerate_adapters(wgpu::Backends::PRIMARY).await;
        let subgroups = |a: &wgpu::Adapter| a.features().contains(wgpu::Features::SUBGROUP);
        all.into_iter().map(|a| (facts(&a, subgroups(&a)), a)).collect()
    }
    #[cfg(target_arch = "wasm32")]
    {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let instance = instance();
        let (adapter, subgroups) = super::subgroups::asking(async || instance.request_adapter(&options).await).await;
        adapter.ok().map(|a| (facts(&a, subgroups), a)).into_iter().collect()
    }
}

/// All adapters, the best first: discrete, integrated, others, software.
pub async fn list() -> Vec<AdapterFacts> {
    let mut all: Vec<_> = adapters().await.into_iter().map(|(facts, _)| facts).collect();
    all.sort_by_key(rank);
    all
}

fn rank(f: &AdapterFacts) -> u8 {
    match (f.software, f.kind.as_str()) {
        (true, _) => 4,
        (_, "discretegpu") => 0,
        (_, "integratedgpu") => 1,
        _ => 2,
    }
}

/// Opens the best adapter. A software GPU is taken only where `software` allows it; `None` when there is nothing.
///
/// With `fp16` shaders may keep their tiles as halves, where the GPU has them ([`Gpu::halves`]). Sums stay f32, but what
/// is multiplied keeps 11 bits, and is at most 65504: a product is off by about a thousandth of its size.
pub async fn open(software: bool, fp16: bool) -> Result<Option<Gpu>> {
    let mut candidates = adapters().await;
    candidates.retain(|(f, _)| software || !f.software);
    candidates.sort_by_key(|(f, _)| rank(f));
    let Some((facts, adapter)) = candidates.into_iter().next() else { return Ok(None) };
    let has = adapter.limits().max_storage_buffers_per_shader_stage;
    if has < MAX_BINDINGS {
        let what = format!("{} binds {has} storage buffers a stage, kernels need {MAX_BINDINGS}", facts.name);
        return Err(Error::device(what, "use --device cpu"));
    }
    let halves = fp16 && facts.shader_f16;
    let units = halves && facts.fragment > 0;
    let desc = wgpu::DeviceDescriptor {
        label: Some("luthier"),
        required_features: adapter.features() & if units { FEATURES | MATRIX_UNITS } else { FEATURES },
        required_limits: adapter.limits(),
        // SAFETY: what may be undefined is the use of matrix units. Shaders that use them index as others do, and are
        // chosen only where they were seen to give the numbers of those.
        experimental_features: if units {
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            Default::default()
        },
        ..Default::default()
    };
    let (device, queue) = adapter
        .request_device(&desc)
        .await
        .map_err(|e| Error::device(format!("{}: {e}", facts.name), "update the driver, or use --device cpu"))?;
    Ok(Some(Gpu::new(facts, device, queue, halves)))
}

const MATRIX_UNITS: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;

/// What is asked for where an adapter has it. wgpu asks browsers for subgroups in its own way.
#[cfg(not(target_arch = "wasm32"))]
const FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::SHADER_F16);
#[cfg(target_arch = "wasm32")]
const FEATURES: wgpu::Features = wgpu::Features::SUBGROUP;

/// Storage buffers of the widest kernel (attention's backward pass): WebGPU's guaranteed minimum.
pub const MAX_BINDINGS: u32 = 8;
