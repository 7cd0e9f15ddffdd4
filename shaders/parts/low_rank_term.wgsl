    // Adds the low-rank terms to c{m}_{j}, all outputs of an invocation at a time: of the rows n{m}, from column `first` on, every
    // STRIDE-th four of them.
    for (var k = 0u; k < 3u; k += 1u) {
        let f = p.factors[k];
        if (first + (WIDE - 4u) * STRIDE + 4u <= f.col || first >= f.col + f.width) { continue; }
#for j in WIDE by 4
        let in{j} = first + {j}u * STRIDE >= f.col && first + {j}u * STRIDE < f.col + f.width;
        let scale{j} = select(0.0, f.scale, in{j});
        let at{j} = f.off + select(0u, first + {j}u * STRIDE - f.col, in{j});
#end
        for (var r = 0u; r < f.rank; r += 1u) {
#for j in WIDE by 4
            let f{j} = scale{j} * flat[(at{j} + r * f.width) / 4u];
#end
#for m in TALL
            let t{m} = t[n{m} * p.t_ld + f.t + r];
#for j in WIDE by 4
            c{m}_{j} += t{m} * f{j};
#end
#end
        }
    }
