//! What a device can do at most, measured: the rate of a plain copy, and of multiply-adds in registers. Rows of a bench
//! are shown as shares of these. Contract of the two kernels: `limits.wgsl`.

use super::fastest;
use crate::device::Device;
use crate::error::Result;
use crate::num::Float;
use crate::ops::par;
use crate::plan::{Access, Buf, Call, Elem, Kernel, Plan, Shader, Step, Style};

/// What a device can do at most.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Limits {
    /// Additions and multiplications of f32 a second, in units of 10⁹.
    pub gflops: f64,
    /// Bytes read and written a second by a copy, in units of 10⁹.
    pub gbytes: f64,
}

impl Limits {
    /// Milliseconds below which nothing that computes and moves so much can come.
    pub fn ideal_ms(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.gflops).max(bytes / self.gbytes) / 1e6
    }

    /// [`Limits::ideal_ms`] of each step, summed.
    pub fn ideal_ms_of<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> f64 {
        steps.map(|step| self.ideal_ms(2.0 * step.work as f64, step.bytes() as f64)).sum()
    }
}

crate::ops::params!(Params { len: u32, rounds: u32, pad0: u32, pad1: u32 });

const SHADERS: &[Shader] = &[Shader {
    style: Style::Direct,
    file: "limits",
    source: include_str!("limits.wgsl"),
    tile: [64, 1, 1],
    consts: &[],
}];
const ACCESS: &[Access] = &[Access::Read, Access::Write];

pub static COPY: Kernel = Kernel {
    name: "limits",
    entry: "copy",
    access: ACCESS,
    fields: Params::FIELDS,
    params: size_of::<Params>(),
    shaders: SHADERS,
    f32: copy_twin,
    f64: copy_twin,
};

pub static CHAINS: Kernel = Kernel { entry: "chains", f32: chains_twin, f64: chains_reference, ..COPY };

/// Chains of multiply-adds side by side: enough to hide the latency of one.
const CHAINS_A_LANE: usize = 8;
/// Groups of four floats that the chains work on: each multiprocessor of a large GPU gets its fill.
const GROUPS: usize = 1 << 19;
/// Groups that are copied: 128 MiB, more than caches hold; a browser's buffers are smaller.
const COPIED: usize = if cfg!(target_arch = "wasm32") { 1 << 21 } else { 1 << 23 };
/// Links of a chain; the next length is taken where a run is over sooner than this.
const ROUNDS: [u32; 5] = [16, 128, 1024, 8192, 65536];
const LONG_MS: f64 = 20.0;
const MILLISECONDS: f64 = 400.0;

/// Measures both on a device of its own; takes a second or two.
pub async fn limits(mut device: Device) -> Result<Limits> {
    let device = &mut device;
    let copied = COPIED.min((device.max_binding() / 16) as usize);
    let mut plan = Plan::default();
    let [x, y] = ["x", "y"].map(|name| plan.persistent(name, Elem::Float, 4 * copied.max(GROUPS)));
    let copy = plan.begin("copy");
    push(&mut plan, &COPY, copied, 0, x, y);
    let chains = ROUNDS.map(|rounds| {
        let sequence = plan.begin("chains");
        push(&mut plan, &CHAINS, GROUPS, rounds, x, y);
        (sequence, rounds)
    });
    device.prepare(&plan).await?;
    // Below 1, so that chains converge and nothing becomes infinite or denormal.
    device.write_floats(x, 0, &vec![0.5; 4 * GROUPS]);
    let copy_ms = fastest(device, &plan, copy, y, MILLISECONDS).await?;
    let mut gflops = 0f64;
    for (sequence, rounds) in chains {
        let ms = fastest(device, &plan, sequence, y, MILLISECONDS / 4.0).await?;
        let flops = (GROUPS * 4 * CHAINS_A_LANE * 2) as f64 * rounds as f64;
        gflops = gflops.max(flops / ms / 1e6);
        if ms >= LONG_MS {
            break;
        }
    }
    Ok(Limits { gflops, gbytes: (2 * 16 * copied) as f64 / copy_ms / 1e6 })
}

fn push(plan: &mut Plan, kernel: &'static Kernel, len: usize, rounds: u32, x: Buf, y: Buf) {
    let params = Params { len: len as u32, rounds, ..Default::default() };
    let step = plan.push(kernel, params, &[x, y], [len as u32, 1, 1]);
    step.work *= (4 * CHAINS_A_LANE) as u64 * rounds.max(1) as u64;
}

fn copy_twin<F: Float>(call: &mut Call<F>) {
    const PIECE: usize = 1 << 16;
    let len = 4 * call.params::<Params>().len as usize;
    let x = call.f(0);
    par::rows(&mut call.f_mut(1)[..len], PIECE, 1, |i, y| y.copy_from_slice(&x[i * PIECE..][..y.len()]));
}

fn chains_twin(call: &mut Call<f32>) {
    spread(call, |x, y, rounds| {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") {
                // SAFETY: the processor was asked and has it.
                return unsafe { fused_512(x, y, rounds) };
            }
            if has!("avx2") && has!("fma") {
                // SAFETY: the processor was asked and has them.
                return unsafe { fused_256(x, y, rounds) };
            }
        }
        #[cfg(target_arch = "aarch64")]
        return chain::<f32, 16>(x, y, rounds, f32::mul_add);
        #[cfg(target_arch = "wasm32")]
        return simd128(x, y, rounds);
        #[cfg(not(any(target_arch = "aarch64", target_arch = "wasm32")))]
        chain::<f32, 8>(x, y, rounds, |c, x, z| c * x + z)
    });
}

fn chains_reference(call: &mut Call<f64>) {
    spread(call, |x, y, rounds| chain::<f64, 8>(x, y, rounds, |c, x, z| c * x + z));
}

/// Calls `f(x, y, rounds)` for pieces of the buffers, in parallel.
fn spread<F: Float>(call: &mut Call<F>, f: impl Fn(&[F], &mut [F], u32) + Sync) {
    const PIECE: usize = 1 << 12;
    let p: Params = call.params();
    let x = call.f(0);
    let y = &mut call.f_mut(1)[..4 * p.len as usize];
    par::rows(y, PIECE, CHAINS_A_LANE, |i, y| f(&x[i * PIECE..][..y.len()], y, p.rounds));
}

/// [`chain`] in registers of a named width: left to the compiler, the chains of a vector go through memory.
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", feature = "relaxed-simd")))]
macro_rules! fused {
    ($arch:ident, $name:ident, $features:literal, $lanes:literal, $load:ident, $spread:ident, $link:ident, $add:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name(x: &[f32], y: &mut [f32], rounds: u32) {
            use std::arch::$arch::*;
            for (x, y) in x.chunks_exact($lanes).zip(y.chunks_exact_mut($lanes)) {
                // SAFETY: both chunks have as many floats as the register.
                let x = unsafe { $load(x.as_ptr().cast()) };
                let mut c: [_; CHAINS_A_LANE] = std::array::from_fn(|k| $spread(k as f32 / CHAINS_A_LANE as f32));
                for _ in 0..rounds {
                    c = c.map(|c| $link(c, x, x));
                }
                let sum = c[1..].iter().fold(c[0], |sum, c| $add(sum, *c));
                // SAFETY: as above.
                unsafe { $store(y.as_mut_ptr().cast(), sum) };
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
fused!(x86_64, fused_512, "avx512f", 16, _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_storeu_ps);
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
fused!(x86_64, fused_256, "avx2,fma", 8, _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_storeu_ps);
#[cfg(all(target_arch = "wasm32", feature = "relaxed-simd"))]
fused!(wasm32, simd128, "relaxed-simd", 4, v128_load, f32x4_splat, f32x4_relaxed_madd, f32x4_add, v128_store);

#[cfg(all(target_arch = "wasm32", not(feature = "relaxed-simd")))]
#[target_feature(enable = "simd128")]
fn simd128(x: &[f32], y: &mut [f32], rounds: u32) {
    chain::<f32, 4>(x, y, rounds, |c, x, z| c * x + z);
}

/// The chains of `LANES` floats at a time, which fill one vector register each.
#[inline(always)]
fn chain<F: Float, const LANES: usize>(x: &[F], y: &mut [F], rounds: u32, link: impl Fn(F, F, F) -> F) {
    for (x, y) in x.chunks_exact(LANES).zip(y.chunks_exact_mut(LANES)) {
        let x: &[F; LANES] = x.try_into().expect("a chunk of so many");
        let mut chains: [[F; LANES]; CHAINS_A_LANE] =
            std::array::from_fn(|k| [F::of(k as f64 / CHAINS_A_LANE as f64); LANES]);
        for _ in 0..rounds {
            for chain in &mut chains {
                for (c, x) in chain.iter_mut().zip(x) {
                    *c = link(*c, *x, *x);
                }
            }
        }
        for (i, y) in y.iter_mut().enumerate() {
            *y = chains.iter().map(|chain| chain[i]).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Copy and chains of 5 rounds over 16 groups: y of each.
    fn run(device: &mut Device) -> [Vec<f32>; 2] {
        let mut plan = Plan::default();
        let [x, y] = ["x", "y"].map(|name| plan.persistent(name, Elem::Float, 64));
        let sequences = [(&COPY, 0), (&CHAINS, 5)].map(|(kernel, rounds)| {
            let sequence = plan.begin("");
            push(&mut plan, kernel, 16, rounds, x, y);
            sequence
        });
        pollster::block_on(device.prepare(&plan)).unwrap();
        device.write_floats(x, 0, &(0..64).map(|i| i as f32 / 64.0).collect::<Vec<_>>());
        sequences.map(|sequence| {
            device.run(&plan, sequence, 0).unwrap();
            pollster::block_on(device.read(y, 0, 64)).unwrap()
        })
    }

    #[test]
    fn every_executor_does_the_work_that_is_counted() {
        let [copied, chained] = run(&mut Device::reference());
        let given: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
        assert_eq!(copied, given);
        // c ← c·x + x, five times from each k/8.
        let one = |x: f64| (0..8).map(|k| (0..5).fold(k as f64 / 8.0, |c, _| c * x + x)).sum::<f64>();
        let close = |got: &[f32]| (0..64).all(|i| (got[i] as f64 - one(i as f64 / 64.0)).abs() < 1e-4);
        assert!(close(&chained), "{chained:?}");
        let mut others = vec![Device::cpu()];
        match pollster::block_on(crate::gpu::open(true, false)) {
            Ok(Some(gpu)) => others.push(Device::Gpu(Box::new(gpu))),
            other => {
                let why = other.err().map_or("no GPU adapter".into(), |e| e.to_string());
                assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, but: {why}");
                // Past the tests' capture, which println! is not.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            }
        }
        for mut device in others {
            let [copied, chained] = run(&mut device);
            assert_eq!(copied, given, "{}", device.describe());
            assert!(close(&chained), "{}: {chained:?}", device.describe());
        }
    }
}
