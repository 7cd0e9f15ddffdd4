// Attention over a KV cache, for generation.
//
// append:   K[sequence(n), position(n), :] = k[n,:],  V[sequence(n), position(n), :] = v[n,:]
// forward:  o[n,h] = softmax_j(cap(scale·q[n,h]·K[sequence, j, g]))·V[sequence, j, g],  g = h·G/H,  over the nearest `window`
//           positions j ≤ position(n); cap as in parts/attention.wgsl
//
// slots:[N] of (sequence or NONE, position)  qkv:[N, H + 2G, D] as in parts/attention.wgsl  o:[N,H,D]  caches:[sequences, capacity, G, D]
// Idle rows (NONE) append nothing and get zeros. HEAD_DIM_4 = D/4 is prepended.

struct Params { n: u32, heads: u32, kv_heads: u32, d: u32, scale: f32, capacity: u32, cap: f32, window: u32 }
@group(1) @binding(0) var<uniform> p: Params;
@group(0) @binding(0) var<storage, read> slots: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> qk: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;
