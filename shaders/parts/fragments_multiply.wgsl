        // The staged rows of x with the fragments b{step}_{output} of W.
#for q in STEPS
#for m in TALL
        let a{q}_{m} = coopLoadT<Left>(&xs[(down + {m}u * FRAG) * X_LD + {q}u * FRAG_4], X_LD);
#for j in WIDE
        c{m}_{j} = coopMultiplyAdd(a{q}_{m}, b{q}_{j}, c{m}_{j});
#end
#end
#end
