use crate::common::tolerance::SUM;
use crate::harness::{Suite, random};
use luthier::format::{WeightFormat, pack, unpack};
use luthier::ops::row_squares;

/// No gradient is asked of a frozen matrix: the twin is compared with plain sums.
#[test]
fn twin_matches_plain_sums() {
    for format in WeightFormat::ALL {
        let (o, i) = (5, 64);
        let w = random(o * i, 1);
        let mut s = Suite::new(SUM);
        s.case("squares");
        let (matrix, out) = (s.matrix(format, (o, i), 0, &w), s.output("out", o));
        row_squares::forward(&mut s.plan, "", &matrix, out);
        let floats: Vec<f32> = w.iter().map(|w| *w as f32).collect();
        for (row, got) in s.reference()[0].iter().enumerate() {
            let mut stored = vec![0f64; i];
            unpack(format, &pack(format, &floats[row * i..][..i]), &mut stored);
            let want: f64 = stored.iter().map(|w| w * w).sum();
            assert!((got - want).abs() < 1e-9 * want, "{}: row {row}: {got}, expected {want}", format.name());
        }
    }
}

#[test]
fn executors_agree() {
    let mut s = Suite::new(SUM);
    for (o, i) in [(4, 32), (128, 96), (129, 576)] {
        for format in WeightFormat::ALL {
            s.case(format!("{o}x{i} {}", format.name()));
            let (matrix, out) = (s.matrix(format, (o, i), 32, &random(o * i, 2)), s.output("out", o));
            row_squares::forward(&mut s.plan, "", &matrix, out);
        }
    }
    s.check();
}
