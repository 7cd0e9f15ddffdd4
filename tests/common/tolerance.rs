//! How far two implementations of one kernel may be apart, and why.

/// An error is allowed up to `rel·|want| + abs·rms(want)`: `abs` covers sums whose terms cancel, which are as exact as
/// their largest term and not as their result.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub rel: f64,
    pub abs: f64,
}

const ULP: f64 = f32::EPSILON as f64;

/// Copies, masks and lookups: the same bits.
pub const EXACT: Tolerance = Tolerance { rel: 0.0, abs: 0.0 };

/// A handful of f32 operations, division and square root among them (2.5 ulp each in WGSL).
pub const FEW: Tolerance = Tolerance { rel: 16.0 * ULP, abs: 4.0 * ULP };

/// One exponential. WGSL allows exp(x) an error of 3 + 2|x| ulp; the tests stay within |x| < 40 where it matters.
pub const EXP: Tolerance = Tolerance { rel: 96.0 * ULP, abs: 16.0 * ULP };

/// Sums of up to about a thousand products in f32, in any order: rounding grows like √K, the bound leaves slack for
/// outliers that dominate a row.
pub const SUM: Tolerance = Tolerance { rel: 64.0 * ULP, abs: 64.0 * ULP };

/// Sums of up to about a thousand products whose factors were rounded to 11 bits: each product is off by 2⁻¹¹ of itself
/// or so, and so is a sum of many, against its terms; its outliers by a few times that.
pub const HALF: Tolerance = Tolerance { rel: 1.0 / 1024.0, abs: 4.0 / 1024.0 };

/// Softmax over sums: the error of a score s is multiplied by s before it reaches the probability.
pub const SOFTMAX: Tolerance = Tolerance { rel: 1e-4, abs: 3e-5 };

/// Central differences in f64 with a step of 1e-5: truncation about 1e-10, cancellation about 1e-11, relative to the
/// largest gradient; two decimals of slack for curvature.
pub const DIFFERENCES: Tolerance = Tolerance { rel: 1e-6, abs: 1e-7 };
pub const STEP: f64 = 1e-5;

impl Tolerance {
    /// Panics at the first value of `got` that is too far from `want`, with both.
    pub fn check(&self, what: &str, got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{what}: length");
        let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt();
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let allowed = self.rel * w.abs() + self.abs * rms;
            let error = (g - w).abs();
            assert!(error <= allowed, "{what}[{i}]: got {g:e}, want {w:e}; error {error:.2e}, allowed {allowed:.2e}");
        }
    }
}

/// The largest difference of any value, relative to the largest that is wanted.
pub fn apart<G: Copy + Into<f64>, W: Copy + Into<f64>>(got: &[G], want: &[W]) -> f64 {
    farthest(got, want) / want.iter().fold(f64::MIN_POSITIVE, |most, w| most.max((*w).into().abs()))
}

/// The largest difference of any value, and NaN where one is: `f64::max` alone passes over it.
pub fn farthest<G: Copy + Into<f64>, W: Copy + Into<f64>>(got: &[G], want: &[W]) -> f64 {
    assert_eq!(got.len(), want.len(), "as many values as are wanted");
    let differences = got.iter().zip(want).map(|(g, w)| ((*g).into() - (*w).into()).abs());
    differences.fold(0.0, |most: f64, d| if most.is_nan() || d <= most { most } else { d })
}
