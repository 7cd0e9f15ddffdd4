    // Where this invocation's subgroup works: rows from row0 + down on, outputs from col0 + across on.
    let subgroup = lane / LANES;
    let row0 = group.x * TILE_N;
    let col0 = group.y * TILE_O;
    let down = subgroup / ACROSS * TALL * FRAG;
    let across = subgroup % ACROSS * WIDE * FRAG;
    let first = subgroup * FRAG * OUT_LD;
    // What it stages of x: vector sq of rows lane / 8, and every THREADS / 8-th from there.
    let sq = lane & 7u;
#for s in X_LOADS
    let rx{s} = lane / 8u + {s}u * (THREADS / 8u);
#end
#for m in TALL
#for j in WIDE
    var c{m}_{j} = Sums();
#end
#end
