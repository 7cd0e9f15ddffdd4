//! Static checks of every shader: it validates with every weight format, and what Rust says of it is true.

use luthier::format::WeightFormat;
use luthier::gpu::{FRAGMENTS, assemble, defaults};
use luthier::ops::attention::Shape;
use luthier::ops::low_rank::Factor;
use luthier::ops::{KERNELS, control, gather, sum_squares};
use luthier::plan::{Access, Kernel, MAX_PARAMS, Shader};
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, ArraySize, Expression, Literal, Module, ScalarKind, StorageAccess, StructMember, TypeInner};
use std::path::Path;

/// Parses and validates with no capability beyond core WebGPU (naga asks for one to unpack halves), and subgroups and
/// halves for the shaders that only run where those are known.
fn validated(label: &str, source: &str) -> (Module, ModuleInfo) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    let core = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let mut validator = Validator::new(ValidationFlags::all(), core);
    if source.contains("subgroupBroadcast(") {
        validator = Validator::new(ValidationFlags::all(), core | Capabilities::SUBGROUP);
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    }
    if source.starts_with("enable f16;") {
        let units = if source.contains("coopLoad") { Capabilities::COOPERATIVE_MATRIX } else { Capabilities::empty() };
        validator = Validator::new(ValidationFlags::all(), core | Capabilities::SHADER_FLOAT16 | units);
    }
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    (module, info)
}

fn label(kernel: &Kernel, shader: &Shader) -> String {
    format!("{kernel:?} ({shader})")
}

/// Calls `f` for each shader of each kernel, with its default format and constants.
fn each_shader(f: impl Fn(&str, &'static Kernel, &Module, &ModuleInfo)) {
    for kernel in KERNELS {
        for shader in kernel.shaders {
            let (format, consts) = defaults(shader);
            let label = label(kernel, shader);
            let (module, info) = validated(&label, &assemble(shader, format, &consts, [8, 8]));
            f(&label, kernel, &module, &info);
        }
    }
}

fn constant(module: &Module, name: &str) -> u32 {
    let found = module.constants.iter().find(|(_, c)| c.name.as_deref() == Some(name));
    let (_, constant) = found.unwrap_or_else(|| panic!("no constant {name}"));
    match module.global_expressions[constant.init] {
        Expression::Literal(Literal::U32(value)) => value,
        ref other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn every_shader_validates_with_every_format_and_head_dim() {
    for kernel in KERNELS {
        for shader in kernel.shaders {
            let (format, consts) = defaults(shader);
            let formats: Vec<_> = if format.is_some() { WeightFormat::ALL.map(Some).to_vec() } else { vec![None] };
            let heads: &[u32] = if consts.is_empty() { &[0] } else { &[1, 3, 16, 20, 32, 64] };
            for format in formats {
                for head in heads {
                    let shape = Shape { d: 4 * *head as usize, ..Default::default() };
                    let consts = if consts.is_empty() { Vec::new() } else { shape.consts() };
                    for workgroup in [[8, 8], [32, 1], [1, 32]] {
                        validated(&label(kernel, shader), &assemble(shader, format, &consts, workgroup));
                    }
                }
            }
        }
    }
}

#[test]
fn params_have_the_fields_the_shader_reads() {
    each_shader(|label, kernel, module, _| {
        let (_, params) =
            module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).expect("a struct Params");
        let TypeInner::Struct { members, .. } = &params.inner else { panic!("{label}: Params is no struct") };
        let mut want = Vec::new();
        for (name, ty) in kernel.fields {
            match ty.strip_prefix("[Factor; ").and_then(|n| n.strip_suffix(']')) {
                None => want.push((name.to_string(), ty.to_string())),
                Some(n) => (0..n.parse::<usize>().expect("a number of factors")).for_each(|i| {
                    want.extend(Factor::FIELDS.iter().map(|(f, ty)| (format!("{name}[{i}].{f}"), ty.to_string())));
                }),
            }
        }
        let want: Vec<_> = want.into_iter().zip(0..).map(|((name, ty), i)| (name, ty, i * 4)).collect();
        let mut fields = Vec::new();
        flatten(module, members, "", 0, &mut fields);
        assert_eq!(fields, want, "{label}");
        assert_eq!(fields.len() * 4, kernel.params, "{label}");
        assert!(kernel.params <= MAX_PARAMS, "{label}: parameters take more than the bytes of a slot");
    });
}

/// Name, type and offset of each scalar of a struct, in order.
fn flatten(module: &Module, members: &[StructMember], path: &str, base: u32, out: &mut Vec<(String, String, u32)>) {
    for member in members {
        let (name, at) = (format!("{path}{}", member.name.clone().unwrap_or_default()), base + member.offset);
        let inner = &module.types[member.ty].inner;
        let TypeInner::Array { base: element, size: ArraySize::Constant(size), stride } = inner else {
            out.push((name, scalar(inner).into(), at));
            continue;
        };
        let TypeInner::Struct { members, .. } = &module.types[*element].inner else { panic!("{name}: no structs") };
        for i in 0..size.get() {
            flatten(module, members, &format!("{name}[{i}]."), at + i * stride, out);
        }
    }
}

fn scalar(inner: &TypeInner) -> &'static str {
    match inner {
        TypeInner::Scalar(s) if s.kind == ScalarKind::Uint && s.width == 4 => "u32",
        TypeInner::Scalar(s) if s.kind == ScalarKind::Float && s.width == 4 => "f32",
        _ => "neither u32 nor f32",
    }
}

#[test]
fn bindings_are_those_the_kernel_declares() {
    each_shader(|label, kernel, module, info| {
        let index = module.entry_points.iter().position(|e| e.name == kernel.entry);
        let uses = info.get_entry_point(index.unwrap_or_else(|| panic!("{label}: no such entry point")));
        let mut bound: Vec<(u32, bool)> = module
            .global_variables
            .iter()
            .filter(|(handle, _)| !uses[*handle].is_empty())
            .filter_map(|(_, var)| match var.space {
                AddressSpace::Storage { access } => {
                    let at = var.binding.as_ref().expect("a binding");
                    assert_eq!(at.group, 0, "{label}: buffers are in group 0");
                    Some((at.binding, access.contains(StorageAccess::STORE)))
                }
                _ => None,
            })
            .collect();
        bound.sort();
        let want: Vec<_> = kernel.access.iter().zip(0..).map(|(a, i)| (i, *a != Access::Read)).collect();
        assert_eq!(bound, want, "{label}: (binding, written)");
    });
}

#[test]
fn constants_are_the_same_in_rust_and_wgsl() {
    each_shader(|_, kernel, module, _| {
        for (name, value) in [
            ("ROWS", control::ROWS),
            ("INV_TOKENS", control::INV_TOKENS),
            ("FIRST", control::FIRST),
            ("RING", control::RING),
            ("LR", control::LR),
            ("BIAS1", control::BIAS1),
            ("BIAS2", control::BIAS2),
            ("SEED", control::SEED),
            ("REPORT", control::REPORT),
            ("NONE", gather::NONE as usize),
        ] {
            assert_eq!(constant(module, name), value as u32, "{name}");
        }
        if kernel.name == "sum_squares" {
            assert_eq!(constant(module, "CHUNK"), sum_squares::CHUNK as u32);
        }
    });
}

/// What one kernel is presented as: a shader with its contract, an op with a twin, a test and a bench row.
#[test]
fn every_shader_has_an_op_a_test_and_a_bench_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (benches, all_tests) = (read("benches/kernels.rs"), read("tests/ops.rs"));
    for entry in std::fs::read_dir(root.join("shaders")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() || stem == "prelude" {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let user = KERNELS.iter().find(|k| k.shaders.iter().any(|s| s.source == source));
        let kernel = user.unwrap_or_else(|| panic!("no kernel uses {}", path.display()));
        assert!(stem.starts_with(kernel.name), "{} belongs to the kernel {}", path.display(), kernel.name);
        let op = root.join("src/ops").join(kernel.name).with_extension("rs");
        assert!(op.is_file(), "{} is missing", op.display());
        let test = root.join("tests/ops").join(kernel.name).with_extension("rs");
        let tests = std::fs::read_to_string(&test).unwrap_or_else(|e| panic!("{}: {e}", test.display()));
        assert!(tests.contains("#[test]"), "{} has no test", test.display());
        let module = format!("mod {};", kernel.name);
        assert!(all_tests.lines().any(|line| line == module), "tests/ops.rs has no {module}");
        assert!(benches.contains(&format!("{}::", kernel.name)), "{} has no row in benches/kernels.rs", kernel.name);
        let header = source.split("@compute").next().unwrap();
        assert!(header.starts_with("//") && header.contains("Dispatch:"), "{}: no contract", path.display());
    }
}

/// A part is for several shaders; what one has to itself stands in it.
#[test]
fn parts_are_shared() {
    let shaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let parts = shaders.join("parts");
    let files = |folder: &Path| -> Vec<_> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_file()).collect()
    };
    let includes = |path: &Path, name: &str| -> usize {
        let source = std::fs::read_to_string(path).unwrap();
        source.lines().filter(|line| line.strip_prefix("#include ") == Some(name)).count()
    };
    for part in files(&parts) {
        let name = part.file_stem().unwrap().to_str().unwrap();
        let users = [files(&shaders), files(&parts)].concat();
        let times: usize = users.iter().map(|path| includes(path, name)).sum();
        assert!(times > 1, "{} is included {times} times", part.display());
    }
}

/// Every entry point of every shader belongs to a kernel: nothing is written that nothing runs.
#[test]
fn every_entry_point_is_a_kernel() {
    each_shader(|label, kernel, module, _| {
        for point in &module.entry_points {
            let known = KERNELS.iter().any(|k| k.name == kernel.name && k.entry == point.name);
            assert!(known, "{label}: {} is no kernel", point.name);
        }
    });
}

/// Tiles for matrix units are shared out evenly, and take what is asked of an adapter before they are offered.
#[test]
fn fragments_are_shared_out_evenly_and_fit() {
    let shaders: Vec<_> = KERNELS.iter().flat_map(|k| k.shaders).filter(|s| s.constant("FRAG") > 0).collect();
    assert!(!shaders.is_empty());
    for shader in shaders {
        let [frag, lanes, down, across] = ["FRAG", "LANES", "DOWN", "ACROSS"].map(|name| shader.constant(name));
        let [tall, wide, steps] = ["TALL", "WIDE", "STEPS"].map(|name| shader.constant(name));
        let (rows, outs, threads) = (down * tall * frag, across * wide * frag, down * across * lanes);
        assert_eq!((shader.tile, steps * frag), ([rows, outs, 1], 32), "{shader}");
        let loads = ["X_LOADS", "W_LOADS"].map(|name| shader.constant(name) * threads);
        assert_eq!(loads, [rows * 8, outs * 8], "{shader}");
        assert!(threads % 8 == 0 && threads <= 256, "{shader}");
        // Halves: x, and W as either direction lays it. Floats: a row of fragments for each subgroup.
        let halves = (rows * 40 + (outs * 40).max(32 * (outs + 8))) * 2;
        let bytes = halves + down * across * frag * wide * frag * 4;
        let asked = FRAGMENTS.iter().find(|f| f[..2] == [frag, lanes]).map(|f| f[2]);
        assert!(asked.is_some_and(|asked| bytes <= asked), "{shader}: takes {bytes} bytes, asked for are {asked:?}");
    }
}

/// What a product stages is shared out evenly, and fits what every WebGPU device has.
#[test]
fn tiles_are_shared_out_evenly_and_fit() {
    let shaders = KERNELS.iter().flat_map(|k| k.shaders).filter(|s| s.constant("TX") > 0);
    let mut tiles = 0;
    for shader in shaders {
        let [tall, wide, tx, ty] = ["TALL", "WIDE", "TX", "TY"].map(|name| shader.constant(name));
        assert_eq!(shader.tile, [tall * ty, wide * tx, 1], "{shader}");
        assert_eq!(
            (shader.constant("X_LOADS") * tx, shader.constant("W_LOADS") * ty),
            (4 * tall, 4 * wide),
            "{shader}"
        );
        assert!(tx % 8 == 0 && ty % 8 == 0 && tx * ty <= 256, "{shader}");
        assert!((tall * ty + wide * tx) * 16 * 4 <= 16_384, "{shader}: more than 16 KiB of workgroup memory");
        tiles += 1;
    }
    assert!(tiles > 0);
}
